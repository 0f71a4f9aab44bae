"""What a run did, handed to the one recurrence: the bound of a run, the virtual clock, and another link's seconds."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from parablock_ray.config import Config
from parablock_ray.network.links import client_links, compute_factors, server_link
from parablock_ray.network.timeline import (
    ExchangeSettings,
    RoundLoad,
    RoundTimes,
    Timeline,
    VisitLoad,
    VisitTimes,
    simulate,
)
from parablock_ray.tracking.events import Committed, Event, Phase, Span
from parablock_ray.tracking.rounds import RoundBook

_LEAST_GROWTH = 0.05  # of the rounds known, between two pricings of a run that goes on


class Pricing:
    """The terms of one config: links, computers, pipeline, exchange, and the method's staleness.

    In mode `virtual` every client is a computer of its own, of `compute_factor`; its training takes what was
    measured here or `network.compute_s`. In the others a worker is the computer, and takes what was measured.
    Raises UserError for a `network.trace` that cannot be used.
    """

    def __init__(self, config: Config) -> None:
        network = config.network
        self.staleness = config.method.staleness
        self._virtual = network.mode == "virtual"
        self._settings = ExchangeSettings(
            network.pipeline,
            network.exchange,
            network.chunk_bytes,
            shared_workers=not self._virtual,
            unmasks=config.secure_aggregation.enabled,
        )
        self.links = client_links(network, config.clients.num, config.seed)
        self._server = server_link(network)
        self._factors = compute_factors(network, config.clients.num, config.seed)
        self._step_s, self._num_steps = network.compute_s, config.method.local_steps

    def timeline(self, loads: Sequence[RoundLoad]) -> Timeline:
        """When everything in these rounds happens, with no overhead at all."""
        return simulate(loads, self.links, self._server, self._settings)

    def step_s(self, block: int) -> float | None:
        """Seconds of a local step as `network.compute_s` gives them; None: it leaves them to be measured."""
        return self._step_s[block] if isinstance(self._step_s, list) else self._step_s

    def visit_s(self, client: int, step_s: float) -> float:
        """Seconds of a client's visit whose local steps take `step_s` seconds each on this machine."""
        return step_s * self._num_steps * (self._factors[client] if self._virtual else 1.0)

    def arrival_s(self, client: int, step_s: float, up_bytes: int) -> float:
        """Seconds from the start of a client's visit until its whole upload is in, where nobody else sends. `step_s`:
        as of `visit_s`."""
        load = VisitLoad(client, 0, self.visit_s(client, step_s), up_bytes, down_bytes=0, catch_up_bytes=0)
        # When all of it is in does not depend on when the server makes chunks of it public.
        settings = replace(self._settings, exchange="store_and_forward")
        link = {client: self.links[client]}
        [round] = simulate([RoundLoad(0, -1, (load,))], link, self._server, settings).rounds
        return round.visits[client].arrival_s

    def load(self, commit: Committed, spans: Iterable[Span]) -> RoundLoad:
        """What every client of a round computed and sent. `spans`: all of that round's."""
        by_visit = {(span.phase, span.client): span for span in spans}
        clients = commit.participants
        if commit.refused:  # the server waits for what it refuses; the computer of several clients trained them in turn
            clients = tuple(sorted(clients + commit.refused, key=lambda client: by_visit["compute", client].start_s))
        visits = tuple(self._visit_load(client, by_visit) for client in clients)
        return RoundLoad(commit.round, commit.round - 1 - self.staleness, visits)

    def _visit_load(self, client: int, spans: dict[tuple[Phase, int], Span]) -> VisitLoad:
        catch_up = spans.get(("catch_up", client))
        return VisitLoad(
            client=client,
            worker=spans["compute", client].worker,
            compute_s=self._compute_s(spans["compute", client]),
            up_bytes=spans["upload", client].num_bytes,
            down_bytes=spans["download", client].num_bytes,
            catch_up_bytes=catch_up.num_bytes if catch_up else 0,
        )

    def _compute_s(self, measured: Span) -> float:
        if not self._virtual:
            return measured.end_s - measured.start_s
        step_s = self.step_s(measured.block)
        if step_s is None:
            return (measured.end_s - measured.start_s) * self._factors[measured.client]
        return self.visit_s(measured.client, step_s)


def by_round(events: Iterable[Event]) -> Iterator[tuple[Committed, list[Span]]]:
    """Every committed round with its clients' spans, in round order."""
    spans: defaultdict[int, list[Span]] = defaultdict(list)
    commits: dict[int, Committed] = {}
    for event in events:
        if isinstance(event, Committed):
            commits[event.round] = event
        elif isinstance(event, Span):
            spans[event.round].append(event)
    for round, commit in sorted(commits.items()):
        yield commit, spans[round]


def price(events: Iterable[Event], pricing: Pricing) -> tuple[Timeline, list[Event]]:
    """The timeline of a finished run under these terms, and its events as they would have been told then."""
    rounds = list(by_round(events))
    timeline = pricing.timeline([pricing.load(commit, spans) for commit, spans in rounds])
    told = [
        event
        for (commit, spans), times in zip(rounds, timeline.rounds, strict=True)
        for event in retold(commit, spans, times)
    ]
    return timeline, told


def retold(commit: Committed, spans: Iterable[Span], times: RoundTimes) -> Iterator[Event]:
    """A round's events with the times of the recurrence in place of those measured."""
    by_visit = {(span.phase, span.client): span for span in spans}
    for client, visit in times.visits.items():
        for phase, (start_s, end_s) in _phases(visit).items():
            span = by_visit.get((phase, client)) or replace(by_visit["compute", client], phase=phase, loss=None)
            yield replace(span, start_s=start_s, end_s=end_s)
    yield replace(commit, time_s=times.commit_s)


def _phases(visit: VisitTimes) -> dict[Phase, tuple[float, float]]:
    catch_up: dict[Phase, tuple[float, float]] = {"catch_up": visit.catch_up} if visit.catch_up else {}
    return {
        "wait": (visit.compute.start_s - visit.wait_s, visit.compute.start_s),
        **catch_up,
        "compute": visit.compute,
        "upload": (visit.upload.start_s, visit.arrival_s),
        "download": visit.download,
    }


class VirtualBook:
    """`RoundBook` for mode `virtual`: hands out the same rows, with the times of the recurrence.

    Nothing that is not known yet may change a row that is handed out. Say that round t commits at P, and let s be
    the staleness. A client starts round r once it is at the end of round r−1−s, by its own download or, if it took
    no part, by the commit. So if r > t+s, it starts after P and, since training and transfers take time, whatever
    it uploads, and what is published of that, comes after P too. Lines serve first come, first served: they have
    served round t's uploads by P, and queue its downloads at P; where a client's two directions share a line, its
    own downloads up to round r−1−s are over before its upload of round r is ready. What is left are transfers that
    queue at P itself or before it and may go first (a tie goes to the lower client): downloads and uploads of
    rounds up to t+s, and catch-ups of those who read a round up to t+s, that is of rounds up to t+2s+1. Hence a row
    is final once the loads of rounds up to t+2s+1 are known, or the run is over.

    Each pricing starts from round 0, so it is done when the known rounds have grown by a twentieth: all pricings
    of a run together cost about twenty times the last one, whatever the number of rounds.
    """

    def __init__(self, num_rounds: int, pricing: Pricing) -> None:
        self._num_rounds = num_rounds
        self._pricing = pricing
        self._told = RoundBook(num_rounds)  # of what happened; only to learn which rounds are complete
        self._priced = RoundBook(num_rounds)
        self._events: defaultdict[int, list[Event]] = defaultdict(list)  # of rounds whose row is not handed out
        self._loads: list[RoundLoad] = []
        self._num_rows = 0
        self._next_pricing = 1  # at so many loads

    @property
    def num_complete(self) -> int:
        return self._told.num_complete

    def add(self, event: Event) -> list[dict[str, Any]]:
        """The rows that `event` makes final."""
        self._events[event.round].append(event)
        for row in self._told.add(event):
            [(commit, spans)] = by_round(self._events[row["round"]])
            self._loads.append(self._pricing.load(commit, spans))
        num_final = self._num_final()
        return list(self._rows(num_final)) if num_final > self._num_rows else []

    def _num_final(self) -> int:
        """So many rows can be handed out once the known rounds are priced; no more than now where that must wait."""
        num_known = len(self._loads)
        if num_known == self._num_rounds:
            return num_known
        return num_known - (2 * self._pricing.staleness + 1) if num_known >= self._next_pricing else 0

    def _rows(self, num_final: int) -> Iterator[dict[str, Any]]:
        """The rows from the first that is not handed out yet up to `num_final`."""
        for times in self._pricing.timeline(self._loads).rounds[self._num_rows : num_final]:
            [(commit, spans)] = by_round(self._events.pop(times.round))
            for event in retold(commit, spans, times):
                yield from self._priced.add(event)
        self._num_rows = num_final
        self._next_pricing = len(self._loads) + max(1, int(_LEAST_GROWTH * len(self._loads)))
