"""The Ray cluster of this process: the one that it belongs to, or its own."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from pathlib import Path

import ray

from parablock_ray.config import Config
from parablock_ray.config.schema import WorkersConfig
from parablock_ray.errors import UserError

_CONNECT_TIMEOUT_S = 5.0
# Ray frees what nobody refers to any more once a second, and what comes until then lies elsewhere: in pages of memory
# that the process does not have yet, which makes a put four times as long (docs/performance.md, Exchange).
FREE_OBJECTS_PERIOD_MS = 100
_FREES = "RAY_free_objects_period_milliseconds"
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # cgroup 2: microseconds of CPU time, and of the time that they are for


class Connection(Enum):
    """What kind of cluster it is."""

    JOINED = auto()
    OURS = auto()
    WARM = auto()  # ours, and what we start there finds processes that have begun to load what it needs


_ours: Connection | None = None  # of the cluster that this process has started, and ends


def connect(config: Config) -> Connection:
    """Join the cluster that this process belongs to, else start one on this machine. Called again, with the same
    `workers`, it does nothing. Raises UserError as `join` does."""
    global _ours
    if ray.is_initialized():
        return _ours or Connection.JOINED
    _ours = None  # were it left, somebody else has ended it
    if os.environ.get("RAY_ADDRESS"):
        join(os.environ["RAY_ADDRESS"])
        return Connection.JOINED
    _ours = _start(config.workers)
    return _ours


def will_be_warm(config: Config) -> bool:
    """Whether `connect` will say so."""
    if ray.is_initialized():
        return _ours is Connection.WARM
    return not os.environ.get("RAY_ADDRESS") and _is_warm(config.workers)


def disconnect() -> None:
    """End the cluster, if this process has started it."""
    global _ours
    if _ours is not None:
        ray.shutdown()
        _ours = None


def _start(workers: WorkersConfig) -> Connection:
    """Ray starts a process for each CPU at once, before anybody asks for one. Where it is known how many there will
    be, it is told of so many CPUs, whatever the machine has, and they load what they will need."""
    # One more for the server: it takes no CPU, and is a process.
    num_cpus = usable_cpus() if workers.num == "auto" else (workers.num + 1) * workers.threads
    warming = {
        "RAY_preload_python_modules": "parablock_ray.runtime.preload",
        # Ray's own limit is one for each core, and there is the server.
        "RAY_worker_maximum_startup_concurrency": str(usable_cpus() + 1),
        # Beyond it Ray ends those that wait; there may be an evaluator.
        "RAY_num_workers_soft_limit": str(num_cpus + 1),
    }
    cold = {"RAY_prestart_worker_first_driver": "0"}  # they would have another environment than our actors
    always = {_FREES: os.environ.get(_FREES, str(FREE_OBJECTS_PERIOD_MS))}
    with _environment(always | (warming if _is_warm(workers) else cold)):
        ray.init(
            address="local",  # a new one, whatever else runs on this machine
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    return Connection.WARM if _is_warm(workers) else Connection.OURS


def _is_warm(workers: WorkersConfig) -> bool:
    return workers.num != "auto" and workers.threads == 1


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Of the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


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


def usable_cpus() -> int:
    """CPU cores that this process may use: of this machine, or of the container that it is in."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _CPU_LIMIT.read_text().partition(" ") if _CPU_LIMIT.exists() else ("max", "", "")
    return num_cores if quota == "max" else max(1, min(num_cores, int(quota) // int(period)))
