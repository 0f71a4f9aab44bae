"""One client's line without Ray: what passes when, full duplex and half; and a worker's inbox."""

import asyncio
import dataclasses
import time
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from parablock_ray.algorithms.base import RoundPlan, Sent, Update
from parablock_ray.config import load_config
from parablock_ray.errors import UserError
from parablock_ray.network.links import Link
from parablock_ray.runtime import exchange as exchange_module
from parablock_ray.runtime.client import ClientActor, way_out
from parablock_ray.runtime.exchange import FULL, Arrival, Chunk, Exchange, Outbox, Stream, put
from parablock_ray.runtime.exchange import Inbox as RealInbox
from parablock_ray.tracking.events import Span
from tests.runtime.federation import QUICKSTART

PLAN = RoundPlan(round=1, block=0, reads=-1, visits=(), lr=0.0)
CHUNKS = [torch.zeros(2500), torch.zeros(2500)]  # 10 kB each: 0.1 s at 0.8 Mbit/s


class Server:
    """Notes the chunks that arrive."""

    def __init__(self) -> None:
        self.arrived: list[int] = []
        self.receive_all = SimpleNamespace(remote=self._receive_all)

    async def _receive_all(self, sent: list[Sent], *payloads: np.ndarray) -> None:
        self.arrived += [each.chunk for each in sent]


class Inbox:
    """Everything is published 0.05 s after the start: in the middle of the first chunk's upload."""

    def __init__(self) -> None:
        self._published_s = time.time() + 0.05
        self.stream: Stream[Arrival] = Stream()

    def expect(self, plan: RoundPlan, variant: int) -> Stream[Arrival]:
        asyncio.get_running_loop().call_later(0.05, self._publish)
        return self.stream

    def _publish(self) -> None:
        for index, chunk in enumerate(CHUNKS):
            self.stream.put(Arrival(index, chunk.numpy(), self._published_s), is_last=chunk is CHUNKS[-1])


async def upload_and_download(duplex: str, server: Server) -> tuple[Span, Span]:
    """An upload, and a download of an earlier round that is published meanwhile."""
    link = Link(0.8, 0.8, latency_s=0.0, half_duplex=duplex == "half")
    exchange = Exchange(0, 0, link, "duplex", Outbox(server, is_limited=False), Inbox())
    upload = asyncio.create_task(exchange._upload(PLAN, list(CHUNKS)))
    download = await exchange._download(PLAN, 0, asyncio.Event())
    return await upload, download


@pytest.mark.parametrize("duplex", ["full", "half"])
def test_a_half_duplex_line_carries_one_transfer_at_a_time(monkeypatch: pytest.MonkeyPatch, duplex: str) -> None:
    monkeypatch.setattr(exchange_module.ray, "put", lambda payload: payload)
    server = Server()
    upload, download = asyncio.run(upload_and_download(duplex, server))
    assert server.arrived == [0, 1]
    upload_ends_s = upload.start_s + 2 * 0.1  # on the line, whenever this process noticed
    if duplex == "full":
        assert upload.start_s < download.start_s < upload_ends_s
    else:  # it waits for all of the upload, which was ready first, not for one chunk
        assert download.start_s == pytest.approx(upload_ends_s, abs=1e-6)
    assert (upload.num_bytes, download.num_bytes) == (20_000, 20_000)


def test_what_is_in_the_object_store_is_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module.ray, "put", lambda payload: payload.copy())
    memory = np.zeros(5000, np.float32)
    kept, chunks = weakref.ref(memory), list(torch.from_numpy(memory).split(2500))
    del memory
    alive: list[bool] = []

    class Watching(Server):
        async def _receive_all(self, sent: list[Sent], *payloads: np.ndarray) -> None:
            alive.extend(kept() is not None for _ in sent)

    async def upload() -> None:
        link = Link(0.8, 0.8, latency_s=0.1, half_duplex=False)
        await Exchange(0, 0, link, "duplex", Outbox(Watching(), is_limited=False), Inbox())._upload(PLAN, chunks)

    asyncio.run(upload())
    assert alive == [False, False], "both are put before the first is delivered"


def test_what_is_stored_already_is_not_stored_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[np.ndarray] = []
    monkeypatch.setattr(exchange_module.ray, "put", lambda payload: stored.append(payload) or payload)
    server, chunks = Server(), [put(CHUNKS[0]), CHUNKS[1]]

    async def upload() -> Span:
        link = Link(0.8, 0.8, latency_s=0.0, half_duplex=False)
        return await Exchange(0, 0, link, "duplex", Outbox(server, is_limited=False), Inbox())._upload(PLAN, chunks)

    span = asyncio.run(upload())
    assert (len(stored), server.arrived, span.num_bytes) == (2, [0, 1], 20_000)


def test_a_store_that_is_full_is_the_users_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(payload: np.ndarray) -> None:
        raise FULL[0]("full")

    monkeypatch.setattr(exchange_module.ray, "put", full)
    with pytest.raises(UserError, match=r"object store of a node is full.*clients\.max_in_flight"):
        put(CHUNKS[0])


@pytest.mark.parametrize(
    ("overrides", "leaves_at_once"),
    [
        ([], True),
        (["clients.max_in_flight=2"], False),
        (["network.mode=shaped", "network.up_mbps=8", "network.down_mbps=8"], False),
        (["network.mode=virtual", "network.up_mbps=8", "network.down_mbps=8"], False),
        (["secure_aggregation.enabled=true", "secure_aggregation.clip=0.1"], False),
    ],
)
def test_what_has_to_wait_does_not_wait_in_the_object_store(overrides: list[str], leaves_at_once: bool) -> None:
    assert (way_out(load_config(QUICKSTART, overrides)) is put) == leaves_at_once


class PublishedAtOnce:
    """Whatever is asked for is published at that moment."""

    def expect(self, plan: RoundPlan, variant: int) -> Stream[Arrival]:
        stream: Stream[Arrival] = Stream()
        for index, chunk in enumerate(CHUNKS):
            stream.put(Arrival(index, chunk.numpy(), time.time()), is_last=chunk is CHUNKS[-1])
        return stream


def test_a_second_download_follows_the_first_without_a_latency_between_them() -> None:
    async def two_downloads() -> tuple[Span, Span]:
        link = Link(0.8, 0.8, latency_s=0.1, half_duplex=False)
        exchange = Exchange(0, 0, link, "duplex", Outbox(Server(), is_limited=False), PublishedAtOnce())
        plans = [PLAN, dataclasses.replace(PLAN, round=2)]
        return tuple(await asyncio.gather(*(exchange._download(plan, 0, asyncio.Event()) for plan in plans)))

    first, second = asyncio.run(two_downloads())
    assert second.start_s == pytest.approx(first.start_s + 2 * 0.1, abs=1e-6)


def test_what_is_downloaded_need_not_wait_until_the_server_is_done_with_the_upload(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchange_module.ray, "put", lambda payload: payload)
    downloaded = asyncio.Event()

    class Waiting(Server):
        async def _receive_all(self, sent: list[Sent], *payloads: np.ndarray) -> None:
            await downloaded.wait()

    async def main() -> list[Span]:
        link = Link(8.0, 8.0, latency_s=0.0, half_duplex=False)
        exchange = Exchange(0, 0, link, "duplex", Outbox(Waiting(), is_limited=False), PublishedAtOnce())
        return await asyncio.wait_for(exchange.run(PLAN, 0, list(CHUNKS), downloaded), 30)

    assert [span.phase for span in asyncio.run(main())] == ["upload", "download"]


class Publisher:
    """Publishes three chunks, one at every call, and counts the calls."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.published = SimpleNamespace(remote=self._published)

    async def _published(self, round: int, variant: int, num_have: int) -> tuple[list, bool, tuple[int, ...]]:
        self.num_calls += 1
        await asyncio.sleep(0.01)
        return [Chunk(num_have, self._chunk(round, num_have))], num_have == 2, ()

    async def _chunk(self, round: int, chunk: int) -> np.ndarray:
        return np.full(2, 10.0 * round + chunk, np.float32)


def test_a_worker_fetches_a_publication_once_for_all_its_clients() -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:  # a fetch that fails must end the test, not hang it
            await fetch_and_read(tasks)

    async def fetch_and_read(tasks: asyncio.TaskGroup) -> None:
        publisher = Publisher()
        inbox = RealInbox(publisher, torch.float32, tasks.create_task)
        stream = inbox.expect(PLAN, variant=0)
        assert inbox.expect(PLAN, variant=0) is stream
        assert inbox.updates(after=0, up_to=1, variant=0) is None
        readers = [asyncio.create_task(_read(stream)) for _ in range(2)]
        late = [await reader for reader in readers] and await _read(stream)
        assert [each.payload[0] for each in late] == [10, 11, 12]
        assert [reader.result() == late for reader in readers] == [True, True]
        assert publisher.num_calls == 3
        [update] = inbox.updates(after=0, up_to=1, variant=0)
        assert (update.round, update.block) == (1, 0)
        assert update.values.tolist() == [10, 10, 11, 11, 12, 12]
        assert inbox.updates(after=1, up_to=1, variant=0) == []
        assert inbox.updates(after=-1, up_to=1, variant=0) is None
        inbox.forget(1)
        assert inbox.updates(after=0, up_to=1, variant=0) is None

    asyncio.run(main())


class Reconsidering(Publisher):
    """Publishes two chunks of three, and then all of them anew."""

    async def _published(self, round: int, variant: int, num_have: int) -> tuple[list, bool, tuple[int, ...]]:
        indices, offset = ([0, 1], 0) if num_have == 0 else ([0, 1, 2], 5)
        return [Chunk(index, self._chunk(round, index + offset)) for index in indices], num_have > 0, ()


def test_the_parts_of_an_update_have_their_places_also_when_they_come_again() -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            inbox = RealInbox(Reconsidering(), torch.float32, tasks.create_task)
            assert not inbox.is_expected(after=0, up_to=1, variant=0)
            inbox.expect(PLAN, variant=0)
            assert inbox.is_expected(after=0, up_to=1, variant=0)
            assert not inbox.is_expected(after=0, up_to=2, variant=0)
            parts = [part async for part in inbox.parts(after=0, up_to=1, variant=0)]
            found = [(part.round, part.block, part.start, part.values.tolist()) for part in parts]
            again = [(1, 0, 0, [15, 15]), (1, 0, 2, [16, 16]), (1, 0, 4, [17, 17])]
            assert found == [(1, 0, 0, [10, 10]), (1, 0, 2, [11, 11]), *again]

    asyncio.run(main())


@pytest.mark.parametrize("takes_parts", [True, False])
def test_a_chunk_is_in_the_model_before_the_last_is_published(takes_parts: bool) -> None:
    """Where there is no use for parts, the next round asks for the whole."""
    applied: list[int] = []
    is_taken = asyncio.Event()

    class Hesitating(Publisher):
        async def _published(self, round: int, variant: int, num_have: int) -> tuple[list, bool, tuple[int, ...]]:
            if num_have == 2 and takes_parts:
                await is_taken.wait()
            return await super()._published(round, variant, num_have)

    def apply(part: Update) -> None:
        applied.append(part.start)
        if len(applied) == 2:
            is_taken.set()

    async def now(work: Callable[[], None]) -> None:
        work()

    async def main() -> dict[int, int]:
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            inbox = RealInbox(Hesitating(), torch.float32, tasks.create_task)
            inbox.expect(PLAN, variant=0)
            worker = SimpleNamespace(takes_parts=takes_parts, apply=apply)
            actor = SimpleNamespace(_inbox=inbox, _worker=worker, _applied={0: 0}, _run=now)
            await ClientActor._take_in_early(actor, reads=1, variants={0})
        return actor._applied

    assert asyncio.run(main()) == ({0: 1} if takes_parts else {0: 0})
    assert applied == ([0, 2, 4] if takes_parts else [])


async def _read(stream: Stream[Arrival]) -> list[Arrival]:
    return [arrival async for arrival in stream.each()]
