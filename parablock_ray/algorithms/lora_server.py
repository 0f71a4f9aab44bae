"""The server's half of federated LoRA (docs/lora.md).

`FactorServer` for methods that are linear in the factors: these are blocks, and `BlockServer` does the work.
`LoraServer` for the others: it collects all adapters of a round, applies the method's rule to each module, and hands
out adapters to train on with, to merge into the weights, or both.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from parablock_ray.algorithms.adapters import (
    Pair,
    Target,
    all_ranks,
    client_ranks,
    find_targets,
    joined,
    random_A,
    taken_apart,
)
from parablock_ray.algorithms.base import Commit, ModuleRank, Publication, RoundPlan, Update
from parablock_ray.algorithms.block_server import BlockServer
from parablock_ray.algorithms.blocks import copy_kept
from parablock_ray.algorithms.lora import Adapter, fit, update_norm
from parablock_ray.algorithms.lora_methods import Collecting, ModuleUpdate, by_rank, rank_down, rule_of, starts_afresh
from parablock_ray.algorithms.population import Attendance, Population
from parablock_ray.algorithms.privacy import GaussianMean
from parablock_ray.algorithms.wire import Wire
from parablock_ray.config.lora import FactorMethod, FFALoRA
from parablock_ray.config.method import BlockMethod
from parablock_ray.config.server import Mean, Rule


class FactorServer:
    """`BlockServer` around the factors: FedIT's A and B, FFA-LoRA's B; any block method with `parameters: lora`."""

    def __init__(
        self,
        config: BlockMethod | FactorMethod,
        population: Population,
        parameters: Mapping[str, Tensor],
        wire: Wire,
        cut_through: bool,
        rule: Rule | GaussianMean,
    ) -> None:
        [rank] = all_ranks(config.lora)
        self._scaling = config.lora.alpha / rank
        targets = find_targets(parameters, config.lora.target_modules)
        self._names = [target.name for target in targets]
        self._weights = [parameters[target.weight] for target in targets]
        self._frozen = [weight.clone() for weight in self._weights]
        self._pairs = [(torch.zeros(each.m, rank), random_A(each, rank, population.seed)) for each in targets]
        trained: dict[str, Tensor] = {}
        for target, (B, A) in zip(targets, self._pairs, strict=True):
            trained |= {target.factor("B", rank): B}
            trained |= {} if isinstance(config, FFALoRA) else {target.factor("A", rank): A}
        self._blocks = BlockServer(config, population, trained, wire, cut_through, rule)

    def open(self, plan: RoundPlan) -> None:
        self._blocks.open(plan)

    def receive(self, round: int, client: int, chunk: int, values: Tensor) -> Iterator[Publication | Commit]:
        return self._blocks.receive(round, client, chunk, values)

    def receive_sum(
        self, round: int, steps: Tensor, scale: float, sum_of_weights: int
    ) -> Iterator[Publication | Commit]:
        return self._blocks.receive_sum(round, steps, scale, sum_of_weights)

    def drop(self, round: int, client: int) -> Iterator[Publication | Commit]:
        return self._blocks.drop(round, client)

    def refuse(self, round: int, client: int) -> Iterator[Publication | Commit]:
        return self._blocks.refuse(round, client)

    def upload_params(self, round: int, client: int) -> int:
        return self._blocks.upload_params(round, client)

    def updates(self, after: int, up_to: int, variant: int) -> Sequence[Update]:
        return self._blocks.updates(after, up_to, variant)

    def catch_up_params(self, client: int, round: int) -> int:
        return self._blocks.catch_up_params(client, round)

    def forget(self, up_to: int) -> None:
        self._blocks.forget(up_to)

    def settle(self) -> None:
        """W = W_0 + s · B A."""
        for weight, frozen, (B, A) in zip(self._weights, self._frozen, self._pairs, strict=True):
            weight.copy_(frozen + B @ (A * self._scaling))

    def adapters(self) -> dict[str, Adapter]:
        """The factors as they now stand."""
        return {name: Adapter(B, A, self._scaling) for name, (B, A) in zip(self._names, self._pairs, strict=True)}

    def state(self) -> dict[str, Tensor]:
        return self._blocks.state()

    def restore(self, plans: Sequence[RoundPlan], state: Mapping[str, Tensor]) -> None:
        self._blocks.restore(plans, state)


class _OpenRound:
    """A round on its way: the chunks that are in, by client."""

    def __init__(self, plan: RoundPlan, num_chunks: Mapping[int, int]) -> None:
        self.planned = self.plan = plan
        self.refused: set[int] = set()
        self._num_chunks = num_chunks
        self._chunks: dict[int, dict[int, Tensor]] = {client: {} for client in num_chunks}

    def add(self, client: int, chunk: int, values: Tensor) -> None:
        self._chunks[client][chunk] = values

    def drop(self, client: int) -> None:
        assert not self._chunks.pop(client), "it has sent something"
        self.plan = self.plan.without({client})

    @property
    def is_complete(self) -> bool:
        return all(len(chunks) == self._num_chunks[client] for client, chunks in self._chunks.items())

    def upload(self, client: int) -> Tensor:
        """A client's whole vector."""
        chunks = self._chunks[client]
        return torch.cat([chunks[index] for index in range(len(chunks))])


class LoraServer:
    """The master's frozen weights, what is merged into them, and the adapters that clients train on with.

    What is handed out is rounded to the wire dtype first: the server merges just what the clients merge.
    """

    def __init__(
        self,
        config: Collecting,
        population: Population,
        parameters: Mapping[str, Tensor],
        wire: Wire,
        cut_through: bool,
        rule: Rule | GaussianMean,
    ) -> None:
        assert not cut_through, "a rule needs whole adapters"
        assert isinstance(rule, Mean), "the method has a rule of its own"
        self.num_committed = 0
        self._config = config
        self._rule = rule_of(config)
        self._wire = wire
        self._ranks = client_ranks(config.lora, population.num_clients, population.seed)
        self._targets = find_targets(parameters, config.lora.target_modules)
        self._weights = [parameters[target.weight] for target in self._targets]
        # Everything merged, without the factors; the weights themselves while there are none.
        self._merged = self._weights
        self._open: dict[int, _OpenRound] = {}
        self._made: dict[int, list[ModuleUpdate]] = {}  # by round, as handed out; the latest, and what is not forgotten
        self._merge_params: list[int] = []  # by round
        self._restored: Update | None = None  # the weights from which a resumed run goes on, until all have them
        self._attendance = Attendance(all_start=True)  # of the initial model, which is public

    def open(self, plan: RoundPlan) -> None:
        """Expect the adapters of this round."""
        num_chunks = {visit.client: len(self._wire.bounds(self._num_params(visit.client))) for visit in plan.visits}
        self._open[plan.round] = _OpenRound(plan, num_chunks)
        self._attendance.note(plan)

    def receive(self, round: int, client: int, chunk: int, values: Tensor) -> Iterator[Publication | Commit]:
        """Take one chunk of one client's adapters; what this makes public, in order. To be iterated to its end."""
        self._open[round].add(client, chunk, values)
        return self._made_public()

    def receive_sum(
        self, round: int, steps: Tensor, scale: float, sum_of_weights: int
    ) -> Iterator[Publication | Commit]:
        """The config refuses it."""
        raise AssertionError("the rule needs every client's adapters")

    def drop(self, round: int, client: int) -> Iterator[Publication | Commit]:
        """This client, which has sent nothing of this round, is left out of it."""
        self._open[round].drop(client)
        self._attendance.drop(round, client)
        return self._made_public()

    def refuse(self, round: int, client: int) -> Iterator[Publication | Commit]:
        """What this client sent of this round has no part in it; it is not here, since whole adapters are judged before
        they come."""
        current = self._open[round]
        current.refused.add(client)
        current.drop(client)
        return self._made_public()

    def upload_params(self, round: int, client: int) -> int:
        """Those of adapters of its rank."""
        return self._num_params(client)

    def updates(self, after: int, up_to: int, variant: int) -> list[Update]:
        """What every round merged; factors replace those of the rounds before."""
        weights = []
        if self._restored is not None and after < self._restored.round:
            weights = [self._restored]
            after = self._restored.round - (self._restored.round in self._made)  # what it merged is in, its factors not
        rounds = range(after + 1, up_to + 1)
        needed = [round for round in rounds if round == up_to or any(self._merge_params[round : round + 1])]
        return weights + [self._update(round, variant) for round in needed]

    def catch_up_params(self, client: int, round: int) -> int:
        """What was merged in missed rounds, and the latest factors."""
        missed = self._attendance.missed(client, round)
        num_params = sum(self._merge_params[each] for each in missed)
        if round - 1 in missed and not starts_afresh(self._config):
            ranks = self._factor_ranks(round - 1, self._ranks[client])
            num_params += sum(target.num_params(rank) for target, rank in zip(self._targets, ranks, strict=True))
        return num_params

    def forget(self, up_to: int) -> None:
        """Let go of what was merged up to there."""
        for round in [round for round in self._made if round <= up_to and round < self.num_committed - 1]:
            del self._made[round]
        if self._restored is not None and up_to >= self._restored.round:
            self._restored = None

    def settle(self) -> None:
        """W = what is merged + the factors that clients train on with, if there are any."""
        if not self._made or self._made[self.num_committed - 1][0].factors is None:
            return
        for weight, merged, made in zip(self._weights, self._merged, self._made[self.num_committed - 1], strict=True):
            assert made.factors is not None
            B, A, scaling = made.factors
            weight.copy_(merged + B @ (A * scaling))

    def adapters(self) -> dict[str, Adapter]:
        """The factors that clients train on with; none where anything was merged into the weights."""
        if not self._made or any(self._merge_params):
            return {}
        latest = self._made[self.num_committed - 1]
        pairs = zip(self._targets, latest, strict=True)
        return {target.name: made.factors for target, made in pairs if made.factors is not None}

    def state(self) -> dict[str, Tensor]:
        """What is merged, how much each round merged, and the factors to train on with."""
        state = {"merge_params": torch.tensor(self._merge_params)}
        if any(self._merge_params):
            state |= {f"merged.{t.name}": merged.clone() for t, merged in zip(self._targets, self._merged, strict=True)}
        for target, made in zip(self._targets, self._made[self.num_committed - 1], strict=True):
            if made.factors is not None:
                B, A, scaling = made.factors
                state |= {f"B.{target.name}": B.clone(), f"A.{target.name}": A.clone()}
                state[f"scaling.{target.name}"] = torch.tensor(scaling, dtype=torch.float64)
        return state

    def restore(self, plans: Sequence[RoundPlan], state: Mapping[str, Tensor]) -> None:
        """Become the server that gave `state` after these rounds. What they merged one by one is not known any more:
        who joins gets the weights."""
        for plan in plans:
            self._attendance.note(plan)
        self.num_committed = len(plans)
        self._merge_params = state["merge_params"].tolist()
        factors = [_factors_in(state, target) for target in self._targets]
        if factors[0] is not None:
            self._made[self.num_committed - 1] = [ModuleUpdate(each, None) for each in factors]
            self._merged = [weight.clone() for weight in self._weights]
        if any(self._merge_params):
            for target, merged in zip(self._targets, self._merged, strict=True):
                copy_kept(state, f"merged.{target.name}", merged)
            weights = torch.cat([merged.reshape(-1) for merged in self._merged])
            self._restored = Update(self.num_committed - 1, 0, 0, (weights,), holds_weights=True)

    def _made_public(self) -> Iterator[Publication | Commit]:
        while (current := self._open.get(self.num_committed)) is not None and current.is_complete:
            plan = current.plan
            made = [self._rounded(each) for each in self._aggregate(current)]
            self._made[plan.round] = made
            self._merge_params.append(
                sum(t.num_params(each.merge.rank) for t, each in zip(self._targets, made, strict=True) if each.merge)
            )
            for variant in sorted({visit.variant for visit in plan.visits}):
                yield from self._published(plan.round, variant)
            yield self._commit(current, made)

    def _aggregate(self, current: _OpenRound) -> Iterator[ModuleUpdate]:
        """The rule, module after module."""
        visits = current.plan.visits
        total = sum(visit.weight for visit in visits)
        weights = [visit.weight / total for visit in visits]
        by_client = [self._adapters(visit.client, current.upload(visit.client)) for visit in visits]
        for adapters in zip(*by_client, strict=True):
            yield self._rule(adapters, weights)

    def _adapters(self, client: int, upload: Tensor) -> list[Adapter]:
        rank = self._ranks[client]
        pairs = taken_apart(upload.to(torch.float32), self._targets, [rank] * len(self._targets))
        return [Adapter(B, A, self._scaling(rank)) for B, A in pairs]

    def _rounded(self, made: ModuleUpdate) -> ModuleUpdate:
        return replace(made, factors=self._on_the_wire(made.factors), merge=self._on_the_wire(made.merge))

    def _on_the_wire(self, adapter: Adapter | None) -> Adapter | None:
        if adapter is None:
            return None
        B, A = (factor.to(self._wire.dtype).to(torch.float32).contiguous() for factor in (adapter.B, adapter.A))
        return Adapter(B, A, adapter.scaling)

    def _published(self, round: int, variant: int) -> Iterator[Publication]:
        update = self._update(round, variant)
        bounds = self._wire.bounds(update.values.numel())
        for chunk, (start, end) in enumerate(bounds):
            is_last = chunk == len(bounds) - 1
            yield Publication(round, variant, chunk, update.values[start:end], is_last, update.ranks)

    def _update(self, round: int, variant: int) -> Update:
        """What clients of this variant get: of each module the factors, then what is to be merged."""
        pairs: list[Pair] = []
        ranks: list[int] = []
        for factors, made in zip(self._factors(round, variant), self._made[round], strict=True):
            pairs += [(each.B, each.A) for each in (factors, made.merge) if each]
            ranks += [each.rank if each else 0 for each in (factors, made.merge)]
        return Update(round, 0, variant, (joined(pairs).to(self._wire.dtype),), tuple(ranks))

    def _factors(self, round: int, variant: int) -> Iterator[Adapter | None]:
        """Of each module what clients of this variant train on with."""
        for made in self._made[round]:
            factors = made.factors
            if factors is not None and by_rank(self._config):
                down = rank_down(self._config, variant, factors.rank)
                factors = fit(factors, down, self._scaling(variant))
            yield factors

    def _factor_ranks(self, round: int, client_rank: int) -> Iterator[int]:
        """Of each module the rank of what a client of this rank trains on with; 0 where there is nothing."""
        for made in self._made[round]:
            rank = made.factors.rank if made.factors is not None else 0
            yield rank_down(self._config, client_rank, rank) if by_rank(self._config) else rank

    def _commit(self, current: _OpenRound, made: Sequence[ModuleUpdate]) -> Commit:
        plan = current.plan
        if made[0].factors is not None and self._merged is self._weights:
            self._merged = [weight.clone() for weight in self._weights]
        for merged, each in zip(self._merged, made, strict=True):
            if each.merge is not None:
                merged += each.merge.B @ (each.merge.A * each.merge.scaling)
        del self._open[plan.round]
        self.num_committed += 1
        parts = [part for each in made for part in (each.factors, each.merge) if part]
        norm = sum(update_norm(part) ** 2 for part in parts) ** 0.5
        kept = {visit.client: current.upload(visit.client) for visit in plan.visits if self._config.keep_uploads}
        refused = current.planned.in_order(current.refused)
        return Commit(plan, norm, refused, tuple(self._module_ranks(made)), kept)

    def _module_ranks(self, made: Sequence[ModuleUpdate]) -> Iterator[ModuleRank]:
        for target, each in zip(self._targets, made, strict=True):
            if each.info is not None:
                singular_values = tuple(float(f"{value:.4g}") for value in each.info.singular_values.tolist())
                yield ModuleRank(target.name, each.info.rank, each.info.kept_energy, singular_values)

    def _num_params(self, client: int) -> int:
        return sum(target.num_params(self._ranks[client]) for target in self._targets)

    def _scaling(self, rank: int) -> float:
        return self._config.lora.alpha / rank


def _factors_in(state: Mapping[str, Tensor], target: Target) -> Adapter | None:
    """The factors of this module that `LoraServer.state` wrote down, if there are any."""
    if f"B.{target.name}" not in state:
        return None
    return Adapter(state[f"B.{target.name}"], state[f"A.{target.name}"], float(state[f"scaling.{target.name}"]))
