"""The methods that train blocks: FedBCD, ParaBlock, FedAvg, FedCyBGD. A method is which block, and who.

To add one: a function here that makes a `BlockSchedule`, an entry in `methods.py`, and its config class in
`parablock_ray/config/method.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from parablock_ray.algorithms.base import RoundPlan
from parablock_ray.algorithms.learning_rate import learning_rate
from parablock_ray.algorithms.population import Population, cohorts, in_fold_order
from parablock_ray.algorithms.rng import generator
from parablock_ray.config.method import BlockMethod, FedAvg, FedBCD, FedCyBGD, ParaBlock


@dataclass(frozen=True)
class BlockSchedule:
    """A method as a schedule of visits."""

    config: BlockMethod
    population: Population
    block_of: Callable[[int], int]
    cohort_of: Callable[[int], Sequence[int]]

    @property
    def num_rounds(self) -> int:
        return self.config.rounds

    @property
    def staleness(self) -> int:
        return self.config.staleness

    def plan(self, round: int) -> RoundPlan:
        """The plan of round `round`."""
        visits = in_fold_order(self.cohort_of(round), self.population, round)
        reads = round - 1 - self.staleness
        return RoundPlan(round, self.block_of(round), reads, visits, learning_rate(self.config, round))


def fedbcd(config: FedBCD, population: Population) -> BlockSchedule:
    """Federated block coordinate descent: ParaBlock's sequential control, staleness 0."""
    return BlockSchedule(config, population, _sweeps(config, population), cohorts(population))


def parablock(config: ParaBlock, population: Population) -> BlockSchedule:
    """ParaBlock (arXiv 2511.19959, our reconstruction): FedBCD with staleness 1 and a block-level correction."""
    return BlockSchedule(config, population, _sweeps(config, population), cohorts(population))


def fedavg(config: FedAvg, population: Population) -> BlockSchedule:
    """FedAvg (arXiv 1602.05629): one block that holds everything. With staleness 1: CoCoD-SGD."""
    return BlockSchedule(config, population, lambda round: 0, cohorts(population))


def fedcybgd(config: FedCyBGD, population: Population) -> BlockSchedule:
    """FedCyBGD (arXiv 2406.11187): one client at a time trains block `client mod D` and overwrites it.

    A cohort of one has weight 1, so x[b] + Δ is the client's own block. `order` orders the clients of a sweep.
    """
    assert not population.is_sampled, "the config says so: a client trains in its turn"
    assert population.num_clients >= config.num_blocks, "the config says so: every block has its client"
    visitor = _in_sweeps(config.order, population.num_clients, population.seed)
    return BlockSchedule(
        config, population, lambda round: visitor(round) % config.num_blocks, lambda round: [visitor(round)]
    )


def _sweeps(config: BlockMethod, population: Population) -> Callable[[int], int]:
    return _in_sweeps(config.order, config.num_blocks, population.seed)


def _in_sweeps(order: str, num_items: int, seed: int) -> Callable[[int], int]:
    """round → item, every item once a sweep; `random` draws a new permutation for every sweep."""

    def item(round: int) -> int:
        sweep, position = divmod(round, num_items)
        match order:
            case "ascending":
                return position
            case "descending":
                return num_items - 1 - position
            case "random":
                permutation = torch.randperm(num_items, generator=generator(seed, "order", sweep))
                return int(permutation[position])
            case _:
                raise AssertionError(order)

    return item
