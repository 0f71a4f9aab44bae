"""Processes that die and training that fails: the run goes on, and its values are those that its log says."""

import os
import re
import signal
import sys
from pathlib import Path

import pytest
import ray

from parablock_ray.driver import run
from parablock_ray.errors import RunFailed, UserError
from parablock_ray.runtime import cluster as cluster_module
from parablock_ray.runtime.client import ClientActor
from parablock_ray.runtime.server import ServerActor
from parablock_ray.training.worker import Worker
from tests.runtime.federation import rows, run_tiny
from tests.runtime.test_resume import assert_same_end, config_of, visits

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

TWO_WORKERS = ["workers.num=2", "engine.name=torch", "method.rounds=6"]
SERIAL = ["runtime=serial", "engine.name=torch", "method.rounds=6"]


def die_once(setup, round: int) -> None:
    """The calling process, the first time that it comes to this round."""
    mark = Path(setup.config.out, "died")
    if round == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class MortalClient(ClientActor):
    async def _train(self, plan, visit):
        if visit.client == 1:
            die_once(self._setup, plan.round)
        return await super()._train(plan, visit)


class MortalUploader(ClientActor):
    async def _exchange(self, plan, visit, chunks):
        await super()._exchange(plan, visit, chunks)
        if visit.client == 1:
            die_once(self._setup, plan.round)


class MortalServer(ServerActor):
    async def receive(self, sent, payload):
        die_once(self._setup, sent.round)
        await super().receive(sent, payload)


MORTAL = {"training": MortalClient, "exchange": MortalUploader, "server": MortalServer}


def kill(monkeypatch: pytest.MonkeyPatch, actor: type) -> None:
    monkeypatch.setattr(cluster_module, actor.__base__.__name__, actor)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    run_tiny(out, SERIAL)
    return out


@pytest.mark.parametrize(("phase", "every"), [("training", 2), ("exchange", 2), ("server", None)])
def test_who_dies_is_started_again_and_changes_no_bit(
    cluster, tmp_path, monkeypatch, caplog, undisturbed, phase, every
):
    kill(monkeypatch, MORTAL[phase])
    summary = run_tiny(tmp_path / "run", [*TWO_WORKERS, f"checkpoint.every={every or 'null'}"])
    assert (summary["num_replays"], summary["num_dropped"]) == (1, 0)
    assert_same_end(undisturbed, tmp_path / "run")
    who = "the server" if phase == "server" else r"worker 1 \(clients 1, 3\)"
    told = rf"the process of {who} died: .*; under way: .*; going on from round {'[24]' if every else 0}"
    assert re.fullmatch(told, caplog.messages[0])


def test_who_dies_may_drop_out_of_the_rounds_under_way(cluster, tmp_path, monkeypatch, undisturbed):
    """With cut-through, some of whose chunks may be public by then; and one process does the same from the log."""
    cut_through = ["network.exchange=cut_through", "network.chunk_mb=0.1"]
    kill(monkeypatch, MortalClient)
    summary = run_tiny(tmp_path / "run", [*TWO_WORKERS, *cut_through, "clients.on_death=drop", "checkpoint.every=1"])
    dropped = [row for row in rows(tmp_path / "run" / "events.jsonl") if row["event"] == "dropped"]
    assert summary["num_dropped"] == len(dropped) > 0
    assert {row["client"] for row in dropped} == {1, 3}
    assert {row["why"] for row in dropped} == {"lost"}
    assert 3 in {row["round"] for row in dropped}
    log = f"clients.participation={tmp_path / 'run' / 'events.jsonl'}"
    run_tiny(tmp_path / "again", [*SERIAL, log])
    assert_same_end(tmp_path / "run", tmp_path / "again")
    assert {row["num_participants"] for row in rows(tmp_path / "run" / "metrics.jsonl")} == {2, 4}


@pytest.mark.smoke
def test_too_many_deaths(cluster, tmp_path, monkeypatch):
    kill(monkeypatch, MortalClient)
    with pytest.raises(RunFailed) as failure:
        run_tiny(tmp_path / "run", [*TWO_WORKERS, "clients.max_replays=0"])
    assert str(failure.value).endswith("; clients.max_replays = 0 others before it were survived, this one is not")


OUT_OF_MEMORY = MemoryError("out of memory")


def refuse(monkeypatch: pytest.MonkeyPatch, *where: tuple[int, int], failure: BaseException = OUT_OF_MEMORY) -> None:
    """Training fails of these (round, client)."""
    train = Worker._batches

    def batches(self, round, client, num_steps):
        if (round, client) in where:
            raise failure
        return train(self, round, client, num_steps)

    monkeypatch.setattr(Worker, "_batches", batches)


@pytest.mark.parametrize(
    "method",
    ["parablock", "parablock-bf16-wire", "parablock-cut-through", "parablock-sampled", "hetlora", "florist-delayed"],
)
def test_who_fails_drops_out_of_its_round(tmp_path, monkeypatch, method):
    """Noticed on the way or known from the log: the same values, bytes and rows."""
    plain = ["runtime=serial", "engine.name=torch"]
    with monkeypatch.context() as patch:
        refuse(patch, (1, 1), (2, 1), (2, 3), (3, 0))
        drop = [*plain, "clients.on_error=drop", "checkpoint.every=1"]
        summary = run(config_of(tmp_path / "run", method, drop))
    assert summary["num_dropped"] > 0
    log = f"clients.participation={tmp_path / 'run' / 'events.jsonl'}"
    run(config_of(tmp_path / "again", method, [*plain, log]))
    assert_same_end(tmp_path / "run", tmp_path / "again")


class Refusing(ClientActor):
    async def load(self):
        await super().load()
        batches = self._worker._batches

        def fail(round, client, num_steps):
            if (round, client) in {(1, 1), (2, 1), (2, 3)}:
                raise ZeroDivisionError("a bug")
            return batches(round, client, num_steps)

        self._worker._batches = fail


@pytest.mark.parametrize("method", ["parablock-cut-through", pytest.param("hetlora", marks=pytest.mark.slow)])
def test_who_fails_drops_out_of_its_round_on_ray(cluster, tmp_path, monkeypatch, method):
    kill(monkeypatch, Refusing)
    run(config_of(tmp_path / "run", method, ["workers.num=2", "engine.name=torch", "clients.on_error=drop"]))
    dropped = [row for row in rows(tmp_path / "run" / "events.jsonl") if row["event"] == "dropped"]
    assert sorted((row["round"], row["client"]) for row in dropped) == [(1, 1), (2, 1), (2, 3)]
    assert {row["why"] for row in dropped} == {"refused"}
    assert re.fullmatch(r"client \d, round \d, block \d: ZeroDivisionError: a bug", dropped[0]["detail"])
    log = f"clients.participation={tmp_path / 'run' / 'events.jsonl'}"
    run(config_of(tmp_path / "again", method, ["runtime=serial", "engine.name=torch", log]))
    assert_same_end(tmp_path / "run", tmp_path / "again")
    assert visits(tmp_path / "run" / "events.jsonl")


@pytest.mark.parametrize("on_error", ["fail", "drop"])
def test_a_users_mistake_that_shows_at_a_visit_stays_one(tmp_path, monkeypatch, on_error):
    """As of `data.per_client`, whose examples are made then: other clients would make it too, so none is left out."""
    refuse(monkeypatch, (1, 2), failure=UserError("data.tasks: choose another task"))
    with pytest.raises(UserError) as mistake:
        run_tiny(tmp_path / "run", [*SERIAL, f"clients.on_error={on_error}"])
    assert re.fullmatch(r"client 2, round 1, block \d: data.tasks: choose another task", str(mistake.value))


class FullStore(ClientActor):
    """On a node that has no room for an upload."""

    def _exchange_of(self, client):
        raise ray.exceptions.ObjectStoreFullError("full")


def test_a_full_object_store_is_told_with_the_keys_that_help(cluster, tmp_path, monkeypatch):
    kill(monkeypatch, FullStore)
    told = r"client \d, round 0, block \d: the object store of a node is full, .*--object-store-memory.*max_in_flight"
    with pytest.raises(UserError, match=told):
        run_tiny(tmp_path / "run", TWO_WORKERS)


def test_too_few_left(tmp_path, monkeypatch):
    refuse(monkeypatch, (1, 1), (1, 2))
    enough = ["clients.on_error=drop", "clients.min_participants=3"]
    with pytest.raises(RunFailed) as failure:
        run_tiny(tmp_path / "run", [*SERIAL, *enough])
    assert re.fullmatch(
        r"round 1: 2 client\(s\) left, fewer than clients.min_participants = 3; the last to drop out was client [12] "
        r"\(refused: client [12], round 1, block \d: MemoryError: out of memory\)",
        str(failure.value),
    )
