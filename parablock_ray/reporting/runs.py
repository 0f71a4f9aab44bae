"""The runs of a report: read from their folders, and grouped over seeds."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from parablock_ray.config import Config, differing_keys
from parablock_ray.config.differences import CHANGE_NO_VALUE
from parablock_ray.errors import UserError
from parablock_ray.json_files import from_json, lines
from parablock_ray.tracking.compare import read_run
from parablock_ray.tracking.evaluations import checked_row
from parablock_ray.tracking.rounds import checked_round
from parablock_ray.tracking.sweep_folder import failure_beside, sweep_runs

Row = Mapping[str, Any]

NOT_IN_A_GROUP = CHANGE_NO_VALUE | {"seed"}  # runs that differ in these only are of one group

# Runs that differ in one of these did not do the same task, so their losses or seconds must not be compared.
_ONE_TASK = (
    *("model.name", "model.dtype"),
    *("data.source", "data.tasks", "data.num_train", "data.num_eval", "data.template", "data.max_length"),
    "network.mode",
)


@dataclass(frozen=True)
class ReportedRun:
    """A finished run with `rounds` and `evaluations`, the rows of its metrics.jsonl and of its evaluations.jsonl
    (docs/run-folder.md)."""

    folder: Path
    config: Config
    summary: Row
    rounds: Sequence[Row]
    evaluations: Sequence[Row]


@dataclass(frozen=True)
class LeftOut:
    """A run folder that a report could not use."""

    folder: Path
    reason: str


@dataclass(frozen=True)
class Group:
    """Runs whose configs are equal but for the seed, by seed."""

    label: str
    by_seed: Mapping[int, ReportedRun]

    @property
    def runs(self) -> Sequence[ReportedRun]:
        return list(self.by_seed.values())

    @property
    def config(self) -> Config:
        """That of its first run, which stands for all."""
        return self.runs[0].config


@dataclass(frozen=True)
class Gathered:
    """All that a report is about."""

    groups: Sequence[Group]
    left_out: Sequence[LeftOut]


def gather(folders: Sequence[Path]) -> Gathered:
    """Read the runs in `folders` (of runs, or of sweeps with all their runs) and group them.

    A run that is unfinished or cut short is left out, with the reason. Raises UserError for a folder that holds no
    runs, and where no run remains.
    """
    runs: list[ReportedRun] = []
    left_out: list[LeftOut] = []
    for folder in dict.fromkeys(itertools.chain.from_iterable(map(_run_folders, folders))):
        try:
            runs.append(_read(folder))
        except UserError as error:
            left_out.append(LeftOut(folder, str(error).partition("\n")[0]))
    if not runs:
        raise UserError("\n".join(["no finished run to report:", *(each.reason for each in left_out)]))
    groups, again = _grouped(runs)
    return Gathered(groups, [*left_out, *again])


def _run_folders(folder: Path) -> Sequence[Path]:
    if (folder / "config.yaml").exists() or (folder / "summary.json").exists():
        return [folder]
    found = sweep_runs(folder)
    if found is None:
        found = sorted(file.parent for file in folder.glob("*/config.yaml"))
    if not found:
        raise UserError(f"{folder}: holds no run and no sweep; name such folders, like runs/quickstart")
    return found


def _read(folder: Path) -> ReportedRun:
    """Raises UserError for what is not the whole of a finished run."""
    if failure_beside(folder).exists() and not (folder / "summary.json").exists():
        raise UserError(f"{folder}: failed: {failure_beside(folder).read_text('utf-8').strip()}")
    finished = read_run(folder)
    rounds = list(_rows(folder / "metrics.jsonl", checked_round))
    # With privacy a run may end before all its rounds.
    num_rounds = finished.summary["num_rounds"] if finished.config.privacy.is_on else finished.config.method.rounds
    if len(rounds) != num_rounds:
        raise UserError(f"{folder}/metrics.jsonl: cut short, it has {len(rounds)} of {num_rounds} rounds; run it again")
    return ReportedRun(
        folder, finished.config, finished.summary, rounds, _evaluations(folder, finished.config, num_rounds)
    )


def _evaluations(folder: Path, config: Config, num_rounds: int) -> Sequence[Row]:
    num_due = sum(map(config.evaluation.is_due, range(num_rounds)))
    if num_due == 0:
        return []
    file = folder / "evaluations.jsonl"
    rows = list(_rows(file, checked_row))
    if len(rows) != num_due:
        raise UserError(f"{file}: cut short, it has {len(rows)} of {num_due} evaluations; run it again")
    return rows


def _rows(file: Path, check: Callable[[Any], Row]) -> Iterator[Row]:
    try:
        for number, line in lines(file):
            try:
                row = from_json(line)
            except ValueError:
                raise UserError(f"{file}, line {number}: cut short; run it again") from None
            try:
                yield check(row)
            except ValueError as error:
                raise UserError(f"{file}, line {number}: not as a run writes it ({error}); run it again") from None
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{file}: cannot be read: {reason}") from None


def _grouped(runs: Sequence[ReportedRun]) -> tuple[Sequence[Group], Sequence[LeftOut]]:
    """Groups in the order of their first runs; and the runs whose config and seed another one has."""
    members: dict[str, dict[int, ReportedRun]] = {}
    again = []
    for run in runs:
        by_seed = members.setdefault(run.config.model_dump_json(exclude=set(NOT_IN_A_GROUP)), {})
        same = by_seed.setdefault(run.config.seed, run)
        if same is not run:
            again.append(LeftOut(run.folder, f"{run.folder}: has the config and the seed of {same.folder}"))
    names = [_name(next(iter(by_seed.values()))) for by_seed in members.values()]
    num_named = Counter(names)
    groups = []
    for name, by_seed in zip(names, members.values(), strict=True):
        first = next(iter(by_seed.values()))
        label = name if num_named[name] == 1 else f"{name} ({first.folder})"
        groups.append(Group(label, dict(sorted(by_seed.items()))))
    return groups, again


def _name(run: ReportedRun) -> str:
    """The run's name without its seed."""
    return re.sub(r"[-_ ]?seed[-_ ]?\d+$", "", run.config.name) or run.config.name


def control_of(groups: Sequence[Group], label: str | None) -> Group:
    """The group labelled `label`, or the first. Raises UserError for a label that no group has."""
    labels = [group.label for group in groups]
    if label is None:
        return groups[0]
    if label not in labels:
        near = get_close_matches(label, labels, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"--control: no group {label!r}{hint} (allowed: {', '.join(labels)})")
    return groups[labels.index(label)]


def compared_with(groups: Sequence[Group], control: Group) -> Mapping[str, Group]:
    """Label of every group → the group that it is compared with.

    That is the control. But a group that differs from it in its setting too (in more than the method, and the seconds
    of its step) is compared with the group of the control's method in that setting, where there is one.
    """
    return {group.label: _control_in_setting(group, control, groups) for group in groups}


def _control_in_setting(group: Group, control: Group, groups: Sequence[Group]) -> Group:
    if group.config.method == control.config.method:
        return control
    same = (
        each for each in groups if each.config.method == control.config.method and _setting(each) == _setting(group)
    )
    return next(same, control)


def _setting(group: Group) -> str:
    alike = group.config.model_copy(update={"network": group.config.network.model_copy(update={"compute_s": None})})
    return alike.model_dump_json(exclude={"method", *NOT_IN_A_GROUP})


def warnings(gathered: Gathered) -> Sequence[str]:
    """What a reader must know before comparing these runs."""
    differing = differing_keys([group.config for group in gathered.groups], ignoring={*NOT_IN_A_GROUP, "method"})
    told = []
    for key in _ONE_TASK:
        if key in differing:
            values = dict.fromkeys(json.dumps(value, ensure_ascii=False) for value in differing[key])
            what = "Seconds" if key == "network.mode" else "Losses"
            told.append(f"These runs differ in {key}: {', '.join(values)}. {what} must not be compared across it.")
    for name, versions in versions_of(gathered.groups).items():
        if len(versions) > 1:
            told.append(f"These runs were made with different versions of {name}: {', '.join(versions)}.")
    seeds = {group.label: tuple(group.by_seed) for group in gathered.groups}
    if len(set(seeds.values())) > 1:
        told.append("Not all groups have the same seeds. Differences to the control use the seeds that both have.")
    return [*told, *(f"Left out: {each.reason}" for each in gathered.left_out)]


def versions_of(groups: Sequence[Group]) -> Mapping[str, Sequence[str]]:
    """Package → its versions in these runs."""
    found: dict[str, dict[str, None]] = {}
    for group in groups:
        for run in group.runs:
            for package, version in run.summary["versions"].items():
                found.setdefault(package, {})[version] = None
    return {package: list(versions) for package, versions in found.items()}
