"""Masks: pseudo-random vectors that are added to what a client sends and cancel in the sum.

Arithmetic is that of unsigned integers, modulo 2^32 or 2^64, which numpy does without a word.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from parablock_ray.secure.primitives import Keystream, derive

Words: TypeAlias = NDArray[np.unsignedinteger]

_PIECE_BYTES = 1 << 17  # of a vector, masked at once: it and the mask stay in the CPU's cache
_ZEROS = memoryview(bytes(_PIECE_BYTES))
_SLACK_BYTES = 15  # which the library wants behind what it writes


class Mask:
    """A pseudo-random vector, made as it is used, from its beginning to its end."""

    def __init__(self, key: bytes, is_added: bool) -> None:
        self.is_added = is_added
        self.keystream = Keystream(key)


def self_mask(seed: bytes, session: bytes, client: int, is_added: bool) -> Mask:
    """What a client adds on its own account: PRG(b_u)."""
    return Mask(derive(seed, "self mask", session, client), is_added)


def pair_mask(agreed: bytes, session: bytes, mine: int, peer: int) -> Mask:
    """What a client shares with a peer, ±PRG(s_uv): the one with the smaller number adds it, the other subtracts it."""
    key = derive(agreed, "pair mask", session, min(mine, peer), max(mine, peer))
    return Mask(key, is_added=mine < peer)


def apply_masks(words: Words, masks: Sequence[Mask]) -> None:
    """Add the next `len(words)` words of every mask, or subtract them, in place; words are contiguous."""
    buffer = bytearray(_PIECE_BYTES + _SLACK_BYTES)
    piece_words = _PIECE_BYTES // words.itemsize
    for start in range(0, len(words), piece_words):
        piece = words[start : start + piece_words]
        made = np.frombuffer(buffer, words.dtype, len(piece))
        zeros = _ZEROS[: piece.nbytes]
        for mask in masks:
            mask.keystream.fill(buffer, zeros)
            if mask.is_added:
                np.add(piece, made, out=piece)
            else:
                np.subtract(piece, made, out=piece)
