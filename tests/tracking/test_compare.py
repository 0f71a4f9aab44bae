"""Finished runs side by side."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from parablock_ray import cli
from parablock_ray.config import load_config, save_resolved
from parablock_ray.errors import UserError
from parablock_ray.tracking.compare import MIN_WIDTH, comparison_table, differences, read_run

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
SUMMARY: dict[str, Any] = {
    "status": "done",
    "num_rounds": 12,
    "num_clients": 4,
    "num_workers": 2,
    "loss_before": 2.0,
    "loss_after": 1.5,
    "seconds": 120.0,
    "seconds_bound": 110.0,
    "seconds_mode": "shaped",
    "overlap_efficiency": 110 / 120,
    "bytes_up": 60_000_000,
    "bytes_down": 60_000_000,
    "bytes_catch_up": 3_400_000,
    "server_s": 1.0,
    "weights_sha256": "0123456789abcdef" * 4,
    "versions": {"python": "3.12.1"},
}
FASTER = {"loss_after": 1.4, "seconds": 60.0, "seconds_bound": 55.0}


def run_folder(folder: Path, *overrides: str, **figures: Any) -> Path:
    """What a finished run leaves for a comparison."""
    folder.mkdir()
    config = load_config(QUICKSTART, [f"name={folder.name}", *overrides])
    save_resolved(config, folder / "config.yaml")
    (folder / "summary.json").write_text(json.dumps(SUMMARY | {"method": config.method.name} | figures))
    return folder


def compare(*folders: Path) -> Result:
    return CliRunner().invoke(cli.app, ["compare", *map(str, folders)])


def test_a_row_a_run_against_the_first(tmp_path: Path) -> None:
    control = run_folder(tmp_path / "control", "method.name=fedbcd")
    result = compare(control, run_folder(tmp_path / "overlapped", **FASTER))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "seconds of network.mode shaped, network.pipeline serial; 4 client(s) on 2 worker(s)",
        "                       loss   loss                          bound    bound    overlap bytes up",
        "run           method before  after  fall seconds speed-up seconds speed-up efficiency   + down",
        "control       fedbcd 2.0000 1.5000 25.0%   120.0    1.00x   110.0    1.00x      91.7% 123.4 MB",
        "overlapped parablock 2.0000 1.4000 30.0%    60.0    2.00x    55.0    2.00x      91.7% 123.4 MB",
    ]


def test_no_figure_is_cut_however_long_the_names(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / ("long_" * 12), seconds=98765.4, seconds_bound=87654.3, bytes_up=999_900_000)
    out = io.StringIO()
    Console(file=out, width=MIN_WIDTH).print(comparison_table([read_run(folder)]))
    assert "…" not in out.getvalue()
    for figure in ("2.0000", "1.5000", "25.0%", "98765.4", "87654.3", "91.7%", "1.1 GB"):
        assert figure in out.getvalue()
    first_words = [line.split()[0] for line in out.getvalue().splitlines()[2:]]
    assert "".join(first_words) == folder.name
    assert max(map(len, out.getvalue().splitlines())) <= MIN_WIDTH


def test_runs_of_one_name_go_by_their_folders(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / name, "name=same") for name in ("a", "b")]
    (tmp_path / "c").mkdir()
    stdout = compare(*folders, run_folder(tmp_path / "c" / "alone")).stdout.replace("\n", "")
    assert "same" not in stdout
    assert "alone" in stdout


def test_what_else_differs_is_one_warning(tmp_path: Path) -> None:
    first = run_folder(tmp_path / "first")
    others = [
        run_folder(tmp_path / "second", "seed=1", "network.up_mbps=20"),
        run_folder(tmp_path / "third", "data.num_train=400"),
        run_folder(tmp_path / "fourth", "clients.num=8", "model.name=smollm2-135m-instruct"),
    ]
    result = compare(first, *others)
    assert result.exit_code == 0
    assert result.stderr == (
        "warning: not only the method differs between these runs: "
        "seed, model.name, data.num_train, clients.num, network.up_mbps\n"
    )


def test_methods_names_and_tracking_may_differ() -> None:
    overrides = ["name=other", "out=elsewhere", "method.name=fedavg", "method.num_blocks=1", "tracking.wandb=off"]
    assert differences([load_config(QUICKSTART, []), load_config(QUICKSTART, overrides)]) == []


def test_folders_that_cannot_be_compared(tmp_path: Path) -> None:
    unfinished = run_folder(tmp_path / "unfinished")
    (unfinished / "summary.json").unlink()
    broken = run_folder(tmp_path / "broken")
    (broken / "summary.json").write_text("{")
    for folder, why in [
        (tmp_path, "holds no run (no summary.json); name run folders"),
        (tmp_path / "nowhere", "holds no run (no summary.json); name run folders"),
        (unfinished, "this run did not finish (no summary.json); wait, or run it again"),
    ]:
        result = compare(folder)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith(f"{folder}: {why}")
        assert len(result.stderr.splitlines()) == 1
    with pytest.raises(UserError, match=r"broken/summary\.json: cannot be read: "):
        read_run(broken)


A_KEY_LESS = {key: value for key, value in SUMMARY.items() if key != "num_rounds"} | {"method": "parablock"}


@pytest.mark.parametrize("told", [{}, [], A_KEY_LESS], ids=["nothing", "no mapping", "a key less"])
@pytest.mark.parametrize("command", [["compare"], ["export", "--to", "exported"], ["reprice", "network.up_mbps=20"]])
def test_half_a_summary_is_one_line(tmp_path: Path, command: list[str], told: object) -> None:
    folder = run_folder(tmp_path / "run")
    (folder / "summary.json").write_text(json.dumps(told))
    name, *options = command
    result = CliRunner().invoke(cli.app, [name, str(folder), *options])
    assert (result.exit_code, result.stderr) == (2, f"{folder}/summary.json: cut short; run it again\n")
