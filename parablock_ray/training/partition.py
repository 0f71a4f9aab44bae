"""Which client holds which training examples: every example exactly once, the same for the same seed.

`groups` and `labels` are one text for each example; each client's example indices come back, int64, ascending.
"""

from collections.abc import Sequence

import numpy as np
import torch

from parablock_ray.algorithms.rng import generator
from parablock_ray.config.data import (
    DirichletSplit,
    IIDSplit,
    NaturalSplit,
    QuantitySplit,
    ShardsSplit,
    SplitConfig,
)
from parablock_ray.errors import UserError

Parts = tuple[np.ndarray, ...]


def split(config: SplitConfig, groups: Sequence[str], labels: Sequence[str], num_clients: int, seed: int) -> Parts:
    """As `data.split` says. `groups`: what `natural` keeps together; `labels`: what the skewed splits go by.

    Raises UserError for too few examples, and as `natural` does.
    """
    match config:
        case IIDSplit():
            return iid(len(groups), num_clients, seed)
        case NaturalSplit():
            return natural(groups, num_clients, seed)
        case DirichletSplit():
            return dirichlet(labels, num_clients, seed, config.alpha, config.min_examples)
        case QuantitySplit():
            return quantity(len(groups), num_clients, seed, config.alpha, config.min_examples)
        case ShardsSplit():
            return shards(labels, num_clients, seed, config.shards_per_client)


def iid(num_examples: int, num_clients: int, seed: int) -> Parts:
    """Near-equal parts (sizes differ by one at most) of one shuffle. Raises UserError for fewer than clients."""
    _check_enough(num_examples, num_clients, "training examples")
    return _deal(np.arange(num_examples), num_clients, generator(seed, "partition"))


def natural(groups: Sequence[str], num_clients: int, seed: int) -> Parts:
    """One group a client: client c holds group c mod (number of groups), in order of first appearance.

    Clients of one group share it in near-equal parts. Raises UserError where there is but one group for several
    clients, more groups than clients, or a group too small for its clients.
    """
    _check_enough(len(groups), num_clients, "training examples")
    names = list(dict.fromkeys(groups))
    if len(names) > num_clients:
        raise UserError(
            f"data.split: natural gives every client one group, but there are {len(names)} "
            f"({', '.join(names[:4])} …) for clients.num = {num_clients}; raise it to {len(names)}, or use iid"
        )
    if len(names) == 1 < num_clients:
        raise UserError(
            f"data.split: natural needs data of several tasks or clients, but all of it is {names[0]}; use iid"
        )
    parts: list[np.ndarray] = [np.empty(0, np.int64)] * num_clients
    for number, name in enumerate(names):
        members, clients = _members(groups, name), range(number, num_clients, len(names))
        _check_enough(len(members), len(clients), f"training examples of {name}")
        shares = _deal(members, len(clients), generator(seed, "partition", number))
        for client, share in zip(clients, shares, strict=True):
            parts[client] = share
    return tuple(parts)


def dirichlet(labels: Sequence[str], num_clients: int, seed: int, alpha: float, min_examples: int) -> Parts:
    """Label skew (NIID-Bench, arXiv 2102.02079, section 4.2): client k gets the share q_lk of label l.

    Every q_l is a draw of its own from Dir(alpha) over the clients.
    A client below `min_examples` is then given examples of those that hold the most, one at a time. Raises UserError
    where there are too few examples for that.
    """
    _check_minimum(len(labels), num_clients, min_examples)
    hands: list[list[int]] = [[] for _ in range(num_clients)]
    for number, name in enumerate(dict.fromkeys(labels)):
        members = _shuffled(_members(labels, name), generator(seed, "dirichlet order", number))
        cuts = _cuts(_shares(alpha, num_clients, generator(seed, "dirichlet", number)), len(members))
        for hand, share in zip(hands, np.split(members, cuts), strict=True):
            hand += share.tolist()
    return _with_minimum(hands, min_examples)


def quantity(num_examples: int, num_clients: int, seed: int, alpha: float, min_examples: int) -> Parts:
    """Quantity skew (NIID-Bench, arXiv 2102.02079, section 4.2): client k gets the share q_k of one shuffle,
    q ~ Dir(alpha). The minimum as in `dirichlet`."""
    _check_minimum(num_examples, num_clients, min_examples)
    order = _shuffled(np.arange(num_examples), generator(seed, "quantity order"))
    cuts = _cuts(_shares(alpha, num_clients, generator(seed, "quantity")), num_examples)
    return _with_minimum([share.tolist() for share in np.split(order, cuts)], min_examples)


def shards(labels: Sequence[str], num_clients: int, seed: int, shards_per_client: int) -> Parts:
    """Shards (McMahan et al., arXiv 1602.05629, section 3): examples sorted by label, shuffled within it, cut into
    `num_clients` · `shards_per_client` near-equal shards, which are dealt at random. Raises UserError for fewer
    examples than shards."""
    num_shards = num_clients * shards_per_client
    if len(labels) < num_shards:
        raise UserError(
            f"data.split.shards_per_client: {num_clients} clients of {shards_per_client} shards need as many examples "
            f"as shards, {num_shards}, but there are {len(labels)}; lower it, or give more data (data.num_train)"
        )
    shuffle = generator(seed, "shards")
    names = dict.fromkeys(labels)
    ordered = np.concatenate([_shuffled(_members(labels, name), shuffle) for name in names])
    cut = np.array_split(ordered, num_shards)
    dealt = torch.randperm(num_shards, generator=shuffle).view(num_clients, shards_per_client).tolist()
    return tuple(np.sort(np.concatenate([cut[shard] for shard in hand])) for hand in dealt)


def length_labels(lengths: np.ndarray, num_buckets: int) -> list[str]:
    """Buckets of tokens with as many examples each, as far as equal lengths allow: `up to 73 tokens`."""
    edges = np.quantile(lengths, np.arange(1, num_buckets + 1) / num_buckets, method="inverted_cdf").astype(int)
    return [f"up to {edges[bucket]} tokens" for bucket in np.searchsorted(edges, lengths)]


def _members(labels: Sequence[str], name: str) -> np.ndarray:
    return np.array([index for index, label in enumerate(labels) if label == name], np.int64)


def _shares(alpha: float, num: int, random: torch.Generator) -> np.ndarray:
    """One draw from the symmetric Dirichlet; numpy's sampler keeps its precision where alpha is small."""
    seed = int(torch.randint(2**62, (), generator=random))
    shares: np.ndarray = np.random.default_rng(seed).dirichlet(np.full(num, alpha))
    return shares


def _cuts(shares: np.ndarray, num_examples: int) -> np.ndarray:
    """Where to cut so many examples into these shares; each part is within one of its share."""
    return np.floor(np.cumsum(shares)[:-1] * num_examples + 0.5).astype(np.int64).clip(0, num_examples)


def _with_minimum(hands: list[list[int]], min_examples: int) -> Parts:
    for hand in hands:
        while len(hand) < min_examples:
            hand.append(max(hands, key=len).pop())
    return tuple(np.sort(np.array(hand, np.int64)) for hand in hands)


def _check_enough(num_examples: int, num_clients: int, what: str) -> None:
    if num_examples < num_clients:
        raise UserError(
            f"clients.num: {num_clients} clients cannot share {num_examples} {what}; "
            "lower it or give more data (data.num_train)"
        )


def _check_minimum(num_examples: int, num_clients: int, min_examples: int) -> None:
    _check_enough(num_examples, num_clients, "training examples")
    if num_examples < num_clients * min_examples:
        raise UserError(
            f"data.split.min_examples: {num_clients} clients of at least {min_examples} need "
            f"{num_clients * min_examples} training examples, but there are {num_examples}; allowed: at most "
            f"{num_examples // num_clients}, or give more data (data.num_train)"
        )


def _shuffled(members: np.ndarray, shuffle: torch.Generator) -> np.ndarray:
    shuffled: np.ndarray = members[torch.randperm(len(members), generator=shuffle).numpy()]
    return shuffled


def _deal(members: np.ndarray, num_parts: int, shuffle: torch.Generator) -> Parts:
    return tuple(np.sort(part) for part in np.array_split(_shuffled(members, shuffle), num_parts))
