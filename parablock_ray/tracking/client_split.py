"""Who holds what: how the training examples are split over clients, as a line, a table and a picture."""

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_ROWS = 20  # clients that a table shows one by one; of more, some by size
_MAX_BARS = 200  # clients that a picture shows one by one; of more, the distribution of sizes
_MAX_BINS = 50  # of the distribution of sizes
_MAX_COLUMNS = 10  # labels that a table or legend names; the rest are one
_BAR = 30  # characters

Counts = Mapping[str, Sequence[int]]
"""Label → how many examples of it each client holds. At least one label, and as many clients for each."""


def sizes(counts: Counts) -> list[int]:
    """How many examples each client holds."""
    return [sum(of_client) for of_client in zip(*counts.values(), strict=True)]


def split_line(split: str, counts: Counts) -> str:
    """One line for people."""
    held = sizes(counts)
    unequal = f"{min(held)} to {max(held)} examples, {statistics.median(held):g} in the median"
    how_many = unequal if min(held) < max(held) else f"{held[0]} examples each"
    return (
        f"split {split}: {len(held)} client(s) hold {how_many}; "
        f"{_num_labels(counts)} of {len(counts)} labels each on average"
    )


def split_table(counts: Counts) -> Table:
    """A row a client with its size and labels; of many clients some, from the smallest to the largest."""
    shown, held = _folded(counts), sizes(counts)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("client", justify="right", no_wrap=True)
    table.add_column("examples", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for label in shown:
        table.add_column(label, justify="right", overflow="fold")
    for client in _rows(held):
        bar = "█" * max(1, round(_BAR * held[client] / max(held)))
        table.add_row(f"{client}", f"{held[client]}", bar, *(f"{of_label[client]}" for of_label in shown.values()))
    return table


def split_figure(counts: Counts) -> "Figure":
    """A bar a client, stacked by label; of very many clients how many have which size."""
    from matplotlib.figure import Figure  # not before a run starts, which it would delay
    from matplotlib.ticker import MaxNLocator

    held = sizes(counts)
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(held) > _MAX_BARS:
        width = -(-(max(held) - min(held) + 1) // _MAX_BINS)  # of a bin: whole, like the sizes
        edges = [edge - 0.5 for edge in range(min(held), max(held) + width + 1, width)]
        axes.hist(held, bins=edges, rwidth=0.9)
        axes.set(xlabel="training examples", ylabel="clients", title="clients by size")
        return figure
    below = [0] * len(held)
    for label, of_label in _folded(counts).items():
        axes.bar(range(len(held)), of_label, bottom=below, label=label.replace("$", r"\$"), width=0.9)
        below = [sum(pair) for pair in zip(below, of_label, strict=True)]
    axes.set(xlabel="client", ylabel="training examples", title="who holds what")
    axes.margins(x=0.01)
    if len(counts) > 1:  # from the top down, as the bars are
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, reverse=True)
    return figure


def _num_labels(counts: Counts) -> str:
    by_client = [sum(count > 0 for count in of_client) for of_client in zip(*counts.values(), strict=True)]
    return f"{statistics.mean(by_client):.1f}"


def _rows(held: Sequence[int]) -> Sequence[int]:
    """All clients, or as many as fit, evenly from the smallest to the largest."""
    if len(held) <= _MAX_ROWS:
        return range(len(held))
    by_size = sorted(range(len(held)), key=lambda client: (held[client], client))
    return [by_size[row * (len(held) - 1) // (_MAX_ROWS - 1)] for row in range(_MAX_ROWS)]


def _folded(counts: Counts) -> Counts:
    """The largest labels, and the others as one."""
    if len(counts) <= _MAX_COLUMNS:
        return counts
    ordered = sorted(counts, key=lambda label: -sum(counts[label]))
    kept, others = ordered[: _MAX_COLUMNS - 1], ordered[_MAX_COLUMNS - 1 :]
    rest = [sum(of_client) for of_client in zip(*(counts[label] for label in others), strict=True)]
    return {label: counts[label] for label in kept} | {f"{len(others)} others": rest}
