"""The plan's error as the benchmark of overlap reports it."""

import argparse
import importlib
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def overlap(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; scripts find each other in their own folder."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("overlap")


def test_the_largest_difference_is_reported_and_has_a_goal(overlap):
    made = {"A": 10.0, "B": 20.0, "C": 40.0}
    runs = {name: overlap.Measured(seconds, [], None, None, ()) for name, seconds in made.items()}
    row, *planned = overlap.plan_figures({"A": 10.5, "B": 18.0, "C": 41.0}, runs)
    assert (row.name, row.value, row.unit, row.goal, row.at_most) == ("plan_error", 0.1, "of measured", 0.1, True)
    assert [(each.name, each.value) for each in planned] == [
        ("seconds_planned/A", 10.5),
        ("seconds_planned/B", 18.0),
        ("seconds_planned/C", 41.0),
    ]


@pytest.mark.parametrize(("case", "rounds_s"), [("A/fedbcd", 30 * 0.8), ("B/fedbcd", 30 * 1.2), ("A/parablock", 12.4)])
def test_a_case_is_planned_by_the_closed_form(overlap, tmp_path, case, rounds_s):
    """c = 0.4; A: u = d = c / 2, ParaBlock takes c + 29 max(c, u + d) + u + d; B: u = d = c."""
    federation = overlap.make_federation(tmp_path, hidden=64, intermediate=64)
    config = overlap.config_of(overlap.CASES[case], federation, argparse.Namespace(compute_s=0.4, rounds=30))
    run = overlap.Measured(0.0, [], None, config, step_s=(0.4,) * 4)
    assert overlap.planned_s(run) == pytest.approx(rounds_s, rel=1e-6)
