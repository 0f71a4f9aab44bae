"""Blocks: which parameters are trained together, and how a block becomes one flat vector and back."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parablock_ray.errors import UserError

# `layers.1.` is not `layers.10.`: the number stands between dots. `h` and `blocks` are GPT-2's and MPT's names.
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
PIECE = 1 << 17  # elements that are worked on at once, so that what is made of them does not leave the cache


@dataclass(frozen=True)
class Block:
    """Parameters trained together. The flat vector of a block holds them in this order, each in C order."""

    index: int
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def num_params(self) -> int:
        return sum(_numel(shape) for shape in self.shapes)


@dataclass(frozen=True)
class BlockLayout:
    """Every parameter of a model in exactly one block, or named as frozen."""

    blocks: tuple[Block, ...]
    frozen: tuple[str, ...]
    num_frozen_params: int

    @property
    def num_params(self) -> int:
        """All parameters of the model, frozen ones included; tied ones counted once."""
        return sum(block.num_params for block in self.blocks) + self.num_frozen_params


def make_layout(tensors: Mapping[str, Tensor], num_blocks: int, parameters: str) -> BlockLayout:
    """Group the decoder layers into `num_blocks` runs of consecutive layers, as equal in number as can be.

    `tensors` are the model's `named_parameters()` in their own order (tied ones once); only shapes are read.
    With `parameters="layers"` what is outside the layers is frozen; else what stands before the first layer
    (embeddings) joins the first block and what stands after it (final norm, head) the last one.
    A layer's norms are in the layer. Raises UserError where there are more blocks than layers.
    """
    layer_of = {name: _layer_number(name) for name in tensors}
    layers = sorted({number for number in layer_of.values() if number is not None})
    if not layers:
        raise UserError("model.name: found no decoder layers in this model (names like '…layers.0.…')")
    check_num_blocks(num_blocks, len(layers))
    block_of_layer = {layer: rank * num_blocks // len(layers) for rank, layer in enumerate(layers)}
    members: list[list[str]] = [[] for _ in range(num_blocks)]
    frozen = []
    seen_layer = False
    for name, layer in layer_of.items():
        if layer is not None:
            seen_layer = True
            members[block_of_layer[layer]].append(name)
        elif parameters == "layers":
            frozen.append(name)
        else:
            members[-1 if seen_layer else 0].append(name)
    blocks = tuple(
        Block(index, tuple(names), tuple(tuple(tensors[name].shape) for name in names))
        for index, names in enumerate(members)
    )
    return BlockLayout(blocks, tuple(frozen), sum(tensors[name].numel() for name in frozen))


def check_num_blocks(num_blocks: int, num_layers: int) -> None:
    """A block holds a layer or more. Raises UserError."""
    if num_blocks > num_layers:
        raise UserError(
            f"method.num_blocks: {num_blocks} blocks but the model has {num_layers} layers; allowed: 1 to {num_layers}"
        )


def num_layers(names: Iterable[str]) -> int:
    """How many decoder layers parameters of these names belong to: the most blocks there can be."""
    return len({_layer_number(name) for name in names} - {None})


def flatten(tensors: Iterable[Tensor], dtype: torch.dtype) -> Tensor:
    """A new 1-D tensor of `dtype` holding the tensors one after the other."""
    return torch.cat([tensor.detach().reshape(-1).to(dtype) for tensor in tensors])


def unflatten_into(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Write a flat vector back into the tensors, cast to their dtypes and devices."""
    assert flat.numel() == sum(tensor.numel() for tensor in tensors)
    write_chunks(0, [flat], tensors)


def write_chunks(start: int, chunks: Iterable[Tensor], tensors: Sequence[Tensor]) -> None:
    """As `unflatten_into`, of a part of the flat vector: what stands from place `start` on, in chunks, one after the
    other. Tensors that are cut must be contiguous."""
    with torch.no_grad():
        for chunk in chunks:
            for part, place in _parts(start, chunk.numel(), tensors):
                part.copy_(chunk[place].view_as(part))
            start += chunk.numel()


def read_from(start: int, tensors: Iterable[Tensor], into: Tensor) -> None:
    """The reverse of `write_chunks`: fill `into` with what the tensors hold from place `start` on. Tensors that are cut
    must be contiguous."""
    with torch.no_grad():
        for part, place in _parts(start, into.numel(), tensors):
            into[place].view_as(part).copy_(part)


def add_from(start: int, values: Tensor, tensors: Iterable[Tensor]) -> Tensor:
    """values += what the tensors hold from place `start` of their flat form on; the same vector."""
    with torch.no_grad():
        for part, place in _parts(start, values.numel(), tensors):
            values[place].view_as(part).add_(part)
    return values


def differences(
    tensors: Sequence[Tensor], start: Tensor, into: Iterable[Tensor], restore: Sequence[Tensor] | None
) -> Iterator[Tensor]:
    """What the tensors hold minus `start` (flat, on the same device), in the precision of the tensors, rounded once:
    each vector of `into` in turn, when it holds its part.

    `into`: 1-D, of the wire's dtype, together as long as the tensors. One may be the memory of the one before.
    `restore` (None: nothing): tensors of the same shapes, perhaps the same ones, which take `start` in the same pass.
    A block is larger than any cache, and each pass over it costs what the arithmetic does. Tensors that are cut must be
    contiguous.
    """
    offset = 0
    for made in into:
        _subtract(offset, made, tensors, start, restore)
        yield made
        offset += made.numel()
    assert offset == sum(tensor.numel() for tensor in tensors)


def _subtract(
    offset: int, made: Tensor, tensors: Sequence[Tensor], start: Tensor, restore: Sequence[Tensor] | None
) -> None:
    """The part of `differences` that stands from place `offset` on, as long as `made`."""
    num, live = made.numel(), tensors if restore is None else restore
    before = start[offset : offset + num]
    with torch.no_grad():
        for (tensor, place), (back, _) in zip(_parts(offset, num, tensors), _parts(offset, num, live), strict=True):
            for now, was, moved, restored in _pieces(tensor, before[place], made[place], back):
                if moved.device == now.device:
                    torch.sub(now, was, out=moved)
                else:
                    moved.copy_(torch.sub(now, was).to(moved.dtype))
                if restore is not None:
                    restored.copy_(was)


def _pieces(
    tensor: Tensor, before: Tensor, moved: Tensor, back: Tensor
) -> Iterable[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The same parts of all four, as large as a cache holds; of a GPU, where a call costs more, and of other strides
    all in one."""
    if tensor.device.type == "cpu" and tensor.is_contiguous() and back.is_contiguous():
        return zip(*(each.view(-1).split(PIECE) for each in (tensor, before, moved, back)), strict=True)
    return [(tensor, before.view_as(tensor), moved.view_as(tensor), back)]


def _parts(start: int, num: int, tensors: Iterable[Tensor]) -> Iterator[tuple[Tensor, slice]]:
    """Where `num` numbers from place `start` on lie, and their places among the numbers: whole tensors, of any strides,
    and 1-D parts of those that are cut, which must be contiguous."""
    offset = 0
    for tensor in tensors:
        first, last = max(start, offset), min(start + num, offset + tensor.numel())
        if first < last:
            is_whole = last - first == tensor.numel()
            part = tensor if is_whole else tensor.view(-1)[first - offset : last - offset]
            yield part, slice(first - start, last - start)
        offset += tensor.numel()
    assert start + num <= offset


def copy_kept(state: Mapping[str, Tensor], name: str, into: Tensor) -> None:
    """Copy a tensor of a checkpoint. Raises KeyError where it is missing, ValueError for another shape or dtype: torch
    would repeat a single number, and round."""
    kept = state[name]
    if kept.shape != into.shape or kept.dtype != into.dtype:
        raise ValueError(
            f"{name} is {kept.dtype} of shape {tuple(kept.shape)}, not {into.dtype} of {tuple(into.shape)}"
        )
    into.copy_(kept)


def _layer_number(name: str) -> int | None:
    match = _LAYER.search(name)
    return int(match.group(1)) if match else None


def _numel(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()
