"""The server's threads without Ray: what it makes, and what goes out."""

import asyncio
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from parablock_ray.algorithms.base import Commit, Publication, RoundPlan
from parablock_ray.config import load_config
from parablock_ray.runtime import server as server_module
from parablock_ray.runtime.exchange import FULL, Stream
from parablock_ray.runtime.server import ServerActor

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
PLAN = RoundPlan(round=0, block=0, reads=-1, visits=(), lr=0.0)
NUM_CHUNKS = 4


@pytest.fixture
def server(tmp_path: Path) -> ServerActor:
    setup = SimpleNamespace(config=load_config(QUICKSTART, [f"out={tmp_path}", "evaluation.every=null"]))
    made = ServerActor(setup, num_workers=1, run_folder=str(tmp_path))
    made._published[0, 0] = Stream()
    return made


def round_of(made: list[int]) -> Iterator[Publication | Commit]:
    """Notes each chunk as it is made."""
    for chunk in range(NUM_CHUNKS):
        made.append(chunk)
        yield Publication(0, 0, chunk, torch.full((3,), float(chunk)), is_last=chunk == NUM_CHUNKS - 1)
    yield Commit(PLAN, 1.0)


async def publish(server: ServerActor, made: Iterator[Publication | Commit]) -> None:
    """As `receive` does; what is handed to the loop is there afterwards."""
    try:
        await server._run(partial(server._make_public, 0, made, asyncio.get_running_loop()))
    finally:
        await asyncio.sleep(0)


def test_a_chunk_goes_out_while_the_next_is_made(server, monkeypatch):
    made: list[int] = []
    next_is_made = [threading.Event() for _ in range(NUM_CHUNKS)]

    def put(payload):
        chunk = int(payload[0])
        if chunk + 1 < NUM_CHUNKS:  # else it would wait here forever
            assert next_is_made[chunk].wait(60)
        return chunk

    def chunks() -> Iterator[Publication | Commit]:
        for each in round_of(made):
            if len(made) > 1 and isinstance(each, Publication):
                next_is_made[each.chunk - 1].set()
            yield each

    monkeypatch.setattr(server_module.ray, "put", put)

    asyncio.run(publish(server, chunks()))
    assert [(chunk.index, chunk.reference) for chunk in server._published[0, 0].items] == [(i, i) for i in range(4)]
    assert server._committed[0].is_set()


def test_after_a_chunk_that_found_the_store_full_nothing_goes_out(server, monkeypatch):
    def put(payload):
        if payload[0] == 1:
            raise FULL[0]("full")

    monkeypatch.setattr(server_module.ray, "put", put)

    async def main() -> None:
        with pytest.raises(FULL):
            await publish(server, round_of([]))
        with pytest.raises(FULL):  # and of no later round either
            await publish(server, round_of([]))

    asyncio.run(main())
    stream = server._published[0, 0]
    assert [chunk.index for chunk in stream.items] == [0]
    assert not stream.is_complete
    assert not server._committed[0].is_set()
