"""The cluster of a run: whose it is, how large, and what its processes have loaded before anybody asks."""

import os
import subprocess
import sys
from typing import Any

import pytest
import ray

from parablock_ray.config import Config, load_config
from parablock_ray.runtime import cluster, connection
from parablock_ray.runtime.cluster import real_cores
from parablock_ray.runtime.connection import Connection, connect, disconnect, will_be_warm
from parablock_ray.runtime.placement import NodeResources, has_core_to_spare
from parablock_ray.starting import own_cluster_of
from tests.runtime.federation import QUICKSTART

PRELOAD = "RAY_preload_python_modules"
FREES = "RAY_free_objects_period_milliseconds"


class FakeRay:
    """Notes how clusters are started and that they are ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: list[tuple[int, str | None]] = []  # CPUs, and what processes load at once
        self.frees_after_ms: list[str | None] = []
        self.num_ended = 0
        for name in ("init", "shutdown", "is_initialized"):
            monkeypatch.setattr(ray, name, getattr(self, name))

    def init(self, num_cpus: int, **_: Any) -> None:
        self.started.append((num_cpus, os.environ.get(PRELOAD)))
        self.frees_after_ms.append(os.environ.get(FREES))

    def shutdown(self) -> None:
        self.num_ended += 1

    def is_initialized(self) -> bool:
        return len(self.started) > self.num_ended


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    for name in ("RAY_ADDRESS", FREES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(connection, "usable_cpus", lambda: 8)
    monkeypatch.setattr(connection, "_ours", None)
    return FakeRay(monkeypatch)


def config_of(*overrides: str) -> Config:
    return load_config(QUICKSTART, ["clients.num=20", "data.split=iid", *overrides])


@pytest.mark.parametrize(
    ("workers", "kind", "num_cpus", "loaded"),
    [
        (["num=2"], Connection.WARM, 3, "parablock_ray.runtime.preload"),
        (["num=20"], Connection.WARM, 21, "parablock_ray.runtime.preload"),
        (["num=2", "threads=3"], Connection.OURS, 9, None),
        (["num=auto"], Connection.OURS, 8, None),
    ],
    ids=["few", "more than there are", "of several threads", "auto"],
)
def test_a_cluster_of_our_own_is_as_large_as_the_run_needs(
    fake: FakeRay, workers: list[str], kind: Connection, num_cpus: int, loaded: str | None
) -> None:
    config = config_of(*(f"workers.{each}" for each in workers))
    assert will_be_warm(config) == (kind is Connection.WARM)
    assert connect(config) is kind
    assert will_be_warm(config) == (kind is Connection.WARM)
    assert fake.started == [(num_cpus, loaded)]
    assert fake.frees_after_ms == ["100"]
    assert PRELOAD not in os.environ
    assert FREES not in os.environ


def test_who_knows_better_says_when_ray_frees_objects(fake: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FREES, "20")
    connect(config_of())
    assert fake.frees_after_ms == [os.environ[FREES]] == ["20"]


def test_who_has_started_it_ends_it_once(fake: FakeRay) -> None:
    config = config_of()
    with own_cluster_of(config):
        assert connect(config) is Connection.WARM  # the same one, for the run itself
        disconnect()  # as a run does before its model is judged
        assert fake.num_ended == 1
    assert (len(fake.started), fake.num_ended) == (1, 1)
    assert connect(config) is Connection.WARM  # as a run does that starts again
    assert len(fake.started) == 2


def test_a_mistake_in_the_run_ends_it_too(fake: FakeRay) -> None:
    with pytest.raises(ZeroDivisionError), own_cluster_of(config_of()):
        raise ZeroDivisionError
    assert fake.num_ended == 1


@pytest.mark.parametrize(
    ("kind", "num_cores", "is_beside"),
    [(Connection.WARM, 2, False), (Connection.WARM, 3, True), (Connection.JOINED, 2, True)],
)
def test_an_evaluator_is_beside_the_run_where_a_core_is_free(
    monkeypatch: pytest.MonkeyPatch, kind: Connection, num_cores: int, is_beside: bool
) -> None:
    """Ray was told of three, two for workers and one for the server."""
    monkeypatch.setattr(cluster, "usable_cpus", lambda: num_cores)
    there = real_cores(kind, [NodeResources(3, num_gpus=0)])
    assert has_core_to_spare(config_of(), there, num_workers=2) == is_beside


def test_what_others_have_started_goes_on(fake: FakeRay) -> None:
    ray.init(num_cpus=1)
    assert not will_be_warm(config_of())
    with own_cluster_of(config_of()):
        assert connect(config_of()) is Connection.JOINED
    assert fake.num_ended == 0


def test_a_serial_run_has_none(fake: FakeRay) -> None:
    with own_cluster_of(config_of("runtime=serial")):
        assert fake.started == []


def test_others_start_later(fake: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    with own_cluster_of(config_of("workers.num=auto")):
        assert fake.started == []
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert not will_be_warm(config_of())
    with own_cluster_of(config_of()):
        assert fake.started == []


WARM = f"""
import os, sys
import ray
from parablock_ray.config import load_config
from parablock_ray.runtime.connection import connect, disconnect

class Witness:
    def seen(self):
        return sorted(name for name in sys.modules if name.startswith("parablock_ray.runtime.")), os.environ

connect(load_config({str(QUICKSTART)!r}, []))
modules, environment = ray.get(ray.remote(Witness).remote().seen.remote())
assert {{"parablock_ray.runtime.client", "parablock_ray.runtime.server"}} <= set(modules), modules
assert environment["OMP_NUM_THREADS"] == "1"
disconnect()
assert not ray.is_initialized()
"""


@pytest.mark.slow
def test_processes_load_what_they_need_before_they_are_actors() -> None:
    own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "3"}
    done = subprocess.run([sys.executable, "-c", WARM], env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
