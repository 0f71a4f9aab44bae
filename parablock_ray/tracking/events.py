"""What a run tells while it goes on. Times are seconds since the run's clock started (setup not counted)."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Phase = Literal["compute", "upload", "download", "catch_up", "wait"]
Why = Literal["late", "refused", "lost"]


@dataclass(frozen=True)
class Span:
    """One client busy with one phase of one round."""

    phase: Phase
    round: int
    block: int
    client: int
    worker: int
    start_s: float
    end_s: float
    num_bytes: int = 0  # payload; 0 where nothing travels
    loss: float | None = None  # mean training loss of the visit; compute spans only


@dataclass(frozen=True)
class KeptRank:
    """What a LoRA rule that cuts kept of one module: singular values descend, energy is a share of their squares."""

    module: str
    rank: int
    kept_energy: float
    singular_values: tuple[float, ...]


@dataclass(frozen=True)
class Committed:
    """The server made round `round`'s aggregate part of the model. `participants` in fold order."""

    round: int
    block: int
    time_s: float
    participants: tuple[int, ...]
    weights: tuple[float, ...]  # in the same order, before normalisation
    num_examples: int  # that they hold together in this round
    update_norm: float  # L2 norm of the server's step G_t
    server_s: float  # seconds for which the server computed for this round
    kept_ranks: tuple[KeptRank, ...] = ()  # by module, of methods that cut
    refused: tuple[int, ...] = ()  # of whom an update came that was refused, in fold order
    unclipped: float | None = None  # of a private round whose clip moves: the noised share that was not cut


@dataclass(frozen=True)
class Dropped:
    """A client has no part in a round for which it was planned. All of them are the run's participation log."""

    round: int
    client: int
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


def from_row(row: dict[str, Any]) -> Event:
    """The event that `as_row` made this of."""
    fields: dict[str, Any] = {key: value for key, value in row.items() if key != "event"}
    if row["event"] == "span":
        return Span(**fields)
    if row["event"] == "dropped":
        return Dropped(**fields)
    kept = (KeptRank(**each | {"singular_values": tuple(each["singular_values"])}) for each in row["kept_ranks"])
    lists = {key: tuple(row.get(key, ())) for key in ("participants", "weights", "refused")}
    return Committed(**fields | lists | {"kept_ranks": tuple(kept)})
