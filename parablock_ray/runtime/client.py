"""A client's process: one task trains, another exchanges, and neither waits for the other without need.

An `async def` actor gives no overlap by itself: its code runs on one event loop. So training runs in a thread of its
own, and only the exchange lives on the loop.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import ray
import torch
from torch import Tensor

from parablock_ray.algorithms.base import RoundPlan, Visit
from parablock_ray.network.links import Link
from parablock_ray.runtime.base import RunSetup, worker_of
from parablock_ray.runtime.exchange import Exchange, Inbox, from_payload
from parablock_ray.runtime.memory import peak_rss_bytes
from parablock_ray.tracking.events import Phase, Span
from parablock_ray.training.worker import Worker, named

T = TypeVar("T")


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
        self._wire_dtype: torch.dtype = getattr(torch, config.network.wire_dtype)
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(config.workers.threads,))
        self._setup = setup
        self._plans: asyncio.Queue[RoundPlan] = asyncio.Queue()
        self._inbox = Inbox(server)
        self._exchanges: dict[int, Exchange] = {}
        self._under_way: dict[tuple[int, int], asyncio.Task[None]] = {}  # (round, client) → its exchange
        self._spans: defaultdict[tuple[int, int], list[Span]] = defaultdict(list)  # (round, client) → what it took
        self._visited: dict[int, int] = {}  # round → block, of rounds that the resident model has not taken in

    async def load(self) -> None:
        """Load the model; answers once the worker is ready to train at full speed. Before all else.

        Not in `__init__`, of whose errors Ray keeps only the text: a user's mistake must stay one.
        """
        setup, device = self._setup, torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        self._worker = await self._run(
            lambda: Worker(setup.config, setup.traits, setup.data, device, setup.make_engine)
        )
        await self._run(self._worker.warm_up)

    async def submit(self, plan: RoundPlan) -> None:
        """Queue a round. Every worker gets every plan, also those in which none of its clients takes part.

        Rounds must come in order: Ray may carry out calls to an async actor in another order than that of sending,
        so each call is waited for before the next.
        """
        self._plans.put_nowait(plan)

    async def peak_rss_bytes(self) -> int:
        return peak_rss_bytes()

    async def run(self) -> None:
        """Work until the actor is ended. Raises what went wrong first, in training or in an exchange."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                await self._train_rounds()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _train_rounds(self) -> None:
        """The compute task: rounds in order, this worker's clients one after the other."""
        plan = await self._plans.get()
        idle_since_s = time.time()  # not from earlier on: the run's clock starts with its first plan
        while True:
            self._visited[plan.round] = plan.block
            visits = [visit for visit in plan.visits if worker_of(visit.client, self._num_workers) == self._index]
            if visits:
                await self._until_readable(plan, visits)
                await self._take_in(plan.reads)
                for visit in visits:
                    self._note("wait", plan, visit, idle_since_s, None)
                for visit in visits:
                    chunks = await self._train(plan, visit)
                    exchange = self._tasks.create_task(self._exchange(plan, visit, chunks))
                    self._under_way[plan.round, visit.client] = exchange
                idle_since_s = time.time()
            plan = await self._plans.get()

    async def _until_readable(self, plan: RoundPlan, visits: Sequence[Visit]) -> None:
        """Wait until each of these clients holds x^{(≤ reads)}: by its own download, or by catching up."""
        clients = {visit.client for visit in visits}
        readable = {key: task for key, task in self._under_way.items() if key[0] <= plan.reads}
        await asyncio.gather(*(task for (_, client), task in readable.items() if client in clients))
        if plan.reads >= 0 and not any((plan.reads, client) in readable for client in clients):
            await self._server.committed.remote(plan.reads)
        self._under_way = {key: task for key, task in self._under_way.items() if key[0] > plan.reads or not task.done()}
        await asyncio.gather(*(self._catch_up(plan, visit) for visit in visits if visit.catch_up))

    async def _catch_up(self, plan: RoundPlan, visit: Visit) -> None:
        num_bytes = self._worker.layout.catch_up_params(visit) * self._wire_dtype.itemsize
        self._spans[plan.round, visit.client].append(await self._exchange_of(visit.client).catch_up(plan, num_bytes))

    async def _take_in(self, reads: int) -> None:
        """Move the resident model to x^{(≤ reads)}: what its clients downloaded, and what none of them took part in."""
        latest = {block: round for round, block in sorted(self._visited.items()) if round <= reads}
        payloads = {block: await self._payloads(block, round, reads) for block, round in latest.items()}
        await self._run(lambda: self._worker.advance(reads, self._joined(payloads)))
        self._inbox.forget(reads)
        self._visited = {round: block for round, block in self._visited.items() if round > reads}

    async def _payloads(self, block: int, round: int, reads: int) -> list[np.ndarray]:
        received = self._inbox.take(round, len(self._worker.bounds(block)))
        return received or [await self._server.value.remote(block, reads)]

    def _joined(self, payloads: Mapping[int, list[np.ndarray]]) -> Iterator[tuple[int, Tensor]]:
        """(block, flat value), one block at a time: the chunks of one are joined when its turn comes."""
        for block, chunks in payloads.items():
            yield block, torch.cat([from_payload(chunk, self._wire_dtype) for chunk in chunks])

    async def _train(self, plan: RoundPlan, visit: Visit) -> list[Tensor]:
        """One client's visit, in the training thread; its delta in chunks."""
        start_s = time.time()
        trained = await self._run(lambda: self._worker.train(plan, visit))
        self._note("compute", plan, visit, start_s, trained.loss)
        return [trained.delta[start:end] for start, end in self._worker.bounds(plan.block)]

    async def _exchange(self, plan: RoundPlan, visit: Visit, chunks: list[Tensor]) -> None:
        """The exchange task of one visit. It ends the visit, so it reports all of it, in one message."""
        with named(plan, visit):
            exchanged = await self._exchange_of(visit.client).run(plan, chunks)
        spans = [*self._spans.pop((plan.round, visit.client)), *exchanged]
        self._tasks.create_task(self._report(spans))  # nobody's next round waits for it

    async def _report(self, spans: list[Span]) -> None:
        await self._server.report.remote(spans)

    def _note(self, phase: Phase, plan: RoundPlan, visit: Visit, start_s: float, loss: float | None) -> None:
        span = Span(phase, plan.round, plan.block, visit.client, self._index, start_s, time.time(), 0, loss)
        self._spans[plan.round, visit.client].append(span)

    def _exchange_of(self, client: int) -> Exchange:
        if client not in self._exchanges:
            link = self._links[client]
            self._exchanges[client] = Exchange(client, self._index, link, self._pipeline, self._server, self._inbox)
        return self._exchanges[client]

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
