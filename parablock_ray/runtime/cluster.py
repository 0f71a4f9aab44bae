"""The Ray runtime: places the actors on a cluster, passes plans on and events back."""

import secrets
import statistics
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from parablock_ray.algorithms.base import RoundPlan
from parablock_ray.checkpoint import Checkpoint
from parablock_ray.errors import ProcessDied, RunFailed, UserError
from parablock_ray.network.links import paced_links
from parablock_ray.runtime.assignment import Assignment
from parablock_ray.runtime.base import FinalState, RunSetup, RuntimeInfo
from parablock_ray.runtime.client import ClientActor
from parablock_ray.runtime.connection import Connection, connect, disconnect, usable_cpus, will_be_warm
from parablock_ray.runtime.exchange import FULL, STORE_FULL
from parablock_ray.runtime.memory import ProcessMemory, peak_rss_bytes
from parablock_ray.runtime.placement import (
    NodeResources,
    Placement,
    has_core_to_spare,
    nodes,
    placement,
    reserve,
    server_node,
    without,
)
from parablock_ray.runtime.server import ServerActor, needed_bytes
from parablock_ray.tracking.evaluations import Evaluated
from parablock_ray.tracking.events import Committed, Dropped, Event

_PING_S = 5.0  # for an answer of a process that may be dead
_MAX_CONCURRENT_CALLS = 10_000  # long polls of many clients wait side by side in an actor


class RayRuntime:
    """`ClientActor` × workers, one `ServerActor` and, with `evaluation.every`, an `EvaluatorActor`; weights go between
    them and never through the driver."""

    def __init__(self, setup: RunSetup) -> None:
        self._setup = setup
        self._started_s: float | None = None
        self._connection: Connection | None = None
        self._server: Any = None  # actor handles, whose methods Ray makes up
        self._workers: list[Any] = []
        self._assignment: Assignment | None = None  # not before the number of workers is known
        self._places: PlacementGroup | None = None
        self._runs: list[ray.ObjectRef] = []
        self._news: ray.ObjectRef | None = None
        self._evaluator: Any = None
        self._snapshots: list[tuple[int, ray.ObjectRef]] = []  # by round, of which no evaluator was asked yet
        self._judged: list[ray.ObjectRef] = []  # in round order
        self._clock_s = 0.0  # where the run's clock starts
        self._completing: ray.ObjectRef | None = None
        # Actors are named by their role, which another run on the cluster uses too.
        self._namespace = f"{setup.config.name}-{secrets.token_hex(4)}"

    def start(self) -> RuntimeInfo:
        config = self._setup.config
        # Nobody else asks for memory of our own cluster, and the server's process there has the model's code before us.
        # A cluster that is joined, or takes stock of memory as it starts, comes after that import: `own_cluster_of`.
        server_memory = 0 if will_be_warm(config) else needed_bytes(self._setup)
        self._connection = connect(config)
        setup = self._shared(self._setup)
        links = self._shared(paced_links(config.network, config.clients.num, config.seed))
        there, here = nodes(), ray.get_runtime_context().get_node_id()
        server_on = server_node(there, here, server_memory)
        placed = self._placement(setup, links, without(there, server_on, server_memory))
        num_workers = placed.num_workers
        self._assignment = Assignment(num_workers)
        self._server = (
            ray.remote(ServerActor)
            .options(
                num_cpus=0,
                memory=server_memory,
                scheduling_strategy=NodeAffinitySchedulingStrategy(server_on.node_id, soft=False),
                **self._named("server"),
                **self._common_options(),
            )
            .remote(setup, num_workers, str(Path(config.out).resolve()))
        )
        if placed.memory_bytes:  # the server's share is kept before workers fill the rest
            self._get(self._server.peak_rss_bytes.remote())
        self._places = reserve(config.workers, placed)
        self._workers = [
            self._client_actor(placed, index, f"worker-{index}").remote(setup, index, num_workers, links, self._server)
            for index in range(num_workers)
        ]
        loads = [worker.load.remote() for worker in self._workers]
        if self._connection is Connection.WARM:
            server_node(there, here, self._get(self._server.needed_bytes.remote()))
        loading = self._server.load.remote()
        with_cores = real_cores(self._connection, there)
        if config.evaluation.every is not None and has_core_to_spare(config, with_cores, num_workers):
            self._start_evaluator(config.workers.threads)
        info = self._get(loading)
        for index, load in enumerate(loads):
            self._get(load, self._worker_name(index))
        self._runs = [worker.run.remote() for worker in self._workers]
        return cast(RuntimeInfo, info)

    def _placement(self, setup: ray.ObjectRef, links: ray.ObjectRef, there: Sequence[NodeResources]) -> Placement:
        """As the config has it; where it leaves the number open, by the memory that a worker takes when it is tried."""
        config = self._setup.config
        placed = placement(config, there, measured=None)
        if config.workers.num != "auto" or (placed.num_workers == 1 and not placed.gpus_each):
            return placed
        self._places = reserve(config.workers, replace(placed, num_workers=1))
        trial = self._client_actor(placed, 0, "trial").remote(setup, 0, 1, links, None)
        measured: ProcessMemory = self._get(trial.try_out.remote(), "the trial worker")
        ray.kill(trial)
        remove_placement_group(self._places)
        return placement(config, there, measured)

    def _client_actor(self, placed: Placement, index: int, role: str) -> Any:
        """At the place of that index among those reserved."""
        return ray.remote(ClientActor).options(
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._places, index),
            num_cpus=self._setup.config.workers.threads,
            num_gpus=placed.gpus_each,
            memory=placed.memory_bytes or None,
            **self._named(role),
            **self._common_options(),
        )

    def evaluate(self) -> float:
        return float(self._get(self._server.evaluate.remote()))

    def step_seconds(self, num_steps: int) -> Sequence[float]:
        config = self._setup.config
        at_work = self._workers[: config.clients.num]  # a worker beyond the clients has nothing to do in a run either
        return [self._seconds_on(at_work, block, num_steps) for block in range(config.method.num_blocks)]

    def _seconds_on(self, workers: Sequence[Any], block: int, num_steps: int) -> float:
        """The median over workers that train this block at the same time."""
        asked = [worker.step_seconds.remote(block, num_steps) for worker in workers]
        return statistics.median(float(self._get(each, self._worker_name(i))) for i, each in enumerate(asked))

    def peak_rss_bytes(self) -> dict[str, int]:
        peaks = {"driver": peak_rss_bytes(), "server": self._get(self._server.peak_rss_bytes.remote())}
        for index, worker in enumerate(self._workers):
            peaks[f"worker-{index}"] = self._get(worker.peak_rss_bytes.remote(), self._worker_name(index))
        if self._evaluator is not None:
            peaks["evaluator"] = self._get(self._evaluator.peak_rss_bytes.remote(), "the evaluator")
        return peaks

    def submit(self, plan: RoundPlan) -> None:
        self._get(self._server.open.remote(plan))
        if self._started_s is None:
            self._started_s = time.time() - self._clock_s
        assert self._assignment is not None
        clients: list[set[int]] = [set() for _ in self._workers]
        for visit, worker in zip(plan.visits, self._assignment.assign(plan), strict=True):
            clients[worker].add(visit.client)
        asked = [worker.submit.remote(plan, its) for worker, its in zip(self._workers, clients, strict=True)]
        for index, submitted in enumerate(asked):
            self._get(submitted, self._worker_name(index))  # before the next round: see ClientActor.submit
        if self._setup.config.evaluation.is_due(plan.round):
            self._snapshots.append((plan.round, self._server.snapshot.remote(plan.round)))
            if self._evaluator is not None:
                self._ask_evaluator()

    def restore(self, saved: Checkpoint, plans: Sequence[RoundPlan], clock_s: float) -> None:
        self._clock_s = clock_s
        assert self._assignment is not None
        self._assignment.restore(plans)
        shared = ray.put(list(plans))
        self._get(self._server.restore.remote(replace(saved, folder=saved.folder.resolve()), shared))
        for index, restored in enumerate([worker.restore.remote(shared) for worker in self._workers]):
            self._get(restored, self._worker_name(index))

    def complete_checkpoint(self, round: int, about: Mapping[str, Any]) -> None:
        self.wait_for_checkpoint()
        self._completing = self._server.complete_checkpoint.remote(round, about)

    def checkpoint_at(self, round: int) -> None:
        self._get(self._server.checkpoint_at.remote(round))

    def wait_for_checkpoint(self) -> None:
        if self._completing is not None:
            self._get(self._completing)

    def events(self) -> Sequence[Event]:
        if self._news is None:
            self._news = self._server.events.remote()
        ready, _ = ray.wait([self._news, *self._runs], num_returns=1)
        for reference in ready:
            if reference != self._news:
                self._get(reference, self._worker_name(self._runs.index(reference)))  # it only returns by raising
                raise AssertionError("a worker stopped without an error")
        events, self._news = self._get(self._news), None
        assert self._assignment is not None
        for event in events:
            self._assignment.note(event)
        return [_since(event, self._started_s) for event in events]

    def evaluations(self) -> Sequence[Evaluated]:
        evaluated = []
        while self._judged and ray.wait(self._judged[:1], timeout=0)[0]:
            evaluated.append(self._get(self._judged.pop(0), "the evaluator"))
        return evaluated

    def remaining_evaluations(self) -> Iterator[Evaluated]:
        if self._snapshots:  # no core was to spare; now those of the workers are
            self._start_evaluator(num_cpus=0)
            self._ask_evaluator()
        while self._judged:
            yield self._get(self._judged.pop(0), "the evaluator")

    def finish(self, model_folder: Path) -> FinalState:
        self.wait_for_checkpoint()
        sha256 = self._get(self._server.finish.remote(str(model_folder.resolve())))
        return FinalState(sha256, self.peak_rss_bytes())

    def close(self) -> None:
        for actor in [*self._workers, self._server, self._evaluator]:
            if actor is not None:
                ray.kill(actor)
        if self._places is not None:
            remove_placement_group(self._places)
        disconnect()
        self._workers, self._server, self._evaluator = [], None, None
        self._places = self._connection = None

    def _common_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"max_concurrency": _MAX_CONCURRENT_CALLS}
        if self._connection is not Connection.WARM:  # another environment would be for other processes than those
            options["runtime_env"] = {"env_vars": {"OMP_NUM_THREADS": str(self._setup.config.workers.threads)}}
        return options

    def _named(self, role: str) -> dict[str, Any]:
        """How the Ray dashboard shows an actor."""
        return {"name": role, "namespace": self._namespace}

    def _start_evaluator(self, num_cpus: int) -> None:
        """It takes no GPU: those are the workers'."""
        from parablock_ray.runtime.evaluator import EvaluatorActor  # its scorers take seconds to import

        options = {"num_cpus": num_cpus, **self._named("evaluator"), **self._common_options()}
        self._evaluator = ray.remote(EvaluatorActor).options(**options).remote(ray.put(self._setup))
        self._get(self._evaluator.load.remote(), "the evaluator")

    def _ask_evaluator(self) -> None:
        """About every snapshot there is or will be. With the last reference here goes the snapshot, once judged."""
        self._judged += [self._evaluator.judge.remote(round, snapshot) for round, snapshot in self._snapshots]
        self._snapshots.clear()

    def _shared(self, value: Any) -> ray.ObjectRef:
        try:
            return ray.put(value)
        except FULL:
            raise UserError(STORE_FULL) from None

    def _get(self, reference: ray.ObjectRef, process: str = "the server") -> Any:
        """The value that `process` answers with; what failed there, as RunFailed with the remote traceback."""
        try:
            return ray.get(reference)
        except ray.exceptions.RuntimeEnvSetupError as error:
            raise UserError(f"the cluster cannot set up the environment of {process}: {error}") from None
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            if isinstance(error.cause, FULL):
                raise UserError(STORE_FULL) from None
            self._raise_if_died()
            first_line = str(error.cause).partition("\n")[0]
            whose = "" if isinstance(error.cause, RunFailed) else f"{process}: "  # a client's work says it itself
            raise RunFailed(f"{whose}{first_line}\n\n{error}") from None
        except ray.exceptions.RayActorError as error:
            self._raise_if_died()
            raise ProcessDied(f"the process of {process} died: {error}", []) from None

    def _raise_if_died(self) -> None:
        """What failed may be the echo of another process that is gone. Raises ProcessDied."""
        hosted = [] if self._assignment is None else map(self._assignment.hosted, range(len(self._workers)))
        processes: list[tuple[str, Any, Sequence[int]]] = [
            ("the server", self._server, []),
            ("the evaluator", self._evaluator, []),
            *((self._worker_name(i), self._workers[i], clients) for i, clients in enumerate(hosted)),
        ]
        found = [(name, clients, _death(actor)) for name, actor, clients in processes if actor is not None]
        died = [(name, clients, death) for name, clients, death in found if death is not None]
        if died:
            told = "; ".join(f"the process of {name} died: {death}" for name, _, death in died)
            raise ProcessDied(told, [client for _, clients, _ in died for client in clients]) from None

    def _worker_name(self, index: int) -> str:
        """A worker for people: by the clients whose work it does, or would do in the first round."""
        assert self._assignment is not None
        hosted = self._assignment.hosted(index) or self._assignment.at_home(index, self._setup.config.clients.num)
        return f"worker {index} (clients {textwrap.shorten(', '.join(map(str, hosted)), 40, placeholder=' …')})"


def real_cores(connection: Connection, there: Sequence[NodeResources]) -> Sequence[NodeResources]:
    """The nodes with the CPUs that they have: of our own cluster Ray was told as many as there are processes."""
    return there if connection is Connection.JOINED else [NodeResources(usable_cpus(), num_gpus=0)]


def _death(actor: Any) -> str | None:
    """How this actor's process ended, in a line; None where it has not. One that does not answer at once is busy."""
    try:
        ray.get(actor.peak_rss_bytes.remote(), timeout=_PING_S)
    except ray.exceptions.GetTimeoutError:
        return None
    except ray.exceptions.RayActorError as error:
        return str(error).partition("\n")[0]
    return None


def _since(event: Event, started_s: float | None) -> Event:
    """The event on the run's clock instead of the wall's."""
    assert started_s is not None
    if isinstance(event, Committed):
        return replace(event, time_s=event.time_s - started_s)
    if isinstance(event, Dropped):
        return event
    return replace(event, start_s=event.start_s - started_s, end_s=event.end_s - started_s)
