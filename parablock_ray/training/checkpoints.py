"""What the server writes down beside the rounds, and when.

The checkpoint of round t, of a method with staleness s, holds

    state      the server as it was after round t − s: just what round t + 1 reads
    uploads    what every client sent in the s rounds after that, up to t

Played back, the uploads lead to x^{(≤ t)}, the server optimizer's state and every version between, in the same bits;
and they are what is pending at the clients.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parablock_ray import checkpoint
from parablock_ray.config import Config
from parablock_ray.errors import RunFailed, UserError

FOLDER = "checkpoints"  # in the run folder
_STATE, _UPLOADS = "state.safetensors", "uploads.safetensors"


@dataclass
class _Begun:
    """A checkpoint whose files are being written. Used in the thread, but for `jobs`."""

    folder: Path
    digests: dict[str, str] = field(default_factory=dict)
    jobs: list[Future[None]] = field(default_factory=list)


class CheckpointWriter:
    """Writes the checkpoints of a run in a thread of its own, from copies that it is given as rounds commit.

    Not complete before `complete` says so: then what the driver wrote of the same rounds is on the disk too.
    """

    def __init__(self, run_folder: Path, config: Config) -> None:
        self._root = run_folder / FOLDER
        self._config = config.checkpoint
        self._staleness, self._num_rounds = config.method.staleness, config.method.rounds
        self._first = 0  # no checkpoint of an earlier round
        self._also: int | None = None  # a round with a checkpoint beside those that are due
        self._uploads: defaultdict[tuple[int, int], dict[int, Tensor]] = defaultdict(dict)  # (round, client) → chunks
        self._begun: dict[int, _Begun] = {}  # by the checkpoint's round
        self._thread = ThreadPoolExecutor(1)

    def resume_after(self, round: int) -> None:
        """There is a checkpoint of this round: the next one is of a later one."""
        self._first = round + 1

    def also_at(self, round: int) -> None:
        """Write a checkpoint of this round too: before any of the rounds from `staleness` before it on."""
        self._also = round

    def upload(self, round: int, client: int, chunk: int, values: Tensor) -> None:
        """Keep what a client sent for as long as a checkpoint needs it. The values must not change any more."""
        if self._is_needed(round, self._first):
            self._uploads[round, client][chunk] = values

    def discard(self, round: int, client: int) -> None:
        """What this client sent is of no use."""
        self._uploads.pop((round, client), None)

    def committed(self, round: int, state: Callable[[], dict[str, Tensor]]) -> None:
        """This round is part of the model; `state()` is a copy of the server as it now is."""
        if self._is_due(round + self._staleness):
            self._begin(round + self._staleness, state())
        if self._is_due(round):
            if round < self._staleness:
                self._begin(round, {})  # round t + 1 reads the initial model
            chunks = {key: each for key, each in self._uploads.items() if round - self._staleness < key[0] <= round}
            self._write(round, _UPLOADS, lambda: {_key(*key): _joined(each) for key, each in chunks.items()})
        for key in [key for key in self._uploads if not self._is_needed(key[0], round + 1)]:
            del self._uploads[key]

    def complete(self, round: int, about: Mapping[str, Any]) -> "Future[None]":
        """The checkpoint of this round may be used, once its files are written. Raises RunFailed, in the future."""
        return self._thread.submit(self._seal, round, self._begun.pop(round), about)

    def _is_due(self, round: int) -> bool:
        return self._first <= round < self._num_rounds and (round == self._also or self._config.is_due(round))

    def _is_needed(self, round: int, first: int) -> bool:
        """Whether a checkpoint of round `first` or later holds this round's uploads."""
        return any(self._is_due(each) for each in range(max(round, first), round + self._staleness))

    def _begin(self, round: int, state: dict[str, Tensor]) -> None:
        wait([job for begun in self._begun.values() for job in begun.jobs])  # a slow disk must not fill the memory
        self._begun[round] = _Begun(self._root)
        self._begun[round].jobs.append(self._thread.submit(self._make_folder, round, self._begun[round]))
        self._write(round, _STATE, lambda: state)

    def _write(self, round: int, file: str, tensors: Callable[[], dict[str, Tensor]]) -> None:
        begun = self._begun[round]

        def job() -> None:
            begun.digests[file] = checkpoint.write_tensors(begun.folder, file, tensors())

        begun.jobs.append(self._thread.submit(job))

    def _make_folder(self, round: int, begun: _Begun) -> None:
        begun.folder = checkpoint.begin(self._root, round)

    def _seal(self, round: int, begun: _Begun, about: Mapping[str, Any]) -> None:
        try:
            for job in begun.jobs:
                job.result()
            checkpoint.complete(begun.folder, round, begun.digests, about)
        except OSError as error:
            checkpoint.clear_unfinished(self._root)  # whatever it holds is room
            raise RunFailed(
                f"the checkpoint of round {round} cannot be written to {self._root}: {error.strerror or error}; "
                "make room, then parablock resume"
            ) from None
        checkpoint.prune(self._root, self._config.keep)


@dataclass(frozen=True)
class Restored:
    """What a checkpoint holds: the server's state (None: the initial model), and uploads by (round, client)."""

    num_rounds: int  # that are in the state
    state: Mapping[str, Tensor] | None
    uploads: Mapping[tuple[int, int], Tensor]


def restored(saved: checkpoint.Checkpoint, staleness: int) -> Restored:
    """Read a checkpoint of a run with this staleness. Raises UserError for one that holds something else."""
    num_rounds = max(0, saved.round + 1 - staleness)
    try:
        uploads = {_round_and_client(key): upload for key, upload in saved.tensors(_UPLOADS).items()}
        return Restored(num_rounds, saved.tensors(_STATE) if num_rounds else None, uploads)
    except (checkpoint.Damaged, ValueError) as error:
        raise unusable(saved, str(error)) from None


def unusable(saved: checkpoint.Checkpoint, why: str) -> UserError:
    """What to say of a checkpoint that is whole, but not of this run."""
    return UserError(f"{saved.folder}: {why}; delete this checkpoint, and resume from another one")


def _key(round: int, client: int) -> str:
    return f"{round}.{client}"


def _round_and_client(key: str) -> tuple[int, int]:
    round, client = key.split(".")
    return int(round), int(client)


def _joined(chunks: Mapping[int, Tensor]) -> Tensor:
    return torch.cat([chunks[index] for index in range(len(chunks))])
