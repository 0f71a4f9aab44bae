"""What do clients that lie do to a run? `python benchmarks/poisoning.py --json`.

The tiny model and ParaBlock in one process, ten clients with equal shares of four kinds of arithmetic. Two of them send
something else than they trained, in every round, and hold what they trained:

    none            nothing else: what a rule costs where nobody lies
    sign_flip       −Δ
    scale           100 Δ: for a few rounds no more than a large step in the right direction
    sign_flip_100   −100 Δ
    nan             Δ whose last number is NaN

against every `server.rule`. A run's figure is its progress, the fall of its held-out loss over that of the mean where
nobody lies: 1 is as good, 0 has learnt nothing, and −1 stands for all that is worse, runs that broke included. A rule
that shall hold must keep `KEEPS` of the progress.

`mean, unchecked` is the mean without the server's checks of updates, which this script takes away: of NaN no rule ever
sees any with them. `mean, max_norm` is the mean with `server.max_norm: 20`, several times an honest norm.
"""

import io
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import torch
from harness import Row, note, parser, report
from torch import Tensor

from parablock_ray.algorithms.base import RoundPlan, Sent, Visit
from parablock_ray.algorithms.gate import Gate, Passed
from parablock_ray.config import load_config
from parablock_ray.driver import run
from parablock_ray.errors import RunFailed
from parablock_ray.training.worker import Trained, Worker

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
NUM_CLIENTS, LIARS = 10, (0, 1)
KEEPS = 0.8
FAILS = 0.5  # at most so much progress is left to what does not hold
WORST = -1.0

Attack = Callable[[Tensor], Tensor]


def with_nan(upload: Tensor) -> Tensor:
    """The upload with one number spoilt."""
    spoilt = upload.clone()
    spoilt[-1] = torch.nan
    return spoilt


ATTACKS: dict[str, Attack] = {
    "none": lambda upload: upload,
    "sign_flip": lambda upload: -upload,
    "scale": lambda upload: upload * 100,
    "sign_flip_100": lambda upload: upload * -100,
    "nan": with_nan,
}


@dataclass(frozen=True)
class Defence:
    """What the server does. `holds`: against which attacks it must; `fails`: against which it must not, or they show
    nothing."""

    overrides: Sequence[str]
    holds: Sequence[str]
    fails: Sequence[str] = ()
    is_checked: bool = True


EVERY = tuple(ATTACKS)
DEFENCES: dict[str, Defence] = {
    "mean, unchecked": Defence([], holds=["none"], fails=["sign_flip_100", "nan"], is_checked=False),
    "mean": Defence([], holds=["none", "nan"], fails=["sign_flip_100"]),
    "mean, max_norm": Defence(["server.max_norm=20"], holds=["none", "scale", "sign_flip_100", "nan"]),
    "clip": Defence(["server.rule={name: clip, norm: 2.0}"], holds=["none", "scale", "nan"]),
    "median": Defence(["server.rule={name: median}"], EVERY),
    "trimmed_mean": Defence(["server.rule={name: trimmed_mean, num_attackers: 2}"], EVERY),
    "krum": Defence(["server.rule={name: krum, num_attackers: 2}"], EVERY),
    "multi_krum": Defence(["server.rule={name: multi_krum, num_attackers: 2}"], EVERY),
}


def main() -> None:
    options = arguments(None)
    report(figures(options), options.json)


def arguments(given: Sequence[str] | None) -> Namespace:
    """What is asked for on the command line, or in `given`."""
    options = parser(str(__doc__))
    options.add_argument("--rounds", type=int, default=12, help="of every run")
    options.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS), help="against all of the next")
    options.add_argument("--defences", nargs="+", choices=DEFENCES, default=list(DEFENCES), help="what the server does")
    options.add_argument("--seed", type=int, default=0, help="of every run")
    return options.parse_args(given)


def figures(options: Namespace) -> Iterator[Row]:
    """A row for each attack against each defence."""
    before, after = losses("none", DEFENCES["mean"], options)
    note(f"held-out loss {before:.3f}, {after:.3f} with the mean and without liars")
    for attack in options.attacks:
        for name in options.defences:
            defence = DEFENCES[name]
            progress = progress_of(attack, defence, options, before, before - after)
            note(f"{attack}, {name}: {progress:.3f}")
            yield judged(f"poisoning/{attack}/{name}/progress", progress, attack, defence)


def judged(name: str, progress: float, attack: str, defence: Defence) -> Row:
    """With the goal that the progress has, if it has one."""
    if attack in defence.fails:
        return Row(name, progress, "ratio", FAILS, at_most=True)
    return Row(name, progress, "ratio", KEEPS if attack in defence.holds else None)


def progress_of(attack: str, defence: Defence, options: Namespace, before: float, whole: float) -> float:
    """The fall of the loss over `whole`, no less than WORST."""
    try:
        _, after = losses(attack, defence, options)
    except RunFailed as failure:
        note(str(failure).partition("\n")[0])
        return WORST
    return max(WORST, (before - after) / whole)


def losses(attack: str, defence: Defence, options: Namespace) -> tuple[float, float]:
    """Held-out, before the first round and after the last. Raises RunFailed."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as during:
        during.enter_context(lying(LIARS, ATTACKS[attack]))
        if not defence.is_checked:
            during.enter_context(unchecked())
        during.enter_context(redirect_stdout(io.StringIO()))  # it belongs to the figures
        overrides = [
            *("runtime=serial", "engine.name=torch", "tracking.wandb=off", f"out={folder}/run", f"seed={options.seed}"),
            *(f"clients.num={NUM_CLIENTS}", "clients.min_participants=7", "data.split=iid"),
            *(f"method.rounds={options.rounds}", "method.local_steps=1", "method.batch_size=4"),
            *("data.num_train=200", "data.num_eval=16"),
        ]
        summary = run(load_config(QUICKSTART, [*overrides, *defence.overrides]))
    return summary["loss_before"], summary["loss_after"]


@contextmanager
def lying(liars: Sequence[int], attack: Attack) -> Iterator[None]:
    """These clients train as ever, and send something else."""
    train = Worker.train

    def lie(self: Worker, plan: RoundPlan, visit: Visit, put: Callable[[Tensor], Tensor]) -> Trained[Tensor]:
        trained = train(self, plan, visit, put)
        if visit.client not in liars:
            return trained
        sizes = [len(chunk) for chunk in trained.chunks]
        return replace(trained, chunks=list(attack(torch.cat(trained.chunks)).split(sizes)))

    with patch.object(Worker, "train", lie):
        yield


@contextmanager
def unchecked() -> Iterator[None]:
    """Whatever comes passes the gate."""

    def admit(self: Gate, sent: Sent, values: Tensor) -> Passed:
        return Passed({sent.chunk: values})

    with patch.object(Gate, "admit", admit):
        yield


if __name__ == "__main__":
    main()
