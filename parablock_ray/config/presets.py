"""Instruction datasets of the hub by a short name: where they are, and what their columns hold."""

from collections.abc import Mapping
from dataclasses import dataclass

from parablock_ray.config.base import Strict


class Columns(Strict):
    """Names of the columns of a row that is in neither form. Columns without a name here are not read."""

    instruction: str
    output: str
    input: str | None = None
    task: str | None = None
    client: str | None = None


@dataclass(frozen=True)
class Preset:
    """`subset`: what the hub calls a configuration. `licence`: where we know it; read its page before you use it."""

    hub_name: str
    subset: str | None
    split: str
    columns: Columns
    licence: str


DATASETS: Mapping[str, Preset] = {
    "alpaca_gpt4": Preset(
        hub_name="vicgalle/alpaca-gpt4",
        subset=None,
        split="train",
        columns=Columns(instruction="instruction", input="input", output="output"),
        licence="CC BY-NC 4.0",
    ),
    "math_instruct": Preset(
        hub_name="TIGER-Lab/MathInstruct",
        subset=None,
        split="train",
        columns=Columns(instruction="instruction", output="output", task="source"),
        licence="see its card",
    ),
    "metamath_qa": Preset(
        hub_name="meta-math/MetaMathQA",
        subset=None,
        split="train",
        columns=Columns(instruction="query", output="response", task="type"),
        licence="see its card",
    ),
    "gsm8k": Preset(
        hub_name="openai/gsm8k",
        subset="main",
        split="train",
        columns=Columns(instruction="question", output="answer"),
        licence="MIT",
    ),
    "dolly": Preset(
        hub_name="databricks/databricks-dolly-15k",
        subset=None,
        split="train",
        columns=Columns(instruction="instruction", input="context", output="response", task="category"),
        licence="CC BY-SA 3.0",
    ),
}
