"""The door between the driver and whatever carries out its plans."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from parablock_ray.algorithms.base import Commit, RoundPlan
from parablock_ray.algorithms.population import Population
from parablock_ray.checkpoint import Checkpoint
from parablock_ray.config import Config
from parablock_ray.tracking.evaluations import Evaluated
from parablock_ray.tracking.events import Committed, Event, KeptRank
from parablock_ray.training.data import FederatedData
from parablock_ray.training.engine import EngineMaker


@dataclass(frozen=True)
class RunSetup:
    """What every process of a run is made from. `make_engine` is `training.engine.make_engine` or, to measure the
    runtime alone, something that only takes as long as training would. `share_key`: from which clients draw their
    shares of the noise, with `privacy.noise: clients`; the server leaves it alone. `attempt`: no two starts of
    processes have the same, so that what is secret in one of them tells nothing of another."""

    config: Config
    population: Population
    data: FederatedData
    make_engine: EngineMaker
    share_key: bytes | None = None
    attempt: int = field(default_factory=lambda: secrets.randbits(62))


@dataclass(frozen=True)
class RuntimeInfo:
    """What the driver learns once everything is up."""

    num_workers: int


@dataclass(frozen=True)
class FinalState:
    """What is left when a run is over. `peak_rss_bytes` by process name."""

    weights_sha256: str
    peak_rss_bytes: dict[str, int]


class Runtime(Protocol):
    """Carries out plans. `SerialRuntime` is the reference; `RayRuntime` gives the same values, sooner."""

    def start(self) -> RuntimeInfo:
        """Load models and data everywhere; return when every process is ready to train."""
        ...

    def evaluate(self) -> float:
        """The master model's held-out loss."""
        ...

    def step_seconds(self, num_steps: int) -> Sequence[float]:
        """Median seconds of a local step by block, all workers at work at the same time. Before the first round."""
        ...

    def peak_rss_bytes(self) -> dict[str, int]:
        """The largest resident set so far of each process, by name."""
        ...

    def submit(self, plan: RoundPlan) -> None:
        """Hand out a round. Rounds come in order; the first one starts the run's clock."""
        ...

    def restore(self, saved: Checkpoint, plans: Sequence[RoundPlan], clock_s: float) -> None:
        """Go on from a checkpoint, where `plans` are of all rounds up to its own: after start, before the first round.
        The run's clock goes on from `clock_s`."""
        ...

    def checkpoint_at(self, round: int) -> None:
        """Write a checkpoint of this round too, whatever `checkpoint.every` says. None of the rounds from `staleness`
        rounds before it on was handed out yet."""
        ...

    def wait_for_checkpoint(self) -> None:
        """Until the last one that is complete is on the disk. Raises RunFailed where it could not be written."""
        ...

    def complete_checkpoint(self, round: int, about: Mapping[str, Any]) -> None:
        """What the driver keeps of the rounds up to this one is on the disk, so its checkpoint may be used, `about`
        (JSON) with it. Does not wait until it is written; raises RunFailed where an earlier one could not be."""
        ...

    def events(self) -> Sequence[Event]:
        """The events since the last call, at least one: waits for it. Raises RunFailed if a process failed."""
        ...

    def evaluations(self) -> Sequence[Evaluated]:
        """What is found of the rounds that are judged (`evaluation.every`), in their order, since the last call: never
        waits. Raises RunFailed if the evaluator failed."""
        ...

    def remaining_evaluations(self) -> Iterator[Evaluated]:
        """All that was not told yet, each as soon as it is found, after the last event: waits. Raises as above."""
        ...

    def finish(self, model_folder: Path) -> FinalState:
        """Write the master model to `model_folder`, after the last event. Checkpoints are written by then."""
        ...

    def close(self) -> None:
        """End every process of the run, whatever state it is in. Once is enough, twice does no harm."""
        ...


def worker_of(client: int, num_workers: int) -> int:
    """Where a client goes as long as nothing else is known: see `Assignment`."""
    return client % num_workers


def committed_event(commit: Commit, time_s: float, server_s: float) -> Committed:
    """What the driver is told of a commit. `server_s`: seconds for which the server computed for the round."""
    visits, num_examples = commit.plan.visits, commit.sum_of_weights
    return Committed(
        round=commit.plan.round,
        block=commit.plan.block,
        time_s=time_s,
        participants=tuple(visit.client for visit in visits),
        weights=tuple(visit.weight for visit in visits),
        num_examples=sum(each.num_examples for each in visits) if num_examples is None else num_examples,
        update_norm=commit.update_norm,
        server_s=server_s,
        refused=commit.refused,
        kept_ranks=tuple(KeptRank(**asdict(each)) for each in commit.module_ranks),
        unclipped=commit.unclipped,
    )
