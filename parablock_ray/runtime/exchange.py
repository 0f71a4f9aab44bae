"""What travels: one client's exchange of a round, chunk by chunk, over its own (possibly slow) link.

Payloads are flat numpy arrays in the wire dtype, one object per chunk; what arrives is read-only shared memory.
"""

import asyncio
import time
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import ray
import torch
from torch import Tensor

from parablock_ray.algorithms.base import RoundPlan, Sent, Update
from parablock_ray.errors import UserError
from parablock_ray.network.links import Line, Link
from parablock_ray.tracking.events import Phase, Span

# Ray tells the first where it may not spill to the disk, the second where the disk has no room either.
FULL = (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError)
STORE_FULL = (
    "the object store of a node is full, where weights and data are on their way, and so is the disk beside it. Either "
    "give the store more memory (`ray start --object-store-memory BYTES`, and /dev/shm of a container at least as "
    "large), or let less be under way: clients.max_in_flight, fewer clients.per_round, more method.num_blocks, or a "
    "narrower network.wire_dtype"
)

warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def as_payload(values: Tensor) -> np.ndarray:
    """A CPU tensor as numpy without a copy; bf16, which numpy lacks, travels as int16."""
    return (values.view(torch.int16) if values.dtype == torch.bfloat16 else values).numpy()


def from_payload(payload: np.ndarray, dtype: torch.dtype) -> Tensor:
    """The tensor of `dtype` behind a payload, without a copy. Shared memory: read it, never write to it."""
    values = torch.from_numpy(payload)
    return values.view(torch.bfloat16) if dtype == torch.bfloat16 else values


@dataclass(frozen=True)
class Stored:
    """A vector that is in the object store. Its bytes are `nbytes`, as a tensor's are."""

    reference: ray.ObjectRef
    nbytes: int


def put(values: Tensor) -> Stored:
    """Copy a CPU tensor into the object store. Raises UserError where that is full."""
    try:
        return Stored(ray.put(as_payload(values)), values.nbytes)
    except FULL:
        raise UserError(STORE_FULL) from None


def is_payload(payload: object, dtype: torch.dtype) -> bool:
    """Whether this could be what `as_payload` makes of a vector of `dtype`."""
    expected = as_payload(torch.empty(0, dtype=dtype)).dtype
    return isinstance(payload, np.ndarray) and payload.ndim == 1 and payload.dtype == expected


T = TypeVar("T")


class Stream(Generic[T]):
    """Items that come one by one, for any number of readers, each from the first item on."""

    def __init__(self) -> None:
        self.items: list[T] = []
        self.is_complete = False
        self._news = asyncio.Event()

    def put(self, item: T, is_last: bool) -> None:
        """Add an item and wake who waits for it."""
        self.items.append(item)
        self.is_complete = is_last
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def after(self, num_have: int) -> Sequence[T]:
        """The items beyond the first `num_have`: waits until there is one, if more are to come."""
        while len(self.items) <= num_have and not self.is_complete:
            await self._news.wait()
        return self.items[num_have:]

    async def each(self) -> AsyncIterator[T]:
        """All items, each as soon as it is there."""
        num_read = 0
        while items := await self.after(num_read):
            for item in items:
                yield item
            num_read += len(items)


@dataclass(frozen=True)
class Chunk:
    """A published chunk, by its index in the round's publication. A reference, so that no value travels with it."""

    index: int
    reference: ray.ObjectRef


@dataclass(frozen=True)
class Arrival:
    """A published chunk and when this worker heard of it (seconds, time.time())."""

    index: int
    payload: np.ndarray
    published_s: float


@dataclass
class _Publication:
    """What a round brings to clients of one variant, as far as it is here."""

    block: int
    chunks: Stream[Arrival]
    ranks: tuple[int, ...] = ()  # of LoRA: how to take the vector apart


class Inbox:
    """What the server has published, fetched once per worker however many of its clients wait for it.

    One call to the server at a time for a round and variant: calls that wait fill up the server's limit.
    `create_task` starts a fetch, whose failure must not be lost.
    """

    def __init__(
        self,
        server: ray.actor.ActorHandle,
        wire_dtype: torch.dtype,
        create_task: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._server = server
        self._create_task = create_task
        self._wire_dtype = wire_dtype
        self._publications: dict[tuple[int, int], _Publication] = {}  # by (round, variant)

    def expect(self, plan: RoundPlan, variant: int) -> Stream[Arrival]:
        """The chunks of a round's publication, from now on fetched as they are published."""
        key = plan.round, variant
        if key not in self._publications:
            self._publications[key] = _Publication(plan.block, Stream())
            self._create_task(self._fetch(*key))
        return self._publications[key].chunks

    def updates(self, after: int, up_to: int, variant: int) -> list[Update] | None:
        """The updates of these rounds if all of them are here, else None."""
        updates = []
        for round in range(after + 1, up_to + 1):
            made = self._publications.get((round, variant))
            if made is None or not made.chunks.is_complete:
                return None
            chunks = tuple(from_payload(each.payload, self._wire_dtype) for each in latest(made.chunks.items))
            updates.append(Update(round, made.block, variant, chunks, made.ranks))
        return updates

    def is_expected(self, after: int, up_to: int, variant: int) -> bool:
        """Whether this worker fetches the publications of all these rounds."""
        return all((round, variant) in self._publications for round in range(after + 1, up_to + 1))

    async def parts(self, after: int, up_to: int, variant: int) -> AsyncIterator[Update]:
        """The updates of these rounds, which are expected, in parts: each chunk as soon as it is here. Where a client
        was refused in mid-round the first chunks come again, with what replaces them."""
        for round in range(after + 1, up_to + 1):
            made, starts = self._publications[round, variant], [0]  # where each chunk begins, also when it comes again
            async for arrival in made.chunks.each():
                values, start = from_payload(arrival.payload, self._wire_dtype), starts[arrival.index]
                starts[arrival.index + 1 :] = [start + len(values)]
                yield Update(round, made.block, variant, (values,), start=start)

    def forget(self, up_to_round: int) -> None:
        """Drop the rounds that the resident model has taken in."""
        done = [key for key, made in self._publications.items() if key[0] <= up_to_round and made.chunks.is_complete]
        for key in done:
            del self._publications[key]

    async def _fetch(self, round: int, variant: int) -> None:
        made = self._publications[round, variant]
        stream = made.chunks
        while not stream.is_complete:
            num_have = len(stream.items)
            chunks, is_complete, made.ranks = await self._server.published.remote(round, variant, num_have)
            published_s = time.time()
            for place, chunk in enumerate(chunks):
                is_last = is_complete and place == len(chunks) - 1
                stream.put(Arrival(chunk.index, await chunk.reference, published_s), is_last)


def latest(arrivals: Sequence[Arrival]) -> list[Arrival]:
    """Every chunk of a publication once, in order, as it came last: where an update was refused in mid-round
    the first chunks come again."""
    by_index = {arrival.index: arrival for arrival in arrivals}
    return [by_index[index] for index in range(len(by_index))]


class Outbox:
    """What a worker's clients send. One message to the server at a time; what is ready meanwhile goes with the next:
    with many clients a call for each chunk costs more than the chunk.

    `is_limited`: the server takes so many updates at a time, and has to be asked.
    """

    def __init__(self, server: ray.actor.ActorHandle, is_limited: bool) -> None:
        self._server = server
        self._is_limited = is_limited
        self._ready: dict[Sent, ray.ObjectRef] = {}
        self._sending = asyncio.Lock()

    async def room(self, round: int, client: int) -> None:
        """Until the server takes this client's upload."""
        if self._is_limited:
            await self._server.room.remote(round, client)

    async def deliver(self, sent: Sent, reference: ray.ObjectRef) -> None:
        """Answers when the server has it."""
        self._ready[sent] = reference
        async with self._sending:
            if sent not in self._ready:
                return  # it went with another
            ready, self._ready = self._ready, {}
            # The references apart from each other: only then does Ray send what is behind them.
            await self._server.receive_all.remote(list(ready), *ready.values())


class Exchange:
    """One client's communication: uploads and downloads in order, `serial` (one thread for both) or `duplex`."""

    def __init__(
        self,
        client: int,
        worker: int,
        link: Link,
        pipeline: str,
        outbox: Outbox,
        inbox: Inbox,
    ) -> None:
        self._client = client
        self._worker = worker
        self._outbox = outbox
        self._inbox = inbox
        self._link = link
        self._up = Line()
        self._down = self._up if link.half_duplex else Line()
        self._downloads = asyncio.Lock()  # in round order
        self._one_at_a_time = asyncio.Lock() if pipeline == "serial" else nullcontext()

    async def run(
        self, plan: RoundPlan, variant: int, chunks: list[Tensor | Stored], downloaded: asyncio.Event
    ) -> list[Span]:
        """Send the upload (in chunks) and receive what the round brings; the spans of both. `chunks` is used up: what
        is on its way is in the object store, and need not be here too. `downloaded` is set as soon as the download is
        complete, which may be before the server has answered the upload: of the last one it commits the round first.

        Side by side: cut-through publishes the first chunks while the last ones are still on their way up.
        """
        async with self._one_at_a_time:
            return list(await asyncio.gather(self._upload(plan, chunks), self._download(plan, variant, downloaded)))

    async def catch_up(self, plan: RoundPlan, num_bytes: int) -> Span:
        """What a client downloads before it may start, since it missed rounds.

        Only the time and the count: the values come to the worker, once for all the clients that it hosts.
        """
        start_s, end_s = await self._receive(num_bytes, time.time())
        await _until(end_s)
        return self._span("catch_up", plan, start_s, num_bytes)

    async def _upload(self, plan: RoundPlan, chunks: list[Tensor | Stored]) -> Span:
        await self._outbox.room(plan.round, self._client)
        ready_s = time.time()
        # All at once, as the recurrence has it: on a half-duplex line no download may come between the chunks.
        num_bytes = [chunk.nbytes for chunk in chunks]
        passes = [self._up.take(ready_s, self._link.up_s(each)) for each in num_bytes]
        sends = []
        for index, (_, end_s) in enumerate(passes):
            chunk = chunks.pop(0)
            # Before the wait, which hides the copy, if that is not made yet.
            stored = put(chunk) if isinstance(chunk, Tensor) else chunk
            del chunk
            await _until(end_s)
            sent = Sent(plan.round, plan.block, self._client, index)
            sends.append(asyncio.create_task(self._deliver(sent, stored.reference)))
        await asyncio.gather(*sends)
        return self._span("upload", plan, passes[0][0], sum(num_bytes))

    async def _deliver(self, sent: Sent, reference: ray.ObjectRef) -> None:
        await asyncio.sleep(self._link.latency_s)
        await self._outbox.deliver(sent, reference)

    async def _download(self, plan: RoundPlan, variant: int, downloaded: asyncio.Event) -> Span:
        """What the round brings, chunk after chunk, each as soon as it is published and the line is free."""
        arrivals = self._inbox.expect(plan, variant)  # before the lock: it may be published while another comes in
        async with self._downloads:
            passes = [await self._receive(each.payload.nbytes, each.published_s) async for each in arrivals.each()]
            await _until(passes[-1][1])
        downloaded.set()
        num_bytes = sum(arrival.payload.nbytes for arrival in latest(arrivals.items))
        return self._span("download", plan, passes[0][0], num_bytes)

    async def _receive(self, num_bytes: int, sent_s: float) -> tuple[float, float]:
        """Bytes that the server sends come to the client's line; when they begin and end to pass it."""
        ready_s = sent_s + self._link.latency_s
        await _until(ready_s)  # not before: an upload that is ready sooner goes first on a half-duplex line
        return self._down.take(ready_s, self._link.down_s(num_bytes))

    def _span(self, phase: Phase, plan: RoundPlan, start_s: float, num_bytes: int) -> Span:
        return Span(phase, plan.round, plan.block, self._client, self._worker, start_s, time.time(), num_bytes)


async def _until(time_s: float) -> None:
    """Sleep on an ideal schedule: one sleep that ends late does not push back what comes after it."""
    await asyncio.sleep(max(0.0, time_s - time.time()))
