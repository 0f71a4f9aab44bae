"""What FLoRIST's aggregation costs beside its peers: `python benchmarks/lora_aggregation.py --json`.

One weight matrix of LLaMA-7B's q or v shape, 4096 × 4096, fp32, one thread, adapters of Gaussian noise: of all data
that which is hardest to cut, since every direction counts alike. Side by side, in turns, in one process:

    dense     the dense ΔW and `torch.linalg.svd(ΔW, full_matrices=False)`: FlexLoRA, as the package has it
    two_svd   the thin SVDs of both stacks and that of the core: FLoRIST as its paper writes it; below, with nothing
              slower than it need be
    two_svd_transposed   the same, but A's stack is factored as the transposed, tall matrix, which LAPACK does faster

The ratio is the median over turns. Before it counts, all three must have the same singular values and the two FLoRISTs
the same rank. Memory is the most bytes of tensors that were alive at once, beside the adapters themselves.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from harness import Row, note, parser, report, speed_row
from tensor_memory import TensorMemory
from torch import Tensor

from parablock_ray.algorithms.lora import Adapter, flexlora, florist

ALPHA = 16
SAME = 1e-5  # of σ_max


@dataclass(frozen=True)
class Setting:
    """The clients of one round, and the least ratios that are good enough."""

    ranks: list[int]
    with_dense: bool
    two_svd_goal: float
    dense_goal: float | None = None


SETTINGS = {
    "8_mixed": Setting([4, 4, 8, 8, 16, 16, 32, 64], with_dense=True, two_svd_goal=2, dense_goal=300),
    "100x16": Setting([16] * 100, with_dense=False, two_svd_goal=3),
}

# (adapters, weights, threshold) → B_g, A_g, singular values
Aggregation = Callable[[list[Adapter], list[float], float], tuple[Tensor, Tensor, Tensor]]


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    rows = [row for name in options.settings for row in figures(name, SETTINGS[name], options)]
    report(rows, options.json)


def arguments() -> argparse.Namespace:
    options = parser("FLoRIST's aggregation against FlexLoRA's dense SVD and the two thin SVDs of the paper.")
    options.add_argument("--side", type=int, default=4096, help="m = n; small ones are quick, and have other ratios")
    options.add_argument("--threshold", type=float, default=0.9, help="share of the squared singular values to keep")
    options.add_argument(
        "--turns", type=int, default=5, help="measurements of each; the 8 clients have 4 times as many"
    )
    options.add_argument(
        "--dense-turns", type=int, default=3, help="measurements of the dense SVD, a quarter of a minute or so each"
    )
    options.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="SETTING")
    return options.parse_args()


def figures(name: str, setting: Setting, options: argparse.Namespace) -> Iterator[Row]:
    adapters, weights = make_round(options.side, setting.ranks)
    turns = options.turns * (4 if len(setting.ranks) == 8 else 1)

    def in_turns(peers: dict[str, Aggregation], num_turns: int) -> dict[str, list[float]]:
        return measure(peers, adapters, weights, options.threshold, num_turns)

    two_svds: dict[str, Aggregation] = {"two_svd": two_svd, "two_svd_transposed": two_svd_transposed}
    seconds = in_turns(two_svds, turns)
    rank = florist(adapters, weights, options.threshold)[2].rank
    yield ratio(f"florist_vs_two_svd/{name}", seconds, "two_svd", setting.two_svd_goal)
    yield ratio(f"florist_vs_two_svd_transposed/{name}", seconds, "two_svd_transposed", None)
    peers = dict(two_svds)
    if setting.with_dense:
        beside = in_turns({"dense": dense}, options.dense_turns)
        yield ratio(f"florist_vs_dense/{name}", beside, "dense", setting.dense_goal)
        seconds["dense"] = beside["dense"]
        peers["dense"] = dense
    yield Row(f"rank/{name}", rank, f"of {sum(setting.ranks)}")
    for peer, measured in seconds.items():
        yield Row(f"seconds/{name}/{peer}", statistics.median(measured), "s")
    for peer, aggregation in {"florist": ours, **peers}.items():
        with TensorMemory() as memory:
            aggregation(adapters, weights, options.threshold)
        yield Row(f"peak_memory/{name}/{peer}", memory.peak_bytes / 1e6, "MB")
    yield Row(f"peak_memory/{name}/stacks", 2 * options.side * sum(setting.ranks) * 4 / 1e6, "MB")


def make_round(side: int, ranks: list[int]) -> tuple[list[Adapter], list[float]]:
    """Adapters of unequal weights, and of unequal scalings alpha / r where ranks are mixed."""
    values = torch.Generator().manual_seed(0)
    adapters = [
        Adapter(torch.randn(side, r, generator=values), torch.randn(r, side, generator=values), ALPHA / r)
        for r in ranks
    ]
    num_examples = torch.randint(50, 150, (len(ranks),), generator=values).tolist()
    return adapters, [n / sum(num_examples) for n in num_examples]


def measure(
    peers: dict[str, Aggregation], adapters: list[Adapter], weights: list[float], threshold: float, num_turns: int
) -> dict[str, list[float]]:
    """Seconds of each peer and of `florist`, who take turns; what they find is compared in the first turn."""
    seconds: dict[str, list[float]] = {peer: [] for peer in ["florist", *peers]}
    ours(adapters, weights, threshold)  # once before: libraries load, memory is claimed
    for turn in range(num_turns):
        found = {}
        for peer, aggregation in {"florist": ours, **peers}.items():
            start = time.perf_counter()
            found[peer] = aggregation(adapters, weights, threshold)
            seconds[peer].append(time.perf_counter() - start)
        if turn == 0:
            for peer in peers:
                check_same(peer, found["florist"], found[peer])
    return seconds


def check_same(peer: str, mine: tuple[Tensor, Tensor, Tensor], its: tuple[Tensor, Tensor, Tensor]) -> None:
    """SystemExit unless both have the same singular values, to 1e-5 of the largest, and the same rank."""
    sigma, its_sigma = mine[2], its[2][: len(mine[2])]
    apart = float((sigma - its_sigma).abs().max() / its_sigma[0])
    note(f"{peer}: singular values within {apart:.1e} of the largest, rank {mine[0].shape[1]} and {its[0].shape[1]}")
    if apart > SAME or mine[0].shape[1] != its[0].shape[1]:
        raise SystemExit(f"florist and {peer} do not agree: no ratio means anything")


def ratio(name: str, seconds: dict[str, list[float]], peer: str, goal: float | None) -> Row:
    return speed_row(name, seconds["florist"], seconds[peer], goal)


def ours(adapters: list[Adapter], weights: list[float], threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    B, A, info = florist(adapters, weights, threshold)
    return B, A, info.singular_values


def dense(adapters: list[Adapter], weights: list[float], threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """FlexLoRA: all of the SVD; here cut as FLoRIST cuts, which costs nothing beside it."""
    B, A, _ = flexlora(adapters, weights)
    sigma = B.norm(dim=0)
    rank = least_rank(sigma, threshold)
    return B[:, :rank], A[:rank], sigma


def two_svd(adapters: list[Adapter], weights: list[float], threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """FLoRIST (arXiv 2506.09199), algorithm as written."""
    B, A = stacks(adapters, weights)
    U_B, S_B, Vt_B = torch.linalg.svd(B, full_matrices=False)
    U_A, S_A, Vt_A = torch.linalg.svd(A, full_matrices=False)
    return two_svd_core(U_B, S_B, Vt_B @ U_A, S_A, Vt_A, threshold)


def two_svd_transposed(
    adapters: list[Adapter], weights: list[float], threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    B, A = stacks(adapters, weights)
    U_B, S_B, Vt_B = torch.linalg.svd(B, full_matrices=False)
    V_A, S_A, Ut_A = torch.linalg.svd(A.T, full_matrices=False)
    return two_svd_core(U_B, S_B, Vt_B @ Ut_A.T, S_A, V_A.T, threshold)


def two_svd_core(
    U_B: Tensor, S_B: Tensor, Vt_B_U_A: Tensor, S_A: Tensor, Vt_A: Tensor, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    U, sigma, Vt = torch.linalg.svd(S_B[:, None] * Vt_B_U_A * S_A, full_matrices=False)
    p = least_rank(sigma, threshold)
    return (U_B @ U[:, :p]) * sigma[:p], Vt[:p] @ Vt_A, sigma


def stacks(adapters: list[Adapter], weights: list[float]) -> tuple[Tensor, Tensor]:
    scaled = [each.A * (weight * each.scaling) for each, weight in zip(adapters, weights, strict=True)]
    return torch.cat([each.B for each in adapters], 1), torch.cat(scaled, 0)


def least_rank(sigma: Tensor, threshold: float) -> int:
    energy = sigma.double().square().cumsum(0)
    return 1 + int((energy < threshold * energy[-1]).sum())


if __name__ == "__main__":
    main()
