"""`evaluation:`: on which tasks a model is judged, and on how much of each."""

import re
from difflib import get_close_matches
from typing import NamedTuple

from pydantic import PositiveInt, field_validator, model_validator

from parablock_ray.config.base import Strict

# How each task is written. What it does: evaluation/tasks.py, docs/evaluation.md.
TASK_FORMS = {
    "held_out": ("held_out",),
    "per_client": ("per_client",),
    "reasoning_gym": ("reasoning_gym:TASK",),  # TASK as in data.tasks
    "gsm8k": ("gsm8k=FILE",),
    "rouge_l": ("rouge_l=FILE",),
    "ifeval": ("ifeval=FILE",),
    "multiple_choice": ("multiple_choice=FILE",),
    "mt_bench": ("mt_bench=FILE",),
    "lm_eval": ("lm_eval:TASK", "lm_eval=FILE"),
}

_WRITTEN = re.compile(r"([^:=]*)([:=]?)(.*)", re.DOTALL)


class TaskName(NamedTuple):
    """A task as the user writes it, taken apart: `gsm8k=test.jsonl` is of kind `gsm8k`, mark `=`, of `test.jsonl`."""

    text: str
    kind: str
    mark: str  # `:` a name follows; `=` a file follows; "" nothing does
    of: str


def parse_task(text: str) -> TaskName:
    """Raises ValueError for what is no task: the nearest known one, and the forms that are allowed."""
    matched = _WRITTEN.fullmatch(text)
    assert matched is not None, "any text matches"
    kind, mark, of = matched.groups()
    if kind not in TASK_FORMS:
        nearest = get_close_matches(kind, TASK_FORMS, n=1)
        hint = f"; did you mean {TASK_FORMS[nearest[0]][0]!r}?" if nearest else ""
        allowed = ", ".join(form for forms in TASK_FORMS.values() for form in forms)
        raise ValueError(f"unknown task {kind!r}{hint} (allowed: {allowed})")
    form = kind + mark + {"": "", ":": "TASK", "=": "FILE"}[mark]
    if form not in TASK_FORMS[kind] or bool(mark) != bool(of):
        raise ValueError(f"{text!r} must be written {' or '.join(TASK_FORMS[kind])}")
    return TaskName(text, kind, mark, of)


class EvaluationConfig(Strict):
    """The model at the end of a run, on each of `tasks`, and after every so many rounds, on each of `during`."""

    tasks: tuple[str, ...] = ()
    every: PositiveInt | None = None  # rounds; None: no round is judged
    during: tuple[str, ...] = ("held_out",)
    num_examples: PositiveInt = 100  # of each task at most, the first ones; held_out takes all of its own
    max_new_tokens: PositiveInt = 256  # of an answer
    batch_size: PositiveInt = 16

    def is_due(self, round: int) -> bool:
        """Whether the model as it is after this round (0-based) is judged."""
        return self.every is not None and (round + 1) % self.every == 0

    @field_validator("tasks", "during")
    @classmethod
    def _known_tasks(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        for text in tasks:
            parse_task(text)
        twice = sorted({text for text in tasks if tasks.count(text) > 1})
        if twice:
            raise ValueError(f"every task may stand once only: {', '.join(twice)}")
        return tasks

    @model_validator(mode="after")
    def _something_to_judge_on(self) -> "EvaluationConfig":
        if self.every is not None and not self.during:
            raise ValueError("during must name at least one task, like held_out, where every is set")
        return self
