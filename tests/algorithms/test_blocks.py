"""Blocks: every parameter in exactly one, or named as frozen."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parablock_ray.algorithms.blocks import add_from, differences, flatten, make_layout, unflatten_into, write_chunks
from parablock_ray.errors import UserError


def llama(num_layers: int, prefix: str = "model.layers") -> dict[str, torch.Tensor]:
    """Parameter names and shapes as a Llama has them, in its order."""
    names = {"model.embed_tokens.weight": (7, 4)}
    for layer in range(num_layers):
        names[f"{prefix}.{layer}.self_attn.q_proj.weight"] = (4, 4)
        names[f"{prefix}.{layer}.input_layernorm.weight"] = (4,)
    names |= {"model.norm.weight": (4,), "lm_head.weight": (7, 4)}
    return {name: torch.empty(shape) for name, shape in names.items()}


@given(
    st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))), st.sampled_from(["layers", "all"])
)
def test_each_parameter_is_in_exactly_one_block_or_frozen(sizes, parameters):
    num_layers, num_blocks = sizes
    tensors = llama(num_layers)
    layout = make_layout(tensors, num_blocks, parameters)
    names = [name for block in layout.blocks for name in block.names] + list(layout.frozen)
    assert sorted(names) == sorted(tensors)
    assert layout.num_params == sum(tensor.numel() for tensor in tensors.values())
    assert len(layout.blocks) == num_blocks
    layers_in = [len([name for name in block.names if "q_proj" in name]) for block in layout.blocks]
    assert max(layers_in) - min(layers_in) <= 1


def test_layer_1_is_not_layer_10():
    layout = make_layout(llama(12), 12, "layers")
    for number, block in enumerate(layout.blocks):
        assert all(f"layers.{number}." in name for name in block.names)


def test_what_is_outside_the_layers():
    frozen = make_layout(llama(4), 2, "layers")
    assert frozen.frozen == ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    assert frozen.num_frozen_params == 7 * 4 + 4 + 7 * 4
    everything = make_layout(llama(4), 2, "all")
    assert everything.frozen == ()
    assert everything.blocks[0].names[0] == "model.embed_tokens.weight"
    assert everything.blocks[1].names[-2:] == ("model.norm.weight", "lm_head.weight")


@pytest.mark.parametrize("prefix", ["transformer.h", "base_model.model.model.layers", "gpt_neox.layers", "layers"])
def test_other_families_names(prefix):
    assert len(make_layout(llama(4, prefix), 4, "layers").blocks) == 4


def test_more_blocks_than_layers_and_no_layers():
    with pytest.raises(UserError, match=r"method.num_blocks: 5 blocks but the model has 4 layers; allowed: 1 to 4"):
        make_layout(llama(4), 5, "layers")
    with pytest.raises(UserError, match="no decoder layers"):
        make_layout({"weight": torch.empty(3)}, 1, "all")


def test_flatten_and_back():
    tensors = [torch.randn(3, 2, dtype=torch.float64), torch.randn(5).to(torch.bfloat16)]
    copies = [torch.zeros_like(tensor) for tensor in tensors]
    flat = flatten(tensors, torch.float64)
    assert flat.shape == (11,)
    unflatten_into(flat, copies)
    assert all(torch.equal(copy, tensor) for copy, tensor in zip(copies, tensors, strict=True))


@given(st.lists(st.integers(0, 99), max_size=6).map(sorted))
def test_chunk_by_chunk_is_as_at_once(edges):
    """Chunks may end anywhere in a tensor; one that is not contiguous must lie in one chunk."""
    tensors = [torch.randn(4, 5), torch.randn(3), torch.randn(7, 11)]
    whole, values = flatten(tensors, torch.float32), torch.randn(100)
    bounds = list(itertools.pairwise([0, *edges, 100]))
    sums = [add_from(start, values[start:end].clone(), tensors) for start, end in bounds]
    assert torch.equal(torch.cat(sums), values + whole)
    write_chunks(0, [values[start:end].double() for start, end in bounds], tensors)
    assert torch.equal(flatten(tensors, torch.float32), values)
    columns = [torch.zeros(4, 6)[:, :3], torch.zeros(4, 6)[:, 2:]]
    write_chunks(0, [values[:28]], columns)
    assert torch.equal(flatten(columns, torch.float32), values[:28])
    assert torch.equal(add_from(0, values[:28].clone(), columns), values[:28] * 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("are_live", [True, False])
@pytest.mark.parametrize("edges", [[], [100_001, 300_001], [300_000]])
def test_differences_and_the_start_restored(dtype, are_live, edges):
    """Tensors of several pieces, of less than one, of other strides; trained in place, or beside the live ones; each
    chunk in the memory of the one before."""
    live = [torch.randn(300, 1000), torch.randn(3), torch.randn(5, 8)[:, 2:5]]
    start, memory = torch.randn(300_018).to(dtype), torch.empty(300_018, dtype=dtype)
    trained = live if are_live else [torch.randn(each.shape) for each in live]
    expected = (flatten(trained, torch.float32) - start).to(dtype)
    before = [each.clone() for each in live]

    def made(restore: list[torch.Tensor] | None) -> torch.Tensor:
        into = (memory[: last - first] for first, last in itertools.pairwise([0, *edges, 300_018]))
        return torch.cat([chunk.clone() for chunk in differences(trained, start, into, restore)])

    assert torch.equal(made(restore=None), expected)
    assert all(torch.equal(*pair) for pair in zip(live, before, strict=True))
    assert torch.equal(made(restore=live), expected)
    assert torch.equal(flatten(live, torch.float32), start.to(torch.float32))
