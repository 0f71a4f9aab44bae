"""How a run's loss fell: against rounds, seconds and bytes, and how long it took to reach a target."""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal

from parablock_ray.reporting.runs import Group, ReportedRun

Measure = Literal["held_out_loss", "loss"]  # of evaluations.jsonl, and of the training: that of metrics.jsonl

SMOOTHED_ROUNDS = 5  # the training loss is averaged over so many rounds, up to the one that is shown
TOLERANCE = 0.01  # of the control's final loss
STRETCHES = (0.25, 0.5, 0.75, 0.9)  # of the way that the control's loss goes: targets before its end

DESCRIBED: Mapping[Measure, str] = {
    "held_out_loss": "held-out loss",
    "loss": f"training loss, mean of the last {SMOOTHED_ROUNDS} rounds",
}


@dataclass(frozen=True)
class Curve:
    """A point for each round that has the measure; seconds and bytes are those since the start of the run."""

    rounds: Sequence[int]
    seconds: Sequence[float]
    num_bytes: Sequence[float]
    loss: Sequence[float]


def measures_in(groups: Sequence[Group]) -> Sequence[Measure]:
    """What all groups have; the one that decides when a target is reached comes first."""
    held_out: Sequence[Measure] = ["held_out_loss"] if all(map(_has_held_out, groups)) else []
    return [*held_out, "loss"]


def _has_held_out(group: Group) -> bool:
    """Whether all of its runs were judged after the same round: a run that was interrupted may lack some."""
    return bool(set.intersection(*(set(_held_out_loss(run)) for run in group.runs)))


def curve(run: ReportedRun, measure: Measure) -> Curve:
    """The training loss is smoothed, a held-out loss is as measured."""
    seconds = list(itertools.accumulate(row["seconds"] for row in run.rounds))
    num_bytes = list(itertools.accumulate(_bytes_of(run)))
    loss = _held_out_loss(run) if measure == "held_out_loss" else _training_loss(run)
    return Curve(
        rounds=[round + 1 for round in loss],
        seconds=[seconds[round] for round in loss],
        num_bytes=[num_bytes[round] for round in loss],
        loss=list(loss.values()),
    )


def _held_out_loss(run: ReportedRun) -> Mapping[int, float]:
    """By round; of those that were judged on it."""
    found = {row["round"]: row["results"].get("held_out") for row in run.evaluations}
    return {round: metrics["loss"]["value"] for round, metrics in found.items() if metrics is not None}


def _training_loss(run: ReportedRun) -> Mapping[int, float]:
    """By round."""
    return dict(enumerate(_smoothed([row["loss"] for row in run.rounds])))


def _bytes_of(run: ReportedRun) -> list[int]:
    return [row["bytes_up"] + row["bytes_down"] + row["bytes_catch_up"] for row in run.rounds]


def _smoothed(loss: Sequence[float]) -> list[float]:
    return [statistics.fmean(loss[max(0, end - SMOOTHED_ROUNDS) : end]) for end in range(1, len(loss) + 1)]


def mean_curve(group: Group, measure: Measure) -> tuple[Curve, Sequence[float]]:
    """Round by round the mean over seeds, and the loss's standard deviation, 0 for one seed. Of the rounds that all
    have: they may be judged at different ones."""
    whole = [curve(run, measure) for run in group.runs]
    shared = set.intersection(*(set(each.rounds) for each in whole))
    curves = [_only(each, shared) for each in whole]
    points = range(len(shared))
    losses = [[each.loss[point] for each in curves] for point in points]
    mean = Curve(
        rounds=curves[0].rounds,
        seconds=[statistics.fmean(each.seconds[point] for each in curves) for point in points],
        num_bytes=[statistics.fmean(each.num_bytes[point] for each in curves) for point in points],
        loss=[statistics.fmean(each) for each in losses],
    )
    return mean, [statistics.stdev(each) if len(each) > 1 else 0.0 for each in losses]


def _only(whole: Curve, rounds: Set[int]) -> Curve:
    points = [point for point, round in enumerate(whole.rounds) if round in rounds]
    return Curve(
        rounds=[whole.rounds[point] for point in points],
        seconds=[whole.seconds[point] for point in points],
        num_bytes=[whole.num_bytes[point] for point in points],
        loss=[whole.loss[point] for point in points],
    )


def seconds_to_loss(group: Group, control: Group, measure: Measure) -> Mapping[int, float | None]:
    """By seed, of those that the control has too: seconds until the loss is first within TOLERANCE of, or below, the
    loss at which the control ends with that seed. None where it never is."""
    return _seconds_to(group, control, measure, lambda run: (1 + TOLERANCE) * curve(run, measure).loss[-1])


def seconds_along(group: Group, control: Group, measure: Measure, stretch: float) -> Mapping[int, float | None]:
    """By seed, of those that the control has too: seconds until the loss is first where the control's is after
    `stretch` (0 to 1) of its way from the held-out loss before round 0, or from its first training loss, to its end.
    None where it never is."""

    def target(run: ReportedRun) -> float:
        loss = curve(run, measure).loss
        start: float = run.summary["loss_before"] if measure == "held_out_loss" else loss[0]
        return start + stretch * (loss[-1] - start)

    return _seconds_to(group, control, measure, target)


def _seconds_to(
    group: Group, control: Group, measure: Measure, target: Callable[[ReportedRun], float]
) -> Mapping[int, float | None]:
    """By seed, of those that the control has too: until the loss is first at, or below, what `target` says of the
    control's run with that seed."""
    return {
        seed: _first_below(curve(run, measure), target(control.by_seed[seed]))
        for seed, run in group.by_seed.items()
        if seed in control.by_seed
    }


def _first_below(of_run: Curve, target: float) -> float | None:
    reached = (seconds for seconds, loss in zip(of_run.seconds, of_run.loss, strict=True) if loss <= target)
    return next(reached, None)
