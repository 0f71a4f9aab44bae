"""Who takes part in a round, in which order, and what a client has missed since it last did."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from parablock_ray.algorithms.base import RoundPlan, Visit
from parablock_ray.algorithms.rng import generator
from parablock_ray.config.data import Arrival


@dataclass(frozen=True)
class Population:
    """Who may take part: `num_examples[i]` is n_i once all has arrived; `per_round` clients are drawn a round."""

    num_examples: tuple[int, ...]
    per_round: int
    seed: int
    arrival: Arrival | None = None  # None: all is there from the start

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
        return self.per_round < self.num_clients


def uniform_cohorts(population: Population) -> Callable[[int], Sequence[int]]:
    """round → clients, `per_round` of them drawn without replacement; all of them where none are left out."""

    def cohort(round: int) -> Sequence[int]:
        if not population.is_sampled:
            return range(population.num_clients)
        drawn = torch.randperm(population.num_clients, generator=generator(population.seed, "cohort", round))
        return [int(client) for client in drawn[: population.per_round]]

    return cohort


def in_fold_order(cohort: Sequence[int], population: Population, round: int) -> tuple[Visit, ...]:
    """The cohort's visits in this round, n_i descending, ties by client id: the order in which the server sums."""
    num_examples = {client: population.num_examples_at(round, client) for client in cohort}
    ordered = sorted(cohort, key=lambda client: (-num_examples[client], client))
    total = sum(num_examples.values())
    return tuple(Visit(client, num_examples[client], num_examples[client] / total) for client in ordered)


@dataclass
class Attendance:
    """What every client holds, read off the plans alone.

    When a client starts a round it is given all that it may read; what it downloads of its own rounds it has.
    `all_start`: every client has the initial model; else those who are drawn later get it then.
    """

    all_start: bool
    _plans: list[RoundPlan] = field(default_factory=list)
    _rounds_of: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))  # client → its rounds

    def note(self, plan: RoundPlan) -> None:
        """The next round, in order."""
        assert plan.round == len(self._plans)
        self._plans.append(plan)
        for visit in plan.visits:
            self._rounds_of[visit.client].append(plan.round)

    def drop(self, round: int, client: int) -> None:
        """It has no part in this round after all, and holds nothing of it."""
        self._rounds_of[client].remove(round)

    def reads(self, round: int) -> int:
        """The last round that may be read in `round`."""
        return self._plans[round].reads

    def joins_late(self, client: int, round: int) -> bool:
        """Whether this is the client's first round, and it lacks the initial model."""
        return not self.all_start and round > 0 and self._rounds_of[client][0] == round

    def missed(self, client: int, round: int) -> tuple[int, ...]:
        """The rounds that it may read in `round` and does not hold, ascending."""
        own = self._rounds_of[client]
        before = [each for each in own if each < round]
        held = self._plans[before[-1]].reads if before else -1
        return tuple(each for each in range(max(held, -1) + 1, self._plans[round].reads + 1) if each not in before)
