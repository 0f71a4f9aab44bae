"""What travels: one client's exchange of a round, chunk by chunk, over its own (possibly slow) link.

Payloads are flat numpy arrays in the wire dtype, one object per chunk; what arrives is read-only shared memory.
"""

import asyncio
import time
import warnings
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import ray
import torch
from torch import Tensor

from parablock_ray.algorithms.base import RoundPlan
from parablock_ray.network.links import Line, Link
from parablock_ray.tracking.events import Phase, Span

warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def as_payload(values: Tensor) -> np.ndarray:
    """A CPU tensor as numpy without a copy; bf16, which numpy lacks, travels as int16."""
    return (values.view(torch.int16) if values.dtype == torch.bfloat16 else values).numpy()


def from_payload(payload: np.ndarray, dtype: torch.dtype) -> Tensor:
    """The tensor of `dtype` behind a payload, without a copy. Shared memory: read it, never write to it."""
    values = torch.from_numpy(payload)
    return values.view(torch.bfloat16) if dtype == torch.bfloat16 else values


@dataclass(frozen=True)
class Arrival:
    """A published chunk and when this worker heard of it (seconds, time.time())."""

    payload: np.ndarray
    published_s: float


class Inbox:
    """What the server has published, fetched once per worker however many of its clients wait for it."""

    def __init__(self, server: ray.actor.ActorHandle) -> None:
        self._server = server
        self._fetches: dict[tuple[int, int], asyncio.Task[Arrival]] = {}

    async def chunk(self, round: int, chunk: int) -> Arrival:
        """Wait until the server publishes this chunk of the round's block, and fetch it."""
        fetch = self._fetches.get((round, chunk))
        if fetch is None:
            fetch = asyncio.create_task(self._fetch(round, chunk))
            self._fetches[round, chunk] = fetch
        return await asyncio.shield(fetch)

    def take(self, round: int, num_chunks: int) -> list[np.ndarray] | None:
        """All chunks of a round if they are here, else None."""
        fetches = [self._fetches.get((round, chunk)) for chunk in range(num_chunks)]
        if not all(fetch is not None and fetch.done() for fetch in fetches):
            return None
        return [fetch.result().payload for fetch in fetches if fetch is not None]

    def forget(self, up_to_round: int) -> None:
        """Drop the rounds that the resident model has taken in."""
        for key in [key for key, fetch in self._fetches.items() if key[0] <= up_to_round and fetch.done()]:
            del self._fetches[key]

    async def _fetch(self, round: int, chunk: int) -> Arrival:
        [reference] = await self._server.published.remote(round, chunk)
        published_s = time.time()
        return Arrival(await reference, published_s)


class Exchange:
    """One client's communication: uploads and downloads in order, `serial` (one thread for both) or `duplex`."""

    def __init__(
        self, client: int, worker: int, link: Link, pipeline: str, server: ray.actor.ActorHandle, inbox: Inbox
    ) -> None:
        self._client = client
        self._worker = worker
        self._server = server
        self._inbox = inbox
        self._link = link
        self._up = Line()
        self._down = self._up if link.half_duplex else Line()
        self._downloads = asyncio.Lock()  # in round order
        self._thread = asyncio.Lock() if pipeline == "serial" else nullcontext()

    async def run(self, plan: RoundPlan, chunks: list[Tensor]) -> list[Span]:
        """Send the delta (in chunks) and receive the round's new value; the spans of both.

        Side by side: cut-through publishes the first chunks while the last ones are still on their way up.
        """
        async with self._thread:
            sizes_bytes = [_num_bytes(chunk) for chunk in chunks]
            return list(await asyncio.gather(self._upload(plan, chunks), self._download(plan, sizes_bytes)))

    async def catch_up(self, plan: RoundPlan, num_bytes: int) -> Span:
        """What a client downloads before it may start, since it missed rounds.

        Only the time and the count: the values come to the worker, once for all the clients that it hosts.
        """
        start_s, end_s = await self._receive(num_bytes, time.time())
        await _until(end_s)
        return self._span("catch_up", plan, start_s, num_bytes)

    async def _upload(self, plan: RoundPlan, chunks: list[Tensor]) -> Span:
        ready_s = time.time()
        # All at once, as the recurrence has it: on a half-duplex line no download may come between the chunks.
        passes = [self._up.take(ready_s, self._link.up_s(_num_bytes(chunk))) for chunk in chunks]
        sends = []
        for index, chunk in enumerate(chunks):
            reference = ray.put(as_payload(chunk))  # before the wait: the copy hides behind the link
            await _until(passes[index][1])
            sends.append(asyncio.create_task(self._deliver(plan.round, index, reference)))
        await asyncio.gather(*sends)
        return self._span("upload", plan, passes[0][0], sum(map(_num_bytes, chunks)))

    async def _deliver(self, round: int, chunk: int, reference: ray.ObjectRef) -> None:
        await asyncio.sleep(self._link.latency_s)
        await self._server.receive.remote(round, self._client, chunk, reference)

    async def _download(self, plan: RoundPlan, sizes_bytes: list[int]) -> Span:
        """The round's new value comes in as many chunks, of the same sizes, as the delta went out in."""
        async with self._downloads:
            # All asked for at once, so that no chunk waits for another's round trip.
            arrivals = [asyncio.create_task(self._inbox.chunk(plan.round, index)) for index in range(len(sizes_bytes))]
            passes = []
            for num_bytes, arrival in zip(sizes_bytes, arrivals, strict=True):
                passes.append(await self._receive(num_bytes, (await arrival).published_s))
            await _until(passes[-1][1])
        return self._span("download", plan, passes[0][0], sum(sizes_bytes))

    async def _receive(self, num_bytes: int, sent_s: float) -> tuple[float, float]:
        """Bytes that the server sends come to the client's line; when they begin and end to pass it."""
        ready_s = sent_s + self._link.latency_s
        await _until(ready_s)  # not before: an upload that is ready sooner goes first on a half-duplex line
        return self._down.take(ready_s, self._link.down_s(num_bytes))

    def _span(self, phase: Phase, plan: RoundPlan, start_s: float, num_bytes: int) -> Span:
        return Span(phase, plan.round, plan.block, self._client, self._worker, start_s, time.time(), num_bytes)


def _num_bytes(chunk: Tensor) -> int:
    return chunk.numel() * chunk.itemsize


async def _until(time_s: float) -> None:
    """Sleep on an ideal schedule: one sleep that ends late does not push back what comes after it."""
    await asyncio.sleep(max(0.0, time_s - time.time()))
