"""The model of a run: judged after every so many rounds, on a copy of its own, and at its end."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from parablock_ray.config import Config
from parablock_ray.config.schema import WorkersConfig
from parablock_ray.evaluation.results import TaskResult, as_json
from parablock_ray.evaluation.tasks import Context, evaluate, load_tasks
from parablock_ray.tracking.evaluations import Evaluated
from parablock_ray.training.data import FederatedData
from parablock_ray.training.engine import device_of
from parablock_ray.training.model import load_model, load_tokenizer, max_context, model_config


class Evaluator:
    """The evaluator without its process. On the CPU, in fp32, as the master is. Raises UserError as `load_tasks`."""

    def __init__(self, config: Config, data: FederatedData) -> None:
        self._model = load_model(config.model.name, "float32", config.seed)
        tokenizer = load_tokenizer(config.model.name)
        context = run_context(config, data, tokenizer, max_context(self._model.config))
        self._tasks = load_tasks(config.evaluation.during, context)

    def evaluate(self, round: int, weights: Mapping[str, Tensor]) -> Evaluated:
        """Judge `weights`: every parameter by name, fp32, tied ones once. They are copied, never written to."""
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                parameter.copy_(weights[name])
        return Evaluated(round, as_json(evaluate(self._model, task) for task in self._tasks))


def final_judge(config: Config, data: FederatedData) -> Callable[[Path], list[TaskResult]]:
    """Judges the model of an HF folder on `evaluation.tasks`. Reads those and the tasks of `during` now: a mistake in a
    task's file shows before the run, not once an evaluator starts. Raises UserError."""
    during = config.evaluation.during if config.evaluation.every is not None else ()
    longest = max_context(model_config(config.model.name))
    context = run_context(config, data, load_tokenizer(config.model.name), longest)
    read = load_tasks(tuple(dict.fromkeys([*config.evaluation.tasks, *during])), context)
    tasks = [task for task in read if task.name in config.evaluation.tasks]

    def judge(folder: Path) -> list[TaskResult]:
        model = model_to_judge(str(folder), config.seed, config.workers)
        return [evaluate(model, task) for task in tasks]

    return judge


def run_context(
    config: Config, data: FederatedData | None, tokenizer: PreTrainedTokenizerBase, max_context: int
) -> Context:
    """A run's own terms: its template, its seed, its data. `max_context`: of its model, in tokens."""
    return Context(config.evaluation, tokenizer, max_context, config.data.template, config.seed, config.name, data)


def model_to_judge(source: str, seed: int, workers: WorkersConfig) -> PreTrainedModel:
    """In fp32, on a GPU where there is one, unless the workers have none. `source`: as `model.name`."""
    model = load_model(source, "float32", seed)
    model.to(device_of(workers))
    return model
