"""The comparison with peers: its arithmetic, and that who is not installed is left out."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def vs_peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; scripts find each other in their own folder."""
    folder = Path(__file__).parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(folder)
    monkeypatch.syspath_prepend(folder / "peers")
    return importlib.import_module("vs_peers")


def test_overhead_is_the_round_without_the_busiest_worker(vs_peers, tmp_path):
    """The third begins when a worker has what it needs, before the server has closed the second."""
    (tmp_path / "rounds.json").write_text(json.dumps([100.0, 110.0, 115.0, 121.0]))
    (tmp_path / "job.json").write_text(json.dumps({"per_round": 3}))
    (tmp_path / "steps").mkdir()
    one = [(101.0, 104.0, 9.0), (105.0, 106.0, 8.0), (110.5, 111.5, 5.0), (112.0, 113.5, 4.0), (114.75, 117.0, 2.0)]
    other = [(101.0, 102.0, 8.5), (110.5, 111.0, 4.5), (116.5, 120.0, 1.0), (120.0, 120.5, 0.5)]
    for name, trainings in (("1.jsonl", one), ("2.jsonl", other)):
        (tmp_path / "steps" / name).write_text("\n".join(map(json.dumps, trainings)))
    found = vs_peers.read(tmp_path, peak_bytes=7)
    assert found.overhead_s == [5.0 - 2.5, 6.0 - 4.0]  # of the rounds but the first
    assert found.turn_s == ((0.5 + 1.5) + (-0.25 + 0.5)) / 2
    assert found.train_s == (2.5 + 4.0) / 2
    assert found.losses == [8.5, 9.0, 8.0, 4.5, 5.0, 4.0, 2.0, 1.0, 0.5]
    assert vs_peers.last_loss(found) == 0.75
    (tmp_path / "steps" / "2.jsonl").unlink()  # its process has died
    with pytest.raises(SystemExit, match="5 of 9 trainings"):
        vs_peers.read(tmp_path, peak_bytes=7)


def test_sides_that_do_not_train_alike_have_no_ratio(vs_peers):
    ours = vs_peers.Found([1.0], 0.5, 1.0, [2.0, 2.0, 2.0, 1.0], 1)
    vs_peers.check_same(ours, vs_peers.Found([1.0], 0.5, 1.0, [2.0, 2.0, 2.0, 1.04], 1))
    for losses in ([2.0, 2.0, 2.0, 1.2], [2.0, 1.0]):
        with pytest.raises(SystemExit, match="no ratio means anything"):
            vs_peers.check_same(ours, vs_peers.Found([1.0], 0.5, 1.0, losses, 1))


def test_other_cohorts_have_other_losses(vs_peers):
    def found(*last: float):
        return vs_peers.Found([1.0], 0.5, 1.0, [2.0] * 12 + list(last), 1)

    ours = found(1.0, 1.2, 1.4, 1.6)  # standard error 0.13
    vs_peers.check_same(ours, found(1.2, 1.4, 1.6, 1.8))
    with pytest.raises(SystemExit, match="no ratio means anything"):
        vs_peers.check_same(ours, found(1.9, 2.1, 2.3, 2.5))


def test_peers_that_are_not_installed_are_left_out(vs_peers, monkeypatch, capsys, tmp_path):
    empty = tmp_path / "python"  # an environment without the package
    empty.write_text("#!/bin/sh\nexit 1\n")
    empty.chmod(0o755)
    nowhere = tmp_path / "nowhere" / "python"
    monkeypatch.setattr(sys, "argv", ["vs_peers.py", "--json", "--flower", str(nowhere), "--pfl", str(empty)])
    vs_peers.main()
    told = capsys.readouterr()
    assert json.loads(told.out)["rows"] == []
    assert f"there is no {nowhere} with flwr; `make bench-peers` installs it" in told.err
    assert f"there is no {empty} with pfl" in told.err


def test_all_peers_are_held_against_the_same_runs_of_ours(vs_peers, monkeypatch, tmp_path):
    seconds = {"tiny, ours": 2.0, "tiny, flower": 8.0, "tiny, pfl": 1.0}
    ran = []

    def finished(command: list[str], folder: Path, name: str) -> object:
        ran.append(name)
        return vs_peers.Found([seconds[name]], 0.5, 1.0, [1.0], 10)

    monkeypatch.setattr(vs_peers, "finished", finished)
    monkeypatch.setattr(vs_peers, "make_job", lambda job, folder: folder)
    peers = [vs_peers.Peer(name, name, [name], ["tiny"]) for name in ("flower", "pfl")]
    job = vs_peers.Job(vs_peers.TINY, 10, 3, 4, 1e-3)
    rows = {row.name: row for row in vs_peers.side_by_side("tiny", job, 2, peers)}
    assert ran == 2 * list(seconds)
    assert (rows["vs_flower/overhead/tiny"].value, rows["vs_flower/overhead/tiny"].goal) == (4.0, 5.0)
    assert (rows["vs_pfl/overhead/tiny"].value, rows["vs_pfl/overhead/tiny"].goal) == (0.5, None)
    assert rows["vs_pfl/overhead_s/tiny/ours"].value == rows["vs_flower/overhead_s/tiny/ours"].value == 2.0


def test_both_sides_get_the_same_batches(vs_peers, tmp_path):
    import torch

    folder = vs_peers.make_job(vs_peers.Job(vs_peers.TINY, 10, 3, 4, 1e-3), tmp_path / "job")
    batches = torch.load(folder / "batches.pt")
    assert len(batches) == vs_peers.NUM_CLIENTS
    assert all(len(batch["labels"]) == 4 and num_examples >= 4 for batch, num_examples in batches)
    config = vs_peers.config_of(folder, "torch")
    assert (config.clients.per_round, config.method.rounds, config.method.lr) == (10, 3, 1e-3)


def test_peak_memory_is_that_of_a_process_and_its_children(vs_peers, monkeypatch):
    monkeypatch.setattr(vs_peers, "shared_bytes", lambda: 0)  # other processes' object stores come and go
    hold = "import subprocess, sys; held = bytearray(80_000_000); {}; sys.stdin.read()"
    child = f"subprocess.Popen([sys.executable, '-c', {hold.format('pass')!r}])"
    with subprocess.Popen([sys.executable, "-c", hold.format(child)], stdin=subprocess.PIPE) as parent:
        peak = vs_peers.PeakMemory(parent.pid)
        while peak._peak < 160_000_000 and parent.poll() is None:
            time.sleep(0.05)
        parent.stdin.close()  # both end
    assert 160_000_000 <= peak.stop() < 260_000_000, "of mapped files those of one process"
