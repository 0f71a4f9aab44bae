"""The plan of a run: blocks, seconds, bytes, memory, who computes where, and advice. Pure: loads and starts nothing."""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from parablock_ray.algorithms.blocks import Block
from parablock_ray.errors import UserError
from parablock_ray.network.timeline import VisitLoad
from parablock_ray.planning.advice import advice
from parablock_ray.planning.memory import Memory, memory
from parablock_ray.planning.overlap import overlapped, sequential
from parablock_ray.planning.scenario import Scenario
from parablock_ray.runtime.base import worker_of
from parablock_ray.sizes import upload_bytes

PIPELINES = ("serial", "duplex")
EXCHANGES = ("store_and_forward", "cut_through")


@dataclass(frozen=True)
class BlockFigures:
    """One block. Seconds of a visit, an upload and a download are the median client's; transfers without latency."""

    index: int
    num_params: int
    wire_bytes: int
    step_s: float
    visit_s: float
    upload_s: float
    download_s: float


@dataclass(frozen=True)
class Case:
    """One way to make the run. `round_s` is `total_s` over the rounds; `speed` is over the method without overlap
    over the config's own network. `left_out` says why where there are no seconds."""

    method: str
    staleness: int
    pipeline: str
    exchange: str
    is_configured: bool
    total_s: float | None
    round_s: float | None
    speed: float | None
    left_out: str | None


@dataclass(frozen=True)
class Traffic:
    """Payload bytes in one direction. The client figures are of the whole run, over all clients."""

    total_bytes: int
    round_bytes: float
    client_mean_bytes: float
    client_max_bytes: int


@dataclass(frozen=True)
class Who:
    """`clients_of[w]`: the clients that worker w trains, in turn."""

    num_clients: int
    per_round: int
    num_workers: int
    clients_of: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Plan:
    """What to expect of a run. `peak_rss_bytes` by process, where the seconds of a step were measured."""

    name: str
    num_rounds: int
    network_mode: str
    network: str
    step_s_from: str
    who: Who
    blocks: tuple[BlockFigures, ...]
    cases: tuple[Case, ...]
    traffic: Mapping[str, Traffic]
    memory: tuple[Memory, ...]
    peak_rss_bytes: Mapping[str, int] | None
    advice: tuple[str, ...]

    @property
    def configured(self) -> Case:
        """The run as the config has it."""
        return next(case for case in self.cases if case.is_configured)

    def as_json(self) -> dict[str, Any]:
        """Everything in plain types; memory with its totals."""
        totals = [asdict(each) | {"total_bytes": each.total_bytes} for each in self.memory]
        return asdict(self) | {"memory": totals}


def plan(scenario: Scenario, step_s_from: str, peak_rss_bytes: Mapping[str, int] | None) -> Plan:
    """What to expect of the scenario's run. Raises UserError for what a run would refuse."""
    config = scenario.config
    return Plan(
        name=config.name,
        num_rounds=len(scenario.loads),
        network_mode=config.network.mode,
        network=config.network.described(),
        step_s_from=step_s_from,
        who=_who(scenario),
        blocks=tuple(_figures(scenario, block) for block in scenario.layout.blocks),
        cases=_cases(scenario),
        traffic=_traffic(scenario),
        memory=memory(scenario),
        peak_rss_bytes=peak_rss_bytes,
        advice=tuple(advice(scenario)),
    )


def _who(scenario: Scenario) -> Who:
    num_clients, num_workers = scenario.population.num_clients, scenario.num_workers
    clients_of: list[list[int]] = [[] for _ in range(num_workers)]
    for client in range(num_clients):
        clients_of[worker_of(client, num_workers)].append(client)
    cohort = max(len(load.visits) for load in scenario.loads)
    return Who(num_clients, cohort, num_workers, tuple(map(tuple, clients_of)))


def _figures(scenario: Scenario, block: Block) -> BlockFigures:
    step_s, wire_bytes = scenario.step_s[block.index], scenario.wire.num_bytes(block.num_params)
    pricing, links = scenario.pricing, scenario.pricing.links
    up_bytes = upload_bytes(scenario.config, block.num_params, scenario.config.clients.cohort_size)
    return BlockFigures(
        index=block.index,
        num_params=block.num_params,
        wire_bytes=wire_bytes,
        step_s=step_s,
        visit_s=statistics.median(pricing.visit_s(client, step_s) for client in links),
        upload_s=statistics.median(link.up_s(up_bytes) for link in links.values()),
        download_s=statistics.median(link.down_s(wire_bytes) for link in links.values()),
    )


def _cases(scenario: Scenario) -> tuple[Case, ...]:
    """The method without overlap and with it, over every exchange and pipeline. One of them is the config's own."""
    config = scenario.config
    control = sequential(scenario)
    control_s = control.total_s(config.network)  # raises what a run of it would raise
    runs = [control, *([other] if (other := overlapped(scenario)) else [])]
    cases = [
        _case(each, pipeline, exchange, control_s, is_own=each.config.method.staleness == config.method.staleness)
        for each, exchange, pipeline in product(runs, EXCHANGES, PIPELINES)
    ]
    return tuple(cases)


def _case(scenario: Scenario, pipeline: str, exchange: str, control_s: float, is_own: bool) -> Case:
    method, network = scenario.config.method, scenario.config.network
    is_configured = is_own and (pipeline, exchange) == (network.pipeline, network.exchange)
    case = Case(method.name, method.staleness, pipeline, exchange, is_configured, None, None, None, None)
    if exchange == "cut_through" and not method.by_chunk:
        return replace(case, left_out="its server needs whole adapters before it can publish a chunk")
    if exchange == "cut_through" and scenario.config.secure_aggregation.enabled:
        return replace(case, left_out="nothing may be unmasked before it is fixed whose updates are in the sum")
    try:
        total_s = scenario.total_s(network.model_copy(update={"pipeline": pipeline, "exchange": exchange}))
    except UserError as error:
        return replace(case, left_out=str(error))
    speed = control_s / total_s if total_s else None
    return replace(case, total_s=total_s, round_s=total_s / len(scenario.loads), speed=speed)


def _traffic(scenario: Scenario) -> dict[str, Traffic]:
    return {
        "up": _traffic_of(scenario, lambda visit: visit.up_bytes),
        "down": _traffic_of(scenario, lambda visit: visit.down_bytes),
        "catch_up": _traffic_of(scenario, lambda visit: visit.catch_up_bytes),
    }


def _traffic_of(scenario: Scenario, bytes_of: Callable[[VisitLoad], int]) -> Traffic:
    by_client = Counter[int]()
    for load in scenario.loads:
        for visit in load.visits:
            by_client[visit.client] += bytes_of(visit)
    total_bytes = by_client.total()
    return Traffic(
        total_bytes=total_bytes,
        round_bytes=total_bytes / len(scenario.loads),
        client_mean_bytes=total_bytes / scenario.population.num_clients,
        client_max_bytes=max(by_client.values()),
    )
