"""`method:` for federated LoRA: one model per method, and `method.lora:`, the adapters themselves.

To add a method: a config class here, added to `MethodConfig` in `config/method.py`, and an entry in
`parablock_ray.algorithms.methods.METHODS`. Its name goes into `METHODS` of `algorithms/lora_costs.py` too, with what
differs from the others there: the paper's measures of a run. One whose factors are averaged is a `FactorMethod`, and
needs no more. One whose server collects whole adapters (`CollectingMethod`) says further
    what it makes of them: a function in `algorithms/lora.py`, and where `algorithms/lora_methods.py` calls it
    (`rule_of`), what of it goes to whom (`by_rank`, `starts_afresh`, `rank_down`)
    how many parameters travel: `_factors` in `sizes.py`, which `plan` counts with
Tests compare the last two with what travels.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from parablock_ray.config.base import Strict
from parablock_ray.config.training import Correction, FederatedTraining, ServerOptimizer, ServerSGD
from parablock_ray.errors import UserError

Ratio = Annotated[float, Field(gt=0, le=1)]


class RankChoice(Strict):
    """Every client draws its rank from `of`, each as likely."""

    dist: Literal["choice"]
    of: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]


def _form(value: Any) -> str:
    return "list" if isinstance(value, list | tuple) else "choice" if isinstance(value, dict | RankChoice) else "number"


Ranks = Annotated[
    Annotated[PositiveInt, Tag("number")]
    | Annotated[tuple[PositiveInt, ...], Tag("list")]
    | Annotated[RankChoice, Tag("choice")],
    Discriminator(_form),
]


class LoraConfig(Strict):
    """Adapters of the weights W (m×n) of `target_modules`: W + alpha / r · B A, with B m×r and A r×n."""

    ranks: Ranks = 16  # one for all clients, a list with one for each, or {dist: choice, of: [4, 8, 16]}
    alpha: PositiveFloat = 16.0
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] = ("q_proj", "v_proj")

    def ranks_described(self) -> str:
        """For people: `16`, `4 to 64`."""
        ranks = self.ranks.of if isinstance(self.ranks, RankChoice) else self.ranks
        low, high = (ranks, ranks) if isinstance(ranks, int) else (min(ranks), max(ranks))
        return f"{low}" if low == high else f"{low} to {high}"


class LoraMethod(FederatedTraining):
    """What the methods of federated LoRA share. `num_blocks`: all adapters travel as one."""

    lora: LoraConfig = LoraConfig()
    num_blocks: ClassVar[int] = 1


class FactorMethod(LoraMethod):
    """Linear in the factors: their deltas are averaged, so they overlap as a block does."""

    parameters: ClassVar[str] = "lora"
    staleness: NonNegativeInt = 0
    correction: Correction = "own"
    server_optimizer: ServerOptimizer = ServerSGD()

    @field_validator("lora")
    @classmethod
    def _equal_ranks(cls, lora: LoraConfig) -> LoraConfig:
        return with_equal_ranks(lora)


class FedIT(FactorMethod):
    """FedIT (arXiv 2305.05644): A and B averaged apart."""

    name: Literal["fedit"]


class FFALoRA(FactorMethod):
    """FFA-LoRA (arXiv 2403.12313): A random, shared and frozen; only B is trained and averaged."""

    name: Literal["ffa_lora"]


class CollectingMethod(LoraMethod):
    """The server needs all adapters of a round before it can make anything of them."""

    by_chunk: ClassVar[bool] = False
    staleness: NonNegativeInt = 0
    keep_uploads: bool = False  # every client's adapters of every round, in the run folder, for `parablock lora-sweep`


class TotalsMethod(CollectingMethod):
    """Clients send whole factors, from which the server makes new ones."""

    correction: ClassVar[str] = "own"  # nothing is ever pending

    @field_validator("staleness")
    @classmethod
    def _has_no_delta(cls, staleness: int) -> int:
        if staleness > 0:
            raise ValueError(_why_sequential(staleness))
        return staleness


class ZeroPad(TotalsMethod):
    """FedIT after padding to the largest rank."""

    name: Literal["zero_pad"]


class HetLoRA(TotalsMethod):
    """HetLoRA (arXiv 2401.06432): padded, weighted by the norm of the update, truncated for each client."""

    name: Literal["hetlora"]


class FedExLoRA(TotalsMethod):
    """FedEx-LoRA (arXiv 2410.09432): both factors averaged, the residual merged into the frozen weight."""

    name: Literal["fedex_lora"]

    @field_validator("lora")
    @classmethod
    def _equal_ranks(cls, lora: LoraConfig) -> LoraConfig:
        return with_equal_ranks(lora)


class FlexLoRA(TotalsMethod):
    """FlexLoRA (arXiv 2402.11505): the SVD of the dense update, each client its own top components."""

    name: Literal["flexlora"]


class FLoRA(CollectingMethod):
    """FLoRA (arXiv 2409.05976): the stack of all adapters is merged; fresh adapters in every round."""

    name: Literal["flora"]
    correction: Correction = "own"


class FLoRIST(CollectingMethod):
    """FLoRIST (arXiv 2506.09199): the best approximation of the update that keeps `threshold` of its energy.

    `round_init`: `merge` it and start fresh adapters (the paper), or `carry` on from it, cut to each client's rank.
    """

    name: Literal["florist"]
    threshold: Ratio = 0.95
    max_rank: PositiveInt | None = None
    round_init: Literal["merge", "carry"] = "merge"
    correction: Correction = "own"

    @model_validator(mode="after")
    def _carry_has_no_delta(self) -> "FLoRIST":
        if self.round_init == "carry" and self.staleness > 0:
            raise ValueError(f"staleness {_why_sequential(self.staleness)}")
        return self


def check_num_ranks(lora: LoraConfig, num_clients: int) -> None:
    """A list has a rank for each client. Raises UserError."""
    if isinstance(lora.ranks, tuple) and len(lora.ranks) != num_clients:
        raise UserError(
            f"method.lora.ranks: {len(lora.ranks)} ranks for clients.num = {num_clients}; "
            "give one for each client, or one number for all"
        )


def with_equal_ranks(lora: LoraConfig) -> LoraConfig:
    """For methods that average factors entry by entry. Raises ValueError."""
    ranks = lora.ranks.of if isinstance(lora.ranks, RankChoice) else lora.ranks
    if isinstance(ranks, tuple) and len(set(ranks)) > 1:
        raise ValueError(
            f"ranks must be equal (got {list(ranks)}), since this method averages factors entry by entry; for mixed "
            "ranks use zero_pad, hetlora, flora, flexlora or florist"
        )
    return lora


def _why_sequential(staleness: int) -> str:
    return (
        f"must be 0 (got {staleness}): each round's adapters replace the last ones as a whole, so with staleness the "
        "even and the odd rounds would be two runs that know nothing of each other; fedit, ffa_lora, flora and florist "
        "with round_init: merge can overlap"
    )
