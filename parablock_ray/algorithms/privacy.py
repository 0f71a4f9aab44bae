"""Differential privacy for whole clients (docs/privacy.md): clipping, the noised sum, and noise in shares.

    client   Δ̂_i = Δ_i · min(1, C / ‖Δ_i‖),  rounded to the wire dtype with ‖Δ̂_i‖ ≤ C after that; pending and sent
    server   Δ̄ = ( Σ Δ̂_i + N(0, (z C)²) ) / m     m: the clients that are expected, not those that came

Source: McMahan et al., arXiv 1710.06963; the quantile: Andrew et al., arXiv 1905.03871.

Noise is a function of the key, the round and **the very vector that it hides**. So the same sum has the same noise
however often it is made (a run that goes on, a round that is done again), and no two sums ever share theirs: from two
of them with one noise between them the difference would be plain.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from parablock_ray.algorithms.aggregate import GivenSum, RoundSum, l2_norm
from parablock_ray.algorithms.base import RoundPlan
from parablock_ray.algorithms.secret import gaussian

_NOT_CUT = 0.99  # of the clip: below that an update counts as one that was not cut, whatever the wire dtype's rounding


@dataclass(frozen=True)
class GaussianMean:
    """A rule: the sum of clipped deltas with noise, over the `expected` number of clients.

    `noise`: its standard deviation over the plan's clip, 0 where the clients add theirs. `count_noise`: on the number
    of clients that were not cut; None: nobody counts. Without noise no `key` is needed.
    """

    expected: int
    noise: float
    count_noise: float | None
    key: bytes | None


class NoisedSum:
    """What such a round comes to: takes the place of `RoundSum`. Whole clients only."""

    def __init__(self, plan: RoundPlan, bounds: list[tuple[int, int]], dtype: torch.dtype, rule: GaussianMean) -> None:
        assert plan.clip is not None, "a private round has its clip"
        self.bounds = bounds
        self._round, self._clip, self._rule, self._dtype = plan.round, plan.clip, rule, dtype
        self._sum: RoundSum | GivenSum = RoundSum(plan, bounds, dtype, by_chunk=False, clip=None)
        self._counting = {visit.client for visit in plan.visits if visit.weight > 0}
        self._squares: dict[int, float] = {}  # client → ‖Δ̂‖², as far as it is here

    def add(self, client: int, chunk: int, values: Tensor) -> None:
        """Take chunk `chunk` of a client's clipped delta (wire dtype)."""
        assert isinstance(self._sum, RoundSum)
        if self._rule.count_noise is not None:
            self._squares[client] = self._squares.get(client, 0.0) + l2_norm([values]) ** 2
        self._sum.add(client, chunk, values)
        self._sum.fold_rest()  # the noise wants the whole sum: nothing is gained by waiting

    def take(self, given: GivenSum) -> None:
        """In place of all clients' deltas: their sum, unmasked."""
        assert self._rule.count_noise is None, "of a sum nobody can be counted"
        self._sum = given

    def drop(self, client: int) -> None:
        """This client is left out."""
        assert isinstance(self._sum, RoundSum)
        self._sum.drop(client)
        self._counting.discard(client)

    def is_complete(self, chunk: int) -> bool:
        """Whether the whole round is in: nothing is public before its noise."""
        return all(self._sum.is_complete(each) for each in range(len(self.bounds)))

    def mean(self, chunk: int) -> Tensor:
        """Δ̄ of a complete round, of this chunk."""
        start, end = self.bounds[chunk]
        return self._mean[start:end]

    @cached_property
    def unclipped(self) -> float | None:
        """The noised share of the expected clients that were not cut; None where nobody counts."""
        if self._rule.count_noise is None:
            return None
        assert self._rule.key is not None, "the count has noise"
        below = sum(self._squares[client] < (_NOT_CUT * self._clip) ** 2 for client in self._counting)
        # About 1/2, so that a client moves it by that much at most: the same source.
        count = below - len(self._counting) / 2
        noise = float(gaussian(self._rule.key, self._purpose(f"count {below}"), 1)) * self._rule.count_noise
        return (count + noise) / self._rule.expected + 0.5

    @cached_property
    def _mean(self) -> Tensor:
        total = self._sum.total()
        if self._rule.noise == 0:
            return (total / self._rule.expected).to(self._dtype)
        assert self._rule.key is not None, "it is drawn with the run"
        noise = gaussian(self._rule.key, self._purpose("sum"), len(total)).mul_(self._rule.noise * self._clip)
        return noise.add_(total).div_(self._rule.expected).to(self._dtype)

    @cached_property
    def _digest(self) -> bytes:
        return digest(self._sum.total())

    def _purpose(self, what: str) -> bytes:
        return f"round {self._round} {what} ".encode() + self._digest


def clipped(delta: Tensor, norm: float) -> Tensor:
    """delta · min(1, norm / ‖delta‖), in its dtype, whose rounding does not lift it above `norm`."""
    own = l2_norm([delta])
    if own <= norm:
        return delta
    wide, factor = delta.to(torch.float64), norm / own
    room, step = 1.0, torch.finfo(delta.dtype).eps
    while own > norm:
        cut = (wide * (factor * room)).to(delta.dtype)
        own = l2_norm([cut])
        room, step = max(0.0, room - step), step * 2
    return cut


def with_share(delta: Tensor, std: float, key: bytes, round: int, client: int) -> Tensor:
    """A clipped delta with this client's share of the noise, in its dtype."""
    purpose = f"round {round} share of client {client} ".encode() + digest(delta)
    return gaussian(key, purpose, len(delta)).mul_(std).add_(delta).to(delta.dtype)


def digest(vector: Tensor) -> bytes:
    """Of its very bits."""
    return hashlib.sha256(vector.contiguous().view(torch.uint8).numpy().data).digest()
