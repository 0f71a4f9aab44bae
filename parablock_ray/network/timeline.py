"""When everything happens: the one recurrence that prices a run (docs/methods.md, "Time").

Nothing else in the package computes time. For a client in a round, its messages cut into k equal chunks:

    start      S = max( C of its computer's last visit, D of the round it reads );  C = S + compute_s
    upload     begins at max( C, uplink free ), chunk after chunk; each is at the server latency_s later
    publish    P = latest arrival of the chunk (store_and_forward: of the last chunk) over the participants; where sums
               are unmasked, the largest 2 · latency_s of them later
    download   a chunk begins at max( P + latency_s, downlink free );  D = end of the last chunk
    serial     one communication thread, as in the paper: an upload also waits for its client's last D

Each client's line and the server's are queues: first come, first served, no transfer interrupted. So one heap
of arrivals at lines is the whole simulation: popped in time order, each has its line from max(ready, free)
on, and so tells later arrivals. Ties: uploads first, then the lower client, then the lower round (of a
catch-up: the round read).

What those lines leave open is decided so:
* Rounds commit in order: no chunk of round t is published before round t−1 is committed. With full cohorts
  this holds by itself.
* A client that took no part in the round it reads waits for that round's commit instead, and for its
  catch-up, if any, which is sent then; and in any case for its own downloads of rounds up to that one.
* A limited server's line comes after the client's and the latency on the way up, before them on the way down.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Literal, NamedTuple

from parablock_ray.errors import UserError
from parablock_ray.network.links import Line, Link, ServerLink


@dataclass(frozen=True)
class ExchangeSettings:
    """How blocks travel, and what a computer is.

    `pipeline`: `serial` (one communication thread per client) or `duplex` (one each way). `exchange`: a round
    is published at once (`store_and_forward`) or chunk by chunk (`cut_through`). `chunk_bytes`: the most that
    a chunk holds. `shared_workers`: a worker is one computer that trains its clients of a round in turn, in
    plan order, once all of them may start (`shaped` time); else each client is its own (`virtual` time). `unmasks`:
    with the last upload in, the server asks every client once more before it publishes (secure aggregation).
    """

    pipeline: Literal["serial", "duplex"]
    exchange: Literal["store_and_forward", "cut_through"]
    chunk_bytes: int
    shared_workers: bool
    unmasks: bool


@dataclass(frozen=True, slots=True)
class VisitLoad:
    """What one client does in one round: seconds of training, and payload bytes."""

    client: int
    worker: int
    compute_s: float
    up_bytes: int
    down_bytes: int
    catch_up_bytes: int  # downloaded before it trains; 0 if it missed nothing


@dataclass(frozen=True)
class RoundLoad:
    """One round. `reads`: the last one whose aggregate it uses, t − 1 − staleness. `visits`: plan order."""

    round: int
    reads: int
    visits: tuple[VisitLoad, ...]


class Interval(NamedTuple):
    """Seconds since the start of the run."""

    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class VisitTimes:
    """One client in one round. All times are seconds since the start of the run."""

    wait_s: float  # for so long its computer had nothing to train, rounds that it sat out included
    catch_up: Interval | None  # first to last chunk on the client's line; None if it missed nothing
    compute: Interval
    upload: Interval  # on the client's line, without gaps
    arrival_s: float  # the last chunk is at the server
    download: Interval  # first to last chunk on the client's line; other transfers and gaps may lie between


@dataclass(frozen=True)
class RoundTimes:
    """One round. All times are seconds since the start of the run."""

    round: int
    publish_s: tuple[float, ...]  # by chunk (cut_through), or one time for all (store_and_forward)
    visits: Mapping[int, VisitTimes]  # by client id, in plan order

    @property
    def commit_s(self) -> float:
        """The aggregate is complete: its last chunk is published."""
        return self.publish_s[-1]


@dataclass(frozen=True)
class Timeline:
    """A whole run. `seconds`: its makespan, from the start to the end of the last download."""

    rounds: tuple[RoundTimes, ...]
    seconds: float


def simulate(
    rounds: Sequence[RoundLoad], links: Mapping[int, Link], server: ServerLink, settings: ExchangeSettings
) -> Timeline:
    """The times of `rounds`, which are numbered one after the other; `links` by client id.

    A round that reads one before the first of `rounds` may start at 0. Raises UserError if `cut_through`
    would have to exchange messages of unequal numbers of chunks within one round.
    """
    layout = _Layout(links, server, settings)
    for load in rounds:
        layout.add_round(load)
    _EventLoop(layout.rounds, server, layout.cut_through).run()
    times = tuple(_round_times(round) for round in layout.rounds[1:])
    ends_s = (visit.download.end_s for round in times for visit in round.visits.values())
    return Timeline(times, max(ends_s, default=0.0))


@dataclass(slots=True)
class _Message:
    """An upload, a download or a catch-up."""

    client: int
    round: "_Round"  # the last one whose values it brings
    num_chunks: int
    latency_s: float
    line: Line  # the client's
    chunk_s: float
    server_line: Line
    server_chunk_s: float
    readers: list["_Visit"]  # wait for its arrival
    next_upload: "_Message | None" = None  # waits for its arrival
    missing: int = 0  # so many of the times that it waits for are not known yet
    ready_s: float = 0.0  # the latest of them
    start_s: float = 0.0  # of the first chunk on the client's line
    end_s: float = 0.0  # of the last chunk on the client's line
    arrival_s: float = 0.0  # of the last chunk


@dataclass(slots=True)
class _Visit:
    load: VisitLoad
    upload: _Message
    download: _Message
    catch_up: _Message | None
    previous: "_Visit | None"  # on the same computer
    next: "_Visit | None" = None  # on the same computer
    missing: int = 0  # so many of the times that it waits for are not known yet
    start_s: float = 0.0  # the latest of them
    end_s: float = 0.0


@dataclass(slots=True)
class _Round:
    number: int
    missing: list[int]  # by piece (one chunk each with cut_through, else all): chunks on their way
    arrival_s: list[float]  # by piece: the latest
    visits: list[_Visit]
    readers: list[_Visit]  # wait for its commit
    catch_ups: list[_Message]  # are sent at its commit
    publish_s: list[float]  # of the pieces published so far
    unmask_s: float  # from the latest arrival until what is asked for is in


class _Layout:
    """Turns loads into records that know who waits for them."""

    def __init__(self, links: Mapping[int, Link], server: ServerLink, settings: ExchangeSettings) -> None:
        self.settings = settings
        self.cut_through = settings.exchange == "cut_through"
        # Chunks between which nothing can come are as good as one.
        self.chunked = self.cut_through or min(server.up_mbps, server.down_mbps) < math.inf
        self.server = server
        self.server_up, self.server_down = Line(), Line()
        self.links = links
        self.up = {id: Line() for id in links}
        self.down = {id: self.up[id] if link.half_duplex else Line() for id, link in links.items()}
        self.visits: dict[int, list[_Visit]] = {id: [] for id in links}
        self.last_visit: dict[int, _Visit] = {}  # by computer
        self.rounds: list[_Round] = []

    def add_round(self, load: RoundLoad) -> None:
        if not self.rounds:  # One without visits, which commits at 0, stands for all before the first.
            self.rounds.append(_Round(load.round - 1, [0], [0.0], [], [], [], [], 0.0))
        assert load.reads < load.round == self.rounds[-1].number + 1, load
        num_pieces = self._num_pieces(load)
        num_chunks = sum(self._num_chunks(visit.up_bytes) for visit in load.visits)
        missing, arrival_s = [num_chunks // num_pieces] * num_pieces, [0.0] * num_pieces
        # There and back: its few bytes are counted with the upload.
        latencies_s = [2 * self.links[visit.client].latency_s for visit in load.visits if self.settings.unmasks]
        round = _Round(load.round, missing, arrival_s, [], [], [], [], max(latencies_s, default=0.0))
        read = self.rounds[max(0, load.reads - self.rounds[0].number)]
        leaders: dict[int, _Visit] = {}  # by computer: its first visit, which waits for all its inputs
        for visit_load in load.visits:
            computer = visit_load.worker if self.settings.shared_workers else visit_load.client
            visit = self._new_visit(visit_load, round, read, self.last_visit.get(computer))
            self._wait_for_inputs(leaders.setdefault(computer, visit), visit, read)
            self.last_visit[computer] = visit
            self.visits[visit_load.client].append(visit)
            round.visits.append(visit)
        self.rounds.append(round)

    def _new_visit(self, load: VisitLoad, round: _Round, read: _Round, previous: _Visit | None) -> _Visit:
        catch_up = self._new_download(load, read, load.catch_up_bytes) if load.catch_up_bytes else None
        upload, download = self._new_upload(load, round), self._new_download(load, round, load.down_bytes)
        visit = _Visit(load, upload, download, catch_up, previous)
        if previous:
            previous.next = visit
            visit.missing += 1
        return visit

    def _wait_for_inputs(self, leader: _Visit, visit: _Visit, read: _Round) -> None:
        """Before `leader` starts, the client of `visit` must be at the end of round `read`."""
        earlier = (visit.download for visit in reversed(self.visits[visit.load.client]))
        own = next((download for download in earlier if download.round.number <= read.number), None)
        inputs = [own.readers] if own else []
        if visit.catch_up:
            read.catch_ups.append(visit.catch_up)
            inputs.append(visit.catch_up.readers)
        elif own is None or own.round is not read:
            inputs.append(read.readers)
        for readers in inputs:
            readers.append(leader)
        leader.missing += len(inputs)

    def _new_upload(self, load: VisitLoad, round: _Round) -> _Message:
        link, line, n = self.links[load.client], self.up[load.client], self._num_chunks(load.up_bytes)
        line_s, server_s = link.up_s(load.up_bytes) / n, self.server.up_s(load.up_bytes) / n
        upload = _Message(load.client, round, n, link.latency_s, line, line_s, self.server_up, server_s, [])
        upload.missing = 1  # the end of training
        if self.visits[load.client] and self.settings.pipeline == "serial":
            self.visits[load.client][-1].download.next_upload = upload
            upload.missing += 1
        return upload

    def _new_download(self, load: VisitLoad, round: _Round, num_bytes: int) -> _Message:
        link, line, n = self.links[load.client], self.down[load.client], self._num_chunks(num_bytes)
        line_s, server_s = link.down_s(num_bytes) / n, self.server.down_s(num_bytes) / n
        return _Message(load.client, round, n, link.latency_s, line, line_s, self.server_down, server_s, [])

    def _num_pieces(self, load: RoundLoad) -> int:
        if not self.cut_through:
            return 1
        sizes = {size for visit in load.visits for size in (visit.up_bytes, visit.down_bytes)}
        numbers = {self._num_chunks(size) for size in sizes}
        if len(numbers) > 1:
            raise UserError(
                f"network.exchange: cut_through needs equal messages, but those of round {load.round} have "
                f"{sorted(numbers)} chunks of {self.settings.chunk_bytes} bytes; use store_and_forward"
            )
        return numbers.pop() if numbers else 1

    def _num_chunks(self, num_bytes: int) -> int:
        return max(1, -(-num_bytes // self.settings.chunk_bytes)) if self.chunked else 1


# The lines on a message's way, in the order in which arrivals at the same time are served.
_CLIENT_UP, _SERVER_UP, _SERVER_DOWN, _CLIENT_DOWN = range(4)


class _EventLoop:
    """Fills in the times, each as soon as it is known, which may be long before it comes."""

    def __init__(self, rounds: Sequence[_Round], server: ServerLink, cut_through: bool) -> None:
        self.rounds = iter(rounds)
        self.open: _Round | None = next(self.rounds, None)  # the next to commit
        self.published_s = 0.0  # the last publication
        self.cut_through = cut_through
        rates = {_SERVER_UP: server.up_mbps, _SERVER_DOWN: server.down_mbps}
        self.unlimited = {line for line, rate_mbps in rates.items() if rate_mbps == math.inf}  # nobody queues
        self.arrivals: list[tuple[float, int, int, int, int, _Message, int]] = []  # at lines
        self.ticket = count()  # the last tie-break

    def run(self) -> None:
        self._publish()
        while self.arrivals:
            ready_s, line, _, _, _, message, chunk = heappop(self.arrivals)
            self._pass(message, line, chunk, ready_s)
        assert self.open is None, "a round waits for ever"

    def _learn_start(self, visit: _Visit | None, time_s: float) -> None:
        """A time that the visit waits for is known. After the last one, so are its own times."""
        while visit:
            visit.missing -= 1
            visit.start_s = max(visit.start_s, time_s)
            if visit.missing:
                return
            time_s = visit.end_s = visit.start_s + visit.load.compute_s
            self._learn_upload(visit.upload, time_s)
            visit = visit.next

    def _learn_upload(self, upload: _Message, time_s: float) -> None:
        upload.missing -= 1
        upload.ready_s = max(upload.ready_s, time_s)
        if not upload.missing:
            self._send(upload, _CLIENT_UP, range(upload.num_chunks), upload.ready_s)

    def _publish(self) -> None:
        """Publishes whatever is in from all participants, round after round, piece after piece."""
        while self.open and not self.open.missing[piece := len(self.open.publish_s)]:
            self.published_s = max(self.published_s, self.open.arrival_s[piece] + self.open.unmask_s)
            self.open.publish_s.append(self.published_s)
            for visit in self.open.visits:
                chunks = range(piece, piece + 1) if self.cut_through else range(visit.download.num_chunks)
                self._send(visit.download, _SERVER_DOWN, chunks, self.published_s)
            if piece + 1 == len(self.open.missing):
                self._commit(self.open)

    def _commit(self, round: _Round) -> None:
        self.open = next(self.rounds, None)
        for catch_up in round.catch_ups:
            self._send(catch_up, _SERVER_DOWN, range(catch_up.num_chunks), self.published_s)
        for visit in round.readers:
            self._learn_start(visit, self.published_s)

    def _send(self, message: _Message, line: int, chunks: range, time_s: float) -> None:
        for chunk in chunks:
            self._enter(message, line, chunk, time_s)

    def _enter(self, message: _Message, line: int, chunk: int, time_s: float) -> None:
        """A chunk comes to a line."""
        if line in self.unlimited:
            self._leave(message, line, chunk, time_s)
        else:
            rank = (line, message.client, message.round.number, next(self.ticket))
            heappush(self.arrivals, (time_s, *rank, message, chunk))

    def _pass(self, message: _Message, line: int, chunk: int, ready_s: float) -> None:
        """It is a chunk's turn."""
        if line in (_SERVER_UP, _SERVER_DOWN):
            _, end_s = message.server_line.take(ready_s, message.server_chunk_s)
        else:
            start_s, end_s = message.line.take(ready_s, message.chunk_s)
            message.start_s = start_s if chunk == 0 else message.start_s
            message.end_s = end_s
        self._leave(message, line, chunk, end_s)

    def _leave(self, message: _Message, line: int, chunk: int, time_s: float) -> None:
        if line in (_CLIENT_UP, _SERVER_DOWN):
            self._enter(message, line + 1, chunk, time_s + message.latency_s)
        elif line == _SERVER_UP:
            self._arrive(message, chunk, time_s)
        elif chunk == message.num_chunks - 1:
            self._complete(message)

    def _arrive(self, upload: _Message, chunk: int, time_s: float) -> None:
        upload.arrival_s = time_s
        round, piece = upload.round, chunk if self.cut_through else 0
        round.missing[piece] -= 1
        round.arrival_s[piece] = max(round.arrival_s[piece], time_s)
        if not round.missing[piece]:
            self._publish()

    def _complete(self, download: _Message) -> None:
        for visit in download.readers:
            self._learn_start(visit, download.end_s)
        if download.next_upload:
            self._learn_upload(download.next_upload, download.end_s)


def _round_times(round: _Round) -> RoundTimes:
    visits = {visit.load.client: _visit_times(visit) for visit in round.visits}
    return RoundTimes(round.number, tuple(round.publish_s), visits)


def _visit_times(visit: _Visit) -> VisitTimes:
    up, down, catch_up = visit.upload, visit.download, visit.catch_up
    return VisitTimes(
        wait_s=visit.start_s - (visit.previous.end_s if visit.previous else 0.0),
        catch_up=Interval(catch_up.start_s, catch_up.end_s) if catch_up else None,
        compute=Interval(visit.start_s, visit.end_s),
        upload=Interval(up.start_s, up.end_s),
        arrival_s=up.arrival_s,
        download=Interval(down.start_s, down.end_s),
    )
