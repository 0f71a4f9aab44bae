"""A small exact federation: quadratic clients on a model of a few numbers, through the real server and replicas.

Client i minimises ½ (x − c_i)ᵀ A_i (x − c_i) over the whole vector x; local training is K gradient steps on the
coordinates of one block. Everything that a round did is kept, so that tests can hold it against the rule.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial

import torch
from torch import Tensor

from parablock_ray.algorithms.base import Commit, LiveModel, Replica, RoundPlan, Server, Update, Visit
from parablock_ray.algorithms.methods import make_method, make_replica, make_server
from parablock_ray.algorithms.population import Population
from parablock_ray.algorithms.rng import generator
from parablock_ray.algorithms.wire import Wire
from parablock_ray.config.method import MethodConfig
from parablock_ray.config.server import Mean, Rule
from tests.algorithms.resuming import play_back

NUM_LAYERS, LAYER_SHAPE = 6, (3, 2)
SIZE = NUM_LAYERS * 6


@dataclass(frozen=True)
class Toy:
    """What to run. `heterogeneity` 0 makes all clients identical; `arrival` reorders the uploads of a round;
    `resumes_after`: everything is made anew after this round, from what a checkpoint holds."""

    method: MethodConfig
    num_examples: tuple[int, ...] = (5, 9, 2, 7)
    per_round: int | None = None
    heterogeneity: float = 1.0
    seed: int = 0
    wire_dtype: torch.dtype = torch.float64
    model_dtype: torch.dtype = torch.float64
    master_dtype: torch.dtype = torch.float64
    chunk_bytes: int = 40
    cut_through: bool = False
    rule: Rule = field(default_factory=Mean)
    num_workers: int = 1
    arrival: Callable[[list[tuple[int, int]]], list[tuple[int, int]]] = lambda messages: messages
    resumes_after: int | None = None


@dataclass
class History:
    """What happened. `starts[t, i]` is all of z_i in round t; `versions[t + 1]` is the master after round t."""

    plans: list[RoundPlan] = field(default_factory=list)
    starts: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    deltas: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    versions: list[Tensor] = field(default_factory=list)
    block_slices: list[slice] = field(default_factory=list)

    @property
    def final(self) -> Tensor:
        return self.versions[-1]


def run_toy(toy: Toy) -> History:
    """Run all rounds, the drain included, one client after the other."""
    population = Population(toy.num_examples, toy.per_round or len(toy.num_examples), toy.seed)
    method = make_method(toy.method, population)
    wire = Wire(toy.wire_dtype, toy.chunk_bytes)
    master, server, lives, replicas = make_all(toy, population, wire)
    states: dict[int, dict[str, Tensor]] = {}
    blocks = server.layout.blocks
    history = History(versions=[_all(master)], block_slices=_slices(blocks))
    applied = [-1] * toy.num_workers
    arrived: list[tuple[Tensor, Tensor]] = []
    for round in range(method.num_rounds):
        plan = method.plan(round)
        history.plans.append(plan)
        server.open(plan)
        messages = []
        for visit in plan.visits:
            worker = visit.client % toy.num_workers
            live, replica = lives[worker], replicas[worker]
            for update in server.updates(applied[worker], plan.reads, visit.variant):
                chunks = tuple(update.values[start:end] for start, end in wire.bounds(len(update.values)))
                arrived += [(chunk, chunk.clone()) for chunk in chunks]
                for part in _as_it_comes(replica, replace(update, chunks=chunks)):
                    replica.apply(part)
            replica.forget(plan.reads)
            applied[worker] = max(applied[worker], plan.reads)
            delta = _visit(toy, replica, live, blocks[plan.block].names, plan, visit, history)
            bounds = wire.bounds(len(delta))
            messages += [(visit.client, chunk) for chunk in range(len(bounds))]
            history.deltas[round, visit.client] = delta
        for client, chunk in toy.arrival(messages):
            start, end = bounds[chunk]
            for made in server.receive(round, client, chunk, history.deltas[round, client][start:end]):
                if isinstance(made, Commit):
                    history.versions.append(_all(master))
                    states[round] = server.state()
        if round == toy.resumes_after:
            master, server, lives, replicas = make_all(toy, population, wire)
            applied = [-1] * toy.num_workers
            of_client = partial(_hosted, replicas)
            play_back(server, of_client, history.plans, states, history.deltas, wire)
            assert torch.equal(_all(master), history.final)
    assert all(torch.equal(*pair) for pair in arrived), "what arrives may be others' too, and is only read"
    return history


def _as_it_comes(replica: Replica, update: Update) -> Iterator[Update]:
    """Even rounds as a whole. Odd ones in parts, where the replica takes them, and the first part before that with
    wrong numbers, as when a client is refused in mid-round."""
    if update.round % 2 == 0 or not replica.takes_parts:
        yield update
        return
    yield replace(update, chunks=(update.chunks[0] + 1,))
    start = 0
    for chunk in update.chunks:
        yield replace(update, chunks=(chunk,), start=start)
        start += len(chunk)


def make_all(
    toy: Toy, population: Population, wire: Wire
) -> tuple[dict[str, Tensor], Server, list[dict[str, Tensor]], list[Replica]]:
    """The master's parameters and its server, the workers' models and their replicas."""
    master = _parameters(toy, toy.master_dtype)
    server = make_server(toy.method, population, master, wire, toy.cut_through, toy.rule)
    lives = [_parameters(toy, toy.model_dtype) for _ in range(toy.num_workers)]
    exact = {name: tensor.float() for name, tensor in master.items()} if toy.model_dtype == torch.bfloat16 else {}
    replicas = [
        make_replica(toy.method, population, LiveModel(live, exact, activate=lambda rank: None), wire) for live in lives
    ]
    return master, server, lives, replicas


def _hosted(replicas: Sequence[Replica], client: int) -> Replica:
    return replicas[client % len(replicas)]


def objective(toy: Toy, x: Tensor) -> float:
    """The federation's objective at x: Σ w_i f_i(x)."""
    total = sum(toy.num_examples)
    losses = [_loss(toy, client, x) * n / total for client, n in enumerate(toy.num_examples)]
    return float(sum(losses))


def _visit(
    toy: Toy,
    replica: Replica,
    live: dict[str, Tensor],
    names: Sequence[str],
    plan: RoundPlan,
    visit: Visit,
    history: History,
) -> Tensor:
    before = _all(live)
    replica.start(plan, visit)
    history.starts[plan.round, visit.client] = _all(live)
    trained = _train(toy, visit.client, live, names, plan)
    delta = sent(replica, trained, Wire(toy.wire_dtype, toy.chunk_bytes))
    replica.remember(plan, visit, delta)
    assert torch.equal(_all(live), before), "a visit must leave the resident model as it was"
    return delta


def sent(replica: Replica, trained: Sequence[Tensor], wire: Wire) -> Tensor:
    """What a visit sends, made chunk by chunk in the same memory, as a worker does."""
    bounds = wire.bounds(sum(each.numel() for each in trained))
    memory = torch.empty(max(end - start for start, end in bounds), dtype=wire.dtype)
    into = (memory[: end - start] for start, end in bounds)
    return torch.cat([chunk.clone() for chunk in replica.finish(trained, into)])


def _train(toy: Toy, client: int, live: dict[str, Tensor], names: Sequence[str], plan: RoundPlan) -> list[Tensor]:
    """K gradient steps on the named parameters, on a wide master as the engine does; returns them."""
    wide = torch.promote_types(toy.model_dtype, torch.float32)
    everything = _all(live).to(wide)
    order = list(live)
    offsets = {name: index * 6 for index, name in enumerate(order)}
    for _ in range(toy.method.local_steps):
        gradient = _gradient(toy, client, everything)
        for name in names:
            part = slice(offsets[name], offsets[name] + 6)
            everything[part] -= plan.lr * gradient[part]
    return [everything[offsets[name] : offsets[name] + 6].view_as(live[name]) for name in names]


@cache
def _quadratic(seed: int, heterogeneity: float, client: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(A_i, c_i): a common part, and the client's own scaled by the heterogeneity."""
    (a, c), (own_a, own_c) = (_drawn(generator(seed, "toy", which)) for which in (0, client + 1))
    return (a + heterogeneity * own_a).to(dtype), (c + heterogeneity * own_c).to(dtype)


def _drawn(random: torch.Generator) -> tuple[Tensor, Tensor]:
    root = torch.randn(SIZE, SIZE, generator=random, dtype=torch.float64) / SIZE**0.5
    return root @ root.T + torch.eye(SIZE), torch.randn(SIZE, generator=random, dtype=torch.float64)


def _gradient(toy: Toy, client: int, x: Tensor) -> Tensor:
    a, c = _quadratic(toy.seed, toy.heterogeneity, client, x.dtype)
    return a @ (x - c)


def _loss(toy: Toy, client: int, x: Tensor) -> Tensor:
    a, c = _quadratic(toy.seed, toy.heterogeneity, client, x.dtype)
    return 0.5 * (x - c) @ a @ (x - c)


def _parameters(toy: Toy, dtype: torch.dtype) -> dict[str, Tensor]:
    random = generator(toy.seed, "toy-start")
    return {
        f"model.layers.{layer}.weight": torch.randn(LAYER_SHAPE, generator=random, dtype=torch.float64).to(dtype)
        for layer in range(NUM_LAYERS)
    }


def _slices(blocks: Sequence) -> list[slice]:
    slices, offset = [], 0
    for block in blocks:
        slices.append(slice(offset, offset + block.num_params))
        offset += block.num_params
    return slices


def _all(parameters: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1).clone() for tensor in parameters.values()])
