"""What travels: one client's exchange of a round, chunk by chunk, over its own (possibly slow) link.

Payloads are flat numpy arrays in the wire dtype, one object per chunk; what arrives is read-only shared memory.
"""

import asyncio
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import ray
import torch
from torch import Tensor

from parablock_ray.algorithms.base import RoundPlan
from parablock_ray.network.links import Link
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


class Pacer:
    """One direction of a client's link, really taking the time that the link would take.

    Kept on an ideal schedule: a sleep that ends late does not push back what comes after it.
    """

    def __init__(self, seconds_for: Callable[[int], float]) -> None:
        self._seconds_for = seconds_for
        self._free_s = 0.0

    async def carry(self, num_bytes: int, ready_s: float) -> float:
        """Wait until bytes that are ready at `ready_s` have passed this direction; return when they began."""
        begin_s = max(ready_s, self._free_s)
        self._free_s = begin_s + self._seconds_for(num_bytes)
        await asyncio.sleep(max(0.0, self._free_s - time.time()))
        return begin_s


class Exchange:
    """One client's communication: uploads and downloads in order, `serial` (one thread for both) or `duplex`."""

    def __init__(
        self, client: int, worker: int, link: Link, pipeline: str, server: ray.actor.ActorHandle, inbox: Inbox
    ) -> None:
        self._client = client
        self._worker = worker
        self._server = server
        self._inbox = inbox
        self._latency_s = link.latency_s
        self._up, self._down = Pacer(link.up_s), Pacer(link.down_s)
        self._uplink, self._downlink = asyncio.Lock(), asyncio.Lock()
        self._thread = asyncio.Lock() if pipeline == "serial" else nullcontext()

    async def run(self, plan: RoundPlan, chunks: list[Tensor]) -> list[Span]:
        """Send the delta (in chunks), wait for the round's new value and receive it; the spans of both."""
        async with self._thread:
            async with self._uplink:
                upload = await self._upload(plan, chunks)
            async with self._downlink:
                download = await self._download(plan, [chunk.numel() * chunk.itemsize for chunk in chunks])
        return [upload, download]

    async def catch_up(self, plan: RoundPlan, num_bytes: int) -> Span:
        """What a client downloads before it may start, since it missed rounds.

        Only the time and the count: the values come to the worker, once for all the clients that it hosts.
        """
        async with self._downlink:
            start_s = await self._down.carry(num_bytes, time.time() + self._latency_s)
        return self._span("catch_up", plan, start_s, num_bytes)

    async def _upload(self, plan: RoundPlan, chunks: list[Tensor]) -> Span:
        ready_s = time.time()
        begins_s, sends, num_bytes = [], [], 0
        for index, chunk in enumerate(chunks):
            payload = as_payload(chunk)
            reference = ray.put(payload)  # before the wait: the copy hides behind the link
            begins_s.append(await self._up.carry(payload.nbytes, ready_s))
            sends.append(asyncio.create_task(self._deliver(plan.round, index, reference)))
            num_bytes += payload.nbytes
        await asyncio.gather(*sends)
        return self._span("upload", plan, begins_s[0], num_bytes)

    async def _deliver(self, round: int, chunk: int, reference: ray.ObjectRef) -> None:
        await asyncio.sleep(self._latency_s)
        await self._server.receive.remote(round, self._client, chunk, reference)

    async def _download(self, plan: RoundPlan, sizes_bytes: list[int]) -> Span:
        begins_s = []
        for chunk, num_bytes in enumerate(sizes_bytes):
            arrival = await self._inbox.chunk(plan.round, chunk)
            begins_s.append(await self._down.carry(num_bytes, arrival.published_s + self._latency_s))
        return self._span("download", plan, begins_s[0], sum(sizes_bytes))

    def _span(self, phase: Phase, plan: RoundPlan, start_s: float, num_bytes: int) -> Span:
        return Span(phase, plan.round, plan.block, self._client, self._worker, start_s, time.time(), num_bytes)
