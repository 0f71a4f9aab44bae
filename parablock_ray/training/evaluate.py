"""Judging a model on held-out examples."""

import torch
from torch import nn

from parablock_ray.training.batches import move
from parablock_ray.training.loss import answer_nll
from parablock_ray.training.tokens import TokenizedExamples


def held_out_loss(model: nn.Module, examples: TokenizedExamples, batch_size: int) -> float:
    """Mean negative log-likelihood per answer token over all examples (in nats)."""
    device = next(model.parameters()).device
    total, num_tokens = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(examples), batch_size):
            batch = examples.batch(range(start, min(start + batch_size, len(examples))))
            nll, num = answer_nll(model, move(batch, device))
            total += float(nll)
            num_tokens += num
    return total / num_tokens
