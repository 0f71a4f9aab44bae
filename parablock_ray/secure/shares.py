"""Shamir's secret sharing (Communications of the ACM 22, 1979), split by the package `shamirs`."""

import secrets
from collections.abc import Sequence

from parablock_ray.secure.primitives import KEY_BYTES

PRIME = 2**255 - 19  # of the field: seeds and shares are numbers below it


def new_seed() -> bytes:
    """A secret that can be shared: a uniform number of the field, just under 255 bits."""
    return secrets.randbelow(PRIME).to_bytes(KEY_BYTES, "little")


def is_share(value: bytes) -> bool:
    """Whether these 32 bytes can be a share."""
    return int.from_bytes(value, "little") < PRIME


def split(seed: bytes, num_shares: int, threshold: int) -> list[bytes]:
    """The shares of a seed, for x = 1, 2, …: any `threshold` of them give it back, fewer tell nothing."""
    import shamirs

    shares = shamirs.shares(int.from_bytes(seed, "little"), num_shares, PRIME, threshold, compact=True)
    return [share.value.to_bytes(KEY_BYTES, "little") for share in shares]


def weights_at_zero(xs: Sequence[int]) -> list[int]:
    """Lagrange's: λ_j = Π_{m≠j} x_m / (x_m − x_j) modulo the prime, so that Σ λ_j f(x_j) = f(0).

    There is no secret in it. All seeds of a round are recovered from the same responders, so this is done once. The
    package would do it again for every seed, which takes it minutes for 100 clients.
    """
    weights = []
    for x in xs:
        above = below = 1
        for other in xs:
            if other != x:
                above = above * other % PRIME
                below = below * (other - x) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return weights


def recover(shares: Sequence[bytes], weights: Sequence[int]) -> bytes:
    """The seed from as many shares as its threshold; `weights`: of their x."""
    total = sum(weight * int.from_bytes(share, "little") for weight, share in zip(weights, shares, strict=True))
    return (total % PRIME).to_bytes(KEY_BYTES, "little")
