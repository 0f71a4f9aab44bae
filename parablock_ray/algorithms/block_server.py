"""The server's half of the block methods: x[b_t] += G_t, and which version of a block a reader gets (docs/methods.md).

Source: ParaBlock, arXiv 2511.19959; the rule written out here is our reconstruction.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from parablock_ray.algorithms.aggregate import GivenSum, RoundSum, new_server_state, server_step, squared_norm
from parablock_ray.algorithms.base import Commit, Publication, RoundPlan, Update
from parablock_ray.algorithms.blocks import add_from, copy_kept, flatten, make_layout, write_chunks
from parablock_ray.algorithms.lora import Adapter
from parablock_ray.algorithms.population import Attendance, Population
from parablock_ray.algorithms.privacy import GaussianMean, NoisedSum
from parablock_ray.algorithms.robust import RoundVectors, open_round
from parablock_ray.algorithms.wire import Wire
from parablock_ray.config.lora import FactorMethod
from parablock_ray.config.method import BlockMethod
from parablock_ray.config.server import Rule


class _OpenRound:
    """A round on its way: its sum, and the new value of its block, made chunk by chunk beside the old one."""

    def __init__(self, plan: RoundPlan, total: RoundSum | RoundVectors | NoisedSum) -> None:
        self.planned = self.plan = plan
        self.total: RoundSum | RoundVectors | NoisedSum | GivenSum = total
        self.refused: set[int] = set()
        self.restart()

    def restart(self) -> None:
        """No chunk is stepped."""
        self.new_value: list[Tensor] = []  # its chunks, as far as they are stepped
        self.squared_norm = 0.0
        self.before: list[tuple[Tensor, Tensor]] = []  # of cut-through: an optimizer's vector, and what it was

    @property
    def num_chunks(self) -> int:
        return len(self.total.bounds)

    @property
    def num_stepped(self) -> int:
        return len(self.new_value)


class BlockServer:
    """The master model and the rounds on their way into it.

    `parameters` (name → tensor, fp32 or wider) are the master itself: they are updated in place at each commit.
    Rounds commit in order; updates may arrive in any order, for any open round. With `cut_through` a chunk is
    published as soon as every client's part of it is in, otherwise when all of every client's chunks are.
    """

    def __init__(
        self,
        config: BlockMethod | FactorMethod,
        population: Population,
        parameters: Mapping[str, Tensor],
        wire: Wire,
        cut_through: bool,
        rule: Rule | GaussianMean,
    ) -> None:
        self.num_committed = 0
        self.layout = make_layout(parameters, config.num_blocks, config.parameters)
        self._staleness = config.staleness
        self._optimizer = config.server_optimizer
        self._wire = wire
        self._cut_through = cut_through
        self._rule = rule
        self._tensors = [[parameters[name] for name in block.names] for block in self.layout.blocks]
        self._dtype = self._tensors[0][0].dtype
        self._optimizer_state: dict[int, dict[str, Tensor]] = {}
        self._blocks: list[int] = []  # by round
        self._open: dict[int, _OpenRound] = {}
        self._previous: deque[tuple[int, int, Tensor]] = deque(maxlen=config.staleness)  # (round, block, old value)
        # Where adapters start is a matter of the seed: nobody downloads it.
        self._attendance = Attendance(all_start=config.parameters == "lora" or not population.is_sampled)

    def open(self, plan: RoundPlan) -> None:
        """Expect the updates of this round. Must come before the first of them."""
        total = open_round(self._rule, plan, self._bounds(plan.block), self._dtype, by_chunk=self._cut_through)
        self._open[plan.round] = _OpenRound(plan, total)
        self._blocks.append(plan.block)
        self._attendance.note(plan)

    def receive(self, round: int, client: int, chunk: int, values: Tensor) -> Iterator[Publication | Commit]:
        """Take one chunk of one client's delta (wire dtype); what this makes public, in order.

        To be iterated to its end: a chunk is stepped when it is asked for, so that it can go out before the next.
        """
        total = self._open[round].total
        assert not isinstance(total, GivenSum)
        total.add(client, chunk, values)
        if round != self.num_committed and isinstance(total, RoundSum):
            total.fold_rest()  # its turn is to come: its memory need not wait for that
        return self._made_public()

    def receive_sum(
        self, round: int, steps: Tensor, scale: float, sum_of_weights: int
    ) -> Iterator[Publication | Commit]:
        """In place of all uploads: the sum over those who were not dropped; what this makes public, in order."""
        current = self._open[round]
        given = GivenSum(current.total.bounds, steps, scale, sum_of_weights, self._dtype)
        if isinstance(current.total, NoisedSum):
            current.total.take(given)
        else:
            current.total = given
        return self._made_public()

    def drop(self, round: int, client: int) -> Iterator[Publication | Commit]:
        """This client, which has sent nothing of this round, is left out of it."""
        current = self._open[round]
        assert not isinstance(current.total, GivenSum)
        current.plan = current.plan.without({client})
        current.total.drop(client)
        self._attendance.drop(round, client)
        return self._made_public()

    def refuse(self, round: int, client: int) -> Iterator[Publication | Commit]:
        """What this client sent of this round has no part in it. Chunks of the round that were public come again."""
        current = self._open[round]
        assert not isinstance(current.total, GivenSum)
        current.refused.add(client)
        current.plan = current.plan.without({client})
        current.total.drop(client)
        for vector, old in reversed(current.before):
            vector.copy_(old)
        current.restart()
        return self._made_public()

    def upload_params(self, round: int, client: int) -> int:
        """Those of the round's block."""
        return self.layout.blocks[self._open[round].plan.block].num_params

    def updates(self, after: int, up_to: int, variant: int) -> list[Update]:
        """Every block that rounds after `after` have changed, as of `up_to`: the latest value replaces the others."""
        latest = {self._blocks[round]: round for round in range(after + 1, up_to + 1)}
        return [Update(round, block, variant, (self._value(block, up_to),)) for block, round in latest.items()]

    def catch_up_params(self, client: int, round: int) -> int:
        """The parameters of the missed blocks, or of the whole model for a client that joins late."""
        if self._attendance.joins_late(client, round):
            return self.layout.num_params
        missed = self._attendance.missed(client, round)
        if not missed:
            return 0
        latest = {self._blocks[each]: each for each in range(missed[0], self._attendance.reads(round) + 1)}
        rounds = set(missed)
        return sum(self.layout.blocks[block].num_params for block, each in latest.items() if each in rounds)

    def forget(self, up_to: int) -> None:
        """Nothing to do: old values are kept for as many rounds as the staleness."""

    def settle(self) -> None:
        """Nothing to do: a commit writes the parameters themselves."""

    def adapters(self) -> dict[str, Adapter]:
        """None: the parameters themselves are trained."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """The blocks, and the server optimizer's vectors of those that were visited."""
        values = {
            f"parameters.{name}": tensor.clone()
            for block, tensors in zip(self.layout.blocks, self._tensors, strict=True)
            for name, tensor in zip(block.names, tensors, strict=True)
        }
        vectors = {
            f"optimizer.{block}.{name}": vector.clone()
            for block, state in self._optimizer_state.items()
            for name, vector in state.items()
        }
        return values | vectors

    def restore(self, plans: Sequence[RoundPlan], state: Mapping[str, Tensor]) -> None:
        """Become the server that gave `state` after these rounds."""
        for plan in plans:
            self._blocks.append(plan.block)
            self._attendance.note(plan)
        self.num_committed = len(plans)
        for block, tensors in zip(self.layout.blocks, self._tensors, strict=True):
            for name, tensor in zip(block.names, tensors, strict=True):
                copy_kept(state, f"parameters.{name}", tensor)
        for index in set(self._blocks):
            for name, vector in self._state(index, 0, self.layout.blocks[index].num_params).items():
                copy_kept(state, f"optimizer.{index}.{name}", vector)

    def _value(self, block: int, as_of: int) -> Tensor:
        """wire(x^{(≤ as_of)}[block]): a flat vector in the wire dtype, never newer than `as_of`."""
        assert as_of >= self.num_committed - 1 - self._staleness, "that version is no longer kept"
        for round, visited, value in self._previous:  # oldest first
            if visited == block and round > as_of:
                return value.to(self._wire.dtype)
        return flatten(self._tensors[block], self._wire.dtype)

    def _bounds(self, block: int) -> list[tuple[int, int]]:
        return self._wire.bounds(self.layout.blocks[block].num_params)

    def _made_public(self) -> Iterator[Publication | Commit]:
        while (current := self._open.get(self.num_committed)) is not None:
            while current.num_stepped < current.num_chunks and current.total.is_complete(current.num_stepped):
                yield self._step(current, current.num_stepped)
            if current.num_stepped < current.num_chunks:
                return
            yield self._commit(current)

    def _step(self, current: _OpenRound, chunk: int) -> Publication:
        """Step a chunk whose sum is complete. The round before it is committed."""
        plan, total = current.plan, current.total
        start, end = total.bounds[chunk]
        mean, state = total.mean(chunk), self._state(plan.block, start, end)
        if self._cut_through:
            current.before += [(vector, vector.clone()) for vector in state.values()]
        step = server_step(self._optimizer, state, mean)
        current.squared_norm += squared_norm(step, self._dtype)
        current.new_value.append(add_from(start, step, self._tensors[plan.block]))
        values = current.new_value[-1].to(self._wire.dtype)
        return Publication(plan.round, 0, chunk, values, is_last=current.num_stepped == current.num_chunks)

    def _state(self, block: int, start: int, end: int) -> dict[str, Tensor]:
        state = self._optimizer_state.get(block)
        if state is None:
            num_params = self.layout.blocks[block].num_params
            state = new_server_state(self._optimizer, num_params, self._dtype)
            self._optimizer_state[block] = state
        return {name: vector[start:end] for name, vector in state.items()}

    def _commit(self, current: _OpenRound) -> Commit:
        plan = current.plan
        if self._staleness > 0:
            self._previous.append((plan.round, plan.block, flatten(self._tensors[plan.block], self._dtype)))
        assert sum(map(len, current.new_value)) == self.layout.blocks[plan.block].num_params
        write_chunks(0, current.new_value, self._tensors[plan.block])
        del self._open[plan.round]
        self.num_committed += 1
        total = current.total
        return Commit(
            plan,
            current.squared_norm**0.5,
            refused=current.planned.in_order(current.refused),
            sum_of_weights=total.sum_of_weights if isinstance(total, GivenSum) else None,
            unclipped=total.unclipped if isinstance(total, NoisedSum) else None,
        )
