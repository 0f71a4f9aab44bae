"""The reference: everything in one process, one thing after the other. Overlap changes none of its values."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from parablock_ray.algorithms.base import RoundPlan, Visit
from parablock_ray.algorithms.server import Commit
from parablock_ray.runtime.base import FinalState, RunSetup, RuntimeInfo, committed_event
from parablock_ray.runtime.memory import peak_rss_bytes
from parablock_ray.tracking.events import Event, Phase, Span
from parablock_ray.training.master import Master
from parablock_ray.training.worker import Worker


class SerialRuntime:
    def __init__(self, setup: RunSetup) -> None:
        self._setup = setup
        self._events: list[Event] = []
        self._started_s: float | None = None
        self._block_of: list[int] = []
        self._applied = -1
        self._wire_bytes = getattr(torch, setup.config.network.wire_dtype).itemsize

    def start(self) -> RuntimeInfo:
        config, traits, data = self._setup.config, self._setup.traits, self._setup.data
        torch.set_num_threads(config.workers.threads)
        on_gpu = torch.cuda.is_available() and config.workers.gpus_per_worker != 0
        device = torch.device("cuda" if on_gpu else "cpu")
        self._master = Master(config, traits, data)
        self._worker = Worker(config, traits, data, device, self._setup.make_engine)
        self._worker.warm_up()
        return RuntimeInfo(self._master.layout, num_workers=1)

    def evaluate(self) -> float:
        return self._master.evaluate()

    def submit(self, plan: RoundPlan) -> None:
        if self._started_s is None:
            self._started_s = time.monotonic()
        self._master.open(plan)
        self._block_of.append(plan.block)
        self._advance(plan.reads)
        for visit in plan.visits:
            self._visit(plan, visit)
        num_bytes = self._master.layout.blocks[plan.block].num_params * self._wire_bytes
        for visit in plan.visits:
            self._span("download", plan, visit, self._now_s(), num_bytes, None)

    def events(self) -> Sequence[Event]:
        events, self._events = self._events, []
        return events

    def finish(self, model_folder: Path) -> FinalState:
        self._master.export(model_folder)
        return FinalState(self._master.sha256(), {"driver": peak_rss_bytes()})

    def close(self) -> None:
        """Nothing to end: there is one process, the caller's."""

    def _advance(self, reads: int) -> None:
        """The worker's queue of length `staleness`: it takes exactly the aggregates up to `reads`."""
        changed = sorted({self._block_of[round] for round in range(self._applied + 1, reads + 1)})
        self._worker.advance(reads, [(block, self._master.value(block, reads)) for block in changed])
        self._applied = max(self._applied, reads)

    def _visit(self, plan: RoundPlan, visit: Visit) -> None:
        if visit.catch_up:
            num_bytes = self._master.layout.catch_up_params(visit) * self._wire_bytes
            self._span("catch_up", plan, visit, self._now_s(), num_bytes, None)
        start_s = self._now_s()
        trained = self._worker.train(plan, visit)
        self._span("compute", plan, visit, start_s, 0, trained.loss)
        start_s = self._now_s()
        for chunk, (start, end) in enumerate(self._master.bounds(plan.block)):
            for made in self._master.receive(plan.round, visit.client, chunk, trained.delta[start:end]):
                if isinstance(made, Commit):
                    self._events.append(committed_event(made, self._now_s()))
        self._span("upload", plan, visit, start_s, trained.delta.numel() * self._wire_bytes, None)

    def _span(
        self, phase: Phase, plan: RoundPlan, visit: Visit, start_s: float, num_bytes: int, loss: float | None
    ) -> None:
        span = Span(phase, plan.round, plan.block, visit.client, 0, start_s, self._now_s(), num_bytes, loss)
        self._events.append(span)

    def _now_s(self) -> float:
        assert self._started_s is not None
        return time.monotonic() - self._started_s
