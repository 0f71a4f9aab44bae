"""Numbers over seeds: mean and standard deviation, and paired differences with their t-interval."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Student's t for a two-sided interval of 95 %, for 1, 2, … degrees of freedom.
_T_95 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)
_Z_95 = 1.959964


@dataclass(frozen=True)
class Spread:
    """`std` has n − 1 below the line; None for one value."""

    mean: float
    std: float | None
    num: int


@dataclass(frozen=True)
class PairedDifference:
    """Mean over the seeds that both have of (value − control's value), and half the width of its 95 % interval.

    The interval is Student's t for paired samples: t · s / √n, s being the differences' standard deviation. None for
    one seed.
    """

    mean: float
    half_width: float | None
    num: int


def t_95(num_degrees: int) -> float:
    """The 0.975 quantile of Student's t with `num_degrees`, 1 or more, of freedom; good to 3 decimals.

    Beyond 30 the first terms of its expansion in 1/ν (Abramowitz and Stegun, 26.7.5).
    """
    if num_degrees <= len(_T_95):
        return _T_95[num_degrees - 1]
    z = _Z_95
    return z + (z**3 + z) / (4 * num_degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * num_degrees**2)


def spread(values: Sequence[float]) -> Spread:
    """Of one value or more."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def paired_difference(values: Mapping[int, float], control: Mapping[int, float]) -> PairedDifference | None:
    """By seed; None where no seed is in both."""
    differences = [value - control[seed] for seed, value in values.items() if seed in control]
    if not differences:
        return None
    of_all = spread(differences)
    half_width = None if of_all.std is None else t_95(of_all.num - 1) * of_all.std / math.sqrt(of_all.num)
    return PairedDifference(of_all.mean, half_width, of_all.num)
