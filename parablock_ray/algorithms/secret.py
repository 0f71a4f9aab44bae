"""Randomness that nobody can guess who lacks the key: of noise that hides clients, and of who is drawn.

SHAKE-128 over the key and what the numbers are for. `rng.generator` would not do: torch seeds its CPU generator with 32
bits, which can be tried out one by one. The same key and purpose give the same numbers, so a run that goes on or does
rounds again has the same noise.
"""

import hashlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

_PIECE = 1 << 18  # numbers at once: their bytes and fp64 temporaries stay small


def uniform(key: bytes, purpose: bytes, num: int) -> Tensor:
    """`num` fp64 numbers in (0, 1], multiples of 2⁻⁵³."""
    return torch.cat(list(_pieces(key, purpose, num)))


def gaussian(key: bytes, purpose: bytes, num: int) -> Tensor:
    """`num` fp64 numbers of the standard normal distribution, by Box and Muller. None is above 8.6: what lies beyond
    has a probability of 1e-17."""
    pairs = []
    for piece in _pieces(key, purpose, num + num % 2):
        first, second = piece.view(2, -1)
        radius, angle = (first.log() * -2).sqrt(), second * (2 * math.pi)
        pairs += [radius * angle.cos(), radius * angle.sin()]
    return torch.cat([*pairs, torch.empty(0, dtype=torch.float64)])[:num]


def derived(key: bytes, purpose: bytes) -> bytes:
    """Another key, which tells nothing of this one."""
    return hashlib.shake_128(_framed(key, purpose, -1)).digest(32)


def _pieces(key: bytes, purpose: bytes, num: int) -> Iterator[Tensor]:
    """The numbers of `uniform`, by pieces; all of an even length where `num` is even."""
    for piece, start in enumerate(range(0, num, _PIECE)):
        length = min(_PIECE, num - start)
        stream = bytearray(hashlib.shake_128(_framed(key, purpose, piece)).digest(8 * length))
        bits = (torch.frombuffer(stream, dtype=torch.int64) >> 11) & ((1 << 53) - 1)
        yield (bits + 1).to(torch.float64) * 2.0**-53


def _framed(key: bytes, purpose: bytes, piece: int) -> bytes:
    """No two different inputs run together into the same bytes."""
    return b"".join(len(part).to_bytes(8, "little") + part for part in (key, purpose)) + piece.to_bytes(
        8, "little", signed=True
    )
