"""The model of a run on its way: judged after every so many rounds, on a copy of its own."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from parablock_ray.config import Config
from parablock_ray.evaluation.command import run_context
from parablock_ray.evaluation.results import as_json
from parablock_ray.evaluation.tasks import evaluate, load_tasks
from parablock_ray.tracking.evaluations import Results
from parablock_ray.training.data import FederatedData
from parablock_ray.training.model import load_model, load_tokenizer, max_context


@dataclass(frozen=True)
class Evaluated:
    """The model as it was after `round`: a row of `evaluations.jsonl`."""

    round: int
    results: Results


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
