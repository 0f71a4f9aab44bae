"""`data:`: where examples come from, how they are split over clients, and how they are written for the model."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt

from parablock_ray.config.base import Strict
from parablock_ray.errors import UserError

GENERATED = "reasoning_gym"

Label = Literal["task", "length"]  # length: `num_buckets` buckets of tokens, each with as many examples


class IIDSplit(Strict):
    """Equal parts of one shuffle."""

    name: Literal["iid"]


class NaturalSplit(Strict):
    """One task, or one value of the `client` field, for each client."""

    name: Literal["natural"]


class DirichletSplit(Strict):
    """Label skew: each label's examples go to the clients in shares drawn from Dir(alpha) (arXiv 2102.02079)."""

    name: Literal["dirichlet"]
    alpha: PositiveFloat  # small: few clients hold a label; large: all hold as much of it
    label: Label = "task"
    num_buckets: PositiveInt = 8
    min_examples: PositiveInt = 1  # of a client


class QuantitySplit(Strict):
    """Quantity skew: clients hold shares of one shuffle drawn from Dir(alpha) (arXiv 2102.02079)."""

    name: Literal["quantity"]
    alpha: PositiveFloat
    min_examples: PositiveInt = 1  # of a client


class ShardsSplit(Strict):
    """Examples sorted by label and cut into equal shards, of which each client gets so many (arXiv 1602.05629)."""

    name: Literal["shards"]
    shards_per_client: PositiveInt = 2
    label: Label = "task"
    num_buckets: PositiveInt = 8


def _named(value: Any) -> Any:
    """`split: iid` is short for `split: {name: iid}`."""
    return {"name": value} if isinstance(value, str) else value


SplitConfig = Annotated[
    Annotated[IIDSplit | NaturalSplit | DirichletSplit | QuantitySplit | ShardsSplit, Field(discriminator="name")],
    BeforeValidator(_named),
]


class DataConfig(Strict):
    """`source`: `reasoning_gym` (generated, no network), a local .jsonl file, or a hub dataset name."""

    source: str
    tasks: tuple[str, ...] = ()  # names of reasoning_gym tasks
    num_train: PositiveInt | None = None  # of all clients; generated sources need it, others are cut to it
    num_eval: PositiveInt = 64  # held out before the split; the server's held-out loss is taken on these
    split: SplitConfig = IIDSplit(name="iid")
    template: Literal["plain", "alpaca", "chat"] = "plain"
    max_length: Annotated[int, Field(ge=8)] = 512  # tokens; longer examples are cut, counted and reported


def check_source(data: DataConfig) -> None:
    """What a source needs of the other keys of `data:`. Raises UserError.

    Not a validator of `DataConfig`, so that the message names whole keys.
    """
    num_tasks = len(data.tasks)
    if data.source != GENERATED:
        if num_tasks:
            raise UserError(f"data.tasks: only `data.source: {GENERATED}` has tasks to choose from; leave it out")
        return
    if num_tasks == 0:
        raise UserError(f"data.tasks: name the tasks of {GENERATED!r}, such as [chain_sum, gsm_symbolic]")
    if len(set(data.tasks)) < num_tasks:
        raise UserError(f"data.tasks: every task may stand once only: {', '.join(data.tasks)}")
    if data.num_train is None:
        raise UserError(f"data.num_train: {GENERATED!r} makes any number of examples; say how many to train on")
    num_examples = data.num_train + data.num_eval
    if num_examples < num_tasks:
        raise UserError(
            f"data.num_train + data.num_eval ({num_examples}) must reach the number of data.tasks ({num_tasks})"
        )
