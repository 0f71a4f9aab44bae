"""The client's half of federated LoRA (docs/lora.md).

Linear factor methods train blocks of adapters: `factor_replica` hands them to `BlockReplica`. `LoraReplica` is for the
others. A round starts from

    merge methods     W = cast( W_0 + Σ merged ≤ t−1−s + Σ_{pending τ} a_i · s_i B_i,τ A_i,τ ),  fresh A, B = 0
    totals            W = cast( W_0 + what was merged ),  the factors handed out, cut to the client's rank

added in a fixed order in fp32, from what is committed and never by subtraction; the client sends B and A whole.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import Parameter

from parablock_ray.algorithms.adapters import (
    Pair,
    Target,
    all_ranks,
    client_ranks,
    find_targets,
    random_A,
    taken_apart,
)
from parablock_ray.algorithms.base import LiveModel, RoundPlan, Update, Visit
from parablock_ray.algorithms.block_replica import BlockReplica, correction_factor
from parablock_ray.algorithms.blocks import flatten
from parablock_ray.algorithms.lora import Adapter, fit
from parablock_ray.algorithms.lora_methods import Collecting, starts_afresh
from parablock_ray.algorithms.population import Population
from parablock_ray.algorithms.wire import Wire
from parablock_ray.config.lora import FactorMethod, FFALoRA, FLoRIST
from parablock_ray.config.method import BlockMethod


def factor_replica(
    config: BlockMethod | FactorMethod, population: Population, live: LiveModel, wire: Wire
) -> BlockReplica:
    """`BlockReplica` around the live factors, which start as the server's do."""
    [rank] = all_ranks(config.lora)
    trained: dict[str, Parameter] = {}
    for target in find_targets(live.parameters, config.lora.target_modules):
        B, A = (live.parameters[target.factor(which, rank)] for which in "BA")
        _write((torch.zeros_like(B), random_A(target, rank, population.seed)), (B, A))
        trained |= {target.factor("B", rank): B}
        trained |= {} if isinstance(config, FFALoRA) else {target.factor("A", rank): A}
    live.activate(rank)
    return BlockReplica(config, population, replace(live, parameters=trained, exact={}), wire)


@dataclass(frozen=True)
class _Pending:
    round: int
    rank: int
    upload: Tensor  # flat, wire dtype


@dataclass(frozen=True)
class _UnderWay:
    is_dressed: bool  # the weights do not hold their committed values


class LoraReplica:
    """Frozen weights with what was merged into them, and one set of live factors for every rank that clients have."""

    takes_parts = False  # what came again would be added twice, and a factor needs all of its numbers

    def __init__(self, config: Collecting, population: Population, live: LiveModel, wire: Wire) -> None:
        self._config, self._seed, self._wire, self._live = config, population.seed, wire, live
        self._ranks = client_ranks(config.lora, population.num_clients, population.seed)
        self._targets = find_targets(live.parameters, config.lora.target_modules)
        self._weights = [live.parameters[target.weight] for target in self._targets]
        # Committed weights, fp32, where the live ones cannot hold them or do not now.
        self._exact: dict[int, Tensor] = {
            index: live.exact[target.weight]
            for index, target in enumerate(self._targets)
            if target.weight in live.exact
        }
        self._handed_out: dict[int, list[Pair]] = {}  # variant → the factors to train on with
        self._pending: dict[int, list[_Pending]] = {}
        self._under_way: _UnderWay | None = None

    def apply(self, update: Update) -> None:
        """Merge what is to be merged; take the new factors in place of the old ones."""
        assert self._under_way is None, "an update may not arrive in the middle of a visit"
        if update.holds_weights:
            values = update.values.split([target.m * target.n for target in self._targets])
            for index, (target, value) in enumerate(zip(self._targets, values, strict=True)):
                self._commit(index, value.view(target.m, target.n).clone())
            return
        both = [target for target in self._targets for _ in ("factors", "merge")]
        parts = list(taken_apart(update.values, both, update.ranks))
        for index, pair in enumerate(parts[1::2]):
            if pair[0].numel():
                committed = self._committed(index)
                self._commit(index, committed + self._product(pair, 1.0, committed.device))
        if update.ranks[0]:
            self._handed_out[update.variant] = [(B.clone(), A.clone()) for B, A in parts[::2]]

    def forget(self, reads: int) -> None:
        """Drop what is no longer pending once the rounds up to `reads` are merged."""
        kept = {client: [p for p in pending if p.round > reads] for client, pending in self._pending.items()}
        self._pending = {client: pending for client, pending in kept.items() if pending}

    def start(self, plan: RoundPlan, visit: Visit) -> Sequence[Parameter]:
        """Dress the weights, load the client's adapters; B and A of every module."""
        assert self._under_way is None
        rank = self._ranks[visit.client]
        factor = correction_factor(self._config.correction, visit)
        pending = [each for each in self._pending.get(visit.client, []) if each.round > plan.reads and factor != 0]
        self._under_way = _UnderWay(is_dressed=bool(pending))
        if pending:
            self._dress(pending, factor)
        self._live.activate(rank)
        factors = []
        for index, target in enumerate(self._targets):
            live = [self._live.parameters[target.factor(which, rank)] for which in "BA"]
            _write(self._start(index, target, plan, visit, rank), live)
            factors += live
        return factors

    def finish(self, trained: Sequence[Tensor], into: Iterable[Tensor]) -> Iterator[Tensor]:
        """B and A after local training, in the chunks `into` (flat, wire dtype, on the CPU); the weights are committed
        ones again.

        `trained`: the tensors that `start` gave, with these values.
        """
        assert self._under_way is not None, "start() comes first"
        upload = flatten(trained, self._wire.dtype)
        self.undress()
        offset = 0
        for chunk in into:
            yield chunk.copy_(upload[offset : offset + chunk.numel()])
            offset += chunk.numel()
        assert offset == upload.numel()

    def remember(self, plan: RoundPlan, visit: Visit, upload: Tensor) -> None:
        """The adapters that this client sent in this round are pending."""
        if self._config.staleness > 0:
            pending = _Pending(plan.round, self._ranks[visit.client], upload)
            self._pending.setdefault(visit.client, []).append(pending)

    def undress(self) -> None:
        """Restore the committed weights from the copy."""
        if self._under_way is not None and self._under_way.is_dressed:
            for index in range(len(self._weights)):
                self._commit(index, self._exact[index])
        self._under_way = None

    def _start(self, index: int, target: Target, plan: RoundPlan, visit: Visit, rank: int) -> tuple[Tensor, Tensor]:
        """B and A to start from."""
        fresh = random_A(target, rank, self._seed, plan.round, visit.client)
        if starts_afresh(self._config):
            return torch.zeros(target.m, rank), fresh
        if visit.variant not in self._handed_out:
            return torch.zeros(target.m, rank), random_A(target, rank, self._seed)
        B, A = (factor.to(torch.float32) for factor in self._handed_out[visit.variant][index])
        scaling = self._config.lora.alpha / rank
        carried = fit(Adapter(B, A, 1.0 if isinstance(self._config, FLoRIST) else scaling), rank, scaling)
        # Components of which nothing was kept: B and A both at 0 would never train again.
        return carried.B, torch.cat([carried.A[: len(A)], fresh[len(A) :]])

    def _dress(self, pending: Sequence[_Pending], factor: float) -> None:
        ranks = [[each.rank] * len(self._targets) for each in pending]
        pairs = [list(taken_apart(each.upload, self._targets, rank)) for each, rank in zip(pending, ranks, strict=True)]
        for index, weight in enumerate(self._weights):
            value = self._exact[index] = self._committed(index)
            for each, of_round in zip(pending, pairs, strict=True):
                product = self._product(of_round[index], self._config.lora.alpha / each.rank, value.device)
                value = value + (product if factor == 1 else product * factor)
            _copy(value, weight)

    @staticmethod
    def _product(pair: Pair, scaling: float, device: torch.device) -> Tensor:
        """B (scaling · A) in fp32: in the very bits in which it will come back to a client that is alone."""
        B, A = (factor.to(device, torch.float32) for factor in pair)
        return B @ (A * scaling)

    def _committed(self, index: int) -> Tensor:
        exact = self._exact.get(index)
        return self._weights[index].detach().to(torch.float32, copy=True) if exact is None else exact

    def _commit(self, index: int, value: Tensor) -> None:
        """The live weight takes this value; where it cannot hold it, the value is kept beside it."""
        weight = self._weights[index]
        _copy(value, weight)
        if weight.dtype == value.dtype:
            self._exact.pop(index, None)
        else:
            self._exact[index] = value


def _write(values: Sequence[Tensor], live: Sequence[Tensor]) -> None:
    for value, tensor in zip(values, live, strict=True):
        _copy(value, tensor)


def _copy(value: Tensor, tensor: Tensor) -> None:
    with torch.no_grad():
        tensor.copy_(value)
