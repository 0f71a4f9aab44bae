"""Data that comes in while a run goes on: which examples are there, and what they weigh."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from parablock_ray.algorithms.methods import make_method
from parablock_ray.algorithms.population import Population
from parablock_ray.algorithms.rng import generator
from parablock_ray.config.data import Arrival
from parablock_ray.config.method import FedBCD
from parablock_ray.training.batches import visit_order

SLOWLY = Arrival(initial=0.25, every=2, share=0.25)


@given(
    num_examples=st.integers(1, 60),
    round=st.integers(0, 20),
    seed=st.integers(0, 2**62),
    client=st.integers(0, 1000),
    arrivals=st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_what_is_there_stays(num_examples, round, seed, client, arrivals):
    held = np.arange(num_examples) * 3 + 1
    fewer, more = sorted(min(each, num_examples) for each in arrivals)
    there = visit_order(held, fewer, seed, round, client)
    assert len(set(there)) == fewer
    assert set(there) <= set(visit_order(held, more, seed, round + 1, client)) <= set(held)


@given(num_examples=st.integers(1, 60), round=st.integers(0, 20), seed=st.integers(0, 2**62))
def test_once_all_is_there_a_round_is_what_it_is_without_arrival(num_examples, round, seed):
    held = np.arange(num_examples) * 3 + 1
    shuffle = torch.randperm(num_examples, generator=generator(seed, "batches", 3, round)).numpy()
    assert np.array_equal(visit_order(held, num_examples, seed, round, client=3), held[shuffle])


def test_which_examples_come_first_differs_between_clients_and_seeds():
    held = np.arange(40)
    first = {tuple(sorted(visit_order(held, 10, seed, 0, client))) for seed in range(3) for client in range(3)}
    assert len(first) == 9


def test_a_client_weighs_what_it_holds_in_the_round():
    """Fold order, n_i and shares go by the round's own counts."""
    population = Population((10, 9, 2), num_drawn=3, seed=0, arrival=SLOWLY)
    method = make_method(FedBCD(name="fedbcd", num_blocks=1, rounds=10), population)

    def visits(round: int) -> list[tuple[int, int]]:
        return [(visit.client, visit.num_examples) for visit in method.plan(round).visits]

    assert visits(0) == visits(1) == [(0, 3), (1, 2), (2, 1)]
    assert visits(2) == [(0, 5), (1, 5), (2, 1)]
    assert visits(6) == visits(9) == [(0, 10), (1, 9), (2, 2)]
    assert [visit.share for visit in method.plan(2).visits] == [5 / 11, 5 / 11, 1 / 11]


def test_fold_order_follows_the_round():
    """A client that holds most in the end need not do so at first: here ties go by id until sizes part."""
    population = Population((2, 3), num_drawn=2, seed=0, arrival=Arrival(initial=0.1, every=1, share=0.5))
    method = make_method(FedBCD(name="fedbcd", num_blocks=1, rounds=10), population)
    assert [[visit.client for visit in method.plan(round).visits] for round in (0, 1)] == [[0, 1], [1, 0]]
