"""What the server sees of one client is uniform: Pearson's chi-square on single bytes, with a bound on false alarms.

Randomness is the operating system's, so the draws differ from run to run. The test never fails by chance but with
probability 1e-6: see `CRITICAL`.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from parablock_ray.secure import client as client_module
from parablock_ray.secure.fixed_point import FixedPoint
from parablock_ray.secure.masks import Mask, apply_masks, pair_mask, self_mask
from parablock_ray.secure.primitives import agree
from tests.secure.federation import Federation, make_round

NUM_WORDS = 1 << 15
NUM_DRAWS = 6
# The quantile at 1e-10 of the chi-square distribution with 255 degrees of freedom is 425.92. There are at most 8 bytes
# in a word, 6 draws and 5 views: under 250 statistics of 256 cells with 128 expected in each, so under 3e-8 in all,
# which leaves a factor of 30 for the distribution being only nearly that.
CRITICAL = 426.0


def worst_statistic(words: np.ndarray) -> float:
    """The largest over the bytes of a word, each taken over all words."""
    in_bytes = words.view(np.uint8).reshape(len(words), words.itemsize)
    expected = len(words) / 256
    return max(float(((np.bincount(column, minlength=256) - expected) ** 2 / expected).sum()) for column in in_bytes.T)


def masked_vector(values: np.ndarray, bits: int) -> tuple[Federation, int, np.ndarray]:
    """A federation of 3 after the vector of one client is made, that client, and the vector as it is sent."""
    federation = Federation(make_round(3, 2, [(0, len(values))], bits))
    share_lists = federation.send_shares(federation.send_keys())
    client = federation.round.clients[1]
    federation.clients[client].take_shares(share_lists[client])
    return federation, client, federation.clients[client].masked(values)[:-1]


def pair_masks(federation: Federation, client: int) -> Iterator[Mask]:
    """The opposites of a client's pair masks, as whoever has recovered its pair key can make them."""
    for peer in set(federation.round.clients) - {client}:
        agreed = agree(federation.clients[client]._pair, federation.clients[peer]._pair.public)
        mask = pair_mask(agreed, federation.round.session, client, peer)
        mask.is_added = not mask.is_added
        yield mask


def own_mask(federation: Federation, client: int) -> Iterator[Mask]:
    yield self_mask(federation.clients[client]._self_seed, federation.round.session, client, is_added=False)


def both(federation: Federation, client: int) -> Iterator[Mask]:
    yield from pair_masks(federation, client)
    yield from own_mask(federation, client)


def draws(values: np.ndarray, bits: int, known: Callable[..., Iterator[Mask]] | None = None) -> Iterator[float]:
    """The statistic of what a server sees that knows some masks, over and over with new keys."""
    for _ in range(NUM_DRAWS):
        federation, client, words = masked_vector(values, bits)
        if known is not None:
            apply_masks(words, list(known(federation, client)))
        yield worst_statistic(words)


ZEROS = np.zeros(NUM_WORDS, np.float32)
UPDATE = np.random.default_rng(0).normal(scale=0.1, size=NUM_WORDS).astype(np.float32)


@pytest.mark.parametrize("bits", [32, 64])
def test_a_masked_vector_is_uniform(bits):
    assert max(draws(ZEROS, bits)) < CRITICAL


def test_so_is_one_that_comes_late_when_its_pair_key_is_known():
    """Why there are two masks: the server has recovered the pair key of a client that it took for dropped."""
    assert max(draws(ZEROS, 32, pair_masks)) < CRITICAL


def test_so_is_one_whose_self_mask_is_known():
    assert max(draws(ZEROS, 32, own_mask)) < CRITICAL


def test_so_is_the_difference_of_two_attempts_at_the_same_vector():
    for _ in range(NUM_DRAWS):
        _, _, first = masked_vector(UPDATE, 32)
        _, _, second = masked_vector(UPDATE, 32)
        assert worst_statistic(first - second) < CRITICAL


@pytest.mark.parametrize("values", [ZEROS, UPDATE], ids=["zeros", "update"])
def test_the_test_would_see_masks_that_are_left_out(values, monkeypatch):
    monkeypatch.setattr(client_module, "apply_masks", lambda words, masks: None)
    assert min(draws(values, 32)) > 10 * CRITICAL


def test_the_test_sees_the_vector_when_all_masks_are_known():
    assert min(draws(UPDATE, 32, both)) > 10 * CRITICAL
    federation, client, words = masked_vector(UPDATE, 32)
    apply_masks(words, list(both(federation, client)))
    weight = federation.weights[client]
    assert words.tolist() == federation.round.encoding.encode(UPDATE, weight)[0].tolist()


def test_the_test_sees_a_mask_that_is_used_twice():
    federation, client, words = masked_vector(UPDATE, 32)
    again, _ = federation.round.encoding.encode(ZEROS, 1)
    masks = list(both(federation, client))
    for mask in masks:
        mask.is_added = not mask.is_added
    apply_masks(again, masks)
    assert worst_statistic(words - again) > 10 * CRITICAL


@pytest.mark.parametrize("bits", [32, 64])
def test_a_mask_does_not_depend_on_where_chunks_end(bits):
    dtype = FixedPoint(bits, 4, 1.0, 1).dtype
    whole, parts = np.zeros(70_001, dtype), np.zeros(70_001, dtype)
    apply_masks(whole, [Mask(bytes(32), is_added=True)])
    mask = Mask(bytes(32), is_added=True)
    for start, end in ((0, 1), (1, 40_000), (40_000, 40_000), (40_000, 70_001)):
        apply_masks(parts[start:end], [mask])
    assert (whole == parts).all()


def test_a_mask_is_aes_in_counter_mode():
    """The first block is AES-256 of zero: FIPS 197's and NIST's known answer for an all-zero key and block."""
    words = np.zeros(4, "<u4")
    apply_masks(words, [Mask(bytes(32), is_added=True)])
    assert words.tobytes().hex() == "dc95c078a2408989ad48a21492842087"
