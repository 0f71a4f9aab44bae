"""What both sides of a comparison do alike: the model, the batches, and the one training function, which times itself.

Needs torch and transformers only, so that it runs in a peer's environment too. A folder holds the job:

    job.json     how many clients, rounds, …
    model/       an HF folder
    batches.pt   for each client its one batch, and how many examples it holds
    steps/       written by the workers: a file for each process, a line for each training (start, end, loss)
    rounds.json  written at the end: when the rounds ended (time.time())
"""

import json
import os
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM


def job(folder: Path) -> dict[str, Any]:
    """What is to be done."""
    asked: dict[str, Any] = json.loads((folder / "job.json").read_text())
    return asked


@lru_cache(1)
def model_of(folder: Path) -> nn.Module:
    """Loaded once a process, and kept."""
    torch.set_num_threads(1)
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    return model.train()


@lru_cache(1)
def batches_of(folder: Path) -> list[tuple[dict[str, Tensor], int]]:
    """By client, with its number of examples."""
    batches: list[tuple[dict[str, Tensor], int]] = torch.load(folder / "batches.pt")
    return batches


def new_optimizer(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Fresh at every visit."""
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0, fused=True)


def train(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Mapping[str, Tensor]) -> float:
    """One local step; the loss before it. All of its time is noted, and no other."""
    start_s = time.time()
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    value = loss.item()
    with (folder / "steps" / f"{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps([start_s, time.time(), value]) + "\n")
    return value
