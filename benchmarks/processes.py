"""Short runs of the tiny model in processes of their own, and those that belong to them, seen from outside."""

import sys
from pathlib import Path

import psutil

_QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
_SHORT = [
    "method.local_steps=1",
    "method.batch_size=2",
    "data.num_train=60",
    "data.num_eval=8",
    "tracking.wandb=off",
    "engine.name=torch",
]


def short_run(out: Path, *overrides: str) -> list[str]:
    """The command of a run into `out`."""
    return parablock("run", str(_QUICKSTART), *_SHORT, *overrides, f"out={out}")


def parablock(*arguments: str) -> list[str]:
    """A command of this environment's parablock-ray."""
    return [sys.executable, "-m", "parablock_ray", *arguments]


def title_of(process: psutil.Process) -> str:
    """What it calls itself, as Ray's actors do by their class; nothing if it has just ended."""
    try:
        return next(iter(process.cmdline()), "")
    except psutil.NoSuchProcess:
        return ""
