"""The client's half of the block methods: what it starts from, and what it sends (docs/methods.md).

    start   z_i = cast( wire(x^{(≤ t−1−s)}) + Σ_{pending τ} a_i · Δ_{i,τ} )
    send    Δ_{i,t} = round_to_wire( LocalOpt(z_i)[b_t] − z_i[b_t] )

Source: ParaBlock, arXiv 2511.19959; the rule written out here is our reconstruction. Always evaluated anew from the
committed values, never as running increments, which drift in floating point.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import Parameter

from parablock_ray.algorithms.base import LiveModel, RoundPlan, Update, Visit
from parablock_ray.algorithms.blocks import (
    differences,
    flatten,
    make_layout,
    read_from,
    unflatten_into,
    write_chunks,
)
from parablock_ray.algorithms.population import Population
from parablock_ray.algorithms.wire import Wire
from parablock_ray.config.lora import FactorMethod
from parablock_ray.config.method import BlockMethod


def correction_factor(correction: str, visit: Visit) -> float:
    """a_i: how much of a client's own pending deltas it adds to what it starts from."""
    match correction:
        case "own":
            return 1.0
        case "eager":
            return visit.share
        case "stale":
            return 0.0
        case _:
            raise AssertionError(correction)


def add_pending(committed: Tensor, pending: Sequence[Tensor], factor: float) -> Tensor:
    """committed + factor · Σ pending, in its place and precision.

    Added one by one, oldest first, as the server will add them: so for one client the sum has the very bits that the
    server's block will have.
    """
    for delta in pending:
        delta = delta.to(committed.device, committed.dtype)
        committed += delta if factor == 1 else delta * factor
    return committed


@dataclass(frozen=True)
class _Pending:
    round: int
    block: int
    delta: Tensor  # flat, wire dtype


@dataclass(frozen=True)
class _UnderWay:
    block: int
    start: Tensor  # z_i[b_t], flat, after the cast, widened to fp32; read only
    dressed: tuple[int, ...]  # blocks that may not hold their committed values


class BlockReplica:
    """The model as one worker holds it: committed values, dressed for one of its clients at a time.

    The live parameters (any float dtype) are written in place. When a visit starts they hold wire(x^{(≤ reads)}), cast
    to the model's dtype.
    """

    takes_parts = True

    def __init__(
        self,
        config: BlockMethod | FactorMethod,
        population: Population,
        live: LiveModel,
        wire: Wire,
    ) -> None:
        parameters, exact = live.parameters, live.exact
        layout = make_layout(parameters, config.num_blocks, config.parameters)
        self._correction, self._staleness, self._wire = config.correction, config.staleness, wire
        self._tensors = [[parameters[name] for name in block.names] for block in layout.blocks]
        self._dtype = torch.promote_types(self._tensors[0][0].dtype, torch.float32)
        # Committed values that the live parameters cannot hold, or do not now.
        self._exact: dict[int, Tensor] = {
            block.index: flatten((exact.get(name, parameters[name].cpu()) for name in block.names), self._dtype)
            for block in layout.blocks
            if any(name in exact for name in block.names)
        }
        self._kept: int | None = None  # a block that they hold, whose copy the next visit can do with
        self._pending: dict[int, list[_Pending]] = {}
        self._incomplete: int | None = None  # the block of a new value whose last part is to come
        self._under_way: _UnderWay | None = None

    def apply(self, update: Update) -> None:
        """A new value, or a part of it, takes the place of the block's old one."""
        assert self._under_way is None, "a value may not arrive in the middle of a visit"
        assert self._incomplete in (None, update.block), "the last part of a value is missing"
        tensors, start = self._tensors[update.block], update.start
        num_params, end = sum(each.numel() for each in tensors), start + sum(map(len, update.chunks))
        self._incomplete = update.block if end < num_params else None
        if torch.promote_types(update.chunks[0].dtype, tensors[0].dtype) != tensors[0].dtype:
            # The model's dtype rounds it: the exact value is kept beside.
            self._let_go_of_kept()
            if update.block not in self._exact:
                self._exact[update.block] = torch.empty(num_params, dtype=self._dtype)
            write_chunks(start, update.chunks, [self._exact[update.block]])
            write_chunks(start, update.chunks, tensors)
            return
        write_chunks(start, update.chunks, tensors)
        if self._kept == update.block and len(self._tensors) == 1:  # the next visit's too, which would copy it anew
            read_from(start, tensors, self._exact[update.block][start:end])
            return
        self._let_go_of_kept()
        self._exact.pop(update.block, None)

    def forget(self, reads: int) -> None:
        """Drop what is no longer pending once the aggregates up to round `reads` are in."""
        for client, pending in list(self._pending.items()):
            kept = [each for each in pending if each.round > reads]
            if kept:
                self._pending[client] = kept
            else:
                del self._pending[client]

    def start(self, plan: RoundPlan, visit: Visit) -> Sequence[Parameter]:
        """Dress the model as z_i; the parameters of b_t."""
        assert self._under_way is None
        assert self._incomplete is None, "the last part of a value is missing"
        factor = correction_factor(self._correction, visit)
        pending = [each for each in self._pending.get(visit.client, []) if each.round > plan.reads]
        dressed = tuple(sorted({plan.block, *(each.block for each in pending)}))
        if self._kept in dressed:
            self._kept = None  # in use
        self._let_go_of_kept()
        for block in dressed:
            committed = self._exact[block] = self._committed(block)
            deltas = [each.delta for each in pending if each.block == block]
            if deltas and factor != 0:
                unflatten_into(add_pending(committed.clone(), deltas, factor), self._tensors[block])
        as_committed = all(each.block != plan.block for each in pending)
        if as_committed and self._tensors[plan.block][0].dtype == self._dtype:
            start = self._exact[plan.block]  # of whole blocks no copy is made without need
        else:
            start = flatten(self._tensors[plan.block], self._dtype)
        self._under_way = _UnderWay(plan.block, start, dressed)
        return self._tensors[plan.block]

    def finish(self, trained: Sequence[Tensor], into: Iterable[Tensor]) -> Iterator[Tensor]:
        """The delta to send, in the chunks `into` (flat, wire dtype, on the CPU), each when it is made; the model holds
        the committed values again when the last one was asked for.

        `trained`: the tensors that `start` gave after local training: themselves, or in fp32. The delta is rounded to
        the wire dtype once, here: what is sent is also what is to be remembered.
        """
        assert self._under_way is not None, "start() comes first"
        block, start, dressed = self._under_way.block, self._under_way.start, self._under_way.dressed
        is_restored = start is self._exact[block]  # which the live parameters can hold
        yield from differences(trained, start, into, self._tensors[block] if is_restored else None)
        if is_restored:
            self._kept = block
            self._under_way = replace(self._under_way, dressed=tuple(each for each in dressed if each != block))
        self.undress()

    def remember(self, plan: RoundPlan, visit: Visit, upload: Tensor) -> None:
        """The delta that this client sent in this round is pending."""
        if self._staleness > 0:
            self._pending.setdefault(visit.client, []).append(_Pending(plan.round, plan.block, upload))

    def undress(self) -> None:
        """Restore the committed values of the blocks that the visit touched: from the copy, never by subtraction."""
        under_way, self._under_way = self._under_way, None
        if under_way is None:
            return
        for block in under_way.dressed:
            committed = self._exact[block]
            unflatten_into(committed, self._tensors[block])
            if not self._holds(block, committed):
                continue
            if block == under_way.block:
                self._kept = block
            else:
                del self._exact[block]

    def _let_go_of_kept(self) -> None:
        if self._kept is not None:
            del self._exact[self._kept]
        self._kept = None

    def _committed(self, block: int) -> Tensor:
        exact = self._exact.get(block)
        return flatten(self._tensors[block], self._dtype) if exact is None else exact

    def _holds(self, block: int, committed: Tensor) -> bool:
        """Whether the live parameters hold this value without rounding."""
        if self._tensors[block][0].dtype == committed.dtype:
            return True
        return torch.equal(flatten(self._tensors[block], self._dtype).to(committed.device), committed)
