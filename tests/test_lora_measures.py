"""What a federated LoRA run says of its costs, and what it says before it starts."""

import logging
from pathlib import Path

import pytest

from parablock_ray.driver import prepare
from parablock_ray.errors import UserError
from parablock_ray.tracking.compare import lora_table, read_run
from tests.runtime.lora_runs import MIXED, lora_config, run_lora
from tests.test_docs import described

SERIAL = ["runtime=serial", "engine.name=torch"]
NUM_MODULES = 16  # q and v of the tiny model's 8 layers
WIDTHS = 8 * (128 + 128 + 128 + 64)  # m + n, summed over them


@pytest.mark.parametrize(
    ("method", "up", "down", "rank"),
    [
        ("fedit", 4 * WIDTHS, 4 * WIDTHS, 4),
        ("ffa_lora", 4 * 8 * (128 + 64), 4 * 8 * (128 + 64), 2),
        ("zero_pad", sum(MIXED) / 4 * WIDTHS, max(MIXED) * WIDTHS, max(MIXED)),
        ("hetlora", sum(MIXED) / 4 * WIDTHS, sum(MIXED) / 4 * WIDTHS, sum(MIXED) / 4),
        ("fedex_lora", 4 * WIDTHS, (4 + 16) * WIDTHS, 4 + 16),
        ("flexlora", sum(MIXED) / 4 * WIDTHS, sum(MIXED) / 4 * WIDTHS, sum(MIXED) / 4),
        ("flora", sum(MIXED) / 4 * WIDTHS, sum(MIXED) * WIDTHS, sum(MIXED)),
    ],
)
def test_the_summary_has_the_papers_measures(tmp_path: Path, method: str, up: float, down: float, rank: float) -> None:
    summary = run_lora(tmp_path, method, SERIAL)
    assert summary["lora_megabits_up"] == pytest.approx(up * 16 / 1e6)
    assert summary["lora_megabits_down"] == pytest.approx(down * 16 / 1e6)
    assert summary["lora_download_efficiency"] == pytest.approx(1 / (rank * NUM_MODULES))
    assert summary["bytes_down"] == pytest.approx(down * 4 * 4 * 5)  # fp32, 4 clients, 5 rounds
    assert summary["bytes_up"] == pytest.approx(up * 4 * 4 * 5)
    assert summary["server_s"] > 0
    assert {name for name in summary if name.startswith("lora_")} <= described("summary.json").keys()
    assert ("lora_server_operations" in summary) == (method == "flexlora")


def test_florists_measures_are_of_what_it_kept(tmp_path: Path) -> None:
    summary = run_lora(tmp_path, "florist", SERIAL)
    assert summary["bytes_down"] == pytest.approx(summary["lora_megabits_down"] / 16 * 1e6 * 4 * 4 * 5)
    assert summary["lora_download_efficiency"] > 1 / (sum(MIXED) * NUM_MODULES)
    assert summary["lora_server_operations"] > 0
    table = (tmp_path / "ranks.csv").read_text().splitlines()
    assert table[0] == "round,module,rank,kept_energy"
    assert len(table) == 1 + 5 * NUM_MODULES
    assert "<svg" in (tmp_path / "ranks.svg").read_text()


def test_runs_side_by_side_have_a_table_of_their_own(tmp_path: Path) -> None:
    runs = []
    for method in ("fedit", "florist"):
        run_lora(tmp_path / method, method, SERIAL)
        runs.append(read_run(tmp_path / method))
    table = lora_table(runs)
    assert table is not None
    assert list(table.columns[1].cells) == ["4", "2 to 8"]
    assert table.row_count == 2


def test_a_rank_above_the_full_rank_is_allowed_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = lora_config(tmp_path, "fedit", SERIAL)
    wide = config.method.model_copy(update={"lora": config.method.lora.model_copy(update={"ranks": 70})})
    with caplog.at_level(logging.WARNING):
        prepare(config)
        assert not caplog.records
        prepare(config.model_copy(update={"method": wide}))
    [record] = caplog.records
    assert record.getMessage().startswith(
        "method.lora.ranks: 70 is above the full rank 64 of model.layers.0.self_attn.v"
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"target_modules": ("q_proj", "w_proj")}, "no linear module 'w_proj'; allowed: down_proj, gate_proj, k_proj"),
        ({"ranks": (2, 4)}, "method.lora.ranks: 2 ranks for clients.num = 4"),
    ],
)
def test_adapters_that_cannot_be_are_refused_before_anything_starts(tmp_path: Path, change: dict, why: str) -> None:
    config = lora_config(tmp_path, "flora", SERIAL)
    method = config.method.model_copy(update={"lora": config.method.lora.model_copy(update=change)})
    with pytest.raises(UserError, match=why):
        prepare(config.model_copy(update={"method": method}))
