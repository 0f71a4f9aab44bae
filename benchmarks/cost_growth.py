"""How the runtime's own cost grows: `python benchmarks/cost_growth.py --json --figure docs/cost_growth.svg`.

Runs in which nobody trains, on two workers, through the package's own driver loop and Ray actors: a round is all
overhead. The median of the rounds but the first, while one thing grows at a time:

    clients_a_round   of 400 clients, the tiny model in four blocks
    clients_in_all    50 a round, the same
    model_bytes       two clients, a model of four equal blocks; x is a block's bytes
    blocks            the tiny model in more and more blocks, 10 clients; y is a sweep over all blocks
    chunks            a block of 17 MB in more and more chunks, cut-through, two clients

    cost_growth/exponent/…   of y = a · x^b, by least squares on the logarithms
    cost_growth/steepest/…   the largest slope between neighbours: a fixed cost flattens the fit, not this
"""

import argparse
import itertools
import math
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from federation import NUM_BLOCKS, asleep_for, make_federation, measure, own_cluster
from harness import Row, note, parser, report
from matplotlib.figure import Figure
from scale import OVERRIDES, QUICKSTART

from parablock_ray.config import Config, load_config
from parablock_ray.tracking.events import Committed

LINEAR = 1.1  # what a fit may be and still be called linear
FEW_CLIENTS = 2

# The seconds of a round, or of a sweep, by what grows
Curve = Mapping[float, float]


@dataclass(frozen=True)
class Growth:
    """`label` of x; `values`: what x is."""

    label: str
    values: tuple[float, ...]


GROWTHS = {
    "clients_a_round": Growth("clients a round", (10, 60, 400)),
    "clients_in_all": Growth("clients in all", (100, 1000, 10_000)),
    "model_bytes": Growth("bytes of a block", (128, 384, 1024)),  # by the hidden size
    "blocks": Growth("blocks", (1, 3, 8)),
    "chunks": Growth("chunks", (1, 8, 64)),
}


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder, own_cluster():
        curves = {name: dict(curve(name, Path(folder), options.rounds)) for name in options.growths}
    if options.figure:
        draw(curves, options.figure)
    report(list(figures(curves)), options.json)


def arguments() -> argparse.Namespace:
    options = parser("How the runtime's cost grows with clients, model, blocks and chunks.")
    options.add_argument("--rounds", type=int, default=9, help="of each run")
    options.add_argument("--growths", nargs="+", choices=GROWTHS, default=list(GROWTHS), metavar="NAME")
    options.add_argument("--figure", type=Path, help="write the plot there, as SVG")
    return options.parse_args()


def curve(name: str, folder: Path, num_rounds: int) -> Iterator[tuple[float, float]]:
    for value in GROWTHS[name].values:
        x, config = setting(name, value, folder, num_rounds)
        seconds = round_s(config) * (value if name == "blocks" else 1)
        note(f"{name} {x:g}: {1e3 * seconds:.1f} ms")
        yield x, seconds


def setting(name: str, value: float, folder: Path, num_rounds: int) -> tuple[float, Config]:
    """x, and the run that shows its y."""
    match name:
        case "clients_a_round":
            return value, tiny(folder, num_rounds, "clients.num=400", f"clients.per_round={value}")
        case "clients_in_all":
            return value, tiny(folder, num_rounds, f"clients.num={value}", "clients.per_round=50")
        case "blocks":
            return value, tiny(folder, num_rounds, "clients.num=10", f"method.num_blocks={value}")
    hidden = int(value) if name == "model_bytes" else 512
    place = folder / f"{name}-{value}"
    place.mkdir()
    federation = make_federation(place, hidden, 4 * hidden)
    method = {"name": "parablock", "rounds": num_rounds}
    if name == "model_bytes":
        return federation.block_bytes, federation.config(method, {"mode": "none"}, FEW_CLIENTS)
    chunk_mb = math.ceil(federation.block_bytes / value) / 1e6
    network = {"mode": "none", "exchange": "cut_through", "chunk_mb": chunk_mb}
    return value, federation.config(method, network, FEW_CLIENTS)


def tiny(folder: Path, num_rounds: int, *overrides: str) -> Config:
    own = [f"method.rounds={num_rounds}", f"out={folder}/out", f"method.num_blocks={NUM_BLOCKS}"]
    return load_config(QUICKSTART, [*OVERRIDES, *own, *overrides])


def round_s(config: Config) -> float:
    """From commit to commit, the median."""
    commits_s = [event.time_s for event in measure(config, asleep_for(0)).events if isinstance(event, Committed)]
    return statistics.median(after - before for before, after in itertools.pairwise(sorted(commits_s)))


def figures(curves: Mapping[str, Curve]) -> Iterator[Row]:
    for name, of in curves.items():
        yield Row(f"cost_growth/exponent/{name}", exponent(of), "", LINEAR, at_most=True)
        yield Row(f"cost_growth/steepest/{name}", max(slopes(of)), "")
        for x, seconds in of.items():
            yield Row(f"cost_growth/milliseconds/{name}/{x:g}", 1e3 * seconds, "ms")


def exponent(of: Curve) -> float:
    return statistics.linear_regression([math.log(x) for x in of], [math.log(y) for y in of.values()]).slope


def slopes(of: Curve) -> Iterator[float]:
    """Between neighbours."""
    for (left, low), (right, high) in itertools.pairwise(of.items()):
        yield math.log(high / low) / math.log(right / left)


def draw(curves: Mapping[str, Curve], file: Path) -> None:
    """A panel for each thing that grows, log-log, with a straight line of slope 1 through the last point."""
    style = {"svg.fonttype": "none", "svg.hashsalt": "parablock-ray", "font.family": "sans-serif", "font.size": 9}
    with mpl.rc_context(style):
        chart = Figure(figsize=(9.6, 2.6), layout="constrained")
        for axes, (name, of) in zip(chart.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
            xs, ys = list(of), [1e3 * seconds for seconds in of.values()]
            axes.plot(xs, ys, color="#d55e00", marker="o", markersize=3)
            axes.plot(xs, [ys[-1] * x / xs[-1] for x in xs], color="#8c959f", linestyle=":", label="linear")
            axes.set(xscale="log", yscale="log", xlabel=GROWTHS[name].label)
            axes.set_xticks([xs[0], xs[-1]], [f"{x:,.0f}" for x in (xs[0], xs[-1])])
            axes.set_yticks([ys[0], ys[-1]], [f"{y:,.0f}" for y in (ys[0], ys[-1])])
            axes.minorticks_off()
            axes.set_title(f"exponent {exponent(of):.2f}", fontsize=9)
            axes.grid(color="#e4e7ec")
        chart.supylabel("ms", fontsize=9)
        chart.savefig(file, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
