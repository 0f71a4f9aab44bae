"""Whole runs on the virtual clock: closed forms, and the same weights as without it."""

from pathlib import Path
from typing import Any

import pytest

from parablock_ray.algorithms.blocks import make_layout
from parablock_ray.training.model import load_model
from tests.runtime.federation import rows, run_tiny

# One step a visit; three decoder layers a block, so that all blocks are of one size and all transfers of one length.
FIXED = ["runtime=serial", "network.mode=virtual", "network.compute_s=0.7", "method.parameters=layers"]
SMALL = ["clients.num=2", "data.split=iid", "data.num_train=8", "method.rounds=6"]
EQUAL = [*FIXED, *SMALL, "network.up_mbps=4", "network.down_mbps=8"]
C = 0.7


def transfer_s() -> tuple[float, float]:
    """(u, d) of one of the tiny model's four blocks."""
    layout = make_layout(dict(load_model("tiny", "float32", seed=0).named_parameters()), 4, "layers")
    (num_params,) = {block.num_params for block in layout.blocks}
    return num_params * 32 / 4e6, num_params * 32 / 8e6


def fedbcd(c: float, u: float, d: float, k: int) -> float:
    return 6 * (c + u + d)


def serial_parablock(c: float, u: float, d: float, k: int) -> float:
    return c + 5 * max(c, u + d) + u + d


def cut_through_fedbcd(c: float, u: float, d: float, k: int) -> float:
    return 6 * (c + max(u, d) + min(u, d) / k)


def cut_through_parablock(c: float, u: float, d: float, k: int) -> float:
    m = max(u, d) + min(u, d) / k
    return c + 5 * max(c, m) + m


CUT_THROUGH = ["network.exchange=cut_through", "network.chunk_mb=0.5"]


@pytest.mark.parametrize(
    ("overrides", "closed_form"),
    [
        (["method.name=fedbcd"], fedbcd),
        ([], serial_parablock),
        (["method.name=fedbcd", *CUT_THROUGH], cut_through_fedbcd),
        (CUT_THROUGH, cut_through_parablock),
    ],
    ids=["fedbcd", "parablock", "fedbcd-cut-through", "parablock-cut-through"],
)
def test_a_run_takes_what_the_closed_form_says(tmp_path: Path, overrides: list[str], closed_form: Any) -> None:
    summary = run_tiny(tmp_path, [*EQUAL, *overrides])
    u, d = transfer_s()
    num_chunks = -(-round(u * 4e6 / 8) // 500_000)
    assert summary["seconds"] == pytest.approx(closed_form(C, u, d, num_chunks), rel=1e-9)
    assert summary["seconds_bound"] == summary["seconds"]
    assert (summary["overlap_efficiency"], summary["seconds_mode"]) == (1, "virtual")
    metrics = rows(tmp_path / "metrics.jsonl")
    assert [row["round"] for row in metrics] == list(range(6))
    assert sum(row["seconds"] for row in metrics) == pytest.approx(summary["seconds"], rel=1e-12)
    assert all(row["compute_s"] == pytest.approx(C) for row in metrics)
    assert all(row["upload_s"] == pytest.approx(u) for row in metrics)


def test_the_slowest_client_sets_the_pace(tmp_path: Path) -> None:
    """FedBCD, two clients each with its own line and computer: max(c+u+L) + (T−1) max(c+u+d+2L) + max(d+L)."""
    file = tmp_path / "links.csv"
    file.write_text(
        "client,up_mbps,down_mbps,latency_ms,compute_factor\n0,4,8,100,1\n1,40,80,500,3\n",
    )
    summary = run_tiny(tmp_path / "run", [*FIXED, *SMALL, "method.name=fedbcd", f"network.trace={file}"])
    u, d = transfer_s()
    clients = [(C, u, d, 0.1), (3 * C, u / 10, d / 10, 0.5)]
    first = max(c + u + latency for c, u, _, latency in clients)
    between = max(c + u + d + 2 * latency for c, u, d, latency in clients)
    last = max(d + latency for _, _, d, latency in clients)
    assert summary["seconds"] == pytest.approx(first + 5 * between + last, rel=1e-9)


def test_each_block_has_its_own_seconds(tmp_path: Path) -> None:
    run_tiny(tmp_path, [*EQUAL, "network.compute_s=[1,2,3,4]", "method.local_steps=2"])
    metrics = rows(tmp_path / "metrics.jsonl")
    assert [row["compute_s"] for row in metrics] == pytest.approx([2 * (row["block"] + 1) for row in metrics])


def test_the_mode_changes_no_bit(tmp_path: Path) -> None:
    """Sampled clients that catch up, a half-duplex line, a limited server: measured compute, ten times slower."""
    sampled = ["runtime=serial", "clients.num=7", "clients.per_round=3", "data.split=iid", "method.rounds=8"]
    link = {"mode": "virtual", "preset": "lte", "duplex": "half", "server_up_mbps": 20, "compute_factor": 10}
    virtual = run_tiny(tmp_path / "virtual", [*sampled, *(f"network.{key}={value}" for key, value in link.items())])
    plain = run_tiny(tmp_path / "plain", sampled)
    assert virtual["overlap_efficiency"] == 1
    for key in ("weights_sha256", "loss_after", "bytes_up", "bytes_down", "bytes_catch_up"):
        assert virtual[key] == plain[key]
    measured, priced = rows(tmp_path / "virtual" / "events.jsonl"), rows(tmp_path / "virtual" / "metrics.jsonl")
    compute_s = [e["end_s"] - e["start_s"] for e in measured if e.get("phase") == "compute" and e["round"] == 0]
    assert priced[0]["compute_s"] == pytest.approx(10 * sum(compute_s) / 3)


def test_a_trace_is_checked_before_anything_starts(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from parablock_ray import cli
    from tests.runtime.federation import QUICKSTART

    overrides = ["network.mode=virtual", f"network.trace={tmp_path / 'none.csv'}"]
    for command in (["validate"], ["run", "--out", str(tmp_path / "run")]):
        result = CliRunner().invoke(cli.app, [*command, str(QUICKSTART), *overrides])
        assert result.exit_code == 2
        assert result.stderr.startswith("network.trace: cannot read ")
        assert not (tmp_path / "run").exists()
