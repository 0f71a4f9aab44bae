"""Numbers as integers: against Python's own, with room for every sum, and refused where there is none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from parablock_ray.errors import RunFailed, UserError
from parablock_ray.secure.fixed_point import FixedPoint, finest_fraction_bits

FINITE = st.floats(-3, 3, width=32)


@settings(deadline=None)
@given(
    values=arrays(np.float32, st.integers(1, 20), elements=FINITE),
    weight=st.integers(1, 1000),
    fraction_bits=st.integers(0, 19),
    bits=st.sampled_from([32, 64]),
)
def test_words_are_the_rounded_steps_times_the_weight(values, weight, fraction_bits, bits):
    encoding = FixedPoint(bits, fraction_bits, 2.0, 1000)
    words, num_clipped = encoding.encode(values, weight)
    steps = [round(min(max(float(value), -2.0), 2.0) * 2**fraction_bits) for value in values]
    assert words.tolist() == [weight * each % 2**bits for each in steps]
    assert encoding.as_signed(words).tolist() == [weight * each for each in steps]
    assert num_clipped == np.count_nonzero(np.abs(values) > 2)


def test_halves_go_to_even():
    words, _ = FixedPoint(32, 1, 4.0, 1).encode(np.array([0.25, 0.75, 1.25, -0.25, -0.75]), 1)
    assert FixedPoint(32, 1, 4.0, 1).as_signed(words).tolist() == [0, 2, 2, 0, -2]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("clip", [1e-3, 0.7, 1.0, 30.0])
def test_the_finest_fraction_fits_and_one_bit_more_does_not(bits, clip):
    num_clients, max_weight = 37, 1234
    finest = finest_fraction_bits(bits, clip, max_weight, num_clients)
    encoding = FixedPoint(bits, finest, clip, max_weight)
    encoding.require_room(num_clients)
    largest, _ = encoding.encode(np.array([clip, -clip]), max_weight)
    total = sum((largest for _ in range(num_clients)), np.zeros(2, encoding.dtype))
    exact = num_clients * max_weight * round(clip * 2**finest)
    assert encoding.as_signed(total).tolist() == [exact, -exact]
    with pytest.raises(UserError):
        FixedPoint(bits, finest + 1, clip, max_weight).require_room(num_clients)


def test_an_overflow_is_refused_before_the_start_with_what_to_do():
    message = (
        r"64 clients \* weight 1000 \* clip 8 \* 2\^20 does not fit into 32 bits with a sign; take 64 bits, fewer "
        "fraction bits, a smaller clip range, smaller weights or fewer clients"
    )
    with pytest.raises(UserError, match=message):
        FixedPoint(32, 20, 8.0, 1000).require_room(64)
    with pytest.raises(UserError, match=r"4096 clients \* weight 1000000 .* does not fit into 32 bits"):
        finest_fraction_bits(32, 1.0, 1_000_000, 4096)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((16, 8, 1.0, 1), "16 bits, allowed are 32 and 64"),
        ((32, -1, 1.0, 1), "-1 fraction bits, allowed are 0 to 256"),
        ((32, 8, 0.0, 1), r"a clip range of 0\.0, it must be a number above 0"),
        ((32, 8, float("inf"), 1), "a clip range of inf"),
        ((32, 8, float("nan"), 1), "a clip range of nan"),
        ((32, 8, 1.0, 0), "a largest weight of 0, it must be 1 or more"),
        ((64, 60, 1.0, 1), "fewer fraction bits"),
        ((64, 2, 0.1, 1), "more fraction bits"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        FixedPoint(*settings)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad):
    with pytest.raises(RunFailed, match="not finite"):
        FixedPoint(32, 8, 1.0, 1).encode(np.array([0.5, bad], np.float32), 1)
