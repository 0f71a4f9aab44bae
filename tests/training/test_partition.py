"""Splits: every example exactly once, the same for the same seed, and clear refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parablock_ray.errors import UserError
from parablock_ray.training.partition import iid, natural

TASKS = ["sum"] * 10 + ["gcd"] * 7 + ["lcm"] * 8


@settings(deadline=None)  # other work shares the machine
@given(num_examples=st.integers(1, 200), num_clients=st.integers(1, 20), seed=st.integers(0, 2**62))
def test_iid_deals_every_example_once_in_near_equal_parts(num_examples, num_clients, seed):
    if num_examples < num_clients:
        return
    parts = iid(["any"] * num_examples, num_clients, seed)
    assert sorted(np.concatenate(parts)) == list(range(num_examples))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)


@settings(deadline=None)  # other work shares the machine
@given(num_clients=st.integers(3, 15), seed=st.integers(0, 2**62))
def test_natural_gives_every_client_one_group_and_every_example_once(num_clients, seed):
    parts = natural(TASKS, num_clients, seed)
    assert sorted(np.concatenate(parts)) == list(range(len(TASKS)))
    for client, part in enumerate(parts):
        assert {TASKS[i] for i in part} == {["sum", "gcd", "lcm"][client % 3]}


@pytest.mark.parametrize("split", [iid, natural])
def test_the_seed_decides(split):
    def parts(seed):
        return [part.tolist() for part in split(TASKS, 6, seed)]

    assert parts(1) == parts(1)
    assert parts(1) != parts(2)


@pytest.mark.parametrize("split", [iid, natural])
def test_fewer_examples_than_clients(split):
    with pytest.raises(UserError, match=r"clients.num: 30 clients cannot share 25 training examples"):
        split(TASKS, 30, 0)


def test_natural_with_more_groups_than_clients():
    with pytest.raises(UserError, match=r"data.split: .* 3 \(sum, gcd, lcm .* raise it to 3"):
        natural(TASKS, 2, 0)


def test_natural_with_one_group_for_several_clients():
    with pytest.raises(UserError, match=r"data.split: .* all of it is sum; use iid"):
        natural(["sum"] * 9, 3, 0)


def test_natural_with_a_group_too_small_for_its_clients():
    with pytest.raises(UserError, match=r"clients.num: 2 clients cannot share 1 training examples of gcd"):
        natural(["sum"] * 9 + ["gcd"], 4, 0)
