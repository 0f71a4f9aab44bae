"""What of a sweep is done, and the files beside its runs' folders."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from parablock_ray.config import differing_keys, save_resolved
from parablock_ray.config.differences import CHANGE_NO_VALUE
from parablock_ray.errors import UserError
from parablock_ray.lock import take
from parablock_ray.sweeping.expand import Sweep, SweepRun
from parablock_ray.tracking.compare import read_run
from parablock_ray.tracking.sweep_folder import SWEEP_FILE, failure_beside

State = Literal["done", "failed", "unfinished", "to do"]


def config_file(run: SweepRun) -> Path:
    """What the run was started with; `parablock run` takes it."""
    return run.folder.with_name(f"{run.label}.yaml")


def log_file(run: SweepRun) -> Path:
    """What the run printed."""
    return run.folder.with_name(f"{run.label}.log")


def failure_file(run: SweepRun) -> Path:
    """Why the run failed; there only if it did."""
    return failure_beside(run.folder)


def states(sweep: Sweep) -> list[State]:
    """The state of each run. Raises UserError where a finished run is not the one that is wanted."""
    others = [line for run in sweep.runs if (line := _other_run(run))]
    if others:
        raise UserError("\n".join(others))
    return [_state(run) for run in sweep.runs]


def _state(run: SweepRun) -> State:
    if (run.folder / "summary.json").exists():
        return "done"
    if failure_file(run).exists():
        return "failed"
    return "unfinished" if run.folder.exists() else "to do"


def _other_run(run: SweepRun) -> str | None:
    """How the finished run in this run's folder differs from it."""
    if not (run.folder / "summary.json").exists():
        return None
    differing = differing_keys([read_run(run.folder).config, run.config], ignoring=CHANGE_NO_VALUE)
    if not differing:
        return None
    keys = ", ".join(f"{key} {there!r} (now {wanted!r})" for key, (there, wanted) in differing.items())
    return f"{run.label}: {run.folder} holds a finished run with {keys}; choose another --out, or delete that folder"


def make_ready(run: SweepRun) -> None:
    """Write the config, and clear away what an earlier try left, unless it has checkpoints to go on from."""
    if run.folder.exists() and not any(run.folder.glob("checkpoints/round-*")):
        shutil.rmtree(run.folder)
    failure_file(run).unlink(missing_ok=True)
    save_resolved(run.config, config_file(run))


@contextmanager
def claimed(sweep: Sweep) -> Iterator[list[State]]:
    """Keep the sweep's folder for this process, which sees to unfinished runs there; gives the states of the runs.

    Raises UserError where that cannot be, or where files lie in the way.
    """
    try:
        sweep.folder.mkdir(parents=True, exist_ok=True)
        held = take(sweep.folder)
    except OSError as error:
        raise UserError(f"out: cannot write to {sweep.folder}: {error.strerror}; choose another --out") from None
    if held is None:
        raise UserError(f"out: another sweep is at work in {sweep.folder}; wait for it, or choose --out")
    with held:
        found = states(sweep)
        foreign = [run.folder for run, state in zip(sweep.runs, found, strict=True) if _is_foreign(run, state)]
        if foreign:
            raise UserError(f"out: {foreign[0]} holds something that is no run; choose another --out, or move it away")
        labels = {"name": sweep.name, "runs": [run.label for run in sweep.runs]}
        (sweep.folder / SWEEP_FILE).write_text(json.dumps(labels, indent=2) + "\n", "utf-8")
        yield found


def _is_foreign(run: SweepRun, state: State) -> bool:
    """Whether files lie where the run's folder goes that no run has left; one that failed early leaves some others."""
    if state != "unfinished" or (run.folder / "config.yaml").exists() or config_file(run).exists():
        return False
    return not run.folder.is_dir() or any(run.folder.iterdir())
