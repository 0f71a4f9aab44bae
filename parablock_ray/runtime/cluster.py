"""The Ray runtime: starts or joins a cluster, places the actors, passes plans on and events back."""

import os
import secrets
import socket
import statistics
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor
from pathlib import Path
from typing import Any, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from parablock_ray.algorithms.base import RoundPlan
from parablock_ray.checkpoint import Checkpoint
from parablock_ray.config import Config
from parablock_ray.errors import RunFailed, UserError
from parablock_ray.evaluation.evaluator import Evaluated
from parablock_ray.network.links import paced_links
from parablock_ray.runtime.base import FinalState, RunSetup, RuntimeInfo, worker_of
from parablock_ray.runtime.client import ClientActor
from parablock_ray.runtime.evaluator import EvaluatorActor
from parablock_ray.runtime.memory import peak_rss_bytes
from parablock_ray.runtime.server import ServerActor
from parablock_ray.tracking.events import Committed, Event

_GPU_UNITS = 10_000  # Ray counts GPUs in such parts
_CONNECT_TIMEOUT_S = 5.0
_MAX_CONCURRENT_CALLS = 10_000  # long polls of many clients wait side by side in an actor


class RayRuntime:
    """`ClientActor` × workers, one `ServerActor` and, with `evaluation.every`, an `EvaluatorActor`; weights go between
    them and never through the driver."""

    def __init__(self, setup: RunSetup) -> None:
        self._setup = setup
        self._started_s: float | None = None
        self._owns_cluster = False
        self._server: Any = None  # actor handles, whose methods Ray makes up
        self._workers: list[Any] = []
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
        self._owns_cluster = connect(config)
        num_workers, gpus_each = placement(config, nodes())
        setup = ray.put(self._setup)
        common = self._common_options()
        # It shares the driver's run folder; an actor that asks for nothing Ray would put on any node.
        beside_driver = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._server = (
            ray.remote(ServerActor)
            .options(num_cpus=0, scheduling_strategy=beside_driver, **self._named("server"), **common)
            .remote(setup, num_workers, str(Path(config.out).resolve()))
        )
        room = {"num_cpus": config.workers.threads, "num_gpus": gpus_each, **common}
        links = ray.put(paced_links(config.network, config.clients.num, config.seed))
        self._workers = [
            ray.remote(ClientActor)
            .options(**self._named(f"worker-{index}"), **room)
            .remote(setup, index, num_workers, links, self._server)
            for index in range(num_workers)
        ]
        loads = [worker.load.remote() for worker in self._workers]
        if config.evaluation.every is not None and has_core_to_spare(config, nodes(), num_workers):
            self._start_evaluator(config.workers.threads)
        info = self._get(self._server.load.remote())
        for index, load in enumerate(loads):
            self._get(load, self._worker_name(index))
        self._runs = [worker.run.remote() for worker in self._workers]
        return cast(RuntimeInfo, info)

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
        for index, submitted in enumerate([worker.submit.remote(plan) for worker in self._workers]):
            self._get(submitted, self._worker_name(index))  # before the next round: see ClientActor.submit
        if self._setup.config.evaluation.is_due(plan.round):
            self._snapshots.append((plan.round, self._server.snapshot.remote(plan.round)))
            if self._evaluator is not None:
                self._ask_evaluator()

    def restore(self, saved: Checkpoint, plans: Sequence[RoundPlan], clock_s: float) -> None:
        self._clock_s = clock_s
        shared = ray.put(list(plans))
        self._get(self._server.restore.remote(replace(saved, folder=saved.folder.resolve()), shared))
        for index, restored in enumerate([worker.restore.remote(shared) for worker in self._workers]):
            self._get(restored, self._worker_name(index))

    def complete_checkpoint(self, round: int, about: Mapping[str, Any]) -> None:
        self._wait_for_checkpoint()
        self._completing = self._server.complete_checkpoint.remote(round, about)

    def _wait_for_checkpoint(self) -> None:
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
        self._wait_for_checkpoint()
        sha256 = self._get(self._server.finish.remote(str(model_folder.resolve())))
        return FinalState(sha256, self.peak_rss_bytes())

    def close(self) -> None:
        for actor in [*self._workers, self._server, self._evaluator]:
            if actor is not None:
                ray.kill(actor)
        if self._owns_cluster:
            ray.shutdown()
        self._workers, self._server, self._evaluator, self._owns_cluster = [], None, None, False

    def _common_options(self) -> dict[str, Any]:
        environment = {"env_vars": {"OMP_NUM_THREADS": str(self._setup.config.workers.threads)}}
        return {"max_concurrency": _MAX_CONCURRENT_CALLS, "runtime_env": environment}

    def _named(self, role: str) -> dict[str, Any]:
        """How the Ray dashboard shows an actor."""
        return {"name": role, "namespace": self._namespace}

    def _start_evaluator(self, num_cpus: int) -> None:
        """It takes no GPU: those are the workers'."""
        options = {"num_cpus": num_cpus, **self._named("evaluator"), **self._common_options()}
        self._evaluator = ray.remote(EvaluatorActor).options(**options).remote(ray.put(self._setup))
        self._get(self._evaluator.load.remote(), "the evaluator")

    def _ask_evaluator(self) -> None:
        """About every snapshot there is or will be. With the last reference here goes the snapshot, once judged."""
        self._judged += [self._evaluator.judge.remote(round, snapshot) for round, snapshot in self._snapshots]
        self._snapshots.clear()

    def _get(self, reference: ray.ObjectRef, process: str = "the server") -> Any:
        """The value that `process` answers with; what failed there, as RunFailed with the remote traceback."""
        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            first_line = str(error.cause).partition("\n")[0]
            whose = "" if isinstance(error.cause, RunFailed) else f"{process}: "  # a client's work says it itself
            raise RunFailed(f"{whose}{first_line}\n\n{error}") from None
        except ray.exceptions.RayActorError as error:
            raise RunFailed(f"the process of {process} died: {error}") from None

    def _worker_name(self, index: int) -> str:
        """A worker for people: by the clients whose work it does."""
        clients = range(self._setup.config.clients.num)
        hosted = ", ".join(str(client) for client in clients if worker_of(client, len(self._workers)) == index)
        return f"worker {index} (clients {textwrap.shorten(hosted, 40, placeholder=' …')})"


def connect(config: Config) -> bool:
    """Join the cluster that this process belongs to, else start one on this machine; return whether we started it."""
    if ray.is_initialized():
        return False
    if os.environ.get("RAY_ADDRESS"):
        join(os.environ["RAY_ADDRESS"])
        return False
    wanted = config.workers.num * config.workers.threads if config.workers.num != "auto" else 0
    ray.init(
        address="local",  # a new one, whatever else runs on this machine
        num_cpus=max(os.cpu_count() or 1, wanted),  # asking for more workers than cores is slow, not wrong
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    return True


def join(address: str) -> None:
    """Join the cluster at RAY_ADDRESS. Raises UserError where nobody answers there, it asks for another token than
    ours, or it was started with another Ray or Python."""
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit() and "/" not in host:
            socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_S).close()  # Ray would try for minutes
        ray.init(log_to_driver=False, logging_level="ERROR")
    except OSError as error:  # also all that some versions of Ray say to another version, or to a wrong token
        raise UserError(
            f"RAY_ADDRESS: no Ray cluster that takes us answers at {address} ({error!r}); start one of Ray "
            f"{ray.__version__}, unset RAY_ADDRESS or, if the cluster has a token, set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH"
        ) from None
    except ray.exceptions.AuthenticationError:
        raise UserError(
            f"RAY_ADDRESS: the cluster at {address} needs its token, and there is none here; set RAY_AUTH_TOKEN_PATH "
            "to the file that holds it"
        ) from None
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            raise
        told = " ".join(str(error).split())
        raise UserError(f"RAY_ADDRESS: {told}; use the Ray and the Python of the cluster") from None


@dataclass(frozen=True)
class NodeResources:
    """What Ray may give to actors on one node."""

    num_cpus: int
    num_gpus: int


def nodes() -> list[NodeResources]:
    """The nodes of the cluster that are alive."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [NodeResources(int(each.get("CPU", 0)), int(each.get("GPU", 0))) for each in resources]


def placement(config: Config, nodes: Sequence[NodeResources]) -> tuple[int, float]:
    """(number of workers, GPUs for each). A worker's CPUs and its share of a GPU are on one node.

    Raises UserError where the cluster cannot hold them.
    """
    num_cpus, num_gpus = sum(node.num_cpus for node in nodes), sum(node.num_gpus for node in nodes)
    threads, num_asked, wanted = config.workers.threads, config.workers.num, config.workers.gpus_per_worker
    if wanted == "auto":  # a GPU for each worker, or its share where more workers are asked for than there are GPUs
        sharing = 1 if num_asked == "auto" else -(-num_asked // max(num_gpus, 1))
        gpus_each = floor(_GPU_UNITS / sharing) / _GPU_UNITS if num_gpus else 0.0
    else:
        gpus_each = float(wanted)
        sharing = floor(1 / gpus_each + 1 / _GPU_UNITS) if gpus_each else 0
    capacity = sum(
        min(node.num_cpus // threads, node.num_gpus * sharing) if gpus_each else node.num_cpus // threads
        for node in nodes
    )
    cohort = config.clients.per_round or config.clients.num
    num_workers = min(capacity, cohort) if num_asked == "auto" else num_asked
    if not 1 <= num_workers <= capacity:
        raise UserError(
            f"workers.num: {num_asked} workers of {threads} threads and {gpus_each:g} GPUs, but the cluster has "
            f"{num_cpus} CPUs and {num_gpus} GPUs on {len(nodes)} node(s): room for {capacity}"
        )
    return num_workers, gpus_each


def has_core_to_spare(config: Config, nodes: Sequence[NodeResources], num_workers: int) -> bool:
    """Whether `workers.threads` CPUs are left on a node, wherever the workers are."""
    return sum(node.num_cpus // config.workers.threads for node in nodes) > num_workers


def _since(event: Event, started_s: float | None) -> Event:
    """The event on the run's clock instead of the wall's."""
    assert started_s is not None
    if isinstance(event, Committed):
        return replace(event, time_s=event.time_s - started_s)
    return replace(event, start_s=event.start_s - started_s, end_s=event.end_s - started_s)
