"""`parablock export`: a run's model to take away, an ordinary Hugging Face folder with a card that says what it is."""

from collections.abc import Iterator
from pathlib import Path

import torch

from parablock_ray import __version__
from parablock_ray.config import fingerprint
from parablock_ray.config.method import MethodConfig
from parablock_ray.errors import UserError
from parablock_ray.tracking.compare import FinishedRun, read_run
from parablock_ray.training.model import cast_parameters, load_model, load_tokenizer, save_model, weights_sha256

DTYPES = ("float32", "bfloat16", "float16")


def export(run_folder: Path, to: Path, dtype: str) -> str:
    """Write the run's final model to the folder `to`, which must be new or empty; return the sha256 of its weights.

    Adapters are merged already: a run's model holds W + scaling · B A. Raises UserError for a folder without a
    finished run, for a model that is not the run's any more, and for a folder that holds something.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype: unknown dtype {dtype!r}; allowed: {', '.join(DTYPES)}")
    run = read_run(run_folder)
    _refuse_used(to)
    source = run_folder / "model"
    if not source.is_dir():
        raise UserError(f"{run_folder}: the run's model is gone (no folder model/); run it again")
    model, tokenizer = load_model(str(source), "float32", run.config.seed), load_tokenizer(str(source))
    if weights_sha256(model.named_parameters()) != run.summary["weights_sha256"]:
        raise UserError(f"{source}: not the weights that the run ended with (summary.json: weights_sha256)")
    cast_parameters(model, getattr(torch, dtype))
    digest = weights_sha256(model.named_parameters())
    try:
        to.mkdir(parents=True, exist_ok=True)
        save_model(model, tokenizer, to)
        (to / "README.md").write_text(card(run, dtype, digest), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--to: cannot write to {to}: {error.strerror}") from None
    return digest


def card(run: FinishedRun, dtype: str, weights_sha256: str) -> str:
    """The model card: Hugging Face's front matter, then data, method and figures in plain words."""
    return "\n".join([*_front_matter(run), "", *_text(run, dtype, weights_sha256), ""])


def _front_matter(run: FinishedRun) -> Iterator[str]:
    name = run.config.model.name
    yield "---"
    if "/" in name and not name.startswith((".", "/", "~")):  # a name on the hub, which the card may link
        yield f"base_model: {name}"
    yield from ("library_name: transformers", "pipeline_tag: text-generation")
    yield from ("tags:", "- federated-learning", "- parablock-ray", f"- {run.config.method.name}")
    yield "---"


def _text(run: FinishedRun, dtype: str, weights_sha256: str) -> Iterator[str]:
    config, summary = run.config, run.summary
    data, method = config.data, config.method
    tasks = f", tasks {', '.join(data.tasks)}" if data.tasks else ""
    yield f"# {config.name}"
    yield ""
    yield (
        f"`{config.model.name}`, fine-tuned by {config.clients.num} federated clients with "
        f"parablock-ray {__version__}. "
        "The licences of the base model and of the data apply."
    )
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
    yield f"| weights here (sha256, {dtype}) | `{weights_sha256}` |"
    yield f"| versions | {', '.join(f'{name} {version}' for name, version in summary['versions'].items())} |"


_BYTES = ("bytes_up", "bytes_down", "bytes_catch_up")


def _method_line(method: MethodConfig) -> str:
    visits = f"{method.local_steps} local steps of batch size {method.batch_size}"
    return f"{method.rounds} rounds, visits of {visits}, lr {method.lr:g}, staleness {method.staleness}"


def _refuse_used(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--to: {folder} is not empty; choose a new folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--to: {folder} is a file; choose a new folder")
