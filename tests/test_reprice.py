"""Another link for a finished run: the same seconds as a run that is really made under it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from parablock_ray import cli
from parablock_ray.reprice import reprice
from tests.runtime.federation import rows, run_tiny

FIXED = [
    "runtime=serial",
    "network.mode=virtual",
    "network.compute_s=[0.5,0.6,0.7,0.8]",
    "network.preset=broadband",
    "network.compute_factor={dist: lognormal, median: 1, sigma: 0.5}",
    "clients.num=5",
    "clients.per_round=3",
    "data.split=iid",
]
NEW_LINK = [
    "network.up_mbps={dist: uniform, low: 2, high: 9}",
    "network.down_mbps=11",
    "network.duplex=half",
    "network.pipeline=duplex",
    "network.exchange=cut_through",
    "network.chunk_mb=0.25",
    "network.server_down_mbps=40",
    "network.compute_factor={dist: uniform, low: 1, high: 3}",
]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["reprice", *map(str, arguments)])


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reprice") / "fixed"
    run_tiny(out, FIXED)
    return out


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reprice") / "measured"
    run_tiny(out, ["runtime=serial", "clients.num=2", "data.split=iid", "method.rounds=3"])
    return out


def test_repriced_is_what_a_run_under_the_new_link_takes(fixed: Path, tmp_path: Path) -> None:
    repriced = reprice(fixed, NEW_LINK)
    made = run_tiny(tmp_path / "made", [*(each for each in FIXED if "factor" not in each), *NEW_LINK])
    assert repriced.after_s == pytest.approx(made["seconds"], rel=1e-9)
    assert repriced.before_s == json.loads((fixed / "summary.json").read_text())["seconds"]
    assert repriced.before_s != pytest.approx(repriced.after_s, rel=0.1)
    trace = json.loads((tmp_path / "made" / "trace.json").read_text())
    assert repriced.trace["traceEvents"] == trace["traceEvents"]


def test_the_runs_own_link_changes_nothing(fixed: Path) -> None:
    assert (
        reprice(fixed, []).after_s
        == reprice(fixed, ["network.preset=broadband"]).after_s
        == reprice(fixed, []).before_s
    )


def test_a_preset_and_a_trace_take_the_place_of_what_the_run_had(fixed: Path, tmp_path: Path) -> None:
    lte = reprice(fixed, ["network.preset=lte", "network.up_mbps=3"]).after.network
    assert (lte.preset, lte.up_mbps, lte.down_mbps, lte.latency_ms) == ("lte", 3, 12, 35)
    file = tmp_path / "links.csv"
    file.write_text(
        "client,up_mbps,down_mbps,latency_ms,compute_factor\n" + "".join(f"{i},8,8,0,1\n" for i in range(5))
    )
    traced = reprice(fixed, [f"network.trace={file}"])
    assert (
        traced.after_s
        == reprice(
            fixed, ["network.up_mbps=8", "network.down_mbps=8", "network.latency_ms=0", "network.compute_factor=1"]
        ).after_s
    )


def test_measured_compute_is_kept(measured: Path) -> None:
    """A run in mode none: the new link is virtual, every client a computer of its own."""
    slow = reprice(measured, ["network.up_mbps=0.1"])
    assert slow.after.network.mode == "virtual"
    spans = [e for e in rows(measured / "events.jsonl") if e.get("phase") == "compute"]
    bars = [row for row in slow.trace["traceEvents"] if row.get("cat") == "compute"]
    seconds = sorted(bar["dur"] / 1e6 for bar in bars)
    assert seconds == pytest.approx(sorted(span["end_s"] - span["start_s"] for span in spans))
    assert slow.after_s > 100  # 0.1 Mbit/s for over a megabyte a round


def test_the_command_prints_a_table_and_writes_a_timeline(fixed: Path, measured: Path, tmp_path: Path) -> None:
    before = {path.name for path in fixed.iterdir()}
    result = invoke(fixed, "network.up_mbps=1", "--out", tmp_path / "new.json")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line[:16] for line in lines[1:3]] == ["priced, own link", "priced, new link"]
    assert lines[1].endswith("1.00x")
    assert json.loads((tmp_path / "new.json").read_text())["otherData"]["network"]["up_mbps"] == 1
    assert {path.name for path in fixed.iterdir()} == before
    assert "as it ran" in invoke(measured, "network.preset=lte").stdout
    assert (measured / "repriced.json").exists()


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("method.lr=1", "method.lr: reprice takes keys of network only, like network.up_mbps=20; train again"),
        ("network={mode: none}", "network: reprice takes keys of network only, like network.up_mbps=20; train"),
        ("network.wire_dtype=float16", "network.wire_dtype: it changes values and bytes, not only seconds; train"),
        ("network.up_mbps=0", "network.up_mbps: must be greater than 0 (got 0)"),
        ("network.up_mbp=1", "network.up_mbp: unknown key; did you mean 'up_mbps'? (allowed: "),
        ("network.mode=shaped", "network: compute_factor needs mode: virtual; "),
    ],
)
def test_refused(fixed: Path, override: str, line: str) -> None:
    result = invoke(fixed, override)
    assert result.exit_code == 2
    assert result.stderr.startswith(line)


def test_an_unfinished_run_and_no_run_are_refused(fixed: Path, tmp_path: Path) -> None:
    assert "holds no run" in invoke(tmp_path, "network.up_mbps=1").stderr
    (tmp_path / "config.yaml").write_text((fixed / "config.yaml").read_text())
    result = invoke(tmp_path, "network.up_mbps=1")
    assert (result.exit_code, "this run did not finish" in result.stderr) == (2, True)


def test_a_damaged_events_file_is_named(fixed: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "summary.json"):
        (tmp_path / name).write_text((fixed / name).read_text())
    for text in ("{", '{"event": "span"}\n'):
        (tmp_path / "events.jsonl").write_text(text)
        result = invoke(tmp_path, "network.up_mbps=1")
        assert result.exit_code == 2
        assert result.stderr.startswith(f"{tmp_path / 'events.jsonl'}: cannot be read: ")
    (tmp_path / "events.jsonl").write_text("")
    assert "events.jsonl: holds 0 of 5 rounds" in invoke(tmp_path, "network.up_mbps=1").stderr
