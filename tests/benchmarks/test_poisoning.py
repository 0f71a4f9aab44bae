"""The benchmark of poisoning, small: the plain mean fails, what shall hold does, and nothing of the attack stays."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from parablock_ray.algorithms.gate import Gate
from parablock_ray.training.worker import Worker


@pytest.fixture
def poisoning(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; scripts find each other in their own folder."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("poisoning")


def test_the_mean_fails_and_the_median_holds(poisoning):
    real = Worker.train, Gate.admit
    given = ["--rounds", "8", "--attacks", "sign_flip_100", "nan", "--defences", "mean, unchecked", "median"]
    rows = {row.name: row for row in poisoning.figures(poisoning.arguments(given))}
    assert len(rows) == 4
    for attack in ("sign_flip_100", "nan"):
        mean, median = (rows[f"poisoning/{attack}/{each}/progress"] for each in ("mean, unchecked", "median"))
        assert (mean.goal, mean.at_most) == (poisoning.FAILS, True)
        assert mean.value <= poisoning.FAILS
        assert (median.goal, median.at_most) == (poisoning.KEEPS, False)
        assert median.value >= poisoning.KEEPS
    assert real == (Worker.train, Gate.admit)


def test_every_rule_is_tried_and_everybody_must_hold_where_nobody_lies(poisoning):
    rules = {override for each in poisoning.DEFENCES.values() for override in each.overrides}
    assert all(f"name: {rule}" in " ".join(rules) for rule in ("clip", "median", "trimmed_mean", "krum", "multi_krum"))
    assert all("none" in each.holds for each in poisoning.DEFENCES.values())
    assert not any(set(each.holds) & set(each.fails) for each in poisoning.DEFENCES.values())
