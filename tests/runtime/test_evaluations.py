"""The model judged every so many rounds: exactly as it was after each, at no cost to weights or clock."""

import json
import os
import sys
from pathlib import Path

import pytest
import ray

from parablock_ray.errors import RunFailed
from parablock_ray.evaluation.evaluator import Evaluator
from parablock_ray.runtime import cluster as cluster_module
from parablock_ray.runtime import serial as serial_module
from parablock_ray.runtime.evaluator import EvaluatorActor
from parablock_ray.runtime.placement import NodeResources
from tests.runtime.federation import METHODS, rows, run_tiny
from tests.runtime.lora_runs import run_lora

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

FAST = ["engine.name=torch", "method.rounds=4"]
JUDGED = [*FAST, "evaluation.every=1", "evaluation.tasks=[held_out]"]
METHOD = [*METHODS["parablock-bf16-wire"], "network.exchange=cut_through"]  # the master is not what is published
VIRTUAL = ["network.mode=virtual", "network.compute_s=1"]
# Factors that are blocks; factors beside what is merged.
LORA = ["fedit-delayed", "florist-carry"]


def losses(folder: Path) -> dict[int, float]:
    return {row["round"]: row["results"]["held_out"]["loss"]["value"] for row in rows(folder / "evaluations.jsonl")}


def final_loss(folder: Path) -> float:
    return float(json.loads((folder / "evaluation.json").read_text())["held_out"]["loss"]["value"])


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """The folder and the summary of a serial run of METHOD that is judged after every round."""
    out = tmp_path_factory.mktemp("serial") / "judged"
    return out, run_tiny(out, [*METHOD, *JUDGED, "runtime=serial"])


def test_the_last_round_is_judged_as_the_final_model_is(judged):
    folder, summary = judged
    assert list(losses(folder)) == [0, 1, 2, 3]
    assert losses(folder)[3] == final_loss(folder)
    assert losses(folder)[3] == pytest.approx(summary["loss_after"], rel=1e-6)
    assert len(set(losses(folder).values())) == 4


def test_judging_changes_no_weight(tmp_path, judged):
    alone = run_tiny(tmp_path / "alone", [*METHOD, *FAST, "runtime=serial"])
    assert alone["weights_sha256"] == judged[1]["weights_sha256"]
    assert not (tmp_path / "alone" / "evaluations.jsonl").exists()


@pytest.mark.parametrize("method", LORA)
def test_adapters_are_judged_as_they_are_after_each_round_and_change_by_nothing(tmp_path, method):
    lora = ["engine.name=torch", "runtime=serial"]
    alone = run_lora(tmp_path / "alone", method, lora)
    found = run_lora(tmp_path / "judged", method, [*lora, "evaluation.every=2", "evaluation.tasks=[held_out]"])
    assert found["weights_sha256"] == alone["weights_sha256"]
    assert list(losses(tmp_path / "judged")) == [1, 3]  # of 5 rounds


def test_a_round_is_judged_as_a_run_that_ends_with_it(tmp_path, judged):
    run_tiny(tmp_path / "short", [*METHOD, *JUDGED, "method.rounds=2", "runtime=serial"])
    assert final_loss(tmp_path / "short") == losses(judged[0])[1]


def test_on_ray_with_a_core_to_spare(cluster, tmp_path, judged):
    folder = tmp_path / "ray"
    summary = run_tiny(folder, [*METHOD, *JUDGED, "workers.num=2"])
    assert summary["weights_sha256"] == judged[1]["weights_sha256"]
    assert losses(folder) == losses(judged[0])
    assert "evaluator" in summary["peak_rss_bytes"]


def test_on_ray_without_one_the_evaluator_waits_for_the_end(cluster, tmp_path, judged, monkeypatch):
    [node] = ray.nodes()
    monkeypatch.setattr(cluster_module, "nodes", lambda: [NodeResources(2, 0, node_id=node["NodeID"])])
    folder = tmp_path / "ray"
    summary = run_tiny(folder, [*METHOD, *JUDGED, "workers.num=2"])
    assert summary["weights_sha256"] == judged[1]["weights_sha256"]
    assert losses(folder) == losses(judged[0])
    assert "evaluator" not in summary["peak_rss_bytes"]  # as of the end of training


@pytest.mark.slow
@pytest.mark.parametrize("method", [LORA[0], pytest.param(LORA[1], marks=pytest.mark.thorough)])
def test_adapters_on_ray(cluster, tmp_path, method):
    lora = ["engine.name=torch", "network.chunk_mb=0.01", "evaluation.every=1"]
    for runtime in (["runtime=serial"], ["workers.num=2"]):
        run_lora(tmp_path / runtime[0], method, [*lora, *runtime])
    assert losses(tmp_path / "workers.num=2") == losses(tmp_path / "runtime=serial")


class DyingEvaluator(EvaluatorActor):
    async def judge(self, round, snapshot):
        os._exit(1)


class FailingEvaluator(EvaluatorActor):
    async def judge(self, round, snapshot):
        raise ArithmeticError("no such loss")


@pytest.mark.parametrize(
    ("actor", "said"),
    [(DyingEvaluator, "the process of the evaluator died"), (FailingEvaluator, "the evaluator: no such loss")],
)
def test_an_evaluator_that_fails_ends_the_run(cluster, tmp_path, monkeypatch, actor, said):
    monkeypatch.setattr("parablock_ray.runtime.evaluator.EvaluatorActor", actor)
    with pytest.raises(RunFailed, match=said):
        run_tiny(tmp_path / "run", [*FAST, "evaluation.every=1", "workers.num=1", "clients.on_death=fail"])


class SlowClock:
    """A clock that only judging moves, and by far."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


def test_in_one_process_the_clock_stands_still_while_a_round_is_judged(tmp_path, monkeypatch):
    clock = SlowClock()

    class SlowEvaluator(Evaluator):
        def evaluate(self, round, weights):
            clock.now_s += 1000.0
            return super().evaluate(round, weights)

    monkeypatch.setattr(serial_module, "time", clock)
    monkeypatch.setattr("parablock_ray.evaluation.evaluator.Evaluator", SlowEvaluator)
    run_tiny(tmp_path / "run", [*FAST, "evaluation.every=1", "runtime=serial", *VIRTUAL])
    events = rows(tmp_path / "run" / "events.jsonl")
    assert {event["end_s"] for event in events if event["event"] == "span"} == {0.0}
