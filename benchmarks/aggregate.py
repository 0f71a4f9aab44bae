"""How fast the server adds updates up, beside the machine's memory: `python benchmarks/aggregate.py --json`.

The weighted mean of a round is a stream: of each update every element is read, the sum is read and written, 12 bytes an
element in fp32. The package's own `RoundSum` takes in chunk by chunk what clients would have sent; one thread, its
seconds of the processor, no Ray.

    aggregate/bandwidth_vs_memory   12 bytes an element over its seconds, over the machine's memory bandwidth: the best
                                    of a copy (8 bytes an element) and an addition in place (12), on as many bytes
    aggregate/cut_through_…         the same where chunks are folded as they come, and updates kept to the round's end
    aggregate/bfloat16_…            updates in bf16: 10 bytes an element
    aggregate/memory_growth         peak memory of a round of many clients over that of a round of few, less 1
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import torch
from harness import Row, in_turns, median_row, parser, processor_seconds_of, report
from tensor_memory import TensorMemory
from torch import Tensor

from parablock_ray.algorithms.aggregate import RoundSum
from parablock_ray.algorithms.base import RoundPlan, Visit
from parablock_ray.algorithms.wire import Wire

GOAL = 0.5
FEW, MANY = 4, 64
CHUNK_BYTES = 32_000_000  # network.chunk_mb as it is by default


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    report([*bandwidths(options), memory_growth(options)], options.json)


def arguments() -> argparse.Namespace:
    options = parser("The streaming weighted mean against the machine's memory.")
    options.add_argument("--megabytes", type=int, default=128, help="of a block in fp32: more than a cache holds")
    options.add_argument("--turns", type=int, default=9)
    return options.parse_args()


def bandwidths(options: argparse.Namespace) -> Iterator[Row]:
    num_params = options.megabytes * 10**6 // 4
    source, target = torch.ones(num_params), torch.zeros(num_params)
    measures: dict[str, Callable[[], float]] = {
        "copy": lambda: 8 * num_params / processor_seconds_of(lambda: target.copy_(source)),
        "add": lambda: 12 * num_params / processor_seconds_of(lambda: target.add_(source)),
        "bandwidth": partial(fold_bandwidth, source, False),
        "cut_through_bandwidth": partial(fold_bandwidth, source, True),
        "bfloat16_bandwidth": partial(fold_bandwidth, source.to(torch.bfloat16), False),
    }
    found = in_turns(measures, options.turns)
    memory = [max(pair) for pair in zip(found.pop("copy"), found.pop("add"), strict=True)]
    yield median_row("aggregate/memory_bandwidth", [each / 1e9 for each in memory], "GB/s")
    for name, values in found.items():
        ratios = [each / beside for each, beside in zip(values, memory, strict=True)]
        yield median_row(f"aggregate/{name}_vs_memory", ratios, "ratio", None if name.startswith("bfloat16") else GOAL)


def fold_bandwidth(values: Tensor, by_chunk: bool) -> float:
    """Bytes a second, once the sum is there: the first update, which makes it, does not count."""
    total, bounds = new_round(3, values, by_chunk)  # the last one would be folded with the means
    take_in(total, bounds, 0, values)
    return (8 + values.element_size()) * len(values) / processor_seconds_of(lambda: take_in(total, bounds, 1, values))


def memory_growth(options: argparse.Namespace) -> Row:
    """An update is made when it comes, and gone once it is folded."""
    few, many = (peak_bytes(num_clients, options.megabytes * 10**6 // 40) for num_clients in (FEW, MANY))
    return Row("aggregate/memory_growth", many / few - 1, "ratio", goal=0.01, at_most=True)


def peak_bytes(num_clients: int, num_params: int) -> int:
    with TensorMemory() as memory:
        total, bounds = new_round(num_clients, torch.empty(num_params), by_chunk=False)
        for client in range(num_clients):
            take_in(total, bounds, client, torch.ones(num_params))
        for chunk in range(len(bounds)):
            total.mean(chunk)
    return memory.peak_bytes


def new_round(num_clients: int, like: Tensor, by_chunk: bool) -> tuple[RoundSum, list[tuple[int, int]]]:
    """A round of clients that weigh 1, 2, 3, …, and the chunks of an update."""
    visits = tuple(Visit(client, client + 1, client + 1, share=0.5) for client in range(num_clients))
    bounds = Wire(like.dtype, CHUNK_BYTES).bounds(like.numel())
    plan = RoundPlan(round=0, block=0, reads=-1, visits=visits, lr=1.0)
    return RoundSum(plan, bounds, torch.float32, by_chunk, clip=None), bounds


def take_in(total: RoundSum, bounds: list[tuple[int, int]], client: int, values: Tensor) -> None:
    for chunk, (start, end) in enumerate(bounds):
        total.add(client, chunk, values[start:end])


if __name__ == "__main__":
    main()
