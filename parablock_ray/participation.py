"""Who takes part: the plans of a method, less those who are left out. The log of that is part of what a run's values
are a function of."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from parablock_ray.algorithms.base import RoundPlan
from parablock_ray.errors import RunFailed
from parablock_ray.tracking.events import Committed, Dropped, Event

Late = Callable[[RoundPlan], Sequence[Dropped]]
"""Who of a plan is too slow for its round (`deadlines.py`)."""


class Participation:
    """The log of one run, through all its replays. `late`: who is too slow for a round; `known`: who is left out,
    whatever happens."""

    def __init__(self, min_participants: int, late: Late, known: Iterable[Dropped]) -> None:
        self._late = late
        self._min_participants = min_participants
        self._dropped: defaultdict[int, dict[int, Dropped]] = defaultdict(dict)  # round → client → why
        self._under_way: dict[int, RoundPlan] = {}
        for each in known:
            self.note(each)

    def attend(self, plan: RoundPlan) -> tuple[RoundPlan, Sequence[Dropped]]:
        """The plan without those who are left out, and who they are; whose update will be refused trains all the same.
        Raises RunFailed where too few are left."""
        for each in self._late(plan):
            self._dropped[plan.round].setdefault(each.client, each)
        dropped = [self._dropped[plan.round][v.client] for v in plan.visits if v.client in self._dropped[plan.round]]
        refused = frozenset(each.client for each in dropped if each.has_sent)
        left = replace(plan.without({each.client for each in dropped} - refused), refused=refused)
        if dropped:
            require_enough(len(left.visits) - len(refused), self._min_participants, dropped[-1])
        self._under_way[plan.round] = left
        return left, dropped

    def note(self, event: Event) -> None:
        """What is told of the run: rounds that are committed, and who was left out on the way."""
        if isinstance(event, Committed):
            self._under_way.pop(event.round, None)
        elif isinstance(event, Dropped):
            self._dropped[event.round][event.client] = event

    def under_way(self) -> list[RoundPlan]:
        """The rounds that were handed out and are not committed."""
        return list(self._under_way.values())

    def lose(self, clients: Collection[int], detail: str) -> None:
        """These clients leave the rounds that are under way."""
        for plan in self.under_way():
            for visit in plan.visits:
                if visit.client in clients:
                    self.note(Dropped(plan.round, visit.client, "lost", detail))

    def roll_back(self) -> None:
        """Rounds that were handed out will be so again."""
        self._under_way.clear()


def require_enough(num_left: int, min_participants: int, last: Dropped) -> None:
    """Raises RunFailed where a round cannot go on with so few, now that the last of them has dropped out."""
    if num_left < min_participants:
        raise RunFailed(
            f"round {last.round}: {num_left} client(s) left, fewer than clients.min_participants = {min_participants}; "
            f"the last to drop out was client {last.client} ({last.why}: {last.detail})"
        )
