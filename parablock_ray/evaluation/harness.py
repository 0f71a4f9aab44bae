"""Tasks of the lm-evaluation-harness, https://github.com/EleutherAI/lm-evaluation-harness, by name or from a YAML file.

By name a task reads its data from a hub. A YAML file of one's own may name local data:

    task: my_task
    dataset_path: json
    dataset_kwargs: {data_files: {test: my_data.jsonl}}

The harness makes prompts, few-shot examples and scores itself, so that its figures compare with published ones.
"""

import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetsError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from parablock_ray.config.evaluation import TaskName
from parablock_ray.errors import UserError
from parablock_ray.evaluation.files import existing
from parablock_ray.evaluation.results import Metric, TaskResult

FEWSHOT_SEED = 1234  # the harness's own default: other few-shot examples give other figures


def harness_judge(
    name: TaskName, tokenizer: PreTrainedTokenizerBase, num_examples: int, batch_size: int, chat: bool
) -> Callable[[PreTrainedModel], TaskResult]:
    """Reads the task and its data now, judges later. Raises UserError where the harness is missing or cannot read."""
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        raise UserError(
            f"{name.text} needs the package lm-eval: `pip install 'parablock-ray[lm-eval]'`, or leave the task out"
        ) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every default that a task leaves to it
    loaded, manager = _load(name)

    def judge(model: PreTrainedModel) -> TaskResult:
        found = simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=loaded,
            task_manager=manager,  # else it reads its index of 14,000 tasks
            limit=num_examples,
            apply_chat_template=chat,
            random_seed=None,  # the next three would seed global generators
            numpy_random_seed=None,
            torch_random_seed=None,
            fewshot_random_seed=FEWSHOT_SEED,
        )
        return TaskResult(
            task=name.text,
            metrics=tuple(_metrics(found["results"])),
            outputs=tuple(_rows(found["samples"])),
        )

    return judge


def _load(name: TaskName) -> tuple[list[Any], Any]:
    """The harness's group, or its tasks where there is none, with their data, and the manager that knows them."""
    from lm_eval.tasks import TaskManager

    if name.mark == "=":
        wanted, manager = str(existing(Path(name.of))), TaskManager(include_defaults=False)
    else:
        wanted, manager = name.of, TaskManager()
        if wanted not in manager.all_tasks:
            nearest = ", ".join(get_close_matches(wanted, manager.all_tasks, n=3)) or "none"
            raise UserError(f"{name.text}: the lm-evaluation-harness has no task {wanted!r}; nearest: {nearest}")
    try:
        loaded = manager.load([wanted])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, DatasetsError) as error:
        if isinstance(error, TypeError) and _is_group_file(name):
            raise UserError(
                f"{name.text}: the lm-evaluation-harness reads groups by name only (lm_eval:GROUP), not from a file; "
                "name a file for each of its tasks"
            ) from error
        raise UserError(f"{name.text}: the lm-evaluation-harness cannot load this task or its data: {error}") from error
    outermost = list(loaded["groups"].values())[:1]  # which holds the others and all tasks, and gives their aggregate
    return outermost or list(loaded["tasks"].values()), manager


def _is_group_file(name: TaskName) -> bool:
    """Whether it is a file with a `group:`, whose list of tasks the harness takes for its name and fails."""
    return name.mark == "=" and re.search(r"^group:", Path(name.of).read_text("utf-8"), re.MULTILINE) is not None


def _metrics(results: Mapping[str, Any]) -> Iterator[Metric]:
    """Of each task, and of each group that has an aggregate.

    The harness writes `acc,none` and `acc_stderr,none`, where `none` is the filter's name.
    """
    several = len(results) > 1
    for task, figures in results.items():
        for key, value in figures.items():
            metric, comma, filter_name = key.partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
                parts = (task if several else "", metric, "" if filter_name == "none" else filter_name)
                error = figures.get(f"{metric}_stderr,{filter_name}")
                yield Metric(
                    name=" ".join(part for part in parts if part),
                    value=float(value),
                    num_examples=figures["sample_len"],
                    standard_error=error if isinstance(error, float) and math.isfinite(error) else None,
                )


def _rows(samples: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for task, of_task in samples.items():
        for sample in of_task:
            yield {
                "task": task,
                "filter": sample["filter"],
                "prompt": sample["arguments"][0][0],
                "answer": str(sample["target"]),
                "generated": [str(answer) for answer in sample["filtered_resps"]],
                "scores": {name: _plain(sample[name]) for name in sample["metrics"]},
            }


def _plain(score: Any) -> Any:
    return float(score) if isinstance(score, int | float) else str(score)
