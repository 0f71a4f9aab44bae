"""What a run's server holds in memory: `plan` tells it, Ray is asked for it, and what is too much is refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parablock_ray.algorithms.adapters import find_targets
from parablock_ray.algorithms.aggregate import new_server_state
from parablock_ray.algorithms.lora_methods import starts_afresh
from parablock_ray.algorithms.methods import make_method, trains_adapters
from parablock_ray.algorithms.population import Population
from parablock_ray.algorithms.wire import Wire
from parablock_ray.config import Config
from parablock_ray.config.lora import CollectingMethod
from parablock_ray.sizes import download_bytes, make_sizes, trained_layout, upload_bytes

FP32_BYTES = 4
FP64_BYTES = 8


@dataclass(frozen=True)
class Traffic:
    """The most that travels in a round, in bytes: all its uploads together, one of them, one download."""

    uploads: int
    upload: int
    download: int


def most_traffic(rounds: Sequence[Sequence[tuple[int, int]]]) -> Traffic:
    """`rounds`: of each its visits, of each of these the bytes up and down."""
    up_bytes, down_bytes = zip(*(visit for visits in rounds for visit in visits), strict=True)
    return Traffic(max(sum(up for up, _ in visits) for visits in rounds), max(up_bytes), max(down_bytes))


def first_traffic(config: Config, population: Population, shapes: Mapping[str, Tensor]) -> Traffic:
    """Of the first rounds, in which every block has its turn about thrice: those after them are like them.

    `shapes`: the model's parameters by name, of which no values are read.
    """
    method = make_method(config.method, population)
    sizes = make_sizes(config, population, shapes, Wire.of(config.network))
    of_rounds = []
    for round in range(min(method.num_rounds, 3 * config.method.num_blocks)):
        plan = method.plan(round)
        sizes.open(plan)
        visits, num = [sizes.of(plan, visit) for visit in plan.visits], len(plan.visits)
        of_rounds.append(
            [(upload_bytes(config, each.up, num), download_bytes(config, each.down, num)) for each in visits]
        )
    return most_traffic(of_rounds)


def server_bytes(config: Config, shapes: Mapping[str, Tensor], most: Traffic) -> dict[str, int]:
    """Its parts by name; without what Python, torch and Ray take themselves."""
    num_params = sum(tensor.numel() for tensor in shapes.values())
    parts = {"master model, fp32": num_params * FP32_BYTES} | _method_bytes(config, shapes, most)
    return {name: num_bytes for name, num_bytes in parts.items() if num_bytes}


def target_params(config: Config, shapes: Mapping[str, Tensor]) -> int:
    """Of the weights that have adapters."""
    return sum(target.m * target.n for target in find_targets(shapes, config.method.lora.target_modules))


def _method_bytes(config: Config, shapes: Mapping[str, Tensor], most: Traffic) -> dict[str, int]:
    """What the server holds beside the model."""
    method, layout = config.method, trained_layout(config, shapes)
    frozen = target_params(config, shapes) * FP32_BYTES if trains_adapters(method) else 0
    if isinstance(method, CollectingMethod):
        return {
            "adapted weights without factors, fp32": 0 if starts_afresh(method) else frozen,
            "new adapters, of rounds not forgotten": (2 + method.staleness) * most.download,
            "uploads of a round": (1 + method.staleness) * most.uploads,
        }
    largest, rule = max(block.num_params for block in layout.blocks), config.server.rule
    num_trained = layout.num_params - layout.num_frozen_params
    num_vectors = len(new_server_state(method.server_optimizer, 0, torch.float32))
    word_bytes = config.secure_aggregation.bits // 8 if config.secure_aggregation.enabled else 0
    is_withdrawn = config.network.exchange == "cut_through"  # what a round has published, once an update is refused
    return {
        "adapted weights without factors, fp32": frozen,
        "adapters, fp32": num_trained * FP32_BYTES if trains_adapters(method) else 0,
        "previous values, fp32": method.staleness * largest * FP32_BYTES,
        # A sum for each round that clients may be in, of which the oldest becomes the block's new value.
        "sums or new value, fp32": (1 if rule.keeps_all else method.staleness + 1) * largest * FP32_BYTES,
        "sums under masks": (method.staleness + 2) * largest * word_bytes,
        "noise and its pieces, fp64": (3 if word_bytes else 2) * largest * FP64_BYTES if config.privacy.is_on else 0,
        "server optimizer, fp32": num_vectors * num_trained * FP32_BYTES,
        "server optimizer before the round, fp32": num_vectors * largest * FP32_BYTES if is_withdrawn else 0,
        "uploads kept, at most": _kept_bytes(config, most),
    }


def _kept_bytes(config: Config, most: Traffic) -> int:
    """With cut_through, or a rule that needs them side by side, all of every round that clients may be in, until its
    commit; else those that wait for their turn, of which `clients.max_in_flight` lets in so many."""
    if config.server.rule.keeps_all or config.network.exchange == "cut_through":
        return (config.method.staleness + 1) * most.uploads
    limit = config.clients.max_in_flight
    return most.uploads if limit is None else min(most.uploads, limit * most.upload)
