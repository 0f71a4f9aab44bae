"""Planning: which block, who, at what learning rate."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parablock_ray.algorithms.learning_rate import learning_rate
from parablock_ray.algorithms.methods import METHODS, make_method
from parablock_ray.algorithms.population import Population, drawn_by_size
from parablock_ray.config.method import FedBCD, ParaBlock
from tests.config.names import method_names

EVERYONE = Population(num_examples=(5, 9, 2, 9), num_drawn=4, seed=3)
SAMPLED = Population(num_examples=tuple(range(1, 21)), num_drawn=4, seed=3)


def parablock(**changes) -> ParaBlock:
    return ParaBlock(name="parablock", **{"num_blocks": 3, "rounds": 40, **changes})


def test_every_configured_method_is_registered_and_the_reverse():
    assert set(METHODS) == method_names()


def test_the_cohort_stands_in_fold_order_with_shares_that_sum_to_one():
    plan = make_method(parablock(), EVERYONE).plan(0)
    assert [visit.client for visit in plan.visits] == [1, 3, 0, 2]
    assert [visit.share for visit in plan.visits] == [9 / 25, 9 / 25, 5 / 25, 2 / 25]


@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
def test_every_sweep_visits_every_block_once(order):
    method = make_method(parablock(order=order), EVERYONE)
    blocks = [method.plan(t).block for t in range(39)]
    sweeps = [blocks[at : at + 3] for at in range(0, 39, 3)]
    assert all(sorted(sweep) == [0, 1, 2] for sweep in sweeps)
    expected = {"ascending": [[0, 1, 2]], "descending": [[2, 1, 0]]}
    if order == "random":
        assert len({tuple(sweep) for sweep in sweeps}) > 3
    else:
        assert sweeps == expected[order] * 13


def test_plans_are_a_function_of_the_seed_whatever_the_order_of_asking():
    forwards, at_once = make_method(parablock(), SAMPLED), make_method(parablock(), SAMPLED)
    last = at_once.plan(39)
    assert [forwards.plan(t) for t in range(40)][-1] == last
    other = make_method(parablock(), Population(SAMPLED.num_examples, 4, seed=4))
    assert [other.plan(t).visits for t in range(40)] != [forwards.plan(t).visits for t in range(40)]


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_reads_are_exactly_staleness_rounds_older_than_fedbcds(staleness):
    method = make_method(parablock(staleness=staleness), EVERYONE)
    assert [method.plan(t).reads for t in range(5)] == [t - 1 - staleness for t in range(5)]


@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.integers(1, 8))
def test_drawn_by_size_every_client_counts_by_its_size_exactly(sizes, num):
    """Over all offsets, which are equally likely: so with equal weights a mean over the draws is unbiased."""
    draws = [drawn_by_size(torch.tensor(sizes), num, offset) for offset in range(sum(sizes))]
    times = torch.stack([torch.bincount(draw, minlength=len(sizes)) for draw in draws])
    assert times.sum(dim=0).tolist() == [num * size for size in sizes]
    expected = torch.tensor(sizes) * num / sum(sizes)
    assert ((times - expected).abs() < 1).all()  # in every round: never drawn twice without need


def test_the_aggregate_of_those_drawn_by_size_is_unbiased_and_their_draws_weigh_the_same():
    sizes, deltas = (1, 2, 3, 10), torch.tensor([5.0, -2.0, 1.0, 0.5], dtype=torch.float64)
    method = make_method(parablock(rounds=4000), Population(sizes, 2, seed=0, sampling="by_size"))
    plans = [method.plan(round) for round in range(4000)]
    means = [sum(visit.share * deltas[visit.client] for visit in plan.visits) for plan in plans]
    expected = sum(n * delta for n, delta in zip(sizes, deltas, strict=True)) / sum(sizes)
    assert abs(sum(means) / 4000 - expected) < 0.05
    assert all(sum(visit.weight for visit in plan.visits) == 2 for plan in plans)
    assert {visit.num_examples for plan in plans for visit in plan.visits} == set(sizes)  # what they hold is told too


def test_all_of_a_large_population_are_drawn_in_time():
    method = make_method(parablock(rounds=200), SAMPLED)
    drawn = [visit.client for t in range(200) for visit in method.plan(t).visits]
    assert set(drawn) == set(range(20))
    assert all(20 < drawn.count(client) < 60 for client in range(20)), "uniform: about 40 each"


def test_learning_rate_schedules():
    def rates(schedule, warmup):
        config = FedBCD(name="fedbcd", rounds=10, lr=1.0, lr_schedule=schedule, warmup_rounds=warmup)
        return [learning_rate(config, t) for t in range(10)]

    assert rates("constant", 0) == [1.0] * 10
    assert rates("constant", 4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates("linear", 0) == pytest.approx([1 - t / 10 for t in range(10)])
    cosine = rates("cosine", 2)
    assert cosine[:3] == [0.5, 1.0, 1.0]
    assert cosine[6] == pytest.approx(0.5)
    assert cosine[2:] == sorted(cosine[2:], reverse=True)
    assert 0 < cosine[-1] < 0.05
