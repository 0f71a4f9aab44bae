"""The methods that train blocks: FedBCD, ParaBlock, FedAvg, FedCyBGD. A method is which block, who, and how stale.

To add one: a function here that makes a `BlockSchedule`, an entry in `METHODS`, and its config class in
`parablock_ray/config/method.py`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from parablock_ray.algorithms.base import Method, RoundPlan, Visit
from parablock_ray.algorithms.rng import generator
from parablock_ray.config.method import BlockMethod, FedAvg, FedBCD, FedCyBGD, MethodConfig, ParaBlock
from parablock_ray.errors import UserError


@dataclass(frozen=True)
class Population:
    """Who may take part: `num_examples[i]` is n_i; `per_round` clients are drawn for each round."""

    num_examples: tuple[int, ...]
    per_round: int
    seed: int

    @property
    def num_clients(self) -> int:
        return len(self.num_examples)


@dataclass
class BlockSchedule:
    """A method as a schedule of visits. Plans are made once, in order: who must catch up depends on who took part."""

    config: BlockMethod
    population: Population
    staleness: int
    correction: str
    block_of: Callable[[int], int]
    cohort_of: Callable[[int], Sequence[int]]
    _plans: list[RoundPlan] = field(default_factory=list)
    _latest: dict[int, int] = field(default_factory=dict)  # block → last round ≤ reads that visited it
    _held: dict[int, dict[int, int]] = field(default_factory=dict)  # client → the same, of the values it holds
    _under_way: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # client → (round, block) it downloads

    @property
    def num_rounds(self) -> int:
        return self.config.rounds

    def plan(self, round: int) -> RoundPlan:
        """The plan of round `round`; earlier ones are made on the way."""
        while len(self._plans) <= round:
            self._plans.append(self._next_plan())
        return self._plans[round]

    def _next_plan(self) -> RoundPlan:
        round = len(self._plans)
        block, reads = self.block_of(round), round - 1 - self.staleness
        if reads >= 0:
            self._latest[self._plans[reads].block] = reads
        num_examples = self.population.num_examples
        cohort = sorted(self.cohort_of(round), key=lambda client: (-num_examples[client], client))
        total = sum(num_examples[client] for client in cohort)
        visits = []
        for client in cohort:
            joins_late = self._joins_late(client, round)
            catch_up = tuple(range(self.config.num_blocks)) if joins_late else self._missed(client, reads)
            held = self._held.setdefault(client, {})
            held.update({each: self._latest[each] for each in catch_up if each in self._latest})
            self._under_way.setdefault(client, []).append((round, block))
            share = num_examples[client] / total
            visits.append(Visit(client, num_examples[client], share, catch_up, joins_late))
        return RoundPlan(round, block, reads, tuple(visits), learning_rate(self.config, round))

    def _joins_late(self, client: int, round: int) -> bool:
        """Sampled clients get the base model when they are first drawn; where all take part they start with it."""
        sampled = self.population.per_round < self.population.num_clients
        return sampled and round > 0 and client not in self._held

    def _missed(self, client: int, reads: int) -> tuple[int, ...]:
        """Blocks whose readable value the client does not hold. What it downloads of a later round is no help yet."""
        held, under_way = self._held.setdefault(client, {}), self._under_way.setdefault(client, [])
        while under_way and under_way[0][0] <= reads:
            round, block = under_way.pop(0)
            held[block] = max(round, held.get(block, -1))
        return tuple(sorted(block for block, round in self._latest.items() if held.get(block, -1) < round))


def fedbcd(config: FedBCD, population: Population) -> BlockSchedule:
    """Federated block coordinate descent: ParaBlock's sequential control, staleness 0."""
    return BlockSchedule(config, population, 0, "stale", _sweeps(config, population), _uniform_cohorts(population))


def parablock(config: ParaBlock, population: Population) -> BlockSchedule:
    """ParaBlock (arXiv 2511.19959, our reconstruction): FedBCD with staleness 1 and a block-level correction."""
    return BlockSchedule(
        config,
        population,
        config.staleness,
        config.correction,
        _sweeps(config, population),
        _uniform_cohorts(population),
    )


def fedavg(config: FedAvg, population: Population) -> BlockSchedule:
    """FedAvg (arXiv 1602.05629): one block that holds everything. With staleness 1: CoCoD-SGD."""
    return BlockSchedule(
        config, population, config.staleness, config.correction, lambda round: 0, _uniform_cohorts(population)
    )


def fedcybgd(config: FedCyBGD, population: Population) -> BlockSchedule:
    """FedCyBGD (arXiv 2406.11187): one client at a time trains block `client mod D` and overwrites it.

    A cohort of one has weight 1, so x[b] + Δ is the client's own block. `order` orders the clients of a sweep.
    """
    if population.num_clients < config.num_blocks:
        raise UserError(
            f"method.num_blocks: fedcybgd trains block (client mod num_blocks), so with clients.num "
            f"{population.num_clients} the blocks from {population.num_clients} up would never be trained; "
            f"allowed: 1 to {population.num_clients}"
        )
    if population.per_round < population.num_clients:
        raise UserError("clients.per_round: fedcybgd trains one client at a time, each in its turn; leave it out")
    visitor = _in_sweeps(config.order, population.num_clients, population.seed)
    return BlockSchedule(
        config,
        population,
        0,
        "stale",
        lambda round: visitor(round) % config.num_blocks,
        lambda round: [visitor(round)],
    )


METHODS: dict[str, Callable[..., Method]] = {
    "parablock": parablock,
    "fedbcd": fedbcd,
    "fedavg": fedavg,
    "fedcybgd": fedcybgd,
}


def make_method(config: MethodConfig, population: Population) -> Method:
    """The method named by `config.name`."""
    return METHODS[config.name](config, population)


def learning_rate(config: BlockMethod, round: int) -> float:
    """The clients' learning rate in round `round`: linear warm-up, then constant, linear or cosine to nearly 0."""
    if round < config.warmup_rounds:
        return config.lr * (round + 1) / config.warmup_rounds
    done = (round - config.warmup_rounds) / (config.rounds - config.warmup_rounds)
    match config.lr_schedule:
        case "constant":
            return config.lr
        case "linear":
            return config.lr * (1 - done)
        case "cosine":
            return config.lr * 0.5 * (1 + math.cos(math.pi * done))


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


def _uniform_cohorts(population: Population) -> Callable[[int], Sequence[int]]:
    def cohort(round: int) -> Sequence[int]:
        if population.per_round == population.num_clients:
            return range(population.num_clients)
        permutation = torch.randperm(population.num_clients, generator=generator(population.seed, "cohort", round))
        return [int(client) for client in permutation[: population.per_round]]

    return cohort
