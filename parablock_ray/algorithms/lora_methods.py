"""The methods of federated LoRA: how each plans, and what its server makes of a round's adapters (docs/lora.md)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from parablock_ray.algorithms.adapters import client_ranks
from parablock_ray.algorithms.base import RoundPlan
from parablock_ray.algorithms.learning_rate import learning_rate
from parablock_ray.algorithms.lora import (
    Adapter,
    FloristInfo,
    fedex_lora,
    flexlora,
    flora,
    florist,
    hetlora,
    zero_pad,
)
from parablock_ray.algorithms.population import Population, cohorts, in_fold_order
from parablock_ray.config.lora import (
    FactorMethod,
    FedExLoRA,
    FlexLoRA,
    FLoRA,
    FLoRIST,
    HetLoRA,
    LoraMethod,
    TotalsMethod,
    ZeroPad,
)

Collecting = TotalsMethod | FLoRA | FLoRIST
"""`CollectingMethod` by its kinds."""


@dataclass(frozen=True)
class LoraSchedule:
    """Every round is for the adapters of all modules. Where what comes back depends on a client's rank, that is its
    variant."""

    config: FactorMethod | Collecting
    population: Population

    @property
    def num_rounds(self) -> int:
        return self.config.rounds

    @property
    def staleness(self) -> int:
        return self.config.staleness

    def plan(self, round: int) -> RoundPlan:
        """The plan of round `round`."""
        visits = in_fold_order(cohorts(self.population)(round), self.population, round)
        if by_rank(self.config):
            visits = tuple(replace(visit, variant=self._ranks[visit.client]) for visit in visits)
        return RoundPlan(round, 0, round - 1 - self.staleness, visits, learning_rate(self.config, round))

    @cached_property
    def _ranks(self) -> Sequence[int]:
        """By client; each is drawn apart, which takes long for very many."""
        return client_ranks(self.config.lora, self.population.num_clients, self.population.seed)


@dataclass(frozen=True)
class ModuleUpdate:
    """What a round makes of one module: an adapter to train on with, an adapter to merge into the weight, or both."""

    factors: Adapter | None
    merge: Adapter | None
    info: FloristInfo | None = None  # of a rule that cuts


Rule = Callable[[Sequence[Adapter], Sequence[float]], ModuleUpdate]


def rule_of(config: Collecting) -> Rule:
    """What the server does with one module's adapters and the clients' weights, which sum to 1."""
    match config:
        case ZeroPad():
            return lambda adapters, weights: ModuleUpdate(zero_pad(adapters, weights), None)
        case HetLoRA():
            return lambda adapters, weights: ModuleUpdate(hetlora(adapters, weights), None)
        case FlexLoRA():
            return lambda adapters, weights: ModuleUpdate(flexlora(adapters, weights), None)
        case FedExLoRA():
            return lambda adapters, weights: ModuleUpdate(*fedex_lora(adapters, weights))
        case FLoRA():
            return lambda adapters, weights: ModuleUpdate(None, flora(adapters, weights))
        case FLoRIST():
            return lambda adapters, weights: _florist(config, adapters, weights)
    raise AssertionError(config)


def by_rank(config: LoraMethod) -> bool:
    """Whether what comes back differs between clients of different ranks."""
    return isinstance(config, ZeroPad | HetLoRA | FlexLoRA)


def starts_afresh(config: Collecting) -> bool:
    """Whether every round starts new adapters, since the last ones are merged."""
    return isinstance(config, FLoRA) or (isinstance(config, FLoRIST) and config.round_init == "merge")


def rank_down(config: Collecting, variant: int, largest: int) -> int:
    """How many of `largest` components go down to clients of this variant. Only cut, never padded: a client that has
    room for more fills it with components that can train, which zeros in both factors could not."""
    return min(variant, largest) if isinstance(config, HetLoRA | FlexLoRA) else largest


def _florist(config: FLoRIST, adapters: Sequence[Adapter], weights: Sequence[float]) -> ModuleUpdate:
    B, A, info = florist(adapters, weights, config.threshold, config.max_rank)
    cut = Adapter(B, A, 1.0)
    return ModuleUpdate(None, cut, info) if config.round_init == "merge" else ModuleUpdate(cut, None, info)
