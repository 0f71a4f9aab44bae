"""Splits: every example exactly once, the same for the same seed, and clear refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parablock_ray.errors import UserError
from parablock_ray.training.partition import dirichlet, iid, length_labels, natural, quantity, shards

TASKS = ["sum"] * 10 + ["gcd"] * 7 + ["lcm"] * 8


@settings(deadline=None)  # other work shares the machine
@given(num_examples=st.integers(1, 200), num_clients=st.integers(1, 20), seed=st.integers(0, 2**62))
def test_iid_deals_every_example_once_in_near_equal_parts(num_examples, num_clients, seed):
    if num_examples < num_clients:
        return
    parts = iid(num_examples, num_clients, seed)
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


def iid_of_tasks(tasks, num_clients, seed):
    return iid(len(tasks), num_clients, seed)


def dirichlet_of_tasks(tasks, num_clients, seed):
    return dirichlet(tasks, num_clients, seed, alpha=0.5, min_examples=1)


def quantity_of_tasks(tasks, num_clients, seed):
    return quantity(len(tasks), num_clients, seed, alpha=0.5, min_examples=1)


def shards_of_tasks(tasks, num_clients, seed):
    return shards(tasks, num_clients, seed, shards_per_client=2)


EVERY_SPLIT = [iid_of_tasks, natural, dirichlet_of_tasks, quantity_of_tasks, shards_of_tasks]


@pytest.mark.parametrize("split", EVERY_SPLIT)
def test_the_seed_decides(split):
    def parts(seed):
        return [part.tolist() for part in split(TASKS, 6, seed)]

    assert parts(1) == parts(1)
    assert parts(1) != parts(2)


@pytest.mark.parametrize("split", [iid_of_tasks, natural, dirichlet_of_tasks, quantity_of_tasks])
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


ALPHAS = st.sampled_from([0.01, 0.1, 1.0, 100.0, 1e6])


@settings(deadline=None, max_examples=60)  # other work shares the machine
@given(
    num_of_label=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    num_clients=st.integers(1, 8),
    min_examples=st.integers(1, 4),
    alpha=ALPHAS,
    seed=st.integers(0, 2**62),
)
def test_dirichlet_deals_every_example_once_and_keeps_the_minimum(num_of_label, num_clients, min_examples, alpha, seed):
    labels = [f"label {label}" for label, num in enumerate(num_of_label) for _ in range(num)]
    if len(labels) < num_clients * min_examples:
        return
    parts = dirichlet(labels, num_clients, seed, alpha, min_examples)
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))
    assert min(map(len, parts)) >= min_examples
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)


@settings(deadline=None, max_examples=60)  # other work shares the machine
@given(
    num_examples=st.integers(1, 200),
    num_clients=st.integers(1, 8),
    min_examples=st.integers(1, 4),
    alpha=ALPHAS,
    seed=st.integers(0, 2**62),
)
def test_quantity_deals_every_example_once_and_keeps_the_minimum(num_examples, num_clients, min_examples, alpha, seed):
    if num_examples < num_clients * min_examples:
        return
    parts = quantity(num_examples, num_clients, seed, alpha, min_examples)
    assert sorted(np.concatenate(parts)) == list(range(num_examples))
    assert min(map(len, parts)) >= min_examples


def share_variance(of_clients):
    """Mean over draws and clients of the squared distance of a client's share from 1 / clients."""
    shares = np.array(of_clients, dtype=float)
    shares /= shares.sum(axis=-1, keepdims=True)
    return float(((shares - 1 / shares.shape[-1]) ** 2).mean())


@pytest.mark.parametrize("alpha", [0.1, 0.5, 2.0, 20.0])
def test_dirichlet_has_the_variance_of_the_dirichlet_distribution(alpha):
    """A share of Dir(alpha) over K clients has the mean 1/K and the variance (1/K)(1 - 1/K) / (alpha K + 1)."""
    num_clients, num_of_label, num_labels = 5, 2000, 200
    labels = [f"{label}" for label in range(num_labels) for _ in range(num_of_label)]
    of_label = np.repeat(np.arange(num_labels), num_of_label)
    parts = dirichlet(labels, num_clients, 3, alpha, 1)
    counts = np.stack([np.bincount(of_label[part], minlength=num_labels) for part in parts], axis=1)
    expected = (1 / num_clients) * (1 - 1 / num_clients) / (alpha * num_clients + 1)
    # 200 draws of 5 shares: the sample variance is within a fifth of its expectation for this seed.
    assert share_variance(counts) == pytest.approx(expected, rel=0.2)
    assert counts.mean(axis=0) / num_of_label == pytest.approx(np.full(num_clients, 1 / num_clients), abs=0.12)


def test_label_skew_grows_as_alpha_falls():
    labels = [f"{label}" for label in range(10) for _ in range(200)]
    of_label = np.repeat(np.arange(10), 200)

    def skew(alpha):
        """Mean distance (total variation) of a client's labels from those of all."""
        distances = []
        for seed in range(5):
            for part in dirichlet(labels, 8, seed, alpha, 1):
                shares = np.bincount(of_label[part], minlength=10) / len(part)
                distances.append(np.abs(shares - 0.1).sum() / 2)
        return np.mean(distances)

    skews = [skew(alpha) for alpha in (100.0, 10.0, 1.0, 0.1, 0.01)]
    assert skews == sorted(skews)
    assert skews[0] < 0.1
    assert skews[-1] > 0.6


def test_a_huge_alpha_is_an_even_split():
    parts = dirichlet(["a"] * 40 + ["b"] * 60, 4, 0, 1e9, 1)
    assert [len(part) for part in parts] == [25] * 4
    assert [(part < 40).sum() for part in parts] == [10] * 4
    assert [len(part) for part in quantity(100, 4, 0, 1e9, 1)] == [25] * 4


def test_a_minimum_that_cannot_be_met():
    with pytest.raises(UserError, match=r"data.split.min_examples: 5 clients of at least 6 .* allowed: at most 5"):
        dirichlet(TASKS, 5, 0, 1.0, 6)
    with pytest.raises(UserError, match=r"data.split.min_examples: 5 clients of at least 6 .* allowed: at most 5"):
        quantity(25, 5, 0, 1.0, 6)


@settings(deadline=None)  # other work shares the machine
@given(num_clients=st.integers(1, 10), shards_per_client=st.integers(1, 4), seed=st.integers(0, 2**62))
def test_a_client_of_k_shards_holds_few_labels(num_clients, shards_per_client, seed):
    labels = [f"{label}" for label in range(5) for _ in range(40)]
    parts = shards(labels, num_clients, seed, shards_per_client)
    assert sorted(np.concatenate(parts)) == list(range(200))
    assert max(map(len, parts)) - min(map(len, parts)) <= shards_per_client
    longest = -(-200 // (num_clients * shards_per_client))
    # A shard of n examples sorted by label crosses at most 1 + ceil((n - 1) / 40) labels.
    most = shards_per_client * (1 + -(-(longest - 1) // 40))
    assert max(len({labels[i] for i in part}) for part in parts) <= most


def test_more_shards_than_examples():
    with pytest.raises(UserError, match=r"data.split.shards_per_client: 13 clients .* 26, but there are 25"):
        shards(TASKS, 13, 0, 2)


def test_length_buckets_hold_as_many_examples_each():
    lengths = np.random.default_rng(0).permutation(np.arange(10, 90))
    labels = length_labels(lengths, 4)
    assert sorted(set(labels)) == [f"up to {edge} tokens" for edge in (29, 49, 69, 89)]
    assert {label: labels.count(label) for label in labels} == dict.fromkeys(labels, 20)
    assert all(int(label.split()[2]) >= length for label, length in zip(labels, lengths, strict=True))


def test_equal_lengths_share_a_bucket():
    assert length_labels(np.array([7, 7, 7, 7, 7, 9]), 3) == ["up to 7 tokens"] * 5 + ["up to 9 tokens"]
