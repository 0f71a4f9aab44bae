"""The numbers of a report: a row a group, for people (page, Markdown) and as CSV."""

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from parablock_ray.config import differing_keys
from parablock_ray.errors import UserError
from parablock_ray.reporting.progress import STRETCHES, Measure, seconds_along, seconds_to_loss
from parablock_ray.reporting.runs import NOT_IN_A_GROUP, Group, ReportedRun
from parablock_ray.reporting.statistics import PairedDifference, Spread, paired_difference, spread

Table = Sequence[Mapping[str, str]]  # header → cell, the same headers in every row

_WHICH = "compared with"  # a column that is needed only where there are several controls
_EPSILON = "epsilon"  # likewise of private runs


def num_bytes(run: ReportedRun) -> int:
    """All payload of a run."""
    summary = run.summary
    return int(summary["bytes_up"] + summary["bytes_down"] + summary["bytes_catch_up"])


_REFUSED = "updates refused"  # likewise, where there were any


def num_refused(run: ReportedRun) -> int:
    """Updates that the server refused; none in runs of versions that did not check them."""
    return int(run.summary.get("num_refused", 0))


def main_table(groups: Sequence[Group], controls: Mapping[str, Group], measure: Measure) -> Table:
    """A row a group: what it reached, in what time, with how many bytes; mean ± standard deviation over seeds."""
    one_control = len({control.label for control in controls.values()}) == 1
    rows = [_main_row(group, controls[group.label], measure) for group in groups]
    is_private = any(row[_EPSILON] for row in rows)
    left_out = {key for key, is_out in ((_WHICH, one_control), (_EPSILON, not is_private)) if is_out}
    return _without(rows, left_out | _refused_if_none(groups))


def _refused_if_none(groups: Sequence[Group]) -> set[str]:
    return set() if any(num_refused(run) for group in groups for run in group.runs) else {_REFUSED}


def _without(rows: Table, hidden: set[str]) -> Table:
    return [{key: cell for key, cell in row.items() if key not in hidden} for row in rows]


def _main_row(group: Group, control: Group, measure: Measure) -> Mapping[str, str]:
    difference = paired_difference(_by_seed(group, "loss_after"), _by_seed(control, "loss_after"))
    return {
        "runs": group.label,
        "seeds": str(len(group.runs)),
        "held-out loss": _spread(_over_seeds(group, "loss_after"), 4),
        _WHICH: "" if group is control else control.label,
        "its difference": "" if group is control else _difference(difference),
        "seconds": _spread(_over_seeds(group, "seconds"), 1),
        "speed-up": _speed_up(group, control),
        "seconds to loss": _reached(list(seconds_to_loss(group, control, measure).values())),
        "bytes": decimal(round(statistics.fmean(map(num_bytes, group.runs)))),
        "overlap efficiency": f"{_over_seeds(group, 'overlap_efficiency').mean:.1%}",
        _REFUSED: _spread(spread([num_refused(run) for run in group.runs]), 1),
        _EPSILON: _epsilon(group.runs[0].summary),
    }


def _epsilon(summary: Mapping[str, Any]) -> str:
    """Of a private run, with its δ; a matter of the config, so the same for all seeds."""
    if "delta" not in summary:
        return ""
    return "none" if summary["epsilon"] is None else f"{summary['epsilon']:.3g} (delta {summary['delta']:g})"


def _by_seed(group: Group, key: str) -> Mapping[int, float]:
    return {seed: run.summary[key] for seed, run in group.by_seed.items()}


def _over_seeds(group: Group, key: str) -> Spread:
    return spread(list(_by_seed(group, key).values()))


def _spread(of: Spread, digits: int) -> str:
    return f"{of.mean:.{digits}f}" + (f" ± {of.std:.{digits}f}" if of.std is not None else "")


def _difference(of: PairedDifference | None) -> str:
    if of is None:
        return "no seed in common"
    if of.half_width is None:
        return f"{of.mean:+.4f} (one seed)"
    return f"{of.mean:+.4f} [{of.mean - of.half_width:+.4f}, {of.mean + of.half_width:+.4f}]"


def _speed_up(group: Group, control: Group) -> str:
    mean = _mean_speed_up(_by_seed(group, "seconds"), _by_seed(control, "seconds"))
    return "" if mean is None else f"{mean:.2f}x"


def _reached(seconds: Sequence[float | None]) -> str:
    """Of seeds that the control has too, None for one that never got there."""
    times = [each for each in seconds if each is not None]
    if not times:
        return "never" if seconds else ""
    share = "" if len(times) == len(seconds) else f" ({len(times)} of {len(seconds)} seeds)"
    return _spread(spread(times), 1) + share


def along_table(groups: Sequence[Group], controls: Mapping[str, Group], measure: Measure) -> Table:
    """A row a group: seconds to losses on the control's way, and in brackets how many times as fast it was there."""
    return [
        {
            "runs": group.label,
            **{
                f"seconds to {stretch:.0%}": _along(group, controls[group.label], measure, stretch)
                for stretch in STRETCHES
            },
        }
        for group in groups
    ]


def _along(group: Group, control: Group, measure: Measure, stretch: float) -> str:
    own = seconds_along(group, control, measure, stretch)
    reached = _reached(list(own.values()))
    speed_up = None if group is control else _mean_speed_up(own, seconds_along(control, control, measure, stretch))
    return reached if speed_up is None else f"{reached} ({speed_up:.2f}x)"


def _mean_speed_up(own: Mapping[int, float | None], control: Mapping[int, float | None]) -> float | None:
    """The mean over seeds of the control's seconds over one's own, where both got there; None where none did."""
    ratios = [
        other / seconds
        for seed, seconds in own.items()
        if seconds is not None and (other := control.get(seed)) is not None
    ]
    return statistics.fmean(ratios) if ratios else None


def settings_table(groups: Sequence[Group]) -> Table:
    """A row a group with every key in which groups differ; no rows where they differ in none."""
    differing = differing_keys([group.config for group in groups], ignoring=NOT_IN_A_GROUP)
    if not differing:
        return []
    return [
        {"runs": group.label, **{key: _setting(values[place]) for key, values in differing.items()}}
        for place, group in enumerate(groups)
    ]


def _setting(value: Any) -> str:
    return "" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def run_table(groups: Sequence[Group]) -> Table:
    """A row a run."""
    rows = [
        {
            "runs": group.label,
            "seed": str(seed),
            "held-out loss before": f"{run.summary['loss_before']:.4f}",
            "after": f"{run.summary['loss_after']:.4f}",
            "seconds": f"{run.summary['seconds']:.1f}",
            "bytes": decimal(num_bytes(run)),
            _REFUSED: str(num_refused(run)),
            "weights sha256": run.summary["weights_sha256"][:12],
            "folder": str(run.folder),
        }
        for group in groups
        for seed, run in group.by_seed.items()
    ]
    return _without(rows, _refused_if_none(groups))


def markdown(table: Table) -> str:
    """A table as Markdown; its text cannot break out of a cell."""
    headers = list(table[0])
    lines = [headers, ["---"] * len(headers), *([row[header] for header in headers] for row in table)]
    escaped = ([cell.replace("|", r"\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def write_csv(groups: Sequence[Group], controls: Mapping[str, Group], measure: Measure, folder: Path) -> None:
    """`groups.csv` and `runs.csv`, numbers in full. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_rows(folder / "groups.csv", (_group_numbers(group, controls[group.label], measure) for group in groups))
        runs = ((group, seed, run) for group in groups for seed, run in group.by_seed.items())
        _write_rows(folder / "runs.csv", (_run_numbers(group, seed, run) for group, seed, run in runs))
    except OSError as error:
        raise UserError(f"--csv: cannot write to {folder}: {error.strerror}") from None


def _write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    rows = list(rows)
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _group_numbers(group: Group, control: Group, measure: Measure) -> Mapping[str, Any]:
    reached = seconds_to_loss(group, control, measure)
    times = [seconds for seconds in reached.values() if seconds is not None]
    row: dict[str, Any] = {"runs": group.label, "num_seeds": len(group.runs), "control": control.label}
    for key in ("loss_before", "loss_after", "seconds", "seconds_bound", "overlap_efficiency"):
        over_seeds = _over_seeds(group, key)
        row |= {f"{key}_mean": over_seeds.mean, f"{key}_std": over_seeds.std}
    for key in ("loss_after", "seconds"):
        difference = paired_difference(_by_seed(group, key), _by_seed(control, key))
        row[f"{key}_difference"] = difference and difference.mean
        row[f"{key}_difference_half_width"] = difference and difference.half_width
    for stretch in STRETCHES:
        along = seconds_along(group, control, measure, stretch)
        of_control = seconds_along(control, control, measure, stretch)
        row[f"speed_up_at_{stretch * 100:.0f}_percent"] = _mean_speed_up(along, of_control)
    return {
        **row,
        "num_paired_seeds": len(reached),
        "num_bytes_mean": statistics.fmean(map(num_bytes, group.runs)),
        "seconds_to_loss_mean": statistics.fmean(times) if times else None,
        "num_seeds_that_reached_it": len(times),
    }


def _run_numbers(group: Group, seed: int, run: ReportedRun) -> Mapping[str, Any]:
    keys = ("method", "loss_before", "loss_after", "seconds", "seconds_bound", "seconds_mode", "overlap_efficiency")
    numbers = {key: run.summary[key] for key in keys}
    return {
        "runs": group.label,
        "seed": seed,
        **numbers,
        "num_bytes": num_bytes(run),
        "weights_sha256": run.summary["weights_sha256"],
        "folder": run.folder,
    }
