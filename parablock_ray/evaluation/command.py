"""`parablock evaluate`: which model is meant, in what form it is asked, and the files that come out."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from transformers import PreTrainedModel

from parablock_ray.config import Config
from parablock_ray.config.data import GENERATED, DataConfig
from parablock_ray.config.evaluation import EvaluationConfig
from parablock_ray.config.explain import explain
from parablock_ray.config.schema import WorkersConfig
from parablock_ray.errors import UserError
from parablock_ray.evaluation.evaluator import model_to_judge, run_context
from parablock_ray.evaluation.results import TaskResult, as_json
from parablock_ray.evaluation.tasks import Context, Task, evaluate, load_tasks, need_data
from parablock_ray.tracking.compare import read_run
from parablock_ray.training.data import build_data
from parablock_ray.training.model import load_tokenizer, max_context, model_config


@dataclass(frozen=True)
class Evaluation:
    """What is judged on what."""

    model: PreTrainedModel
    context: Context
    tasks: list[Task]

    def results(self) -> Iterator[TaskResult]:
        """Task after task, each as soon as it is done."""
        return (evaluate(self.model, task) for task in self.tasks)

    def as_json(self, results: Sequence[TaskResult]) -> dict[str, Any]:
        """What was judged, in which form, and every metric."""
        return {
            "model": self.context.model_id,
            "template": self.context.template,
            "seed": self.context.seed,
            "settings": self.context.settings.model_dump(mode="json"),
            "results": as_json(results),
        }


def open_evaluation(model_or_run: str, chosen: Mapping[str, Any], template: str | None) -> Evaluation:
    """Reads tasks first and loads the model last, so that mistakes show soon.

    `model_or_run`: a run folder, an HF folder, or a name as in `model.name`. `chosen`: keys of `evaluation:`, in
    place of the run's or of the defaults. `template`: of a model that no run made. Raises UserError.
    """
    folder = Path(model_or_run).expanduser()
    if not folder.is_dir():
        return _of_model(model_or_run, model_or_run, chosen, template)
    if (folder / "summary.json").exists() or (folder / "events.jsonl").exists():
        return _of_run(folder, chosen, template)
    if not (folder / "config.json").exists():
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise UserError(
            f"{folder}: neither a run (summary.json) nor a Hugging Face model (config.json); there is {there}"
        )
    return _of_model(model_or_run, folder.resolve().name, chosen, template)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Raises OSError."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _of_run(folder: Path, chosen: Mapping[str, Any], template: str | None) -> Evaluation:
    config: Config = read_run(folder).config
    if template is not None and template != config.data.template:
        raise UserError(
            f"--template: a run is judged in the form that it was trained in, {config.data.template}; leave it out"
        )
    settings = _settings(config.evaluation, chosen)
    source = str(folder / "model")
    if not Path(source).is_dir():
        raise UserError(f"{folder}: the run's model is gone (no folder model/); run it again")
    tokenizer, longest = load_tokenizer(source), max_context(model_config(source))
    data = None
    if need_data(settings.tasks):  # its source may be gone, or take long to read
        data = build_data(config.data, config.clients.num, config.seed, tokenizer, longest)
    return _opened(source, replace(run_context(config, data, tokenizer, longest), settings=settings), config.workers)


def _of_model(source: str, model_id: str, chosen: Mapping[str, Any], template: str | None) -> Evaluation:
    seed: int = Config.model_fields["seed"].default
    settings = _settings(EvaluationConfig(), chosen)
    context = Context(
        settings,
        load_tokenizer(source),
        max_context(model_config(source)),
        _form(template),
        seed,
        model_id,
        data=None,
    )
    return _opened(source, context, WorkersConfig())


def _form(template: str | None) -> str:
    """`data.template`, in a run's terms."""
    if template is None:
        return str(DataConfig.model_fields["template"].default)
    try:
        return DataConfig(source=GENERATED, template=template).template
    except ValidationError as error:
        raise UserError(f"--{explain(error, DataConfig)}") from None


def _opened(source: str, context: Context, workers: WorkersConfig) -> Evaluation:
    tasks = load_tasks(context.settings.tasks, context)
    return Evaluation(model_to_judge(source, context.seed, workers), context, tasks)


def _settings(configured: EvaluationConfig, chosen: Mapping[str, Any]) -> EvaluationConfig:
    try:
        settings = EvaluationConfig.model_validate({**configured.model_dump(), **chosen})
    except ValidationError as error:
        raise UserError(
            "\n".join(f"evaluation.{line}" for line in explain(error, EvaluationConfig).splitlines())
        ) from None
    if not settings.tasks:
        raise UserError("--tasks: name at least one, like --tasks held_out,reasoning_gym:chain_sum")
    return settings
