"""The clock: closed forms of docs/methods.md, brute force, properties that must hold, small cases by hand."""

import math
import random
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parablock_ray.errors import UserError
from parablock_ray.network.links import Link, ServerLink
from parablock_ray.network.timeline import (
    ExchangeSettings,
    Interval,
    RoundLoad,
    Timeline,
    VisitLoad,
    simulate,
)
from tests.network.brute_force import Times, recursion, story
from tests.network.cases import (
    EXCHANGES,
    MB,
    NO_QUEUES,
    PIPELINES,
    QUEUES,
    UNLIMITED,
    Case,
    cases,
    equal_clients,
    exchange,
    full_cohorts,
    random_case,
)


def exchange_s(u: float, d: float, how: ExchangeSettings) -> float:
    """m: one block up and down again."""
    num_chunks = MB / how.chunk_bytes
    return u + d if how.exchange == "store_and_forward" else max(u, d) + min(u, d) / num_chunks


def flat(timeline: Timeline) -> Times:
    times: Times = {}
    for round in timeline.rounds:
        times["commit", round.round, -1] = round.commit_s
        for client, visit in round.visits.items():
            times["arrival", round.round, client] = visit.arrival_s
            for what in ("compute", "upload", "download", "catch_up"):
                interval = getattr(visit, what)
                if interval:
                    times[f"{what}_start", round.round, client] = interval.start_s
                    times[f"{what}_end", round.round, client] = interval.end_s
    return times


def assert_same(timeline: Timeline, times: Times) -> None:
    assert flat(timeline) == pytest.approx(times, rel=1e-9, abs=1e-12)
    last = max(time_s for (what, _, _), time_s in times.items() if what == "download_end")
    assert timeline.seconds == pytest.approx(last, rel=1e-9)


# ---- closed forms

SECONDS = [(1.0, 1.0, 1.0), (1.0, 1.5, 1.5), (4.0, 1.0, 2.0), (0.5, 3.0, 1.0), (1.0, 0.25, 2.0)]


@pytest.mark.parametrize(
    ("pipeline", "mode", "staleness", "c", "m_half", "seconds"),
    [
        ("serial", "store_and_forward", 0, 1.0, 1.0, 300),
        ("serial", "store_and_forward", 1, 1.0, 1.0, 201),
        ("duplex", "store_and_forward", 1, 1.0, 1.0, 151),
        ("serial", "cut_through", 1, 1.0, 1.0, 107.25),
        ("duplex", "cut_through", 1, 1.0, 1.0, 104.125),
        ("duplex", "store_and_forward", 0, 1.0, 1.5, 400),
        ("serial", "store_and_forward", 1, 1.0, 1.5, 301),
        ("duplex", "store_and_forward", 1, 1.0, 1.5, 201.5),
        ("duplex", "store_and_forward", 1, 1.0, 2.0, 252),
        ("duplex", "store_and_forward", 2, 1.0, 2.0, 203),
    ],
)
def test_printed_examples(pipeline: str, mode: str, staleness: int, c: float, m_half: float, seconds: float) -> None:
    case = equal_clients(100, staleness, c, m_half, m_half, exchange(pipeline, mode, MB // 16))
    assert case.run().seconds == pytest.approx(seconds, rel=1e-9)


@pytest.mark.parametrize("how", [exchange(p, e, MB // 8) for p, e in product(PIPELINES, EXCHANGES)], ids=str)
@pytest.mark.parametrize(("c", "u", "d"), SECONDS)
@pytest.mark.parametrize("num_rounds", [1, 2, 10, 30])
def test_fedbcd_with_equal_clients(num_rounds: int, c: float, u: float, d: float, how: ExchangeSettings) -> None:
    seconds = equal_clients(num_rounds, 0, c, u, d, how).run().seconds
    assert seconds == pytest.approx(num_rounds * (c + exchange_s(u, d, how)), rel=1e-9)


@pytest.mark.parametrize("mode", EXCHANGES)
@pytest.mark.parametrize(("c", "u", "d"), SECONDS)
@pytest.mark.parametrize("num_rounds", [1, 2, 10, 30])
def test_serial_parablock_with_equal_clients(num_rounds: int, c: float, u: float, d: float, mode: str) -> None:
    how = exchange("serial", mode, MB // 8)
    m = exchange_s(u, d, how)
    seconds = equal_clients(num_rounds, 1, c, u, d, how).run().seconds
    assert seconds == pytest.approx(c + (num_rounds - 1) * max(c, m) + m, rel=1e-9)


@pytest.mark.parametrize("mode", EXCHANGES)
@pytest.mark.parametrize("staleness", [0, 1, 2, 3])
@pytest.mark.parametrize(("c", "u", "d"), SECONDS)
def test_duplex_period_with_equal_clients(c: float, u: float, d: float, staleness: int, mode: str) -> None:
    how = exchange("duplex", mode, MB // 8)
    commits = [round.commit_s for round in equal_clients(49, staleness, c, u, d, how).run().rounds]
    period = max(c, u, d, (c + exchange_s(u, d, how)) / (staleness + 1))
    assert (commits[48] - commits[24]) / 24 == pytest.approx(period, rel=1e-9)


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("num_rounds", [1, 2, 10, 30])
def test_fedbcd_with_unequal_clients(num_rounds: int, pipeline: str) -> None:
    rng = random.Random(num_rounds)
    clients = {
        client: (rng.uniform(1, 3), Link(rng.uniform(4, 20), rng.uniform(4, 20), rng.uniform(0, 0.5), False))
        for client in range(5)
    }
    how = exchange(pipeline, "store_and_forward", MB // 4)
    first = max(c + link.up_s(MB) + link.latency_s for c, link in clients.values())
    between = max(c + link.up_s(MB) + link.down_s(MB) + 2 * link.latency_s for c, link in clients.values())
    last = max(link.down_s(MB) + link.latency_s for _, link in clients.values())
    seconds = full_cohorts(num_rounds, 0, clients, how).run().seconds
    assert seconds == pytest.approx(first + (num_rounds - 1) * between + last, rel=1e-9)


# ---- brute force


@pytest.mark.parametrize("mode", EXCHANGES)
@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("staleness", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", NO_QUEUES)
def test_equals_the_recursion(kind: str, staleness: int, pipeline: str, mode: str) -> None:
    for num_rounds in (1, 2, 10, 30, 100) if staleness == 1 else (1, 2, 10, 30):
        case = random_case(kind, num_rounds, staleness, pipeline, mode)
        assert_same(case.run(), recursion(case.rounds, case.links, case.how))


@pytest.mark.parametrize("mode", EXCHANGES)
@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("staleness", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", NO_QUEUES + QUEUES)
def test_equals_the_story(kind: str, staleness: int, pipeline: str, mode: str) -> None:
    for num_rounds in (1, 2, 10):
        case = random_case(kind, num_rounds, staleness, pipeline, mode)
        assert_same(case.run(), story(case.rounds, case.links, case.server, case.how))


@pytest.mark.parametrize(
    ("num_rounds", "staleness", "pipeline", "mode", "kind"),
    [
        (30, 1, "serial", "cut_through", "half_duplex"),
        (30, 2, "duplex", "cut_through", "half_duplex server latency partial"),
        (30, 1, "serial", "store_and_forward", "half_duplex server latency shared"),
        (30, 0, "duplex", "store_and_forward", "equal server"),
        (100, 1, "duplex", "cut_through", "half_duplex server latency partial"),
    ],
)
def test_equals_the_story_of_long_runs(num_rounds: int, staleness: int, pipeline: str, mode: str, kind: str) -> None:
    case = random_case(kind, num_rounds, staleness, pipeline, mode)
    assert_same(case.run(), story(case.rounds, case.links, case.server, case.how))


# ---- properties

examples = settings(max_examples=150, deadline=None, derandomize=True)


@examples
@given(cases(queues=True, partial=True))
def test_equals_the_story_when_much_is_tied(case: Case) -> None:
    assert_same(case.run(), story(case.rounds, case.links, case.server, case.how))


@examples
@given(cases(queues=True, partial=True))
def test_never_beats_its_busiest_resource(case: Case) -> None:
    bound_s = 0.0
    visits = [visit for load in case.rounds for visit in load.visits]
    down_bytes = {id(visit): visit.down_bytes + visit.catch_up_bytes for visit in visits}
    for client, link in case.links.items():
        mine = [visit for visit in visits if visit.client == client]
        up_s = sum(link.up_s(visit.up_bytes) for visit in mine)
        down_s = sum(link.down_s(down_bytes[id(visit)]) for visit in mine)
        line_s = up_s + down_s if link.half_duplex else max(up_s, down_s)
        bound_s = max(bound_s, line_s, sum(visit.compute_s for visit in mine))
    for worker in (0, 1) if case.how.shared_workers else ():
        bound_s = max(bound_s, sum(visit.compute_s for visit in visits if visit.worker == worker))
    bound_s = max(bound_s, sum(case.server.up_s(visit.up_bytes) for visit in visits))
    bound_s = max(bound_s, sum(case.server.down_s(down_bytes[id(visit)]) for visit in visits))
    assert case.run().seconds >= bound_s


@examples
@given(cases(queues=False, partial=False))
def test_staleness_never_slows_a_run(case: Case) -> None:
    """In particular, no overlapped run is slower than the sequential one of the same load."""
    runs_s = [
        replace(case, rounds=tuple(replace(load, reads=load.round - 1 - s) for load in case.rounds)).run().seconds
        for s in range(4)
    ]
    assert runs_s == sorted(runs_s, reverse=True)


@examples
@given(cases(queues=False, partial=True), st.sampled_from(["up_mbps", "down_mbps"]), st.sampled_from([2, 1.25]))
def test_a_faster_link_never_slows_a_run(case: Case, direction: str, factor: float) -> None:
    before_s = case.run().seconds
    for client, link in case.links.items():
        faster = replace(link, **{direction: factor * getattr(link, direction)})
        assert replace(case, links={**case.links, client: faster}).run().seconds <= before_s + 1e-9


@examples
@given(cases(queues=False, partial=True))
def test_cut_through_and_duplex_never_slow_a_run(case: Case) -> None:
    slow = replace(case, how=replace(case.how, pipeline="serial", exchange="store_and_forward")).run()
    for pipeline, mode in product(PIPELINES, EXCHANGES):
        how = replace(case.how, pipeline=pipeline, exchange=mode)  # type: ignore[arg-type]
        assert replace(case, how=how).run().seconds <= slow.seconds + 1e-9


@examples
@given(cases(queues=True, partial=True), st.randoms(use_true_random=False))
def test_plan_order_matters_on_shared_workers_only(case: Case, rng: random.Random) -> None:
    case = replace(case, how=replace(case.how, shared_workers=False))
    shuffled = tuple(replace(load, visits=tuple(rng.sample(load.visits, len(load.visits)))) for load in case.rounds)
    assert flat(replace(case, rounds=shuffled).run()) == flat(case.run())


# ---- by hand


def visit(client: int, compute_s: float, num_mb: int, catch_up_mb: int) -> VisitLoad:
    return VisitLoad(client, 0, compute_s, num_mb * MB, num_mb * MB, catch_up_mb * MB)


def one_by_one(*visits: VisitLoad, staleness: int) -> tuple[RoundLoad, ...]:
    return tuple(RoundLoad(t, t - 1 - staleness, (load,)) for t, load in enumerate(visits))


MB_A_SECOND = Link(up_mbps=8, down_mbps=8, latency_s=0.0, half_duplex=False)
FREE = Link(up_mbps=math.inf, down_mbps=math.inf, latency_s=0.0, half_duplex=False)
PLAIN = exchange("duplex", "store_and_forward", MB)


def test_every_time_of_one_visit() -> None:
    link = Link(up_mbps=4, down_mbps=8, latency_s=0.25, half_duplex=False)
    timeline = simulate(one_by_one(visit(7, 3.0, 1, 0), staleness=1), {7: link}, UNLIMITED, PLAIN)
    (round,) = timeline.rounds
    assert (round.publish_s, round.commit_s, timeline.seconds) == ((5.25,), 5.25, 6.5)
    times = round.visits[7]
    assert (times.wait_s, times.catch_up, times.compute) == (0.0, None, Interval(0.0, 3.0))
    assert (times.upload, times.arrival_s, times.download) == (Interval(3.0, 5.0), 5.25, Interval(5.5, 6.5))


def test_cut_through_publishes_every_chunk() -> None:
    how = exchange("duplex", "cut_through", MB // 2)
    timeline = simulate(one_by_one(visit(0, 1.0, 1, 0), staleness=0), {0: MB_A_SECOND}, UNLIMITED, how)
    (round,) = timeline.rounds
    assert round.publish_s == (1.5, 2.0)
    assert round.visits[0].download == Interval(1.5, 2.5)


def test_a_newcomer_waits_for_the_commit_and_then_catches_up() -> None:
    rounds = one_by_one(visit(0, 1.0, 1, 0), visit(1, 1.0, 1, 3), visit(0, 1.0, 1, 0), staleness=0)
    links = dict.fromkeys((0, 1), replace(MB_A_SECOND, latency_s=0.5))
    timeline = simulate(rounds, links, UNLIMITED, PLAIN)
    first, second, third = timeline.rounds
    assert first.commit_s == 2.5
    late = second.visits[1]
    assert (late.catch_up, late.compute, late.wait_s) == (Interval(3.0, 6.0), Interval(6.0, 7.0), 6.0)
    assert second.commit_s == 8.5
    # Client 0 took no part in round 1 and has nothing to catch up: it starts at that commit.
    assert third.visits[0].compute == Interval(8.5, 9.5)
    assert third.visits[0].wait_s == 7.5


def test_rounds_commit_in_order() -> None:
    rounds = one_by_one(visit(0, 9.0, 1, 0), visit(1, 1.0, 1, 0), staleness=1)
    timeline = simulate(rounds, dict.fromkeys((0, 1), MB_A_SECOND), UNLIMITED, PLAIN)
    assert timeline.rounds[1].visits[1].arrival_s == 2.0
    assert [round.commit_s for round in timeline.rounds] == [10.0, 10.0]


def test_a_half_duplex_line_prefers_uploads_among_ties() -> None:
    # At 2 s round 0 is published, and round 1 has been trained.
    rounds = one_by_one(visit(0, 1.0, 1, 0), visit(0, 1.0, 1, 0), staleness=1)
    link = replace(MB_A_SECOND, half_duplex=True)
    first, second = simulate(rounds, {0: link}, UNLIMITED, PLAIN).rounds
    assert second.visits[0].upload == Interval(2.0, 3.0)
    assert first.visits[0].download == Interval(3.0, 4.0)
    assert second.visits[0].download == Interval(4.0, 5.0)


def test_a_limited_server_serves_by_arrival_then_by_client() -> None:
    visits = tuple(visit(client, 1.0, 1, 0) for client in (2, 0, 1))
    links = {0: MB_A_SECOND, 1: replace(MB_A_SECOND, up_mbps=16), 2: MB_A_SECOND}
    server = ServerLink(up_mbps=8, down_mbps=8)
    (round,) = simulate([RoundLoad(0, -1, visits)], links, server, PLAIN).rounds
    assert {client: times.arrival_s for client, times in round.visits.items()} == {1: 2.5, 0: 3.5, 2: 4.5}
    assert {client: times.download.end_s for client, times in round.visits.items()} == {
        0: 6.5,
        1: 7.5,
        2: 8.5,
    }


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_unmasking_takes_the_slowest_client_there_and_back(pipeline: str) -> None:
    how = replace(exchange(pipeline, "store_and_forward", MB), unmasks=True)
    near, far = (Link(up_mbps=8, down_mbps=8, latency_s=latency_s, half_duplex=False) for latency_s in (0.25, 0.5))
    case = full_cohorts(4, 0, {0: (2.0, near), 1: (2.0, far)}, how)
    train, up, there, asked_and_back, told, down = 2, 1, 0.5, 2 * 0.5, 0.5, 1
    assert case.run().seconds == 4 * (train + up + there + asked_and_back + told + down)


def test_clients_of_a_shared_worker_train_in_turn() -> None:
    visits = (visit(1, 1.0, 1, 0), visit(0, 2.0, 1, 0))
    how = replace(PLAIN, shared_workers=True)
    rounds = [RoundLoad(t, t - 1, visits) for t in range(2)]
    first, second = simulate(rounds, {0: MB_A_SECOND, 1: MB_A_SECOND}, UNLIMITED, how).rounds
    assert list(first.visits) == [1, 0]
    assert [times.compute for times in first.visits.values()] == [Interval(0, 1), Interval(1, 3)]
    assert [times.compute for times in second.visits.values()] == [Interval(5, 6), Interval(6, 8)]
    assert [times.wait_s for times in second.visits.values()] == [2.0, 0.0]


def test_a_run_may_begin_at_any_round() -> None:
    case = random_case("latency", 10, 2, "serial", "cut_through")
    later = tuple(RoundLoad(load.round + 40, load.reads + 40, load.visits) for load in case.rounds)
    assert replace(case, rounds=later).run().seconds == case.run().seconds


def test_nothing_takes_no_time() -> None:
    assert simulate([], {}, UNLIMITED, PLAIN) == Timeline((), 0.0)
    free = simulate(one_by_one(visit(0, 0.0, 1, 0), staleness=0), {0: FREE}, UNLIMITED, PLAIN)
    assert free.seconds == 0.0
    nobody = simulate([RoundLoad(0, -1, ())], {}, UNLIMITED, exchange("serial", "cut_through", MB))
    assert (nobody.rounds[0].commit_s, nobody.seconds) == (0.0, 0.0)


def test_any_staleness_is_possible() -> None:
    """No recursion from round to round: 3,000 rounds, none of which waits for another's aggregate."""
    how = exchange("duplex", "store_and_forward", MB)
    assert full_cohorts(3000, 3000, {0: (1.0, MB_A_SECOND)}, how).run().seconds == 3002


def test_cut_through_refuses_unequal_messages() -> None:
    rounds = [RoundLoad(4, 3, (visit(0, 1.0, 2, 0), visit(1, 1.0, 1, 0)))]
    how = exchange("duplex", "cut_through", MB)
    with pytest.raises(UserError, match=r"network\.exchange.*round 4.*\[1, 2\] chunks"):
        simulate(rounds, {0: MB_A_SECOND, 1: MB_A_SECOND}, UNLIMITED, how)


@pytest.mark.parametrize(("rate_mbps", "seconds"), [(20, 48.7), (100, 9.7), (1000, 1.0), (math.inf, 0.0)], ids=str)
def test_megabits(rate_mbps: float, seconds: float) -> None:
    """A layer of Llama-3.2-1B in bf16, as in docs/methods.md."""
    link = Link(rate_mbps, 2 * rate_mbps, latency_s=0.1, half_duplex=True)
    assert round(link.up_s(121_643_008), 1) == seconds
    assert link.down_s(121_643_008) == pytest.approx(link.up_s(121_643_008) / 2)
    assert ServerLink(rate_mbps, rate_mbps).up_s(121_643_008) == link.up_s(121_643_008)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan])
def test_links_refuse_what_cannot_be(wrong: float) -> None:
    with pytest.raises(UserError, match="up_mbps"):
        Link(wrong, 1, 0, False)
    with pytest.raises(UserError, match="down_mbps"):
        ServerLink(1, wrong)
    with pytest.raises(UserError, match="latency"):
        Link(1, 1, wrong - 1, False)
