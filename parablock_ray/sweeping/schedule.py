"""Runs as child processes, so many at a time; one that fails does not stop the others."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from parablock_ray.sweeping.expand import SweepRun
from parablock_ray.sweeping.state import config_file, failure_file, log_file, make_ready

_POLL_S = 0.2
_GRACE_S = 30.0  # for a child that was told to stop: it closes its cluster and its files

Command = Callable[[SweepRun], Sequence[str]]


@dataclass(frozen=True)
class Child:
    run: SweepRun
    process: subprocess.Popen[bytes]
    started_s: float


@dataclass(frozen=True)
class Ended:
    """How a run came to its end. `failure`: one line, None if it was done."""

    run: SweepRun
    seconds: float
    failure: str | None


def run_command(run: SweepRun) -> Sequence[str]:
    """The child that carries out the run."""
    return sys.executable, "-m", "parablock_ray.sweeping.child", str(config_file(run)), str(failure_file(run))


def run_all(
    runs: Sequence[SweepRun],
    parallel: int,
    on_start: Callable[[SweepRun], None],
    on_end: Callable[[Ended], None],
    command: Command,
) -> list[Ended]:
    """Carry out `runs` in order, `parallel` at a time, each as `command` says.

    Whatever ends us (Ctrl-C) ends the children first.
    """
    waiting, children, ended = list(runs), list[Child](), list[Ended]()
    try:
        while waiting or children:
            while waiting and len(children) < parallel:
                run = waiting.pop(0)
                on_start(run)
                children.append(_start(run, command))
            time.sleep(_POLL_S)
            for child in [child for child in children if child.process.poll() is not None]:
                children.remove(child)
                ended.append(_ended(child))
                on_end(ended[-1])
    finally:
        _stop(children)
    return ended


def _start(run: SweepRun, command: Command) -> Child:
    make_ready(run)
    with log_file(run).open("wb") as log:
        process = subprocess.Popen(
            command(run),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,  # Ctrl-C on a terminal reaches us alone; we pass it on, once
        )
    return Child(run, process, time.monotonic())


def _ended(child: Child) -> Ended:
    failure = _failure(child.run, child.process.returncode) if child.process.returncode else None
    return Ended(child.run, time.monotonic() - child.started_s, failure)


def _failure(run: SweepRun, code: int) -> str:
    """One line. What the child could not tell (our own bug, killed) is told by its exit and its last words."""
    told = failure_file(run)
    if not told.exists():
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        told.write_text(f"{how}; {_last_line(run)}\n", "utf-8")
    return told.read_text("utf-8").partition("\n")[0]


def _last_line(run: SweepRun) -> str:
    lines = log_file(run).read_text("utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it printed nothing")


def _stop(children: Sequence[Child]) -> None:
    """As Ctrl-C would; who takes too long is killed."""
    for child in children:
        child.process.send_signal(signal.SIGINT)
    for child in children:
        try:
            child.process.wait(_GRACE_S)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()
