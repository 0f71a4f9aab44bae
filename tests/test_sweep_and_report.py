"""A real sweep of two methods, and a report on it."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from parablock_ray import cli
from tests.runtime.federation import QUICKSTART, SHORT

BROKEN = ["data.source=none.jsonl", "data.tasks=[]"]


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [*map(str, arguments)])


@pytest.mark.slow
def test_a_sweep_leaves_whole_runs_and_a_report_compares_them(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    told = {
        "name": "both",
        "config": str(QUICKSTART),
        "out": str(tmp_path / "both"),
        "overrides": [*SHORT, "runtime=serial", "network.mode=virtual", "network.compute_s=0.5"],
        "runs": {"fedbcd": ["method.name=fedbcd"], "parablock": [], "broken": BROKEN},
    }
    file.write_text(yaml.safe_dump(told, sort_keys=False))
    result = invoke("sweep", file, "--parallel", "2")
    assert result.exit_code == 1
    assert result.stderr.startswith("1 of 3 runs failed:\nbroken-seed0: data.source: ")
    files = (tmp_path / "both" / f"{method}-seed0" / "summary.json" for method in ("fedbcd", "parablock"))
    summaries = [json.loads(file.read_text()) for file in files]
    assert [summary["method"] for summary in summaries] == ["fedbcd", "parablock"]

    result = invoke("report", tmp_path / "both", "--out", tmp_path / "page.html")
    assert result.exit_code == 0
    assert result.stderr.startswith(f"warning: Left out: {tmp_path}/both/broken-seed0: failed: data.source: ")
    page = (tmp_path / "page.html").read_text()
    assert all(f"{summary['loss_after']:.4f}" in page for summary in summaries)
    assert page.count("data:image/svg+xml") == 3  # two timelines, one split
