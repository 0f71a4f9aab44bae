"""What every benchmark shares: measuring in turns, its figures as rows, printed for people or, with `--json`, as one
last object."""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from parablock_ray.driver import versions


@dataclass(frozen=True)
class Row:
    """One figure. A ratio is over 1 when we are better; `goal` is the least that is good enough, where there is one.

    `at_most`: the goal is the most instead, as for an error. `spread`: of what `value` is the median of, how far apart
    the quarters are, as a share of `value`; 0 of what is exact, None where it is not known, as of a single value.
    """

    name: str
    value: float
    unit: str
    goal: float | None = None
    at_most: bool = False
    spread: float | None = None


def parser(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have; a benchmark adds its own."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--json", action="store_true", help="print the rows as one JSON object, last")
    return options


def seconds_of(call: Callable[[], object]) -> float:
    """How long a call takes."""
    start_s = time.perf_counter()
    call()
    return time.perf_counter() - start_s


def processor_seconds_of(call: Callable[[], object]) -> float:
    """The same, of what computes in this process in one thread and waits for nobody: others cannot disturb it much."""
    start_s = time.process_time()
    call()
    return time.process_time() - start_s


def in_turns(measures: Mapping[str, Callable[[], float]], num_turns: int) -> dict[str, list[float]]:
    """What each measure finds, A B A B …: whatever else the machine does meets all of them alike.

    All are called once before that, which does not count: libraries load, memory is claimed.
    """
    for measure in measures.values():
        measure()
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(num_turns):
        for name, measure in measures.items():
            found[name].append(measure())
    return found


def median_row(name: str, values: Sequence[float], unit: str, goal: float | None = None) -> Row:
    """The median with its spread, which a single value has not."""
    median = statistics.median(values)
    if len(values) == 1 or not median:
        return Row(name, median, unit, goal)
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Row(name, median, unit, goal, spread=(upper - lower) / abs(median))


def speed_row(name: str, ours_s: Sequence[float], theirs_s: Sequence[float], goal: float | None = None) -> Row:
    """How many times faster we are: the median over turns of their seconds over ours."""
    return median_row(name, [theirs / ours for ours, theirs in zip(ours_s, theirs_s, strict=True)], "x", goal)


def note(text: str) -> None:
    """Something for people only, while the benchmark goes on: stdout belongs to the figures."""
    print(text, file=sys.stderr, flush=True)


def report(rows: Iterable[Row], as_json: bool) -> None:
    """Print the figures: an object on one line, or a table."""
    rows = list(rows)
    if as_json:
        found = {"machine": machine(), "versions": versions(), "rows": [asdict(row) for row in rows]}
        print(json.dumps(found), flush=True)
    else:
        print(table(rows), flush=True)


def table(rows: Sequence[Row]) -> str:
    """The rows for people, a line each; what misses its goal says so."""
    width = max((len(row.name) for row in rows), default=0)
    lines = (f"{row.name:<{width}}  {row.value:>10.4g} {row.unit:<8}{_spread(row)}{_verdict(row)}" for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def machine() -> dict[str, Any]:
    """Where the figures were taken. `load_1m` (of the last minute) tells whether others used it too."""
    return {
        "cpu": _cpu_model(),
        "num_cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "load_1m": round(os.getloadavg()[0], 2),
    }


def meets_goal(row: Row) -> bool:
    """Whether it is as good as its goal, where it has one."""
    return row.goal is None or (row.value <= row.goal if row.at_most else row.value >= row.goal)


def _verdict(row: Row) -> str:
    if row.goal is None:
        return ""
    return f"  goal {'at most ' if row.at_most else ''}{row.goal:g}" + ("" if meets_goal(row) else "  MISSED")


def _spread(row: Row) -> str:
    return "" if row.spread is None else f"  spread {row.spread:.0%}"


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # Linux; platform.processor() is empty there
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
