"""What the processes of a run hold in memory: an estimate with its parts by name, in bytes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from parablock_ray.algorithms.adapters import Target, all_ranks, find_targets
from parablock_ray.algorithms.lora_methods import starts_afresh
from parablock_ray.algorithms.methods import trains_adapters
from parablock_ray.config.lora import CollectingMethod, FedExLoRA
from parablock_ray.planning.scenario import Scenario
from parablock_ray.server_memory import FP32_BYTES, most_traffic, server_bytes, target_params

EXCLUDED = "activations, and what Python, torch and Ray take themselves"


@dataclass(frozen=True)
class Memory:
    """One process, or several of a kind. `parts_bytes` of each, on its device and its host together."""

    process: str
    num_processes: int
    parts_bytes: dict[str, int]

    @property
    def total_bytes(self) -> int:
        return sum(self.parts_bytes.values())


def memory(scenario: Scenario) -> tuple[Memory, ...]:
    """Workers, server and, where rounds are judged, the evaluator; with the serial runtime all are the driver."""
    worker, server, evaluator = _worker_bytes(scenario), _server_bytes(scenario), _evaluator_bytes(scenario)
    if scenario.config.runtime == "serial":
        return (Memory("driver", 1, worker | server | evaluator),)
    common = Memory("worker", scenario.num_workers, worker), Memory("server", 1, server)
    return (*common, Memory("evaluator", 1, evaluator)) if evaluator else common


def _worker_bytes(scenario: Scenario) -> dict[str, int]:
    method, model_dtype = scenario.config.method, getattr(torch, scenario.config.model.dtype)
    adapters = trains_adapters(method)
    trained_dtype: torch.dtype = torch.float32 if adapters else model_dtype
    is_narrow = trained_dtype.itemsize < FP32_BYTES  # then there are fp32 masters beside the parameters
    sizes = sorted((block.num_params for block in scenario.layout.blocks), reverse=True)
    parts = {
        "model": scenario.num_params * model_dtype.itemsize,
        "adapters, fp32": _adapter_params(scenario) * FP32_BYTES if adapters else 0,
        "clean copies, fp32": _copied_params(scenario, sizes, is_narrow) * FP32_BYTES,
        "masters, fp32": sizes[0] * FP32_BYTES if is_narrow else 0,
        "gradients": sizes[0] * max(trained_dtype.itemsize, FP32_BYTES),
        "Adam moments, fp32": 2 * sizes[0] * FP32_BYTES if method.local_optimizer == "adamw" else 0,
        "FedProx anchors, fp32": sizes[0] * FP32_BYTES if method.prox_mu > 0 else 0,
        "start of a visit, fp32": sizes[0] * FP32_BYTES if _keeps_start(scenario, is_narrow) else 0,
        "deltas pending or under way": _pending_bytes(scenario),
    }
    return {name: num_bytes for name, num_bytes in parts.items() if num_bytes}


def _keeps_start(scenario: Scenario, is_narrow: bool) -> bool:
    """Whether what a visit starts from is held beside the clean copies: rounded, or with a pending delta in it."""
    method = scenario.config.method
    return not isinstance(method, CollectingMethod) and (is_narrow or method.staleness > 0)


def _adapter_params(scenario: Scenario) -> int:
    """One set for every rank that clients have."""
    lora = scenario.config.method.lora
    return sum(target.num_params(rank) for target in _targets(scenario) for rank in all_ranks(lora))


def _copied_params(scenario: Scenario, sizes: Sequence[int], is_narrow: bool) -> int:
    """Committed values beside the live ones: where a pending delta is added, and where the dtype cannot hold them."""
    method = scenario.config.method
    if isinstance(method, CollectingMethod):
        is_merged = isinstance(method, FedExLoRA) or starts_afresh(method)
        is_kept = is_merged and scenario.config.model.dtype != "float32"
        return target_params(scenario.config, scenario.shapes) if method.staleness > 0 or is_kept else 0
    # A visit touches its own block and those of its pending deltas; a narrow model's fp32 values are kept throughout.
    return sum(sizes) if is_narrow else sum(sizes[: 1 + method.staleness])


def _targets(scenario: Scenario) -> Sequence[Target]:
    return find_targets(scenario.shapes, scenario.config.method.lora.target_modules)


def _pending_bytes(scenario: Scenario) -> int:
    """The most that the clients of one worker have sent, over a round and the `staleness` rounds before it."""
    sent = [Counter[int]() for _ in scenario.loads]  # by round: worker → bytes
    for of_round, load in zip(sent, scenario.loads, strict=True):
        for visit in load.visits:
            of_round[visit.worker] += visit.up_bytes
    staleness = scenario.config.method.staleness
    windows = (sum(sent[max(0, t - staleness) : t + 1], Counter()) for t in range(len(sent)))
    return max(max(window.values()) for window in windows)


def _server_bytes(scenario: Scenario) -> dict[str, int]:
    most = most_traffic([[(visit.up_bytes, visit.down_bytes) for visit in load.visits] for load in scenario.loads])
    return server_bytes(scenario.config, scenario.shapes, most)


def _evaluator_bytes(scenario: Scenario) -> dict[str, int]:
    """Snapshots are in the object store, at most one for each round that is judged."""
    is_used = scenario.config.evaluation.every is not None
    return {"judged model, fp32": scenario.num_params * FP32_BYTES} if is_used else {}
