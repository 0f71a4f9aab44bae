"""How likely given answers are to a model."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from parablock_ray.evaluation.results import Tally
from parablock_ray.training.batches import move
from parablock_ray.training.loss import IGNORED, answer_logits
from parablock_ray.training.tokens import TokenizedExamples


def answer_nlls(
    model: PreTrainedModel, examples: TokenizedExamples, indices: Sequence[int] | np.ndarray, batch_size: int
) -> list[Tally]:
    """For each of the chosen examples, in their order: the negative log-likelihood of its answer's tokens, in nats,
    and their number."""
    lengths = examples.lengths
    found: dict[int, Tally] = {}
    by_length = sorted(range(len(indices)), key=lambda place: int(lengths[indices[place]]))
    for start in range(0, len(by_length), batch_size):
        places = by_length[start : start + batch_size]
        batch = move(examples.batch([int(indices[place]) for place in places]), model.device)
        with torch.inference_mode():
            logits, targets = answer_logits(model, batch)
            nlls = nn.functional.cross_entropy(
                logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
            ).sum(dim=1, dtype=torch.float64)
        counts = (targets != IGNORED).sum(dim=1)
        found |= {
            place: Tally(nll, count) for place, nll, count in zip(places, nlls.tolist(), counts.tolist(), strict=True)
        }
    return [found[place] for place in range(len(indices))]
