"""Who visits which worker: the fast ones get more, who has something there stays, and no value depends on it."""

import sys
import time

import pytest
import ray

from parablock_ray.algorithms.base import RoundPlan, Visit
from parablock_ray.runtime import cluster as cluster_module
from parablock_ray.runtime.assignment import Assignment
from parablock_ray.runtime.client import ClientActor
from parablock_ray.tracking.events import Dropped, Span
from tests.runtime.federation import METHODS, rows, run_tiny

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

TWO_TO_ONE = {0: 1.0, 1: 2.0}  # worker → seconds of a visit


def plan_of(round: int, clients: list[int], staleness: int = 0) -> RoundPlan:
    visits = tuple(Visit(client, num_examples=1, weight=1, share=0.1) for client in clients)
    return RoundPlan(round, block=0, reads=round - 1 - staleness, visits=visits, lr=0.1)


def measure(assignment: Assignment, seconds: dict[int, float]) -> None:
    for worker, visit_s in seconds.items():
        assignment.note(Span("compute", 0, 0, 99, worker, 5.0, 5.0 + visit_s))


def finish(assignment: Assignment, round: int, clients: list[int]) -> None:
    for client in clients:
        assignment.note(Span("download", round, 0, client, 0, 0.0, 1.0))


def test_before_anything_is_measured_everybody_is_at_home() -> None:
    assignment = Assignment(2)
    assert assignment.assign(plan_of(0, [4, 2, 0, 1])) == [0, 0, 0, 1]
    assert (assignment.hosted(0), assignment.hosted(1)) == ([0, 2, 4], [1])
    assert Assignment(2).at_home(1, num_clients=6) == [1, 3, 5]


@pytest.mark.parametrize(
    ("seconds", "workers"),
    [
        (TWO_TO_ONE, [0, 1, 0, 0, 0, 1]),
        ({0: 1.0, 1: 1.0}, [0, 1, 0, 1, 0, 1]),  # alike: each at home
        ({1: 3.0}, [0, 1, 0, 1, 0, 1]),  # who was not measured is taken to be as the others
        ({0: 10.0, 1: 1.0}, [1] * 6),
    ],
)
def test_each_visit_goes_to_who_is_done_with_it_first(seconds: dict[int, float], workers: list[int]) -> None:
    assignment = Assignment(2)
    measure(assignment, seconds)
    assert assignment.assign(plan_of(0, [0, 1, 2, 3, 4, 5])) == workers


def test_the_last_visits_tell_how_fast_a_worker_is() -> None:
    assignment = Assignment(2)
    measure(assignment, {0: 100.0, 1: 1.0})
    for _ in range(32):
        measure(assignment, {0: 0.01})
    assert assignment.assign(plan_of(0, [1])) == [0]


def test_who_has_something_under_way_or_pending_stays() -> None:
    assignment = Assignment(2)
    assert assignment.assign(plan_of(0, [1, 3, 5], staleness=1)) == [1, 1, 1]
    measure(assignment, {0: 1.0, 1: 100.0})
    finish(assignment, 0, [1, 3])
    assert assignment.assign(plan_of(1, [1, 3], staleness=1)) == [1, 1]  # their deltas of round 0 are pending
    finish(assignment, 1, [1])
    assignment.note(Dropped(1, 3, "refused", ""))
    assert assignment.assign(plan_of(3, [1, 3, 5], staleness=1)) == [0, 0, 1]  # 5 still downloads what round 0 brought
    assert assignment.hosted(1) == [5]


def test_what_is_not_under_way_is_forgotten() -> None:
    assignment = Assignment(2)
    for round in range(100):
        clients = [10 * round + each for each in range(10)]
        assignment.assign(plan_of(round, clients))
        finish(assignment, round, clients)
    assert len(assignment._stays) <= 20


def test_after_a_checkpoint_what_is_pending_is_at_home() -> None:
    assignment = Assignment(2)
    assignment.restore([plan_of(0, [1, 3], staleness=1), plan_of(1, [3, 5], staleness=1)])
    measure(assignment, {0: 1.0, 1: 100.0})
    assert assignment.assign(plan_of(2, [1, 3, 5, 7], staleness=1)) == [0, 1, 1, 0]


class Slow0(ClientActor):
    """Its first worker is slow, so that what its clients send comes behind what stands after it in the order."""

    slow = 0

    async def load(self):
        await super().load()
        batches = self._worker._batches

        def slowly(*args):
            time.sleep(0.2 * (self._index == self.slow))
            return batches(*args)

        self._worker._batches = slowly


class Slow1(Slow0):
    slow = 1


@pytest.mark.parametrize(("slow", "limit"), [(Slow0, "1"), pytest.param(Slow1, "2", marks=pytest.mark.thorough)])
def test_a_slow_worker_gets_fewer_visits_and_changes_no_bit(cluster, tmp_path, monkeypatch, slow, limit) -> None:
    """With updates let in one or two at a time, and whoever is slow: it ends, in the serial runtime's weights."""
    sampled = [*METHODS["parablock-sampled"], "clients.num=20", "method.rounds=12", "engine.name=torch"]
    reference = run_tiny(tmp_path / "serial", [*sampled, "runtime=serial"])
    monkeypatch.setattr(cluster_module, "ClientActor", slow)
    seconds = [1.0 + (worker == slow.slow) for worker in range(2)]
    monkeypatch.setattr(Assignment, "_visit_seconds", lambda self: seconds)
    summary = run_tiny(tmp_path / "run", [*sampled, "workers.num=2", f"clients.max_in_flight={limit}"])
    for key in ("weights_sha256", "loss_after", "bytes_up", "bytes_down", "bytes_catch_up"):
        assert summary[key] == reference[key]
    computed = [row for row in rows(tmp_path / "run" / "events.jsonl") if row.get("phase") == "compute"]
    at_slow = sum(row["worker"] == slow.slow for row in computed)
    assert len(computed) == 36
    assert any(row["client"] % 2 != row["worker"] for row in computed)
    assert 0 < at_slow < 18
