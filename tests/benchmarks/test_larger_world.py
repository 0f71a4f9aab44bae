"""The simulated worlds against closed forms."""

import importlib
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def larger_world(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; scripts find each other in their own folder."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("larger_world")


@pytest.fixture
def world(larger_world: ModuleType):
    return larger_world.World("Llama-3.2-1B", 4, 100, math.inf, latency_ms=0.0, tflops=math.inf, visit_tokens=81_920)


def test_a_layer_has_the_size_that_is_published(larger_world, world):
    sizes = {"Llama-3.2-1B": 121.6, "Llama-3.2-3B": 201.3, "Llama-2-7B": 404.8, "Llama-3-8B": 436.2}
    for model, megabytes in sizes.items():
        assert larger_world.block_bytes(replace(world, model=model)) / 1e6 == pytest.approx(megabytes, abs=0.05)


def test_an_exchange_alone_takes_its_bytes_over_the_slower_line(larger_world, world):
    """Without training a round of FedBCD is one upload and one download."""
    one_s = larger_world.block_bytes(world) * 8 / 100e6
    assert larger_world.round_s(world, larger_world.FEDBCD) == pytest.approx(2 * one_s, rel=1e-6)


def test_at_the_wall_a_round_is_a_queue(larger_world, world):
    """16 uploads, one download, and the first client begins anew while the others are served; at the end 15 more. With
    4 aggregators it is a queue of 4 + 1 and, through their own lines and the root's, another of 1 + 4 + 1 + 1."""
    crowd = replace(world, num_clients=16, link_mbps=1e7, server_mbps=1000)
    one_s = larger_world.block_bytes(world) * 8 / 1e9
    flat, tree = (way(crowd, larger_world.FEDBCD) for way in (larger_world.round_s, larger_world.tree_round_s))
    num_rounds = larger_world.NUM_ROUNDS
    assert flat == pytest.approx(one_s * (17 + 15 / num_rounds), rel=1e-3)
    assert tree == pytest.approx(one_s * (5 + 3 / num_rounds + 7 + 3 / num_rounds), rel=1e-3)


def test_a_visit_is_the_mean_of_the_shares(larger_world, world):
    slow = replace(world, tflops=1.0)
    num_params = 1_235_814_400  # as published, embeddings once
    full_s = 6 * num_params * 81_920 / 1e12
    assert larger_world.compute_s(slow) == pytest.approx(0.45 * full_s, rel=1e-6)
