"""The cap on updates in flight: the first in fold order, whatever arrives first; nothing waits for ever."""

import asyncio
import random

import pytest

from parablock_ray.algorithms.base import RoundPlan, Sent, Visit
from parablock_ray.runtime.exchange import Outbox
from parablock_ray.runtime.in_flight import InFlight

ORDER = [(0, 4), (0, 2), (0, 7), (1, 2), (1, 5)]  # (round, client) as the server sums


def opened(limit: int | None, num_chunks: int = 1) -> InFlight:
    in_flight = InFlight(limit)
    for round in (0, 1):
        visits = tuple(Visit(client, 1, 1, 0.1) for of, client in ORDER if of == round)
        plan = RoundPlan(round, block=0, reads=-1, visits=visits, lr=0.1)
        in_flight.open(plan, {visit.client: num_chunks for visit in visits})
    return in_flight


async def let_in(in_flight: InFlight) -> list[tuple[int, int]]:
    """Who may come now, of those that have not come."""
    waits = {key: asyncio.ensure_future(in_flight.wait(*key)) for key in ORDER if key in in_flight._by_visit}
    for _ in range(3):
        await asyncio.sleep(0)
    found = [key for key, wait in waits.items() if wait.done()]
    for wait in waits.values():
        wait.cancel()
    return found


def test_only_the_first_few_may_come() -> None:
    async def main() -> None:
        in_flight = opened(2, num_chunks=2)
        assert await let_in(in_flight) == ORDER[:2]
        in_flight.arrived(0, 2)
        in_flight.arrived(0, 2)  # it waits for client 4: nobody else may come for it
        assert await let_in(in_flight) == ORDER[:2]
        in_flight.arrived(0, 4)
        assert await let_in(in_flight) == ORDER[:2]
        in_flight.arrived(0, 4)
        assert await let_in(in_flight) == ORDER[2:4]
        in_flight.drop(0, 7)
        assert await let_in(in_flight) == ORDER[3:]

    asyncio.run(main())


def test_without_a_limit_all_may_come() -> None:
    async def main() -> None:
        in_flight = opened(None)
        await asyncio.gather(*(in_flight.wait(*key) for key in ORDER))
        in_flight.arrived(0, 4)
        in_flight.drop(0, 2)

    asyncio.run(main())


def test_of_a_refused_update_more_may_come() -> None:
    async def main() -> None:
        in_flight = opened(1, num_chunks=2)
        in_flight.arrived(0, 4)
        in_flight.drop(0, 4)
        in_flight.arrived(0, 4)
        in_flight.drop(0, 7)  # before its turn
        in_flight.arrived(0, 7)
        assert await let_in(in_flight) == ORDER[1:2]

    asyncio.run(main())


@pytest.mark.parametrize("limit", [1, 2, 3])
@pytest.mark.parametrize("slowest_first", [True, False])
def test_no_more_are_there_than_the_limit_and_none_waits_for_ever(limit: int, slowest_first: bool) -> None:
    """Workers of reversed speeds, each of which trains its clients in the order of the plan."""

    async def main() -> list[int]:
        in_flight, present, most = opened(limit), set(), []

        async def send(key: tuple[int, int]) -> None:
            await in_flight.wait(*key)
            present.add(key)
            most.append(len(present))
            await asyncio.sleep(random.random() * 0.01)
            in_flight.arrived(*key)
            present.intersection_update(set(in_flight._by_visit))

        async def worker(mine: list[tuple[int, int]], step_s: float) -> None:
            for key in mine:
                await asyncio.sleep(step_s)
                sends.append(asyncio.create_task(send(key)))

        sends: list[asyncio.Task[None]] = []
        speeds = (0.02, 0.0) if slowest_first else (0.0, 0.02)
        async with asyncio.timeout(10):
            await asyncio.gather(worker(ORDER[::2], speeds[0]), worker(ORDER[1::2], speeds[1]))
            await asyncio.gather(*sends)
        assert not in_flight._by_visit
        return most

    assert max(asyncio.run(main())) <= limit


class Server:
    """Notes messages; each takes a moment."""

    def __init__(self) -> None:
        self.messages: list[list[int]] = []
        self.receive_all = self

    async def remote(self, sent: list[Sent], *payloads: int) -> None:
        assert [each.chunk for each in sent] == list(payloads)
        self.messages.append(list(payloads))
        await asyncio.sleep(0.01)


def test_what_is_ready_while_a_message_is_under_way_goes_with_the_next() -> None:
    async def main() -> None:
        server = Server()
        outbox = Outbox(server, is_limited=False)
        await asyncio.gather(*(outbox.deliver(Sent(0, 0, 0, chunk), chunk) for chunk in range(5)))
        assert server.messages == [[0], [1, 2, 3, 4]]

    asyncio.run(main())
