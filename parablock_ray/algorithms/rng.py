"""Every random number of a run: a generator keyed by (seed, purpose, where it is used). No global state."""

import hashlib

import torch


def generator(seed: int, purpose: str, *keys: int) -> torch.Generator:
    """A CPU generator that depends on nothing but its arguments, e.g. `generator(0, "batches", client, round)`."""
    text = ":".join([str(seed), purpose, *map(str, keys)])
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
