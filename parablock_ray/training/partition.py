"""Which client holds which training examples: every example exactly once, the same for the same seed."""

from collections.abc import Sequence

import numpy as np
import torch

from parablock_ray.algorithms.rng import generator
from parablock_ray.errors import UserError


def iid(groups: Sequence[str], num_clients: int, seed: int) -> tuple[np.ndarray, ...]:
    """Near-equal parts (sizes differ by one at most) of one shuffle, whatever the examples' groups.

    Returns each client's example indices, int64, ascending. Raises UserError for fewer examples than clients.
    """
    _check_enough(len(groups), num_clients, "training examples")
    return _deal(np.arange(len(groups)), num_clients, generator(seed, "partition"))


def natural(groups: Sequence[str], num_clients: int, seed: int) -> tuple[np.ndarray, ...]:
    """One group a client: client c holds group c mod (number of groups), in order of first appearance.

    Clients of one group share it in near-equal parts. Returns as `iid` does. Raises UserError where there is
    but one group for several clients, more groups than clients, or a group too small for its clients.
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
    of_group = np.array([names.index(group) for group in groups])
    for number, name in enumerate(names):
        members, clients = np.flatnonzero(of_group == number), range(number, num_clients, len(names))
        _check_enough(len(members), len(clients), f"training examples of {name}")
        shares = _deal(members, len(clients), generator(seed, "partition", number))
        for client, share in zip(clients, shares, strict=True):
            parts[client] = share
    return tuple(parts)


SPLITS = {"iid": iid, "natural": natural}


def _check_enough(num_examples: int, num_clients: int, what: str) -> None:
    if num_examples < num_clients:
        raise UserError(
            f"clients.num: {num_clients} clients cannot share {num_examples} {what}; "
            "lower it or give more data (data.num_train)"
        )


def _deal(members: np.ndarray, num_parts: int, shuffle: torch.Generator) -> tuple[np.ndarray, ...]:
    order = torch.randperm(len(members), generator=shuffle).numpy()
    return tuple(np.sort(part) for part in np.array_split(members[order], num_parts))
