"""`parablock resume` from a shell: what it says, what it refuses, and a run that is killed in the middle."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from parablock_ray import cli
from parablock_ray.checkpoint import begin, complete, discard_after, read, write_tensors
from parablock_ray.config import load_config
from parablock_ray.reporting.runs import gather
from parablock_ray.resume import run_or_resume
from parablock_ray.training.worker import Worker
from tests.full_disk import at_most
from tests.runtime.federation import QUICKSTART, SHORT, rows
from tests.test_run import failed, inspect

SMALL = [
    *SHORT,
    "clients.num=2",
    "data.split=iid",
    "data.num_train=8",
    "method.rounds=4",
    "engine.name=torch",
    "runtime=serial",
    "checkpoint.every=1",
    "evaluation.every=1",
    "tracking.wandb=offline",
]


def resume(folder: Path, *overrides: str) -> Result:
    return CliRunner().invoke(cli.app, ["resume", str(folder), *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    result = CliRunner().invoke(cli.app, ["run", str(QUICKSTART), *SMALL, "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def half(finished, tmp_path) -> Path:
    """A run of four rounds whose last checkpoint is of round 2, at another place than where it began."""
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    (tmp_path / "run" / "summary.json").unlink()
    discard_after(tmp_path / "run" / "checkpoints", 2)
    return tmp_path / "run"


def sha256(folder: Path) -> str:
    return json.loads((folder / "summary.json").read_text())["weights_sha256"]


def test_the_last_ones_are_kept(finished):
    kept = sorted(folder.name for folder in (finished / "checkpoints").iterdir())
    assert kept == ["round-00002", "round-00003"]


def test_it_ends_as_it_would_have_and_the_wandb_run_has_every_round_once(finished, half):
    [before] = (half / "wandb").glob("offline-run-*")
    result = resume(half)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"run folder: {half}"
    assert sha256(half) == sha256(finished)
    assert not (half / ".lock").exists()
    [after] = (half / "wandb").glob("offline-run-*")
    assert after.name.rpartition("-")[2] == before.name.rpartition("-")[2]
    records = [json.loads(line) for line in inspect(half / "wandb").splitlines()]
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    figures = [{key: value for key, value in item.items() if key[0] != "_"} for item in history]
    assert [row for row in figures if "round" in row] == rows(half / "metrics.jsonl")
    assert [row["round"] for row in figures if "round" in row] == [0, 1, 2, 3]
    assert sorted(row["evaluation/round"] for row in figures if "round" not in row) == [0, 1, 2, 3]


def test_evaluations_go_on_without_a_gap_or_a_doubled_row(finished, half):
    """Of a run that was killed while it wrote one of a round after its checkpoint."""
    path = half / "evaluations.jsonl"
    path.write_text(path.read_text() + '{"round": 4, "resu')
    result = resume(half)
    assert result.exit_code == 0, result.output
    assert path.read_text() == (finished / "evaluations.jsonl").read_text()


def test_a_round_whose_evaluation_was_lost_is_named(half, caplog):
    path = half / "evaluations.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    assert resume(half).exit_code == 0
    assert caplog.messages[0] == "round 2 is not judged: the run had ended before it was, and has gone past it"
    assert [(row["round"], bool(row["results"])) for row in rows(path)] == [(0, 1), (1, 1), (2, 0), (3, 1)]
    assert len(gather([half]).groups) == 1  # a report takes it


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(half, finished, caplog):
    damaged = sealed_again(half, 3, {}) / "state.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    result = resume(half)
    assert result.exit_code == 0, result.output
    assert caplog.messages[0] == (
        f"damaged checkpoint: {damaged} is not as it was written (its sha256 is another one); going on from round 2"
    )
    assert sha256(half) == sha256(finished)


def sealed_again(folder: Path, round: int, changed: Mapping[str, Mapping[str, Tensor]]) -> Path:
    """The checkpoint of round 2, with these files changed (tensors by name), as somebody would write it for `round`."""
    saved = read(folder / "checkpoints" / "round-00002")
    into = begin(folder / "checkpoints", round)
    digests = {
        file: write_tensors(into, file, {**saved.tensors(file), **changed.get(file, {})}) for file in saved.files
    }
    return complete(into, round, digests, saved.about)


def test_more_rounds(finished, tmp_path):
    """Of a run that is interrupted, or finished; it ends as one that was asked for them from the start."""
    shutil.copytree(finished, tmp_path / "longer", symlinks=True)
    assert resume(tmp_path / "longer", "method.rounds=5").exit_code == 0
    CliRunner().invoke(cli.app, ["run", str(QUICKSTART), *SMALL, "method.rounds=5", "--out", str(tmp_path / "whole")])
    assert sha256(tmp_path / "longer") == sha256(tmp_path / "whole") != sha256(finished)
    assert [row["round"] for row in rows(tmp_path / "longer" / "metrics.jsonl")] == list(range(5))


def test_sigterm_ends_it_with_a_checkpoint(finished, tmp_path, monkeypatch):
    """After rounds that are on no schedule; it goes on to the same weights."""
    train, out = Worker.train, tmp_path / "run"

    def stop(self, plan, visit, put):
        os.kill(os.getpid(), signal.SIGTERM)
        return train(self, plan, visit, put)

    longer = [*SMALL, "method.rounds=9", "checkpoint.every=null"]
    whole = CliRunner().invoke(cli.app, ["run", str(QUICKSTART), *longer, "--out", str(tmp_path / "whole")])
    assert whole.exit_code == 0, whole.output
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "train", stop)
        stopped = CliRunner().invoke(cli.app, ["run", str(QUICKSTART), *longer, "--out", str(out)])
    assert stopped.exit_code == 0, stopped.output
    assert stopped.stdout.splitlines()[-1] == f"stopped after 5 rounds; to go on: parablock resume {out}"
    assert not (out / "summary.json").exists()
    assert not (out / ".lock").exists()
    assert [folder.name for folder in (out / "checkpoints").iterdir()] == ["round-00004"]
    assert resume(out).exit_code == 0
    assert sha256(out) == sha256(tmp_path / "whole")


def test_a_full_disk_leaves_the_last_checkpoint(half):
    size = (half / "checkpoints" / "round-00002" / "state.safetensors").stat().st_size
    with at_most(size - 1):
        said = failed(resume(half, "method.rounds=6", "tracking.wandb=off"), 1)
    assert said.startswith(f"the checkpoint of round 3 cannot be written to {half}/checkpoints: state.safetensors: ")
    assert said.endswith("; make room, then parablock resume\n")
    assert [folder.name for folder in (half / "checkpoints").iterdir()] == ["round-00002"]


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_run_of_a_sweep_goes_on_where_it_can(finished, half, is_damaged, caplog):
    if is_damaged:
        (half / "checkpoints" / "round-00002" / "manifest.json").unlink()
    config = load_config(half / "config.yaml", [f"out={half}"])
    run_or_resume(config)
    assert sha256(half) == sha256(finished)
    assert ("started over: " in caplog.text) == is_damaged


# ---- what is refused


def test_a_finished_run(finished):
    result = resume(finished)
    assert (result.exit_code, result.stdout) == (0, f"{finished}: this run is finished, there is nothing to resume\n")


def test_a_folder_without_a_run(tmp_path):
    said = failed(resume(tmp_path), 2)
    assert said == f"{tmp_path}: holds no run (no config.yaml); name a run folder, like runs/quickstart\n"


def test_a_run_without_checkpoints(half):
    shutil.rmtree(half / "checkpoints")
    said = failed(resume(half), 2)
    assert said == f"{half}: it has no checkpoint (checkpoint.every); delete the folder and run again\n"


def test_all_checkpoints_damaged(half):
    for file in half.glob("checkpoints/*/uploads.safetensors"):
        file.unlink()
    said = failed(resume(half), 2)
    assert said.startswith(f"{half}: no checkpoint can be used: {half}/checkpoints/round-00002/uploads.safetensors ")
    assert said.endswith("; delete the folder and run again\n")


@pytest.mark.parametrize(
    ("overrides", "difference"),
    [
        (["method.lr=0.1"], "method.lr was 0.003 (now 0.1)"),
        (["seed=3", "workers.threads=2"], "seed was 0 (now 3), workers.threads was 1 (now 2)"),
        (["method.rounds=3"], "method.rounds was 4 (now 3)"),
        (["method.rounds=9", "method.lr_schedule=linear"], "method.rounds was 4 (now 9), method.lr_schedule was "),
    ],
)
def test_another_config(half, overrides, difference):
    before = {path: path.read_bytes() for path in half.rglob("*.*") if path.is_file()}
    said = failed(resume(half, *overrides), 2)
    assert said.startswith(f"{half}: cannot be resumed as another run: {difference}")
    assert len(said.splitlines()) == 1
    assert {path: path.read_bytes() for path in half.rglob("*.*") if path.is_file()} == before


def test_events_that_are_gone(half):
    lines = (half / "events.jsonl").read_text().splitlines(keepends=True)
    (half / "events.jsonl").write_text("".join(lines[1:]))
    said = failed(resume(half), 2)
    assert f"{half / 'events.jsonl'}: holds " in said
    assert said.endswith(" events up to round 2; delete the folder and run again\n")


def test_checkpoints_alone_are_a_run_that_no_other_may_mix_with(half):
    for file in half.glob("*.*"):
        if file.is_file():
            file.unlink()
    result = CliRunner().invoke(cli.app, ["run", str(QUICKSTART), *SMALL, "--out", str(half)])
    assert f"out: {half} already holds a run" in failed(result, 2)


# ---- processes


def start(command: str, *arguments: str) -> subprocess.Popen:
    program = [Path(sys.executable).with_name("parablock"), command, *arguments]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    give_up = time.monotonic() + 600
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < give_up, path
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["parablock", pytest.param("fedbcd", marks=pytest.mark.thorough)])
def test_a_run_that_is_killed(tmp_path, method):
    """On Ray: while it runs resume is refused, after SIGKILL it goes on to the weights of a run that was left alone."""
    slow = ["runtime=ray", "workers.num=2", "method.rounds=8", f"method.name={method}", "tracking.wandb=off"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start("run", str(QUICKSTART), *SMALL, *slow, "checkpoint.every=2", "--out", str(killed))
    try:
        wait_for(killed / "checkpoints" / "round-00003", process)
        said = failed(resume(killed), 2)
        assert f"{killed}: a run is going on there (process {process.pid} on " in said
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (killed / "summary.json").exists()
    assert resume(killed, "runtime=serial", "workers.num=auto").exit_code == 0
    assert (
        CliRunner()
        .invoke(
            cli.app, ["run", str(QUICKSTART), *SMALL, *slow, "runtime=serial", "workers.num=auto", "--out", str(whole)]
        )
        .exit_code
        == 0
    )
    assert sha256(killed) == sha256(whole)
    assert [row["round"] for row in rows(killed / "metrics.jsonl")] == list(range(8))
    visits = [(e["round"], e["phase"], e["client"]) for e in rows(killed / "events.jsonl") if e["event"] == "span"]
    assert len(visits) == len(set(visits))


@pytest.mark.parametrize(
    ("file", "told"),
    [("state.safetensors", "its state is not this model's: parameters."), ("uploads.safetensors", "sent in round")],
)
def test_a_checkpoint_of_another_model_is_refused(half, file, told):
    """Its hashes are right: somebody wrote it so."""
    name = next(iter(read(half / "checkpoints" / "round-00002").tensors(file)))
    sealed_again(half, 2, {file: {name: torch.ones(1)}})  # which torch would repeat
    refused = resume(half)
    assert refused.exit_code == 2, refused.output
    assert told in refused.stderr
    assert "delete this checkpoint, and resume from another one" in refused.stderr
