"""How many parameters every client sends and receives in every round, from the plans alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from parablock_ray.algorithms.adapters import all_ranks, client_ranks, find_targets
from parablock_ray.algorithms.base import RoundPlan, Visit
from parablock_ray.algorithms.blocks import BlockLayout, make_layout
from parablock_ray.algorithms.lora_costs import download_params
from parablock_ray.algorithms.lora_methods import Collecting, starts_afresh
from parablock_ray.algorithms.methods import make_server
from parablock_ray.algorithms.population import Attendance, Population
from parablock_ray.algorithms.wire import Wire
from parablock_ray.config import Config
from parablock_ray.config.lora import (
    CollectingMethod,
    FedExLoRA,
    FFALoRA,
    FlexLoRA,
    FLoRIST,
    HetLoRA,
    LoraMethod,
    ZeroPad,
)
from parablock_ray.secure.messages import ControlBytes, control_bytes


def control_bytes_of(config: Config, num_clients: int) -> ControlBytes:
    """What travels for one client beside the vectors, in a round that is planned for so many."""
    return control_bytes(num_clients) if config.secure_aggregation.enabled else ControlBytes(0, 0)


def upload_bytes(config: Config, num_params: int, num_clients: int) -> int:
    """What a client sends whose upload has so many parameters, in a round that is planned for so many clients."""
    wire = Wire.of_uploads(config)
    if not config.secure_aggregation.enabled:
        return wire.num_bytes(num_params)
    return wire.num_bytes(num_params + 1) + control_bytes(num_clients).up  # its weight is one word more


def download_bytes(config: Config, num_params: int, num_clients: int) -> int:
    """What a client gets of a round that brings it so many parameters."""
    return Wire.of(config.network).num_bytes(num_params) + control_bytes_of(config, num_clients).down


@dataclass(frozen=True)
class VisitSizes:
    """Parameters that travel for one visit."""

    up: int
    down: int
    catch_up: int


class Sizes(Protocol):
    """The book on who holds what. Rounds are opened in order."""

    def open(self, plan: RoundPlan) -> None: ...

    def of(self, plan: RoundPlan, visit: Visit) -> VisitSizes:
        """What this visit of the round opened last makes travel. FLoRIST's downloads are the most they can be."""
        ...


def make_sizes(config: Config, population: Population, shapes: Mapping[str, Tensor], wire: Wire) -> Sizes:
    """For the config's method. `shapes`: the model's parameters by name, of which no values are read."""
    method = config.method
    if isinstance(method, CollectingMethod):
        return _WholeAdapters(method, population, shapes)
    return _Blocks(config, population, shapes, wire)


def upload_params(
    config: Config, population: Population, shapes: Mapping[str, Tensor]
) -> Callable[[RoundPlan, Visit], int]:
    """How many parameters a visit's upload has."""
    method = config.method
    if isinstance(method, CollectingMethod):
        targets = find_targets(shapes, method.lora.target_modules)
        ranks = client_ranks(method.lora, population.num_clients, population.seed)
        return lambda plan, visit: sum(target.num_params(ranks[visit.client]) for target in targets)
    blocks = trained_layout(config, shapes).blocks
    return lambda plan, visit: blocks[plan.block].num_params


def trained_layout(config: Config, shapes: Mapping[str, Tensor]) -> BlockLayout:
    """The blocks that clients train: of the model's parameters, or of adapters (of the largest rank there is)."""
    method = config.method
    if not isinstance(method, LoraMethod) and method.parameters != "lora":
        return make_layout(shapes, method.num_blocks, method.parameters)
    rank, factors = all_ranks(method.lora)[-1], dict[str, Tensor]()
    with torch.device("meta"):
        for target in find_targets(shapes, method.lora.target_modules):
            factors[target.factor("B", rank)] = torch.empty(target.m, rank)
            if not isinstance(method, FFALoRA):
                factors[target.factor("A", rank)] = torch.empty(rank, target.n)
    return make_layout(factors, method.num_blocks, "lora")


class _Blocks:
    """The method's own server on a model of shapes: it keeps the book already."""

    def __init__(self, config: Config, population: Population, shapes: Mapping[str, Tensor], wire: Wire) -> None:
        self._upload_params = upload_params(config, population, shapes)
        self._server = make_server(config.method, population, shapes, wire, cut_through=False, rule=config.server.rule)

    def open(self, plan: RoundPlan) -> None:
        self._server.open(plan)

    def of(self, plan: RoundPlan, visit: Visit) -> VisitSizes:
        block = self._upload_params(plan, visit)
        return VisitSizes(block, block, self._server.catch_up_params(visit.client, plan.round))


class _WholeAdapters:
    """Clients send whole adapters, and get adapters to train on with, to merge, or both."""

    def __init__(self, config: Collecting, population: Population, shapes: Mapping[str, Tensor]) -> None:
        self._config = config
        self._targets = find_targets(shapes, config.lora.target_modules)
        self._ranks = client_ranks(config.lora, population.num_clients, population.seed)
        self._attendance = Attendance(all_start=True)
        self._cohorts: list[Sequence[int]] = []  # by round: its clients' ranks
        self._down: list[dict[int, int]] = []  # by round: rank → parameters
        self._merged: list[int] = []  # of those, by round, what is merged

    def open(self, plan: RoundPlan) -> None:
        self._attendance.note(plan)
        cohort = [self._ranks[visit.client] for visit in plan.visits]
        self._cohorts.append(cohort)
        shapes = [(target.m, target.n) for target in self._targets]
        down = download_params(self._config.name, shapes, cohort, self._most_kept(cohort))
        self._down.append(dict(zip(cohort, down, strict=True)))
        if starts_afresh(self._config):
            self._merged.append(down[0])
        elif isinstance(self._config, FedExLoRA):
            self._merged.append(down[0] - self._num_params(cohort[0]))
        else:
            self._merged.append(0)

    def of(self, plan: RoundPlan, visit: Visit) -> VisitSizes:
        rank = self._ranks[visit.client]
        return VisitSizes(self._num_params(rank), self._down[plan.round][rank], self._catch_up(plan, visit))

    def _catch_up(self, plan: RoundPlan, visit: Visit) -> int:
        missed = self._attendance.missed(visit.client, plan.round)
        num_params = sum(self._merged[round] for round in missed)
        if plan.round - 1 in missed and not starts_afresh(self._config):
            num_params += self._factors(plan.round - 1, self._ranks[visit.client])
        return num_params

    def _factors(self, round: int, rank: int) -> int:
        """What a client of this rank, perhaps of none that took part, gets of that round's factors."""
        cohort = self._cohorts[round]
        match self._config:
            case ZeroPad() | FLoRIST():
                return max(self._down[round].values())
            case HetLoRA():
                return self._num_params(min(rank, max(cohort)))
            case FlexLoRA():
                return sum(each.num_params(min(rank, each.m, each.n, sum(cohort))) for each in self._targets)
        return self._num_params(rank)

    def _most_kept(self, cohort: Sequence[int]) -> list[int]:
        if not isinstance(self._config, FLoRIST):
            return []
        most = min(sum(cohort), self._config.max_rank or sum(cohort))
        return [min(most, target.m, target.n) for target in self._targets]

    def _num_params(self, rank: int) -> int:
        return sum(target.num_params(rank) for target in self._targets)
