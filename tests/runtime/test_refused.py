"""Updates that are no good: refused before they touch the model, and a run's values are those that its log says."""

import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch
from torch import Tensor

from parablock_ray.algorithms.base import Sent
from parablock_ray.algorithms.block_replica import BlockReplica
from parablock_ray.driver import run
from parablock_ray.errors import RunFailed
from parablock_ray.resume import resume
from parablock_ray.runtime import cluster as cluster_module
from parablock_ray.runtime.client import ClientActor
from parablock_ray.training.master import Master
from parablock_ray.training.worker import Worker
from tests.runtime.federation import rows, run_tiny
from tests.runtime.test_resume import KEPT, assert_same_end, config_of, interrupted, summary

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

PLAIN = ["runtime=serial", "engine.name=torch"]
WHERE = {(1, 1), (2, 1), (2, 3), (3, 0)}  # (round, client)


def no_number_at_the_end(upload: Tensor) -> Tensor:
    """With cut-through all chunks but the last may be public by then."""
    upload = upload.clone()
    upload[-1] = math.nan
    return upload


def sending(train: Callable, attack: Callable[[Tensor], Tensor]) -> Callable:
    """`Worker.train` of clients that send something else than what they trained, and hold what they trained."""

    def attacked(plan, visit, put):
        trained = train(plan, visit, torch.clone)
        if (plan.round, visit.client) not in WHERE:
            return trained
        sizes = [len(chunk) for chunk in trained.chunks]
        return replace(trained, chunks=list(attack(torch.cat(trained.chunks)).split(sizes)))

    return attacked


def corrupt(monkeypatch: pytest.MonkeyPatch, attack: Callable[[Tensor], Tensor]) -> None:
    train = Worker.train
    monkeypatch.setattr(Worker, "train", lambda self, *visit: sending(lambda *v: train(self, *v), attack)(*visit))


def dropped_in(folder: Path) -> list[dict]:
    return [row for row in rows(folder / "events.jsonl") if row["event"] == "dropped"]


def from_log(folder: Path) -> str:
    return f"clients.participation={folder / 'events.jsonl'}"


@pytest.mark.parametrize(
    "method",
    [
        "parablock",
        "parablock-cut-through",
        pytest.param("parablock-bf16-wire", marks=pytest.mark.slow),
        "parablock-sampled",
        "hetlora",
        pytest.param("florist-delayed", marks=pytest.mark.slow),
    ],
)
def test_what_is_not_finite_has_no_part_and_the_log_says_the_same(tmp_path, monkeypatch, method):
    """Found out or known from the log, by clients that send what they trained: the same values, bytes and rows."""
    with monkeypatch.context() as patch:
        corrupt(patch, no_number_at_the_end)
        run(config_of(tmp_path / "run", method, PLAIN))
    dropped = dropped_in(tmp_path / "run")
    assert dropped
    assert {(row["round"], row["client"]) for row in dropped} <= WHERE
    assert {(row["why"], row["has_sent"]) for row in dropped} == {("refused", True)}
    assert re.fullmatch(r"client \d, round \d: chunk \d+ of \d+ is not finite", dropped[0]["detail"])
    run(config_of(tmp_path / "again", method, [*PLAIN, from_log(tmp_path / "run")]))
    assert_same_end(tmp_path / "run", tmp_path / "again")
    found = summary(tmp_path / "run")
    assert found["num_refused"] == found["num_dropped"] == len(dropped)
    by_round = {row["round"]: row["num_refused"] for row in rows(tmp_path / "run" / "metrics.jsonl")}
    assert sum(by_round.values()) == len(dropped)
    commits = [row for row in rows(tmp_path / "run" / "events.jsonl") if row["event"] == "committed"]
    assert all(not set(commit["refused"]) & set(commit["participants"]) for commit in commits)
    assert {(commit["round"], client) for commit in commits for client in commit["refused"]} <= WHERE


class Corrupted(ClientActor):
    async def load(self):
        await super().load()
        self._worker.train = sending(self._worker.train, no_number_at_the_end)


@pytest.mark.parametrize("method", ["parablock-cut-through", pytest.param("parablock", marks=pytest.mark.slow)])
def test_ray_refuses_the_same(cluster, tmp_path, monkeypatch, method):
    with monkeypatch.context() as patch:
        patch.setattr(cluster_module, "ClientActor", Corrupted)
        run(config_of(tmp_path / "run", method, ["workers.num=2", "engine.name=torch"]))
    assert {(row["round"], row["client"]) for row in dropped_in(tmp_path / "run")} == WHERE
    run(config_of(tmp_path / "again", method, [*PLAIN, from_log(tmp_path / "run")]))
    assert_same_end(tmp_path / "run", tmp_path / "again")


def exaggerate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients train five times too far: that is what they send, and what they hold as pending."""
    start, finish, visits = BlockReplica.start, BlockReplica.finish, []

    def noted(self, plan, visit):
        visits.append((plan.round, visit.client))
        return start(self, plan, visit)

    def exaggerated(self, trained, into):
        for chunk in finish(self, trained, into):
            yield chunk.mul_(5 if visits[-1] in WHERE else 1)

    monkeypatch.setattr(BlockReplica, "start", noted)
    monkeypatch.setattr(BlockReplica, "finish", exaggerated)


@pytest.mark.parametrize(
    "staleness", [1, pytest.param(0, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_a_resumed_run_knows_the_median_and_what_is_pending(tmp_path, monkeypatch, staleness):
    exaggerate(monkeypatch)
    overrides = [*KEPT, *PLAIN, "server.max_norm_over_median=2", f"method.staleness={staleness}"]
    run(config_of(tmp_path / "run", "parablock", overrides))
    refused = {(row["round"], row["client"]) for row in dropped_in(tmp_path / "run")}
    assert refused == {(round, client) for round, client in WHERE if round > staleness}  # the first rounds read none
    assert resume(interrupted(tmp_path / "run", tmp_path / "again", 2), [])
    assert_same_end(tmp_path / "run", tmp_path / "again")
    run(config_of(tmp_path / "replayed", "parablock", [*overrides, from_log(tmp_path / "run")]))
    assert_same_end(tmp_path / "run", tmp_path / "replayed")


def test_a_resumed_run_goes_on_past_what_was_not_sound(tmp_path, monkeypatch):
    """Without staleness nothing is pending, so the values are those of the run that was not interrupted."""
    corrupt(monkeypatch, no_number_at_the_end)
    run(config_of(tmp_path / "run", "fedbcd", [*KEPT, *PLAIN]))
    assert resume(interrupted(tmp_path / "run", tmp_path / "again", 2), [])
    assert_same_end(tmp_path / "run", tmp_path / "again")
    run(config_of(tmp_path / "stale", "parablock", [*KEPT, *PLAIN]))
    assert resume(interrupted(tmp_path / "stale", tmp_path / "stale-again", 2), [])


def test_a_round_takes_as_long_with_what_it_refuses(tmp_path, monkeypatch):
    """In virtual time: the server waits for it, and its client downloads like the others."""
    virtual = [*PLAIN, "network.mode=virtual", "network.compute_s=0.5"]
    run(config_of(tmp_path / "clean", "parablock", virtual))
    corrupt(monkeypatch, lambda upload: upload * 1e6)
    run(config_of(tmp_path / "run", "parablock", [*virtual, "server.max_norm=1000"]))
    assert {(row["round"], row["client"]) for row in dropped_in(tmp_path / "run")} == WHERE
    for key in ("seconds", "bytes_up", "bytes_down", "bytes_catch_up"):
        assert summary(tmp_path / "run")[key] == summary(tmp_path / "clean")[key]


def test_with_too_few_left_the_run_ends(tmp_path, monkeypatch):
    corrupt(monkeypatch, no_number_at_the_end)
    with pytest.raises(RunFailed) as failure:
        run_tiny(tmp_path / "run", [*PLAIN, "clients.min_participants=3"])
    assert re.fullmatch(
        r"round 2: 2 client\(s\) left, fewer than clients.min_participants = 3; the last to drop out was client \d "
        r"\(refused: client \d, round 2: chunk 0 of 1 is not finite\)",
        str(failure.value),
    )


def test_what_nobody_asked_for_is_ignored_and_told(tmp_path, monkeypatch, caplog):
    run_tiny(tmp_path / "clean", PLAIN)
    receive = Master.receive

    def receive_twice(self, sent: Sent, values):
        yield from receive(self, sent, values)
        yield from receive(self, sent, values)
        yield from receive(self, replace(sent, client=99), values)

    monkeypatch.setattr(Master, "receive", receive_twice)
    run_tiny(tmp_path / "run", PLAIN)
    assert_same_end(tmp_path / "clean", tmp_path / "run")
    told = [message for message in caplog.messages if message.startswith("ignored: ")]
    assert any(message.endswith("again, all of which had come") for message in told)
    assert any("client 99, which is not of round 0" in message for message in told)
