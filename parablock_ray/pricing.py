"""What a run did, handed to the one recurrence: the least time in which it could have been done."""

from collections.abc import Iterable

from parablock_ray.config.schema import NetworkConfig
from parablock_ray.network.links import ServerLink, client_link
from parablock_ray.network.timeline import ExchangeSettings, RoundLoad, VisitLoad, simulate
from parablock_ray.tracking.events import Committed, Event, Phase, Span


def round_loads(events: Iterable[Event], staleness: int) -> list[RoundLoad]:
    """What every client of every committed round computed and sent, as measured, in round order."""
    spans: dict[tuple[Phase, int, int], Span] = {}
    commits: list[Committed] = []
    for event in events:
        if isinstance(event, Committed):
            commits.append(event)
        else:
            spans[event.phase, event.round, event.client] = event

    def visit_load(round: int, client: int) -> VisitLoad:
        compute = spans["compute", round, client]
        catch_up = spans.get(("catch_up", round, client))
        return VisitLoad(
            client=client,
            worker=compute.worker,
            compute_s=compute.end_s - compute.start_s,
            up_bytes=spans["upload", round, client].num_bytes,
            down_bytes=spans["download", round, client].num_bytes,
            catch_up_bytes=catch_up.num_bytes if catch_up else 0,
        )

    return [
        RoundLoad(
            round=commit.round,
            reads=commit.round - 1 - staleness,
            visits=tuple(visit_load(commit.round, client) for client in commit.participants),
        )
        for commit in sorted(commits, key=lambda commit: commit.round)
    ]


def bound_s(loads: list[RoundLoad], network: NetworkConfig) -> float:
    """Seconds of these loads over these links with no overhead at all: the recurrence's makespan."""
    clients = {visit.client for load in loads for visit in load.visits}
    settings = ExchangeSettings(
        pipeline=network.pipeline,
        exchange=network.exchange,
        chunk_bytes=network.chunk_bytes,
        shared_workers=True,
    )
    links = {client: client_link(network, client) for client in clients}
    free = float("inf")
    return simulate(loads, links, ServerLink(free, free), settings).seconds
