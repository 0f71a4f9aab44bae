"""The regression guard: clear losses of ratios are told, noise and seconds are not."""

import importlib
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; scripts find each other in their own folder."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("suite")


def found(suite: ModuleType, *rows: tuple) -> dict:
    return {"machine": {}, "versions": {}, "rows": [asdict(suite.Row(*row)) for row in rows]}


def test_only_ratios_that_are_better_when_larger_are_kept(suite):
    rows = found(suite, ("speed", 2.0, "x"), ("seconds", 3.0, "s"), ("growth", 0.01, "ratio", 0.05, True))
    assert suite.expected(rows)["ratios"] == {"speed": {"value": 2.0, "spread": None}}


@pytest.mark.parametrize(
    ("before", "now", "spread", "is_lost"),
    [
        (2.0, 1.71, 0.01, False),
        (2.0, 1.69, 0.01, True),
        (2.0, 1.69, 0.0, True),  # exact
        (2.0, 1.41, None, False),  # measured once
        (2.0, 1.39, None, True),
        (2.0, 1.5, 0.1, False),  # three times the spread
        (2.0, 1.3, 0.1, True),
        (2.0, 9.0, None, False),
    ],
)
def test_a_loss_is_clear_beyond_noise(suite, before, now, spread, is_lost):
    kept = suite.expected(found(suite, ("speed", before, "x")))
    lost = list(suite.losses(kept, found(suite, ("speed", now, "x", None, False, spread))))
    assert bool(lost) is is_lost
    if is_lost:
        assert lost[0].startswith(f"lost: speed is {now}, was 2 ")


def test_what_changes_from_run_to_run_is_not_kept(suite):
    names = ("training_speed/10_MB_per_s", "bandwidth_vs_memcpy", "copy_in_vs_memcpy")
    rows = found(suite, *((f"exchange/{name}", 1.0, "x") for name in names))
    assert list(suite.expected(rows)["ratios"]) == ["exchange/bandwidth_vs_memcpy", "exchange/copy_in_vs_memcpy"]


def test_what_was_not_measured_is_no_loss(suite, capsys):
    kept = suite.expected(found(suite, ("speed", 2.0, "x"), ("flower", 5.0, "x")))
    assert list(suite.losses(kept, found(suite, ("speed", 2.0, "x")))) == []
    assert "compared: 1 of 2 ratios" in capsys.readouterr().err


def test_every_script_of_the_suite_is_there(suite):
    assert [name for name in suite.SUITE if not (suite.FOLDER / f"{name}.py").is_file()] == []
