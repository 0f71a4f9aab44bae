"""TensorBoard's event files say what metrics.jsonl says."""

import io
import json
import struct
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from parablock_ray.config import Config
from parablock_ray.errors import UserError
from parablock_ray.tracking.sinks import open_sinks
from tests.tracking.test_sinks import FIGURES, RESULTS, SUMMARY, config, metrics_row

pytest.importorskip("tensorboardX")


def tracked(out: Path, **tracking: Any) -> Config:
    plain = config(out, "off").model_dump()
    return Config.model_validate(plain | {"tracking": {"wandb": "off", "tensorboard": True, **tracking}})


def records(file: Path) -> Iterator[bytes]:
    """The records of a TFRecord file: each is its length (8 bytes), a checksum (4), itself, a checksum (4)."""
    content, at = file.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        yield content[at + 12 : at + 12 + length]
        at += length + 16


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Tag → step → value."""
    from tensorboardX.proto.event_pb2 import Event

    found: defaultdict[str, dict[int, float]] = defaultdict(dict)
    [file] = folder.iterdir()
    for record in records(file):
        event = Event.FromString(record)
        for value in event.summary.value:
            found[value.tag][event.step] = value.simple_value
    return found


def test_event_files_read_back_as_metrics_jsonl(tmp_path: Path) -> None:
    for sink in open_sinks(tracked(tmp_path), Console(file=io.StringIO()), resumes=False):
        for round in range(3):
            sink.round(metrics_row(round))
        sink.finish(SUMMARY)
        sink.close()
    found = scalars(tmp_path / "tensorboard")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    by_round = {tag: values for tag, values in found.items() if not tag.startswith("summary/")}
    assert by_round.keys() == rows[0].keys() - {"round"}
    for tag, values in by_round.items():
        assert values == pytest.approx({row["round"]: row[tag] for row in rows})
    assert found["summary/loss_after"] == {3: 1.0}
    assert "summary/method" not in found


def test_evaluations_are_scalars_at_their_round(tmp_path: Path) -> None:
    for sink in open_sinks(tracked(tmp_path), Console(file=io.StringIO()), resumes=False):
        sink.evaluation({"round": 1, "results": RESULTS})
        sink.finish(SUMMARY)
        sink.final_evaluation(RESULTS)
        sink.close()
    found = scalars(tmp_path / "tensorboard")
    for tag, value in FIGURES.items():
        assert (found[tag], found[f"summary/{tag}"]) == ({1: value}, {3: value})


def test_without_the_package_a_run_does_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    how = r"tracking\.tensorboard: needs the package tensorboardX; pip install 'parablock-ray\[tensorboard\]', or set"
    with pytest.raises(UserError, match=how):
        open_sinks(tracked(tmp_path), Console(file=io.StringIO()), resumes=False)
    assert list(tmp_path.iterdir()) == []
