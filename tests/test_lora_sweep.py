"""`parablock lora-sweep`: at the run's own threshold the replayed server holds the run's own model."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from parablock_ray import cli
from parablock_ray.config import Config
from parablock_ray.driver import run
from parablock_ray.lora_sweep import SweepPoint, sweep
from parablock_ray.tracking.events import Committed, from_row
from tests.runtime.lora_runs import MIXED, lora_config

SERIAL = ["runtime=serial", "engine.name=torch"]


def kept_run(out: Path, method: str, overrides: list[str]) -> dict[str, Any]:
    config = lora_config(out, method, [*SERIAL, *overrides]).model_dump()
    return run(Config.model_validate({**config, "method": config["method"] | {"keep_uploads": True}}))


def events_of(folder: Path) -> list[Committed]:
    events = [from_row(json.loads(line)) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event for event in events if isinstance(event, Committed)]


@pytest.mark.parametrize("method", ["florist", "florist-carry"])
@pytest.mark.parametrize("overrides", [[], ["clients.per_round=2", "network.wire_dtype=bfloat16"]])
def test_the_runs_own_threshold_gives_the_runs_own_model(tmp_path: Path, method: str, overrides: list[str]) -> None:
    summary = kept_run(tmp_path, method, overrides)
    threshold = 0.9 if method == "florist" else 0.95
    [point] = sweep(tmp_path, [threshold])
    assert point.loss == summary["loss_after"]
    commits = events_of(tmp_path)
    assert point.rank_sum == pytest.approx(
        sum(each.rank for commit in commits for each in commit.kept_ranks) / len(commits)
    )
    if method == "florist":
        assert point.download_efficiency == pytest.approx(summary["lora_download_efficiency"])
        assert point.megabits == pytest.approx(summary["lora_megabits_down"])


@pytest.mark.parametrize("method", ["flora", "zero_pad", "hetlora", "flexlora"])
def test_more_threshold_keeps_more_and_all_of_it_is_the_exact_update(tmp_path: Path, method: str) -> None:
    summary = kept_run(tmp_path, method, [])
    points = sweep(tmp_path, [1.0, 0.5, 0.9])
    assert [point.threshold for point in points] == [0.5, 0.9, 1.0]
    ranks = [point.rank_sum for point in points]
    assert ranks == sorted(ranks)
    assert ranks[0] < ranks[2]
    assert points[0].compression > points[2].compression >= 1
    if method == "flora":  # fresh adapters have nothing in common, and their update is exact
        assert ranks[2] == sum(MIXED) * 16
        assert points[2].loss == pytest.approx(summary["loss_after"], abs=1e-5)
        assert points[0].loss != points[2].loss


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, ["lora-sweep", *map(str, arguments)])


def test_the_command_prints_a_table_and_writes_it_with_its_picture(tmp_path: Path) -> None:
    kept_run(tmp_path, "flora", ["network.wire_dtype=float16"])
    result = command(tmp_path, "--thresholds", "0.8,1")
    assert result.exit_code == 0
    assert "compression" in result.output
    rows = list(csv.DictReader((tmp_path / "lora_sweep.csv").open()))
    assert [float(row["threshold"]) for row in rows] == [0.8, 1.0]
    assert set(rows[0]) == set(SweepPoint.__dataclass_fields__)
    assert "<svg" in (tmp_path / "lora_sweep.svg").read_text()
    assert command(tmp_path, "--thresholds", "1", "--out", tmp_path / "other.csv").exit_code == 0
    assert (tmp_path / "other.csv").exists()
    assert (tmp_path / "other.svg").exists()
    for thresholds, why in (
        ("0.5,x", "--thresholds: must be numbers with commas between (got '0.5,x')"),
        ("0,0.5", "--thresholds: must be over 0 and at most 1 (got 0.0, 0.5)"),
        ("1.5", "--thresholds: must be over 0 and at most 1 (got 1.5)"),
    ):
        refused = command(tmp_path, "--thresholds", thresholds)
        assert refused.exit_code == 2
        assert why in refused.output
    missing = command(tmp_path, "--thresholds", "1", "--out", tmp_path / "nowhere" / "x.csv")
    assert missing.exit_code == 2
    assert "--out: cannot write to" in missing.output


def test_runs_without_adapters_to_sweep_are_refused(tmp_path: Path) -> None:
    run(lora_config(tmp_path / "flora", "flora", SERIAL))
    result = command(tmp_path / "flora")
    assert result.exit_code == 2
    assert "holds no uploads of round 0 (uploads/round-00000.safetensors); run it again with" in result.output
    run(lora_config(tmp_path / "fedit", "fedit", SERIAL))
    result = command(tmp_path / "fedit")
    assert result.exit_code == 2
    assert "a run of fedit; its uploads are no adapters of the initial model; allowed: runs of flora, florist" in (
        result.output
    )
    assert command(tmp_path / "none").exit_code == 2
