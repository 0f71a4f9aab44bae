"""Kills at random moments: the plan of them, and two that are carried out."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
REST = ["server", "driver", "worker, dropped"]


@pytest.fixture
def chaos(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; scripts find each other in their own folder."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("chaos")


def test_kills_are_a_function_of_the_seed_and_reach_everyone(chaos):
    def planned(num_kills, seed):
        return list(chaos.kills(num_kills, seed, list(chaos._KINDS)))

    assert planned(20, seed=3) == planned(20, seed=3) != planned(20, seed=4)
    assert len({(kill.method, kill.kind) for kill in planned(20, seed=3)}) == 20


@pytest.mark.slow
@pytest.mark.timeout(1800)  # beside other tests: every kill starts two clusters
@pytest.mark.parametrize("kinds", [["worker", "driver, SIGTERM"], pytest.param(REST, marks=pytest.mark.thorough)])
def test_kills_leave_the_right_weights(kinds):
    options = ["--kills", str(len(kinds)), "--kinds", *kinds, "--seed", "1", "--json"]
    command = [sys.executable, FOLDER / "chaos.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stderr
    assert [row["value"] for row in json.loads(done.stdout.splitlines()[-1])["rows"]] == [1.0] * len(kinds)
