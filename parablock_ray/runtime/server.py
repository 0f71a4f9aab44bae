"""The server's process: a thin shell around `Master` that takes chunks in and hands published ones out."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
import torch
from torch import Tensor

from parablock_ray.algorithms.base import Commit, Publication, RoundPlan, Sent, Update, Visit
from parablock_ray.algorithms.wire import Wire
from parablock_ray.checkpoint import Checkpoint
from parablock_ray.errors import UserError
from parablock_ray.runtime.base import RunSetup, RuntimeInfo, committed_event, worker_of
from parablock_ray.runtime.exchange import Chunk, Stream, as_payload, from_payload, is_payload
from parablock_ray.runtime.in_flight import InFlight
from parablock_ray.runtime.memory import peak_rss_bytes
from parablock_ray.runtime.secure import Messages
from parablock_ray.server_memory import first_traffic, server_bytes
from parablock_ray.tracking.events import Committed, Dropped, Event, Span
from parablock_ray.training.master import Master
from parablock_ray.training.model import model_shapes
from parablock_ray.training.uploads import write_uploads

T = TypeVar("T")


class ServerActor:
    """Sums, steps, commits, publishes. Arithmetic runs in one thread of its own, a second one copies what it makes into
    the object store, and messages are on the event loop."""

    def __init__(self, setup: RunSetup, num_workers: int, run_folder: str) -> None:
        config = setup.config
        self._run_folder = Path(run_folder)
        self._num_workers = num_workers
        self._wire, self._upload_wire = Wire.of(config.network), Wire.of_uploads(config)
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(config.workers.threads,))
        self._publisher = ThreadPoolExecutor(1)
        self._publishing: Future[None] | None = None  # the last chunk that it was given
        self._setup = setup
        self._in_flight = InFlight(config.clients.max_in_flight)
        self._published: dict[tuple[int, int], Stream[Chunk]] = {}  # (round, variant) → its chunks
        self._ranks: dict[tuple[int, int], tuple[int, ...]] = {}  # the same → how to take it apart
        self._committed: dict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self._snapshots: dict[int, asyncio.Future[ray.ObjectRef]] = {}  # round that is judged → the model after it
        self._server_s: defaultdict[int, float] = defaultdict(float)  # round → seconds that it has computed for it
        self._taken_in = [-1] * num_workers
        self._num_downloads_due: dict[int, int] = {}
        self._pending: list[tuple[RoundPlan, Visit, Tensor]] = []  # of a resumed run
        # Of secure aggregation by round and step: what all clients are told once all have said their part.
        self._told: defaultdict[tuple[int, str], asyncio.Future[Messages]] = defaultdict(
            lambda: asyncio.get_running_loop().create_future()
        )
        self._events: list[Event] = []
        self._news = asyncio.Event()

    async def load(self) -> RuntimeInfo:
        """Load the model. Before all else; not in `__init__`, see ClientActor.load."""
        setup = self._setup
        if not (self._run_folder / "config.yaml").exists():
            raise UserError(
                f"out: the server does not see {self._run_folder}, where it must write the model; choose a folder that "
                "driver and server share"
            )
        self._master = await self._run(
            lambda: Master(setup.config, setup.population, setup.data, self._run_folder, setup.attempt)
        )
        return RuntimeInfo(self._num_workers)

    def needed_bytes(self) -> int:
        """Of this run's server."""
        return needed_bytes(self._setup)

    async def restore(self, saved: Checkpoint, plans: Sequence[RoundPlan]) -> None:
        """Go on from a checkpoint; before the first round."""
        self._pending = await self._run(lambda: self._master.restore(saved, plans))
        for plan in plans:
            self._committed[plan.round].set()

    async def pending(self, worker: int) -> list[tuple[RoundPlan, Visit, np.ndarray]]:
        """After `restore`: what this worker's clients sent in earlier rounds and has not come back to them."""
        mine = [each for each in self._pending if worker_of(each[1].client, self._num_workers) == worker]
        return [(plan, visit, as_payload(upload)) for plan, visit, upload in mine]

    async def complete_checkpoint(self, round: int, about: Mapping[str, Any]) -> None:
        """This round's checkpoint may be used; answers when it is written."""
        # In the thread that begins checkpoints: the commit is told first, so out here this one might not have begun.
        written = await self._run(lambda: self._master.checkpoints.complete(round, about))
        await asyncio.wrap_future(written)

    async def open(self, plan: RoundPlan) -> None:
        """Expect this round's updates; comes before any of them."""
        self._master.open(plan)
        self._in_flight.open(plan, self._master.num_chunks(plan))
        self._num_downloads_due[plan.round] = len(plan.visits)
        for visit in plan.visits:
            self._published[plan.round, visit.variant] = Stream()
        if self._setup.config.evaluation.is_due(plan.round):
            self._snapshots[plan.round] = asyncio.get_running_loop().create_future()

    async def room(self, round: int, client: int) -> None:
        """Wait until this client may send its upload of this round: see InFlight."""
        await self._in_flight.wait(round, client)

    async def receive_all(self, chunks: Sequence[Sent], *payloads: np.ndarray) -> None:
        """Several chunks, of any rounds and clients."""
        await asyncio.gather(*map(self.receive, chunks, payloads))

    async def receive(self, sent: Sent, payload: np.ndarray) -> None:
        """One chunk of one client's upload."""
        dtype = self._upload_wire.dtype
        values = from_payload(payload, dtype) if is_payload(payload, dtype) else None
        made_public = self._master.receive(sent, values)
        await self._run(partial(self._make_public, sent.round, made_public, asyncio.get_running_loop()))
        self._in_flight.arrived(sent.round, sent.client)
        await self._name_survivors(sent.round)

    async def drop(self, dropped: Dropped) -> None:
        """The round goes on without this client, which has sent nothing of it. Raises RunFailed where too few are
        left."""
        self._tell(dropped)  # before the commit
        made_public = self._master.drop(dropped)
        await self._run(partial(self._make_public, dropped.round, made_public, asyncio.get_running_loop()))
        self._in_flight.drop(dropped.round, dropped.client)
        self._count_download(dropped.round)
        await self._name_survivors(dropped.round)

    async def keys(self, round: int, messages: Messages) -> Messages:
        """Of secure aggregation: keys of some of a round's clients; what these are told, once all clients' are here."""
        assert self._master.secure is not None
        return await self._answered(round, "keys", self._master.secure.take_keys, messages)

    async def shares(self, round: int, messages: Messages) -> Messages:
        """Sealed shares, likewise."""
        assert self._master.secure is not None
        return await self._answered(round, "shares", self._master.secure.take_shares, messages)

    async def survivors(self, round: int, clients: Sequence[int]) -> Messages:
        """What those of these clients are told whose vectors are in the round's sum, once that is fixed."""
        told = await self._told[round, "survivors"]
        return {client: told[client] for client in clients if client in told}

    async def reveal(self, round: int, messages: Messages) -> None:
        """What those clients give to unmask the sum."""
        made_public = self._master.take_reveals(round, messages)
        await self._run(partial(self._make_public, round, made_public, asyncio.get_running_loop()))

    async def checkpoint_at(self, round: int) -> None:
        """See Runtime.checkpoint_at."""
        self._master.checkpoints.also_at(round)

    async def published(self, round: int, variant: int, num_have: int) -> tuple[Sequence[Chunk], bool, tuple[int, ...]]:
        """Wait for what a round brings beyond the first `num_have` chunks that it published; whether that is all of it;
        its ranks. A chunk whose index there was before takes the place of that one."""
        stream = self._published[round, variant]
        chunks = await stream.after(num_have)
        return chunks, stream.is_complete, self._ranks.get((round, variant), ())

    async def snapshot(self, round: int) -> list[ray.ObjectRef]:
        """Wait for the model as it is after this round, one that is judged: payloads by name. To be asked once.

        In a list, so that the reference travels and not the weights.
        """
        reference = await self._snapshots[round]
        del self._snapshots[round]
        return [reference]

    async def updates(self, after: int, up_to: int, variant: int) -> list[tuple[Update, ray.ObjectRef]]:
        """What leads a reader that missed publications to x^{(≤ up_to)}; the values apart: references to payloads."""
        updates = await self._run(lambda: self._master.server.updates(after, up_to, variant))
        return [
            (replace(update, chunks=(update.values[:0].clone(),)), ray.put(as_payload(update.values)))
            for update in updates
        ]

    async def taken_in(self, worker: int, reads: int) -> None:
        """This worker's model is x^{(≤ reads)}: what leads there is kept until all of them are so far."""
        self._taken_in[worker] = max(reads, self._taken_in[worker])
        await self._run(lambda: self._master.server.forget(min(self._taken_in)))

    async def catch_up_bytes(self, clients: Sequence[int], round: int, reads: int) -> list[int]:
        """What each of these clients must download before this round, since it missed some. Waits until what the round
        reads is part of the model."""
        if reads >= 0:
            await self._committed[reads].wait()
        return [self._wire.num_bytes(self._master.server.catch_up_params(client, round)) for client in clients]

    async def report(self, spans: Sequence[Span]) -> None:
        """What clients tell of themselves; a published value is dropped when its last reader has it."""
        for span in spans:
            self._tell(span)
            if span.phase == "download":
                self._count_download(span.round)

    async def events(self) -> list[Event]:
        """The events since the last call: waits for at least one."""
        await self._news.wait()
        self._news.clear()
        events, self._events = self._events, []
        return events

    async def evaluate(self) -> float:
        return await self._run(self._master.evaluate)

    async def finish(self, model_folder: str) -> str:
        """Write the model; return its sha256."""
        return await self._run(lambda: self._master.export(Path(model_folder)))

    async def peak_rss_bytes(self) -> int:
        return peak_rss_bytes()

    async def _answered(
        self, round: int, step: str, take: Callable[[int, Messages], Messages], messages: Messages
    ) -> Messages:
        told = self._told[round, step]
        if answers := await self._run(lambda: take(round, messages)):
            told.set_result(answers)
        answers = await told
        return {client: answers[client] for client in messages}

    async def _name_survivors(self, round: int) -> None:
        """Once nobody's vector is missing any more."""
        if self._master.secure is None:
            return
        if told := await self._run(partial(self._master.secure.survivors, round)):
            self._told[round, "survivors"].set_result(told)

    def _refused(self, dropped: Dropped) -> None:
        self._tell(dropped)  # before the commit
        self._in_flight.drop(dropped.round, dropped.client)

    def _make_public(
        self, round: int, made_public: Iterator[Publication | Commit | Dropped], loop: asyncio.AbstractEventLoop
    ) -> None:
        """In the thread, where all the work of `round` is done: hand what is made to the loop, a chunk while the next
        is made. Answers when all of it is there."""
        start_s = time.perf_counter()
        for made in made_public:
            if isinstance(made, Dropped):
                loop.call_soon_threadsafe(self._refused, made)
            elif isinstance(made, Publication):
                self._until_published()
                self._ranks[made.round, made.variant] = made.ranks
                self._publishing = self._publisher.submit(self._publish, made, loop)
            else:
                self._until_published()  # a commit is told after what it made public
                server_s = self._server_s.pop(made.plan.round, 0.0) + time.perf_counter() - start_s
                write_uploads(self._run_folder, made.plan.round, made.uploads)
                loop.call_soon_threadsafe(self._commit, committed_event(made, time.time(), server_s))
                if self._setup.config.evaluation.is_due(made.plan.round):  # now: the next chunk may change the model
                    self._keep_snapshot(made.plan.round, loop)
                start_s = time.perf_counter()
        self._until_published()
        self._server_s[round] += time.perf_counter() - start_s

    def _until_published(self) -> None:
        """One chunk at a time is on its way into the store; after one that did not get there this raises, always."""
        if self._publishing is not None:
            self._publishing.result()

    def _publish(self, made: Publication, loop: asyncio.AbstractEventLoop) -> None:
        chunk = Chunk(made.chunk, ray.put(as_payload(made.values)))
        loop.call_soon_threadsafe(self._published[made.round, made.variant].put, chunk, made.is_last)

    def _keep_snapshot(self, round: int, loop: asyncio.AbstractEventLoop) -> None:
        """In the thread: one copy, from the model into the object store."""
        payloads = {name: as_payload(values) for name, values in self._master.weights().items()}
        loop.call_soon_threadsafe(self._snapshots[round].set_result, ray.put(payloads))

    def _commit(self, commit: Committed) -> None:
        self._committed[commit.round].set()
        self._tell(commit)

    def _tell(self, event: Event) -> None:
        self._events.append(event)
        self._news.set()

    def _count_download(self, round: int) -> None:
        self._num_downloads_due[round] -= 1
        if self._num_downloads_due[round] == 0:
            del self._num_downloads_due[round]
            for key in [key for key in self._published if key[0] == round]:
                del self._published[key]
                self._ranks.pop(key, None)  # there are none of what nobody was left to read
            for step in [step for step in self._told if step[0] == round]:
                del self._told[step]

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def needed_bytes(setup: RunSetup) -> int:
    """The memory of a run's server, as `parablock plan` tells it."""
    shapes = model_shapes(setup.config.model.name)
    most = first_traffic(setup.config, setup.population, shapes)
    return sum(server_bytes(setup.config, shapes, most).values())
