"""Checkpoints on the disk: what was written comes back, and whatever happened to it is found."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parablock_ray.checkpoint import (
    Damaged,
    begin,
    clear_unfinished,
    complete,
    newest,
    prune,
    read,
    write_tensors,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64)


def write(root: Path, round: int) -> Path:
    folder = begin(root, round)
    digests = {
        "state.safetensors": write_tensors(folder, "state.safetensors", {"x": torch.full((5,), float(round))}),
        "uploads.safetensors": write_tensors(folder, "uploads.safetensors", {}),
    }
    return complete(folder, round, digests, {"num_events": 7, "loss_before": 0.1})


def rounds(root: Path) -> list[str]:
    return sorted(folder.name for folder in root.iterdir())


@given(
    shapes=st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20).filter(
            lambda name: name != "__metadata__"
        ),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)),
        max_size=5,
    ),
    about=st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False) | st.integers() | st.text(max_size=5)),
)
def test_what_was_written_comes_back(shapes, about):
    tensors = {
        name: torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
        for name, (dtype, shape) in shapes.items()
    }
    with tempfile.TemporaryDirectory() as root:
        folder = begin(Path(root), 3)
        digest = write_tensors(folder, "state.safetensors", tensors)
        found = read(complete(folder, 3, {"state.safetensors": digest}, about))
        assert (found.round, found.about) == (3, about)
        back = found.tensors("state.safetensors")
        assert back.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(back[name], tensor)


def test_there_is_nothing_by_that_name_before_it_is_complete(tmp_path):
    write(tmp_path, 1)
    folder = begin(tmp_path, 3)
    write_tensors(folder, "state.safetensors", {"x": torch.ones(3)})
    checkpoint, wrong = newest(tmp_path)
    assert checkpoint is not None
    assert (checkpoint.round, wrong) == (1, [])
    clear_unfinished(tmp_path)
    assert rounds(tmp_path) == ["round-00001"]


def test_a_leftover_is_written_anew(tmp_path):
    (begin(tmp_path, 3) / "old").touch()
    assert read(write(tmp_path, 3)).round == 3
    assert rounds(tmp_path) == ["round-00003"]
    assert not (tmp_path / "round-00003" / "old").exists()


def test_the_last_ones_are_kept(tmp_path):
    for round in (9, 99999, 100000, 4):
        write(tmp_path, round)
    prune(tmp_path, 2)
    assert rounds(tmp_path) == ["round-100000", "round-99999"]


def test_no_folder_no_checkpoint(tmp_path):
    assert newest(tmp_path / "checkpoints") == (None, [])


FILES = ("manifest.json", "state.safetensors", "uploads.safetensors")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", ["cut", "gone", "longer", "empty"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_it_used(tmp_path, file, harm):
    write(tmp_path, 1)
    victim = write(tmp_path, 3) / file
    whole = victim.read_bytes()
    if harm == "gone":
        victim.unlink()
    else:
        victim.write_bytes({"cut": whole[:-3], "longer": whole + b"x", "empty": b""}[harm])
    checkpoint, [wrong] = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.round == 1
    assert wrong.startswith(str(victim))


@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), file=st.sampled_from(FILES))
def test_a_flipped_bit_is_found_wherever_it_is(where, bit, file):
    with tempfile.TemporaryDirectory() as root:
        folder = write(Path(root), 3)
        content = bytearray((folder / file).read_bytes())
        content[int(where * len(content))] ^= 1 << bit
        (folder / file).write_bytes(content)
        try:
            found = read(folder)
        except Damaged:
            return
        assert file == "manifest.json", "only between its values may something differ"
        assert (found.round, found.about) == (3, {"num_events": 7, "loss_before": 0.1})


def test_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("parablock_ray.checkpoint.FORMAT", 2)
    folder = write(tmp_path, 3)
    monkeypatch.undo()
    with pytest.raises(Damaged, match="has format 2; this version reads format 1"):
        read(folder)


def test_all_of_them_damaged(tmp_path):
    for round in (1, 3):
        (write(tmp_path, round) / "manifest.json").write_text(json.dumps([]))
    checkpoint, wrong = newest(tmp_path)
    assert checkpoint is None
    assert len(wrong) == 2
