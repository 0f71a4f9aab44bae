"""What a config says of secure aggregation, in the protocol's own terms. No torch: `validate` asks it."""

import math

from parablock_ray.config import Config
from parablock_ray.errors import UserError
from parablock_ray.secure.fixed_point import FixedPoint, finest_fraction_bits
from parablock_ray.secure.primitives import require_packages
from parablock_ray.secure.rounds import threshold_for


def check_secure_aggregation(config: Config, largest: int) -> None:
    """The packages, and room for weights up to `largest`: 1 without data, and with larger ones there is less room.

    Raises UserError.
    """
    if config.secure_aggregation.enabled:
        require_packages()
        fixed_point(config, largest)


def threshold(config: Config) -> int:
    """So many of a round's clients must be left: of those that it is for, so a client that was left out before the
    round counts as one that dropped out of it."""
    return threshold_for(config.clients.cohort_size, config.secure_aggregation.tolerated_dropouts)


def fixed_point(config: Config, largest: int) -> FixedPoint:
    """How numbers travel, where `largest` is the largest n_i of all clients; in private all weigh 1. Raises UserError.

    A function of the config and `largest`, not of who takes part: so whoever drops out, the others send the same.
    """
    secure, num_clients = config.secure_aggregation, config.clients.cohort_size
    if config.privacy.is_on:
        largest = 1
    if secure.max_weight is not None and largest > secure.max_weight:
        raise UserError(
            f"secure_aggregation.max_weight: must be at least {largest}, the examples of one of the clients; or leave "
            f"it out (got {secure.max_weight})"
        )
    weight = secure.max_weight or largest
    where = f"{secure.bits} bits, clip {secure.clip:g}, {num_clients} clients a round and weights up to {weight}"
    try:
        most = finest_fraction_bits(secure.bits, secure.clip, weight, num_clients)
    except UserError:
        raise UserError(
            f"secure_aggregation.bits: no sum has room with {where}; "
            f"{'take 64 bits, ' if secure.bits == 32 else ''}fewer clients, or smaller secure_aggregation.max_weight"
        ) from None
    if secure.fraction_bits is not None and secure.fraction_bits > most:
        raise UserError(
            f"secure_aggregation.fraction_bits: must be at most {most} with {where}, so that no sum overflows (got "
            f"{secure.fraction_bits})"
        )
    try:
        return FixedPoint(
            secure.bits, most if secure.fraction_bits is None else secure.fraction_bits, secure.clip, weight
        )
    except UserError:
        raise UserError(
            f"secure_aggregation.fraction_bits: too few for clip {secure.clip:g}, every number would be 0; take more, "
            f"up to {most}, or leave it out (got {secure.fraction_bits})"
        ) from None


def clip_before_rounding(config: Config, clip: float, num_params: int) -> float:
    """The L2 norm to cut so many numbers to, so that they keep within `clip` once they are rounded to fixed point:
    that moves each by half a step at most. Raises UserError where there is none."""
    if not config.secure_aggregation.enabled:
        return clip
    encoding = fixed_point(config, largest=1)
    lifted = math.sqrt(num_params) / 2 / encoding.scale
    if lifted >= clip:
        raise UserError(
            f"secure_aggregation.fraction_bits: {encoding.fraction_bits} are too few for privacy.clip {clip:g} on "
            f"{num_params} numbers, whose rounding alone may come to {lifted:.3g}; take more, leave them out, or take "
            "64 secure_aggregation.bits"
        )
    return clip - lifted
