"""Checkpoints as folders: whole or not there at all, and whatever is damaged is found. Knows tensors and JSON only.

`ROOT/round-00009/` holds `.safetensors` files and `manifest.json`, which has the sha256 of each of them and of itself.
A checkpoint is written under another name, brought to the disk, and renamed: what has its name is complete.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from parablock_ray.json_files import json_file

FORMAT = 1  # of the manifest; another one is refused

_MANIFEST = "manifest.json"
_UNFINISHED = ".unfinished"


class Damaged(ValueError):
    """A checkpoint that cannot be trusted: says which file, and what is wrong with it."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose hashes were right. `about`: what was told with it, plain JSON; `files`: those that it has."""

    folder: Path
    round: int
    about: Mapping[str, Any]
    files: frozenset[str]

    def tensors(self, file: str) -> dict[str, Tensor]:
        """What `write_tensors` was given for this file. Raises Damaged where it was given none."""
        if file not in self.files:
            raise Damaged(f"{self.folder / _MANIFEST} names no {file}")
        try:
            return load_file(self.folder / file)
        except (SafetensorError, OSError) as error:
            raise Damaged(f"{self.folder / file} holds no tensors: {error}") from None


def begin(root: Path, round: int) -> Path:
    """A new, empty folder in which to write the checkpoint of this round. Raises OSError."""
    folder = root / (_name(round) + _UNFINISHED)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def write_tensors(folder: Path, file: str, tensors: Mapping[str, Tensor]) -> str:
    """Write the tensors (on the CPU, contiguous, none sharing memory) through to the disk; the file's sha256. Raises
    OSError."""
    save_tensors(tensors, folder / file, None)
    sync(folder / file)
    return _sha256(folder / file)


def save_tensors(tensors: Mapping[str, Tensor], file: Path, metadata: dict[str, str] | None) -> None:
    """`safetensors.torch.save_file` that raises OSError as any other writer does."""
    try:
        save_file(dict(tensors), file, metadata)
    except SafetensorError as error:  # which is what it makes of an OSError
        raise OSError(f"{file.name}: {error}") from None


def complete(folder: Path, round: int, digests: Mapping[str, str], about: Mapping[str, Any]) -> Path:
    """Seal what was written in `folder`, which `begin` made; where it is from now on. `digests`: file → sha256."""
    content = {"format": FORMAT, "round": round, "files": dict(digests), "about": dict(about)}
    manifest = {"content": content, "sha256": _content_sha256(content)}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    sync(folder / _MANIFEST)
    sync(folder)
    final = folder.with_name(_name(round))
    shutil.rmtree(final, ignore_errors=True)  # of a run that was resumed from before it
    folder.rename(final)
    sync(final.parent)
    return final


def prune(root: Path, keep: int) -> None:
    """Delete all complete checkpoints but the last `keep`."""
    for folder in _folders(root)[keep:]:
        shutil.rmtree(folder, ignore_errors=True)


def discard_after(root: Path, round: int) -> None:
    """Delete all checkpoints of later rounds, damaged ones too."""
    for folder in _folders(root):
        if _round(folder) > round:
            shutil.rmtree(folder, ignore_errors=True)


def clear_unfinished(root: Path) -> None:
    """Delete what a run that ended in the middle of writing has left."""
    for folder in root.glob(f"*{_UNFINISHED}"):
        shutil.rmtree(folder, ignore_errors=True)


def read(folder: Path) -> Checkpoint:
    """Raises Damaged where a file is missing, or is not as it was written."""
    try:
        manifest = json_file(folder / _MANIFEST)
        content, digest = manifest["content"], manifest["sha256"]
        as_written = _content_sha256(content) == digest
    except FileNotFoundError:
        raise Damaged(f"{folder / _MANIFEST} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{folder / _MANIFEST} cannot be read: {error}") from None
    if not as_written:
        raise Damaged(f"{folder / _MANIFEST} is not as it was written (its sha256 is another one)")
    _check_form(content, folder)
    for file, expected in content["files"].items():
        if (folder / file).exists() and not (folder / file).is_file():  # a device would never come to its end
            raise Damaged(f"{folder / file} is no ordinary file")
        try:
            found = _sha256(folder / file)
        except OSError as error:
            raise Damaged(f"{folder / file} cannot be read: {error.strerror}") from None
        if found != expected:
            raise Damaged(f"{folder / file} is not as it was written (its sha256 is another one)")
    return Checkpoint(folder, content["round"], content["about"], frozenset(content["files"]))


def _check_form(content: Any, folder: Path) -> None:
    """Raises Damaged for what `complete` does not write, whatever its hash. No file outside of the folder is read."""
    manifest = folder / _MANIFEST
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise Damaged(f"{manifest} has format {found}; this version reads format {FORMAT}")
    round, files = content.get("round"), content.get("files")
    if type(round) is not int or _name(round) != folder.name:
        raise Damaged(f"{manifest} is of round {round}, which is not that of its folder")
    if not isinstance(files, dict) or not isinstance(content.get("about"), dict):
        raise Damaged(f"{manifest} lacks its `files` or its `about`")
    for file in files:
        if Path(file).name != file or file in ("", "..") or "\0" in file:
            raise Damaged(f"{manifest} names {file!r}, which is no file in its folder")


def newest(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The last checkpoint that is whole, None where there is none; and what is wrong with those after it."""
    wrong: list[str] = []
    for folder in _folders(root):
        try:
            return read(folder), wrong
        except Damaged as error:
            wrong.append(str(error))
    return None, wrong


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _name(round: int) -> str:
    return f"round-{round:05}"


def _folders(root: Path) -> list[Path]:
    """Complete checkpoints, the last round first."""
    found = [folder for folder in root.glob("round-*") if folder.name.removeprefix("round-").isdecimal()]
    return sorted(found, key=_round, reverse=True)


def _round(folder: Path) -> int:
    return int(folder.name.removeprefix("round-"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content_sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
