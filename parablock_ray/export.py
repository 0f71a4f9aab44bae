"""`parablock export`: what a run learned, to take away: a Hugging Face folder with a card that says what it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from parablock_ray import __version__
from parablock_ray.config import fingerprint
from parablock_ray.config.method import MethodConfig
from parablock_ray.errors import UserError
from parablock_ray.json_files import json_file
from parablock_ray.tracking.compare import FinishedRun, read_run
from parablock_ray.tracking.evaluations import Results, checked_results
from parablock_ray.training.adapters import ADAPTER_FOLDER, copy_adapters, merged_sha256
from parablock_ray.training.model import (
    BUILT_IN,
    cast_parameters,
    load_model,
    load_tokenizer,
    save_model,
    weights_sha256,
)

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Exported:
    """What was written, and the digest of the weights in it."""

    kind: Literal["model", "adapter"]
    weights_sha256: str


def export(run_folder: Path, to: Path, dtype: str, merge_lora: bool) -> Exported:
    """Write the run's final model to the folder `to`, which must be new or empty.

    A run that ends with adapters beside its initial model is written as these alone, in PEFT's form, unless
    `merge_lora`; every other run as the whole model. Raises UserError for a folder without a finished run, for weights
    that are not the run's any more, and for a folder that holds something.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype: unknown dtype {dtype!r}; allowed: {', '.join(DTYPES)}")
    run = read_run(run_folder)
    _refuse_used(to)
    if not (run_folder / "model").is_dir():
        raise UserError(f"{run_folder}: the run's model is gone (no folder model/); run it again")
    as_adapters = (run_folder / ADAPTER_FOLDER).is_dir() and not merge_lora
    exported = (_write_adapters if as_adapters else _write_model)(run, to, getattr(torch, dtype))
    scores = _scores_of(run_folder)
    with _writing(to):
        (to / "README.md").write_text(card(run, exported, dtype, scores), encoding="utf-8")
    return exported


def _scores_of(run_folder: Path) -> Results:
    file = run_folder / "evaluation.json"
    try:
        return checked_results(json_file(file)) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {error}; delete it, or evaluate the run again") from None


def card(run: FinishedRun, exported: Exported, dtype: str, scores: Results) -> str:
    """The model card: Hugging Face's front matter, then data, method and figures in plain words."""
    return "\n".join([*_front_matter(run, exported), "", *_text(run, exported, dtype), *_scores(scores), ""])


def _write_model(run: FinishedRun, to: Path, dtype: torch.dtype) -> Exported:
    source = Path(run.folder) / "model"
    model, tokenizer = load_model(str(source), "float32", run.config.seed), load_tokenizer(str(source))
    _check_weights(run, source, weights_sha256(model.named_parameters()))
    cast_parameters(model, dtype)
    with _writing(to):
        save_model(model, tokenizer, to)
    return Exported("model", weights_sha256(model.named_parameters()))


def _write_adapters(run: FinishedRun, to: Path, dtype: torch.dtype) -> Exported:
    source = Path(run.folder) / ADAPTER_FOLDER
    _check_weights(run, source, merged_sha256(source))
    tokenizer = load_tokenizer(str(source.with_name("model")))
    with _writing(to):
        factors = copy_adapters(source, to, dtype)
        tokenizer.save_pretrained(to)
    return Exported("adapter", weights_sha256(factors.items()))


def _check_weights(run: FinishedRun, source: Path, digest: str) -> None:
    if digest != run.summary["weights_sha256"]:
        raise UserError(f"{source}: not the weights that the run ended with (summary.json: weights_sha256)")


@contextmanager
def _writing(to: Path) -> Iterator[None]:
    try:
        to.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"--to: cannot write to {to}: {error.strerror or error}") from None


def _front_matter(run: FinishedRun, exported: Exported) -> Iterator[str]:
    yield "---"
    if _on_hub(run.config.model.name):  # which the card may link
        yield f"base_model: {run.config.model.name}"
    yield f"library_name: {'peft' if exported.kind == 'adapter' else 'transformers'}"
    yield "pipeline_tag: text-generation"
    yield from ("tags:", "- federated-learning", "- parablock-ray", f"- {run.config.method.name}")
    if exported.kind == "adapter":
        yield "- lora"
    yield "---"


def _text(run: FinishedRun, exported: Exported, dtype: str) -> Iterator[str]:
    config, summary = run.config, run.summary
    data, method = config.data, config.method
    tasks = f", tasks {', '.join(data.tasks)}" if data.tasks else ""
    yield f"# {config.name}"
    yield ""
    yield (
        f"`{config.model.name}`, fine-tuned by {config.clients.num} federated clients with "
        f"parablock-ray {__version__}. "
        "The licences of the base model and of the data apply; this card names no licence of its own."
    )
    yield from ("", "## Loading", "", *_loading(run, exported))
    yield from ("", "## Data", "")
    yield (
        f"`{data.source}`{tasks}; split `{data.split.name}`, template `{data.template}`, "
        f"at most {data.max_length} tokens."
    )
    yield f"{data.num_eval} examples were held out of training."
    yield from ("", "## Method", "")
    yield f"`{method.name}`: {_method_line(method)}."
    yield from ("", "## Figures", "", "| | |", "|---|---|")
    yield f"| held-out loss before | {summary['loss_before']:.4f} |"
    yield f"| held-out loss after | {summary['loss_after']:.4f} |"
    yield f"| seconds (network.mode {summary['seconds_mode']}) | {summary['seconds']:.1f} |"
    yield f"| bytes up, down, to catch up | {', '.join(f'{summary[key]:,}' for key in _BYTES)} |"
    yield f"| seed | {config.seed} |"
    yield f"| config fingerprint (sha256) | `{fingerprint(config)}` |"
    yield f"| weights of the run (sha256, fp32) | `{summary['weights_sha256']}` |"
    yield f"| weights here (sha256, {dtype}) | `{exported.weights_sha256}` |"
    yield f"| versions | {', '.join(f'{name} {version}' for name, version in summary['versions'].items())} |"


_BYTES = ("bytes_up", "bytes_down", "bytes_catch_up")


def _loading(run: FinishedRun, exported: Exported) -> Iterator[str]:
    """The code that loads this folder."""
    name, here = run.config.model.name, '"path/to/this/folder"'
    load = "AutoModelForCausalLM.from_pretrained"
    yield "```python"
    if exported.kind == "model":
        yield from ("from transformers import AutoModelForCausalLM", "", f"model = {load}({here})")
    else:
        yield "from peft import PeftModel"
        if name in BUILT_IN:
            yield from ("from parablock_ray.training.model import load_model", "")
            yield f'base = load_model("{name}", "float32", seed={run.config.seed})'
        else:
            yield from ("from transformers import AutoModelForCausalLM", "")
            yield f'base = {load}("{name}", dtype="float32")'
        yield f"model = PeftModel.from_pretrained(base, {here})"
    yield "```"


def _scores(scores: Results) -> Iterator[str]:
    """Of `evaluation.json`, where the run has one."""
    if not scores:
        return
    yield from ("", "## Evaluation", "", "Of the run's own fp32 model.", "")
    yield from ("| task | metric | value | standard error | examples |", "|---|---|---|---|---|")
    for task, metrics in scores.items():
        for name, metric in metrics.items():
            error = "" if metric["standard_error"] is None else f"{metric['standard_error']:.4f}"
            yield f"| {task} | {name} | {metric['value']:.4f} | {error} | {metric['num_examples']} |"


def _method_line(method: MethodConfig) -> str:
    visits = f"{method.local_steps} local steps of batch size {method.batch_size}"
    return f"{method.rounds} rounds, visits of {visits}, lr {method.lr:g}, staleness {method.staleness}"


def _on_hub(name: str) -> bool:
    return "/" in name and not name.startswith((".", "/", "~"))


def _refuse_used(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--to: {folder} is not empty; choose a new folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--to: {folder} is a file; choose a new folder")
