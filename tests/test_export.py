"""The exported model loads in transformers, gives the run's loss, and its card says what it is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from parablock_ray import cli
from parablock_ray.config import fingerprint, load_config
from parablock_ray.driver import prepare, run
from parablock_ray.training.evaluate import held_out_loss
from parablock_ray.training.model import load_model, weights_sha256
from tests.runtime.federation import run_tiny
from tests.runtime.lora_runs import lora_config

ADAPTER_TOLERANCE = 1e-5  # nats: W x + s B A x in place of (W + s B A) x, in fp32
BF16_TOLERANCE = 0.02  # nats: 8 bits of mantissa on a loss of about 5


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, ["export", *map(str, arguments)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("export") / "run"
    return folder, run_tiny(folder, ["runtime=serial"])


def loss_of(model: torch.nn.Module, run_folder: Path) -> float:
    """As a run judges its model, which needs no gradients: where one may be asked for, torch takes other kernels on
    some CPUs, and the last bit is another."""
    model.requires_grad_(False)
    config = load_config(run_folder / "config.yaml", [])
    return held_out_loss(model, prepare(config).data.eval, config.method.batch_size)


def test_the_exported_model_is_the_runs(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, summary = finished
    result = command(folder, "--to", tmp_path / "model")
    assert result.exit_code == 0
    assert summary["weights_sha256"] in result.output
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    assert weights_sha256(model.named_parameters()) == summary["weights_sha256"]
    assert loss_of(model, folder) == summary["loss_after"]
    assert AutoTokenizer.from_pretrained(tmp_path / "model").eos_token == "<|im_end|>"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_narrow_export_gives_the_loss_within_its_rounding(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, dtype: str
) -> None:
    folder, summary = finished
    assert command(folder, "--to", tmp_path, "--dtype", dtype).exit_code == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert next(model.parameters()).dtype == getattr(torch, dtype)
    assert loss_of(model.float(), folder) == pytest.approx(summary["loss_after"], abs=BF16_TOLERANCE)


@pytest.fixture(scope="module")
def of_fedit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("fedit") / "run"
    return folder, short_lora(folder, "fedit", [])


def short_lora(folder: Path, method: str, overrides: list[str]) -> dict[str, Any]:
    """One round of an entry of `lora_runs.METHODS`; returns the summary."""
    config = lora_config(folder, method, ["runtime=serial", "engine.name=torch", *overrides])
    return run(config.model_copy(update={"method": config.method.model_copy(update={"rounds": 1})}))


def with_adapter(folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(load_model("tiny", "float32", 0), folder).eval()


def test_the_adapter_makes_the_base_the_runs_model(of_fedit: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, summary = of_fedit
    assert command(folder, "--to", tmp_path / "adapter").output.startswith("adapter: ")
    assert command(folder, "--to", tmp_path / "model", "--merge-lora").output.startswith("model: ")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert loss_of(merged, folder) == summary["loss_after"]
    adapted = with_adapter(tmp_path / "adapter")
    assert loss_of(adapted, folder) == pytest.approx(summary["loss_after"], abs=ADAPTER_TOLERANCE)
    ids = torch.arange(64).view(2, 32)
    with torch.inference_mode():
        base, wanted, got = (each(ids).logits for each in (load_model("tiny", "float32", 0), merged, adapted))
    assert (got - wanted).abs().max() < 1e-4 * (wanted - base).abs().max()
    assert AutoTokenizer.from_pretrained(tmp_path / "adapter").eos_token == "<|im_end|>"


def test_blocks_of_adapters_beside_a_bf16_model_end_in_an_adapter_too(tmp_path: Path) -> None:
    summary = short_lora(tmp_path / "run", "parablock-lora", ["model.dtype=bfloat16"])
    for dtype, tolerance in (("float32", ADAPTER_TOLERANCE), ("bfloat16", BF16_TOLERANCE)):
        assert command(tmp_path / "run", "--to", tmp_path / dtype, "--dtype", dtype).exit_code == 0
        factors = load_file(tmp_path / dtype / "adapter_model.safetensors")
        assert {factor.dtype for factor in factors.values()} == {getattr(torch, dtype)}
        loss = loss_of(with_adapter(tmp_path / dtype), tmp_path / "run")
        assert loss == pytest.approx(summary["loss_after"], abs=tolerance)


def test_a_method_that_merges_as_it_goes_has_a_whole_model_only(tmp_path: Path) -> None:
    summary = short_lora(tmp_path / "run", "flora", [])
    assert not (tmp_path / "run" / "adapter").exists()
    assert command(tmp_path / "run", "--to", tmp_path / "model").output.startswith("model: ")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    assert loss_of(model, tmp_path / "run") == summary["loss_after"]


def test_an_adapter_that_is_not_the_runs_is_refused(of_fedit: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    copy = shutil.copytree(of_fedit[0], tmp_path / "copy")
    weights = copy / "adapter" / "adapter_model.safetensors"
    save_file(load_file(weights), weights, {"format": "pt", "merged_sha256": "0" * 64})
    result = command(copy, "--to", tmp_path / "adapter")
    assert result.exit_code == 2
    assert "not the weights that the run ended with" in result.output
    assert not (tmp_path / "adapter").exists()


def test_the_code_on_an_adapters_card_loads_it(of_fedit: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    command(of_fedit[0], "--to", tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "peft"
    assert "lora" in card.data.tags
    code = card.text.partition("```python\n")[2].partition("```")[0]
    made: dict[str, Any] = {}
    exec(code.replace("path/to/this/folder", str(tmp_path)), made)
    assert isinstance(made["model"], PeftModel)


def test_the_card_of_a_judged_run_has_its_scores(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    copy = shutil.copytree(finished[0], tmp_path / "copy")
    score = {"value": 0.25, "standard_error": 0.125, "num_examples": 8}
    (copy / "evaluation.json").write_text(json.dumps({"gsm8k": {"exact": score}}))
    command(copy, "--to", tmp_path / "model")
    assert "| gsm8k | exact | 0.2500 | 0.1250 | 8 |" in ModelCard.load(tmp_path / "model" / "README.md").text


def test_the_card_says_data_method_and_figures(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, summary = finished
    command(folder, "--to", tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    config = load_config(folder / "config.yaml", [])
    assert card.data.library_name == "transformers"
    assert config.method.name in card.data.tags
    for told in (
        f"{summary['loss_after']:.4f}",
        fingerprint(config),
        summary["weights_sha256"],
        f"`{config.data.source}`, tasks {', '.join(config.data.tasks)}",
        f"{config.method.rounds} rounds",
        f"torch {summary['versions']['torch']}",
    ):
        assert told in card.text


def test_what_cannot_be_exported_is_refused(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = finished
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "x").write_text("mine")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "gone").mkdir()
    for name in ("summary.json", "config.yaml"):
        (tmp_path / "gone" / name).write_text((folder / name).read_text())
    for arguments, why in (
        ((folder, "--to", tmp_path / "used"), "is not empty; choose a new folder"),
        ((folder, "--to", tmp_path / "used" / "x"), "is a file; choose a new folder"),
        ((folder, "--to", tmp_path / "m", "--dtype", "int4"), "--dtype: unknown dtype 'int4'; allowed: float32, bf"),
        ((tmp_path / "unfinished", "--to", tmp_path / "m"), "holds no run"),
        ((tmp_path / "gone", "--to", tmp_path / "m"), "the run's model is gone"),
    ):
        result = command(*arguments)
        assert result.exit_code == 2
        assert why in result.output
    assert (tmp_path / "used" / "x").read_text() == "mine"


def test_weights_that_are_not_the_runs_are_refused(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, summary = finished
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model").symlink_to(folder / "model")
    (tmp_path / "other" / "config.yaml").write_text((folder / "config.yaml").read_text())
    (tmp_path / "other" / "summary.json").write_text(json.dumps(summary | {"weights_sha256": "0" * 64}))
    result = command(tmp_path / "other", "--to", tmp_path / "m")
    assert result.exit_code == 2
    assert "not the weights that the run ended with" in result.output
