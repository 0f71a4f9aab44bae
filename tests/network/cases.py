"""Runs to be timed: regular ones, random ones, and strategies for Hypothesis."""

import math
import random
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from parablock_ray.network.links import Link, ServerLink
from parablock_ray.network.timeline import ExchangeSettings, RoundLoad, Timeline, VisitLoad, simulate

MB = 1_000_000
CHUNK_BYTES = MB // 4
UNLIMITED = ServerLink(up_mbps=math.inf, down_mbps=math.inf)
PIPELINES = ("serial", "duplex")
EXCHANGES = ("store_and_forward", "cut_through")


@dataclass(frozen=True)
class Case:
    """Everything that `simulate` takes."""

    rounds: tuple[RoundLoad, ...]
    links: dict[int, Link]
    server: ServerLink
    how: ExchangeSettings

    def run(self) -> Timeline:
        return simulate(self.rounds, self.links, self.server, self.how)


def exchange(pipeline: str, exchange: str, chunk_bytes: int) -> ExchangeSettings:
    return ExchangeSettings(
        pipeline,  # type: ignore[arg-type]
        exchange,  # type: ignore[arg-type]
        chunk_bytes,
        shared_workers=False,
        unmasks=False,
    )


def full_cohorts(
    num_rounds: int, staleness: int, clients: dict[int, tuple[float, Link]], how: ExchangeSettings
) -> Case:
    """Each client trains for the same time in every round, and moves 1 MB each way."""
    visits = tuple(VisitLoad(client, client, c, MB, MB, 0) for client, (c, _) in clients.items())
    rounds = tuple(RoundLoad(t, t - 1 - staleness, visits) for t in range(num_rounds))
    return Case(rounds, {client: link for client, (_, link) in clients.items()}, UNLIMITED, how)


def equal_clients(num_rounds: int, staleness: int, c: float, u: float, d: float, how: ExchangeSettings) -> Case:
    """Three of them; 1 MB takes u seconds up and d seconds down."""
    link = Link(up_mbps=8 / u, down_mbps=8 / d, latency_s=0.0, half_duplex=False)
    return full_cohorts(num_rounds, staleness, dict.fromkeys(range(3), (c, link)), how)


NO_QUEUES = ["equal", "unequal", "latency", "shared", "partial", "partial latency shared"]
QUEUES = [
    "half_duplex",
    "equal half_duplex",
    "server",
    "equal server",
    "half_duplex server latency shared",
    "half_duplex server latency partial",
]


def random_case(kind: str, num_rounds: int, staleness: int, pipeline: str, mode: str) -> Case:
    """`kind` says in words what is special. Blocks differ in size and in compute time."""
    rng = random.Random(f"{kind} {num_rounds} {staleness} {pipeline} {mode}")
    words = kind.split()
    clients = range(6 if "partial" in words else 3)
    links = {client: random_link(rng, words) for client in clients}
    if "equal" in words:
        links = dict.fromkeys(clients, links[0])
    server = ServerLink(rng.uniform(8, 30), rng.uniform(8, 30)) if "server" in words else UNLIMITED
    rounds = tuple(random_round(rng, words, t, t - 1 - staleness, clients) for t in range(num_rounds))
    how = replace(exchange(pipeline, mode, CHUNK_BYTES), shared_workers="shared" in words)
    return Case(rounds, links, server, how)


def random_link(rng: random.Random, words: list[str]) -> Link:
    latency_s = rng.uniform(0, 0.5) if "latency" in words else 0.0
    return Link(rng.uniform(4, 12), rng.uniform(4, 12), latency_s, "half_duplex" in words)


def random_round(rng: random.Random, words: list[str], t: int, reads: int, clients: range) -> RoundLoad:
    cohort = rng.sample(clients, rng.randint(1, 3) if "partial" in words else len(clients))
    num_chunks = rng.randint(1, 5)
    visits = []
    for client in cohort:
        up_bytes, down_bytes = (num_chunks * CHUNK_BYTES - rng.randrange(CHUNK_BYTES) for _ in range(2))
        catch_up_bytes = rng.randrange(2) * rng.randrange(3 * MB) if "partial" in words else 0
        visits.append(VisitLoad(client, client % 2, rng.uniform(0.2, 2), up_bytes, down_bytes, catch_up_bytes))
    if "equal" in words:
        visits = [replace(visits[0], client=client) for client in cohort]
    return RoundLoad(t, reads, tuple(visits))


# All times are multiples of a power of two, hence exact: ties really are ties.
RATES_MBPS = st.sampled_from([4.0, 8.0, 16.0])


@st.composite
def cases(draw: st.DrawFn, queues: bool, partial: bool, max_rounds: int = 7) -> Case:
    """`queues`: half-duplex links and a limited server too. `partial`: cohorts and catch-ups too."""
    clients = range(draw(st.integers(1, 3)))
    staleness = draw(st.integers(0, 3))
    num_rounds = draw(st.integers(1, max_rounds))
    rounds = tuple(draw(round_loads(t, t - 1 - staleness, clients, partial)) for t in range(num_rounds))
    half_duplex = st.booleans() if queues else st.just(False)
    latency_s = st.sampled_from([0.0, 0.125, 0.5])
    links = {client: draw(st.builds(Link, RATES_MBPS, RATES_MBPS, latency_s, half_duplex)) for client in clients}
    server = draw(st.builds(ServerLink, RATES_MBPS, RATES_MBPS)) if queues and draw(st.booleans()) else UNLIMITED
    how = st.builds(
        ExchangeSettings,
        st.sampled_from(PIPELINES),
        st.sampled_from(EXCHANGES),
        st.just(CHUNK_BYTES),
        st.booleans(),
        unmasks=st.booleans(),
    ).filter(lambda how: how.exchange == "store_and_forward" or not how.unmasks)
    return Case(rounds, links, server, draw(how))


@st.composite
def round_loads(draw: st.DrawFn, t: int, reads: int, clients: range, partial: bool) -> RoundLoad:
    everybody = st.permutations(clients)
    cohort = draw(st.lists(st.sampled_from(clients), min_size=1, unique=True) if partial else everybody)
    num_bytes = draw(st.integers(1, 5)) * CHUNK_BYTES
    catch_up_bytes = st.sampled_from([0, CHUNK_BYTES, 3 * CHUNK_BYTES]) if partial else st.just(0)
    visits = tuple(
        VisitLoad(client, client % 2, draw(st.integers(1, 16)) / 8, num_bytes, num_bytes, draw(catch_up_bytes))
        for client in cohort
    )
    return RoundLoad(t, reads, visits)
