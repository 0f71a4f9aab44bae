"""The server's arithmetic on one round: the ordered weighted sum, and the server optimizer's step.

Only separate multiplications and additions are used. A fused multiply-add rounds once where the scalar tail of a
vector kernel rounds twice, so with it the bits would depend on where a chunk ends.
"""

import itertools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from parablock_ray.algorithms.base import RoundPlan
from parablock_ray.algorithms.blocks import PIECE
from parablock_ray.config.training import ServerAdagrad, ServerAdaptive, ServerMomentum, ServerOptimizer

_FOLDED = torch.empty(0)


def l2_norm(chunks: Iterable[Tensor]) -> float:
    """Of the vector that these are the chunks of, in any float dtype: summed in fp64, where no square of an fp32 number
    overflows."""
    return math.sqrt(sum(squared_norm(chunk, torch.float64) for chunk in chunks))


def squared_norm(values: Tensor, dtype: torch.dtype) -> float:
    """Σ x² of a vector, in `dtype` piece by piece, as large as a cache holds; the pieces' sums are added exactly."""
    return math.fsum(float(part.to(dtype).square().sum()) for part in values.split(PIECE))


class RoundSum:
    """Σ w_i Δ_i of one round, folded in plan order whatever the order of arrival.

    `bounds` are the chunks of the block. With `by_chunk` a chunk is folded as soon as it is its client's turn
    (cut-through). All chunks are kept to the end then, since a client may be found out in the middle. Without, a client
    is folded only when all its chunks are there (store-and-forward). Whoever is left when the last one comes is folded
    as the means are asked for, or by `fold_rest`: so the first chunk can be on its way before the last is made. All of
    this gives the same bits.

    `clip`: Δ_i · min(1, clip / ‖Δ_i‖) in place of Δ_i (Sun et al., arXiv 1911.07963); whole clients only. The weights
    stay: they are the plan's, and no client has a say in its own. None: as it is.
    """

    def __init__(
        self, plan: RoundPlan, bounds: list[tuple[int, int]], dtype: torch.dtype, by_chunk: bool, clip: float | None
    ) -> None:
        assert clip is None or not by_chunk, "a norm is that of all chunks"
        self.bounds = bounds
        self._clip = clip
        self._dtype = dtype
        self._total: Tensor | None = None  # not before the first fold: rounds are opened ahead
        # A client alone has weight 1, so that Δ̄ is its delta to the last bit: (Δ · n) / n is not, for many n.
        # By its share, so that whoever is left after others were dropped weighs as it did when they were planned.
        alone = plan.visits[0].share == 1
        self._order = [(visit.client, 1 if alone else visit.weight) for visit in plan.visits]
        self._by_chunk = by_chunk
        self._arrived: dict[int, dict[int, Tensor]] = {visit.client: {} for visit in plan.visits}
        self._missing = set(self._arrived)  # clients of whom not all is here
        self._num_folded = [0] * len(bounds)

    def add(self, client: int, chunk: int, values: Tensor) -> None:
        """Take chunk `chunk` of a client's delta (wire dtype)."""
        arrived = self._arrived[client]
        arrived[chunk] = values
        is_whole = len(arrived) == len(self.bounds)
        if is_whole:
            self._missing.discard(client)
        if self._by_chunk:
            self._fold(chunk, divisor=1)
        elif is_whole:
            if self._clip is not None:
                self._cut(arrived, self._clip)
            if self._missing:
                self._fold_all()

    def drop(self, client: int) -> None:
        """This client is left out. Who came in behind it is folded; of what is in the sum already nothing can be taken
        out in floating point, so the sum is made anew."""
        has_sent = self._arrived.pop(client)
        self._missing.discard(client)
        self._order = [each for each in self._order if each[0] != client]
        if has_sent:
            assert self._by_chunk, "whole clients are judged before they come here"
            self._total, self._num_folded = None, [0] * len(self.bounds)
        self._fold_all()

    def is_complete(self, chunk: int) -> bool:
        """Whether every client's part of this chunk is here: for its mean."""
        return not self._missing or self._num_folded[chunk] == len(self._order)

    def mean(self, chunk: int) -> Tensor:
        """Δ̄ of a complete chunk, the sum divided once by Σ w_i: in its place, for it is asked for once, and the caller
        may go on there. New memory for whole blocks costs more than the arithmetic."""
        assert self._order
        assert self.is_complete(chunk)
        self._fold(chunk, divisor=sum(weight for _, weight in self._order))
        start, end = self.bounds[chunk]
        assert self._total is not None
        return self._total[start:end]

    def total(self) -> Tensor:
        """Σ w_i Δ_i of a complete round; not to be changed."""
        self._fold_all()
        assert self._total is not None
        return self._total

    def fold_rest(self) -> None:
        """Once nobody is missing: fold whoever is left now, and not with the means."""
        if not self._missing:
            self._fold_all()

    def _fold_all(self) -> None:
        for chunk in range(len(self.bounds)):
            self._fold(chunk, divisor=1)

    def _fold(self, chunk: int, divisor: int) -> None:
        """Add up, in order, whose turn it is; then divide."""
        first = self._num_folded[chunk]
        due = list(itertools.takewhile(lambda each: self._is_there(each[0], chunk), self._order[first:]))
        if not due and divisor == 1:
            return
        if self._total is None:
            self._total = torch.empty(self.bounds[-1][1], dtype=self._dtype)
        start, end = self.bounds[chunk]
        weighted = [(self._arrived[client][chunk], weight) for client, weight in due]
        _add_weighted(self._total[start:end], weighted, first == 0, divisor)
        self._num_folded[chunk] += len(due)
        if not self._by_chunk:
            for client, _ in due:  # keeps the mark, and lets go of the memory, which may be the object store's
                self._arrived[client][chunk] = _FOLDED

    def _is_there(self, client: int, chunk: int) -> bool:
        arrived = self._arrived[client]
        return chunk in arrived if self._by_chunk else len(arrived) == len(self.bounds)

    def _cut(self, arrived: dict[int, Tensor], norm: float) -> None:
        """Scale a client's chunks down to this norm, if theirs is larger."""
        own = l2_norm(arrived[chunk] for chunk in range(len(self.bounds)))
        if own > norm:
            for chunk, values in arrived.items():
                arrived[chunk] = values.to(self._dtype) * (norm / own)


def _add_weighted(total: Tensor, weighted: Sequence[tuple[Tensor, int]], is_new: bool, divisor: int) -> None:
    """total += values · weight of each, in order, all 1-D; then total /= divisor. Piece by piece: whatever is done with
    a piece while the cache has it saves a pass over the memory.

    `is_new`: whatever `total` holds counts as zeros; to write them would be one more pass.
    """
    factors = [torch.tensor(weight, dtype=total.dtype) for _, weight in weighted]
    split = [values.split(PIECE) for values, _ in weighted]
    memory = torch.empty(min(PIECE, len(total)), dtype=total.dtype)
    for part, *its in zip(total.split(PIECE), *split, strict=True):
        scaled, starts_at_zero = memory[: len(part)], is_new
        for values, factor in zip(its, factors, strict=True):
            wide = values if values.dtype == total.dtype else scaled.copy_(values)
            if starts_at_zero:
                torch.mul(wide, factor, out=part).add_(0.0)  # of -0.0 that makes 0.0, as zeros would
                starts_at_zero = False
            else:
                part += torch.mul(wide, factor, out=scaled)
        if divisor != 1:
            part /= divisor


class GivenSum:
    """Of a round whose sum came as a whole, Σ w_i Δ_i = `steps` / `scale` (flat integers): takes the place of
    `RoundSum`. Divided in fp64, which holds all sums below 2^53 exactly, and rounded once to `dtype`."""

    def __init__(
        self, bounds: list[tuple[int, int]], steps: Tensor, scale: float, sum_of_weights: int, dtype: torch.dtype
    ) -> None:
        self.bounds = bounds
        self.sum_of_weights = sum_of_weights
        self._steps, self._scale, self._dtype = steps, scale, dtype

    def is_complete(self, chunk: int) -> bool:
        """All of it is here."""
        return True

    def mean(self, chunk: int) -> Tensor:
        """Δ̄ of a chunk."""
        start, end = self.bounds[chunk]
        exact = self._steps[start:end].to(torch.float64)
        return exact.div_(self._scale).div_(self.sum_of_weights).to(self._dtype)

    def total(self) -> Tensor:
        """Σ w_i Δ_i, fp64."""
        return self._steps.to(torch.float64).div_(self._scale)


def server_step(optimizer: ServerOptimizer, state: dict[str, Tensor], mean: Tensor) -> Tensor:
    """G = ServerOpt(Δ̄): what is added to x. Elementwise, so a chunk can be stepped without its neighbours.

    `mean` is used up: G lies in its memory. `state` holds the optimizer's vectors for exactly these elements (see
    `new_server_state`) and is updated in place. Adaptive rules: Reddi et al., arXiv 2003.00295, algorithm 2 (no bias
    correction, v starts at τ²).
    """
    if isinstance(optimizer, ServerMomentum):
        momentum = state["momentum"]
        momentum.mul_(optimizer.momentum).add_(mean)
        if optimizer.name == "momentum":
            return torch.mul(momentum, optimizer.lr, out=mean)
        return mean.add_(momentum * optimizer.momentum).mul_(optimizer.lr)
    if isinstance(optimizer, ServerAdagrad | ServerAdaptive):
        m, v = state["m"], state["v"]
        m.mul_(optimizer.beta1).add_(mean * (1 - optimizer.beta1))
        squared = mean * mean
        if isinstance(optimizer, ServerAdagrad):
            v.add_(squared)
        elif optimizer.name == "adam":
            v.mul_(optimizer.beta2).add_(squared * (1 - optimizer.beta2))
        else:
            v.sub_(torch.sign(v - squared) * squared * (1 - optimizer.beta2))
        return torch.div(m * optimizer.lr, v.sqrt() + optimizer.tau, out=mean)
    return mean if optimizer.lr == 1 else mean.mul_(optimizer.lr)


def new_server_state(optimizer: ServerOptimizer, num_params: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The optimizer's vectors for a block at its first visit; they move only on that block's visits."""
    if isinstance(optimizer, ServerMomentum):
        return {"momentum": torch.zeros(num_params, dtype=dtype)}
    if isinstance(optimizer, ServerAdagrad | ServerAdaptive):
        return {
            "m": torch.zeros(num_params, dtype=dtype),
            "v": torch.full((num_params,), optimizer.tau**2, dtype=dtype),
        }
    return {}
