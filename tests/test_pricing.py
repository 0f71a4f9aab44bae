"""The virtual clock's rows, handed out while a run goes on, against one pricing of the whole run at its end."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, cast

import pytest
from hypothesis import given, settings

from parablock_ray.network.timeline import RoundLoad, Timeline
from parablock_ray.pricing import Pricing, VirtualBook, price
from parablock_ray.tracking.events import Committed, Event, Span
from parablock_ray.tracking.rounds import RoundBook
from tests.network.cases import EXCHANGES, PIPELINES, Case, cases, random_case


class CasePricing:
    """Stands for `Pricing`: takes a case's loads for those measured, and counts the rounds that it prices."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self.staleness = case.rounds[0].round - 1 - case.rounds[0].reads
        self.priced: list[int] = []

    def load(self, commit: Committed, spans: Iterable[Span]) -> RoundLoad:
        assert {span.phase for span in spans} == {"compute", "upload", "download"}
        return self._case.rounds[commit.round]

    def timeline(self, loads: Sequence[RoundLoad]) -> Timeline:
        self.priced.append(len(loads))
        return replace(self._case, rounds=tuple(loads)).run()


def told(case: Case) -> Iterator[Event]:
    """Events of a run with these loads; their times are of no account."""
    for load in case.rounds:
        clients = tuple(visit.client for visit in load.visits)
        yield Committed(load.round, 0, 0.0, clients, (1,) * len(clients), len(clients), 0.0, server_s=0.0)
        for visit in load.visits:
            span = Span("compute", load.round, 0, visit.client, 0, 0.0, 0.0, loss=1.0)
            yield from (span, replace(span, phase="upload", num_bytes=visit.up_bytes))
            yield replace(span, phase="download", num_bytes=visit.down_bytes)


def assert_rows_are_final(case: Case) -> CasePricing:
    """What the book hands out on the way equals what the whole run says. Returns what priced it."""
    case = replace(case, how=replace(case.how, shared_workers=False))
    pricing = CasePricing(case)
    book = VirtualBook(len(case.rounds), cast(Pricing, pricing))
    rows = [row for event in told(case) for row in book.add(event)]
    assert rows == rows_of_the_whole(case)
    assert book.num_complete == len(case.rounds)
    return pricing


def rows_of_the_whole(case: Case) -> list[dict[str, Any]]:
    timeline, events = price(told(case), cast(Pricing, CasePricing(case)))
    book = RoundBook(len(case.rounds))
    rows = [row for event in events for row in book.add(event)]
    assert sum(row["seconds"] for row in rows) == pytest.approx(timeline.seconds, rel=1e-12)
    return rows


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cases(queues=True, partial=True, max_rounds=14))
def test_no_row_changes_after_it_was_handed_out_when_much_is_tied(case: Case) -> None:
    assert_rows_are_final(case)


@pytest.mark.parametrize(("pipeline", "exchange"), list(product(PIPELINES, EXCHANGES)))
@pytest.mark.parametrize("staleness", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["latency", "partial latency", "half_duplex server latency partial"])
def test_no_row_changes_after_it_was_handed_out(kind: str, staleness: int, pipeline: str, exchange: str) -> None:
    pricing = assert_rows_are_final(random_case(kind, 30, staleness, pipeline, exchange))
    assert pricing.priced[0] == 2 * staleness + 2  # long before the end


def test_a_long_run_is_not_priced_anew_for_every_round() -> None:
    pricing = assert_rows_are_final(random_case("unequal", 400, 1, "serial", "store_and_forward"))
    assert sum(pricing.priced) < 25 * 400
