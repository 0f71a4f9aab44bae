"""A client's process: one task trains, another exchanges, and neither waits for the other without need.

An `async def` actor gives no overlap by itself: its code runs on one event loop. So training runs in a thread of its
own, and only the exchange lives on the loop.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import ray
import torch
from torch import Tensor

from parablock_ray.algorithms.base import RoundPlan, Visit
from parablock_ray.algorithms.population import Attendance
from parablock_ray.algorithms.wire import Wire
from parablock_ray.config import Config
from parablock_ray.errors import UserError
from parablock_ray.network.links import Link
from parablock_ray.runtime.base import RunSetup, worker_of
from parablock_ray.runtime.exchange import FULL, STORE_FULL, Exchange, Inbox, Outbox, Stored, from_payload, put
from parablock_ray.runtime.memory import ProcessMemory, limit_device_memory, peak_rss_bytes, process_memory
from parablock_ray.runtime.secure import Masking
from parablock_ray.sizes import control_bytes_of
from parablock_ray.tracking.events import Dropped, Phase, Span
from parablock_ray.training.masking import secure_terms
from parablock_ray.training.worker import Worker, named

T = TypeVar("T")


@dataclass(frozen=True)
class _Round:
    """A round as this worker sees it: its own visits, and what they wait for before they may start."""

    plan: RoundPlan
    visits: Sequence[Visit]
    inputs: Sequence[asyncio.Task[None]]


def way_out(config: Config) -> Callable[[Tensor], Tensor | Stored]:
    """What a worker does with a chunk as soon as it is made: into the object store, where it can leave at once. What
    has to wait, for its link or for room at the server, or to be masked, waits in the worker's own memory."""
    waits = config.network.mode != "none" or config.clients.max_in_flight is not None
    return torch.clone if waits or config.secure_aggregation.enabled else put


class ClientActor:
    """Hosts the clients of one worker (one, or many simulated ones in turn) around one resident model."""

    def __init__(
        self, setup: RunSetup, index: int, num_workers: int, links: Mapping[int, Link], server: ray.actor.ActorHandle
    ) -> None:
        config = setup.config
        self._links = links
        self._pipeline = config.network.pipeline
        self._index = index
        self._num_workers = num_workers
        self._server = server
        self._wire = Wire.of(config.network)
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(config.workers.threads,))
        self._setup = setup
        self._plans: asyncio.Queue[tuple[RoundPlan, Collection[int]]] = asyncio.Queue()
        self._attendance = Attendance(all_start=not setup.population.is_sampled)
        self._inbox = Inbox(server, self._wire.dtype, lambda fetch: self._tasks.create_task(fetch))
        self._outbox = Outbox(server, is_limited=config.clients.max_in_flight is not None)
        self._put = way_out(config)
        self._exchanges: dict[int, Exchange] = {}
        # By client and round: exchanges that are not over. The event is set when the download is, which may be sooner.
        self._under_way: defaultdict[int, dict[int, asyncio.Event]] = defaultdict(dict)
        self._spans: defaultdict[tuple[int, int], list[Span]] = defaultdict(list)  # (round, client) → what it took
        self._reports: asyncio.Queue[list[Span]] = asyncio.Queue()
        self._applied: dict[int, int] = {}  # variant → the last round of its that the resident model has taken in
        self._masking: Masking | None = None  # where the server sees sums only

    async def load(self) -> None:
        """Load the model; answers once the worker is ready to train at full speed. Before all else.

        Not in `__init__`, of whose errors Ray keeps only the text: a user's mistake must stay one.
        """
        setup, share = self._setup, ray.get_runtime_context().get_assigned_resources().get("GPU", 0)
        self._device = torch.device("cuda" if share else "cpu")
        limit_device_memory(self._device, share)
        self._worker = await self._run(
            lambda: Worker(setup.config, setup.population, setup.data, self._device, setup.make_engine, setup.share_key)
        )
        await self._run(self._worker.warm_up)
        if setup.config.secure_aggregation.enabled:
            terms = secure_terms(setup.config, setup.population, setup.attempt)
            self._masking = Masking(terms, self._server, self._links, lambda task: self._tasks.create_task(task))

    async def try_out(self) -> ProcessMemory:
        """`load`, of an actor that does nothing else: what memory a worker takes until it has taken a step."""
        await self.load()
        return process_memory(self._device)

    async def step_seconds(self, block: int, num_steps: int) -> float:
        """Median seconds of a local step; see `Worker.step_seconds`."""
        everyone = range(self._setup.config.clients.num)
        clients = [client for client in everyone if worker_of(client, self._num_workers) == self._index]
        return await self._run(lambda: self._worker.step_seconds(block, clients, num_steps))

    async def restore(self, plans: Sequence[RoundPlan]) -> None:
        """These rounds are over: what its clients have sent in the last ones is pending. Before the first round."""
        for plan in plans:
            self._attendance.note(plan)
        for plan, visit, payload in await self._server.pending.remote(self._index):
            self._worker.remember(plan, visit, from_payload(payload, self._wire.dtype))

    async def submit(self, plan: RoundPlan, clients: Collection[int]) -> None:
        """Queue a round, in which these clients visit this worker. Every worker gets every plan, also those in which
        none does.

        Rounds must come in order: Ray may carry out calls to an async actor in another order than that of sending,
        so each call is waited for before the next.
        """
        self._plans.put_nowait((plan, clients))

    async def peak_rss_bytes(self) -> int:
        return peak_rss_bytes()

    async def run(self) -> None:
        """Work until the actor is ended. Raises what went wrong first, in training or in an exchange."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                rounds: asyncio.Queue[_Round] = asyncio.Queue()
                self._tasks.create_task(self._prepare_rounds(rounds))
                self._tasks.create_task(self._report())
                await self._train_rounds(rounds)
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _prepare_rounds(self, rounds: "asyncio.Queue[_Round]") -> None:
        """Each round as soon as it is planned: what its clients must download first need not wait for the trainer."""
        while True:
            plan, clients = await self._plans.get()
            self._attendance.note(plan)
            visits = [visit for visit in plan.visits if visit.client in clients]
            for visit in visits:
                self._under_way[visit.client][plan.round] = asyncio.Event()
            behind = [visit.client for visit in visits if self._is_behind(plan, visit)]
            catch_up = self._tasks.create_task(self._catch_up_bytes(plan, behind))
            inputs = [self._tasks.create_task(self._until_readable(plan, visit, catch_up)) for visit in visits]
            if self._masking is not None and visits:
                self._masking.begin(plan, [visit.client for visit in visits])
            rounds.put_nowait(_Round(plan, visits, inputs))

    async def _train_rounds(self, rounds: "asyncio.Queue[_Round]") -> None:
        """The compute task: rounds in order, this worker's clients one after the other."""
        current = await rounds.get()
        idle_since_s = time.time()  # not from earlier on: the run's clock starts with its first plan
        while True:
            plan, visits = current.plan, current.visits
            if visits:
                variants = {visit.variant for visit in visits}
                await self._take_in_early(plan.reads, variants)
                await asyncio.gather(*current.inputs)
                await self._take_in(plan.reads, variants)
                for visit in visits:
                    self._note("wait", plan, visit, idle_since_s, None)
                for visit in visits:
                    await self._train_and_send(plan, visit)
                idle_since_s = time.time()
            current = await rounds.get()

    async def _train_and_send(self, plan: RoundPlan, visit: Visit) -> None:
        """Answers when the trainer is free again: what there is to send goes on beside it."""
        chunks = await self._train(plan, visit)
        if chunks is not None:
            self._inbox.expect(plan, visit.variant)  # before the next round asks whether it comes
            self._tasks.create_task(self._exchange(plan, visit, chunks))

    async def _until_readable(self, plan: RoundPlan, visit: Visit, catch_up: asyncio.Task[dict[int, int]]) -> None:
        """Wait until this client holds x^{(≤ reads)}: by its own downloads, or by catching up."""
        under_way = self._under_way[visit.client]
        for downloaded in [downloaded for round, downloaded in under_way.items() if round <= plan.reads]:
            await downloaded.wait()
        if self._is_behind(plan, visit):
            asked = await catch_up
            if visit.client not in asked:  # it was left out of a round since
                asked = await self._catch_up_bytes(plan, [visit.client])
            num_bytes = asked[visit.client]
            if num_bytes:
                span = await self._exchange_of(visit.client).catch_up(plan, num_bytes)
                self._spans[plan.round, visit.client].append(span)

    def _is_behind(self, plan: RoundPlan, visit: Visit) -> bool:
        """Whether its own downloads do not bring it to x^{(≤ reads)}."""
        missed = self._attendance.missed(visit.client, plan.round)
        return bool(missed) or self._attendance.joins_late(visit.client, plan.round)

    async def _catch_up_bytes(self, plan: RoundPlan, clients: Sequence[int]) -> dict[int, int]:
        """What each of these clients must download before this round, known once what it reads is part of the model.

        In one call for all of them, which also waits for that: calls that wait fill up the server's limit.
        """
        if not clients:
            return {}
        num_bytes = await self._server.catch_up_bytes.remote(clients, plan.round, plan.reads)
        return dict(zip(clients, num_bytes, strict=True))

    async def _take_in_early(self, reads: int, variants: set[int]) -> None:
        """The trainer has nothing else to do: write each chunk into the model as soon as it is published, while the
        rest is made and while it passes the clients' links. Answers when all that can come so is in."""
        for variant in sorted(variants):
            after = self._applied.get(variant, -1)
            if self._worker.takes_parts and self._inbox.is_expected(after, reads, variant):
                async for part in self._inbox.parts(after, reads, variant):
                    await self._run(partial(self._worker.apply, part))
                self._applied[variant] = max(after, reads)

    async def _take_in(self, reads: int, variants: set[int]) -> None:
        """Move the resident model to x^{(≤ reads)}: by what its clients downloaded, or by what all of them missed."""
        for variant in sorted(variants):
            after = self._applied.get(variant, -1)
            updates = self._inbox.updates(after, reads, variant)
            if updates is None:
                updates = [
                    replace(update, chunks=(from_payload(await reference, update.values.dtype),))
                    for update, reference in await self._server.updates.remote(after, reads, variant)
                ]
            await self._run(partial(self._worker.advance, reads, updates))
            self._applied[variant] = max(after, reads)
        self._inbox.forget(reads)
        self._tasks.create_task(self._tell_taken_in(reads))  # nobody waits for it

    async def _tell_taken_in(self, reads: int) -> None:
        await self._server.taken_in.remote(self._index, reads)

    async def _train(self, plan: RoundPlan, visit: Visit) -> list[Tensor | Stored] | None:
        """One client's visit, in the training thread; the chunks that it sends. None: it failed, and the round goes on
        without."""
        start_s = time.time()
        trained = await self._run(lambda: self._worker.train_or_drop(plan, visit, self._put))
        if isinstance(trained, Dropped):
            await self._drop(trained)
            return None
        self._note("compute", plan, visit, start_s, trained.loss)
        return trained.chunks

    async def _drop(self, dropped: Dropped) -> None:
        """The client has no part in this round, and will catch up on it."""
        del self._spans[dropped.round, dropped.client]
        self._attendance.drop(dropped.round, dropped.client)
        await self._server.drop.remote(dropped)
        self._end_exchange(dropped.round, dropped.client)

    async def _exchange(self, plan: RoundPlan, visit: Visit, chunks: list[Tensor | Stored]) -> None:
        """The exchange task of one visit. It ends the visit, so it reports all of it, in one message. Uses the chunks
        up."""
        with named(plan, visit):
            if self._masking is not None:
                plain = [chunk for chunk in chunks if isinstance(chunk, Tensor)]  # all: none is stored as it is
                chunks[:] = await self._masking.mask(plan.round, visit.client, plain)
                del plain
            try:
                downloaded = self._under_way[visit.client][plan.round]
                exchanged = await self._exchange_of(visit.client).run(plan, visit.variant, chunks, downloaded)
            except FULL:  # the server's; of this one `put` tells
                raise UserError(STORE_FULL) from None
        self._end_exchange(plan.round, visit.client)
        # Nobody's next round waits until it is told.
        self._reports.put_nowait([*self._spans.pop((plan.round, visit.client)), *self._with_control(plan, exchanged)])

    def _with_control(self, plan: RoundPlan, exchanged: Sequence[Span]) -> list[Span]:
        """What travels beside the vectors counts with them."""
        control = control_bytes_of(self._setup.config, len(plan.visits))
        beside = {"upload": control.up, "download": control.down}
        return [replace(span, num_bytes=span.num_bytes + beside[span.phase]) for span in exchanged]

    def _end_exchange(self, round: int, client: int) -> None:
        """Of a client that has nothing under way nothing is kept: there may be very many."""
        under_way = self._under_way[client]
        under_way.pop(round).set()
        if not under_way:
            del self._under_way[client]
            self._exchanges.pop(client, None)  # there is none of a client that was left out of its only round

    async def _report(self) -> None:
        """One message at a time; what ends meanwhile goes with the next."""
        while True:
            spans = await self._reports.get()
            while not self._reports.empty():
                spans += self._reports.get_nowait()
            await self._server.report.remote(spans)

    def _note(self, phase: Phase, plan: RoundPlan, visit: Visit, start_s: float, loss: float | None) -> None:
        span = Span(phase, plan.round, plan.block, visit.client, self._index, start_s, time.time(), 0, loss)
        self._spans[plan.round, visit.client].append(span)

    def _exchange_of(self, client: int) -> Exchange:
        if client not in self._exchanges:
            link = self._links[client]
            self._exchanges[client] = Exchange(client, self._index, link, self._pipeline, self._outbox, self._inbox)
        return self._exchanges[client]

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
