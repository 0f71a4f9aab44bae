"""The `secure_aggregation:` section: the server learns sums of updates only (docs/secure-aggregation.md)."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from parablock_ray.config.base import Strict

LEAST_CLIENTS = 3  # of a round: the sum of two tells each of them the other's update


class SecureAggregationConfig(Strict):
    """A number travels as round(x · 2^fraction_bits), modulo 2^bits, under masks that cancel in the sum."""

    enabled: bool = False
    tolerated_dropouts: Annotated[float, Field(ge=0, lt=0.5)] = 0.3  # share of a round's clients that may be left out
    bits: Literal[32, 64] = 32  # of a number on its way to the server
    clip: PositiveFloat = 0.1  # the largest |x| that is sent; larger ones are cut to it
    fraction_bits: Annotated[int, Field(ge=0, le=256)] | None = None  # None: as many as fit
    max_weight: PositiveInt | None = None  # the most that n_i may be; None: the largest n_i of the run's clients
