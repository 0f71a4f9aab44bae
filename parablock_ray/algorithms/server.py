"""The server's half of a round: x[b_t] += G_t, and which version of a block a reader gets (docs/methods.md).

Source: ParaBlock, arXiv 2511.19959; the rule written out here is our reconstruction.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from parablock_ray.algorithms.aggregate import RoundSum, new_server_state, server_step
from parablock_ray.algorithms.base import RoundPlan
from parablock_ray.algorithms.blocks import BlockLayout, chunk_bounds, flatten, unflatten_into
from parablock_ray.config.method import ServerOptimizer


@dataclass(frozen=True)
class ServerSettings:
    """`staleness` rounds of old values are kept; `chunk_bytes` and `wire_dtype` are those of the exchange."""

    optimizer: ServerOptimizer
    staleness: int
    wire_dtype: torch.dtype
    chunk_bytes: int
    cut_through: bool


@dataclass(frozen=True)
class Publication:
    """Chunk `chunk` of the new value of round `round`'s block, in the wire dtype. Provisional until the commit."""

    round: int
    chunk: int
    values: Tensor


@dataclass(frozen=True)
class Commit:
    """Round `round` is now part of the model. `update_norm` is the L2 norm of G_t."""

    plan: RoundPlan
    update_norm: float


class _OpenRound:
    """A round on its way: its sum, and the second buffer into which the server steps chunk by chunk."""

    def __init__(self, plan: RoundPlan, total: RoundSum) -> None:
        self.plan = plan
        self.total = total
        self.new_value: Tensor | None = None
        self.stepped: set[int] = set()
        self.squared_norms: dict[int, float] = {}


class BlockServer:
    """The master model and the rounds on their way into it.

    `parameters` (name → tensor, fp32 or wider) are the master itself: they are updated in place at each commit.
    Rounds commit in order; updates may arrive in any order, for any open round.
    """

    def __init__(self, parameters: Mapping[str, Tensor], layout: BlockLayout, settings: ServerSettings) -> None:
        self.num_committed = 0
        self._settings = settings
        self._layout = layout
        self._tensors = [[parameters[name] for name in block.names] for block in layout.blocks]
        self._dtype = self._tensors[0][0].dtype
        self._optimizer_state: dict[int, dict[str, Tensor]] = {}
        self._open: dict[int, _OpenRound] = {}
        self._previous: deque[tuple[int, int, Tensor]] = deque(maxlen=settings.staleness)

    def bounds(self, block: int) -> list[tuple[int, int]]:
        """The chunks in which this block travels, as (start, end) in the flat vector."""
        return chunk_bounds(
            self._layout.blocks[block].num_params,
            self._settings.wire_dtype.itemsize,
            self._settings.chunk_bytes,
        )

    def open(self, plan: RoundPlan) -> None:
        """Expect the updates of this round. Must come before the first of them."""
        total = RoundSum(plan, self.bounds(plan.block), self._dtype, by_chunk=self._settings.cut_through)
        self._open[plan.round] = _OpenRound(plan, total)

    def receive(self, round: int, client: int, chunk: int, values: Tensor) -> Iterator[Publication | Commit]:
        """Take one chunk of one client's delta (wire dtype); what this makes public, in order.

        To be iterated to its end: a chunk is stepped when it is asked for, so that it can go out before the next.
        """
        self._open[round].total.add(client, chunk, values)
        return self._made_public()

    def _made_public(self) -> Iterator[Publication | Commit]:
        while (current := self._open.get(self.num_committed)) is not None:
            yield from self._step_complete_chunks(current)
            if len(current.stepped) < len(current.total.bounds):
                return
            yield self._commit(current)

    def value(self, block: int, as_of: int) -> Tensor:
        """wire(x^{(≤ as_of)}[block]): a flat vector in the wire dtype, never newer than `as_of`."""
        assert as_of >= self.num_committed - 1 - self._settings.staleness, "that version is no longer kept"
        for round, visited, value in self._previous:  # oldest first
            if visited == block and round > as_of:
                return value.to(self._settings.wire_dtype)
        return flatten(self._tensors[block], self._settings.wire_dtype)

    def _step_complete_chunks(self, current: _OpenRound) -> Iterator[Publication]:
        """Step every chunk whose sum is complete into the second buffer. The round before it is committed."""
        block, total = current.plan.block, current.total
        for chunk, (start, end) in enumerate(total.bounds):
            if chunk in current.stepped or not total.is_complete(chunk):
                continue
            if current.new_value is None:
                current.new_value = flatten(self._tensors[block], self._dtype)
            step = server_step(self._settings.optimizer, self._state(block, start, end), total.mean(chunk))
            current.new_value[start:end] += step
            current.stepped.add(chunk)
            current.squared_norms[chunk] = float(step.square().sum())
            values = current.new_value[start:end].to(self._settings.wire_dtype, copy=True)
            yield Publication(current.plan.round, chunk, values)

    def _state(self, block: int, start: int, end: int) -> dict[str, Tensor]:
        state = self._optimizer_state.get(block)
        if state is None:
            num_params = self._layout.blocks[block].num_params
            state = new_server_state(self._settings.optimizer, num_params, self._dtype)
            self._optimizer_state[block] = state
        return {name: vector[start:end] for name, vector in state.items()}

    def _commit(self, current: _OpenRound) -> Commit:
        plan = current.plan
        assert current.new_value is not None
        if self._settings.staleness > 0:
            self._previous.append((plan.round, plan.block, flatten(self._tensors[plan.block], self._dtype)))
        unflatten_into(current.new_value, self._tensors[plan.block])
        del self._open[plan.round]
        self.num_committed += 1
        norm = sum(current.squared_norms[chunk] for chunk in sorted(current.squared_norms)) ** 0.5
        return Commit(plan, norm)
