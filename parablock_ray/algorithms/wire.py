"""How a vector travels: in which dtype, and in which chunks. One rule for the server, the clients and the clock."""

import itertools
from dataclasses import dataclass

import torch

from parablock_ray.config import Config
from parablock_ray.config.network import NetworkConfig


@dataclass(frozen=True)
class Wire:
    """`dtype` of what is sent; `chunk_bytes`: the most that a chunk holds."""

    dtype: torch.dtype
    chunk_bytes: int

    @staticmethod
    def of(network: NetworkConfig) -> "Wire":
        """As `network.wire_dtype` and `network.chunk_mb` say."""
        return Wire(getattr(torch, network.wire_dtype), network.chunk_bytes)

    @staticmethod
    def of_uploads(config: Config) -> "Wire":
        """Of what clients send: the same or, with secure aggregation, its integers under masks."""
        secure = config.secure_aggregation
        if not secure.enabled:
            return Wire.of(config.network)
        return Wire(getattr(torch, f"int{secure.bits}"), config.network.chunk_bytes)

    def num_bytes(self, num_params: int) -> int:
        """The payload of a vector."""
        return num_params * self.dtype.itemsize

    def bounds(self, num_params: int) -> list[tuple[int, int]]:
        """ceil(bytes / chunk) chunks of equal size (to one parameter), as (start, end) in the flat vector."""
        num_chunks = -(-self.num_bytes(num_params) // self.chunk_bytes)
        edges = [num_params * j // num_chunks for j in range(num_chunks + 1)]
        return list(itertools.pairwise(edges))
