"""Who takes part in a round, in which order, and what a client has missed since it last did."""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from parablock_ray.algorithms.base import RoundPlan, Visit
from parablock_ray.algorithms.rng import generator
from parablock_ray.algorithms.secret import uniform
from parablock_ray.config.data import Arrival


@dataclass(frozen=True)
class Population:
    """Who may take part: `num_examples[i]` is n_i once all has arrived; `num_drawn` clients are drawn for a round,
    before any of them is left out.

    `is_private`: all weigh the same, whatever they hold, in a sum that is divided by `num_drawn`; and who is drawn is a
    matter of the `key`, not of the seed, which is no secret (None: of a population that only plans ahead).
    """

    num_examples: tuple[int, ...]
    num_drawn: int
    seed: int
    arrival: Arrival | None = None  # None: all is there from the start
    sampling: Literal["uniform", "by_size", "poisson"] = "uniform"
    is_private: bool = False
    key: bytes | None = None

    @property
    def num_clients(self) -> int:
        return len(self.num_examples)

    def num_examples_at(self, round: int, client: int) -> int:
        """n_i in a round: how many examples the client holds by then."""
        num_examples = self.num_examples[client]
        return num_examples if self.arrival is None else self.arrival.num_arrived(num_examples, round)

    @property
    def is_sampled(self) -> bool:
        """Whether a round is for some of the clients only."""
        return self.num_drawn < self.num_clients


def cohorts(population: Population) -> Callable[[int], Sequence[int]]:
    """round → clients, `num_drawn` of them; all of them where none are left out.

    `uniform`: without replacement. `by_size`: see `drawn_by_size`; who holds very much may be drawn more than once.
    `poisson`: each by itself, with a probability of `num_drawn` over all; perhaps none.
    """

    def cohort(round: int) -> Sequence[int]:
        if not population.is_sampled:
            return range(population.num_clients)
        if population.is_private:
            return _drawn_in_secret(population, round)
        random = generator(population.seed, "cohort", round)
        order = torch.randperm(population.num_clients, generator=random)
        if population.sampling == "uniform":
            return list(order[: population.num_drawn].tolist())
        sizes = torch.tensor([population.num_examples_at(round, client) for client in order.tolist()])
        offset = int(torch.randint(int(sizes.sum()), (), generator=random))
        return list(order[drawn_by_size(sizes, population.num_drawn, offset)].tolist())

    return cohort


def _drawn_in_secret(population: Population, round: int) -> Sequence[int]:
    key = population.key or str(population.seed).encode()
    numbers = uniform(key, f"cohort {round}".encode(), population.num_clients)
    if population.sampling == "poisson":
        # Numbers are k/2⁵³ for k from 1 on: so many of them are at most the probability, exactly.
        return list((numbers <= population.num_drawn / population.num_clients).nonzero().flatten().tolist())
    return list(numbers.argsort(stable=True)[: population.num_drawn].tolist())


def drawn_by_size(sizes: Tensor, num: int, offset: int) -> Tensor:
    """`num` positions in `sizes` (int64), over all offsets (0 to Σ sizes − 1) each as often as it is large.

    Systematic sampling (Madow, Annals of Mathematical Statistics 20, 1949), in integers: position i has num · size_i
    places in a row, and every (Σ sizes)-th place is drawn. So the expected number of draws is num · size_i / Σ sizes to
    the last bit, and the plain mean over the draws is unbiased: E[Σ Δ_i / num] = Σ size_i Δ_i / Σ sizes.
    """
    ends = sizes.cumsum(0)
    places = offset + ends[-1] * torch.arange(num)
    return torch.searchsorted(ends * num, places, right=True)


def in_fold_order(cohort: Sequence[int], population: Population, round: int) -> tuple[Visit, ...]:
    """The cohort's visits in this round, n_i descending, ties by client id: the order in which the server sums.

    They weigh n_i. Of those drawn by size each draw weighs the same: with n_i their size would count twice. In private
    all weigh the same; where nobody was drawn somebody trains all the same and weighs nothing, so that the round tells
    its noise like any other.
    """
    if population.is_private:
        weights = dict.fromkeys(cohort, 1) or {round % population.num_clients: 0}
        sizes = {client: population.num_examples_at(round, client) for client in weights}
        by_size = sorted(sizes, key=lambda client: (-sizes[client], client))
        planned = population.num_drawn
        return tuple(Visit(each, sizes[each], weights[each], share=weights[each] / planned) for each in by_size)
    num_examples = {client: population.num_examples_at(round, client) for client in cohort}
    weights = Counter(cohort) if population.sampling == "by_size" else num_examples
    ordered = sorted(num_examples, key=lambda client: (-num_examples[client], client))
    total = sum(weights.values())
    return tuple(
        Visit(client, num_examples[client], weights[client], share=weights[client] / total) for client in ordered
    )


@dataclass
class Attendance:
    """What every client holds, read off the plans alone.

    When a client starts a round it is given all that it may read; what it downloads of its own rounds it has.
    `all_start`: every client has the initial model; else those who are drawn later get it then.
    """

    all_start: bool
    _reads: list[int] = field(default_factory=list)  # by round: the last one that it may read
    _rounds_of: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))  # client → its rounds

    def note(self, plan: RoundPlan) -> None:
        """The next round, in order."""
        assert plan.round == len(self._reads)
        self._reads.append(plan.reads)
        for visit in plan.visits:
            self._rounds_of[visit.client].append(plan.round)

    def drop(self, round: int, client: int) -> None:
        """It has no part in this round after all, and holds nothing of it."""
        self._rounds_of[client].remove(round)

    def reads(self, round: int) -> int:
        """The last round that may be read in `round`."""
        return self._reads[round]

    def joins_late(self, client: int, round: int) -> bool:
        """Whether this is the client's first round, and it lacks the initial model."""
        return not self.all_start and round > 0 and self._rounds_of[client][0] == round

    def missed(self, client: int, round: int) -> tuple[int, ...]:
        """The rounds that it may read in `round` and does not hold, ascending."""
        own = self._rounds_of[client]
        num_before = bisect_left(own, round)
        first = max(self._reads[own[num_before - 1]], -1) + 1 if num_before else 0  # it was given all before
        downloaded = own[bisect_left(own, first) : num_before]  # few: no more than the staleness, and one
        return tuple(each for each in range(first, self._reads[round] + 1) if each not in downloaded)
