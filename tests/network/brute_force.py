"""Two slow, independent readings of the recurrence in docs/methods.md: oracles for `network/timeline.py`.

`recursion` writes its lines down as memoised functions; it knows no queues but those that a client fills in
round order, so it holds for full-duplex links and an unlimited server. `story` plays everything through, one
instant after the other: clients, chunks and rounds are coroutines, and every line has a queue.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cache, partial

from parablock_ray.network.links import Link, ServerLink
from parablock_ray.network.timeline import ExchangeSettings, RoundLoad

# (what, round, client) → seconds; client is -1 where it does not matter
Times = dict[tuple[str, int, int], float]
Step = Generator[Callable[[], bool], None, None]


def chunks(num_bytes: int, settings: ExchangeSettings) -> int:
    return max(1, (num_bytes + settings.chunk_bytes - 1) // settings.chunk_bytes)


class Cohorts:
    """Who does what in which round, and what came before."""

    def __init__(self, rounds: Sequence[RoundLoad], settings: ExchangeSettings) -> None:
        self.first = rounds[0].round
        self.reads = {load.round: load.reads for load in rounds}
        self.loads = {(load.round, visit.client): visit for load in rounds for visit in load.visits}
        self.by_client: dict[int, list[int]] = defaultdict(list)  # rounds
        self.by_computer: dict[int, list[tuple[int, int]]] = defaultdict(list)  # (round, client) in turn
        for (t, i), load in self.loads.items():
            self.by_client[i].append(t)
            self.by_computer[load.worker if settings.shared_workers else i].append((t, i))
        self.shared = settings.shared_workers

    def _turns(self, t: int, i: int) -> list[tuple[int, int]]:
        return self.by_computer[self.loads[t, i].worker if self.shared else i]

    def before_on_computer(self, t: int, i: int) -> tuple[int, int] | None:
        turns = self._turns(t, i)
        place = turns.index((t, i))
        return turns[place - 1] if place else None

    def leads(self, t: int, i: int) -> bool:
        """Is it the first visit of its computer in the round?"""
        before = self.before_on_computer(t, i)
        return before is None or before[0] < t

    def team(self, t: int, i: int) -> list[int]:
        """The clients that its computer trains in this round."""
        return [client for round, client in self._turns(t, i) if round == t]

    def last_before(self, t: int, i: int) -> int | None:
        return max((r for r in self.by_client[i] if r < t), default=None)

    def last_read(self, t: int, i: int) -> int | None:
        """The client's last own round whose aggregate it reads in round t."""
        return max((r for r in self.by_client[i] if r <= self.reads[t]), default=None)


def recursion(rounds: Sequence[RoundLoad], links: Mapping[int, Link], settings: ExchangeSettings) -> Times:
    who = Cohorts(rounds, settings)
    participants = {load.round: [visit.client for visit in load.visits] for load in rounds}

    @cache
    def start(t: int, i: int) -> float:
        before = who.before_on_computer(t, i)
        earliest = computed(*before) if before else 0.0
        return max(earliest, *(inputs(t, q) for q in who.team(t, i))) if who.leads(t, i) else earliest

    @cache
    def inputs(t: int, i: int) -> float:
        own = who.last_read(t, i)
        landed = downloaded(own, i) if own is not None else 0.0
        if who.loads[t, i].catch_up_bytes:
            return max(landed, caught_up(t, i)[1])
        return landed if own == who.reads[t] else max(landed, commit(who.reads[t]))

    @cache
    def computed(t: int, i: int) -> float:
        return start(t, i) + who.loads[t, i].compute_s

    @cache
    def upload_begin(t: int, i: int) -> float:
        last = who.last_before(t, i)
        if last is None:
            return computed(t, i)
        ready = max(computed(t, i), downloaded(last, i)) if settings.pipeline == "serial" else computed(t, i)
        return max(ready, upload_begin(last, i) + links[i].up_s(who.loads[last, i].up_bytes))

    @cache
    def arrival(t: int, i: int, j: int) -> float:
        load = who.loads[t, i]
        share = (j + 1) / chunks(load.up_bytes, settings)
        return upload_begin(t, i) + share * links[i].up_s(load.up_bytes) + links[i].latency_s

    @cache
    def published(t: int, j: int) -> float:
        last = [chunks(who.loads[t, i].up_bytes, settings) - 1 for i in participants[t]]
        which = [j] * len(last) if settings.exchange == "cut_through" else last
        arrivals = [arrival(t, i, chunk) for i, chunk in zip(participants[t], which, strict=True)]
        return max(commit(t - 1), *arrivals)

    @cache
    def commit(t: int) -> float:
        if t < who.first:
            return 0.0
        return published(t, chunks(who.loads[t, participants[t][0]].down_bytes, settings) - 1)

    @cache
    def queue_down(i: int) -> list[tuple[int, bool, int]]:
        """What a client downloads, oldest values first: (round of the values, is a catch-up, visit)."""
        downloads = [(t, False, t) for t in who.by_client[i]]
        return sorted(downloads + [(who.reads[t], True, t) for t in who.by_client[i] if has_catch_up(t, i)])

    def has_catch_up(t: int, i: int) -> bool:
        return who.loads[t, i].catch_up_bytes > 0

    @cache
    def downlink_free(t: int, i: int, is_catch_up: bool) -> float:
        queue = queue_down(i)
        place = queue.index((who.reads[t] if is_catch_up else t, is_catch_up, t))
        if place == 0:
            return 0.0
        _, before_is_catch_up, before = queue[place - 1]
        return caught_up(before, i)[1] if before_is_catch_up else downloaded(before, i)

    @cache
    def caught_up(t: int, i: int) -> tuple[float, float]:
        begin = max(commit(who.reads[t]) + links[i].latency_s, downlink_free(t, i, True))
        return begin, begin + links[i].down_s(who.loads[t, i].catch_up_bytes)

    @cache
    def download_begin(t: int, i: int, j: int) -> float:
        free = download_end(t, i, j - 1) if j else downlink_free(t, i, False)
        return max(published(t, j) + links[i].latency_s, free)

    @cache
    def download_end(t: int, i: int, j: int) -> float:
        num_bytes = who.loads[t, i].down_bytes
        return download_begin(t, i, j) + links[i].down_s(num_bytes) / chunks(num_bytes, settings)

    @cache
    def downloaded(t: int, i: int) -> float:
        return download_end(t, i, chunks(who.loads[t, i].down_bytes, settings) - 1)

    times: Times = {}
    for t, i in who.loads:  # in round order, which keeps the recursion flat
        load = who.loads[t, i]
        times["download_end", t, i] = downloaded(t, i)
        times["download_start", t, i] = download_begin(t, i, 0)
        times["compute_start", t, i] = start(t, i)
        times["compute_end", t, i] = computed(t, i)
        times["upload_start", t, i] = upload_begin(t, i)
        times["upload_end", t, i] = upload_begin(t, i) + links[i].up_s(load.up_bytes)
        times["arrival", t, i] = arrival(t, i, chunks(load.up_bytes, settings) - 1)
        times["commit", t, -1] = commit(t)
        if has_catch_up(t, i):
            times["catch_up_start", t, i], times["catch_up_end", t, i] = caught_up(t, i)
    return times


class Line:
    """One transfer at a time; who waits longest goes first, `key` breaks ties."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, tuple[int, ...]]] = []
        self.holder: tuple[float, tuple[int, ...]] | None = None


class World:
    """Time, and coroutines that yield what they wait for."""

    def __init__(self) -> None:
        self.now = 0.0
        self.alarms: set[float] = set()
        self.lines: list[Line] = []
        self.waiting: list[tuple[Step, Callable[[], bool]]] = []

    def line(self) -> Line:
        self.lines.append(Line())
        return self.lines[-1]

    def spawn(self, coroutine: Step) -> None:
        self.waiting.append((coroutine, lambda: True))

    def sleep(self, seconds: float) -> Step:
        end = self.now + seconds
        self.alarms.add(end)
        yield lambda: self.now >= end

    def use(self, line: Line, seconds: float, key: tuple[int, ...]) -> Generator[Callable[[], bool], None, float]:
        """Queues for a line and occupies it; returns when that began."""
        me = (self.now, key)
        line.waiting.append(me)
        yield lambda: line.holder == me
        begin = self.now
        yield from self.sleep(seconds)
        line.holder = None
        return begin

    def run(self) -> None:
        while True:
            if self._resume() or self._grant():
                continue
            later = [alarm for alarm in self.alarms if alarm > self.now]
            if not later:
                break
            self.now = min(later)
            self.alarms = set(later)
        assert not self.waiting, "somebody waits for ever"

    def _resume(self) -> bool:
        runnable: list[Step] = []
        asleep = []
        for coroutine, ready in self.waiting:
            if ready():
                runnable.append(coroutine)
            else:
                asleep.append((coroutine, ready))
        self.waiting = asleep
        for coroutine in runnable:
            condition = next(coroutine, None)
            if condition:
                self.waiting.append((coroutine, condition))
        return bool(runnable)

    def _grant(self) -> bool:
        for line in self.lines:
            if line.holder is None and line.waiting:
                line.holder = min(line.waiting)
                line.waiting.remove(line.holder)
                return True
        return False


def story(
    rounds: Sequence[RoundLoad],
    links: Mapping[int, Link],
    server: ServerLink,
    settings: ExchangeSettings,
) -> Times:
    world, who, times = World(), Cohorts(rounds, settings), Times()
    up = {i: world.line() for i in links}
    down = {i: up[i] if link.half_duplex else world.line() for i, link in links.items()}
    server_up, server_down = world.line(), world.line()
    arrived: set[tuple[int, int, int]] = set()
    unmasked: set[int] = set()

    def known(what: str, t: int | None, i: int) -> bool:
        return t is None or (what, t, i) in times

    def has_inputs(t: int, i: int) -> bool:
        caught_up = not who.loads[t, i].catch_up_bytes or known("catch_up_end", t, i)
        committed = who.reads[t] < who.first or known("commit", who.reads[t], -1)
        return caught_up and committed and known("download_end", who.last_read(t, i), i)

    def may_start(t: int, i: int) -> bool:
        return not who.leads(t, i) or all(has_inputs(t, q) for q in who.team(t, i))

    def computer(turns: list[tuple[int, int]]) -> Step:
        for t, i in turns:
            yield partial(may_start, t, i)
            times["compute_start", t, i] = world.now
            yield from world.sleep(who.loads[t, i].compute_s)
            times["compute_end", t, i] = world.now
            world.spawn(upload(t, i, who.loads[t, i].up_bytes))

    def upload(t: int, i: int, num_bytes: int) -> Step:
        if settings.pipeline == "serial":
            yield lambda: known("download_end", who.last_before(t, i), i)
        for j in range(chunks(num_bytes, settings)):
            world.spawn(upload_chunk(t, i, j, num_bytes))

    def upload_chunk(t: int, i: int, j: int, num_bytes: int) -> Step:
        k = chunks(num_bytes, settings)
        begin = yield from world.use(up[i], links[i].up_s(num_bytes) / k, (0, t, 0, j))
        times.setdefault(("upload_start", t, i), begin)
        times["upload_end", t, i] = world.now
        yield from world.sleep(links[i].latency_s)
        if server.up_mbps < math.inf:
            yield from world.use(server_up, server.up_s(num_bytes) / k, (i, t, 0, j))
        arrived.add((t, i, j))
        times["arrival", t, i] = world.now

    def is_in(load: RoundLoad, j: int) -> bool:
        """Chunk j of every participant, or its last one where it has fewer."""
        last = {visit.client: chunks(visit.up_bytes, settings) - 1 for visit in load.visits}
        return all((load.round, i, min(j, k)) in arrived for i, k in last.items())

    def unmasking(load: RoundLoad) -> Step:
        """With the last chunk in, everybody is asked once more, and answers."""
        yield partial(is_in, load, max(chunks(visit.up_bytes, settings) for visit in load.visits) - 1)
        yield from world.sleep(max(2 * links[visit.client].latency_s for visit in load.visits))
        unmasked.add(load.round)

    def publisher() -> Step:
        catch_up(who.first - 1)
        for load in rounds:
            for j in range(max(chunks(visit.up_bytes, settings) for visit in load.visits)):
                yield partial(is_in, load, j)
                if settings.exchange == "cut_through":
                    download(load, [j])
            if settings.unmasks:
                yield lambda load=load: load.round in unmasked
            if settings.exchange == "store_and_forward":
                download(load, None)
            times["commit", load.round, -1] = world.now
            catch_up(load.round)

    def download(load: RoundLoad, which: list[int] | None) -> None:
        for visit in load.visits:
            for j in which or range(chunks(visit.down_bytes, settings)):
                age = (load.round, 0)
                world.spawn(receive("download", load.round, visit.client, j, visit.down_bytes, age))

    def catch_up(read: int) -> None:
        """Those who wait for the commit of round `read`."""
        for (t, i), visit in who.loads.items():
            if max(who.reads[t], who.first - 1) == read and visit.catch_up_bytes:
                for j in range(chunks(visit.catch_up_bytes, settings)):
                    world.spawn(receive("catch_up", t, i, j, visit.catch_up_bytes, (read, 1)))

    def receive(what: str, t: int, i: int, j: int, num_bytes: int, age: tuple[int, int]) -> Step:
        k = chunks(num_bytes, settings)
        if server.down_mbps < math.inf:
            yield from world.use(server_down, server.down_s(num_bytes) / k, (i, *age, t, j))
        yield from world.sleep(links[i].latency_s)
        begin = yield from world.use(down[i], links[i].down_s(num_bytes) / k, (1, *age, t, j))
        times.setdefault((f"{what}_start", t, i), begin)
        if j == k - 1:
            times[f"{what}_end", t, i] = world.now

    world.spawn(publisher())
    for load in rounds if settings.unmasks else ():
        world.spawn(unmasking(load))
    for turns in who.by_computer.values():
        world.spawn(computer(turns))
    world.run()
    return times
