"""The cap on updates in flight at the server (`clients.max_in_flight`)."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice

from parablock_ray.algorithms.base import RoundPlan


@dataclass
class _Update:
    """One client's update of a round, until it and all before it are in their sums."""

    num_left: int  # chunks that have not arrived
    may_come: asyncio.Event = field(default_factory=asyncio.Event)


class InFlight:
    """Lets updates in by the order in which the server sums: of those that are not summed the first `limit`.

    So whatever the order of arrival no more than `limit` wait for their turn, and whose turn it is may always come:
    what it waits for itself, rounds before it, stands before it in the order. `limit` None: all may come.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._by_visit: OrderedDict[tuple[int, int], _Update] = OrderedDict()  # (round, client), in fold order

    def open(self, plan: RoundPlan, num_chunks: Mapping[int, int]) -> None:
        """Expect this round's updates, of so many chunks by client; rounds in order."""
        if self._limit is None:
            return
        for visit in plan.visits:
            self._by_visit[plan.round, visit.client] = _Update(num_chunks[visit.client])
        self._let_in()

    async def wait(self, round: int, client: int) -> None:
        """Until this client may send its update of this round."""
        if self._limit is not None:
            await self._by_visit[round, client].may_come.wait()

    def arrived(self, round: int, client: int) -> None:
        """One of the update's chunks is with the server. More than there are come from clients that were refused."""
        update = self._by_visit.get((round, client))
        if update is not None and update.num_left > 0:
            update.num_left -= 1
            self._let_in()

    def drop(self, round: int, client: int) -> None:
        """Nothing of this client's update of this round is waited for: it does not come, or was refused."""
        update = self._by_visit.get((round, client))
        if update is not None:
            update.num_left = 0
            self._let_in()

    def _let_in(self) -> None:
        while self._by_visit and next(iter(self._by_visit.values())).num_left == 0:
            self._by_visit.popitem(last=False)
        assert self._limit is not None
        for update in islice(self._by_visit.values(), self._limit):
            update.may_come.set()
