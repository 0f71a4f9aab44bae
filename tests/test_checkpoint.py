"""Checkpoints on the disk: what was written comes back, and whatever happened to it is found."""

import hashlib
import json
import re
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
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


@settings(deadline=None)
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


@settings(deadline=None)
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


def sealed(folder: Path, content: object) -> None:
    """A manifest whose hash is right, whatever it says."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({"content": content, "sha256": digest}))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"files": {"../secret": "0" * 64}}, "names '../secret', which is no file in its folder"),
        ({"files": {"/dev/zero": "0" * 64}}, "names '/dev/zero', which is no file in its folder"),
        ({"files": {"": "0" * 64}}, "names '', which is no file in its folder"),
        ({"files": {"..": "0" * 64}}, "names '..', which is no file in its folder"),
        ({"files": []}, "lacks its `files` or its `about`"),
        ({"about": None}, "lacks its `files` or its `about`"),
        ({"round": 4}, "is of round 4, which is not that of its folder"),
        ({"round": "3"}, "is of round 3, which is not that of its folder"),
        ({"format": None}, "has format None; this version reads format 1"),
    ],
    ids=str,
)
def test_a_manifest_with_the_right_hash_may_still_be_none(tmp_path, changed, why):
    folder = write(tmp_path, 3)
    content = json.loads((folder / "manifest.json").read_text())["content"]
    sealed(folder, content | changed)
    with pytest.raises(Damaged, match=re.escape(why)):
        read(folder)


def test_a_device_in_a_file_s_place_is_not_read(tmp_path):
    folder = write(tmp_path, 3)
    (folder / "state.safetensors").unlink()
    (folder / "state.safetensors").symlink_to("/dev/zero")  # without an end
    with pytest.raises(Damaged, match=r"state\.safetensors is no ordinary file"):
        read(folder)


def test_files_that_the_manifest_does_not_name_are_not_read(tmp_path):
    folder = write(tmp_path, 3)
    content = json.loads((folder / "manifest.json").read_text())["content"]
    del content["files"]["uploads.safetensors"]
    sealed(folder, content)
    with pytest.raises(Damaged, match=r"names no uploads\.safetensors"):
        read(folder).tensors("uploads.safetensors")


@pytest.mark.parametrize("header", [b"\xff" * 8, (2**62).to_bytes(8, "little"), (2).to_bytes(8, "little") + b"[]", b""])
def test_a_file_with_the_right_hash_and_an_absurd_header_holds_no_tensors(tmp_path, header):
    folder = write(tmp_path, 3)
    (folder / "state.safetensors").write_bytes(header)
    content = json.loads((folder / "manifest.json").read_text())["content"]
    content["files"]["state.safetensors"] = hashlib.sha256(header).hexdigest()
    sealed(folder, content)
    with pytest.raises(Damaged, match=r"state\.safetensors holds no tensors: "):
        read(folder).tensors("state.safetensors")
