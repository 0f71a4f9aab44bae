"""What FLoRIST kept, as rows, as a table, as a picture, and in W&B."""

import io
import json
from pathlib import Path

from rich.console import Console

from parablock_ray.tracking.events import Committed, Event, KeptRank, as_row
from parablock_ray.tracking.kept_ranks import HEADER, kept_ranks, rank_figure, rank_rows, write_rank_table
from parablock_ray.tracking.sinks import WandbSink, open_sinks
from tests.tracking.test_sinks import SUMMARY, config, inspect, metrics_row

MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")


def committed(round: int, kept: tuple[KeptRank, ...]) -> Committed:
    return Committed(round, 0, float(round), (0,), (1.0,), 1, 1.0, 0.1, kept)


def kept(round: int) -> tuple[KeptRank, ...]:
    return tuple(KeptRank(module, round + 1 + i, 0.9, (4.0, 2.0, 1.0, 0.0)) for i, module in enumerate(MODULES))


def test_rows_come_in_round_order_whatever_the_order_of_events(tmp_path: Path) -> None:
    by_round = kept_ranks([committed(1, kept(1)), committed(0, kept(0))])
    assert list(by_round) == [0, 1]
    assert list(rank_rows(by_round)) == [
        (round, module, round + 1 + i, 0.9) for round in (0, 1) for i, module in enumerate(MODULES)
    ]
    write_rank_table(by_round, tmp_path / "ranks.csv")
    lines = (tmp_path / "ranks.csv").read_text().splitlines()
    assert lines[0] == ",".join(HEADER)
    assert lines[1] == f"0,{MODULES[0]},1,0.9"


def test_methods_that_do_not_cut_have_none() -> None:
    assert kept_ranks([committed(0, ())]) == {}


def test_the_picture_has_every_module_round_and_a_few_spectra() -> None:
    figure = rank_figure(kept_ranks([committed(round, kept(round)) for round in range(20)]))
    left, right = figure.axes[:2]
    assert left.images[0].get_array().tolist() == [[round + 1 + i for round in range(20)] for i in range(2)]
    assert [label.get_text() for label in left.get_yticklabels()] == ["0 q_proj", "0 v_proj"]
    assert 1 < len(right.lines) <= 8
    assert right.lines[0].get_ydata().tolist() == [1.0, 0.5, 0.25]  # shares of the largest; zeros have no logarithm


def test_adapters_that_are_all_zero_have_a_picture_too() -> None:
    nothing = tuple(KeptRank(module, 1, 1.0, (0.0, 0.0)) for module in MODULES)
    assert rank_figure(kept_ranks([committed(0, nothing)])).axes


def test_wandb_gets_the_table_and_the_picture(tmp_path: Path) -> None:
    events: list[Event] = [committed(round, kept(round)) for round in range(2)]
    for sink in open_sinks(config(tmp_path, "offline"), Console(file=io.StringIO()), resumes=False):
        for round, event in enumerate(events):
            sink.event(as_row(event))
            sink.round(metrics_row(round))
        sink.finish(SUMMARY)
        sink.close()
    records = [json.loads(line) for line in inspect(tmp_path / "wandb").splitlines()]
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert len(history) == 3  # two rounds, and the ranks
    [table] = tmp_path.glob("wandb/offline-run-*/files/media/table/kept_ranks*.json")
    told = json.loads(table.read_text())
    assert told["columns"] == list(HEADER)
    assert told["data"] == [list(row) for row in rank_rows(kept_ranks(events))]
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/kept_ranks_picture*.png"))


def test_other_methods_add_nothing_to_wandb(tmp_path: Path) -> None:
    sink = WandbSink(config(tmp_path, "offline"), resumes=False)
    sink.event(as_row(committed(0, ())))
    sink.round(metrics_row(0))
    sink.finish(SUMMARY)
    sink.close()
    records = [json.loads(line) for line in inspect(tmp_path / "wandb").splitlines()]
    assert sum(record["type"] == "history" for record in records) == 1
