"""What it costs to hand a block to another process of this machine: `python benchmarks/exchange.py --json`.

Two actors on a cluster of their own. The one sends as a client's exchange does, by the package's own code: each chunk
is put into the object store, one copy, and its reference goes to the other with whatever else is ready (`Outbox`),
which answers once it sees all chunks as tensors on shared memory (`from_payload`), without a copy.

    exchange/bandwidth_vs_memcpy       the least of those of 64 MB and more
    exchange/bandwidth_vs_memcpy/…     seconds of one memcpy of as many bytes, from and to memory that was used before,
                                       over those from the tensor to the other's answer, through memory of the store
                                       that was used before too
    exchange/bandwidth_vs_memcpy_in_8_MB/…   the same in chunks as cut-through has them, of 64 MB and more
    exchange/copy_in_vs_memcpy         the same of the copy from shared memory into the parameters of a block of layers
    exchange/training_speed/…          speed of local steps (tiny model, one thread) while the same process sends so
                                       many MB a second, 8 at once, over their speed while it sends nothing
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import ray
import torch
from federation import own_cluster
from harness import Row, in_turns, median_row, note, parser, report, seconds_of, speed_row
from torch import Tensor

from parablock_ray.algorithms.base import Sent
from parablock_ray.algorithms.blocks import unflatten_into
from parablock_ray.algorithms.wire import Wire
from parablock_ray.runtime.exchange import Outbox, as_payload, from_payload
from parablock_ray.training.engine import TorchEngine
from parablock_ray.training.model import TINY, load_model
from parablock_ray.training.optimizer import LocalSettings

GOAL = 0.5
LARGE_MB = 64
MEGABYTE = 10**6
SMALL_CHUNK_MB = 8.0
COPY_IN_MB = 64
STEP_TOKENS = (4, 64)


class Receiver:
    """The other process."""

    async def receive_all(self, sent: Sequence[Sent], *payloads: np.ndarray) -> None:
        """As the server's: what came is there to be read."""
        views = [from_payload(payload, torch.float32) for payload in payloads]
        assert all(len(view) for view in views)


class Sender:
    """A client's process, as far as it sends."""

    def __init__(self, receiver: ray.actor.ActorHandle) -> None:
        self._outbox = Outbox(receiver, is_limited=False)
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))

    async def exchange(self, megabytes: int, chunk_mb: float, num_turns: int) -> dict[str, list[float]]:
        """Seconds of a memcpy and of an exchange, in turns, after one of each."""
        source = torch.ones(megabytes * MEGABYTE // 4)
        target = torch.zeros_like(source)
        chunks = _chunks(source, chunk_mb)
        found: dict[str, list[float]] = {"memcpy": [], "exchange": []}
        for _ in range(num_turns + 1):
            found["memcpy"].append(seconds_of(lambda: target.copy_(source)))
            start_s = time.perf_counter()
            await self._send(chunks)
            found["exchange"].append(time.perf_counter() - start_s)
        return {name: seconds[1:] for name, seconds in found.items()}

    async def steps_per_s(self, megabytes_per_s: float, chunk_mb: float, seconds: float) -> float:
        """Of local steps in the training thread, while this is sent beside it."""
        training = asyncio.get_running_loop().run_in_executor(self._thread, _train_for, seconds)
        chunk = [torch.ones(round(chunk_mb * MEGABYTE) // 4)]
        next_s = time.perf_counter()
        while megabytes_per_s and not training.done():
            await self._send(chunk)
            next_s += chunk_mb / megabytes_per_s
            await asyncio.sleep(max(0.0, next_s - time.perf_counter()))
        return await training

    async def _send(self, chunks: Sequence[Tensor]) -> None:
        """As `Exchange` does it over a link that takes no time."""
        sends = []
        for index, chunk in enumerate(chunks):
            reference = ray.put(as_payload(chunk))
            await asyncio.sleep(0)
            sends.append(asyncio.create_task(self._outbox.deliver(Sent(0, 0, 0, index), reference)))
        await asyncio.gather(*sends)


def _chunks(vector: Tensor, chunk_mb: float) -> list[Tensor]:
    return [vector[start:end] for start, end in Wire(torch.float32, round(chunk_mb * MEGABYTE)).bounds(len(vector))]


def _train_for(seconds: float) -> float:
    """Steps a second of the tiny model's lowest block."""
    model = load_model(TINY, "float32", seed=0)
    engine = TorchEngine(model, LocalSettings("adamw", weight_decay=0.0, max_grad_norm=None, prox_mu=0.0))
    engine.begin(list(model.model.layers[0].parameters()), lr=1e-4)
    tokens = torch.arange(STEP_TOKENS[0] * STEP_TOKENS[1]).reshape(STEP_TOKENS) % 200
    batch = {"input_ids": tokens, "labels": tokens, "attention_mask": torch.ones_like(tokens)}
    engine.step(batch)
    num_steps, start_s = 0, time.perf_counter()
    while time.perf_counter() < start_s + seconds:
        engine.step(batch)
        num_steps += 1
    return num_steps / (time.perf_counter() - start_s)


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    with own_cluster():
        receiver = ray.remote(Receiver).remote()
        sender = ray.remote(Sender).options(max_concurrency=4).remote(receiver)
        rows = [*bandwidths(sender, options), *copy_in(options), *slowdowns(sender, options)]
    report(rows, options.json)


def arguments() -> argparse.Namespace:
    options = parser("A block from one process to another, beside a memcpy.")
    options.add_argument("--megabytes", type=int, nargs="+", default=[1, 8, 64, 128, 256], help="sizes of a block")
    options.add_argument("--chunk-mb", type=float, default=32.0, help="network.chunk_mb")
    options.add_argument("--turns", type=int, default=9)
    options.add_argument("--rates", type=float, nargs="*", default=[10, 100, 500], help="MB a second beside training")
    options.add_argument("--train-s", type=float, default=4.0, help="of each measurement of training")
    return options.parse_args()


def bandwidths(sender: Any, options: argparse.Namespace) -> Iterator[Row]:
    large = []
    ray.get(sender.exchange.remote(max(options.megabytes), options.chunk_mb, 3))  # touches the store's memory
    for megabytes in options.megabytes:
        note(f"{megabytes} MB")
        seconds = ray.get(sender.exchange.remote(megabytes, options.chunk_mb, options.turns))
        goal = GOAL if megabytes >= LARGE_MB else None
        row = speed_row(f"exchange/bandwidth_vs_memcpy/{megabytes}_MB", seconds["exchange"], seconds["memcpy"], goal)
        yield row
        yield Row(f"exchange/milliseconds/{megabytes}_MB", 1e3 * statistics.median(seconds["exchange"]), "ms")
        if megabytes >= LARGE_MB:
            large.append(row)
            small = ray.get(sender.exchange.remote(megabytes, SMALL_CHUNK_MB, options.turns))
            name = f"exchange/bandwidth_vs_memcpy_in_8_MB/{megabytes}_MB"
            yield speed_row(name, small["exchange"], small["memcpy"], None)
    if large:
        least = min(large, key=lambda row: row.value)
        yield Row("exchange/bandwidth_vs_memcpy", least.value, "x", GOAL, spread=least.spread)


def copy_in(options: argparse.Namespace) -> Iterator[Row]:
    """Into as many parameters as a block of layers has: nine to a layer."""
    num_params = COPY_IN_MB * MEGABYTE // 4
    view = from_payload(ray.get(ray.put(as_payload(torch.ones(num_params)))), torch.float32)
    source, target = torch.ones(num_params), torch.zeros(num_params)
    parameters = [torch.zeros(part.shape) for part in target.chunk(18)]
    seconds = in_turns(
        {
            "memcpy": lambda: seconds_of(lambda: target.copy_(source)),
            "copy_in": lambda: seconds_of(lambda: unflatten_into(view, parameters)),
        },
        options.turns,
    )
    yield speed_row("exchange/copy_in_vs_memcpy", seconds["copy_in"], seconds["memcpy"], None)


def slowdowns(sender: Any, options: argparse.Namespace) -> Iterator[Row]:
    def speed_beside(rate: float) -> float:
        return float(ray.get(sender.steps_per_s.remote(rate, SMALL_CHUNK_MB, options.train_s)))

    for rate in options.rates:
        note(f"training beside {rate:g} MB/s")
        found = in_turns({"alone": lambda: speed_beside(0.0), "beside": partial(speed_beside, rate)}, 3)
        ratios = [beside / alone for alone, beside in zip(found["alone"], found["beside"], strict=True)]
        yield median_row(f"exchange/training_speed/{rate:g}_MB_per_s", ratios, "ratio")


if __name__ == "__main__":
    main()
