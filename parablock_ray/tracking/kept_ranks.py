"""What a rule of federated LoRA that cuts kept of every module, round by round: tables and pictures."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from parablock_ray.tracking.events import Committed, Event, KeptRank

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_SPECTRA = 8  # rounds whose spectra stand in one plot; more lines would hide each other


HEADER = ("round", "module", "rank", "kept_energy")


def kept_ranks(events: Iterable[Event]) -> Mapping[int, tuple[KeptRank, ...]]:
    """Round → what was kept of every module, in round order; empty for methods that do not cut."""
    commits = [event for event in events if isinstance(event, Committed)]
    ordered = sorted(commits, key=lambda commit: commit.round)
    return {commit.round: commit.kept_ranks for commit in ordered if commit.kept_ranks}


def rank_rows(by_round: Mapping[int, Sequence[KeptRank]]) -> Iterator[tuple[int, str, int, float]]:
    """A row a round and module, under HEADER."""
    for round, kept in by_round.items():
        for each in kept:
            yield round, each.module, each.rank, each.kept_energy


def write_rank_table(by_round: Mapping[int, Sequence[KeptRank]], file: Path) -> None:
    """`rank_rows` as CSV."""
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(HEADER)
        writer.writerows(rank_rows(by_round))


def rank_figure(by_round: Mapping[int, Sequence[KeptRank]]) -> "Figure":
    """Left the kept rank by module and round; right the singular values, a line a round: median over modules, as a
    share of the largest."""
    from matplotlib.figure import Figure  # takes a second, and most methods cut nothing

    modules = [each.module for each in next(iter(by_round.values()))]
    figure = Figure(figsize=(12, max(3.0, 0.16 * len(modules) + 1.5)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    ranks = [[kept[row].rank for kept in by_round.values()] for row in range(len(modules))]
    image = left.imshow(ranks, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    left.set(xlabel="round", title="kept rank by module")
    left.set_xticks(range(len(by_round)), [str(round) for round in by_round], fontsize=7)
    left.set_yticks(range(len(modules)), [_short(module) for module in modules], fontsize=5)
    figure.colorbar(image, ax=left, label="rank")
    shown = list(by_round)[:: -(-len(by_round) // _MAX_SPECTRA)]
    for round in shown:
        right.plot(_median_spectrum(by_round[round]), label=f"round {round}", linewidth=1)
    right.set(
        yscale="log", xlabel="component", ylabel="share of the largest (median of modules)", title="singular values"
    )
    right.legend(fontsize=7)
    return figure


def _median_spectrum(kept: Sequence[KeptRank]) -> list[float]:
    spectra = [[value / each.singular_values[0] for value in each.singular_values if value > 0] for each in kept]
    longest = max(map(len, spectra))  # 0 where all adapters are
    columns = ([spectrum[index] for spectrum in spectra if index < len(spectrum)] for index in range(longest))
    return [sorted(column)[len(column) // 2] for column in columns]


def _short(module: str) -> str:
    """`model.layers.3.self_attn.q_proj` → `3 q_proj`."""
    parts = module.split(".")
    numbers = [part for part in parts if part.isdigit()]
    return " ".join([*numbers[:1], parts[-1]])
