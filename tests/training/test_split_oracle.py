"""Our Dirichlet split against another implementation: Flower Datasets' DirichletPartitioner."""

import datasets
import numpy as np
import pytest

from parablock_ray.training.partition import dirichlet

pytest.importorskip(
    "flwr_datasets",
    reason="needs flwr-datasets, which wants datasets below 5: pip install --no-deps flwr-datasets seaborn",
)

NUM_SEEDS = 150
NUM_CLIENTS = 5
LABELS = np.repeat(["a", "b", "c"], [600, 300, 100])
DATASET = datasets.Dataset.from_dict({"label": LABELS.tolist()})


def counts_of(parts: list) -> np.ndarray:
    """(clients, labels)"""
    return np.array([[(LABELS[np.array(part, int)] == label).sum() for label in "abc"] for part in parts])


def ours(alpha: float, seed: int) -> np.ndarray:
    return counts_of(dirichlet(LABELS.tolist(), NUM_CLIENTS, seed, alpha, min_examples=1))


def theirs(alpha: float, seed: int) -> np.ndarray:
    """No client is given examples for balance, and no draw is made again because one has few."""
    from flwr_datasets.partitioner import DirichletPartitioner

    partitioner = DirichletPartitioner(
        NUM_CLIENTS, "label", alpha, min_partition_size=0, self_balancing=False, shuffle=False, seed=seed
    )
    partitioner.dataset = DATASET
    partitioner.load_partition(0)  # draws; to load every part takes 15 times as long
    return counts_of([partitioner._partition_id_to_indices[client] for client in range(NUM_CLIENTS)])


def many(draw, alpha: float) -> np.ndarray:
    """(seeds, clients, labels)"""
    return np.stack([draw(alpha, seed) for seed in range(NUM_SEEDS)])


def agree(first: np.ndarray, second: np.ndarray, rounding: float) -> bool:
    """Whether means over seeds (axis 0) are within 4 standard errors of each other, and `rounding` on top.

    Means of 150 draws are normal by the central limit theorem, so that each of them would be further off once in
    16,000 times if both distributions are the same. Both sides' seeds are fixed: what passes once passes again.
    """
    error = np.sqrt((first.var(axis=0) + second.var(axis=0)) / NUM_SEEDS)
    return bool(np.all(np.abs(first.mean(axis=0) - second.mean(axis=0)) <= 4 * error + rounding))


def sorted_counts(counts: np.ndarray) -> np.ndarray:
    """Of every label: the least that a client holds, …, the most."""
    return np.sort(counts, axis=1)


def spreads(counts: np.ndarray) -> np.ndarray:
    """The standard deviation over clients of each label's counts, and of their sizes."""
    return np.concatenate([counts, counts.sum(axis=2, keepdims=True)], axis=2).std(axis=1)


@pytest.mark.parametrize("alpha", [0.3, 3.0])
def test_clients_hold_what_flower_would_give_them(alpha):
    """Cuts are rounded down there and to the nearest here, which moves the mean by half an example at most."""
    first, second = many(ours, alpha), many(theirs, alpha)
    assert agree(sorted_counts(first), sorted_counts(second), rounding=0.5)
    assert agree(spreads(first), spreads(second), rounding=0.5)
    other = many(ours, alpha / 2)
    assert not agree(spreads(other), spreads(second), rounding=0.5), "half the alpha would be told apart"
