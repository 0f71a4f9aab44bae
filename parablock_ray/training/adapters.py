"""Adapters beside the linear modules of a model, by PEFT: one set for every rank that clients have, and those that a
run ends with as PEFT's folder. PEFT takes a second to import, so processes without adapters do without."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import Parameter

from parablock_ray.algorithms.adapters import all_ranks, find_targets
from parablock_ray.algorithms.lora import Adapter, fit
from parablock_ray.checkpoint import save_tensors
from parablock_ray.config.lora import LoraConfig
from parablock_ray.errors import UserError

if TYPE_CHECKING:  # see training/model.py
    from transformers import PreTrainedModel

ADAPTER_FOLDER = "adapter"  # in the run folder
_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"  # PEFT's names


def add_adapters(model: PreTrainedModel, lora: LoraConfig) -> dict[str, Parameter]:
    """Put adapters of every rank in, in fp32; by the names of `algorithms/adapters.py`. Raises UserError.

    With scaling alpha / rank each, and none active yet: see `activate_rank`.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    targets = find_targets(dict(model.named_parameters()), lora.target_modules)
    for target in targets:
        module = model.get_submodule(target.name)
        if not isinstance(module, nn.Linear):
            raise UserError(
                f"method.lora.target_modules: {target.name} is a {type(module).__name__}; allowed: linear modules"
            )
    for rank in all_ranks(lora):
        config = PeftConfig(
            r=rank,
            lora_alpha=lora.alpha,
            target_modules=[target.name for target in targets],
            lora_dropout=0.0,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            inject_adapter_in_model(config, model, adapter_name=_adapter(rank))
    parameters = {}
    for target in targets:
        module = model.get_submodule(target.name)
        for rank in all_ranks(lora):
            for which, factors in (("A", module.lora_A), ("B", module.lora_B)):
                parameter = factors[_adapter(rank)].weight
                parameter.data = parameter.data.float()
                parameters[target.factor(which, rank)] = parameter
    return parameters


def activate_rank(model: nn.Module, rank: int) -> None:
    """From now on the adapters of this rank, and no others, take part in the forward pass."""
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.set_adapter(_adapter(rank))


def save_adapters(adapters: Mapping[str, Adapter], base: str, merged_sha256: str, folder: Path) -> None:
    """Write PEFT's folder, for the model named `base`; with it the weights have the digest `merged_sha256`.

    All modules get the largest rank and one scaling (`fit`), which every reader of such folders knows, where ranks by
    module are PEFT's own.
    """
    from peft import LoraConfig as PeftConfig

    rank = max(adapter.rank for adapter in adapters.values())
    scaling = next(iter(adapters.values())).scaling
    tensors: dict[str, Tensor] = {}
    for name, adapter in adapters.items():
        fitted = fit(adapter, rank, scaling)
        tensors[f"base_model.model.{name}.lora_A.weight"] = fitted.A.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = fitted.B.contiguous()
    config = PeftConfig(
        r=rank,
        lora_alpha=scaling * rank,
        target_modules=list(adapters),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
    )
    config.save_pretrained(folder)
    save_tensors(tensors, folder / _WEIGHTS, {"format": "pt", "merged_sha256": merged_sha256})


def copy_adapters(source: Path, to: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Copy PEFT's folder, its factors in `dtype`; returns these by name. Raises OSError."""
    with safe_open(source / _WEIGHTS, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).to(dtype) for name in file.keys()}  # noqa: SIM118, not a dict
    shutil.copy(source / _CONFIG, to / _CONFIG)
    save_tensors(tensors, to / _WEIGHTS, metadata)
    return tensors


def merged_sha256(folder: Path) -> str:
    """The digest of the base model's weights with these adapters, as `save_adapters` was told it. Raises UserError."""
    try:
        with safe_open(folder / _WEIGHTS, "pt") as file:
            return str(file.metadata()["merged_sha256"])
    except (SafetensorError, OSError, KeyError, TypeError) as error:  # without metadata it is None
        raise UserError(f"{folder / _WEIGHTS}: not the adapters of a run: {error!r}; run it again") from None


def _adapter(rank: int) -> str:
    return f"rank{rank}"
