"""The one loss: cross-entropy on answer tokens, with logits computed only where an answer can be."""

import inspect
from collections.abc import Mapping

import torch
from torch import Tensor, nn

IGNORED = -100  # the label of a token that is not part of an answer


def answer_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean cross-entropy over the batch's answer tokens, a scalar. See `answer_nll`."""
    total, num_tokens = answer_nll(model, batch)
    return total / num_tokens


def answer_nll(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """Summed negative log-likelihood of the answer tokens, and how many there are. `batch`: see `answer_logits`."""
    logits, targets = answer_logits(model, batch)
    total = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return total, int((targets != IGNORED).sum())


def answer_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits (batch, kept, vocabulary), fp32 or wider, and the tokens that they predict (batch, kept), int64.

    `batch`: `input_ids`, `labels` and either `attention_mask` or, of packed rows, `position_ids`, each (batch, length),
    int64; labels are IGNORED on prompt and padding. With a vocabulary of 49,152 the head is a fifth of a small
    model's work, and prompts are most of the tokens: the head runs only from the first position that predicts an
    answer token in any row.
    """
    input_ids, labels = batch["input_ids"], batch["labels"]
    length = input_ids.shape[1]
    first_answer = int((labels != IGNORED).any(dim=0).int().argmax())
    num_kept = length - max(first_answer - 1, 0)
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"} | {"use_cache": False}
    inner = getattr(model, "module", model)  # DeepSpeed's engine hides the model's own signature
    if "logits_to_keep" in inspect.signature(inner.forward).parameters:
        logits = model(**inputs, logits_to_keep=num_kept).logits
    else:
        logits = model(**inputs).logits[:, length - num_kept :]
    wide = torch.promote_types(logits.dtype, torch.float32)
    return logits[:, :-1].to(wide), labels[:, length - num_kept + 1 :]
