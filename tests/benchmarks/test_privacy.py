"""The benchmark of privacy, small: what noise takes is told beside the noise."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def privacy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; scripts find each other in their own folder."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("privacy")


def test_what_is_left_with_little_noise_and_with_much(privacy):
    given = [
        *("--model", "tiny", "--clients", "20", "--per-round", "5", "--rounds", "2", "--delta", "1e-3"),
        *("--methods", "ffa_lora", "--epsilons", "100000", "0.5"),
    ]
    rows = {row.name.removeprefix("privacy/ffa_lora/"): row.value for row in privacy.figures(privacy.arguments(given))}
    assert rows.keys() == {
        "fall",
        "epsilon_none/progress",
        *(f"epsilon_{each}/{figure}" for each in ("100000", "0.5") for figure in ("progress", "noise_multiplier")),
    }
    assert rows["fall"] > 0
    assert rows["epsilon_100000/noise_multiplier"] < 0.3 < 1 < rows["epsilon_0.5/noise_multiplier"]
    assert rows["epsilon_none/progress"] > rows["epsilon_0.5/progress"] >= privacy.WORST
