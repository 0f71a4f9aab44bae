"""A worker: one resident model, its engine, and the local training of the clients it hosts, one after the other."""

import math
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from parablock_ray.algorithms.base import MethodTraits, RoundPlan, Visit
from parablock_ray.algorithms.blocks import BlockLayout, chunk_bounds, flatten, make_layout
from parablock_ray.algorithms.client import Replica, ReplicaSettings
from parablock_ray.config import Config
from parablock_ray.config.network import NetworkConfig
from parablock_ray.errors import RunFailed
from parablock_ray.training.data import FederatedData, batches
from parablock_ray.training.engine import EngineMaker
from parablock_ray.training.loss import move
from parablock_ray.training.model import load_model


@dataclass(frozen=True)
class Trained:
    """What one visit gave: the delta to send (flat, wire dtype, CPU) and the mean training loss of its steps."""

    delta: Tensor
    loss: float


class Worker:
    """Loads the model once; knows nothing of processes, links or time."""

    def __init__(
        self,
        config: Config,
        traits: MethodTraits,
        data: FederatedData,
        device: torch.device,
        make_engine: EngineMaker,
    ) -> None:
        self._config = config
        self._data = data
        self._device = device
        model = load_model(config.model.name, "float32", config.seed)
        self.layout = make_layout(dict(model.named_parameters()), config.method.num_blocks, config.method.parameters)
        dtype = getattr(torch, config.model.dtype)
        rounded = {} if dtype == torch.float32 else _values_lost_by_cast(model, self.layout, dtype)
        for parameter in model.parameters():  # not the buffers: rotary frequencies stay in fp32
            parameter.data = parameter.data.to(dtype)
        model.to(device)  # after the cast: the GPU never holds the wider model
        model.train()
        if config.model.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        parameters = dict(model.named_parameters())
        settings = ReplicaSettings(traits.correction, traits.staleness, getattr(torch, config.network.wire_dtype))
        self._replica = Replica(parameters, self.layout, settings)
        for block, value in rounded.items():
            self._replica.keep_exact(block, value)
        self._block_parameters = [[parameters[name] for name in block.names] for block in self.layout.blocks]
        self._engine = make_engine(model, config)

    def bounds(self, block: int) -> list[tuple[int, int]]:
        """The chunks in which this block travels, as (start, end) in the flat vector."""
        return wire_chunks(self.layout, block, self._config.network)

    def advance(self, reads: int, values: Iterable[tuple[int, Tensor]]) -> None:
        """Move the resident model to x^{(≤ reads)}: `values` are (block, flat wire value) of what changed."""
        for block, value in values:
            self._replica.receive(block, value)
        self._replica.forget(reads)

    def train(self, plan: RoundPlan, visit: Visit) -> Trained:
        """One client's local steps on the round's block, from z_i. The model holds committed values afterwards.

        Raises RunFailed, naming client, round and block, where the loss or the delta is not finite.
        """
        method = self._config.method
        with named(plan, visit):
            start = self._replica.start(plan, visit)
            self._engine.begin(self._block_parameters[plan.block], plan.lr)
            losses = [
                self._engine.step(move(batch, self._device))
                for batch in batches(
                    self._data.train,
                    self._data.clients[visit.client],
                    self._config.seed,
                    plan.round,
                    visit.client,
                    method.local_steps,
                    method.batch_size,
                )
            ]
            delta = self._replica.finish(plan, visit, start, self._engine.end())
            loss = sum(losses) / len(losses)
            extremes = torch.stack(torch.aminmax(delta))  # NaN if any is; a tenth of the time of isfinite on all
            if not math.isfinite(loss) or not extremes.isfinite().all():
                raise RunFailed(
                    f"training is not finite (loss {loss}); a smaller method.lr or method.max_grad_norm may help"
                )
        return Trained(delta, loss)

    def warm_up(self) -> None:
        """One forward and backward pass that changes nothing, so that first-use costs fall before the clock starts."""
        store = self._data.train
        batch = move(store.batch(range(min(len(store), self._config.method.batch_size))), self._device)
        self._engine.begin(self._block_parameters[0], 0.0)
        self._engine.step(batch)
        self._engine.end()


def _values_lost_by_cast(model: torch.nn.Module, layout: BlockLayout, dtype: torch.dtype) -> dict[int, Tensor]:
    """The fp32 values of the blocks that `dtype` cannot hold (none, where the weights were saved in it)."""
    parameters = dict(model.named_parameters())
    lost = {}
    for block in layout.blocks:
        value = flatten((parameters[name] for name in block.names), torch.float32)
        if not torch.equal(value.to(dtype).to(torch.float32), value):
            lost[block.index] = value
    return lost


def wire_chunks(layout: BlockLayout, block: int, network: NetworkConfig) -> list[tuple[int, int]]:
    """How a block is cut for the wire: the same on client and server."""
    wire_dtype: torch.dtype = getattr(torch, network.wire_dtype)
    return chunk_bounds(layout.blocks[block].num_params, wire_dtype.itemsize, network.chunk_bytes)


@contextmanager
def named(plan: RoundPlan, visit: Visit) -> Iterator[None]:
    """Whatever goes wrong inside says whose work it was."""
    where = f"client {visit.client}, round {plan.round}, block {plan.block}"
    try:
        yield
    except RunFailed as error:
        raise RunFailed(f"{where}: {error}") from None
    except Exception as error:  # the traceback as text, since a cause is lost on the way to another process
        raise RunFailed(f"{where}: {type(error).__name__}: {error}\n\n{traceback.format_exc()}") from error
