"""Two nodes on this machine: where workers are, what is said while there is no room, and the same weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_workers_on_two_nodes(tmp_path):
    command = [sys.executable, "-m", "tests.runtime.nodes_run", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["num_nodes"], found["spread"], found["pack"]) == (2, 2, 1)
    assert found["share"] == 0.5
    [told] = found["told"]
    assert told == "waiting for 2 worker(s) of 1 CPU, 1 GPU each; the cluster has 2 of 4 CPU, 0 of 2 GPU free"
    assert found["num_workers"] == 3  # of `auto`, after a trial: no more than the clients of a round
    assert found["worker_nodes"] == 2  # so updates cross from one to the other
    assert found["ray"] == found["serial"]
