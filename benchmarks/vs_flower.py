"""The runtime beside Flower's simulation, which is on Ray too: `python benchmarks/vs_flower.py --json`.

FedAvg on both sides: the same model, batches, training function (peers/shared.py) and optimizer, fp32, two workers of
one thread. 100 clients, one local step; tiny: 10 a round, 20 rounds; SmolLM2-135M: 4 a round. Each run is a process of
its own, Flower's in its own environment (`make bench-peers`); runs take turns.

    vs_flower/overhead/…     a round's wall time without the largest sum over the workers of time inside the training
                             function, the median over rounds but the first: Flower's over ours
    vs_flower/peak_memory/…  the most that all processes of a run hold together (proportional set size): Flower's over
                             ours
    vs_flower/start_up       from the start of the process to the end of the first round, tiny: Flower's over that of
                             `parablock run` with the slower of its engines. `--cold` drops the file cache before each
                             (root only; it slows everybody on the machine)

Losses must be equal within noise: the mean of the last quarter of the trainings.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
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
OVERHEAD_GOAL, MEMORY_GOAL, START_UP_GOAL = 5.0, 2.0, 1.0
NOISE = 0.05
GIVE_UP_S = 900.0
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Job:
    """What both sides do."""

    model: str
    per_round: int
    num_rounds: int
    batch_size: int
    lr: float


@dataclass(frozen=True)
class Found:
    """Of one run. `overhead_s` by round, without the first; `losses` in the order of the trainings."""

    overhead_s: list[float]
    train_s: float
    losses: list[float]
    peak_bytes: int


def main() -> None:
    options = arguments()
    if not options.flower.exists():
        note(f"left out: there is no {options.flower}; `make bench-peers` installs Flower")
        report([], options.json)
        return
    jobs = {
        "tiny": (Job(TINY, 10, options.rounds, 4, 1e-3), options.turns),
        "smollm2": (Job("smollm2-135m-instruct", 4, options.smollm2_rounds, 1, 1e-5), options.smollm2_turns),
    }
    rows: list[Row] = []
    for name in options.jobs:
        rows += side_by_side(name, *jobs[name], options)
    if options.start_ups:
        rows += start_up(jobs["tiny"][0], options)
    report(rows, options.json)


def arguments() -> argparse.Namespace:
    options = parser("Overhead, memory and start-up beside Flower's simulation.")
    options.add_argument("--flower", type=Path, default=Path(f"{sys.prefix}-flower/bin/python"), help="its Python")
    options.add_argument("--jobs", nargs="*", choices=["tiny", "smollm2"], default=["tiny", "smollm2"])
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--turns", type=int, default=3)
    options.add_argument("--smollm2-rounds", type=int, default=6)
    options.add_argument("--smollm2-turns", type=int, default=1)
    options.add_argument("--start-ups", type=int, default=3, help="turns of start-up; 0: leave it out")
    options.add_argument("--cold", action="store_true", help="start-up also with a cold file cache")
    return options.parse_args()


def side_by_side(name: str, job: Job, turns: int, options: argparse.Namespace) -> Iterator[Row]:
    """Runs in turns; what they cost beside the training."""
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as root:
        for turn in range(turns):
            folder = make_job(job, Path(root) / f"{turn}")
            ours.append(finished([sys.executable, str(PEERS / "ours.py")], folder, f"{name}, ours"))
            theirs.append(finished([str(options.flower), str(PEERS / "flower" / "app.py")], folder, f"{name}, Flower"))
            check_same(ours[-1], theirs[-1])
    own_s, its_s = ([statistics.median(each.overhead_s) for each in side] for side in (ours, theirs))
    yield speed_row(f"vs_flower/overhead/{name}", own_s, its_s, OVERHEAD_GOAL)
    own, its = ([float(each.peak_bytes) for each in side] for side in (ours, theirs))
    yield speed_row(f"vs_flower/peak_memory/{name}", own, its, MEMORY_GOAL if name == "smollm2" else None)
    for side, seconds, runs in (("ours", own_s, ours), ("flower", its_s, theirs)):
        yield median_row(f"vs_flower/overhead_s/{name}/{side}", seconds, "s")
        yield median_row(f"vs_flower/train_s/{name}/{side}", [each.train_s for each in runs], "s")
        yield median_row(f"vs_flower/peak/{name}/{side}", [each.peak_bytes / 1e6 for each in runs], "MB")
        yield median_row(f"vs_flower/loss/{name}/{side}", [last_loss(each) for each in runs], "")


def start_up(job: Job, options: argparse.Namespace) -> Iterator[Row]:
    for how in ["warm", "cold"] if options.cold else ["warm"]:
        seconds: dict[str, list[float]] = {"torch": [], "deepspeed": [], "flower": []}
        with tempfile.TemporaryDirectory() as root:
            for turn in range(options.start_ups + 1):
                for side, found in seconds.items():
                    folder = make_job(Job(**{**vars(job), "num_rounds": 1}), Path(root) / f"{turn}-{side}")
                    if how == "cold":
                        drop_file_cache()
                    found.append(flower_start_s(folder, options) if side == "flower" else our_start_s(folder, side))
                    note(f"start-up, {how}, {side}: {found[-1]:.1f} s")
        seconds = {side: found[1:] for side, found in seconds.items()}  # the first writes bytecode
        slower = [max(pair) for pair in zip(seconds["torch"], seconds["deepspeed"], strict=True)]
        name = "vs_flower/start_up" + ("/cold" if how == "cold" else "")
        yield speed_row(name, slower, seconds["flower"], START_UP_GOAL)
        for side, found in seconds.items():
            yield median_row(f"vs_flower/start_up_s/{how}/{side}", found, "s")


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
    trainings = [
        (start_s, end_s, loss, file.name)
        for file in (folder / "steps").iterdir()
        for start_s, end_s, loss in map(json.loads, file.read_text().splitlines())
        if start_s >= ends_s[0]  # before that our workers warm up
    ]
    overhead_s, train_s = [], []
    for begin_s, end_s in list(itertools.pairwise(ends_s))[1:]:
        of_worker: defaultdict[str, float] = defaultdict(float)
        for first_s, last_s, _, worker in trainings:
            if begin_s <= first_s < end_s:
                of_worker[worker] += last_s - first_s
        train_s.append(max(of_worker.values()))
        overhead_s.append(end_s - begin_s - train_s[-1])
    losses = [loss for _, _, loss, _ in sorted(trainings)]
    return Found(overhead_s, statistics.median(train_s), losses, peak_bytes)


def last_loss(found: Found) -> float:
    """Mean over the last quarter of the trainings."""
    return statistics.mean(found.losses[-max(1, len(found.losses) // 4) :])


def check_same(ours: Found, theirs: Found) -> None:
    """SystemExit unless both sides really train, and alike."""
    own, its = last_loss(ours), last_loss(theirs)
    num, num_its = len(ours.losses), len(theirs.losses)
    if num != num_its:
        raise SystemExit(f"they do not train alike ({num} and {num_its} clients): no ratio means anything")
    if not math.isclose(own, its, rel_tol=NOISE):
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


def flower_start_s(folder: Path, options: argparse.Namespace) -> float:
    start_s = time.time()
    end(started([str(options.flower), str(PEERS / "flower" / "app.py"), str(folder)], folder), folder)
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
    """The most that a process and its descendants hold together: shared pages once, twice a second."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
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
            total = 0
            try:
                family = [self._process, *self._process.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for each in family:
                try:
                    total += each.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue  # it has just ended
            self._peak = max(self._peak, total)


if __name__ == "__main__":
    main()
