"""Rows from hand-made events whose figures are known."""

import dataclasses
import itertools
import random
import re
from typing import Any

import pytest

from parablock_ray.tracking.events import Committed, Event, KeptRank, Phase, Span, as_row, from_row
from parablock_ray.tracking.rounds import RoundBook


def span(
    phase: Phase, round: int, client: int, start_s: float, end_s: float, num_bytes: int = 0, loss: float | None = None
) -> Span:
    return Span(phase, round, round % 2, client, client, start_s, end_s, num_bytes, loss)


def commit(round: int, time_s: float) -> Committed:
    return Committed(round, round % 2, time_s, (1, 0), (3.0, 1.0), num_examples=4, update_norm=1.0, server_s=0.25)


def overlapped_run() -> list[Event]:
    """Two clients, three rounds; the exchange of a round runs under the compute of the next."""
    return [
        span("compute", 0, 0, 0.0, 1.0, loss=4.0),
        span("compute", 0, 1, 0.0, 2.0, loss=2.0),
        span("upload", 0, 0, 1.0, 1.5, 100),
        span("upload", 0, 1, 2.0, 2.5, 100),
        commit(0, 2.5),
        span("compute", 1, 0, 1.0, 2.0, loss=3.0),
        span("compute", 1, 1, 2.0, 4.0, loss=1.0),
        span("download", 0, 0, 2.5, 3.0, 50),
        span("download", 0, 1, 2.5, 3.5, 50),
        span("upload", 1, 0, 3.0, 3.5, 100),
        span("upload", 1, 1, 4.0, 4.5, 100),
        commit(1, 4.5),
        span("catch_up", 2, 0, 3.0, 3.25, 50),
        span("wait", 2, 0, 2.0, 2.5),
        span("wait", 2, 0, 2.75, 3.25),
        span("compute", 2, 0, 3.25, 4.25, loss=1.0),
        span("compute", 2, 1, 4.0, 6.0, loss=1.0),
        span("download", 1, 0, 4.5, 5.0, 50),
        span("download", 1, 1, 4.5, 5.5, 50),
        span("upload", 2, 0, 5.0, 5.5, 100),
        span("upload", 2, 1, 6.0, 6.5, 100),
        commit(2, 6.75),
        span("download", 2, 0, 6.75, 7.25, 50),
        span("download", 2, 1, 6.75, 7.75, 50),
    ]


def rows_of(events: list[Event], num_rounds: int = 3) -> list[dict[str, Any]]:
    book = RoundBook(num_rounds)
    return list(itertools.chain.from_iterable(book.add(event) for event in events))


def test_first_row_figure_by_figure() -> None:
    assert rows_of(overlapped_run())[0] == {
        "round": 0,
        "block": 0,
        "loss": (3 * 2.0 + 1 * 4.0) / 4,
        "seconds": 2.5,
        "compute_s": 1.5,
        "compute_s_max": 2.0,
        "upload_s": 0.5,
        "upload_s_max": 0.5,
        "download_s": 0.75,
        "download_s_max": 1.0,
        "wait_s": 0.0,
        "wait_s_max": 0.0,
        "bytes_up": 200,
        "bytes_down": 100,
        "bytes_catch_up": 0,
        "num_participants": 2,
        "num_refused": 0,
        "num_examples": 4,
        "server_s": 0.25,
    }


def test_what_a_rule_kept_of_every_module() -> None:
    kept = (KeptRank("q", 3, 0.9, (2.0, 1.0, 0.5)), KeptRank("v", 5, 0.8, (4.0,)))
    book = RoundBook(3)
    events = [dataclasses.replace(e, kept_ranks=kept) if isinstance(e, Committed) else e for e in overlapped_run()]
    row = next(row for event in events for row in book.add(event))
    assert (row["kept_rank_sum"], row["kept_rank_max"], row["kept_energy"]) == (8, 5, pytest.approx(0.85))
    assert [from_row(as_row(event)) for event in events] == events


def test_seconds_run_from_commit_to_commit_and_sum_to_the_run() -> None:
    rows = rows_of(overlapped_run())
    assert [row["seconds"] for row in rows] == [2.5, 2.0, 3.25]
    assert sum(row["seconds"] for row in rows) == 7.75


def test_spans_of_one_phase_add_up_and_catching_up_is_counted_apart() -> None:
    row = rows_of(overlapped_run())[2]
    assert (row["wait_s"], row["wait_s_max"]) == (0.5, 1.0)
    assert (row["bytes_catch_up"], row["bytes_down"]) == (50, 100)


def test_a_row_waits_for_who_was_refused_and_counts_its_bytes_only() -> None:
    """Of round 0, which clients 0 and 1 make in the other tests."""
    told = overlapped_run()
    commit = next(event for event in told if isinstance(event, Committed))
    events = [dataclasses.replace(commit, participants=(0,), weights=(3,), refused=(1,)), *told]
    events = [event for event in events if event.round == 0 and event is not commit]
    book = RoundBook(3)
    finished_by = [(event, row) for event in events for row in book.add(event)]
    [(last, row)] = finished_by
    assert last is events[-1]
    assert (row["num_participants"], row["num_refused"], row["bytes_up"], row["loss"]) == (1, 1, 200, 4.0)
    assert [from_row(as_row(event)) for event in events] == events


def test_a_row_waits_for_its_last_download() -> None:
    book = RoundBook(3)
    finished_by = {row["round"]: event for event in overlapped_run() for row in book.add(event)}
    assert finished_by == {r: span("download", r, 1, t, t + 1, 50) for r, t in [(0, 2.5), (1, 4.5), (2, 6.75)]}


@pytest.mark.parametrize("seed", range(20))
def test_order_of_arrival_changes_nothing(seed: int) -> None:
    """Each teller's events come in its own order; tellers interleave as they like."""
    events, rng = overlapped_run(), random.Random(seed)
    tellers = [[e for e in events if getattr(e, "client", -1) == client] for client in (-1, 0, 1)]
    shuffled = []
    while any(tellers):
        shuffled.append(rng.choice([teller for teller in tellers if teller]).pop(0))
    assert rows_of(shuffled) == rows_of(events)


def test_rows_come_in_round_order_where_a_later_round_is_told_first() -> None:
    book = RoundBook(3)
    events = overlapped_run()
    first = [event for event in events if event.round == 0]
    assert [row for event in events if event.round == 1 for row in book.add(event)] == []
    assert [row["round"] for event in first for row in book.add(event)] == [0, 1]


def test_clients_outside_the_cohort_count_in_bytes_only() -> None:
    late = [span("upload", 0, 7, 0.0, 9.0, 1000), span("compute", 0, 7, 0.0, 9.0, loss=99.0)]
    row, expected = (rows_of(events)[0] for events in (late + overlapped_run(), overlapped_run()))
    assert row == expected | {"bytes_up": 1200}


def test_a_single_round_lasts_from_zero_to_its_last_download() -> None:
    events = [event for event in overlapped_run() if event.round == 0]
    assert [row["seconds"] for row in rows_of(events, num_rounds=1)] == [3.5]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ([], "no event, which has `event`: span, committed, dropped"),
        ({"event": ["span"]}, "no event"),
        ({"event": "span"}, "span: phase: Field required"),
        (
            {"event": "dropped", "round": -1, "client": 0, "why": "late", "detail": ""},
            "dropped: round: Input should be",
        ),
        (
            {"event": "dropped", "round": "x", "client": 0, "why": "late", "detail": ""},
            "dropped: round: Input should be",
        ),
        ({"event": "dropped", "round": 0, "client": 0, "why": "no", "detail": ""}, "dropped: why: Input should be"),
        ({"event": "dropped", "round": 0, "client": 0, "why": "late", "detail": "", "more": 1}, "dropped: more: "),
    ],
)
def test_what_is_no_event_is_told(row: object, why: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(why)}"):
        from_row(row)
