"""The reference: everything in one process, one thing after the other. Overlap changes none of its values."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parablock_ray.algorithms.base import Commit, Publication, RoundPlan, Sent, Visit
from parablock_ray.algorithms.wire import Wire
from parablock_ray.checkpoint import Checkpoint
from parablock_ray.runtime.base import FinalState, RunSetup, RuntimeInfo, committed_event
from parablock_ray.runtime.memory import peak_rss_bytes
from parablock_ray.sizes import control_bytes_of
from parablock_ray.tracking.evaluations import Evaluated
from parablock_ray.tracking.events import Dropped, Event, Phase, Span
from parablock_ray.training.engine import device_of
from parablock_ray.training.masking import MaskedUploads, secure_terms
from parablock_ray.training.master import Master
from parablock_ray.training.uploads import write_uploads
from parablock_ray.training.worker import Trained, Worker


class SerialRuntime:
    def __init__(self, setup: RunSetup) -> None:
        self._setup = setup
        self._events: list[Event] = []
        self._evaluated: list[Evaluated] = []
        self._started_s: float | None = None
        self._applied: Counter[int] = Counter()  # variant → so many rounds of its publications are taken in
        self._published_bytes: Counter[tuple[int, int]] = Counter()  # (round, variant) → payload
        self._wire = Wire.of(setup.config.network)
        self._clock_s = 0.0  # where the run's clock starts
        self._completing: Future[None] | None = None

    def start(self) -> RuntimeInfo:
        config, population, data = self._setup.config, self._setup.population, self._setup.data
        torch.set_num_threads(config.workers.threads)
        self._master = Master(config, population, data, Path(config.out), self._setup.attempt)
        if config.secure_aggregation.enabled:
            self._masked = MaskedUploads(secure_terms(config, population, self._setup.attempt))
        device, make_engine = device_of(config.workers), self._setup.make_engine
        self._worker = Worker(config, population, data, device, make_engine, self._setup.share_key)
        self._worker.warm_up()
        if config.evaluation.every is not None:
            from parablock_ray.evaluation.evaluator import Evaluator  # its scorers take seconds to import

            self._evaluator = Evaluator(config, data)
        return RuntimeInfo(num_workers=1)

    def evaluate(self) -> float:
        return self._master.evaluate()

    def step_seconds(self, num_steps: int) -> Sequence[float]:
        config = self._setup.config
        clients = range(config.clients.num)
        return [self._worker.step_seconds(block, clients, num_steps) for block in range(config.method.num_blocks)]

    def peak_rss_bytes(self) -> dict[str, int]:
        return {"driver": peak_rss_bytes()}

    def submit(self, plan: RoundPlan) -> None:
        if self._started_s is None:
            self._started_s = time.monotonic() - self._clock_s
        self._master.open(plan)
        self._server_s = 0.0
        self._agree(plan)
        self._advance(plan)
        taking_part = [visit for visit in plan.visits if self._visit(plan, visit)]
        self._unmask(plan)
        control = control_bytes_of(self._setup.config, len(plan.visits))
        for visit in taking_part:
            num_bytes, now_s = self._published_bytes[plan.round, visit.variant] + control.down, self._now_s()
            self._span("download", plan, visit, now_s, now_s, num_bytes, None)
        if self._setup.config.evaluation.is_due(plan.round):
            self._judge(plan.round)

    def restore(self, saved: Checkpoint, plans: Sequence[RoundPlan], clock_s: float) -> None:
        self._clock_s = clock_s
        for plan, visit, upload in self._master.restore(saved, plans):
            self._worker.remember(plan, visit, upload)

    def complete_checkpoint(self, round: int, about: Mapping[str, Any]) -> None:
        self.wait_for_checkpoint()
        self._completing = self._master.checkpoints.complete(round, about)

    def checkpoint_at(self, round: int) -> None:
        self._master.checkpoints.also_at(round)

    def wait_for_checkpoint(self) -> None:
        if self._completing is not None:
            self._completing.result()

    def events(self) -> Sequence[Event]:
        events, self._events = self._events, []
        return events

    def evaluations(self) -> Sequence[Evaluated]:
        evaluated, self._evaluated = self._evaluated, []
        return evaluated

    def remaining_evaluations(self) -> Iterator[Evaluated]:
        return iter(self.evaluations())

    def finish(self, model_folder: Path) -> FinalState:
        self.wait_for_checkpoint()
        return FinalState(self._master.export(model_folder), self.peak_rss_bytes())

    def close(self) -> None:
        """Nothing to end: there is one process, the caller's."""

    def _judge(self, round: int) -> None:
        """The run's clock stands still meanwhile."""
        assert self._started_s is not None
        before_s = time.monotonic()
        self._evaluated.append(self._evaluator.evaluate(round, self._master.weights()))
        self._started_s += time.monotonic() - before_s

    def _agree(self, plan: RoundPlan) -> None:
        """With secure aggregation: keys and shares, so that the round's clients can mask."""
        if self._master.secure is None:
            return
        keys = self._masked.keys(plan, [visit.client for visit in plan.visits])
        key_lists = self._master.secure.take_keys(plan.round, keys)
        shares = self._masked.share(plan.round, key_lists)
        self._masked.take_shares(plan.round, self._master.secure.take_shares(plan.round, shares))

    def _unmask(self, plan: RoundPlan) -> None:
        """With secure aggregation: everybody has sent, or will not."""
        if self._master.secure is not None:
            reveals = self._masked.reveal(plan.round, self._master.secure.survivors(plan.round))
            self._make_public(self._master.take_reveals(plan.round, reveals))

    def _advance(self, plan: RoundPlan) -> None:
        """The worker's queue of length `staleness`: it takes exactly the aggregates up to `reads`."""
        for variant in sorted({visit.variant for visit in plan.visits}):
            after = self._applied[variant] - 1
            self._worker.advance(plan.reads, self._master.server.updates(after, plan.reads, variant))
            self._applied[variant] = max(after, plan.reads) + 1
        self._master.server.forget(plan.reads)

    def _visit(self, plan: RoundPlan, visit: Visit) -> bool:
        """Whether the client takes part."""
        num_missed = self._master.server.catch_up_params(visit.client, plan.round)
        start_s = self._now_s()
        trained: Trained[Tensor] | Dropped = self._worker.train_or_drop(plan, visit, put=torch.clone)
        if isinstance(trained, Dropped):
            self._events.append(trained)
            self._make_public(self._master.drop(trained))
            return False
        if num_missed:
            self._span("catch_up", plan, visit, start_s, start_s, self._wire.num_bytes(num_missed), None)
        self._span("compute", plan, visit, start_s, self._now_s(), 0, trained.loss)
        start_s = self._now_s()
        is_masked = self._master.secure is not None
        chunks = self._masked.mask(plan.round, visit.client, trained.chunks) if is_masked else trained.chunks
        for index, chunk in enumerate(chunks):
            sent = Sent(plan.round, plan.block, visit.client, index)
            self._make_public(self._master.receive(sent, chunk))
        num_bytes = sum(chunk.nbytes for chunk in chunks)
        control = control_bytes_of(self._setup.config, len(plan.visits))
        self._span("upload", plan, visit, start_s, self._now_s(), num_bytes + control.up, None)
        return True

    def _make_public(self, made_public: Iterator[Publication | Commit | Dropped]) -> None:
        start_s = self._now_s()
        for made in made_public:
            if isinstance(made, Commit):
                server_s = self._server_s + self._now_s() - start_s
                write_uploads(Path(self._setup.config.out), made.plan.round, made.uploads)
                self._events.append(committed_event(made, self._now_s(), server_s))
            elif isinstance(made, Dropped):
                self._events.append(made)
            else:
                if made.chunk == 0:  # they may come again
                    self._published_bytes[made.round, made.variant] = 0
                self._published_bytes[made.round, made.variant] += made.values.nbytes
        self._server_s += self._now_s() - start_s

    def _span(
        self,
        phase: Phase,
        plan: RoundPlan,
        visit: Visit,
        start_s: float,
        end_s: float,
        num_bytes: int,
        loss: float | None,
    ) -> None:
        span = Span(phase, plan.round, plan.block, visit.client, 0, start_s, end_s, num_bytes, loss)
        self._events.append(span)

    def _now_s(self) -> float:
        assert self._started_s is not None
        return time.monotonic() - self._started_s
