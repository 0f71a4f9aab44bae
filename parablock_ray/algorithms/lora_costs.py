"""What federated LoRA costs: parameters up and down, the paper's measures of them, and the server's operations.

Source: FLoRIST, arXiv 2506.09199, sections 4 and 5. Everywhere `shapes` are the (m, n) of the adapted weight matrices
and `ranks` the r_k of the round's clients; lists that come back have one entry for each client. `kept_ranks` is
FLoRIST's p for each matrix, known only after the fact; other methods take no notice of it.
"""

from collections.abc import Sequence

from parablock_ray.algorithms.lora import check_equal_ranks
from parablock_ray.errors import UserError

METHODS = ("fedit", "zero_pad", "hetlora", "ffa_lora", "fedex_lora", "flora", "flexlora", "florist")
NEED_EQUAL_RANKS = ("fedit", "ffa_lora", "fedex_lora")

Shapes = Sequence[tuple[int, int]]


def upload_params(method: str, shapes: Shapes, ranks: Sequence[int]) -> list[int]:
    """Parameters that each client sends in a round: its own factors; of FFA-LoRA, whose A is frozen, B alone."""
    _check(method, ranks)
    return [sum(rank * _width(method, shape) for shape in shapes) for rank in ranks]


def download_params(method: str, shapes: Shapes, ranks: Sequence[int], kept_ranks: Sequence[int]) -> list[int]:
    """Parameters that each client receives in a round. FedEx-LoRA's residual has rank Σ r_k."""
    per_client = []
    for matrices in download_ranks(method, shapes, ranks, kept_ranks):
        params = sum(rank * _width(method, shape) for shape, rank in zip(shapes, matrices, strict=True))
        if method == "fedex_lora":
            params += sum(sum(ranks) * (m + n) for m, n in shapes)
        per_client.append(params)
    return per_client


def download_ranks(method: str, shapes: Shapes, ranks: Sequence[int], kept_ranks: Sequence[int]) -> list[list[int]]:
    """For each client the rank of the adapter that it receives, for each matrix; FedEx-LoRA's without its residual."""
    _check(method, ranks)
    if method == "florist":
        if len(kept_ranks) != len(shapes):
            raise UserError(
                f"kept_ranks: {len(kept_ranks)} for {len(shapes)} matrices; allowed: one for each; "
                "give the p that florist found"
            )
        return [list(kept_ranks) for _ in ranks]
    match method:
        case "flora":
            return [[sum(ranks)] * len(shapes)] * len(ranks)
        case "zero_pad":
            return [[max(ranks)] * len(shapes)] * len(ranks)
        case "flexlora":  # an SVD has no more components than that
            return [[min(rank, m, n) for m, n in shapes] for rank in ranks]
    return [[rank] * len(shapes) for rank in ranks]


def download_efficiency(method: str, shapes: Shapes, ranks: Sequence[int], kept_ranks: Sequence[int]) -> float:
    """The paper's communication efficiency: 1 / (download rank summed over matrices), the mean over clients of that.

    FFA-LoRA counts half, since A does not travel; FedEx-LoRA's residual counts with its rank, min(Σ r_k, m, n).
    """
    totals = [sum(matrices) for matrices in download_ranks(method, shapes, ranks, kept_ranks)]
    mean = sum(totals) / len(totals)
    if method == "ffa_lora":
        mean /= 2
    if method == "fedex_lora":
        mean += sum(min(sum(ranks), *shape) for shape in shapes)
    return 1 / mean


def paper_megabits(num_params: int) -> float:
    """What the paper's tables call MB: megabits of fp16."""
    return num_params * 16 / 1e6


def flexlora_operations(shapes: Shapes, ranks: Sequence[int]) -> int:
    """The server's multiplications in a round as the paper counts them: the dense sum, its SVD, the factors."""
    r = sum(ranks)
    return sum(len(ranks) * m * n + min(m, n) * m * n + r * r * (m + n) for m, n in shapes)


def florist_operations(shapes: Shapes, ranks: Sequence[int]) -> int:
    """The same for FLoRIST: thin SVDs of the stacks and that of the r×r core.

    Forming B_g and A_g, which depends on p, is left out, as in the paper's own figure.
    """
    r = sum(ranks)
    return sum(r * r * (m + n + r) for m, n in shapes)


def _width(method: str, shape: tuple[int, int]) -> int:
    """Parameters of one component of an adapter, as it travels."""
    m, n = shape
    return m if method == "ffa_lora" else m + n


def _check(method: str, ranks: Sequence[int]) -> None:
    if method not in METHODS:
        raise UserError(f"method: {method!r}; allowed: {', '.join(METHODS)}")
    if not ranks or min(ranks) < 1:
        raise UserError(f"ranks: {list(ranks)}; allowed: one of 1 or more for each client")
    if method in NEED_EQUAL_RANKS:
        check_equal_ranks(method, ranks)
