"""Adapters of all kinds for the tests of federated LoRA, and the dense oracle in fp64."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from parablock_ray.algorithms.lora import Adapter

# Of σ_max: what FLoRIST promises for the dtype of its inputs.
ACCURACY = {torch.float32: 1e-5, torch.float64: 1e-12}
DTYPES = list(ACCURACY)


@dataclass(frozen=True)
class Case:
    """One round: the adapters of one module, their p_k, and which kind they are."""

    adapters: list[Adapter]
    weights: list[float]
    kind: str

    @property
    def dtype(self) -> torch.dtype:
        return self.adapters[0].B.dtype

    @property
    def ranks(self) -> list[int]:
        return [each.rank for each in self.adapters]

    @property
    def exact(self) -> Tensor:
        return dense(self.adapters, self.weights)

    @property
    def tolerance(self) -> float:
        """In absolute terms. Where adapters cancel, no method can know ΔW better than its terms."""
        terms = [dense([each], [p]) for each, p in zip(self.adapters, self.weights, strict=True)]
        scale = max(spectral_norm(each) for each in [self.exact, *(terms if self.kind == "cancelling" else [])])
        return ACCURACY[self.dtype] * scale


def dense(adapters: Sequence[tuple[Tensor, Tensor, float]], weights: Sequence[float]) -> Tensor:
    """ΔW = Σ p_k s_k B_k A_k in fp64: the oracle."""
    return sum(p * s * (B.double() @ A.double()) for (B, A, s), p in zip(adapters, weights, strict=True))


def product(adapter: tuple[Tensor, Tensor, float]) -> Tensor:
    """The update of one adapter in fp64."""
    return dense([adapter], [1.0])


def spectral_norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2))


KINDS = ("plain", "equal_ranks", "one_client", "tall_rank", "square", "deficient", "copies", "cancelling", "uneven")


@st.composite
def cases(draw: st.DrawFn, kinds: Sequence[str] = KINDS, dtypes: Sequence[torch.dtype] = tuple(DTYPES)) -> Case:
    """All sorts: r > min(m, n), m = r or n = r, rank-deficient, copies, cancelling, clients 10^6 apart in size."""
    kind = draw(st.sampled_from(kinds))
    dtype = draw(st.sampled_from(dtypes))
    values = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    ranks = draw(st.lists(st.integers(1, 6), min_size=1 if kind == "plain" else 2, max_size=5))
    if kind == "one_client":
        ranks = ranks[:1]
    if kind in ("equal_ranks", "copies"):
        ranks = [ranks[0]] * len(ranks)
    if kind == "cancelling":
        ranks = [ranks[0], ranks[0], ranks[1]]
    total = sum(ranks)
    sizes = {"tall_rank": st.integers(1, total), "square": st.just(ranks[0])}.get(kind, st.integers(1, 24))
    m, n = draw(sizes), draw(st.integers(1, 24))
    if draw(st.booleans()):
        m, n = n, m

    def factor(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=values, dtype=torch.float64)

    pairs = [(factor(m, r), factor(r, n)) for r in ranks]
    if kind == "deficient":
        basis = factor(m, 2)
        pairs = [(basis @ factor(2, r), A) for r, (_, A) in zip(ranks, pairs, strict=True)]
    if kind == "copies":
        pairs = [pairs[0]] * len(ranks)
    if kind == "uneven":
        sizes = [10.0 ** draw(st.integers(-3, 3)) for _ in ranks]
        pairs = [(B * size, A / size) for (B, A), size in zip(pairs, sizes, strict=True)]
    shares = [draw(st.integers(1, 50)) for _ in ranks]
    scalings = [draw(st.sampled_from([0.25, 1.0, 2.0, 16.0])) for _ in ranks]
    if kind == "cancelling":
        shares[1], scalings[1] = shares[0], scalings[0]
        pairs[1] = (pairs[0][0], -pairs[0][1])
    adapters = [Adapter(B.to(dtype), A.to(dtype), s) for (B, A), s in zip(pairs, scalings, strict=True)]
    return Case(adapters, [share / sum(shares) for share in shares], kind)


def random_adapters(
    m: int, n: int, ranks: Sequence[int], dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[Adapter]:
    """Unequal scalings, as a fixed alpha gives to mixed ranks; times 1 + k, so that equal ranks differ too."""
    values = torch.Generator().manual_seed(seed)
    return [
        Adapter(
            torch.randn(m, r, generator=values, dtype=dtype),
            torch.randn(r, n, generator=values, dtype=dtype),
            16 / r * (1 + client),
        )
        for client, r in enumerate(ranks)
    ]
