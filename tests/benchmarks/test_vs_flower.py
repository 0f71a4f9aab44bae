"""The comparison with Flower: its arithmetic, and that it is left out where Flower is not installed."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def vs_flower(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; scripts find each other in their own folder."""
    folder = Path(__file__).parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(folder)
    monkeypatch.syspath_prepend(folder / "peers")
    return importlib.import_module("vs_flower")


def test_overhead_is_the_round_without_the_busiest_worker(vs_flower, tmp_path):
    (tmp_path / "rounds.json").write_text(json.dumps([100.0, 110.0, 115.0, 121.0]))
    (tmp_path / "steps").mkdir()
    one = [(101.0, 104.0, 9.0), (110.5, 111.5, 5.0), (112.0, 113.5, 4.0), (116.0, 117.0, 2.0)]
    other = [(110.5, 111.0, 4.5), (116.0, 120.0, 1.0)]
    for name, trainings in (("1.jsonl", one), ("2.jsonl", other)):
        (tmp_path / "steps" / name).write_text("\n".join(map(json.dumps, trainings)))
    found = vs_flower.read(tmp_path, peak_bytes=7)
    assert found.overhead_s == [5.0 - 2.5, 6.0 - 4.0]  # of the rounds but the first
    assert found.train_s == (2.5 + 4.0) / 2
    assert found.losses == [9.0, 4.5, 5.0, 4.0, 2.0, 1.0]
    assert vs_flower.last_loss(found) == 1.0


def test_sides_that_do_not_train_alike_have_no_ratio(vs_flower):
    ours = vs_flower.Found([1.0], 1.0, [2.0, 2.0, 2.0, 1.0], 1)
    vs_flower.check_same(ours, vs_flower.Found([1.0], 1.0, [2.0, 2.0, 2.0, 1.04], 1))
    for losses in ([2.0, 2.0, 2.0, 1.2], [2.0, 1.0]):
        with pytest.raises(SystemExit, match="no ratio means anything"):
            vs_flower.check_same(ours, vs_flower.Found([1.0], 1.0, losses, 1))


def test_without_flower_it_is_left_out(vs_flower, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["vs_flower.py", "--json", "--flower", str(tmp_path / "python")])
    vs_flower.main()
    told = capsys.readouterr()
    assert json.loads(told.out)["rows"] == []
    assert "make bench-peers" in told.err


def test_both_sides_get_the_same_batches(vs_flower, tmp_path):
    import torch

    folder = vs_flower.make_job(vs_flower.Job(vs_flower.TINY, 10, 3, 4, 1e-3), tmp_path / "job")
    batches = torch.load(folder / "batches.pt")
    assert len(batches) == vs_flower.NUM_CLIENTS
    assert all(len(batch["labels"]) == 4 and num_examples >= 4 for batch, num_examples in batches)
    config = vs_flower.config_of(folder, "torch")
    assert (config.clients.per_round, config.method.rounds, config.method.lr) == (10, 3, 1e-3)
