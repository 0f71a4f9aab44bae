"""A small LoRA federation: two linear modules, clients with targets of their own, through the real server and replicas.

Client i minimises ½ Σ_modules ‖W + s_i B A − T_i‖² over its adapters, by K gradient steps.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import Parameter

from parablock_ray.algorithms.adapters import Target, all_ranks, find_targets
from parablock_ray.algorithms.base import Commit, LiveModel, Replica, RoundPlan, Update
from parablock_ray.algorithms.lora import Adapter
from parablock_ray.algorithms.methods import make_method, make_replica, make_server
from parablock_ray.algorithms.population import Population
from parablock_ray.algorithms.rng import generator
from parablock_ray.algorithms.wire import Wire
from parablock_ray.config.method import MethodConfig
from parablock_ray.config.server import Mean
from tests.algorithms.resuming import play_back
from tests.algorithms.toy import sent

SHAPES = {"layers.0.q_proj": (6, 5), "layers.1.q_proj": (4, 7)}


@dataclass(frozen=True)
class LoraToy:
    """What to run. `num_workers`: resident models, client c on model c mod num_workers. `resumes_after`: everything is
    made anew after this round, from what a checkpoint holds."""

    method: MethodConfig
    num_examples: tuple[int, ...] = (5, 9, 2)
    per_round: int | None = None
    wire_dtype: torch.dtype = torch.float32
    model_dtype: torch.dtype = torch.float32
    num_workers: int = 1
    seed: int = 0
    chunk_bytes: int = 64
    resumes_after: int | None = None

    @property
    def population(self) -> Population:
        return Population(self.num_examples, self.per_round or len(self.num_examples), self.seed)


@dataclass
class LoraHistory:
    """What happened. `starts[t, i]`: by module, (W, B, A) from which client i trained in round t."""

    targets: tuple[Target, ...] = ()
    plans: list[RoundPlan] = field(default_factory=list)
    starts: dict[tuple[int, int], list[tuple[Tensor, Tensor, Tensor]]] = field(default_factory=dict)
    uploads: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    updates: dict[tuple[int, int], Update] = field(default_factory=dict)  # (round, variant)
    commits: list[Commit] = field(default_factory=list)
    catch_up: dict[tuple[int, int], int] = field(default_factory=dict)
    final: dict[str, Tensor] = field(default_factory=dict)  # the master's weights, settled
    adapters: dict[str, Adapter] = field(default_factory=dict)  # by module, what the server says it ended with


def weights(seed: int) -> dict[str, Tensor]:
    """The model before the first round."""
    random = generator(seed, "toy")
    return {f"{name}.weight": torch.randn(shape, generator=random) for name, shape in SHAPES.items()}


def run_lora_toy(toy: LoraToy) -> LoraHistory:
    """Run all rounds, the drain included."""
    wire, population = Wire(toy.wire_dtype, toy.chunk_bytes), toy.population
    method = make_method(toy.method, population)
    master = weights(toy.seed)
    server = make_server(toy.method, population, master, wire, cut_through=False, rule=Mean())
    lives = [_live(toy) for _ in range(toy.num_workers)]
    replicas = [make_replica(toy.method, population, live, wire) for live in lives]
    states: dict[int, dict[str, Tensor]] = {}
    history = LoraHistory(targets=find_targets(master, toy.method.lora.target_modules))
    applied = [{} for _ in lives]
    for round in range(method.num_rounds):
        plan = method.plan(round)
        history.plans.append(plan)
        server.open(plan)
        for visit in plan.visits:
            worker = visit.client % toy.num_workers
            live, replica = lives[worker], replicas[worker]
            after = applied[worker].get(visit.variant, -1)
            for update in server.updates(after, plan.reads, visit.variant):
                replica.apply(update)
            replica.forget(plan.reads)
            applied[worker][visit.variant] = max(after, plan.reads)
            history.catch_up[round, visit.client] = server.catch_up_params(visit.client, round)
            before = {name: live.parameters[f"{name}.weight"].clone() for name in SHAPES}
            factors = replica.start(plan, visit)
            start = history.starts[round, visit.client] = _seen(live, history.targets, factors[0].shape[1])
            blocks = [history.targets[plan.block]] if toy.method.num_blocks > 1 else history.targets
            moves = [target in blocks for target in history.targets]
            trained = _train(toy, visit.client, start, moves, plan.lr)
            sizes = [factor.numel() for factor in factors]
            parts = [part.view_as(factor) for part, factor in zip(trained.split(sizes), factors, strict=True)]
            history.uploads[round, visit.client] = sent(replica, parts, wire)
            replica.remember(plan, visit, history.uploads[round, visit.client])
            for name, value in before.items():
                assert torch.equal(live.parameters[f"{name}.weight"], value), "a visit must leave the weights alone"
        for visit in plan.visits:
            upload = history.uploads[round, visit.client]
            for chunk, (start, end) in enumerate(wire.bounds(len(upload))):
                for made in server.receive(round, visit.client, chunk, upload[start:end]):
                    if isinstance(made, Commit):
                        history.commits.append(made)
                        states[round] = server.state()
        for variant in {visit.variant for visit in plan.visits}:
            history.updates[round, variant] = server.updates(round - 1, round, variant)[0]
        if round == toy.resumes_after:
            master = weights(toy.seed)
            server = make_server(toy.method, population, master, wire, cut_through=False, rule=Mean())
            lives = [_live(toy) for _ in range(toy.num_workers)]
            replicas = [make_replica(toy.method, population, live, wire) for live in lives]
            applied = [{} for _ in lives]
            of_client = partial(_hosted, replicas)
            play_back(server, of_client, history.plans, states, history.uploads, wire)
    server.settle()
    history.final = master
    history.adapters = dict(server.adapters())
    return history


def _hosted(replicas: list[Replica], client: int) -> Replica:
    return replicas[client % len(replicas)]


def _live(toy: LoraToy) -> LiveModel:
    exact = weights(toy.seed)
    parameters = {name: Parameter(value.to(toy.model_dtype), requires_grad=False) for name, value in exact.items()}
    for target in find_targets(exact, toy.method.lora.target_modules):
        for rank in all_ranks(toy.method.lora):
            parameters[target.factor("A", rank)] = Parameter(torch.full((rank, target.n), torch.nan))
            parameters[target.factor("B", rank)] = Parameter(torch.full((target.m, rank), torch.nan))
    lossy = exact if toy.model_dtype == torch.bfloat16 else {}
    return LiveModel(parameters, lossy, lambda rank: None)


def _seen(live: LiveModel, targets: tuple[Target, ...], rank: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    names = [(target.weight, target.factor("B", rank), target.factor("A", rank)) for target in targets]
    return [tuple(live.parameters[name].detach().clone() for name in module) for module in names]


def _train(
    toy: LoraToy, client: int, start: list[tuple[Tensor, Tensor, Tensor]], moves: list[bool], lr: float
) -> Tensor:
    """K gradient steps on the factors (on B alone where A is frozen), as one flat fp32 vector."""
    trained = []
    random = generator(toy.seed, "toy target", client)
    for (W, B, A), trains in zip(start, moves, strict=True):
        goal = torch.randn(W.shape, generator=random)
        if not trains:
            continue
        scaling = toy.method.lora.alpha / B.shape[1]
        for _ in range(toy.method.local_steps):
            error = W.float() + scaling * B @ A - goal
            step_A = scaling * B.T @ error
            B = B - lr * scaling * error @ A.T
            A = A if toy.method.name == "ffa_lora" else A - lr * step_A
        trained += [B] if toy.method.name == "ffa_lora" else [B, A]
    return torch.cat([each.reshape(-1) for each in trained])
