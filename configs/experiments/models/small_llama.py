"""python configs/experiments/models/small_llama.py FOLDER

Writes a Llama of 5.6 M parameters with random weights as an HF folder: 8 layers of width 256, and the byte tokenizer of
the built-in model `tiny`. The same weights every time.
"""

import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from parablock_ray.algorithms.rng import generator
from parablock_ray.training.model import TINY, load_tokenizer, save_model, weights_sha256

SEED = 0


def main(folder: Path) -> None:
    """Writes the model to `folder` and prints the sha256 of its weights."""
    tokenizer = load_tokenizer(TINY)
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    weights = generator(SEED, "weights")
    for parameter in model.parameters():
        if parameter.ndim > 1:  # norms keep their ones
            torch.nn.init.normal_(parameter, std=config.initializer_range, generator=weights)
    save_model(model, tokenizer, folder)
    print(weights_sha256(model.named_parameters()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
