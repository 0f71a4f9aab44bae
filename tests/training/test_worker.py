"""What a worker hands out of a visit, and from which memory."""

import math

import pytest
import torch

from parablock_ray.algorithms.methods import make_method
from parablock_ray.config import load_config
from parablock_ray.driver import prepare
from parablock_ray.errors import RunFailed
from parablock_ray.training.engine import TorchEngine, make_engine
from parablock_ray.training.worker import Worker
from tests.runtime.federation import QUICKSTART, SHORT


def made(tmp_path, *overrides):
    """A worker, and the plan of its first round, in which blocks have several chunks of unequal size."""
    short = [*SHORT, "engine.name=torch", "network.chunk_mb=0.05", f"out={tmp_path}", *overrides]
    config = load_config(QUICKSTART, short)
    prepared = prepare(config)
    worker = Worker(config, prepared.population, prepared.data, torch.device("cpu"), make_engine)
    return worker, make_method(config.method, prepared.population).plan(0)


class Put:
    """Notes where each chunk lay, and copies it."""

    def __init__(self):
        self.places = []

    def __call__(self, chunk):
        self.places.append(chunk.data_ptr())
        return chunk.clone()


def test_chunks_are_put_away_from_one_memory(tmp_path):
    """And what is put away is what whoever keeps the whole sends: in a first round nothing is pending yet."""
    put, kept = Put(), Put()
    worker, plan = made(tmp_path, "method.name=fedbcd")
    chunks = worker.train(plan, plan.visits[0], put).chunks
    assert len(chunks) > 2
    assert len(set(put.places)) == 1
    keeping, _ = made(tmp_path, "method.staleness=1")
    whole = keeping.train(plan, plan.visits[0], kept).chunks
    assert kept.places == []
    assert [len(chunk) for chunk in chunks] == [len(chunk) for chunk in whole]
    assert all(torch.equal(*pair) for pair in zip(chunks, whole, strict=True))
    assert any(chunk.abs().max() > 0 for chunk in chunks)


def test_a_single_chunk_is_left_to_whoever_sends_it(tmp_path):
    put = Put()
    worker, plan = made(tmp_path, "method.name=fedbcd", "network.chunk_mb=32")
    [chunk] = worker.train(plan, plan.visits[0], put).chunks
    [other] = worker.train(plan, plan.visits[1], put).chunks
    assert put.places == []
    assert not torch.equal(chunk, other), "in memory of its own"


@pytest.mark.parametrize("place", [0, -1])
def test_a_chunk_that_is_not_finite_is_not_put_away(tmp_path, monkeypatch, place):
    """Nor those behind it; and the model holds its committed values afterwards."""
    put = Put()
    worker, plan = made(tmp_path, "method.name=fedbcd")
    expected = worker.train(plan, plan.visits[0], torch.clone).chunks
    end = TorchEngine.end

    def broken(self):
        trained = end(self)
        trained[place].view(-1)[place] = math.nan
        return trained

    with monkeypatch.context() as during:
        during.setattr(TorchEngine, "end", broken)
        with pytest.raises(RunFailed, match=r"client 0, round 0, block \d: training is not finite"):
            worker.train(plan, plan.visits[0], put)
    assert len(put.places) == (0 if place == 0 else len(expected) - 1)
    again = worker.train(plan, plan.visits[0], torch.clone).chunks
    assert all(torch.equal(*pair) for pair in zip(again, expected, strict=True))
