"""Adapters beside the linear modules of a model, by PEFT: one set for every rank that clients have."""

import warnings

from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import Parameter
from transformers import PreTrainedModel

from parablock_ray.algorithms.adapters import all_ranks, find_targets
from parablock_ray.config.lora import LoraConfig
from parablock_ray.errors import UserError


def add_adapters(model: PreTrainedModel, lora: LoraConfig) -> dict[str, Parameter]:
    """Put adapters of every rank in, in fp32; by the names of `algorithms/adapters.py`. Raises UserError.

    With scaling alpha / rank each, and none active yet: see `activate_rank`.
    """
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
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.set_adapter(_adapter(rank))


def _adapter(rank: int) -> str:
    return f"rank{rank}"
