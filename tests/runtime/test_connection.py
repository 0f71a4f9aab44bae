"""The cluster of a run: whose it is, how large, and what its processes have loaded before anybody asks."""

import os
import subprocess
import sys
from typing import Any

import pytest
import ray

from parablock_ray.config import Config, load_config
from parablock_ray.runtime import connection
from parablock_ray.runtime.connection import Connection, connect, disconnect
from parablock_ray.starting import cluster_of
from tests.runtime.federation import QUICKSTART

PRELOAD = "RAY_preload_python_modules"


class FakeRay:
    """Notes how clusters are started and that they are ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: list[tuple[int, str | None]] = []  # CPUs, and what processes load at once
        self.num_ended = 0
        for name in ("init", "shutdown", "is_initialized"):
            monkeypatch.setattr(ray, name, getattr(self, name))

    def init(self, num_cpus: int, **_: Any) -> None:
        self.started.append((num_cpus, os.environ.get(PRELOAD)))

    def shutdown(self) -> None:
        self.num_ended += 1

    def is_initialized(self) -> bool:
        return len(self.started) > self.num_ended


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
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
    assert connect(config_of(*(f"workers.{each}" for each in workers))) is kind
    assert fake.started == [(num_cpus, loaded)]
    assert PRELOAD not in os.environ


def test_who_has_started_it_ends_it_once(fake: FakeRay) -> None:
    config = config_of()
    with cluster_of(config, "parablock_ray.driver"):
        assert connect(config) is Connection.WARM  # the same one, for the run itself
        disconnect()  # as a run does before its model is judged
        assert fake.num_ended == 1
    assert (len(fake.started), fake.num_ended) == (1, 1)
    assert connect(config) is Connection.WARM  # as a run does that starts again
    assert len(fake.started) == 2


def test_a_mistake_in_the_run_ends_it_too(fake: FakeRay) -> None:
    with pytest.raises(ZeroDivisionError), cluster_of(config_of(), "parablock_ray.driver"):
        raise ZeroDivisionError
    assert fake.num_ended == 1


def test_what_others_have_started_goes_on(fake: FakeRay) -> None:
    ray.init(num_cpus=1)
    with cluster_of(config_of(), "parablock_ray.driver"):
        assert connect(config_of()) is Connection.JOINED
    assert fake.num_ended == 0


def test_a_serial_run_has_none(fake: FakeRay) -> None:
    with cluster_of(config_of("runtime=serial"), "parablock_ray.driver"):
        assert fake.started == []


WARM = f"""
import os, sys, time
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
    bare = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "RAY_ADDRESS")}
    done = subprocess.run([sys.executable, "-c", WARM], env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
