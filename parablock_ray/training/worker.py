"""A worker: one resident model, its engine, and the local training of the clients it hosts, one after the other."""

import math
import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Generic, TypeVar

import torch
from torch import Tensor

from parablock_ray.accounting import share_noise
from parablock_ray.algorithms.base import LiveModel, RoundPlan, Update, Visit
from parablock_ray.algorithms.methods import make_replica, trains_adapters
from parablock_ray.algorithms.population import Population
from parablock_ray.algorithms.privacy import clipped, with_share
from parablock_ray.algorithms.wire import Wire
from parablock_ray.config import Config
from parablock_ray.errors import RunFailed, UserError
from parablock_ray.secure_terms import clip_before_rounding
from parablock_ray.tracking.events import Dropped
from parablock_ray.training.adapters import activate_rank, add_adapters
from parablock_ray.training.batches import batches, move, visit_order
from parablock_ray.training.data import FederatedData
from parablock_ray.training.engine import EngineMaker
from parablock_ray.training.model import check_packing, load_model

# Examples that are made when a client is visited, and kept: of so many tokens at least, or of so many clients.
_CACHED_TOKENS = 4_000_000
_CACHED_CLIENTS = 32


T = TypeVar("T")


@dataclass(frozen=True)
class Trained(Generic[T]):
    """What one visit gave: the chunks to send (flat, wire dtype, CPU, or what `put` made of each) and the mean training
    loss of its steps."""

    chunks: list[Tensor | T]
    loss: float


class Worker:
    """Loads the model once; knows nothing of processes, links or time."""

    def __init__(
        self,
        config: Config,
        population: Population,
        data: FederatedData,
        device: torch.device,
        make_engine: EngineMaker,
        share_key: bytes | None = None,
    ) -> None:
        self._config = config
        self._share_key = share_key
        self._population = population
        most_tokens = max(population.num_examples) * data.max_length  # of a client
        self._held_by = lru_cache(max(_CACHED_CLIENTS, _CACHED_TOKENS // most_tokens))(data.clients.held_by)
        self._packed_length = data.max_length if config.data.packing else None
        self._device = device
        model = load_model(config.model.name, "float32", config.seed)
        if config.data.packing:
            check_packing(model)
        exact = _cast(model, getattr(torch, config.model.dtype))
        parameters = dict(model.named_parameters())
        if trains_adapters(config.method):
            parameters |= add_adapters(model, config.method.lora)
        model.to(device)  # after the cast: the GPU never holds the wider model
        model.train()
        if config.model.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        live = LiveModel(parameters, exact, partial(activate_rank, model))
        self._wire, self._upload_wire = Wire.of(config.network), Wire.of_uploads(config)
        self._replica = make_replica(config.method, population, live, self._wire)
        self._engine = make_engine(model, config)

    @property
    def takes_parts(self) -> bool:
        """See `Replica`."""
        return self._replica.takes_parts

    def apply(self, part: Update) -> None:
        """A part of an update, ahead of `advance`."""
        self._replica.apply(part)

    def advance(self, reads: int, updates: Iterable[Update]) -> None:
        """Move the resident model to x^{(≤ reads)}: by what has changed since the last call."""
        for update in updates:
            self._replica.apply(update)
        self._replica.forget(reads)

    def remember(self, plan: RoundPlan, visit: Visit, upload: Tensor) -> None:
        """In a resumed run: what this client sent in a round before is pending. Rounds in order."""
        self._replica.remember(plan, visit, upload)

    def train(self, plan: RoundPlan, visit: Visit, put: Callable[[Tensor], T]) -> Trained[T]:
        """One client's local steps in a round, from z_i. The model holds committed values afterwards.

        `put` copies a chunk away as soon as it is made, out of memory that the next one uses again: so the whole upload
        need not be here. It is not asked where all of it must be, pending or to be cut to a norm, nor for a single
        chunk, which may as well be copied while the next client trains.

        Raises RunFailed, naming client, round and block, where the loss or the upload is not finite.
        """
        with named(plan, visit), self._undressed_after():
            self._engine.begin(self._replica.start(plan, visit), plan.lr)
            losses = [
                self._engine.step(move(batch, self._device))
                for batch in self._batches(plan.round, visit.client, self._config.method.local_steps)
            ]
            trained, loss = self._engine.end(), sum(losses) / len(losses)
            bounds = self._upload_wire.bounds(sum(tensor.numel() for tensor in trained))
            needs_whole = plan.clip is not None or self._config.method.staleness > 0
            if len(bounds) > 1 and not needs_whole:
                memory = torch.empty(max(end - start for start, end in bounds), dtype=self._wire.dtype)
                into = (memory[: end - start] for start, end in bounds)
                return Trained([put(chunk) for chunk in self._made(trained, loss, into)], loss)
            upload = torch.empty(bounds[-1][1], dtype=self._wire.dtype)
            for _ in self._made(trained, loss, (upload[start:end] for start, end in bounds)):
                pass  # it lies in `upload`
            upload = self._private(plan, visit, upload)
            self._replica.remember(plan, visit, upload)
        return Trained([upload[start:end] for start, end in bounds], loss)

    def _made(self, trained: Sequence[Tensor], loss: float, into: Iterable[Tensor]) -> Iterator[Tensor]:
        """The chunks of an upload. Raises RunFailed where they, or the loss, are not finite."""
        _check_finite(loss, loss)
        for chunk in self._replica.finish(trained, into):
            for extreme in torch.aminmax(chunk):  # NaN if any is; a tenth of the time of isfinite on all
                _check_finite(float(extreme), loss)
            yield chunk

    def _private(self, plan: RoundPlan, visit: Visit, upload: Tensor) -> Tensor:
        """What of a private round may leave the client, and is pending at it: cut, and with its share of the noise."""
        if plan.clip is None:
            return upload
        upload = clipped(upload, clip_before_rounding(self._config, plan.clip, upload.numel()))
        if self._share_key is None:
            return upload
        noise = self._config.privacy.noise_multiplier
        assert noise is not None, "it is solved before the run starts"
        std = share_noise(self._config, noise, plan.clip)
        return with_share(upload, std, self._share_key, plan.round, visit.client)

    def train_or_drop(self, plan: RoundPlan, visit: Visit, put: Callable[[Tensor], T]) -> Trained[T] | Dropped:
        """`train`, where with `clients.on_error: drop` one that fails is told and not raised."""
        try:
            return self.train(plan, visit, put)
        except RunFailed as error:
            if self._config.clients.on_error == "fail":
                raise
            return Dropped(plan.round, visit.client, "refused", str(error).partition("\n")[0])

    def warm_up(self) -> None:
        """One forward and backward pass that changes nothing, so that first-use costs fall before the clock starts."""
        [batch] = self._batches(round=0, client=0, num_steps=1)
        first = RoundPlan(round=0, block=0, reads=-1, visits=(), lr=0.0)
        visit = Visit(client=0, num_examples=1, weight=1, share=1.0)
        with self._undressed_after():
            self._engine.begin(self._replica.start(first, visit), first.lr)
            self._engine.step(move(batch, self._device))
            self._engine.end()

    def step_seconds(self, block: int, clients: Sequence[int], num_steps: int) -> float:
        """Median seconds of a local step on `block`, of `num_steps` after one that warms up. Changes no weight.

        On real batches of these clients, in turn. Before the first round.
        """
        plan = RoundPlan(round=0, block=block, reads=-1, visits=(), lr=0.0)
        visit = Visit(clients[0], num_examples=1, weight=1, share=1.0)
        seconds = []
        with named(plan, visit), self._undressed_after():
            self._engine.begin(self._replica.start(plan, visit), plan.lr)
            for step in range(num_steps + 1):
                [batch] = self._batches(round=step, client=clients[step % len(clients)], num_steps=1)
                start_s = time.perf_counter()
                self._engine.step(move(batch, self._device))
                seconds.append(time.perf_counter() - start_s)
            self._engine.end()
        return statistics.median(seconds[1:])

    def _batches(self, round: int, client: int, num_steps: int) -> Iterator[dict[str, Tensor]]:
        store, examples = self._held_by(client)
        num_arrived = self._population.num_examples_at(round, client)
        order = visit_order(examples, num_arrived, self._config.seed, round, client)
        return batches(store, order, num_steps, self._config.method.batch_size, self._packed_length)

    @contextmanager
    def _undressed_after(self) -> Iterator[None]:
        """However a visit ends, the model holds committed values when the next one starts."""
        try:
            yield
        finally:
            self._replica.undress()


def _cast(model: torch.nn.Module, dtype: torch.dtype) -> Mapping[str, Tensor]:
    """Cast the parameters (not the buffers: rotary frequencies stay in fp32). Returns by name the fp32 values that
    `dtype` cannot hold: none, where the weights were saved in it."""
    lost = {}
    for name, parameter in model.named_parameters():
        value = parameter.data
        parameter.data = value.to(dtype)
        if not torch.equal(parameter.data.to(value.dtype), value):
            lost[name] = value
    return lost


def _check_finite(value: float, loss: float) -> None:
    if not math.isfinite(value):
        raise RunFailed(f"training is not finite (loss {loss}); a smaller method.lr or method.max_grad_norm may help")


@contextmanager
def named(plan: RoundPlan, visit: Visit) -> Iterator[None]:
    """Whatever goes wrong inside says whose work it was."""
    where = f"client {visit.client}, round {plan.round}, block {plan.block}"
    try:
        yield
    except RunFailed as error:
        raise RunFailed(f"{where}: {error}") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:  # the traceback as text, since a cause is lost on the way to another process
        raise RunFailed(f"{where}: {type(error).__name__}: {error}\n\n{traceback.format_exc()}") from error
