"""Sharing: recovery against the library's own interpolation, and below the threshold nothing."""

import random

import pytest
import shamirs

from parablock_ray.secure.shares import PRIME, is_share, new_seed, recover, split, weights_at_zero


@pytest.mark.parametrize(("num_shares", "threshold"), [(2, 2), (5, 3), (12, 8)])
def test_any_threshold_of_shares_gives_the_seed_as_the_library_says(num_shares, threshold):
    seed = new_seed()
    shares = split(seed, num_shares, threshold)
    for turn in range(5):
        chosen = random.Random(turn).sample(range(num_shares), threshold)
        weights = weights_at_zero([place + 1 for place in chosen])
        assert recover([shares[place] for place in chosen], weights) == seed
        points = [shamirs.share(place + 1, int.from_bytes(shares[place], "little"), PRIME) for place in chosen]
        assert shamirs.interpolate(points, threshold=threshold) == int.from_bytes(seed, "little")


def test_one_share_fewer_gives_something_else():
    seed = new_seed()
    shares = split(seed, 5, 3)
    assert recover(shares[:2], weights_at_zero([1, 2])) != seed


def test_the_same_seed_is_shared_otherwise_each_time():
    seed = new_seed()
    assert not set(split(seed, 5, 3)) & set(split(seed, 5, 3))


def test_numbers_beyond_the_field_are_no_shares():
    assert is_share((PRIME - 1).to_bytes(32, "little"))
    assert not is_share(PRIME.to_bytes(32, "little"))
