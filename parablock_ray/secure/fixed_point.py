"""Numbers as integers modulo 2^32 or 2^64, in which sums are exact and masks cancel."""

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from parablock_ray.errors import RunFailed, UserError
from parablock_ray.secure.masks import Words

Integers: TypeAlias = NDArray[np.signedinteger]

_MAX_STEPS = 2**52  # above that fp64 has no halves, so rounding would not be one rounding


@dataclass(frozen=True)
class FixedPoint:
    """x becomes n · round(clip(x) · 2^fraction_bits), modulo 2^bits; n is the client's weight, a whole number.

    Halves are rounded to even. `clip`: the largest |x| that is sent, larger ones are cut to it. `max_weight`: the most
    that n may be. Raises UserError.
    """

    bits: int
    fraction_bits: int
    clip: float
    max_weight: int

    def __post_init__(self) -> None:
        if self.bits not in (32, 64):
            raise UserError(f"secure aggregation: {self.bits} bits, allowed are 32 and 64")
        if not 0 <= self.fraction_bits <= 256:
            raise UserError(f"secure aggregation: {self.fraction_bits} fraction bits, allowed are 0 to 256")
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise UserError(f"secure aggregation: a clip range of {self.clip}, it must be a number above 0")
        if self.max_weight < 1:
            raise UserError(f"secure aggregation: a largest weight of {self.max_weight}, it must be 1 or more")
        if not 1 <= self.clip * self.scale <= _MAX_STEPS:
            raise UserError(
                f"secure aggregation: a clip range of {self.clip} with {self.fraction_bits} fraction bits is "
                f"{self.clip * self.scale:.3g} steps, allowed are 1 to 2^52; take "
                f"{'more' if self.clip * self.scale < 1 else 'fewer'} fraction bits"
            )

    @property
    def scale(self) -> float:
        """Steps in 1."""
        return 2.0**self.fraction_bits

    @property
    def max_steps(self) -> int:
        """The largest integer that a value becomes, before its weight."""
        return round(self.clip * self.scale)  # Python rounds as numpy does, halves to even

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Of the words that travel."""
        return np.dtype(f"<u{self.bits // 8}")

    def require_room(self, num_clients: int) -> None:
        """Raises UserError unless no sum over so many clients can leave the range."""
        room = 2 ** (self.bits - 1) - 1
        if num_clients * self.max_weight * self.max_steps > room:
            raise UserError(
                f"secure aggregation: {num_clients} clients * weight {self.max_weight} * clip {self.clip:g} * "
                f"2^{self.fraction_bits} does not fit into {self.bits} bits with a sign; take "
                f"{'64 bits, ' if self.bits == 32 else ''}fewer fraction bits, a smaller clip range, smaller weights "
                "or fewer clients"
            )

    def encode(self, values: NDArray[np.floating], weight: int) -> tuple[Words, int]:
        """The words of a vector, and how many of its values were clipped. Raises RunFailed if one is not finite.

        Noise, if any, is part of the values. Rounding comes last.
        """
        exact = values.astype(np.float64)
        if not np.isfinite(exact).all():
            raise RunFailed("secure aggregation: an update has values that are not finite, and is not sent")
        kept = np.clip(exact, -self.clip, self.clip)
        num_clipped = int(np.count_nonzero(kept != exact))
        kept *= self.scale
        steps = np.rint(kept, out=kept).astype(np.int64)
        steps *= weight
        return steps.astype(self.dtype), num_clipped

    def as_signed(self, words: Words) -> Integers:
        """The sums that words stand for; the same memory."""
        return words.view(np.dtype(f"<i{self.bits // 8}"))


def finest_fraction_bits(bits: int, clip: float, max_weight: int, num_clients: int) -> int:
    """The most fraction bits for which sums over so many clients fit. Raises UserError if there are none."""
    for fraction_bits in range(256, 0, -1):
        steps = clip * 2.0**fraction_bits
        if 1 <= steps <= _MAX_STEPS and num_clients * max_weight * round(steps) < 2 ** (bits - 1):
            return fraction_bits
    FixedPoint(bits, 0, clip, max_weight).require_room(num_clients)
    return 0
