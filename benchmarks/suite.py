"""All benchmarks of performance, one after the other: `make bench`, in about half an hour on 2 cores.

    python benchmarks/suite.py --out runs/bench.json
    python benchmarks/suite.py --check benchmarks/expected.json      # make bench-check
    python benchmarks/suite.py --only engine exchange

Each is a process of its own. What they find is written as one object: the machine, the versions, the seconds of each
script, and all rows. `--check` compares ratios, never seconds, with those that were kept: a ratio is clearly lost where
it falls short by more than 15 % and by more than three times its spread, which is taken for 10 % where it is not known.
What was not measured, as where a peer is not installed, is no loss.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import Row, machine, meets_goal, note, table

from parablock_ray.driver import versions

FOLDER = Path(__file__).parent
# Fewer turns than a script takes by itself, for time.
SUITE: dict[str, list[str]] = {
    "larger_world": [],
    "aggregate": [],
    "exchange": ["--train-s", "2"],
    "engine": ["--turns", "2", "--steps", "2", "--blocks", "lowest", "highest"],
    "lora_aggregation": ["--dense-turns", "1"],
    "cost_growth": [],
    "vs_peers": ["--turns", "2", "--start-ups", "1", "--smollm2-rounds", "5"],
    "overlap": ["--rounds", "6"],
}
RATIOS = ("x", "ratio")  # units of what may be compared between machines
LEAST_LOSS = 0.15
SPREADS = 3.0
UNKNOWN_SPREAD = 0.1  # of what was measured once and is not exact
# May halve from one run to the next, with whatever else the machine does (docs/performance.md, Exchange).
UNSTEADY = "exchange/training_speed/"


def main() -> None:
    options = arguments()
    found, failed = carry_out(options.only)
    print(table([Row(**row) for row in found["rows"]]), flush=True)
    for missed in [row for row in found["rows"] if not meets_goal(Row(**row))]:
        note(f"short of its goal: {missed['name']}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1))
    if options.expect:
        options.expect.write_text(json.dumps(expected(found), indent=1) + "\n")
    lost = list(losses(json.loads(options.check.read_text()), found)) if options.check else []
    for each in [*failed, *lost]:
        note(each)
    sys.exit(bool(failed or lost))


def arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--only", nargs="+", choices=SUITE, default=list(SUITE), metavar="NAME", help=", ".join(SUITE))
    options.add_argument("--out", type=Path, help="write what is found there")
    options.add_argument("--check", type=Path, metavar="FILE", help="fail where a ratio of FILE is clearly lost")
    options.add_argument("--expect", type=Path, metavar="FILE", help="write the ratios there, for a later --check")
    return options.parse_args()


def carry_out(names: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What the scripts found, and which of them failed."""
    found: dict[str, Any] = {"machine": machine(), "versions": versions(), "seconds": {}, "rows": []}
    failed = []
    for name in names:
        note(f"{name} …")
        start_s = time.perf_counter()
        command = [sys.executable, str(FOLDER / f"{name}.py"), *SUITE[name], "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        found["seconds"][name] = round(time.perf_counter() - start_s, 1)
        if done.returncode:
            failed.append(f"{name}: ended with {done.returncode}")
        else:
            found["rows"] += json.loads(done.stdout.splitlines()[-1])["rows"]
    return found, failed


def expected(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a later check is held against: the ratios that are better when they are larger."""
    rows = [row for row in found["rows"] if row["unit"] in RATIOS and not row["at_most"]]
    rows = [row for row in rows if not row["name"].startswith(UNSTEADY)]
    kept = {row["name"]: {"value": float(f"{row['value']:.4g}"), "spread": row["spread"]} for row in rows}
    return {"machine": found["machine"], "versions": found["versions"], "ratios": kept}


def losses(kept: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """A line for each ratio that is clearly lost."""
    rows = {row["name"]: Row(**row) for row in found["rows"]}
    both = [name for name in kept["ratios"] if name in rows]
    note(f"compared: {len(both)} of {len(kept['ratios'])} ratios")
    for name in both:
        row, before = rows[name], kept["ratios"][name]
        spreads = [spread for spread in (before["spread"], row.spread) if spread is not None]
        allowed = max(LEAST_LOSS, SPREADS * max(spreads, default=UNKNOWN_SPREAD))
        if row.value < before["value"] * (1 - allowed):
            yield f"lost: {name} is {row.value:.4g}, was {before['value']:.4g} (allowed: {allowed:.0%} less)"


if __name__ == "__main__":
    main()
