"""What a federated LoRA run cost in the measures of FLoRIST's paper (arXiv 2506.09199, sections 4 and 5)."""

from collections.abc import Iterable, Sequence

from parablock_ray.algorithms.adapters import client_ranks, find_targets
from parablock_ray.algorithms.lora_costs import (
    Shapes,
    download_efficiency,
    download_params,
    flexlora_operations,
    florist_operations,
    paper_megabits,
    upload_params,
)
from parablock_ray.algorithms.population import Population
from parablock_ray.config import Config
from parablock_ray.config.lora import LoraMethod
from parablock_ray.tracking.events import Committed, Event
from parablock_ray.training.model import model_shapes

_OPERATIONS = {"flexlora": flexlora_operations, "florist": florist_operations}


def lora_measures(config: Config, population: Population, events: Iterable[Event]) -> dict[str, float]:
    """Rows of `summary.json` (docs/run-folder.md); none for methods of other families. Means over the rounds."""
    if not isinstance(config.method, LoraMethod):
        return {}
    targets = find_targets(model_shapes(config.model.name), config.method.lora.target_modules)
    shapes = [(target.m, target.n) for target in targets]
    ranks = client_ranks(config.method.lora, population.num_clients, population.seed)
    commits = [event for event in events if isinstance(event, Committed)]
    rounds = [_of_round(config.method.name, shapes, ranks, commit) for commit in commits]
    return {name: sum(each[name] for each in rounds) / len(rounds) for name in rounds[0]}


def _of_round(method: str, shapes: Shapes, ranks: Sequence[int], commit: Committed) -> dict[str, float]:
    cohort = [ranks[client] for client in commit.participants]
    kept = [each.rank for each in commit.kept_ranks]
    up, down = upload_params(method, shapes, cohort), download_params(method, shapes, cohort, kept)
    measures = {
        "lora_download_efficiency": download_efficiency(method, shapes, cohort, kept),
        "lora_megabits_up": paper_megabits(sum(up)) / len(cohort),
        "lora_megabits_down": paper_megabits(sum(down)) / len(cohort),
    }
    if method in _OPERATIONS:
        measures["lora_server_operations"] = _OPERATIONS[method](shapes, cohort)
    return measures
