"""The runtime beside two others that simulate federations: `python benchmarks/vs_peers.py --json`. Flower's simulation
is on Ray too, Apple's pfl on torch.distributed.

FedAvg on all sides: the same model, batches, training function (peers/shared.py) and optimizer, fp32, two workers of
one thread. 100 clients, one local step; tiny: 10 a round, 20 rounds; SmolLM2-135M: 4 a round. Each run is a process of
its own, a peer's in an environment of its own (`make bench-peers`); runs take turns, and all peers are held against the
same runs of ours. A peer that is not installed is left out. Of PEER, flower or pfl:

    vs_PEER/overhead/…     a round's wall time without the largest sum over the workers of time inside the training
                           function, the median over rounds but the first: the peer's over ours
    vs_PEER/turn_s/…       of it, before a round's first training and after its last
    vs_PEER/peak_memory/…  the most that all processes of a run hold together, see `PeakMemory`: the peer's over ours
    vs_PEER/start_up       from the start of the process to the end of the first round, tiny: the peer's over that of
                           `parablock run` with the slower of its engines. `--cold` drops the file cache before each
                           (root only; it slows everybody on the machine)

Losses must be equal within noise: the mean of the last quarter of the trainings, to 5 % or three standard errors.
"""

import argparse
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from harness import Row, median_row, note, parser, report, speed_row
from processes import parablock

from parablock_ray.driver import prepare
from parablock_ray.training.batches import batches, visit_order
from parablock_ray.training.model import TINY, load_model, load_tokenizer, save_model
from parablock_ray.training.smollm2 import smollm2_folder

PEERS = Path(__file__).parent / "peers"
sys.path.insert(0, str(PEERS))
from ours import config_of  # noqa: E402

NUM_CLIENTS, NUM_WORKERS, MAX_LENGTH, NUM_EVAL = 100, 2, 64, 4
GOALS = {
    "vs_flower/overhead/tiny": 5.0,
    "vs_flower/overhead/smollm2": 5.0,
    "vs_flower/peak_memory/smollm2": 2.0,
    "vs_flower/start_up": 1.0,
    "vs_flower/start_up/cold": 1.0,
}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={NUM_WORKERS}"]
NOISE = 0.05
GIVE_UP_S = 900.0
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Job:
    """What all sides do."""

    model: str
    per_round: int
    num_rounds: int
    batch_size: int
    lr: float


@dataclass(frozen=True)
class Peer:
    """Another framework. `command` wants a job's folder at its end; `jobs`: those that it takes part in."""

    name: str
    package: str
    command: list[str]
    jobs: list[str]


@dataclass(frozen=True)
class Found:
    """Of one run. `overhead_s` by round, without the first; `turn_s`: of it, before a round's first training and after
    its last; `losses` in the order of the trainings."""

    overhead_s: list[float]
    turn_s: float
    train_s: float
    losses: list[float]
    peak_bytes: int


def main() -> None:
    options = arguments()
    peers = [peer for peer in all_peers(options) if is_installed(peer)]
    jobs = {
        "tiny": (Job(TINY, 10, options.rounds, 4, 1e-3), options.turns),
        "smollm2": (Job("smollm2-135m-instruct", 4, options.smollm2_rounds, 1, 1e-5), options.smollm2_turns),
    }
    rows: list[Row] = []
    for name in options.jobs:
        rows += side_by_side(name, *jobs[name], [peer for peer in peers if name in peer.jobs])
    if options.start_ups and peers:
        rows += start_up(jobs["tiny"][0], peers, options)
    report(rows, options.json)


def arguments() -> argparse.Namespace:
    options = parser("Overhead, memory and start-up beside Flower's simulation and pfl.")
    options.add_argument("--flower", type=Path, default=Path(f"{sys.prefix}-flower/bin/python"), help="its Python")
    options.add_argument("--pfl", type=Path, default=Path(f"{sys.prefix}-pfl/bin/python"), help="its Python")
    options.add_argument("--jobs", nargs="*", choices=["tiny", "smollm2"], default=["tiny", "smollm2"])
    options.add_argument("--pfl-jobs", nargs="*", choices=["tiny", "smollm2"], default=["tiny"], help="of them, pfl's")
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--turns", type=int, default=3)
    options.add_argument("--smollm2-rounds", type=int, default=6)
    options.add_argument("--smollm2-turns", type=int, default=1)
    options.add_argument("--start-ups", type=int, default=3, help="turns of start-up; 0: leave it out")
    options.add_argument("--cold", action="store_true", help="start-up also with a cold file cache")
    return options.parse_args()


def all_peers(options: argparse.Namespace) -> list[Peer]:
    flower = [str(options.flower), str(PEERS / "flower" / "app.py")]
    pfl = [str(options.pfl), *TORCHRUN, str(PEERS / "pfl" / "run.py")]
    return [Peer("flower", "flwr", flower, options.jobs), Peer("pfl", "pfl", pfl, options.pfl_jobs)]


def is_installed(peer: Peer) -> bool:
    """Whether its Python has its package; says so if not."""
    python = peer.command[0]
    look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({peer.package!r}) is None)"
    if Path(python).exists() and subprocess.run([python, "-I", "-c", look]).returncode == 0:
        return True
    note(f"left out: {peer.name}, there is no {python} with {peer.package}; `make bench-peers` installs it")
    return False


def side_by_side(name: str, job: Job, turns: int, peers: Sequence[Peer]) -> Iterator[Row]:
    """Runs in turns; what they cost beside the training."""
    if not peers:
        return
    ours: list[Found] = []
    theirs: dict[str, list[Found]] = {peer.name: [] for peer in peers}
    with tempfile.TemporaryDirectory() as root:
        for turn in range(turns):
            folder = make_job(job, Path(root) / f"{turn}")
            ours.append(finished([sys.executable, str(PEERS / "ours.py")], folder, f"{name}, ours"))
            for peer in peers:
                found = finished(peer.command, folder, f"{name}, {peer.name}")
                check_same(ours[-1], found)
                theirs[peer.name].append(found)
    for peer in peers:
        yield from costs(name, peer.name, ours, theirs[peer.name])


def costs(name: str, peer: str, ours: Sequence[Found], theirs: Sequence[Found]) -> Iterator[Row]:
    """Both sides' figures, and their ratios."""
    own_s, its_s = ([statistics.median(each.overhead_s) for each in side] for side in (ours, theirs))
    yield ratio_row(f"vs_{peer}/overhead/{name}", own_s, its_s)
    own, its = ([float(each.peak_bytes) for each in side] for side in (ours, theirs))
    yield ratio_row(f"vs_{peer}/peak_memory/{name}", own, its)
    for side, seconds, runs in (("ours", own_s, ours), (peer, its_s, theirs)):
        yield median_row(f"vs_{peer}/overhead_s/{name}/{side}", seconds, "s")
        yield median_row(f"vs_{peer}/turn_s/{name}/{side}", [each.turn_s for each in runs], "s")
        yield median_row(f"vs_{peer}/train_s/{name}/{side}", [each.train_s for each in runs], "s")
        yield median_row(f"vs_{peer}/peak/{name}/{side}", [each.peak_bytes / 1e6 for each in runs], "MB")
        yield median_row(f"vs_{peer}/loss/{name}/{side}", [last_loss(each) for each in runs], "")


def ratio_row(name: str, ours: Sequence[float], theirs: Sequence[float]) -> Row:
    return speed_row(name, ours, theirs, GOALS.get(name))


def start_up(job: Job, peers: Sequence[Peer], options: argparse.Namespace) -> Iterator[Row]:
    has_run = {"torch"} if options.jobs else set()
    has_run |= {peer.name for peer in peers if {*peer.jobs} & {*options.jobs}}
    for how in ["warm", "cold"] if options.cold else ["warm"]:
        sides: dict[str, Callable[[Path], float]] = {
            "torch": partial(our_start_s, engine="torch"),
            "deepspeed": partial(our_start_s, engine="deepspeed"),
            **{peer.name: partial(its_start_s, peer=peer) for peer in peers},
        }
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        with tempfile.TemporaryDirectory() as root:
            for turn in range(options.start_ups + 1):
                for side, measure in sides.items():
                    if turn == 0 and side in has_run:
                        continue  # that one only writes bytecode, and is not counted
                    folder = make_job(Job(**{**vars(job), "num_rounds": 1}), Path(root) / f"{turn}-{side}")
                    if how == "cold":
                        drop_file_cache()
                    found_s = measure(folder)
                    note(f"start-up, {how}, {side}: {found_s:.1f} s" + ("" if turn else ", not counted"))
                    if turn > 0:
                        seconds[side].append(found_s)
        has_run = set(sides)
        slower = [max(pair) for pair in zip(seconds["torch"], seconds["deepspeed"], strict=True)]
        for peer in peers:
            yield ratio_row(f"vs_{peer.name}/start_up" + ("/cold" if how == "cold" else ""), slower, seconds[peer.name])
            for side in ("torch", "deepspeed", peer.name):
                yield median_row(f"vs_{peer.name}/start_up_s/{how}/{side}", seconds[side], "s")


def make_job(job: Job, folder: Path) -> Path:
    """Everything in a new folder; see peers/shared.py."""
    (folder / "steps").mkdir(parents=True)
    if job.model == TINY:
        save_model(load_model(TINY, "float32", seed=0), load_tokenizer(TINY), folder / "model")
    else:
        (folder / "model").symlink_to(smollm2_folder())
    numbers = range(NUM_CLIENTS * (job.batch_size + 1))
    examples = [
        {"instruction": f"{i} + {i} = ?", "output": f"It is {2 * i}.", "client": i % NUM_CLIENTS} for i in numbers
    ]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, examples)))
    sizes = {"num_clients": NUM_CLIENTS, "num_workers": NUM_WORKERS, "max_length": MAX_LENGTH, "num_eval": NUM_EVAL}
    (folder / "job.json").write_text(json.dumps({**vars(job), **sizes}))
    config = config_of(folder, "torch")
    prepared = prepare(config)
    of_clients = []
    for client in range(NUM_CLIENTS):
        store, held = prepared.data.clients.held_by(client)
        [batch] = batches(store, visit_order(held, len(held), config.seed, 0, client), 1, job.batch_size, None)
        of_clients.append((batch, len(held)))
    torch.save(of_clients, folder / "batches.pt")
    return folder


def finished(command: list[str], folder: Path, name: str) -> Found:
    """A run from its start to its end, watched from outside."""
    for left in (folder / "steps").iterdir():
        left.unlink()
    process = started([*command, str(folder)], folder)
    peak = PeakMemory(process.pid)
    end(process, folder)
    found = read(folder, peak.stop())
    note(f"{name}: {statistics.median(found.overhead_s):.3f} s beside {found.train_s:.3f} s of training a round")
    return found


def read(folder: Path, peak_bytes: int) -> Found:
    ends_s = json.loads((folder / "rounds.json").read_text())
    per_round = json.loads((folder / "job.json").read_text())["per_round"]
    trainings = sorted(
        (start_s, end_s, loss, file.name)
        for file in (folder / "steps").iterdir()
        for start_s, end_s, loss in map(json.loads, file.read_text().splitlines())
        if start_s >= ends_s[0]  # before that our workers warm up
    )
    num_due = per_round * (len(ends_s) - 1)
    if len(trainings) != num_due:
        raise SystemExit(f"{len(trainings)} of {num_due} trainings took place: no ratio means anything")
    overhead_s, turn_s, train_s = [], [], []
    for round, (begin_s, end_s) in list(enumerate(itertools.pairwise(ends_s)))[1:]:
        # By count: a worker of ours may begin while the server still closes the round before.
        of_round = trainings[round * per_round : (round + 1) * per_round]
        of_worker: defaultdict[str, float] = defaultdict(float)
        for first_s, last_s, _, worker in of_round:
            of_worker[worker] += last_s - first_s
        train_s.append(max(of_worker.values()))
        overhead_s.append(end_s - begin_s - train_s[-1])
        turn_s.append(end_s - begin_s - max(each[1] for each in of_round) + min(each[0] for each in of_round))
    losses = [loss for _, _, loss, _ in trainings]
    return Found(overhead_s, statistics.median(turn_s), statistics.median(train_s), losses, peak_bytes)


def last_losses(found: Found) -> list[float]:
    """Of the last quarter of the trainings."""
    return found.losses[-max(1, len(found.losses) // 4) :]


def last_loss(found: Found) -> float:
    return statistics.mean(last_losses(found))


def noise(ours: Found, theirs: Found) -> float:
    """By so much may the means of both sides' last losses differ: three standard errors, since cohorts are not the
    same, and where these are few `NOISE` of their mean."""
    variance = sum(
        statistics.variance(losses) / len(losses)
        for losses in (last_losses(ours), last_losses(theirs))
        if len(losses) > 1
    )
    return max(NOISE * last_loss(ours), 3 * math.sqrt(variance))


def check_same(ours: Found, theirs: Found) -> None:
    """SystemExit unless both sides really train, and alike."""
    own, its = last_loss(ours), last_loss(theirs)
    num, num_its = len(ours.losses), len(theirs.losses)
    if num != num_its:
        raise SystemExit(f"they do not train alike ({num} and {num_its} clients): no ratio means anything")
    if abs(own - its) > noise(ours, theirs):
        raise SystemExit(f"they do not train alike (losses {own:.3f} and {its:.3f}): no ratio means anything")


def our_start_s(folder: Path, engine: str) -> float:
    """Until the first commit is written."""
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(config_of(folder, engine).model_dump(mode="json")))
    events = folder / f"out-{engine}" / "events.jsonl"
    start_s = time.time()
    process = started(parablock("run", str(config)), folder)
    while not (events.exists() and '"committed"' in events.read_text()):
        if process.poll() is not None:
            end(process, folder)
            raise SystemExit(f"the run ended without a commit:\n{(folder / 'log').read_text()[-2000:]}")
        time.sleep(0.02)
    seconds = time.time() - start_s
    end(process, folder)
    return seconds


def its_start_s(folder: Path, peer: Peer) -> float:
    """Until a peer's first round is over."""
    start_s = time.time()
    end(started([*peer.command, str(folder)], folder), folder)
    return float(json.loads((folder / "rounds.json").read_text())[1] - start_s)


def started(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **QUIET, "PYTHONPATH": os.pathsep.join([str(PEERS), *_pythonpath()])}
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def _pythonpath() -> list[str]:
    return [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]


def end(process: subprocess.Popen[Any], folder: Path) -> None:
    """Waits for it; SystemExit with its last words where it failed."""
    if process.wait(GIVE_UP_S):
        raise SystemExit(f"{process.args!r} ended with {process.returncode}:\n{(folder / 'log').read_text()[-3000:]}")


def drop_file_cache() -> None:
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("3")


class PeakMemory:
    """The most that a process and its descendants hold together, seen twice a second: the anonymous memory of each,
    what lies in /dev/shm beyond what lay there before, and of mapped files the most that one of them holds.

    For a machine where nothing else uses /dev/shm meanwhile. From counters that the kernel keeps. Proportional sizes
    (PSS) would be exact, but the kernel walks all pages for them, while a process that asks for memory waits: that took
    a core's second in every round of SmolLM2.
    """

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._shared_before = shared_bytes()
        self._peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> int:
        self._over.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            try:
                family = [self._process, *self._process.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            held = [resident_bytes(each.pid) for each in family]
            own = sum(anonymous for anonymous, _ in held) + max(of_files for _, of_files in held)
            self._peak = max(self._peak, own + shared_bytes() - self._shared_before)


def resident_bytes(pid: int) -> tuple[int, int]:
    """Of a process: anonymous, and of mapped files. Nothing of one that has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    sizes = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    anonymous, of_files = (int(sizes[name][0]) * 1024 if name in sizes else 0 for name in ("RssAnon", "RssFile"))
    return anonymous, of_files


def shared_bytes() -> int:
    """What lies in /dev/shm, where Ray's object store is."""
    return shutil.disk_usage("/dev/shm").used


if __name__ == "__main__":
    main()
