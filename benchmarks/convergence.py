"""Does overlap keep the rate of convergence? `python benchmarks/convergence.py --json --figure docs/convergence.svg`.

The theory (ParaBlock, arXiv 2511.19959): on smooth non-convex problems the mean over T rounds of E‖∇f(x_t)‖² is
O(1/√T), for ParaBlock as for federated block coordinate descent. So for each T of a geometric grid a run of its own,
with the step size of the standard analysis, `lr_at_1 / √T` for all of its rounds, and a line through the points on
log-log axes: its slope should be −0.5 or steeper.

The package's own schedule, server and replica carry out the rounds, in fp64. Only the local step is written here: SGD
on a small problem, logistic regression with a non-convex regulariser,

    f(x) = Σ w_i f_i(x)
    f_i(x) = mean over i's examples of log(1 + exp(−sign · ⟨features, x⟩)) + λ Σ_j x_j² / (1 + x_j²)

whose clients have unlike features and unlike labels, unequal numbers of examples, and take minibatches of a single one.
Seeds draw problem, start and minibatches, the same for all methods. The order of the blocks is that of one seed.
"""

import argparse
import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import torch
from harness import Row, note, parser, report
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor
from torch.nn import Parameter

from parablock_ray.algorithms.base import LiveModel
from parablock_ray.algorithms.methods import make_method, make_replica, make_server
from parablock_ray.algorithms.population import Population
from parablock_ray.algorithms.rng import generator
from parablock_ray.algorithms.wire import Wire
from parablock_ray.config.method import BlockMethod, FedBCD, ParaBlock
from parablock_ray.config.server import Mean

NUM_EXAMPLES = (20, 35, 50, 65)  # by client
NUM_BLOCKS, BLOCK_SIZE = 4, 4
DIM = NUM_BLOCKS * BLOCK_SIZE
LOCAL_STEPS = 2
REGULARISER = 0.05  # λ
THEORY = -0.5
SLOPE_GOAL = THEORY + 0.05
WIRE = Wire(torch.float64, chunk_bytes=2**20)

# name → what it changes in ParaBlock's config
PARABLOCKS: dict[str, dict[str, object]] = {
    "parablock": {},
    "parablock_eager": {"correction": "eager"},
    "parablock_stale": {"correction": "stale"},
    "parablock_staleness_2": {"staleness": 2},
}
LOOKS = {
    "fedbcd": ("#0072b2", "o"),
    "parablock": ("#d55e00", "s"),
    "parablock_eager": ("#009e73", "^"),
    "parablock_stale": ("#a6508a", "v"),
    "parablock_staleness_2": ("#b08300", "D"),
}


@dataclass(frozen=True)
class Examples:
    """Of all seeds: features [num_seeds, n, DIM] and labels, 1 or −1, [num_seeds, n]."""

    features: Tensor
    signs: Tensor


@dataclass(frozen=True)
class Problem:
    """Seeds stand side by side in one model, [num_seeds, DIM]: the rule works on each number by itself."""

    clients: tuple[Examples, ...]
    start: Tensor

    @property
    def num_examples(self) -> tuple[int, ...]:
        return tuple(client.signs.shape[1] for client in self.clients)

    @property
    def together(self) -> Examples:
        """All clients' examples: their mean loss is f, since w_i goes by the number of examples."""
        features, signs = zip(*((client.features, client.signs) for client in self.clients), strict=True)
        return Examples(torch.cat(features, dim=1), torch.cat(signs, dim=1))


@dataclass(frozen=True)
class Fit:
    """value = exp(intercept) · T^slope, by least squares on the logarithms. `error`: the slope's standard error."""

    slope: float
    intercept: float
    error: float

    def at(self, num_rounds: int) -> float:
        return float(math.exp(self.intercept) * num_rounds**self.slope)


# num_rounds → the mean over rounds of ‖∇f(x_t)‖², by seed
Curve = Mapping[int, Tensor]


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    problem = make_problem(NUM_EXAMPLES, options.seeds)
    curves = {name: curve(name, problem, options) for name in ["fedbcd", *options.methods]}
    fits = {name: fit(curves[name]) for name in curves}
    if options.figure:
        draw(curves, fits, options.figure)
    report(figures(curves, fits), options.json)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    options = parser("The gradient's norm against the number of rounds, for FedBCD and ParaBlock.")
    options.add_argument("--rounds", type=int, nargs="+", default=[2**n for n in range(5, 12)], metavar="T")
    options.add_argument("--seeds", type=int, default=10)
    options.add_argument("--lr-at-1", type=float, default=4.0, help="the step size is this divided by √T")
    options.add_argument("--methods", nargs="+", choices=PARABLOCKS, default=list(PARABLOCKS), help="beside FedBCD")
    options.add_argument("--figure", type=Path, help="write the plot there, as SVG")
    return options.parse_args(given)


def figures(curves: Mapping[str, Curve], fits: Mapping[str, Fit]) -> Iterator[Row]:
    """The slopes, FedBCD's squared gradient over the method's at the largest T (paired seeds), and all points."""
    for name, fitted in fits.items():
        yield Row(f"convergence/slope/{name}", fitted.slope, "", SLOPE_GOAL, at_most=True)
        yield Row(f"convergence/slope/{name}/standard_error", fitted.error, "")
        for each, steepness in local_slopes(curves[name]):
            yield Row(f"convergence/slope/{name}/to_{each}", steepness, "")
    last = max(curves["fedbcd"])
    for name in [each for each in curves if each != "fedbcd"]:
        ratios = curves["fedbcd"][last] / curves[name][last]
        yield Row(f"convergence/ratio/{name}", float(ratios.mean()), "x")
        yield Row(f"convergence/ratio/{name}/standard_error", standard_error(ratios), "x")
    for name, values in curves.items():
        for num_rounds, by_seed in values.items():
            yield Row(f"convergence/squared_gradient/{name}/{num_rounds}", float(by_seed.mean()), "")
            yield Row(f"convergence/squared_gradient/{name}/{num_rounds}/standard_error", standard_error(by_seed), "")


def curve(name: str, problem: Problem, options: argparse.Namespace) -> Curve:
    values = {}
    for num_rounds in sorted(options.rounds):
        values[num_rounds] = mean_squared_gradient(config_of(name, num_rounds, options.lr_at_1), problem)
        note(f"{name}, {num_rounds} rounds: {float(values[num_rounds].mean()):.3g}")
    return values


def config_of(name: str, num_rounds: int, lr_at_1: float) -> BlockMethod:
    shared = {
        "num_blocks": NUM_BLOCKS,
        "rounds": num_rounds,
        "local_steps": LOCAL_STEPS,
        "lr": lr_at_1 / math.sqrt(num_rounds),
        "batch_size": 1,
        "local_optimizer": "sgd",
    }
    if name == "fedbcd":
        return FedBCD.model_validate({"name": "fedbcd", **shared})
    return ParaBlock.model_validate({"name": "parablock", **shared, **PARABLOCKS[name]})


def make_problem(num_examples: Sequence[int], num_seeds: int) -> Problem:
    """Every client has its own centre of features and, beside the common ones, its own weights behind the labels."""
    randoms = [generator(seed, "problem") for seed in range(num_seeds)]

    def normal(*shape: int) -> Tensor:
        return torch.stack([torch.randn(shape, generator=random, dtype=torch.float64) for random in randoms])

    def client(num: int) -> Examples:
        features = normal(num, DIM) + normal(1, DIM) / 2
        weights = common + normal(DIM)
        noise = normal(num)
        return Examples(features, torch.sign(torch.einsum("snd,sd->sn", features, weights) + noise))

    common = normal(DIM)
    return Problem(tuple(client(num) for num in num_examples), start=normal(DIM))


def mean_squared_gradient(config: BlockMethod, problem: Problem) -> Tensor:
    """Run all rounds, one client after the other; the mean over them of ‖∇f(x_t)‖² at the server's x_t, by seed."""
    population = Population(problem.num_examples, len(problem.clients), seed=0)
    method = make_method(config, population)
    master, live = problem.start.clone(), problem.start.clone()
    server = make_server(config, population, blocks_of(master), WIRE, cut_through=False, rule=Mean())
    replica = make_replica(config, population, LiveModel(blocks_of(live), {}, activate=lambda rank: None), WIRE)
    minibatches = [draw_minibatches(client, config, i) for i, client in enumerate(problem.clients)]
    everything = problem.together
    total = torch.zeros(len(master), dtype=torch.float64)
    applied = -1
    for plan in map(method.plan, range(method.num_rounds)):
        total += gradient(everything, master).square().sum(dim=1)
        server.open(plan)
        for update in server.updates(applied, plan.reads, variant=0):
            replica.apply(update)
        replica.forget(plan.reads)
        applied = max(applied, plan.reads)
        for visit in plan.visits:
            [block] = replica.start(plan, visit)
            columns = slice(plan.block * BLOCK_SIZE, (plan.block + 1) * BLOCK_SIZE)
            for _ in range(config.local_steps):
                block.sub_(plan.lr * gradient(next(minibatches[visit.client]), live)[:, columns])
            [upload] = replica.finish([block], [torch.empty(block.numel(), dtype=WIRE.dtype)])
            replica.remember(plan, visit, upload)
            for _ in server.receive(plan.round, visit.client, 0, upload):
                pass
    return total / method.num_rounds


def blocks_of(x: Tensor) -> dict[str, Parameter]:
    """The model's parameters: one layer to a block, each in the memory of x [num_seeds, DIM]."""
    return {
        f"layers.{i}.weight": Parameter(part, requires_grad=False) for i, part in enumerate(x.split(BLOCK_SIZE, dim=1))
    }


def draw_minibatches(client: Examples, config: BlockMethod, index: int) -> Iterator[Examples]:
    """One for each local step: for each seed one example, drawn with replacement."""
    num_seeds, num_examples = client.signs.shape
    num_steps = config.rounds * config.local_steps
    drawn = [
        torch.randint(num_examples, (num_steps,), generator=generator(seed, "minibatches", index))
        for seed in range(num_seeds)
    ]
    seeds = torch.arange(num_seeds)
    for chosen in torch.stack(drawn, dim=1):
        yield Examples(client.features[seeds, chosen, None], client.signs[seeds, chosen, None])


def gradient(examples: Examples, x: Tensor) -> Tensor:
    """∇ of the mean loss over the examples, at x [num_seeds, DIM]."""
    features, signs = examples.features, examples.signs
    margins = signs * (features @ x[..., None])[..., 0]
    weights = signs * torch.sigmoid(-margins) / signs.shape[1]
    return 2 * REGULARISER * x / (1 + x * x) ** 2 - (weights[:, None] @ features)[:, 0]


def fit(values: Curve) -> Fit:
    """Through the means over seeds. The standard error is that of the residuals: the line's bend is in it too."""
    x = [math.log(num_rounds) for num_rounds in values]
    y = [math.log(mean) for mean in means(values)]
    slope, intercept = statistics.linear_regression(x, y)
    residuals = [b - slope * a - intercept for a, b in zip(x, y, strict=True)]
    variance = sum(each**2 for each in residuals) / (len(x) - 2)
    return Fit(slope, intercept, math.sqrt(variance / (statistics.pvariance(x) * len(x))))


def local_slopes(values: Curve) -> Iterator[tuple[int, float]]:
    """From each T to the next one, by the next one."""
    for (before, left), (after, right) in itertools.pairwise(zip(values, means(values), strict=True)):
        yield after, math.log(right / left) / math.log(after / before)


def means(values: Curve) -> list[float]:
    """Over seeds, in the order of T."""
    return [float(by_seed.mean()) for by_seed in values.values()]


def standard_error(by_seed: Tensor) -> float:
    return float(by_seed.std() / math.sqrt(len(by_seed)))


def draw(curves: Mapping[str, Curve], fits: Mapping[str, Fit], file: Path) -> None:
    """Above all curves with the theory's slope; below their means over FedBCD's, since above they hide each other."""
    style = {"svg.fonttype": "none", "svg.hashsalt": "parablock-ray", "font.family": "sans-serif", "font.size": 11}
    with mpl.rc_context(style):
        chart = Figure(figsize=(7.4, 6.4), layout="constrained")
        above, below = chart.subplots(2, sharex=True, height_ratios=(5, 2))
        draw_curves(above, curves, fits)
        draw_ratios(below, curves)
        rounds = list(curves["fedbcd"])
        below.set_xticks(rounds, [str(each) for each in rounds])
        for axes in (above, below):
            axes.minorticks_off()
            axes.grid(color="#e4e7ec")
        chart.savefig(file, format="svg", metadata={"Date": None})


def draw_curves(axes: Axes, curves: Mapping[str, Curve], fits: Mapping[str, Fit]) -> None:
    """Points with two standard errors over seeds, side by side, fitted lines, and the theory's slope below them."""
    for place, (name, values) in enumerate(curves.items()):
        colour, marker = LOOKS[name]
        beside = [num_rounds * 1.05 ** (place - len(curves) // 2) for num_rounds in values]
        errors = [2 * standard_error(by_seed) for by_seed in values.values()]
        label = f"{name}: {fits[name].slope:.3f} ± {fits[name].error:.3f}".replace("-", "\N{MINUS SIGN}")
        axes.errorbar(beside, means(values), errors, fmt=marker, color=colour, markersize=4, label=label)
        axes.plot(list(values), [fits[name].at(each) for each in values], color=colour, linewidth=1)
    first, *_ = rounds = list(curves["fedbcd"])
    theory = [0.5 * means(curves["fedbcd"])[0] * (each / first) ** THEORY for each in rounds]
    axes.plot(rounds, theory, color="#3a3a3a", linestyle="--", label="theory: \N{MINUS SIGN}0.5")
    axes.set(xscale="log", yscale="log", ylabel="mean over rounds of ‖∇f(x)‖²")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(title="slope ± standard error", frameon=False)


def draw_ratios(axes: Axes, curves: Mapping[str, Curve]) -> None:
    for name, values in curves.items():
        colour, marker = LOOKS[name]
        ratios = [mine / its for mine, its in zip(means(values), means(curves["fedbcd"]), strict=True)]
        axes.plot(list(values), ratios, color=colour, marker=marker, markersize=4)
    axes.set(xlabel="rounds T", ylabel="over FedBCD's")


if __name__ == "__main__":
    main()
