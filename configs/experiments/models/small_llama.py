"""python configs/experiments/models/small_llama.py FOLDER

Writes a Llama of 5.6 M parameters with random weights as an HF folder: 8 layers of width 256, and the byte tokenizer of
the built-in model `tiny`. The same weights every time.
"""

import sys
from pathlib import Path

import torch

from parablock_ray.training.model import TINY, byte_llama, load_tokenizer, random_llama, save_model, weights_sha256

SEED = 0


def main(folder: Path) -> None:
    """Writes the model to `folder` and prints the sha256 of its weights."""
    model = random_llama(byte_llama(hidden_size=256, intermediate_size=640), torch.float32, SEED)
    save_model(model, load_tokenizer(TINY), folder)
    print(weights_sha256(model.named_parameters()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
