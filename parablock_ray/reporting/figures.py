"""The pictures of a report, as SVG to stand in the page. One colour and dash for each group, in all of them."""

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Literal

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from parablock_ray.reporting.progress import DESCRIBED, TOLERANCE, Curve, Measure, mean_curve, seconds_to_loss
from parablock_ray.reporting.runs import Group

Across = Literal["rounds", "seconds", "num_bytes"]

# After Okabe and Ito, told apart with any colour vision; more groups than colours change the dash.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#a6508a", "#b08300", "#3a3a3a", "#4aa3d9", "#8c564b")
_DASHES = ("", "6 3", "2 2", "8 3 2 3")
_INK, _GRID = "#3c4450", "#e4e7ec"
_CURVE_SIZE, _ROWS_SIZE = (5.2, 3.8), (7.4, 3.2)  # inches
_ROW = 0.3  # inches that a group needs at the least
_BYTES_PER_MB = 1e6

_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "parablock-ray",  # the same picture has the same bytes
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _GRID,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
}


@dataclass(frozen=True)
class Look:
    """How a group is drawn everywhere. `dash` as in SVG's stroke-dasharray, empty for a solid line."""

    colour: str
    dash: str

    @property
    def linestyle(self) -> str | tuple[int, tuple[float, ...]]:
        """The same for matplotlib, whose dashes count in line widths of 2."""
        return (0, tuple(float(part) / 2 for part in self.dash.split())) if self.dash else "-"


@dataclass(frozen=True)
class Plot:
    """`caption` says what the picture shows, also to whom cannot see it."""

    svg: Markup
    caption: str


def looks(groups: Sequence[Group]) -> Mapping[str, Look]:
    """Label → look, in order."""
    return {
        group.label: Look(_COLOURS[i % len(_COLOURS)], _DASHES[i // len(_COLOURS) % len(_DASHES)])
        for i, group in enumerate(groups)
    }


def loss_curves(groups: Sequence[Group], measure: Measure, mode: str) -> Sequence[Plot]:
    """The loss against rounds, seconds and megabytes. `mode`: network.mode, without which no second is told."""
    sides: Sequence[tuple[Across, str, str]] = (
        ("rounds", "rounds", "rounds"),
        ("seconds", f"seconds ({mode})", "seconds"),
        ("num_bytes", "megabytes, all clients, up and down", "bytes"),
    )
    what = DESCRIBED[measure]
    return [
        Plot(
            _curves(groups, measure, across, f"{_short(what)} against {short}", xlabel),
            f"{what.capitalize()}, against {short}. Lines are means over seeds, bands one standard deviation.",
        )
        for across, xlabel, short in sides
    ]


def _short(described: str) -> str:
    return described.partition(",")[0]


def _curves(groups: Sequence[Group], measure: Measure, across: Across, title: str, xlabel: str) -> Markup:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_CURVE_SIZE, layout="constrained")
        axes = figure.subplots()
        _draw_curves(axes, groups, measure, across)
        axes.set(title=title, xlabel=xlabel, ylabel=_short(DESCRIBED[measure]))
        return inline_svg(figure)


def _draw_curves(axes: Axes, groups: Sequence[Group], measure: Measure, across: Across) -> None:
    for group, look in zip(groups, looks(groups).values(), strict=True):
        mean, std = mean_curve(group, measure)
        x = _along(mean, across)
        axes.plot(x, mean.loss, color=look.colour, linestyle=look.linestyle, linewidth=2, label=group.label)
        if any(std):
            low = [loss - each for loss, each in zip(mean.loss, std, strict=True)]
            high = [loss + each for loss, each in zip(mean.loss, std, strict=True)]
            axes.fill_between(x, low, high, color=look.colour, alpha=0.15, linewidth=0)
    axes.set_xlim(left=0)
    if across == "rounds":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _along(mean: Curve, across: Across) -> Sequence[float]:
    match across:
        case "rounds":
            return mean.rounds
        case "seconds":
            return mean.seconds
        case "num_bytes":
            return [each / _BYTES_PER_MB for each in mean.num_bytes]


def final_losses(groups: Sequence[Group]) -> Plot:
    """A dot a run."""

    def draw(axes: Axes, row: int, group: Group, look: Look) -> None:
        losses = [run.summary["loss_after"] for run in group.runs]
        axes.plot(losses, [row] * len(losses), "o", color=look.colour, alpha=0.55, markersize=7, markeredgewidth=0)
        axes.plot([statistics.fmean(losses)], [row], "|", color=look.colour, markersize=20, markeredgewidth=2.5)

    caption = "Held-out loss of the final model. A dot is a run, the upright line is the mean over seeds."
    return Plot(_row_a_group(groups, draw, "held-out loss at the end", "held-out loss"), caption)


def times_to_loss(groups: Sequence[Group], controls: Mapping[str, Group], measure: Measure, mode: str) -> Plot:
    """A bar a group, a dot a run; those that never got there have none."""

    def draw(axes: Axes, row: int, group: Group, look: Look) -> None:
        reached = seconds_to_loss(group, controls[group.label], measure)
        times = [seconds for seconds in reached.values() if seconds is not None]
        if times:
            axes.barh(row, statistics.fmean(times), height=0.55, color=look.colour, alpha=0.35)
            axes.plot(times, [row] * len(times), "o", color=look.colour, markersize=6, markeredgewidth=0)
        if len(times) < len(reached):
            note, at = f"{len(reached) - len(times)} of {len(reached)} never", (max(times, default=0.0), row)
            axes.annotate(note, at, textcoords="offset points", xytext=(8, 0), va="center", fontsize=9)
        axes.set_xlim(left=0)

    caption = (
        f"Seconds until the {DESCRIBED[measure]}, is within {TOLERANCE:.0%} of where the control ends, or below it."
    )
    return Plot(_row_a_group(groups, draw, "seconds to the control's loss", f"seconds ({mode})"), caption)


def _row_a_group(
    groups: Sequence[Group], draw: Callable[[Axes, int, Group, Look], None], title: str, xlabel: str
) -> Markup:
    width, height = _ROWS_SIZE
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, max(height, _ROW * len(groups) + 1)), layout="constrained")
        axes = figure.subplots()
        for row, (group, look) in enumerate(zip(groups, looks(groups).values(), strict=True)):
            draw(axes, row, group, look)
        axes.set_yticks(range(len(groups)), [group.label for group in groups], parse_math=False)  # a $ is a $
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set(title=title, xlabel=xlabel)
        return inline_svg(figure)


def inline_svg(figure: Figure) -> Markup:
    """The figure as an element for a page with others like it: no prolog, no names that others have too."""
    out = StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(out, format="svg", metadata={"Date": None})
    svg = out.getvalue()
    return Markup(re.sub(r'<g id="[^"]*"', "<g", svg[svg.index("<svg") :]))
