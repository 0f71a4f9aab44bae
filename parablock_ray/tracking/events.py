"""What a run tells while it goes on. Times are seconds since the run's clock started (setup not counted)."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from parablock_ray.json_files import from_json, lines

_Count = Annotated[int, Field(ge=0)]
_CLOSED = ConfigDict(extra="forbid")  # how pydantic reads the rows of these dataclasses

Phase = Literal["compute", "upload", "download", "catch_up", "wait"]
Why = Literal["late", "refused", "lost"]


@dataclass(frozen=True)
class Span:
    """One client busy with one phase of one round."""

    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED

    phase: Phase
    round: _Count
    block: _Count
    client: _Count
    worker: _Count
    start_s: float
    end_s: float
    num_bytes: _Count = 0  # payload; 0 where nothing travels
    loss: float | None = None  # mean training loss of the visit; compute spans only


@dataclass(frozen=True)
class KeptRank:
    """What a LoRA rule that cuts kept of one module: singular values descend, energy is a share of their squares."""

    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED

    module: str
    rank: _Count
    kept_energy: float
    singular_values: tuple[float, ...]


@dataclass(frozen=True)
class Committed:
    """The server made round `round`'s aggregate part of the model. `participants` in fold order."""

    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED

    round: _Count
    block: _Count
    time_s: float
    participants: tuple[_Count, ...]
    weights: tuple[float, ...]  # in the same order, before normalisation
    num_examples: _Count  # that they hold together in this round
    update_norm: float  # L2 norm of the server's step G_t
    server_s: float  # seconds for which the server computed for this round
    kept_ranks: tuple[KeptRank, ...] = ()  # by module, of methods that cut
    refused: tuple[_Count, ...] = ()  # of whom an update came that was refused, in fold order
    unclipped: float | None = None  # of a private round whose clip moves: the noised share that was not cut


@dataclass(frozen=True)
class Dropped:
    """A client has no part in a round for which it was planned. All of them are the run's participation log."""

    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED

    round: _Count
    client: _Count
    why: Why  # late: after the deadline; refused: its training failed, or its update is no good; lost: its process died
    detail: str  # for people
    has_sent: bool = (
        False  # it trained, and the server refused what it sent: that is pending at it as if it had not been
    )


Event = Span | Committed | Dropped


def as_row(event: Event) -> dict[str, Any]:
    """A flat dict for `events.jsonl`; `event` names the kind."""
    if isinstance(event, Committed):
        return {"event": "committed", **asdict(event)}
    return {"event": type(event).__name__.lower(), **vars(event)}  # there are many, and `asdict` copies every value


_KINDS: dict[str, TypeAdapter[Any]] = {kind.__name__.lower(): TypeAdapter(kind) for kind in (Span, Committed, Dropped)}


def from_row(row: Any) -> Event:
    """The event that `as_row` made this of. Raises ValueError for what is none."""
    name = row.get("event") if isinstance(row, dict) else None
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(f"no event, which has `event`: {', '.join(_KINDS)}")
    try:
        event: Event = kind.validate_python({key: value for key, value in row.items() if key != "event"})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return event


def read_events(path: Path) -> Iterator[Event]:
    """What an `events.jsonl` tells. Raises OSError, ValueError that says which line is wrong."""
    for number, line in lines(path):
        try:
            yield from_row(from_json(line))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
