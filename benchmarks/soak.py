"""A long run of the tiny model on Ray: do memory and file handles of its processes stay flat?

    python benchmarks/soak.py --rounds 500 --json

Resident set and open files of the driver, the server and each worker, seen from outside: the median of the last fifth
of the samples over that of the second fifth.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
from harness import Row, parser, report
from processes import short_run, title_of

_SAMPLE_S = 0.5


class Sample(NamedTuple):
    """One process at one moment."""

    rss_bytes: int
    num_files: int


def main() -> None:
    options = parser(__doc__.partition("\n")[0])
    options.add_argument("--rounds", type=int, default=500, help="of the run")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report(growth(samples_of(Path(folder) / "run", arguments.rounds)), arguments.json)


def samples_of(out: Path, num_rounds: int) -> dict[str, list[Sample]]:
    """By process, while the rounds go on."""
    command = short_run(out, f"method.rounds={num_rounds}", "workers.num=2", "checkpoint.every=20")
    driver = psutil.Popen(command, stdout=subprocess.DEVNULL)
    samples: dict[str, list[Sample]] = defaultdict(list)
    while driver.poll() is None:
        if (out / "metrics.jsonl").exists() and not (out / "model").exists():
            for name, process in _processes(driver):
                try:
                    samples[name].append(Sample(process.memory_info().rss, process.num_fds()))
                except psutil.NoSuchProcess:  # it has just ended
                    continue
        time.sleep(_SAMPLE_S)
    if driver.returncode:
        sys.exit(f"the run ended with {driver.returncode}")
    return samples


def _processes(driver: psutil.Popen) -> Iterator[tuple[str, psutil.Process]]:
    yield "driver", driver
    for process in driver.children(recursive=True):
        title = title_of(process)
        if title.startswith(("ray::ClientActor", "ray::ServerActor")):
            kind = "worker" if "Client" in title else "server"
            yield f"{kind} {process.pid}", process


def growth(samples: dict[str, list[Sample]]) -> Iterator[Row]:
    """Of each process: the medians of the last fifth over those of the second."""
    for name, found in sorted(samples.items()):
        fifth = len(found) // 5
        warm, last = found[fifth : 2 * fifth], found[-fifth:]
        rss_before, rss_after = _median_rss(warm), _median_rss(last)
        yield Row(f"{name}: resident set", rss_after / 1e6, "MB")
        yield Row(f"{name}: growth of the resident set", rss_after / rss_before - 1, "ratio", goal=0.02, at_most=True)
        files = [statistics.median(each.num_files for each in part) for part in (warm, last)]
        yield Row(f"{name}: more open files", files[1] - files[0], "files", goal=0, at_most=True)


def _median_rss(part: Sequence[Sample]) -> float:
    return statistics.median(each.rss_bytes for each in part)


if __name__ == "__main__":
    main()
