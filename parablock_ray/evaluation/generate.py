"""Answers of a model: greedy, in batches, with a key-value cache."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from parablock_ray.errors import UserError
from parablock_ray.evaluation.prompts import prompt_ids, with_room
from parablock_ray.training.model import max_context


@dataclass(frozen=True)
class Generated:
    text: str  # without marks such as the end of a turn
    num_tokens: int  # an end mark included
    ended: bool  # by the model, not by `max_new_tokens`


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
) -> list[Generated]:
    """The most likely next token, again and again until an end mark or `max_new_tokens`, for each prompt.

    A prompt's answer does not depend on what it shares a batch with, but for the rounding of a tie. Prompts that leave
    no room in the model's context lose their beginning. Raises UserError where no prompt has room.
    """
    ids = with_room(prompt_ids(prompts, tokenizer), room_for_prompts(max_new_tokens, max_context(model.config)))
    ends = _end_marks(model, tokenizer)
    settings = _greedy(max_new_tokens, sorted(ends), tokenizer.pad_token_id)
    answers: dict[int, Generated] = {}
    by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for start in range(0, len(by_length), batch_size):
        chosen = by_length[start : start + batch_size]
        for i, tokens in zip(chosen, _continue(model, [ids[i] for i in chosen], settings), strict=True):
            answers[i] = _answer(tokens, ends, tokenizer)
    return [answers[i] for i in range(len(ids))]


def room_for_prompts(max_new_tokens: int, context: int) -> int:
    """Tokens of a prompt that leave room for the answer in the model's context. Raises UserError where none do."""
    if max_new_tokens >= context:
        raise UserError(
            f"evaluation.max_new_tokens: must be less than the model's context of {context} tokens "
            f"(got {max_new_tokens})"
        )
    return context - max_new_tokens


def _continue(model: PreTrainedModel, prompts: Sequence[np.ndarray], settings: GenerationConfig) -> list[list[int]]:
    """The tokens after each prompt, with whatever comes after an end mark."""
    length = max(map(len, prompts))
    input_ids = torch.full((len(prompts), length), settings.pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, tokens in enumerate(prompts):  # on the left, so that every row goes on from its last column
        input_ids[row, length - len(tokens) :] = torch.from_numpy(tokens)
        attention_mask[row, length - len(tokens) :] = 1
    with torch.inference_mode():
        whole = model.generate(
            input_ids.to(model.device), attention_mask=attention_mask.to(model.device), generation_config=settings
        )
    new: list[list[int]] = whole[:, length:].tolist()
    return new


def _greedy(max_new_tokens: int, ends: list[int], pad: int) -> GenerationConfig:
    """What a model's own generation_config may say otherwise is set here: that fills in only what is missing."""
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        eos_token_id=ends,
        pad_token_id=pad,
    )


def _end_marks(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokenizer's, which training puts after answers, and those of the model's own generation_config."""
    own = model.generation_config.eos_token_id if model.generation_config else None
    return frozenset([tokenizer.eos_token_id, *(own if isinstance(own, list) else [own] if own is not None else [])])


def _answer(tokens: list[int], ends: frozenset[int], tokenizer: PreTrainedTokenizerBase) -> Generated:
    end = next((place for place, token in enumerate(tokens) if token in ends), None)
    kept = tokens if end is None else tokens[:end]
    text = str(tokenizer.decode(kept, skip_special_tokens=True))
    return Generated(text, num_tokens=len(kept) + (end is not None), ended=end is not None)
