"""Overlap is a schedule, not a race: the Ray runtime ends in the serial runtime's very weights."""

import asyncio
import random
import sys

import pytest
import ray

from parablock_ray.runtime import cluster as cluster_module
from parablock_ray.runtime.server import ServerActor
from tests.runtime.federation import METHODS, rows, run_tiny

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """The serial run of a method, made once."""
    made = {}

    def summary_of(method: str) -> dict:
        if method not in made:
            out = tmp_path_factory.mktemp("serial") / method
            made[method] = run_tiny(out, [*METHODS[method], "runtime=serial"])
        return made[method]

    return summary_of


MARKS = {"parablock": pytest.mark.smoke} | dict.fromkeys(["fedbcd", "fedavg"], pytest.mark.thorough)


@pytest.mark.parametrize("method", [pytest.param(each, marks=MARKS.get(each, ())) for each in METHODS])
def test_ray_ends_in_the_serial_weights(cluster, tmp_path, serial, method):
    summary = run_tiny(tmp_path / "run", [*METHODS[method], "workers.num=2"])
    reference = serial(method)
    for key in ("weights_sha256", "loss_after", "bytes_up", "bytes_down", "bytes_catch_up"):
        assert summary[key] == reference[key]
    assert summary["loss_after"] < summary["loss_before"]


def test_one_actor_changes_no_bit(cluster, tmp_path, serial):
    summary = run_tiny(tmp_path / "run", ["workers.num=1"])
    assert summary["num_workers"] == 1
    assert summary["weights_sha256"] == serial("parablock")["weights_sha256"]


class JitteryServer(ServerActor):
    """A server that every message reaches late by a random time, so that they overtake each other."""

    async def receive(self, sent, payload):
        await asyncio.sleep(random.random() * 0.3)
        await super().receive(sent, payload)

    async def published(self, round, variant, num_have):
        published = await super().published(round, variant, num_have)
        await asyncio.sleep(random.random() * 0.3)
        return published


def test_four_actors_random_delays_and_arrival_orders_change_no_bit(cluster, tmp_path, serial, monkeypatch):
    monkeypatch.setattr(cluster_module, "ServerActor", JitteryServer)
    cut_through = ["network.exchange=cut_through", "network.chunk_mb=0.1"]
    summary = run_tiny(tmp_path / "run", ["workers.num=4", *cut_through])
    assert summary["weights_sha256"] == serial("parablock")["weights_sha256"]


def test_two_runs_of_one_config_agree_and_another_seed_does_not(tmp_path, serial):
    again = run_tiny(tmp_path / "again", ["runtime=serial"])
    assert again["weights_sha256"] == serial("parablock")["weights_sha256"]
    other = run_tiny(tmp_path / "other", ["runtime=serial", "seed=1"])
    assert other["weights_sha256"] != serial("parablock")["weights_sha256"]


def test_parablock_is_not_fedbcd_and_without_staleness_it_is(tmp_path, serial):
    assert serial("parablock")["weights_sha256"] != serial("fedbcd")["weights_sha256"]
    without = run_tiny(tmp_path / "run", ["runtime=serial", "method.staleness=0"])
    assert without["weights_sha256"] == serial("fedbcd")["weights_sha256"]


def test_both_engines_give_the_same_weights(tmp_path, serial):
    plain = run_tiny(tmp_path / "run", ["runtime=serial", "engine.name=torch"])
    assert plain["weights_sha256"] == serial("parablock")["weights_sha256"]


def intersections(events):
    """How often a client computes round t while its exchange of round t − 1 is under way."""
    spans = {(e["phase"], e["round"], e["client"]): e for e in events if e["event"] == "span"}
    found = 0
    for (phase, round, client), compute in spans.items():
        if phase == "compute" and round > 0:
            starts = spans["upload", round - 1, client]["start_s"]
            ends = spans["download", round - 1, client]["end_s"]
            found += min(compute["end_s"], ends) > max(compute["start_s"], starts)
    return found


@pytest.mark.parametrize(
    ("method", "pipeline"), [("parablock", "serial"), ("parablock", "duplex"), ("fedbcd", "duplex")]
)
def test_over_a_slow_link_parablock_computes_while_it_exchanges(cluster, tmp_path, serial, method, pipeline):
    """Read off the events, in order and not in seconds: and a slow link changes no bit either."""
    link = {"mode": "shaped", "up_mbps": 10, "down_mbps": 20, "latency_ms": 20, "chunk_mb": 0.2, "pipeline": pipeline}
    overrides = [f"network.{key}={value}" for key, value in link.items()]
    summary = run_tiny(tmp_path / "run", [*METHODS[method], *overrides, "workers.num=2"])
    assert summary["weights_sha256"] == serial(method)["weights_sha256"]
    assert summary["seconds"] >= summary["seconds_bound"] > 0
    overlapped = intersections(rows(tmp_path / "run" / "events.jsonl"))
    assert (overlapped > 0) == (method == "parablock")  # how often depends on how busy the machine is
