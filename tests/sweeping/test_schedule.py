"""Children, what becomes of them, and what a second try does; with stubs in place of real runs."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from parablock_ray import cli
from parablock_ray.config import save_resolved
from parablock_ray.sweeping import command
from parablock_ray.sweeping.expand import SweepRun, load_sweep
from parablock_ray.sweeping.schedule import run_all
from parablock_ray.sweeping.state import claimed, config_file, failure_file, log_file
from tests.sweeping.files import sweep_file

SUMMARY = {
    "method": "parablock",
    **dict.fromkeys(("num_rounds", "num_clients", "num_workers", "seconds", "seconds_bound", "overlap_efficiency"), 1),
    **dict.fromkeys(("bytes_up", "bytes_down", "bytes_catch_up", "server_s"), 1),
    "loss_before": 2.0,
    "loss_after": 1.5,
    "seconds_mode": "none",
    "weights_sha256": "0" * 64,
    "versions": {},
}

# As a run would: its config and summary in its folder. What goes wrong depends on its label.
STUB = f"""\
import pathlib, shutil, sys
config, failure = map(pathlib.Path, sys.argv[1:])
folder = config.with_suffix("")
folder.mkdir()
shutil.copy(config, folder / "config.yaml")
if "told" in folder.name:
    failure.write_text("client 1, round 3: out of memory\\n\\nTraceback …\\n")
    raise SystemExit(1)
if "bug" in folder.name:
    print("halfway")
    1 / 0
(folder / "summary.json").write_text('{json.dumps(SUMMARY)}')
"""


def stub_command(run: SweepRun) -> Sequence[str]:
    return sys.executable, "-c", STUB, str(config_file(run)), str(failure_file(run))


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "run_command", stub_command)


def sweep(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, ["sweep", *map(str, arguments)])


@pytest.mark.usefixtures("stubs")
def test_runs_are_made_once_and_in_order(tmp_path: Path) -> None:
    file = sweep_file(tmp_path)
    first = sweep(file)
    assert (first.exit_code, first.stderr) == (0, "")
    lines = first.stdout.splitlines()
    assert lines[0] == f"sweep trial: 4 of 4 runs to do, into {tmp_path}/out"
    assert lines[1] == f"[1/4] fedbcd-low-seed0: started, log {tmp_path}/out/fedbcd-low-seed0.log"
    assert lines[2].startswith("[1/4] fedbcd-low-seed0: done, held-out loss 2.0000 to 1.5000 (")
    assert lines[-1] == f"all done: parablock report {tmp_path}/out --out {tmp_path}/out/report.html"
    stamps = [file.stat().st_mtime_ns for file in sorted(tmp_path.glob("out/*/summary.json"))]
    again = sweep(file, "--parallel", "2")
    assert again.exit_code == 0
    assert again.stdout.splitlines()[0] == f"sweep trial: 0 of 4 runs to do, into {tmp_path}/out"
    assert [file.stat().st_mtime_ns for file in sorted(tmp_path.glob("out/*/summary.json"))] == stamps


@pytest.mark.usefixtures("stubs")
@pytest.mark.parametrize("parallel", ["1", "3"])
def test_a_run_that_fails_stops_no_other_and_is_told_at_the_end(tmp_path: Path, parallel: str) -> None:
    file = sweep_file(tmp_path, grid=None, runs={"told": [], "bug": [], "good": []})
    result = sweep(file, "--parallel", parallel)
    assert result.exit_code == 1
    told, bug = (
        "told-seed0: client 1, round 3: out of memory",
        "bug-seed0: exit code 1; ZeroDivisionError: division by zero",
    )
    ends = {f"{end} (log: {tmp_path}/out/{end.partition(':')[0]}.log)" for end in (told, bug)}
    lines = result.stderr.splitlines()
    assert (lines[0], set(lines[1:])) == ("2 of 3 runs failed:", ends)
    assert (tmp_path / "out" / "good-seed0" / "summary.json").exists()
    assert "halfway" in (tmp_path / "out" / "bug-seed0.log").read_text()

    listed = sweep(file, "--dry-run").stdout
    assert [line.split()[:2] for line in listed.splitlines()[1:]] == [
        ["told-seed0", "failed"],
        ["bug-seed0", "failed"],
        ["good-seed0", "done"],
    ]
    assert "client 1, round 3: out of memory" in listed
    assert sweep(file).stdout.splitlines()[0].startswith("sweep trial: 2 of 3 runs to do")  # what failed is tried again


@pytest.mark.usefixtures("stubs")
def test_an_unfinished_run_is_started_over(tmp_path: Path) -> None:
    file = sweep_file(tmp_path, grid=None, runs={"a": []})
    [run] = load_sweep(file, None).runs
    run.folder.mkdir(parents=True)
    save_resolved(run.config, run.folder / "config.yaml")
    (run.folder / "metrics.jsonl").write_text("half a line")
    assert sweep(file, "--dry-run").stdout.splitlines()[1].split() == ["a-seed0", "unfinished"]
    assert sweep(file).exit_code == 0
    assert sorted(path.name for path in run.folder.iterdir()) == ["config.yaml", "summary.json"]


def test_what_is_no_run_is_never_deleted(tmp_path: Path) -> None:
    file = sweep_file(tmp_path, grid=None, runs={"a": []})
    thesis = tmp_path / "out" / "a-seed0" / "thesis.tex"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("dear")
    result = sweep(file)
    assert result.exit_code == 2
    assert result.stderr == (
        f"out: {thesis.parent} holds something that is no run; choose another --out, or move it away\n"
    )
    assert thesis.exists()


@pytest.mark.usefixtures("stubs")
def test_a_finished_run_of_another_config_is_refused_before_anything_starts(tmp_path: Path) -> None:
    assert sweep(sweep_file(tmp_path, grid=None, runs={"a": []})).exit_code == 0
    runs = {"b": [], "a": ["method.rounds=5", "method.lr=0.5"]}
    result = sweep(sweep_file(tmp_path, grid=None, runs=runs))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"a-seed0: {tmp_path}/out/a-seed0 holds a finished run with method.rounds 3 (now 5), method.lr 0.0001 (now "
        "0.5); choose another --out, or delete that folder\n"
    )
    assert not (tmp_path / "out" / "b-seed0").exists()
    # Where a run is tracked changes nothing in it.
    assert sweep(sweep_file(tmp_path, grid=None, runs={"a": ["tracking.wandb=off"]})).exit_code == 0


def test_a_mistake_starts_nothing(tmp_path: Path) -> None:
    result = sweep(sweep_file(tmp_path, overrides=["method.rounds=0"]))
    assert (result.exit_code, result.stdout) == (2, "")
    of_all = "fedbcd-low-seed0, fedbcd-high-seed0, parablock-low-seed0 and 1 more"
    assert result.stderr.startswith(f"{of_all}: method.rounds: must be greater than 0")
    assert not (tmp_path / "out").exists()


def test_one_sweep_at_a_time_in_a_folder(tmp_path: Path) -> None:
    file = sweep_file(tmp_path)
    ours = load_sweep(file, None)
    with claimed(ours):
        result = sweep(file)
    assert result.exit_code == 2
    assert result.stderr == f"out: another sweep is at work in {tmp_path}/out; wait for it, or choose --out\n"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = sweep(sweep_file(tmp_path), "--out", tmp_path / "file")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"out: cannot write to {tmp_path}/file: ")


def waits(run: SweepRun) -> Sequence[str]:
    """A child that is ready when its log says so, and ends well when it is interrupted."""
    code = (
        "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler); print('ready', flush=True)\n"
        "try: time.sleep(60)\nexcept KeyboardInterrupt: print('closed', flush=True)"
    )
    return sys.executable, "-c", code


def test_whatever_ends_the_sweep_ends_its_children_first(tmp_path: Path) -> None:
    runs = load_sweep(sweep_file(tmp_path), None).runs[:2]
    (tmp_path / "out").mkdir()

    def interrupt(run: SweepRun) -> None:
        """When the second is about to start and the first is at work."""
        if run is runs[1]:
            deadline = time.monotonic() + 60
            while "ready" not in log_file(runs[0]).read_text():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(runs, 2, interrupt, lambda _: None, waits)
    assert log_file(runs[0]).read_text() == "ready\nclosed\n"


def test_a_sigterm_is_like_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "run_command", waits)
    file, log = sweep_file(tmp_path), tmp_path / "out" / "fedbcd-low-seed0.log"

    def terminate() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (log.exists() and "ready" in log.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=terminate)
    thread.start()
    result = sweep(file)
    thread.join()
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")
    assert log.read_text() == "ready\nclosed\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_child_that_is_killed_is_a_run_that_failed(tmp_path: Path) -> None:
    runs = load_sweep(sweep_file(tmp_path), None).runs[:1]
    (tmp_path / "out").mkdir()
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    [ended] = run_all(runs, 1, lambda _: None, lambda _: None, lambda _: (sys.executable, "-c", code))
    assert ended.failure == "killed by signal 9; it printed nothing"


def test_the_child_tells_why_it_failed(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("name: x\n")
    child = [sys.executable, "-m", "parablock_ray.sweeping.child", str(config), str(tmp_path / "c.failed")]
    done = subprocess.run(child, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (tmp_path / "c.failed").read_text() == done.stderr
    assert done.stderr.splitlines()[0] == "out: required, but missing"
