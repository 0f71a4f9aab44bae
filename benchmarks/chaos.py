"""Runs of the tiny model whose processes are killed at random moments: do they end in the right weights?

    python benchmarks/chaos.py --kills 10 --seed 0 --json

Each kill is one run on a Ray cluster of its own. A worker or the server is killed, and the run must go on by itself; or
the driver is, by SIGKILL or SIGTERM, and `parablock resume` must go on with it, or say that there is no checkpoint yet.
The weights must be those of a run in one process to which nothing happened; with `clients.on_death=drop`, of one whose
log of participation is the same. No process and no lock may be left.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import psutil
from harness import Row, note, parser, report
from processes import parablock, short_run, title_of

from parablock_ray.checkpoint import newest

_NUM_ROUNDS = 12
_EVERY = 3  # rounds from checkpoint to checkpoint
_METHODS = {
    "parablock": ["network.exchange=cut_through", "network.chunk_mb=0.1"],
    "fedbcd": ["method.name=fedbcd"],
    "parablock, staleness 2, sampled": ["method.staleness=2", "clients.num=6", "clients.per_round=3", "data.split=iid"],
    "fedavg": ["method.name=fedavg", "method.num_blocks=1", "method.staleness=1"],
}
_KINDS = {
    "worker": "ray::ClientActor",
    "server": "ray::ServerActor",
    "driver": None,
    "driver, SIGTERM": None,
    "worker, dropped": "ray::ClientActor",
}
_DROPPED = ["clients.on_death=drop"]
_GIVE_UP_S = 600.0


@dataclass(frozen=True)
class Kill:
    """Who is killed, in which round, and how long after its first event."""

    method: str
    kind: str
    round: int
    delay_s: float

    @property
    def name(self) -> str:
        return f"{self.method}: {self.kind} in round {self.round}"


def main() -> None:
    options = parser(__doc__.partition("\n")[0])
    options.add_argument("--kills", type=int, default=50, help="so many runs, a kill each")
    options.add_argument("--seed", type=int, default=0, help="of who is killed when")
    options.add_argument("--first", type=int, default=0, help="leave out so many of the kills, such as those of before")
    options.add_argument("--kinds", type=_kind, nargs="+", default=list(_KINDS), help=f"of {list(_KINDS)}")
    arguments = options.parse_args()
    planned = kills(arguments.kills, arguments.seed, arguments.kinds)
    with tempfile.TemporaryDirectory() as folder:
        rows = list(outcomes(islice(planned, arguments.first, None), Path(folder)))
        report(rows, arguments.json)
    sys.exit(any(row.value < 1 for row in rows))


def kills(num_kills: int, seed: int, kinds: Sequence[str]) -> Iterator[Kill]:
    """Every method and every kind in turn, at moments that the seed says."""
    rng = random.Random(seed)
    methods = list(_METHODS)
    for index in range(num_kills):
        method = methods[(index % len(kinds) + index // len(kinds)) % len(methods)]
        yield Kill(method, kinds[index % len(kinds)], rng.randrange(_NUM_ROUNDS - 1), rng.uniform(0.0, 0.3))


def outcomes(planned: Iterator[Kill], folder: Path) -> Iterator[Row]:
    """A row for each kill: 1 if all was as it should be. What was not is told."""
    undisturbed: dict[str, str] = {}
    for index, kill in enumerate(planned):
        if kill.method not in undisturbed:
            undisturbed[kill.method] = _alone(kill.method, folder / f"undisturbed-{len(undisturbed)}")
        wrong = _carry_out(kill, folder / str(index), undisturbed[kill.method])
        note(f"{kill.name}: {wrong or 'as it should be'}")
        yield Row(kill.name, float(wrong is None), "right", goal=1)


def _carry_out(kill: Kill, out: Path, weights_sha256: str) -> str | None:
    """What went wrong, None if nothing did. `weights_sha256`: of the undisturbed run."""
    overrides = _DROPPED if kill.kind == "worker, dropped" else []
    command = _command(kill.method, out, "runtime=ray", "workers.num=2", f"checkpoint.every={_EVERY}", *overrides)
    with out.with_suffix(".log").open("wb") as log:
        driver = psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until(lambda: _last_round(out) >= kill.round or not driver.is_running())
            time.sleep(kill.delay_s)
            family = [driver, *driver.children(recursive=True)]
            _strike(kill.kind, driver, family)
            driver.wait(_GIVE_UP_S)
        finally:
            if driver.is_running():
                driver.kill()
    _wait_until(lambda: not any(_is_alive(each) for each in family))
    if kill.kind == "driver" or not (out / "summary.json").exists():
        if not kill.kind.startswith("driver"):
            return f"ended with {driver.returncode}: {out.with_suffix('.log').read_text()[-2000:]}"
        if _num_repeated(out) > _EVERY:
            return f"{_num_repeated(out)} rounds are repeated, with a checkpoint every {_EVERY}"
        if newest(out / "checkpoints")[0] is None:
            note("there is no checkpoint yet")
            return _refused_without_checkpoint(out)
        _finish(parablock("resume", str(out)))
    if kill.kind == "worker, dropped":
        weights_sha256 = _alone(kill.method, out.with_suffix(".again"), f"clients.participation={out / 'events.jsonl'}")
    if _weights_sha256(out) != weights_sha256:
        return "other weights"
    told = _told(out)
    if told != list(range(_NUM_ROUNDS)):
        return f"rows of rounds {told}"
    return "a lock is left" if (out / ".lock").exists() else None


def _alone(method: str, out: Path, *overrides: str) -> str:
    """What a run in one process ends with."""
    _finish(_command(method, out, "runtime=serial", *overrides))
    return _weights_sha256(out)


def _refused_without_checkpoint(out: Path) -> str | None:
    """A run that dies before its first one cannot be taken up. What went wrong in saying so, None if nothing did."""
    done = subprocess.run(parablock("resume", str(out)), capture_output=True, text=True, timeout=_GIVE_UP_S)
    if (done.returncode, "it has no checkpoint" in done.stderr) != (2, True):
        return f"resume without a checkpoint ended with {done.returncode}: {done.stderr[-2000:]}"
    return "a lock is left" if (out / ".lock").exists() else None


def _num_repeated(out: Path) -> int:
    """Rounds that were done when the driver died, and that the last checkpoint does not have."""
    saved, _ = newest(out / "checkpoints")
    return len(_told(out)) - (0 if saved is None else saved.round + 1)


def _told(out: Path) -> list[int]:
    """The rounds of `metrics.jsonl`; a line may be half written."""
    try:
        lines = (out / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line)["round"] for line in lines if line.endswith("}")]


def _kind(text: str) -> str:
    if text not in _KINDS:
        raise argparse.ArgumentTypeError(f"{text} is none of {', '.join(_KINDS)}")
    return text


def _strike(kind: str, driver: psutil.Popen, family: list[psutil.Process]) -> None:
    if kind == "driver, SIGTERM":
        driver.send_signal(signal.SIGTERM)
        return
    title = _KINDS[kind]
    victims = [driver] if title is None else [each for each in family if title_of(each).startswith(title)]
    if victims:  # none, where the run was over first
        os.kill(victims[-1].pid, signal.SIGKILL)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait_until(is_so: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + _GIVE_UP_S
    while not is_so():
        if time.monotonic() > give_up_s:
            raise TimeoutError("waited in vain")
        time.sleep(0.05)


def _last_round(out: Path) -> int:
    """That of the last event that is told; -1 before the first."""
    try:
        lines = (out / "events.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return -1
    whole = [line for line in lines if line.endswith("}")]
    return max((json.loads(line)["round"] for line in whole), default=-1)


def _command(method: str, out: Path, *overrides: str) -> list[str]:
    return short_run(out, f"method.rounds={_NUM_ROUNDS}", *_METHODS[method], *overrides)


def _finish(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=_GIVE_UP_S)


def _weights_sha256(out: Path) -> str:
    """What the run ended with."""
    return str(json.loads((out / "summary.json").read_text())["weights_sha256"])


if __name__ == "__main__":
    main()
