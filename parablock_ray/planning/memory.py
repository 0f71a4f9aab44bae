"""What the processes of a run hold in memory: an estimate with its parts by name, in bytes."""

from collections import Counter
from dataclasses import dataclass

import torch

from parablock_ray.algorithms.aggregate import new_server_state
from parablock_ray.planning.scenario import Scenario

EXCLUDED = "activations, and what Python, torch and Ray take themselves"
_FP32_BYTES = 4


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
    """Workers and server; with the serial runtime both are the driver."""
    worker, server = _worker_bytes(scenario), _server_bytes(scenario)
    if scenario.config.runtime == "serial":
        return (Memory("driver", 1, worker | server),)
    return Memory("worker", scenario.num_workers, worker), Memory("server", 1, server)


def _worker_bytes(scenario: Scenario) -> dict[str, int]:
    method, layout = scenario.config.method, scenario.layout
    model_dtype: torch.dtype = getattr(torch, scenario.config.model.dtype)
    is_narrow = model_dtype.itemsize < _FP32_BYTES  # then there are fp32 masters beside the parameters
    sizes = sorted((block.num_params for block in layout.blocks), reverse=True)
    # A visit touches its own block and those of its pending deltas; a narrow model's fp32 values are kept throughout.
    num_copied = sum(sizes) if is_narrow else sum(sizes[: 1 + method.staleness])
    parts = {
        "model": layout.num_params * model_dtype.itemsize,
        "clean copies, fp32": num_copied * _FP32_BYTES,
        "masters, fp32": sizes[0] * _FP32_BYTES if is_narrow else 0,
        "gradients": sizes[0] * (model_dtype.itemsize + (_FP32_BYTES if is_narrow else 0)),
        "Adam moments, fp32": 2 * sizes[0] * _FP32_BYTES if method.local_optimizer == "adamw" else 0,
        "FedProx anchors, fp32": sizes[0] * _FP32_BYTES if method.prox_mu > 0 else 0,
        "trained block, fp32": sizes[0] * _FP32_BYTES,
        "deltas pending or under way": _pending_bytes(scenario),
    }
    return {name: num_bytes for name, num_bytes in parts.items() if num_bytes}


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
    method, layout = scenario.config.method, scenario.layout
    largest = max(block.num_params for block in layout.blocks)
    num_trained = layout.num_params - layout.num_frozen_params
    num_vectors = len(new_server_state(method.server_optimizer, 0, torch.float32))
    cohort = max(len(load.visits) for load in scenario.loads)
    parts = {
        "master model, fp32": layout.num_params * _FP32_BYTES,
        "previous values, fp32": method.staleness * largest * _FP32_BYTES,
        # A sum for each round that clients may be in, and the value that the oldest of them is stepped into.
        "sums and new value, fp32": (method.staleness + 2) * largest * _FP32_BYTES,
        "server optimizer, fp32": num_vectors * num_trained * _FP32_BYTES,
        # With cut_through all of them until the commit; with store_and_forward those that wait for their turn.
        "uploads kept, at most": cohort * scenario.wire.num_bytes(largest),
    }
    return {name: num_bytes for name, num_bytes in parts.items() if num_bytes}
