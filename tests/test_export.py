"""The exported model loads in transformers, gives the run's loss, and its card says what it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from parablock_ray import cli
from parablock_ray.config import fingerprint, load_config
from parablock_ray.driver import prepare
from parablock_ray.training.evaluate import held_out_loss
from parablock_ray.training.model import weights_sha256
from tests.runtime.federation import run_tiny
from tests.runtime.lora_runs import run_lora

BF16_TOLERANCE = 0.02  # nats: 8 bits of mantissa on a loss of about 5


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, ["export", *map(str, arguments)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("export") / "run"
    return folder, run_tiny(folder, ["runtime=serial"])


def loss_of(model: torch.nn.Module, run_folder: Path) -> float:
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


def test_the_adapters_of_a_lora_run_are_merged(tmp_path: Path) -> None:
    summary = run_lora(tmp_path / "run", "fedit", ["runtime=serial", "engine.name=torch"])
    assert command(tmp_path / "run", "--to", tmp_path / "model").exit_code == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert loss_of(model, tmp_path / "run") == summary["loss_after"]


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
