"""How many workers a cluster holds, and a place for each of them."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from parablock_ray.config import Config
from parablock_ray.config.schema import WorkersConfig
from parablock_ray.errors import UserError
from parablock_ray.runtime.memory import ProcessMemory

_logger = logging.getLogger(__name__)

_GPU_UNITS = 10_000  # Ray counts GPUs in such parts
_MARGIN = 1.25  # of memory over what a trial worker took: other clients have longer examples
_PATIENCE_S = 5.0  # before we say what we wait for


@dataclass(frozen=True)
class NodeResources:
    """What Ray may give to actors on one node."""

    num_cpus: int
    num_gpus: int
    memory_bytes: float = math.inf
    node_id: str = ""


@dataclass(frozen=True)
class Placement:
    """`gpus_each`: of a device, 1 at most. `memory_bytes`: what Ray keeps for each worker; 0: it was not measured."""

    num_workers: int
    gpus_each: float
    memory_bytes: int


def nodes() -> list[NodeResources]:
    """The nodes of the cluster that are alive."""
    found = [(node["Resources"], node["NodeID"]) for node in ray.nodes() if node["Alive"]]
    return [
        NodeResources(int(each.get("CPU", 0)), int(each.get("GPU", 0)), each.get("memory", math.inf), node_id)
        for each, node_id in found
    ]


def server_node(nodes: Sequence[NodeResources], driver_node_id: str, memory_bytes: int) -> NodeResources:
    """Where the server goes: beside the driver, whose run folder it shares, or where the most memory is.

    Raises UserError where no node has so much.
    """
    preferred = sorted(nodes, key=lambda node: (node.node_id != driver_node_id, -node.memory_bytes))
    for node in preferred:
        if node.memory_bytes >= memory_bytes:
            return node
    most = max((node.memory_bytes for node in nodes), default=0.0)
    raise UserError(
        f"the server needs {memory_bytes / 1e9:.2f} GB of memory (`parablock plan` tells for what), and the largest of "
        f"{len(nodes)} node(s) has {most / 1e9:.2f} GB for Ray: start one with more (`ray start --memory BYTES`), "
        "raise method.num_blocks, or set clients.max_in_flight"
    )


def without(nodes: Sequence[NodeResources], taken: NodeResources, memory_bytes: int) -> list[NodeResources]:
    """What is left where one of them gives so much memory away."""
    return [replace(node, memory_bytes=node.memory_bytes - memory_bytes) if node is taken else node for node in nodes]


def placement(config: Config, nodes: Sequence[NodeResources], measured: ProcessMemory | None) -> Placement:
    """Where all that a worker needs is on one node. `measured`: what one took, where that was tried.

    Raises UserError where the cluster cannot hold them.
    """
    num_cpus, num_gpus = sum(node.num_cpus for node in nodes), sum(node.num_gpus for node in nodes)
    threads, num_asked = config.workers.threads, config.workers.num
    sharing = _workers_per_gpu(config.workers, num_gpus, measured)
    gpus_each = _share(config.workers, sharing)
    memory_bytes = int(measured.host_bytes * _MARGIN) if measured is not None else 0
    capacity = sum(_room(node, threads, sharing if gpus_each else None, memory_bytes) for node in nodes)
    num_workers = min(capacity, config.clients.cohort_size) if num_asked == "auto" else num_asked
    if not 1 <= num_workers <= capacity:
        each = f"{threads} threads and {gpus_each:g} GPUs"
        has = f"{num_cpus} CPUs and {num_gpus} GPUs"
        if memory_bytes:
            each += f" and {memory_bytes / 1e9:.1f} GB of memory"
            has += f" and {sum(node.memory_bytes for node in nodes) / 1e9:.1f} GB"
        raise UserError(
            f"workers.num: {num_asked} workers of {each}, but the cluster has {has} on {len(nodes)} node(s): "
            f"room for {capacity}"
        )
    return Placement(num_workers, gpus_each, memory_bytes)


def has_core_to_spare(config: Config, nodes: Sequence[NodeResources], num_workers: int) -> bool:
    """Whether `workers.threads` CPUs are left on a node, wherever the workers are."""
    return sum(node.num_cpus // config.workers.threads for node in nodes) > num_workers


def reserve(workers: WorkersConfig, placed: Placement) -> PlacementGroup:
    """A bundle of resources for each worker. Waits until all are free, and says so."""
    bundle = {"CPU": workers.threads, "GPU": placed.gpus_each, "memory": placed.memory_bytes}
    wanted = {name: amount for name, amount in bundle.items() if amount}
    group = placement_group([wanted] * placed.num_workers, strategy=workers.placement.upper())
    try:
        if not group.wait(_PATIENCE_S):
            _logger.warning("waiting for %d worker(s) of %s", placed.num_workers, _shortage(wanted))
            ray.get(group.ready())
    except BaseException:  # Ctrl-C too: what waits would be given its place later
        remove_placement_group(group)
        raise
    return group


def _shortage(wanted: Mapping[str, float]) -> str:
    """What each worker wants, and what of it is free."""
    free, there = ray.available_resources(), ray.cluster_resources()
    units = {"memory": ("GB of memory", 1e9)}
    each, left = [], []
    for name, amount in wanted.items():
        unit, scale = units.get(name, (name, 1))
        wants, has, of = (f"{figure / scale:.3g}" for figure in (amount, free.get(name, 0), there.get(name, 0)))
        each.append(f"{wants} {unit}")
        left.append(f"{has} of {of} {unit}")
    return f"{', '.join(each)} each; the cluster has {', '.join(left)} free"


def _workers_per_gpu(workers: WorkersConfig, num_gpus: int, measured: ProcessMemory | None) -> int:
    """As many as share a device where the cluster has GPUs."""
    if workers.gpus_per_worker != "auto":
        return floor(1 / workers.gpus_per_worker + 1 / _GPU_UNITS) if workers.gpus_per_worker else 0
    if workers.num != "auto":  # a GPU for each, or its share where more are asked for than there are GPUs
        return -(-workers.num // num_gpus) if num_gpus else 0
    if num_gpus and measured is not None and measured.device_share:
        return max(1, floor(1 / (measured.device_share * _MARGIN)))
    return min(num_gpus, 1)


def _share(workers: WorkersConfig, sharing: int) -> float:
    """Of a GPU, for each of so many workers."""
    if workers.gpus_per_worker != "auto":
        return float(workers.gpus_per_worker)
    return floor(_GPU_UNITS / sharing) / _GPU_UNITS if sharing else 0.0


def _room(node: NodeResources, threads: int, sharing: int | None, memory_bytes: int) -> int:
    """So many workers fit on a node; `sharing` on a GPU, None where they take none."""
    rooms = [node.num_cpus // threads]
    if sharing is not None:
        rooms.append(node.num_gpus * sharing)
    if memory_bytes and node.memory_bytes < math.inf:
        rooms.append(int(node.memory_bytes // memory_bytes))
    return min(rooms)
