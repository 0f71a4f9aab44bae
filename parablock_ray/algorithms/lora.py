"""Federated LoRA: what a server makes of the clients' low-rank adapters, one function per method.

Client k sends a pair B_k (m×r_k), A_k (r_k×n) and its scaling s_k = alpha_k / r_k; its weight is p_k = n_k / Σ n. The
exact update of the frozen weight is ΔW = Σ_k p_k s_k B_k A_k. Every method takes `adapters`, a sequence of
`Adapter`s or plain tuples `(B, A, scaling)` of one module, and `weights`, the p_k. It works on their device, returns
their dtype, changes none of them, and raises UserError for what cannot be aggregated. A rank above min(m, n) is
allowed. B and A are told apart by their place, never by their shape.

What comes back is one of two things, always with the scaling under which it is to be read:
    an adapter to train on with: a client of rank r and scaling s takes `fit(result, r, s)`
    an adapter to merge: everybody adds scaling · B A to the frozen weight and starts a fresh adapter, with B = 0

`fedit` and `ffa_lora` are not what a run calls. They are linear, so `lora_server.FactorServer` sums what changed of the
factors, as of a block. Here they stand as their papers have them, and the tests hold the server against them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from parablock_ray.errors import UserError


class Adapter(NamedTuple):
    """The update scaling · B A of one weight matrix: B is m×r, A is r×n."""

    B: Tensor
    A: Tensor
    scaling: float

    @property
    def rank(self) -> int:
        return self.B.shape[1]


Adapters = Sequence[Adapter | tuple[Tensor, Tensor, float]]


@dataclass(frozen=True)
class FloristInfo:
    """What FLoRIST kept: `rank` p, and the share of ‖ΔW‖²_F that lies in it.

    `singular_values` are all min(m, n, Σ r_k) of ΔW, descending, in the dtype of the factors or fp32 where that
    is half precision; zero beyond the numerical rank.
    """

    rank: int
    kept_energy: float
    singular_values: Tensor


def fedit(adapters: Adapters, weights: Sequence[float]) -> Adapter:
    """FedIT (arXiv 2305.05644, section 3): B and A averaged apart, an adapter to train on with. Equal ranks only.

    Not exact: the product holds cross terms p_i p_j B_i A_j. Where scalings differ they are folded into B.
    """
    given = _checked(adapters, weights)
    check_equal_ranks("fedit", [each.rank for each in given])
    return _mean(given, weights, given[0].rank)


def zero_pad(adapters: Adapters, weights: Sequence[float]) -> Adapter:
    """FedIT for mixed ranks: factors are padded with zeros to the largest rank first (baseline of arXiv 2409.05976).

    An adapter of the largest rank to train on with. Not exact.
    """
    given = _checked(adapters, weights)
    return _mean(given, weights, max(each.rank for each in given))


def hetlora(adapters: Adapters, weights: Sequence[float]) -> Adapter:
    """HetLoRA (arXiv 2401.06432, section 3.3): zero-padded, weighted by ‖B_k A_k‖_F; `fit` is its truncation.

    An adapter of the largest rank to train on with. Not exact. The norms take the place of `weights`, as in the
    paper; only where all of them are zero do `weights` decide.
    """
    given = _checked(adapters, weights)
    norms = [_product_norm(each) for each in given]
    shares = [norm / sum(norms) for norm in norms] if any(norms) else weights
    return _mean(given, shares, max(each.rank for each in given))


def ffa_lora(adapters: Adapters, weights: Sequence[float]) -> Adapter:
    """FFA-LoRA (arXiv 2403.12313, section 4): A is shared and frozen, only B is averaged. Equal ranks only.

    An adapter to train on with, exact because all A are the same: UserError if they are not. Of the result only B
    has to travel.
    """
    given = _checked(adapters, weights)
    check_equal_ranks("ffa_lora", [each.rank for each in given])
    shared = given[0].A
    for client, each in enumerate(given):
        if not torch.equal(each.A, shared):
            raise UserError(
                f"adapters[{client}]: its A differs from adapters[0]'s; ffa_lora averages B alone, which is right only "
                "for one A that every client keeps frozen; train B and leave A as it was handed out, or use fedit"
            )
    return Adapter(_mean(given, weights, given[0].rank).B, shared, _mean_scaling(given, weights))


def fedex_lora(adapters: Adapters, weights: Sequence[float]) -> tuple[Adapter, Adapter]:
    """FedEx-LoRA (arXiv 2410.09432, section 4): `(mean, residual)`, together exactly ΔW. Equal ranks only.

    `mean` is FedIT's, an adapter to train on with; `residual` is to be merged, while training goes on with `mean`.
    The residual Σ p_k s_k B_k A_k − s B̄ Ā is Σ p_k s_k B_k (A_k − Ā): factors of rank Σ r_k, scaling 1, no m×n.
    """
    given = _checked(adapters, weights)
    check_equal_ranks("fedex_lora", [each.rank for each in given])
    mean = _mean(given, weights, given[0].rank)
    return mean, _stacked([Adapter(each.B, each.A - mean.A, each.scaling) for each in given], weights)


def flora(adapters: Adapters, weights: Sequence[float]) -> Adapter:
    """FLoRA (arXiv 2409.05976, section 3): all adapters stacked, exactly ΔW, to be merged. Rank Σ r_k, scaling 1."""
    return _stacked(_checked(adapters, weights), weights)


def flexlora(adapters: Adapters, weights: Sequence[float]) -> Adapter:
    """FlexLoRA (arXiv 2402.11505, section 3): the dense ΔW and its SVD; `fit` hands each client its own top r_k.

    An adapter to train on with, of rank min(m, n, Σ r_k), scaling 1, B = U Σ and A = Vᵀ: exact until it is cut. As
    published, so it forms m×n; `florist` finds the same factors without.
    """
    given = _checked(adapters, weights)
    dtype = given[0].B.dtype
    B, A, shares = _stacks(given, weights)
    U, sigma, Vt = torch.linalg.svd((B * shares.to(B.dtype)) @ A, full_matrices=False)
    rank = min(len(shares), len(sigma))
    return Adapter((U[:, :rank] * sigma[:rank]).to(dtype), Vt[:rank].to(dtype), 1.0)


def florist(
    adapters: Adapters, weights: Sequence[float], threshold: float, max_rank: int | None = None
) -> tuple[Tensor, Tensor, FloristInfo]:
    """FLoRIST (arXiv 2506.09199, section 3): the best rank-p approximation of ΔW, with no m×n matrix formed.

    Returns `(B_g (m×p), A_g (p×n), info)`, to be merged with scaling 1: B_g = U_p Σ_p, A_g = V_pᵀ. p is the smallest
    rank that keeps `threshold` of the squared singular values, 0 < threshold ≤ 1, and never above `max_rank`; at 1
    it is the numerical rank. All-zero adapters give p = 1 and zero factors.

    The singular values are the paper's, the route is not: its two thin SVDs cost two to three times as much. Factors
    up to fp32 go by Gram matrices in fp64, which squares no accuracy away that fp32 has. For fp64 factors it would,
    and beyond min(m, n) columns a Gram matrix outgrows its stack: these go by QR, in fp64.
    """
    given = _checked(adapters, weights)
    if not 0 < threshold <= 1:
        raise UserError(
            f"threshold: {threshold}; allowed: above 0, up to 1; it is the share of squared singular values to keep, "
            "1 keeps all"
        )
    if max_rank is not None and max_rank < 1:
        raise UserError(f"max_rank: {max_rank}; allowed: 1 or more; leave it out for no limit")
    dtype = given[0].B.dtype
    B, A, shares = _stacks(given, weights)
    cut = partial(_cut, dtype=B.dtype, threshold=threshold, max_rank=max_rank)
    by_gram = B.dtype == torch.float32 and len(shares) <= min(len(B), A.shape[1])
    B_g, A_g, info = _gram_route(B, A, shares, cut) if by_gram else _qr_route(B, A, shares, cut)
    return B_g.to(dtype), A_g.to(dtype), info


def fit(adapter: Adapter, rank: int, scaling: float) -> Adapter:
    """What a client of this rank and scaling trains on with: the first `rank` components, padded with zeros.

    The update stays the same, whatever the client's alpha: B takes up the quotient of the scalings, A is untouched.
    """
    B, A = adapter.B[:, :rank] * (adapter.scaling / scaling), adapter.A[:rank]
    return Adapter(_pad(B, rank, 1), _pad(A, rank, 0), scaling)


def check_equal_ranks(method: str, ranks: Sequence[int]) -> None:
    """UserError where `method` averages factors entry by entry, and so needs one rank, but ranks are mixed."""
    if len(set(ranks)) > 1:
        raise UserError(
            f"adapters: ranks {list(ranks)} with {method}; allowed: one rank for all clients, since {method} averages "
            "factors entry by entry; give all the same rank, or use zero_pad, hetlora, flora, flexlora or florist"
        )


# The mathematics of FLoRIST. Both routes find singular values σ and right vectors Vᵀ of ΔW = B diag(shares) A from the
# r×r core, and from them the factors: `B` (m×r) and `A` (r×n) are the stacks, fp32 or fp64, `shares` (r) is fp64.

_Cut = Callable[[Tensor, Tensor], FloristInfo]

# Singular values below this share of the data's norm are rounding of factors and route, not data. It is far below the
# accuracy of ΔW that is promised for the dtype (1e-5 and 1e-12), and above all rounding that was seen.
_NOISE = {torch.float32: 5e-7, torch.float64: 2e-14}
# Keeps a singular Gram matrix (fp64, unit diagonal) positive definite, since it lies above the rounding of all but
# the strangest. It shows as singular values of up to √1e-13 = 3e-7, which lie within the noise.
_RIDGE = 1e-13


def _gram_route(B: Tensor, A: Tensor, shares: Tensor, cut: _Cut) -> tuple[Tensor, Tensor, FloristInfo]:
    """By G_B = BᵀB and G_A = AAᵀ = L Lᵀ: L⁻¹A has orthonormal rows, so Lᵀ G_B L has the eigenvalues σ².

    Rows of A enter with unit norm, their norms and the shares with L. With V the eigenvectors, B_g = B (L V) and
    A_g = (L⁻ᵀ V)ᵀ A: whatever the rounding of V, B_g A_g at full rank is ΔW.
    """
    gram_B, gram_A = _gram(B), _gram(A.T)
    norms = gram_A.diagonal().sqrt()
    divisors = torch.where(norms > 0, norms, 1.0)
    gram_A.div_(divisors).div_(divisors[:, None]).diagonal().add_(_RIDGE)
    L, failed = torch.linalg.cholesky_ex(gram_A)
    del gram_A
    if failed:  # hundreds of copies of one adapter, of tens of thousands of columns: more rounding than the ridge
        return _qr_route(B, A, shares, cut)
    M = L * (shares * norms)[:, None]
    core = torch.zeros_like(M)  # its lower triangle is enough for eigh
    for block, end in _column_blocks(len(M)):
        core[block:, block:end] = M[block:, block:].T @ (gram_B[block:, block:] @ M[block:, block:end])
    column_norms = shares * norms * gram_B.diagonal().sqrt()
    del gram_B
    values, V = torch.linalg.eigh(core)  # ascending
    del core
    info = cut(values.flip(0).clamp(min=0).sqrt(), column_norms)
    V = _kept(V[:, -info.rank :].flip(1), info)
    left = torch.cat([M[block:end, :end] @ V[:end] for block, end in _column_blocks(len(M))])
    right = torch.linalg.solve_triangular(L.T, V, upper=True) / divisors[:, None]
    return B @ left.to(B.dtype), right.T.to(A.dtype) @ A, info


def _qr_route(B: Tensor, A: Tensor, shares: Tensor, cut: _Cut) -> tuple[Tensor, Tensor, FloristInfo]:
    """By B = Q_B R_B and Aᵀ = Q_A R_A in fp64: the SVD of R_B diag(shares) R_Aᵀ; Q_B is not needed.

    Householder QR keeps each column to its own norm, so clients of very different size do not blur each other.
    """
    dtype, B, A = B.dtype, B.double(), A.double()
    Q_A, R_A = torch.linalg.qr(A.T)
    M = shares[:, None] * R_A.T
    _, sigma, Vt = torch.linalg.svd(torch.linalg.qr(B, mode="r").R @ M, full_matrices=False)
    info = cut(sigma, shares * B.norm(dim=0) * A.norm(dim=1))
    V = _kept(Vt[: info.rank].T, info)
    return (B @ (M @ V)).to(dtype), (V.T @ Q_A.T).to(dtype), info


def _cut(sigma: Tensor, norms: Tensor, dtype: torch.dtype, threshold: float, max_rank: int | None) -> FloristInfo:
    """p for singular values `sigma` (descending, fp64); `norms` are ‖share · b_j‖‖a_j‖, from which noise is told.

    Where adapters cancel, σ_max says nothing about rounding, but the norms do. The energy beyond p is summed from the
    small end: at a threshold of 1 none of it may be lost.
    """
    noise = _NOISE[dtype] * max(float(sigma[0]), float(norms.norm()))
    sigma = torch.where(sigma > noise, sigma, 0.0)
    if sigma[0] == 0:
        return FloristInfo(1, 1.0, sigma.to(dtype))
    energy = (sigma / sigma[0]).square()
    tails = energy.flip(0).cumsum(0).flip(0)
    total, beyond = tails[0], torch.cat([tails[1:], tails.new_zeros(1)])
    rank = 1 + int((beyond <= (1 - threshold) * total).nonzero()[0])
    rank = rank if max_rank is None else min(rank, max_rank)
    return FloristInfo(rank, 1 - float(beyond[rank - 1] / total), sigma.to(dtype))


def _kept(V: Tensor, info: FloristInfo) -> Tensor:
    """The p right vectors; zero where there is nothing to keep, since noise has vectors too."""
    return V if info.singular_values[0] > 0 else torch.zeros_like(V)


def _gram(tall: Tensor) -> Tensor:
    """XᵀX in fp64 of an m×r matrix. By slabs of rows, so that no fp64 copy of it is made, and only one triangle."""
    rank = tall.shape[1]
    total = torch.zeros(rank, rank, dtype=torch.float64, device=tall.device)
    for slab in tall.split(512):
        rows = slab.double()
        for block, end in _column_blocks(rank):
            total[block:, block:end].addmm_(rows[:, block:].T, rows[:, block:end])
    for block, end in _column_blocks(rank):
        total[block:end, end:] = total[end:, block:end].T
    return total


def _column_blocks(rank: int) -> Iterator[tuple[int, int]]:
    """(start, end) of about eight blocks of columns: what they save of a symmetric product is worth their number."""
    width = max(64, -(-rank // 8))
    return ((start, min(start + width, rank)) for start in range(0, rank, width))


def _mean(adapters: Sequence[Adapter], weights: Sequence[float], rank: int) -> Adapter:
    """B and A averaged apart, at this rank. B_k enters as (s_k / s) B_k, where s is the mean scaling."""
    scaling = _mean_scaling(adapters, weights)
    pairs = list(zip(adapters, weights, strict=True))
    B = sum(
        (_wide(_pad(each.B, rank, 1)) * (weight * (each.scaling / scaling)) for each, weight in pairs),
        start=torch.zeros(()),
    )
    A = sum((_wide(_pad(each.A, rank, 0)) * weight for each, weight in pairs), start=torch.zeros(()))
    dtype = adapters[0].B.dtype
    return Adapter(B.to(dtype), A.to(dtype), scaling)


def _mean_scaling(adapters: Sequence[Adapter], weights: Sequence[float]) -> float:
    """Σ p_k s_k, and to the last bit the clients' own where all have the same."""
    first = adapters[0].scaling
    if all(each.scaling == first for each in adapters):
        return first
    return sum(weight * each.scaling for each, weight in zip(adapters, weights, strict=True))


def _stacked(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """B = [B_1 … B_K], A = [p_1 s_1 A_1; …; p_K s_K A_K]: weight and scaling enter exactly once, in A."""
    pairs = zip(adapters, weights, strict=True)
    A = torch.cat([each.A * (weight * each.scaling) for each, weight in pairs], 0)
    return Adapter(torch.cat([each.B for each in adapters], 1), A, 1.0)


def _stacks(adapters: Sequence[Adapter], weights: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """[B_1 … B_K] and [A_1; …; A_K] unweighted, in fp32 at least, and p_k s_k for each of the Σ r_k columns, fp64."""
    shares = [weight * each.scaling for each, weight in zip(adapters, weights, strict=True) for _ in range(each.rank)]
    return (
        _wide(torch.cat([each.B for each in adapters], 1)),
        _wide(torch.cat([each.A for each in adapters], 0)),
        torch.tensor(shares, dtype=torch.float64, device=adapters[0].B.device),
    )


def update_norm(adapter: Adapter) -> float:
    """‖s · B A‖_F, of r×r matrices alone."""
    return adapter.scaling * _product_norm(adapter)


def _product_norm(adapter: Adapter) -> float:
    """‖B A‖_F, of r×r matrices alone: ‖B A‖² = tr(BᵀB · AAᵀ)."""
    squared = (_gram(adapter.B) * _gram(adapter.A.T)).sum()
    return math.sqrt(max(float(squared), 0.0))


def _pad(factor: Tensor, rank: int, dim: int) -> Tensor:
    """The factor with zeros behind, up to `rank` components along `dim`."""
    missing = rank - factor.shape[dim]
    if missing <= 0:
        return factor
    shape = list(factor.shape)
    shape[dim] = missing
    return torch.cat([factor, factor.new_zeros(shape)], dim)


def _wide(factor: Tensor) -> Tensor:
    """In fp32 at least: there is no linear algebra in half precision."""
    return factor.to(torch.promote_types(factor.dtype, torch.float32))


def _checked(adapters: Adapters, weights: Sequence[float]) -> list[Adapter]:
    """The adapters as such, or UserError."""
    given = [Adapter(B.detach(), A.detach(), scaling) for B, A, scaling in adapters]
    if not given:
        raise UserError("adapters: none given; allowed: one (B, A, scaling) or more; give those of the round's clients")
    for client, each in enumerate(given):
        _check_adapter(f"adapters[{client}]", each, given[0])
    if len(weights) != len(given):
        raise UserError(f"weights: {len(weights)} for {len(given)} adapters; allowed: one for each; give n_k / Σ n")
    if not (all(weight >= 0 for weight in weights) and abs(sum(weights) - 1) < 1e-6):
        raise UserError(
            f"weights: {list(weights)}, which sum to {sum(weights):.7g}; allowed: none below 0, sum 1; "
            "divide each n_k by Σ n"
        )
    return given


def _check_adapter(name: str, adapter: Adapter, first: Adapter) -> None:
    B, A, scaling = adapter
    if B.ndim != 2 or A.ndim != 2 or B.shape[1] != A.shape[0]:
        raise UserError(
            f"{name}: B is {_size(B)} and A is {_size(A)}; allowed: B m x r and A r x n with one rank r; "
            "give B (lora_B) first, then A (lora_A), both of the same module"
        )
    if adapter.rank == 0:
        raise UserError(f"{name}: rank 0; allowed: 1 or more; give this client a rank or leave it out of the round")
    if (len(B), A.shape[1]) != (len(first.B), first.A.shape[1]):
        raise UserError(
            f"{name}: for a weight of {len(B)}x{A.shape[1]}, adapters[0] for one of {len(first.B)}x{first.A.shape[1]}; "
            "allowed: one shape for all; aggregate each module by itself"
        )
    if {(B.dtype, B.device), (A.dtype, A.device)} != {(first.B.dtype, first.B.device)} or not B.is_floating_point():
        raise UserError(
            f"{name}: B is {B.dtype} on {B.device}, A is {A.dtype} on {A.device}, adapters[0] is {first.B.dtype} on "
            f"{first.B.device}; allowed: one floating point dtype and one device for all; convert them first"
        )
    if not 0 < scaling < math.inf:
        raise UserError(f"{name}: scaling {scaling}; allowed: above 0 and finite; give alpha / rank")


def _size(tensor: Tensor) -> str:
    return "x".join(str(length) for length in tensor.shape) or "a single number"
