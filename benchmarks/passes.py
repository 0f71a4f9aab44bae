"""What a round costs beside its training, pass by pass: `python benchmarks/passes.py --json`.

A large model fits into no cache, so whatever is done with all of it costs a pass over the memory. Each pass that a
round of FedAvg makes, by itself, with the package's own code: seconds of the processor, of `put` those of Ray's threads
too.

    passes/client/delta, put               made, and its start restored; copied into the object store
    passes/look                            an upload found finite: by the client and, with its size, by the server
    passes/server/first_sum, sum, last_sum the first upload added, into new memory; others; the last, with the division
    passes/server/norm, new_value, commit  of the step; model plus step; into the model
    passes/worker/take_in                  the new value, into the model
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import ray
import torch
from federation import own_cluster
from harness import median_row, parser, processor_seconds_of, report
from torch import Tensor

from parablock_ray.algorithms.aggregate import RoundSum, squared_norm
from parablock_ray.algorithms.base import RoundPlan, Visit
from parablock_ray.algorithms.blocks import add_from, differences, write_chunks
from parablock_ray.algorithms.wire import Wire
from parablock_ray.runtime.exchange import from_payload, put
from parablock_ray.training.model import model_shapes

WIRE = Wire(torch.float32, 32_000_000)  # network.chunk_mb as it is by default
NUM_CLIENTS = 4


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    tensors = [torch.randn(each.shape) for each in model_shapes(options.model).values()]
    bounds = WIRE.bounds(sum(tensor.numel() for tensor in tensors))
    with own_cluster():
        references = [put(torch.randn(end - start)).reference for start, end in bounds]
        chunks = [from_payload(payload, WIRE.dtype) for payload in ray.get(references)]
        found = [passes(tensors, chunks) for _ in range(1 + options.turns)][1:]
    report([median_row(f"passes/{name}", [turn[name] for turn in found], "s") for name in found[0]], options.json)


def arguments() -> argparse.Namespace:
    options = parser("What a round costs beside its training, pass by pass.")
    options.add_argument("--model", default="smollm2-135m-instruct", help="as in model.name, trained as one block")
    options.add_argument("--turns", type=int, default=7)
    return options.parse_args()


def passes(tensors: Sequence[Tensor], chunks: Sequence[Tensor]) -> dict[str, float]:
    """Seconds by pass. `chunks`: of a vector as long as the model, in the object store."""
    start, memory = torch.cat(list(chunks)), torch.empty(max(map(len, chunks)), dtype=WIRE.dtype)

    def look() -> None:
        for chunk in chunks:
            torch.aminmax(chunk)

    def delta() -> None:
        for _ in differences(tensors, start, (memory[: len(chunk)] for chunk in chunks), restore=tensors):
            pass

    def store() -> None:
        for chunk in chunks:
            put(chunk)

    seconds: dict[str, Callable[[], None]] = {
        "client/delta": delta,
        "client/put": store,
        "worker/take_in": lambda: write_chunks(0, chunks, tensors),
        "look": look,
    }
    return {name: processor_seconds_of(call) for name, call in seconds.items()} | server_passes(tensors, chunks)


def server_passes(tensors: Sequence[Tensor], chunks: Sequence[Tensor]) -> dict[str, float]:
    """The same, of the server; every client sends the same."""
    visits = tuple(Visit(client, 10 + client, 10 + client, 1 / NUM_CLIENTS) for client in range(NUM_CLIENTS))
    plan, bounds = RoundPlan(0, 0, -1, visits, 1.0), WIRE.bounds(sum(map(len, chunks)))
    total = RoundSum(plan, bounds, WIRE.dtype, by_chunk=False, clip=None)
    means: list[Tensor] = []

    def add(client: int) -> None:
        for index, chunk in enumerate(chunks):
            total.add(client, index, chunk)

    def norm() -> None:
        for mean in means:
            squared_norm(mean, WIRE.dtype)

    def new_value() -> None:
        for (start, _), mean in zip(bounds, means, strict=True):
            add_from(start, mean, tensors)

    sums_s = [processor_seconds_of(partial(add, client)) for client in range(NUM_CLIENTS)]
    return {
        "server/sum": sums_s[1],
        "server/first_sum": sums_s[0],
        "server/last_sum": processor_seconds_of(lambda: means.extend(map(total.mean, range(len(bounds))))),
        "server/norm": processor_seconds_of(norm),
        "server/new_value": processor_seconds_of(new_value),
        "server/commit": processor_seconds_of(lambda: write_chunks(0, means, tensors)),
    }


if __name__ == "__main__":
    main()
