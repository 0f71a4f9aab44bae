"""One client's line without Ray: what passes when, full duplex and half."""

import asyncio
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from parablock_ray.algorithms.base import RoundPlan
from parablock_ray.network.links import Link
from parablock_ray.runtime import exchange as exchange_module
from parablock_ray.runtime.exchange import Arrival, Exchange
from parablock_ray.tracking.events import Span

PLAN = RoundPlan(round=1, block=0, reads=-1, visits=(), lr=0.0)
CHUNKS = [torch.zeros(2500), torch.zeros(2500)]  # 10 kB each: 0.1 s at 0.8 Mbit/s


class Server:
    """Notes the chunks that arrive."""

    def __init__(self) -> None:
        self.arrived: list[int] = []
        self.receive = SimpleNamespace(remote=self._receive)

    async def _receive(self, round: int, client: int, chunk: int, payload: np.ndarray) -> None:
        self.arrived.append(chunk)


class Inbox:
    """Everything is published 0.05 s after the start: in the middle of the first chunk's upload."""

    def __init__(self) -> None:
        self._published_s = time.time() + 0.05

    async def chunk(self, round: int, chunk: int) -> Arrival:
        await asyncio.sleep(max(0.0, self._published_s - time.time()))
        return Arrival(np.zeros(2500), self._published_s)


async def upload_and_download(duplex: str, server: Server) -> tuple[Span, Span]:
    """An upload, and a download of an earlier round that is published meanwhile."""
    link = Link(0.8, 0.8, latency_s=0.0, half_duplex=duplex == "half")
    exchange = Exchange(0, 0, link, "duplex", server, Inbox())
    upload = asyncio.create_task(exchange._upload(PLAN, CHUNKS))
    download = await exchange._download(PLAN, [10_000, 10_000])
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
