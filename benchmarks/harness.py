"""What every benchmark shares: its figures as rows, printed for people or, with `--json`, as one last object."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from parablock_ray.driver import versions


@dataclass(frozen=True)
class Row:
    """One figure. A ratio is over 1 when we are better; `goal` is the least that is good enough, where there is one.

    `at_most`: the goal is the most instead, as for an error.
    """

    name: str
    value: float
    unit: str
    goal: float | None = None
    at_most: bool = False


def parser(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have; a benchmark adds its own."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--json", action="store_true", help="print the rows as one JSON object, last")
    return options


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
    width = max(len(row.name) for row in rows)
    return "\n".join(f"{row.name:<{width}}  {row.value:>10.4g} {row.unit:<8}{_verdict(row)}".rstrip() for row in rows)


def machine() -> dict[str, Any]:
    """Where the figures were taken. `load_1m` (of the last minute) tells whether others used it too."""
    return {
        "cpu": _cpu_model(),
        "num_cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "load_1m": round(os.getloadavg()[0], 2),
    }


def _verdict(row: Row) -> str:
    if row.goal is None:
        return ""
    is_met = row.value <= row.goal if row.at_most else row.value >= row.goal
    return f"  goal {'at most ' if row.at_most else ''}{row.goal:g}" + ("" if is_met else "  MISSED")


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # Linux; platform.processor() is empty there
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
