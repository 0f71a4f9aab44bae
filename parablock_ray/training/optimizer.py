"""The local optimizer: on the active block only, with a state fresh at every visit (BAdam, arXiv 2404.02827)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter


@dataclass(frozen=True)
class LocalSettings:
    """How a client steps: AdamW or SGD, FedProx's μ (0: off), gradient clipping by L2 norm (None: off)."""

    optimizer: str
    weight_decay: float
    max_grad_norm: float | None
    prox_mu: float


class BlockOptimizer(torch.optim.Optimizer):
    """AdamW or SGD on one block, on fp32 masters where the model is narrower. An Optimizer since DeepSpeed wants one.

    `assign` replaces the block: one parameter group, no state. With an fp32 (or wider) model the masters are the
    parameters themselves, and the bits are those of the plain torch optimizer.
    """

    def __init__(self, parameters: Sequence[Parameter], settings: LocalSettings) -> None:
        super().__init__(parameters, {"lr": 0.0})
        self._settings = settings
        self.masters: list[Tensor] = []
        self._anchors: list[Tensor] = []
        self._inner: torch.optim.Optimizer | None = None

    def assign(self, parameters: Sequence[Parameter], lr: float) -> None:
        """Work on these parameters from their current values, with a fresh state."""
        self.param_groups.clear()
        self.state.clear()
        self.add_param_group({"params": list(parameters), "lr": lr})
        self.masters = [_master(parameter) for parameter in parameters]
        self._anchors = [each.detach().clone() for each in self.masters] if self._settings.prox_mu > 0 else []
        self._inner = _inner_optimizer(self._settings, self.masters, lr)

    def release(self) -> list[Tensor]:
        """Hand out the masters; free gradients, anchors and moments."""
        masters, self.masters, self._anchors, self._inner = self.masters, [], [], None
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None
        return [master.detach() for master in masters]

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of every master that has a gradient; narrower parameters take the rounded result."""
        assert closure is None
        assert self._inner is not None, "assign() comes first"
        parameters = self.param_groups[0]["params"]
        for parameter, master in zip(parameters, self.masters, strict=True):
            if master is not parameter:  # one at a time, so that there are no two whole gradients at once
                master.grad = None if parameter.grad is None else parameter.grad.to(master.dtype)
                parameter.grad = None
        if self._anchors:
            self._pull_to_anchors()
        if self._settings.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.masters, self._settings.max_grad_norm)
        self._inner.step()
        with torch.no_grad():
            for parameter, master in zip(parameters, self.masters, strict=True):
                if master is not parameter:
                    parameter.copy_(master)
                    master.grad = None

    def _pull_to_anchors(self) -> None:
        """FedProx: the gradient of μ/2 · ‖w − z_i‖²."""
        for master, anchor in zip(self.masters, self._anchors, strict=True):
            if master.grad is not None:
                master.grad.add_((master.detach() - anchor) * self._settings.prox_mu)


def _master(parameter: Parameter) -> Tensor:
    if torch.promote_types(parameter.dtype, torch.float32) == parameter.dtype:
        return parameter
    return parameter.detach().to(torch.float32)


def _inner_optimizer(settings: LocalSettings, masters: list[Tensor], lr: float) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(masters, lr=lr, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(masters, lr=lr, weight_decay=settings.weight_decay, fused=True)
