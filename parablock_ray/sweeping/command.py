"""`parablock sweep`: all runs of a sweep file that are not done yet."""

import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from parablock_ray.errors import RunFailed
from parablock_ray.sweeping.expand import Sweep, SweepRun, load_sweep
from parablock_ray.sweeping.schedule import Ended, run_all, run_command
from parablock_ray.sweeping.state import State, claimed, failure_file, log_file


def run_sweep(file: Path, out: Path | None, parallel: int, console: Console) -> Sweep:
    """Check every run, then carry out those that are not done. Raises UserError, and RunFailed where any failed."""
    sweep = load_sweep(file, out)
    with claimed(sweep) as found:
        left = [run for run, state in zip(sweep.runs, found, strict=True) if state != "done"]
        console.print(f"sweep {sweep.name}: {len(left)} of {len(sweep.runs)} runs to do, into {sweep.folder}")
        progress = _Progress(left, console)
        with _interrupted_by_sigterm():
            ended = run_all(left, parallel, progress.started, progress.ended, run_command)
    failed = [each for each in ended if each.failure]
    if failed:
        lines = [f"{each.run.label}: {each.failure} (log: {log_file(each.run)})" for each in failed]
        raise RunFailed("\n".join([f"{len(failed)} of {len(ended)} runs failed:", *lines]))
    return sweep


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """A SIGTERM ends the children as Ctrl-C does; without that they would outlive us."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def state_table(sweep: Sweep, found: Sequence[State]) -> Table:
    """A row a run: what is done, and what is left."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for header in ("run", "state", "why"):
        table.add_column(header, overflow="fold")
    for run, state in zip(sweep.runs, found, strict=True):
        why = failure_file(run).read_text("utf-8").partition("\n")[0] if state == "failed" else ""
        table.add_row(run.label, state, why)
    return table


class _Progress:
    """A line when a run starts, one when it ends."""

    def __init__(self, runs: Sequence[SweepRun], console: Console) -> None:
        self._place = {run.label: f"[{number}/{len(runs)}] {run.label}" for number, run in enumerate(runs, 1)}
        self._console = console

    def started(self, run: SweepRun) -> None:
        self._tell(f"{self._place[run.label]}: started, log {log_file(run)}")

    def ended(self, ended: Ended) -> None:
        how = f"failed: {ended.failure}" if ended.failure else f"done, {_losses(ended.run)}"
        self._tell(f"{self._place[ended.run.label]}: {how} ({ended.seconds:.0f} s)")

    def _tell(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def _losses(run: SweepRun) -> str:
    summary = json.loads((run.folder / "summary.json").read_text("utf-8"))
    return f"held-out loss {summary['loss_before']:.4f} to {summary['loss_after']:.4f}"
