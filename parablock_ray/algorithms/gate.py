"""What stands between the clients and the server's half: every update is checked before it touches the model.

Form: it belongs to an open round and to a client of it, is of that round's block, and has that block's chunks, in the
wire dtype, each once. Value: finite, and its norm within bounds (`server.max_norm`, `server.max_norm_over_median`).
What is refused stays out of the round's aggregate; docs/trust.md says what becomes of its client.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from parablock_ray.algorithms.aggregate import l2_norm
from parablock_ray.algorithms.base import RoundPlan, Sent
from parablock_ray.algorithms.wire import Wire
from parablock_ray.config.server import ServerConfig


@dataclass(frozen=True)
class Passed:
    """What came is sound. `chunks`, by index, may go on to the server now: none while it waits for others."""

    chunks: Mapping[int, Tensor]


@dataclass(frozen=True)
class Refused:
    """The client has no part in the round from here on. `is_news`: nobody knew; else the plan had it.

    `is_sound`: all of it came, of the right form and finite, so that it can be kept as what is pending at its client.
    """

    why: str
    is_news: bool
    is_sound: bool


@dataclass(frozen=True)
class Ignored:
    """It changes nothing. `why`: for people; None where it was to be expected, of a client that was refused already."""

    why: str | None


@dataclass
class _Upload:
    """One client's upload of one round, as far as it is here. `held`: chunks that did not go on yet."""

    num_params: int
    bounds: list[tuple[int, int]]
    arrived: set[int] = field(default_factory=set)
    held: dict[int, Tensor] = field(default_factory=dict)
    is_over: bool = False  # it was refused, or is whole

    @property
    def is_whole(self) -> bool:
        return len(self.arrived) == len(self.bounds)


@dataclass(frozen=True)
class _Round:
    plan: RoundPlan
    largest: float  # with larger numbers a weighted sum of the round could overflow
    uploads: dict[int, _Upload]  # by client


class Gate:
    """Checks what comes in, and keeps the norms that the median is taken over.

    `by_chunk`: a chunk goes on as soon as it is found sound (cut-through); else a client's go on together, once all are
    there and their norm is known. `dtype`: in which the server sums.
    """

    def __init__(self, config: ServerConfig, staleness: int, wire: Wire, by_chunk: bool, dtype: torch.dtype) -> None:
        self._config = config
        self._staleness = staleness
        self._wire = wire
        self._by_chunk = by_chunk
        self._largest_sum = torch.finfo(dtype).max
        self._num_committed = 0
        self._rounds: dict[int, _Round] = {}  # open ones, and a few before: of somebody refused more may still come
        self._sizes: dict[int, list[float]] = {}  # round → of those that passed: RMS of their numbers

    def open(self, plan: RoundPlan, num_params: Mapping[int, int]) -> None:
        """Expect this round's updates. `num_params`: client → of its upload."""
        bounds = {num: self._wire.bounds(num) for num in set(num_params.values())}
        uploads = {client: _Upload(num, bounds[num]) for client, num in num_params.items()}
        largest = self._largest_sum / max(1, sum(visit.weight for visit in plan.visits))
        self._rounds[plan.round] = _Round(plan, largest, uploads)

    def num_chunks(self, round: int) -> dict[int, int]:
        """By client, of its upload in this round, which is open."""
        return {client: len(upload.bounds) for client, upload in self._rounds[round].uploads.items()}

    def drop(self, round: int, client: int) -> None:
        """This client, which has sent nothing of the round, will not."""
        self._rounds[round].uploads.pop(client)

    def admit(self, sent: Sent, values: Tensor | None) -> Passed | Refused | Ignored:
        """What to do with one chunk of an update. None: its payload was no vector of the wire dtype.

        Never raises, whatever came, and keeps nothing of what it does not pass or hold.
        """
        if not all(type(number) is int for number in (sent.round, sent.block, sent.client, sent.chunk)):
            return Ignored(f"something came whose heading is no round, block, client and chunk: {sent!r:.200}")
        current = self._rounds.get(sent.round)
        if current is None:
            return Ignored(f"client {sent.client} sent something of round {sent.round}, which is not open")
        upload = current.uploads.get(sent.client)
        if upload is None:
            return Ignored(f"client {sent.client}, which is not of round {sent.round}, sent something of it")
        if upload.is_over:
            late = f"client {sent.client} sent chunk {sent.chunk} of round {sent.round} again, all of which had come"
            return Ignored(late if upload.is_whole else None)
        is_known = sent.client in current.plan.refused
        wrong = self._wrong(sent, values, current, upload)
        if wrong is not None:
            upload.is_over = True
            upload.held.clear()
            return Refused(wrong, is_news=not is_known, is_sound=False)
        assert values is not None
        upload.arrived.add(sent.chunk)
        upload.is_over = upload.is_whole
        if self._by_chunk and not is_known:
            return Passed({sent.chunk: values})
        upload.held[sent.chunk] = values
        if not upload.is_whole:
            return Passed({})
        chunks, upload.held = dict(sorted(upload.held.items())), {}
        too_large = "as the log of participation has it" if is_known else self._too_large(sent.round, upload, chunks)
        return Passed(chunks) if too_large is None else Refused(too_large, is_news=not is_known, is_sound=True)

    def committed(self, round: int) -> None:
        """This round is part of the model: later rounds may be judged by it."""
        self._num_committed = round + 1
        for each in [each for each in list(self._rounds) if each < round - self._staleness]:
            del self._rounds[each]
        for each in [each for each in self._sizes if each <= round - self._staleness - self._config.median_rounds]:
            del self._sizes[each]

    def state(self) -> dict[str, Tensor]:
        """What the median of later rounds needs of those that are committed. To be asked right after a commit."""
        return {
            f"sizes.{round}": torch.tensor(sizes, dtype=torch.float64)
            for round, sizes in self._sizes.items()
            if round < self._num_committed
        }

    def restore(self, num_rounds: int, state: Mapping[str, Tensor]) -> None:
        """On a new gate: become the one that gave `state` after so many rounds. Other keys are not its own."""
        self._num_committed = num_rounds
        names = [name for name in state if name.startswith("sizes.")]
        self._sizes = {int(name.removeprefix("sizes.")): state[name].tolist() for name in names}

    def _wrong(self, sent: Sent, values: Tensor | None, current: _Round, upload: _Upload) -> str | None:
        """What is wrong with this chunk; None: it is sound."""
        plan, num_chunks = current.plan, len(upload.bounds)
        if sent.block != plan.block:
            return f"it is of block {sent.block}; round {plan.round} is for block {plan.block}"
        if plan.reads >= self._num_committed:
            return f"it came before round {plan.reads}, which it is to start from, was part of the model"
        if not 0 <= sent.chunk < num_chunks:
            return f"it has a chunk {sent.chunk}; allowed: 0 to {num_chunks - 1}"
        if sent.chunk in upload.arrived:
            return f"chunk {sent.chunk} came twice"
        if values is None or values.ndim != 1 or values.dtype != self._wire.dtype or values.layout != torch.strided:
            found = "no vector of numbers" if values is None else f"{values.dtype} of shape {tuple(values.shape)}"
            return f"chunk {sent.chunk} is {found}; allowed: a vector of {self._wire.dtype}"
        start, end = upload.bounds[sent.chunk]
        if len(values) != end - start:
            return f"chunk {sent.chunk} has {len(values)} numbers; allowed: {end - start}"
        extremes = torch.stack(torch.aminmax(values)).to(torch.float64).abs()  # NaN if any is
        if not extremes.isfinite().all():
            return f"chunk {sent.chunk} of {num_chunks} is not finite"
        if float(extremes.max()) > current.largest:
            return f"chunk {sent.chunk} of {num_chunks} holds {float(extremes.max()):.3g}, which would overflow the sum"
        return None

    def _too_large(self, round: int, upload: _Upload, chunks: Mapping[int, Tensor]) -> str | None:
        """Why the norm of a whole update is not allowed; None: it is. Then the median of later rounds knows it."""
        if self._config.max_norm is None and self._config.max_norm_over_median is None:
            return None
        norm = l2_norm(chunks.values())
        if self._config.max_norm is not None and norm > self._config.max_norm:
            return f"its norm is {norm:.4g}; server.max_norm is {self._config.max_norm:g}"
        if self._config.max_norm_over_median is None:
            return None
        size, usual = norm / math.sqrt(upload.num_params), self._usual_size(round)
        if usual is not None and size > self._config.max_norm_over_median * usual:
            return (
                f"its numbers are {size / usual:.4g} times as large as the median update's of the rounds before; "
                f"server.max_norm_over_median is {self._config.max_norm_over_median:g}"
            )
        self._sizes.setdefault(round, []).append(size)
        return None

    def _usual_size(self, round: int) -> float | None:
        """The median over the updates of the last rounds that this one reads: so it is the same whatever arrives when.
        None: there were none yet, or they are all zero."""
        last = round - 1 - self._staleness
        rounds = range(last + 1 - self._config.median_rounds, last + 1)
        known = [size for each in rounds for size in self._sizes.get(each, [])]
        return (statistics.median(known) or None) if known else None
