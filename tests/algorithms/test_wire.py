"""What travels: chunks of equal size that cover a vector."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from parablock_ray.algorithms.wire import Wire
from parablock_ray.config.network import NetworkConfig


@given(st.integers(1, 10_000), st.sampled_from([torch.bfloat16, torch.float32]), st.integers(4, 50_000))
def test_chunks_cover_a_vector_in_equal_parts(num_params, dtype, chunk_bytes):
    wire = Wire(dtype, chunk_bytes)
    bounds = wire.bounds(num_params)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == num_params
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(bounds))
    assert len(bounds) == -(-wire.num_bytes(num_params) // chunk_bytes)
    sizes = [end - start for start, end in bounds]
    assert max(sizes) - min(sizes) <= 1


def test_the_configs_wire():
    assert Wire.of(NetworkConfig(wire_dtype="bfloat16", chunk_mb=1.001)) == Wire(torch.bfloat16, 1_001_000)
