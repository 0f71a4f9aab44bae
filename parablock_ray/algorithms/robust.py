"""Rules that a few clients cannot lead where they want, whatever these send (docs/trust.md).

All are unweighted, as in their papers: every update counts once, whatever n_i. With weights, f clients could hold more
than half. The papers are about whole gradients or models; here the vectors are the deltas of a round's block.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from parablock_ray.algorithms.aggregate import RoundSum
from parablock_ray.algorithms.base import RoundPlan
from parablock_ray.algorithms.privacy import GaussianMean, NoisedSum
from parablock_ray.config.server import Clip, Krum, Mean, Median, MultiKrum, Rule, TrimmedMean

_PIECE = 1 << 16  # coordinates at once: sorting and distances take a multiple of their input in memory


def coordinate_median(updates: Tensor) -> Tensor:
    """Of each column of [n, d] the median; with n even the mean of the middle two (Yin et al., arXiv 1803.01498).

    While fewer than n / 2 rows are arbitrary it lies within the range of the others, in every coordinate.
    """
    ordered, middle = updates.sort(dim=0).values, len(updates) // 2
    return ordered[middle] if len(updates) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def trimmed_mean(updates: Tensor, num_attackers: int) -> Tensor:
    """Of each column of [n, d] the mean without the `num_attackers` largest and smallest (Yin et al., arXiv 1803.01498,
    whose β is num_attackers / n). n > 2 · num_attackers. With that many rows arbitrary it lies within the range of the
    others, in every coordinate."""
    assert len(updates) > 2 * num_attackers, "the config says so"
    ordered = updates.sort(dim=0).values
    return _mean(list(ordered[num_attackers : len(updates) - num_attackers]))


def krum_scores(squared_distances: Tensor, num_attackers: int) -> Tensor:
    """Of each of n updates the sum of the squared distances to its n − f − 2 nearest others (Blanchard et al., arXiv
    1703.02757, section 4). `squared_distances` [n, n], fp64; n ≥ 2 f + 3."""
    num = len(squared_distances)
    assert num >= 2 * num_attackers + 3, "the config says so"
    others = squared_distances.clone().fill_diagonal_(torch.inf)  # sorted last, and never among the nearest
    return others.sort(dim=1).values[:, : num - num_attackers - 2].sum(dim=1)


def squared_distances(pieces: Iterator[Tensor], num: int) -> Tensor:
    """Between each two of `num` updates, which come as pieces [num, any] of their coordinates: [num, num], fp64.

    From differences: of a Gram matrix the rounding of the largest update would swallow what the others differ in.
    """
    total = torch.zeros(num, num, dtype=torch.float64)
    for piece in pieces:
        wide = piece.to(torch.float64)
        for row in range(num - 1):
            total[row, row + 1 :] += (wide[row + 1 :] - wide[row]).square().sum(dim=1)
    return total + total.T


class RoundVectors:
    """All updates of one round, and what an unweighted rule makes of them: takes the place of `RoundSum`.

    Kept until the round is over, in the wire dtype; the rule works in `dtype`. Rows are in plan order whatever the
    order of arrival, so the bits are the same; of equal Krum scores the first in plan order counts as the smaller.
    """

    def __init__(
        self,
        plan: RoundPlan,
        bounds: list[tuple[int, int]],
        dtype: torch.dtype,
        rule: Median | TrimmedMean | Krum | MultiKrum,
    ) -> None:
        self.bounds = bounds
        self._dtype = dtype
        self._rule = rule
        self._arrived: dict[int, dict[int, Tensor]] = {visit.client: {} for visit in plan.visits}  # in plan order
        self._chosen: list[int] | None = None  # by Krum, once all are there

    def add(self, client: int, chunk: int, values: Tensor) -> None:
        """Take chunk `chunk` of a client's delta (wire dtype)."""
        self._arrived[client][chunk] = values

    def drop(self, client: int) -> None:
        """This client is left out."""
        del self._arrived[client]
        self._chosen = None

    def is_complete(self, chunk: int) -> bool:
        """Whether the rule can be applied to this chunk: every client's is there, or all of every client's."""
        if self._rule.whole:
            return all(len(arrived) == len(self.bounds) for arrived in self._arrived.values())
        return all(chunk in arrived for arrived in self._arrived.values())

    def mean(self, chunk: int) -> Tensor:
        """What the rule makes of a complete chunk."""
        assert self.is_complete(chunk)
        if isinstance(self._rule, Krum | MultiKrum):
            if self._chosen is None:
                self._chosen = self._choose(self._rule)
            return _mean([self._arrived[client][chunk].to(self._dtype) for client in self._chosen])
        return torch.cat([self._by_coordinate(piece) for piece in self._pieces(chunk)])

    def _by_coordinate(self, piece: Tensor) -> Tensor:
        if isinstance(self._rule, TrimmedMean):
            return trimmed_mean(piece, self._rule.num_attackers)
        return coordinate_median(piece)

    def _choose(self, rule: Krum | MultiKrum) -> list[int]:
        """The clients whose updates Krum takes, in plan order."""
        clients = list(self._arrived)
        pieces = (piece for chunk in range(len(self.bounds)) for piece in self._pieces(chunk))
        scores = krum_scores(squared_distances(pieces, len(clients)), rule.num_attackers)
        num = 1 if isinstance(rule, Krum) else rule.num_selected or len(clients) - rule.num_attackers - 2
        best = scores.argsort(stable=True)[:num].tolist()
        return [clients[index] for index in sorted(best)]

    def _pieces(self, chunk: int) -> Iterator[Tensor]:
        """[n, ≤ _PIECE] of this chunk, in `dtype`."""
        start, end = self.bounds[chunk]
        rows = [arrived[chunk] for arrived in self._arrived.values()]
        for first in range(0, end - start, _PIECE):
            yield torch.stack([row[first : first + _PIECE].to(self._dtype) for row in rows])


def open_round(
    rule: Rule | GaussianMean, plan: RoundPlan, bounds: list[tuple[int, int]], dtype: torch.dtype, by_chunk: bool
) -> RoundSum | RoundVectors | NoisedSum:
    """What takes in a round's updates under this rule."""
    match rule:
        case GaussianMean():
            assert not by_chunk, "a noised chunk that is withdrawn would have told something"
            return NoisedSum(plan, bounds, dtype, rule)
        case Mean():
            return RoundSum(plan, bounds, dtype, by_chunk, clip=None)
        case Clip():
            return RoundSum(plan, bounds, dtype, by_chunk, clip=rule.norm)
        case Median() | TrimmedMean() | Krum() | MultiKrum():
            return RoundVectors(plan, bounds, dtype, rule)


def _mean(rows: Sequence[Tensor]) -> Tensor:
    """Added one by one, divided once: like the weighted sum, so that the bits depend on no kernel's order."""
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total / len(rows)
