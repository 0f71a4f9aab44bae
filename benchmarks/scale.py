"""What many simulated clients cost: the tiny model, two workers, 50 clients a round, up to 10,000 clients in all.

    python benchmarks/scale.py --json

The package's own driver loop, sinks and Ray actors, each run in a process of its own on a cluster of its own. Clients'
examples are made when they are visited. Training is an engine that does nothing: what is left is the platform.

    rss_growth/…            the largest resident set with 10,000 clients over that with 100, less 1
    overhead_ms_per_client  by so much a client makes a round longer: a round's seconds over its clients, the median of
                            the rounds, with 10,000 clients
    overhead_ms/…           the same for other numbers of clients, in all and in a round
    overhead_growth/…       in all: that with 10,000 clients over that with 100, less 1; a_round: that of 200 clients a
                            round over that of 50, less 1
    seconds/1000_clients    a whole run of 20 rounds with real training, from `run` to its summary
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from federation import asleep_for, own_cluster
from harness import Row, note, parser, report
from rich.console import Console
from rounds import started

from parablock_ray.config import Config, load_config
from parablock_ray.driver import run
from parablock_ray.tracking.sinks import open_sinks

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
OVERRIDES = [
    "data.num_train=null",
    "data.per_client=4",
    "data.num_eval=16",
    "workers.num=2",
    "method.local_steps=1",
    "method.batch_size=4",
    "tracking.wandb=off",
]
T = TypeVar("T")


@dataclass(frozen=True)
class Scale:
    """How many clients there are, and how many of them are drawn for a round."""

    num_clients: int
    per_round: int


FEW, MANY = Scale(100, 50), Scale(10_000, 50)
SMALL_ROUNDS, LARGE_ROUNDS = Scale(1000, 50), Scale(1000, 200)
SCALES = [Scale(10, 10), FEW, SMALL_ROUNDS, MANY, LARGE_ROUNDS]


@dataclass(frozen=True)
class Cost:
    """`overhead_ms`: of a client in the median round. `peak_rss_bytes` by kind of process."""

    overhead_ms: float
    peak_rss_bytes: dict[str, int]


def main() -> None:
    options = arguments()
    costs = {}
    for scale in SCALES:
        cost = costs[scale] = alone(partial(cost_of, scale, options.rounds))
        peaks = ", ".join(f"{process} {peak / 1e6:.0f} MB" for process, peak in cost.peak_rss_bytes.items())
        note(f"{scale.num_clients} clients, {scale.per_round} a round: {cost.overhead_ms:.2f} ms a client, {peaks}")
    rows = [*figures(costs), Row("seconds/1000_clients", alone(trained_s), "s", goal=180, at_most=True)]
    report(rows, options.json)


def arguments() -> argparse.Namespace:
    options = parser(__doc__.partition("\n")[0])
    options.add_argument("--rounds", type=int, default=20, help="of each run")
    return options.parse_args()


def alone(measure: Callable[[], T]) -> T:
    """The answer of a new process, which holds nothing of earlier runs."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure).result()


def cost_of(scale: Scale, num_rounds: int) -> Cost:
    """A run in which nobody trains."""
    with tempfile.TemporaryDirectory() as folder, own_cluster():
        config = config_of(scale, num_rounds, folder)
        with started(config, asleep_for(0)) as made:
            _, rows = made.rounds(open_sinks(config, Console(quiet=True), resumes=False))
            peaks = made.runtime.peak_rss_bytes()
    workers = [peak for process, peak in peaks.items() if process.startswith("worker")]
    overhead_ms = 1e3 * statistics.median(row["seconds"] for row in rows) / scale.per_round
    return Cost(overhead_ms, {"driver": peaks["driver"], "server": peaks["server"], "worker": max(workers)})


def trained_s() -> float:
    """Seconds of a whole run of 1,000 clients that train."""
    with tempfile.TemporaryDirectory() as folder, own_cluster():
        start_s = time.perf_counter()
        run(config_of(SMALL_ROUNDS, 20, folder))
        return time.perf_counter() - start_s


def config_of(scale: Scale, num_rounds: int, folder: str) -> Config:
    """The quick start's model, blocks and problems."""
    sizes = [f"clients.num={scale.num_clients}", f"clients.per_round={scale.per_round}", f"method.rounds={num_rounds}"]
    return load_config(QUICKSTART, [*OVERRIDES, *sizes, f"out={folder}/out"])


def figures(costs: Mapping[Scale, Cost]) -> Iterator[Row]:
    """The rows of the runs without training."""
    for process, few_bytes in costs[FEW].peak_rss_bytes.items():
        growth = costs[MANY].peak_rss_bytes[process] / few_bytes - 1
        yield Row(f"rss_growth/{process}", growth, "ratio", goal=0.05, at_most=True)
    yield Row("overhead_ms_per_client", costs[MANY].overhead_ms, "ms", goal=5, at_most=True)
    for scale, cost in costs.items():
        yield Row(f"overhead_ms/{scale.num_clients}_clients/{scale.per_round}_a_round", cost.overhead_ms, "ms")
    yield Row("overhead_growth/in_all", costs[MANY].overhead_ms / costs[FEW].overhead_ms - 1, "ratio")
    yield Row("overhead_growth/a_round", costs[LARGE_ROUNDS].overhead_ms / costs[SMALL_ROUNDS].overhead_ms - 1, "ratio")


if __name__ == "__main__":
    main()
