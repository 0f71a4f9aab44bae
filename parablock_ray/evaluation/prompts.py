"""Prompts as token ids, the same as in training."""

import logging
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from parablock_ray.training.tokens import tokenize

_logger = logging.getLogger(__name__)


def prompt_ids(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    """int32 (tokens,) for each prompt, what `training.tokens.tokenize` puts before an answer."""
    store = tokenize(list(prompts), [""] * len(prompts), tokenizer)
    return [store.ids[start:][:length] for start, length in zip(store.offsets[:-1], store.answer_start, strict=True)]


def with_room(prompts: Sequence[np.ndarray], limit: int) -> list[np.ndarray]:
    """Prompts of more than `limit` tokens lose their beginning, as in the lm-evaluation-harness; a warning says so."""
    num_cut = sum(len(ids) > limit for ids in prompts)
    if num_cut:
        _logger.warning("%d of %d prompts lost their beginning: the model's context is full", num_cut, len(prompts))
    return [ids[-limit:] for ids in prompts]
