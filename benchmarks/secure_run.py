"""What secure aggregation costs a run: `python benchmarks/secure_run.py --json`.

The quick start on Ray, plain and masked in turn, as fast as the machine and over a link that really delays:

    NETWORK/plain, NETWORK/masked      seconds of the rounds, medians over the pairs
    NETWORK/speed kept                 plain over masked, the median of the pairs
    bytes up, masked over plain        vectors and what travels beside them
"""

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness import Row, note, parser, report

from parablock_ray.config import load_config
from parablock_ray.driver import run

_QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
_PLAIN = ["tracking.wandb=off", "engine.name=torch"]
_NETWORKS = {
    "no link": ["network.mode=none"],
    "shaped link": ["network.mode=shaped", "network.up_mbps=20", "network.down_mbps=50", "network.latency_ms=20"],
}


def main() -> None:
    options = parser(__doc__.partition("\n")[0])
    options.add_argument("--pairs", type=int, default=3, help="of runs on each network")
    options.add_argument("--rounds", type=int, default=12, help="of each run")
    arguments = options.parse_args()
    rows = [row for name in _NETWORKS for row in compared(name, arguments.pairs, arguments.rounds)]
    report(rows, arguments.json)


def compared(name: str, num_pairs: int, num_rounds: int) -> Iterator[Row]:
    """Plain and masked runs on one network, in turn."""
    overrides = [*_PLAIN, *_NETWORKS[name], f"method.rounds={num_rounds}"]
    plain, masked = [], []
    for pair in range(num_pairs):
        note(f"{name}: pair {pair + 1} of {num_pairs}")
        plain.append(finished(overrides))
        masked.append(finished([*overrides, "secure_aggregation.enabled=true"]))
    seconds = [[each["seconds"] for each in runs] for runs in (plain, masked)]
    ratios = [one / other for one, other in zip(*seconds, strict=True)]
    yield Row(f"{name}/plain", statistics.median(seconds[0]), "s")
    yield Row(f"{name}/masked", statistics.median(seconds[1]), "s")
    yield Row(f"{name}/speed kept", statistics.median(ratios), "ratio")
    yield Row(f"{name}/bytes up, masked over plain", masked[0]["bytes_up"] / plain[0]["bytes_up"], "ratio")


def finished(overrides: Sequence[str]) -> dict[str, Any]:
    """The summary of a run that leaves nothing behind."""
    with tempfile.TemporaryDirectory() as folder:
        return run(load_config(_QUICKSTART, [*overrides, f"out={folder}/run"]))


if __name__ == "__main__":
    main()
