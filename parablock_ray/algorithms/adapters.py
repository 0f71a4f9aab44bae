"""The adapters of a model: which weights have one, who has which rank, where they start, and how they travel."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parablock_ray.algorithms.rng import generator
from parablock_ray.config.lora import LoraConfig, RankChoice, check_num_ranks
from parablock_ray.errors import UserError

Pair = tuple[Tensor, Tensor]  # B (m×r), A (r×n)


@dataclass(frozen=True)
class Target:
    """A linear module, of weight m×n, that gets an adapter."""

    name: str
    m: int
    n: int

    @property
    def weight(self) -> str:
        """The name of its frozen weight."""
        return f"{self.name}.weight"

    def factor(self, which: str, rank: int) -> str:
        """The name of its factor "A" or "B" of this rank."""
        return f"{self.name}.lora_{which}.rank{rank}"

    def num_params(self, rank: int) -> int:
        return rank * (self.m + self.n)


def find_targets(parameters: Mapping[str, Tensor], target_modules: Sequence[str]) -> tuple[Target, ...]:
    """The modules whose last name is one of `target_modules`, in the model's order. Raises UserError."""
    matrices = {name.removesuffix(".weight"): tensor for name, tensor in parameters.items() if tensor.ndim == 2}
    there = {name: name.rpartition(".")[2] for name in matrices if "embed" not in name}
    unknown = [name for name in target_modules if name not in there.values()]
    if unknown:
        raise UserError(
            f"method.lora.target_modules: the model has no linear module {unknown[0]!r}; "
            f"allowed: {', '.join(sorted(set(there.values())))}"
        )
    return tuple(
        Target(name, *matrices[name].shape) for name, last_name in there.items() if last_name in target_modules
    )


def client_ranks(lora: LoraConfig, num_clients: int, seed: int) -> tuple[int, ...]:
    """The rank of every client. Raises UserError for a list of another length."""
    check_num_ranks(lora, num_clients)
    match lora.ranks:
        case int():
            return (lora.ranks,) * num_clients
        case RankChoice():
            of = lora.ranks.of
            drawn = (torch.randint(len(of), (), generator=generator(seed, "rank", c)) for c in range(num_clients))
            return tuple(of[int(index)] for index in drawn)
    return lora.ranks


def all_ranks(lora: LoraConfig) -> tuple[int, ...]:
    """The different ranks that clients may have, ascending."""
    match lora.ranks:
        case int():
            return (lora.ranks,)
        case RankChoice():
            return tuple(sorted(set(lora.ranks.of)))
    return tuple(sorted(set(lora.ranks)))


def check_adapters(lora: LoraConfig, parameters: Mapping[str, Tensor], num_clients: int, seed: int) -> Iterator[str]:
    """What is odd about these adapters, in sentences. Raises UserError for what cannot be."""
    targets = find_targets(parameters, lora.target_modules)
    largest = max(client_ranks(lora, num_clients, seed))
    narrow = min(targets, key=lambda target: min(target.m, target.n))
    full = min(narrow.m, narrow.n)
    if largest > full:
        yield (
            f"method.lora.ranks: {largest} is above the full rank {full} of {narrow.name} ({narrow.m} by {narrow.n}): "
            "it trains and sends more parameters than the weight itself could use"
        )


def random_A(target: Target, rank: int, seed: int, *keys: int) -> Tensor:
    """A fresh A (rank×n), fp32: uniform within ±1/√n, as LoRA (arXiv 2106.09685) and PEFT begin. B begins at 0.

    Without `keys` it is the one that all share; a smaller rank's is the first rows of a larger one's.
    """
    random = generator(seed, f"adapter {target.name}", *keys)
    return torch.rand(rank, target.n, generator=random).mul_(2).sub_(1).div_(target.n**0.5)


def joined(pairs: Sequence[Pair]) -> Tensor:
    """B and A of one module after another, as one flat vector."""
    return torch.cat([factor.reshape(-1) for pair in pairs for factor in pair])


def taken_apart(vector: Tensor, targets: Sequence[Target], ranks: Sequence[int]) -> Iterator[Pair]:
    """The pairs of a flat vector, without a copy; `ranks`: of each of `targets`."""
    offset = 0
    for target, rank in zip(targets, ranks, strict=True):
        middle, end = offset + target.m * rank, offset + target.num_params(rank)
        yield vector[offset:middle].view(target.m, rank), vector[middle:end].view(rank, target.n)
        offset = end
    assert offset == len(vector)
