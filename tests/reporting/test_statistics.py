"""Spreads and paired intervals against independent formulas."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parablock_ray.reporting.statistics import paired_difference, spread, t_95

VALUES = st.floats(-100, 100)


def density(t: float, num_degrees: int) -> float:
    log_scale = (
        math.lgamma((num_degrees + 1) / 2) - math.lgamma(num_degrees / 2) - 0.5 * math.log(num_degrees * math.pi)
    )
    return math.exp(log_scale - (num_degrees + 1) / 2 * math.log1p(t * t / num_degrees))


@pytest.mark.parametrize("num_degrees", [*range(1, 36), 60, 200, 10_000])
def test_the_quantile_leaves_a_fortieth_above_it(num_degrees: int) -> None:
    end, steps = t_95(num_degrees), 4000  # Simpson's rule over the density, from 0 to the quantile
    width = end / steps
    weights = [1, *(4 if i % 2 else 2 for i in range(1, steps)), 1]
    below = 0.5 + width / 3 * sum(w * density(i * width, num_degrees) for i, w in enumerate(weights))
    assert below == pytest.approx(0.975, abs=5e-6)


def test_one_value_has_no_spread() -> None:
    assert (spread([2.0]).mean, spread([2.0]).std) == (2.0, None)
    assert spread([1.0, 3.0]).std == pytest.approx(math.sqrt(2))


def test_differences_are_paired_by_seed() -> None:
    values, control = {0: 1.0, 1: 5.0, 9: 77.0}, {1: 4.0, 0: 2.0, 8: -77.0}
    paired = paired_difference(values, control)
    assert paired is not None
    assert (paired.mean, paired.num) == (0.0, 2)
    assert paired.half_width == pytest.approx(12.7062 * math.sqrt(2) / math.sqrt(2))
    one = paired_difference({0: 1.0}, {0: 3.0})
    assert one is not None
    assert (one.mean, one.half_width) == (-2.0, None)
    assert paired_difference({0: 1.0}, {1: 3.0}) is None


@given(st.dictionaries(st.integers(0, 20), st.tuples(VALUES, VALUES), min_size=2), VALUES)
def test_what_a_seed_does_to_both_does_not_matter(pairs: dict[int, tuple[float, float]], shift: float) -> None:
    values = {seed: value for seed, (value, _) in pairs.items()}
    control = {seed: value for seed, (_, value) in pairs.items()}
    paired = paired_difference(values, control)
    moved = paired_difference(
        {seed: value + shift * seed for seed, value in values.items()},
        {seed: value + shift * seed for seed, value in control.items()},
    )
    back = paired_difference(control, values)
    assert paired is not None
    assert moved is not None
    assert back is not None
    assert moved.mean == pytest.approx(paired.mean, abs=1e-9)
    assert moved.half_width == pytest.approx(paired.half_width, abs=1e-8)
    assert (back.mean, back.half_width) == (pytest.approx(-paired.mean), pytest.approx(paired.half_width))
