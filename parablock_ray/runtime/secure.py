"""How the messages of secure aggregation travel between a worker and the server, beside the vectors.

Keys and shares of a round go as soon as it is planned, while rounds before it train and travel: so they delay nothing.
What unmasks its sum can only go once the last vector is in.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias, TypeVar

import ray
from torch import Tensor

from parablock_ray.algorithms.base import RoundPlan
from parablock_ray.network.links import Link
from parablock_ray.training.masking import MaskedUploads, SecureTerms

T = TypeVar("T")
Messages: TypeAlias = Mapping[int, bytes]
"""By client."""


class Masking:
    """The clients of one worker. One message to the server for all of them; cryptography in a thread of its own, so
    that neither the exchange nor the training waits for it.

    `create_task` starts what a round needs, whose failure must not be lost.
    """

    def __init__(
        self,
        terms: SecureTerms,
        server: ray.actor.ActorHandle,
        links: Mapping[int, Link],
        create_task: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"],
    ) -> None:
        self._uploads = MaskedUploads(terms)
        self._server = server
        self._links = links
        self._create_task = create_task
        self._thread = ThreadPoolExecutor(1)
        self._agreed: dict[int, asyncio.Task[None]] = {}  # by round: its clients can mask

    def begin(self, plan: RoundPlan, clients: Sequence[int]) -> None:
        """These clients are of this round, which is open at the server."""
        self._agreed[plan.round] = self._create_task(self._agree(plan, clients))
        self._create_task(self._unmask(plan.round, clients))

    async def mask(self, round: int, client: int, chunks: Sequence[Tensor]) -> list[Tensor]:
        """See MaskedUploads.mask; waits until the client can."""
        await self._agreed[round]
        return await self._run(lambda: self._uploads.mask(round, client, chunks))

    async def _agree(self, plan: RoundPlan, clients: Sequence[int]) -> None:
        keys = await self._run(partial(self._uploads.keys, plan, clients))
        key_lists = await self._asked(self._server.keys, plan.round, keys)
        shares = await self._run(partial(self._uploads.share, plan.round, key_lists))
        share_lists = await self._asked(self._server.shares, plan.round, shares)
        await self._run(partial(self._uploads.take_shares, plan.round, share_lists))

    async def _unmask(self, round: int, clients: Sequence[int]) -> None:
        survivors: Messages = await self._server.survivors.remote(round, clients)
        await self._down(survivors)
        reveals = await self._run(partial(self._uploads.reveal, round, survivors))
        del self._agreed[round]
        if reveals:
            await self._up(reveals)
            await self._server.reveal.remote(round, reveals)

    async def _asked(self, step: Any, round: int, messages: Messages) -> Messages:
        """What the server, in this method of its, answers once it has all clients' messages."""
        await self._up(messages)
        answers: Messages = await step.remote(round, messages)
        await self._down(answers)
        return answers

    async def _up(self, messages: Messages) -> None:
        """As long as it takes the slowest of these clients; they take no turn on its line, which they hardly occupy."""
        links = self._links
        seconds = [links[each].latency_s + links[each].up_s(len(messages[each])) for each in messages]
        await asyncio.sleep(max(seconds, default=0.0))

    async def _down(self, messages: Messages) -> None:
        links = self._links
        seconds = [links[each].latency_s + links[each].down_s(len(messages[each])) for each in messages]
        await asyncio.sleep(max(seconds, default=0.0))

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
