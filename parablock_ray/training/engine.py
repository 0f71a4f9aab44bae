"""Engines take local steps on one block of a model: DeepSpeed, and plain torch as the reference behind the same door.

Both are long-lived: switching blocks is setting `requires_grad` and giving the optimizer another parameter group
(2 ms for 135 M parameters; memory stays flat). Both end in the same bits.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from parablock_ray.config import Config
from parablock_ray.config.schema import WorkersConfig
from parablock_ray.training.loss import answer_loss
from parablock_ray.training.optimizer import BlockOptimizer, LocalSettings

Batch = Mapping[str, Tensor]


def device_of(workers: WorkersConfig) -> torch.device:
    """Where a process that is no Ray actor computes: on a GPU where there is one, unless workers are to have none."""
    return torch.device("cuda" if torch.cuda.is_available() and workers.gpus_per_worker != 0 else "cpu")


class Engine(Protocol):
    """begin a visit, step, step, …, end it."""

    def begin(self, parameters: Sequence[Parameter], lr: float) -> None:
        """Make exactly these parameters trainable, from their current values, with a fresh optimizer state."""
        ...

    def step(self, batch: Batch) -> float:
        """One optimizer step; returns the batch's loss (mean over answer tokens) before it."""
        ...

    def end(self) -> Sequence[Tensor]:
        """The trained block, a tensor for each parameter: fp32 masters where the model is narrower, else the parameters
        themselves, to be read before anybody writes into them. Frees gradients and the optimizer's state."""
        ...


class TorchEngine:
    """A plain torch loop."""

    def __init__(self, model: nn.Module, settings: LocalSettings) -> None:
        self._model = model
        self._optimizer = BlockOptimizer(list(model.parameters()), settings)

    def begin(self, parameters: Sequence[Parameter], lr: float) -> None:
        only_train(self._model, parameters)
        self._optimizer.assign(parameters, lr)

    def step(self, batch: Batch) -> float:
        self._optimizer.zero_grad(set_to_none=True)
        loss = answer_loss(self._model, batch)
        loss.backward()
        self._optimizer.step()
        return float(loss.detach())

    def end(self) -> Sequence[Tensor]:
        return self._optimizer.release()


class DeepSpeedEngine:
    """One DeepSpeed engine, ZeRO stage 0, whose optimizer is ours.

    fp16/bf16 stay off in DeepSpeed's config: with them stage 0 would wrap our optimizer in one that clones the
    parameters at the start, and a swapped block would silently not train. We cast the model ourselves.
    """

    def __init__(self, model: nn.Module, settings: LocalSettings, extra_config: Mapping[str, Any]) -> None:
        deepspeed = start_deepspeed(next(model.parameters()).device)
        self._model = model
        self._optimizer = BlockOptimizer(list(model.parameters()), settings)
        config = {
            "train_micro_batch_size_per_gpu": 1,  # only used for its throughput timers
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,  # its default is 1.0; clipping is the optimizer's, equal in both engines
            "zero_optimization": {"stage": 0},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
            **extra_config,
        }
        self._engine, optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=self._optimizer, config=config, dist_init_required=False
        )
        assert optimizer is self._optimizer, "DeepSpeed wrapped the optimizer: a swapped block would not train"
        # One process per client: there is no one to reduce with, and the flatten-and-copy is half a step's time.
        self._engine.enable_backward_allreduce = False

    def begin(self, parameters: Sequence[Parameter], lr: float) -> None:
        only_train(self._model, parameters)
        self._optimizer.assign(parameters, lr)

    def step(self, batch: Batch) -> float:
        loss = answer_loss(self._engine, batch)
        self._engine.backward(loss)
        self._engine.step()
        self._engine.zero_grad()
        return float(loss.detach())

    def end(self) -> Sequence[Tensor]:
        return self._optimizer.release()


EngineMaker = Callable[[nn.Module, Config], Engine]


def make_engine(model: nn.Module, config: Config) -> Engine:
    """The engine named by `engine.name`."""
    method = config.method
    settings = LocalSettings(method.local_optimizer, method.weight_decay, method.max_grad_norm, method.prox_mu)
    if config.engine.name == "torch":
        return TorchEngine(model, settings)
    return DeepSpeedEngine(model, settings, config.engine.deepspeed)


def only_train(model: nn.Module, parameters: Sequence[Parameter]) -> None:
    """Freeze all but these: below the lowest of them the backward pass ends, and no activation is kept."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    for parameter in parameters:
        parameter.requires_grad_(True)


def start_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed and join a process group of one; return the module. Safe to call again.

    The one place that knows how DeepSpeed starts without its launcher: rank and port come from the environment
    (port 0 is any free one, so actors on one host never clash; Ray masks devices, so the local rank is 0 on GPUs
    too), and its shared-memory op is ruled out, which it would otherwise compile for a minute with g++.
    """
    on_cpu = device.type == "cpu"  # of the model: a machine with a GPU may still train on its CPU
    environment = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    os.environ.update(environment)
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "ERROR")
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not torch.distributed.is_initialized():
        deepspeed.init_distributed("gloo" if on_cpu else "nccl", verbose=False, auto_mpi_discovery=False)
    return deepspeed
