"""The cap on updates in flight at the server (`clients.max_in_flight`)."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from itertools import islice

from parablock_ray.algorithms.base import RoundPlan


@dataclass
class _Update:
    """One client's update of a round, until it and all before it are in their sums."""

    client: int
    num_left: int | None = None  # chunks that have not arrived; None: none has
    may_come: asyncio.Event = field(default_factory=asyncio.Event)


class InFlight:
    """Lets updates in by the order in which the server sums: of those that are not summed the first `limit`.

    So whatever the order of arrival no more than `limit` wait for their turn, and whose turn it is may always come:
    what it waits for itself, rounds before it, stands before it in the order. `limit` None: all may come.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._updates: deque[tuple[int, _Update]] = deque()  # with their rounds, in fold order
        self._by_visit: dict[tuple[int, int], _Update] = {}

    def open(self, plan: RoundPlan) -> None:
        """Expect this round's updates; rounds in order."""
        if self._limit is None:
            return
        for visit in plan.visits:
            update = self._by_visit[plan.round, visit.client] = _Update(visit.client)
            self._updates.append((plan.round, update))
        self._let_in()

    async def wait(self, round: int, client: int) -> None:
        """Until this client may send its update of this round."""
        if self._limit is not None:
            await self._by_visit[round, client].may_come.wait()

    def arrived(self, round: int, client: int, num_chunks: int) -> None:
        """One of the update's chunks is with the server."""
        if self._limit is None:
            return
        update = self._by_visit[round, client]
        update.num_left = (num_chunks if update.num_left is None else update.num_left) - 1
        self._let_in()

    def drop(self, round: int, client: int) -> None:
        """This client, which has sent nothing of this round, will not."""
        if self._limit is None:
            return
        self._by_visit[round, client].num_left = 0
        self._let_in()

    def _let_in(self) -> None:
        while self._updates and self._updates[0][1].num_left == 0:
            round, update = self._updates.popleft()
            del self._by_visit[round, update.client]
        assert self._limit is not None
        for _, update in islice(self._updates, self._limit):
            update.may_come.set()
