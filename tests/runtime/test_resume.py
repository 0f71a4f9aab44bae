"""A run that goes on from a checkpoint ends in the very weights of the run that was never interrupted."""

import json
import shutil
from pathlib import Path

import pytest

from parablock_ray.checkpoint import discard_after
from parablock_ray.config import Config, load_config
from parablock_ray.driver import run
from parablock_ray.resume import resume
from tests.runtime import federation, lora_runs
from tests.runtime.federation import QUICKSTART, SHORT, rows

KEPT = ["checkpoint.every=1", "checkpoint.keep=100", "engine.name=torch"]
BLOCKS = federation.METHODS | {
    "parablock-cut-through": ["network.exchange=cut_through", "network.chunk_mb=0.1"],
    "parablock-stale": ["method.correction=stale", "method.server_optimizer={name: momentum}"],
    "parablock-bf16-model": ["model.dtype=bfloat16", "clients.num=2", "data.split=iid"],
}
ALL = [*BLOCKS, *lora_runs.METHODS]
QUICK = ("parablock-bf16-wire", "parablock-sampled", "fedex_lora", "florist-delayed")  # the others are slow together
SAME = ("weights_sha256", "loss_before", "loss_after", "bytes_up", "bytes_down", "bytes_catch_up", "num_rounds")


def config_of(out: Path, method: str, overrides: list[str]) -> Config:
    if method in BLOCKS:
        return load_config(QUICKSTART, [*SHORT, *BLOCKS[method], *overrides, f"out={out}"])
    return lora_runs.lora_config(out, method, overrides)


def interrupted(finished: Path, to: Path, round: int) -> Path:
    """What the run would have left behind, had it ended some time after this round's checkpoint."""
    shutil.copytree(finished, to, symlinks=True)
    discard_after(to / "checkpoints", round)
    (to / "summary.json").unlink()
    with (to / "events.jsonl").open("a") as events:
        events.write('{"event": "span", "rou')  # it was writing
    return to


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def visits(folder: Path) -> list[tuple]:
    """What is told of every visit, in an order that does not hang on time; on one process nothing waits."""
    told = [(e["round"], e["event"], e.get("phase", ""), e.get("client", -1)) for e in rows(folder)]
    return sorted(each for each in told if each[2] != "wait")


def assert_same_end(finished: Path, resumed: Path) -> None:
    """Values and bytes of the summary and of every row; each event once."""
    assert {key: summary(resumed)[key] for key in SAME} == {key: summary(finished)[key] for key in SAME}
    values = ("round", "block", "loss", "bytes_up", "bytes_down", "bytes_catch_up")
    told = [[[row[key] for key in values] for row in rows(folder / "metrics.jsonl")] for folder in (finished, resumed)]
    assert told[0] == told[1]
    assert visits(finished / "events.jsonl") == visits(resumed / "events.jsonl")


@pytest.mark.parametrize(
    "method", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in ALL]
)
def test_a_resumed_run_ends_in_the_same_weights(tmp_path, method):
    run(config_of(tmp_path / "run", method, [*KEPT, "runtime=serial"]))
    assert resume(interrupted(tmp_path / "run", tmp_path / "again", 2), [])
    assert_same_end(tmp_path / "run", tmp_path / "again")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Staleness 2, sampled clients, virtual time whose seconds are given."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    virtual = ["network.mode=virtual", "network.compute_s=0.5", "tracking.wandb=offline", "tracking.tensorboard=true"]
    sampled = ["clients.num=7", "clients.per_round=3", "data.split=iid", "method.staleness=2", "method.rounds=7"]
    run(config_of(out, "parablock", [*KEPT, "runtime=serial", *virtual, *sampled]))
    return out


@pytest.mark.parametrize("round", [0, 1, 4, 6])
def test_in_virtual_time_the_rows_are_the_very_same(finished, tmp_path, round):
    assert resume(interrupted(finished, tmp_path / "run", round), [])
    assert_same_end(finished, tmp_path / "run")
    timed = [
        [{**row, "server_s": 0.0} for row in rows(each / "metrics.jsonl")] for each in (finished, tmp_path / "run")
    ]
    assert timed[0] == timed[1]
    assert summary(tmp_path / "run")["seconds"] == summary(finished)["seconds"]


def test_a_resumed_run_can_be_resumed(finished, tmp_path):
    assert resume(interrupted(finished, tmp_path / "first", 1), [])
    assert resume(interrupted(tmp_path / "first", tmp_path / "second", 3), [])
    assert_same_end(finished, tmp_path / "second")


@pytest.mark.smoke
def test_either_runtime_takes_up_the_others_checkpoint(cluster, finished, tmp_path):
    on_ray, on_one = tmp_path / "ray", tmp_path / "serial"
    assert resume(interrupted(finished, on_ray, 1), ["runtime=ray", "workers.num=3"])
    assert_same_end(finished, on_ray)
    assert summary(on_ray)["num_workers"] == 3
    assert resume(interrupted(on_ray, on_one, 4), ["runtime=serial", "workers.num=auto"])
    assert_same_end(finished, on_one)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["parablock-cut-through", "florist-delayed"])
def test_a_checkpoint_made_while_rounds_overlap(cluster, tmp_path, method):
    run(config_of(tmp_path / "run", method, [*KEPT, "workers.num=2"]))
    assert resume(interrupted(tmp_path / "run", tmp_path / "again", 2), [])
    assert_same_end(tmp_path / "run", tmp_path / "again")
