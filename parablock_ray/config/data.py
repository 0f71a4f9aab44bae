"""`data:`: where examples come from, how they are split over clients, and how they are written for the model."""

import re
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, PositiveInt

from parablock_ray.config.base import Strict
from parablock_ray.config.presets import DATASETS, Columns
from parablock_ray.errors import UserError

GENERATED = "reasoning_gym"
TEMPLATES = ("plain", "alpaca", "chat")
PLACEHOLDERS = ("instruction", "input")
PLACEHOLDER = re.compile(r"\{(\w+)\}")

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


def _of_preset(value: Any) -> Any:
    """`columns: gsm8k` is short for the columns of that preset."""
    if not isinstance(value, str):
        return value
    if value not in DATASETS:
        raise ValueError(f"no preset {value!r}; allowed: {', '.join(DATASETS)}, or {{instruction: …, output: …}}")
    return DATASETS[value].columns


ColumnsConfig = Annotated[Columns, BeforeValidator(_of_preset)]


def _template(value: str) -> str:
    """A known name, or a text with placeholders. Braces without a word in them are text."""
    if value in TEMPLATES:
        return value
    names = PLACEHOLDER.findall(value)
    unknown = [name for name in names if name not in PLACEHOLDERS]
    if unknown:
        allowed = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        raise ValueError(f"unknown placeholder {{{unknown[0]}}} (allowed: {allowed})")
    if "instruction" not in names:
        nearest = get_close_matches(value, TEMPLATES, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"must be {', '.join(TEMPLATES)}, or a text with {{instruction}} in it (got {value!r}){hint}")
    return value


class Arrival(Strict):
    """Clients do not hold all of their examples from the start: more come in while the run goes on."""

    initial: Annotated[float, Field(gt=0, le=1)]  # share of a client's examples that is there in round 0
    every: PositiveInt  # rounds from one arrival to the next
    share: Annotated[float, Field(gt=0, le=1)]  # of a client's examples, that each arrival brings

    def num_arrived(self, num_examples: int, round: int) -> int:
        """How many of a client's `num_examples` are there in this round: to the nearest, and one at least."""
        share = self.initial + self.share * (round // self.every)
        return max(1, min(num_examples, int(share * num_examples + 0.5)))


class DataConfig(Strict):
    """`source`: `reasoning_gym` (generated, no network), a local file, a name in DATASETS, or a hub dataset name."""

    source: str
    columns: ColumnsConfig | None = None  # None: rows are in one of the known forms
    tasks: tuple[str, ...] = ()  # of reasoning_gym: names, or NAME?option=value&option=value
    num_train: PositiveInt | None = None  # of all clients; others than generated sources are cut to it
    per_client: PositiveInt | None = None  # generated, in place of num_train: each client's, made when it is visited
    num_eval: PositiveInt = 64  # held out before the split; the server's held-out loss is taken on these
    split: SplitConfig = IIDSplit(name="iid")
    arrival: Arrival | None = None  # None: all examples are there from the start
    template: Annotated[str, AfterValidator(_template)] = "plain"  # a name in TEMPLATES, or a text with PLACEHOLDERS
    max_length: Annotated[int, Field(ge=8)] = 512  # tokens; longer examples are cut, counted and reported
    packing: bool = False  # several examples in a row of max_length tokens, none of which sees another


def check_source(data: DataConfig) -> None:
    """What a source needs of the other keys of `data:`. Raises UserError.

    Not a validator of `DataConfig`, so that the message names whole keys.
    """
    if data.source == GENERATED:
        _check_generated(data)
        return
    for key, value in {"tasks": data.tasks, "per_client": data.per_client}.items():
        if value:
            raise UserError(f"data.{key}: only for `data.source: {GENERATED}`, whose examples are made; leave it out")


def _check_generated(data: DataConfig) -> None:
    num_tasks = len(data.tasks)
    if data.columns is not None:
        raise UserError(f"data.columns: only for files and hub datasets; {GENERATED!r} has no columns")
    if num_tasks == 0:
        raise UserError(f"data.tasks: name the tasks of {GENERATED!r}, such as [chain_sum, gsm_symbolic]")
    if len(set(data.tasks)) < num_tasks:
        raise UserError(f"data.tasks: every task may stand once only: {', '.join(data.tasks)}")
    if data.per_client is not None:
        _check_per_client(data)
        return
    if data.num_train is None:
        raise UserError(
            f"data.num_train: {GENERATED!r} makes any number of examples; say how many to train on, or how many "
            "each client holds (data.per_client)"
        )
    num_examples = data.num_train + data.num_eval
    if num_examples < num_tasks:
        raise UserError(
            f"data.num_train + data.num_eval ({num_examples}) must reach the number of data.tasks ({num_tasks})"
        )


def _check_per_client(data: DataConfig) -> None:
    if data.num_train is not None:
        raise UserError("data.per_client: each client's examples are made for it; leave out data.num_train")
    if not isinstance(data.split, IIDSplit | NaturalSplit):
        raise UserError(
            f"data.split: {data.split.name} divides examples that are there; with data.per_client each client's are "
            "made when it is visited (allowed: iid, natural)"
        )
