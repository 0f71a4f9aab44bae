"""The `privacy:` section: differential privacy for whole clients (docs/privacy.md)."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from parablock_ray.config.base import Strict

Share = Annotated[float, Field(gt=0, lt=1)]


class PrivacyConfig(Strict):
    """Off without a `clip`. `noise_multiplier` or `target_epsilon`: how much noise, or how little may be told."""

    clip: PositiveFloat | None = None  # L2 norm to which every client's delta is cut; of `quantile` the first one
    noise_multiplier: NonNegativeFloat | None = None  # standard deviation of the noise on the sum, over the clip
    target_epsilon: PositiveFloat | None = None  # of all rounds; the noise is solved for it
    max_epsilon: PositiveFloat | None = None  # the run ends before a round would pass it
    delta: Share | None = None
    noise: Literal["server", "clients"] = "server"  # clients: in shares, before anything is sent
    quantile: Share | None = None  # of the clients, whose norms the clip is to follow; None: it stays
    clip_lr: PositiveFloat = 0.2  # of the clip towards the quantile
    count_noise: PositiveFloat | None = None  # on the count below the clip; None: a twentieth of the clients of a round
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None  # None: secret; else whoever knows it takes the noise off

    @property
    def is_on(self) -> bool:
        return self.clip is not None

    @model_validator(mode="after")
    def _is_whole(self) -> "PrivacyConfig":
        if self.clip is None:
            keys = ("noise_multiplier", "target_epsilon", "max_epsilon", "delta", "quantile", "count_noise", "seed")
            for key in keys:
                if getattr(self, key) is not None:
                    raise ValueError(f"clip is required with {key}: without a bound on each update noise hides nothing")
            return self
        if (self.noise_multiplier is None) == (self.target_epsilon is None):
            raise ValueError("give either noise_multiplier or target_epsilon, for which the noise is solved")
        if self.delta is None:
            raise ValueError("delta is required with clip; usual is a tenth of 1 / clients.num, or less")
        return self

    @model_validator(mode="after")
    def _budget_is_one(self) -> "PrivacyConfig":
        if self.max_epsilon is not None and not self.noise_multiplier:
            given = "target_epsilon" if self.noise_multiplier is None else "noise_multiplier 0"
            raise ValueError(f"max_epsilon ends a run of a noise_multiplier over 0; leave it out with {given}")
        return self

    @model_validator(mode="after")
    def _somebody_counts(self) -> "PrivacyConfig":
        if self.quantile is None:
            if self.count_noise is not None:
                raise ValueError("count_noise is for the count that quantile takes; leave it out without quantile")
        elif self.noise == "clients":
            raise ValueError("quantile must be left out with noise: clients, whose norms nobody sees to count them")
        elif self.noise_multiplier == 0:
            raise ValueError("quantile needs a noise_multiplier over 0 (got 0)")
        return self
