"""The `server:` section: what becomes of a round's updates (docs/trust.md)."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from parablock_ray.config.base import Strict


class Mean(Strict):
    """Σ n_i Δ_i / Σ n_i: one client can move it anywhere."""

    keeps_all: ClassVar[bool] = False  # whether it needs all updates of a round side by side
    whole: ClassVar[bool] = False  # whether it needs whole updates, where others work chunk by chunk
    name: Literal["mean"] = "mean"


class Clip(Strict):
    """The weighted mean of updates cut to the L2 norm `norm` (Sun et al., arXiv 1911.07963)."""

    keeps_all: ClassVar[bool] = False
    whole: ClassVar[bool] = True
    name: Literal["clip"]
    norm: PositiveFloat


class Median(Strict):
    """The median of each coordinate (Yin et al., arXiv 1803.01498)."""

    keeps_all: ClassVar[bool] = True
    whole: ClassVar[bool] = False
    name: Literal["median"]


class TrimmedMean(Strict):
    """Of each coordinate the mean without the `num_attackers` largest and smallest (Yin et al., arXiv 1803.01498)."""

    keeps_all: ClassVar[bool] = True
    whole: ClassVar[bool] = False
    name: Literal["trimmed_mean"]
    num_attackers: PositiveInt  # in a round, at most


class Krum(Strict):
    """The one update that is nearest to its neighbours (Blanchard et al., arXiv 1703.02757)."""

    keeps_all: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    name: Literal["krum"]
    num_attackers: PositiveInt


class MultiKrum(Strict):
    """The mean of the `num_selected` updates that are nearest to their neighbours (the same; its proof is in
    AggregaThor: Damaskinos et al., MLSys 2019)."""

    keeps_all: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    name: Literal["multi_krum"]
    num_attackers: PositiveInt
    num_selected: PositiveInt | None = None  # None: as many as there is a proof for, n − num_attackers − 2


Rule = Mean | Clip | Median | TrimmedMean | Krum | MultiKrum


class ServerConfig(Strict):
    max_norm: PositiveFloat | None = None  # L2; an update with a larger one is refused
    max_norm_over_median: Annotated[float, Field(gt=1)] | None = None  # so many times the median; likewise
    median_rounds: PositiveInt = 10  # that the median is taken over
    rule: Annotated[Rule, Field(discriminator="name")] = Mean()

    @field_validator("rule", mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


def least_participants(rule: Rule) -> int:
    """The fewest clients of a round with which the rule withstands what it says it does."""
    match rule:
        case Median():
            return 3  # of two it is the mean
        case TrimmedMean():
            return 2 * rule.num_attackers + 1
        case Krum():
            return 2 * rule.num_attackers + 3
        case MultiKrum():
            return max(2 * rule.num_attackers + 3, rule.num_attackers + 2 + (rule.num_selected or 1))
    return 1
