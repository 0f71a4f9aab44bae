"""From a run's events to one metrics row a round."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel, NonNegativeInt, ValidationError

from parablock_ray.tracking.events import Committed, Event, KeptRank, Phase, Span

_TIMED: tuple[Phase, ...] = ("compute", "upload", "download", "wait")


class _Row(BaseModel):
    """What readers of `metrics.jsonl` need of a row."""

    round: NonNegativeInt
    loss: float
    seconds: float
    bytes_up: NonNegativeInt
    bytes_down: NonNegativeInt
    bytes_catch_up: NonNegativeInt


def checked_round(row: Any) -> dict[str, Any]:
    """A row of `metrics.jsonl` as it stands. Raises ValueError for what is none."""
    try:
        _Row.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    checked: dict[str, Any] = row
    return checked


class RoundBook:
    """Gathers events in any order and hands out the rows of `metrics.jsonl` in round order.

    A row is finished when its round is committed and the download of every participant, and of those whose update was
    refused, has arrived. Every other
    span of a client's round must have been told before its download, or it would be missing from the row.
    """

    def __init__(self, num_rounds: int) -> None:
        self._num_rounds = num_rounds
        self._next_round = 0
        self._spans: defaultdict[int, list[Span]] = defaultdict(list)
        self._commits: dict[int, Committed] = {}
        self._downloaded: defaultdict[int, set[int]] = defaultdict(set)  # round → clients whose download is in
        self._row_start_s = 0.0
        self._last_download_s = 0.0

    @property
    def num_complete(self) -> int:
        """So many rounds, from the first, are over for all their participants."""
        return self._next_round

    def add(self, event: Event) -> list[dict[str, Any]]:
        """The rows that `event` finishes: usually none or one, more where rounds ended out of order."""
        if isinstance(event, Committed):
            self._commits[event.round] = event
        elif isinstance(event, Span):
            assert event.round >= self._next_round, f"told after its round's row was written: {event}"
            self._spans[event.round].append(event)
            if event.phase == "download":
                self._downloaded[event.round].add(event.client)
                self._last_download_s = max(self._last_download_s, event.end_s)
        return list(self._finished_rows())

    def _finished_rows(self) -> Iterator[dict[str, Any]]:
        while (commit := self._commits.get(self._next_round)) and self._all_downloaded(commit):
            yield self._row(commit)
            self._next_round += 1

    def _all_downloaded(self, commit: Committed) -> bool:
        return self._downloaded[commit.round].issuperset(commit.participants + commit.refused)

    def _row(self, commit: Committed) -> dict[str, Any]:
        del self._commits[commit.round], self._downloaded[commit.round]
        spans = self._spans.pop(commit.round)
        end_s = self._last_download_s if commit.round == self._num_rounds - 1 else commit.time_s
        seconds, self._row_start_s = end_s - self._row_start_s, end_s
        return {
            "round": commit.round,
            "block": commit.block,
            "loss": _weighted_loss(spans, commit),
            "seconds": seconds,
            **_phase_seconds(spans, commit.participants),
            "bytes_up": _payload_bytes(spans, "upload"),
            "bytes_down": _payload_bytes(spans, "download"),
            "bytes_catch_up": _payload_bytes(spans, "catch_up"),
            "num_participants": len(commit.participants),
            "num_refused": len(commit.refused),
            "num_examples": commit.num_examples,
            "server_s": commit.server_s,
            **_kept(commit.kept_ranks),
        }


def _kept(ranks: tuple[KeptRank, ...]) -> dict[str, float]:
    """Of methods that cut: what travels down, in all modules together, and how much of the update that is."""
    if not ranks:
        return {}
    return {
        "kept_rank_sum": sum(each.rank for each in ranks),
        "kept_rank_max": max(each.rank for each in ranks),
        "kept_energy": sum(each.kept_energy for each in ranks) / len(ranks),
    }


def _weighted_loss(spans: Iterable[Span], commit: Committed) -> float:
    losses = {span.client: span.loss for span in spans if span.loss is not None}
    if not any(commit.weights):  # of a private round for which nobody was drawn, and somebody trained all the same
        return sum(losses[client] for client in commit.participants) / len(commit.participants)
    weighted = sum(n * losses[client] for client, n in zip(commit.participants, commit.weights, strict=True))
    return weighted / sum(commit.weights)


def _phase_seconds(spans: Iterable[Span], participants: tuple[int, ...]) -> dict[str, float]:
    """`<phase>_s`, the mean over participants of their seconds in that phase, and `<phase>_s_max`."""
    seconds = {phase: dict.fromkeys(participants, 0.0) for phase in _TIMED}
    for span in spans:
        if span.phase in seconds and span.client in seconds[span.phase]:
            seconds[span.phase][span.client] += span.end_s - span.start_s
    row = {}
    for phase, by_client in seconds.items():
        row[f"{phase}_s"] = sum(by_client.values()) / len(by_client)
        row[f"{phase}_s_max"] = max(by_client.values())
    return row


def _payload_bytes(spans: Iterable[Span], phase: Phase) -> int:
    return sum(span.num_bytes for span in spans if span.phase == phase)
