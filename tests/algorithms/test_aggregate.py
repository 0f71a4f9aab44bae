"""The ordered weighted sum and the server optimizers, against their textbook forms."""

import itertools
import random
import weakref
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parablock_ray.algorithms.aggregate import RoundSum, new_server_state, server_step
from parablock_ray.algorithms.base import RoundPlan, Visit
from parablock_ray.algorithms.wire import Wire
from parablock_ray.config.training import ServerAdagrad, ServerAdaptive, ServerMomentum, ServerSGD


def plan_of(num_examples: list[int]) -> RoundPlan:
    visits = tuple(Visit(client, n, n, n / sum(num_examples)) for client, n in enumerate(num_examples))
    return RoundPlan(0, 0, -1, visits, 0.1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6), st.integers(4, 400), st.booleans(), st.randoms())
def test_the_mean_is_folded_in_plan_order_whatever_arrives_first(num_examples, chunk_bytes, by_chunk, shuffle):
    deltas = torch.randn(len(num_examples), 67).to(torch.bfloat16)
    bounds = Wire(torch.bfloat16, chunk_bytes).bounds(67)
    total = RoundSum(plan_of(num_examples), bounds, torch.float32, by_chunk, clip=None)
    messages = [(client, chunk) for client in range(len(num_examples)) for chunk in range(len(bounds))]
    shuffle.shuffle(messages)
    for client, chunk in messages:
        assert not all(total.is_complete(each) for each in range(len(bounds)))
        start, end = bounds[chunk]
        total.add(client, chunk, deltas[client, start:end])
    weights = num_examples if len(num_examples) > 1 else [1]
    expected = torch.zeros(67)
    for delta, n in zip(deltas, weights, strict=True):
        expected = expected + delta.float() * n
    mean = torch.cat([total.mean(chunk) for chunk in range(len(bounds))])
    assert torch.equal(mean, expected / sum(weights))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_long_vector_is_summed_to_the_bits_of_the_plain_expression(dtype):
    """Longer than what is folded at once, and no multiple of it."""
    deltas = torch.randn(2, 2 * 131_072 + 4711, dtype=torch.float64).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    total = RoundSum(plan_of([7, 3]), [(0, deltas.shape[1])], wide, by_chunk=False, clip=None)
    for client in range(2):
        total.add(client, 0, deltas[client])
    expected = torch.zeros(deltas.shape[1], dtype=wide) + deltas[0].to(wide) * 7 + deltas[1].to(wide) * 3
    assert torch.equal(total.mean(0), expected / 10)


def test_what_is_first_is_added_to_zeros():
    total = RoundSum(plan_of([2, 1]), [(0, 3)], torch.float32, by_chunk=False, clip=None)
    total.add(0, 0, torch.tensor([-0.0, 0.0, 1.0]))
    total.add(1, 0, torch.tensor([-0.0, -0.0, 1.0]))
    assert not total.total().signbit().any(), "0.0 + -0.0 is 0.0"


def test_what_is_folded_is_let_go_once_its_client_is_whole():
    def whole_client() -> bool:
        return gone(RoundSum(plan_of([1, 1]), [(0, 2)], torch.float32, by_chunk=False, clip=None))

    def first_chunk(by_chunk: bool) -> bool:
        return gone(RoundSum(plan_of([1, 1]), [(0, 2), (2, 4)], torch.float32, by_chunk, clip=None))

    def gone(total: RoundSum, then: Callable[[RoundSum], object] = lambda total: None) -> bool:
        values = torch.ones(2)
        memory = weakref.ref(values.untyped_storage())
        total.add(0, 0, values)
        del values
        then(total)
        return memory() is None

    def last_client(then: Callable[[RoundSum], object]) -> bool:
        total = RoundSum(plan_of([1, 1]), [(0, 2)], torch.float32, by_chunk=False, clip=None)
        total.add(1, 0, torch.ones(2))
        return gone(total, then)

    assert whole_client()
    assert last_client(lambda total: total.mean(0))
    assert last_client(lambda total: total.fold_rest())  # of a round whose turn is to come
    assert not first_chunk(by_chunk=False)  # it waits for the others
    assert not first_chunk(by_chunk=True)  # its client may be found out yet


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 3), st.lists(st.booleans(), min_size=12, max_size=12), st.randoms())
def test_of_who_is_found_out_in_the_middle_nothing_is_left(who, has_arrived, shuffle):
    """Whatever of it was in the sum: the same bits as if it had never been there."""
    deltas, bounds = torch.randn(4, 6), [(0, 2), (2, 4), (4, 6)]
    messages = [(client, chunk) for client in range(4) for chunk in range(3)]
    shuffle.shuffle(messages)
    first = [each for each, arrived in zip(messages, has_arrived, strict=True) if arrived]
    plan, clean = plan_of([5, 3, 2, 2]), plan_of([5, 3, 2, 2]).without({who})
    total, expected = (RoundSum(each, bounds, torch.float32, by_chunk=True, clip=None) for each in (plan, clean))
    for client, chunk in first:
        total.add(client, chunk, deltas[client, slice(*bounds[chunk])])
    total.drop(who)
    for client, chunk in messages:
        if client != who:
            expected.add(client, chunk, deltas[client, slice(*bounds[chunk])])
            if (client, chunk) not in first:
                total.add(client, chunk, deltas[client, slice(*bounds[chunk])])
    assert all(torch.equal(total.mean(chunk), expected.mean(chunk)) for chunk in range(3))


def steps(optimizer, means: list[torch.Tensor]) -> list[torch.Tensor]:
    state = new_server_state(optimizer, len(means[0]), means[0].dtype)
    return [server_step(optimizer, state, mean.clone()) for mean in means]


MEANS = [torch.randn(9, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in range(4)]


def test_sgd_and_momentum():
    assert torch.equal(steps(ServerSGD(), MEANS)[2], MEANS[2])
    assert torch.equal(steps(ServerSGD(lr=0.5), MEANS)[1], MEANS[1] * 0.5)
    for nesterov in (False, True):
        x = torch.nn.Parameter(torch.zeros(9, dtype=torch.float64))
        reference = torch.optim.SGD([x], lr=0.7, momentum=0.9, nesterov=nesterov)
        ours = steps(ServerMomentum(name="nesterov" if nesterov else "momentum", lr=0.7, momentum=0.9), MEANS)
        for mean, step in zip(MEANS, ours, strict=True):
            before = x.detach().clone()
            x.grad = -mean
            reference.step()
            torch.testing.assert_close(x.detach() - before, step)


@pytest.mark.parametrize("name", ["adagrad", "adam", "yogi"])
def test_adaptive_rules_as_in_reddi_et_al(name):
    common = {"name": name, "lr": 0.3, "beta1": 0.8, "tau": 0.01}
    config = ServerAdagrad(**common) if name == "adagrad" else ServerAdaptive(**common, beta2=0.95)
    m, v = torch.zeros(9, dtype=torch.float64), torch.full((9,), 0.01**2, dtype=torch.float64)
    for mean, step in zip(MEANS, steps(config, MEANS), strict=True):
        m = 0.8 * m + 0.2 * mean
        v = {
            "adagrad": v + mean**2,
            "adam": 0.95 * v + 0.05 * mean**2,
            "yogi": v - 0.05 * mean**2 * torch.sign(v - mean**2),
        }[name]
        torch.testing.assert_close(step, 0.3 * m / (v.sqrt() + 0.01))


@pytest.mark.parametrize("optimizer", [ServerMomentum(name="nesterov"), ServerAdaptive(name="yogi")])
def test_a_step_by_chunks_has_the_same_bits(optimizer):
    mean = torch.randn(101)
    state = new_server_state(optimizer, 101, torch.float32)
    whole = server_step(optimizer, state, mean.clone())
    chunked = new_server_state(optimizer, 101, torch.float32)
    edges = [0, *sorted(random.Random(0).sample(range(1, 101), 6)), 101]
    parts = [
        server_step(optimizer, {k: v[a:b] for k, v in chunked.items()}, mean[a:b]) for a, b in itertools.pairwise(edges)
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(mean, whole), "the step lies in the memory of the mean"
    assert all(torch.equal(chunked[key], state[key]) for key in state)
