"""Examples as tokens, and rows of them as what a model takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from parablock_ray.training.loss import IGNORED


@dataclass(frozen=True)
class TokenizedExamples:
    """Examples as three flat arrays, which pickle and travel through shared memory without a copy."""

    ids: np.ndarray  # int32 (all tokens,): prompt, answer and end mark of one example after another
    offsets: np.ndarray  # int64 (examples + 1,): where in `ids` each example begins
    answer_start: np.ndarray  # int32 (examples,): the answer's first token, counted from the example's first
    pad_id: int

    def __len__(self) -> int:
        return len(self.answer_start)

    @property
    def lengths(self) -> np.ndarray:
        """int64 (examples,): tokens."""
        return np.diff(self.offsets)

    def tokens(self, example: int) -> np.ndarray:
        """int32 (length,): prompt, answer and end mark."""
        return self.ids[self.offsets[example] : self.offsets[example + 1]]

    def batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask`, `labels`: int64 (len(indices), longest of them), padded on the right.

        Labels are -100 except on the answer and its end mark.
        """
        lengths = [len(self.tokens(i)) for i in indices]
        shape = (len(lengths), max(lengths))
        input_ids = np.full(shape, self.pad_id, np.int64)
        attention_mask = np.zeros(shape, np.int64)
        labels = np.full(shape, IGNORED, np.int64)
        for row, (i, length) in enumerate(zip(indices, lengths, strict=True)):
            start, tokens = self.answer_start[i], self.tokens(i)
            input_ids[row, :length] = tokens
            attention_mask[row, :length] = 1
            labels[row, start:length] = tokens[start:]
        return _tensors({"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels})

    def packed_batch(self, rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """`input_ids`, `position_ids`, `labels`: int64 (len(rows), longest of them), several examples in a row.

        Positions count from 0 in every example. There is no attention mask: where there is none, transformers keeps
        apart what a position that does not go up by one divides (`masking_utils.find_packed_sequence_indices`).
        """
        shape = (len(rows), max(sum(len(self.tokens(i)) for i in row) for row in rows))
        input_ids = np.full(shape, self.pad_id, np.int64)
        position_ids = np.zeros(shape, np.int64)  # of padding too: each pad token sees itself alone
        labels = np.full(shape, IGNORED, np.int64)
        for row, examples in enumerate(rows):
            begin = 0
            for i in examples:
                tokens = self.tokens(i)
                end, start = begin + len(tokens), max(self.answer_start[i], 1)  # nothing predicts a first token
                input_ids[row, begin:end] = tokens
                position_ids[row, begin:end] = np.arange(len(tokens))
                labels[row, begin + start : end] = tokens[start:]
                begin = end
        return _tensors({"input_ids": input_ids, "position_ids": position_ids, "labels": labels})


class Held(NamedTuple):
    """What a client holds: `indices` into `store`, int64, ascending."""

    store: TokenizedExamples
    indices: np.ndarray


def tokenize(prompts: list[str], answers: list[str], tokenizer: PreTrainedTokenizerBase) -> TokenizedExamples:
    """Every prompt with its answer and an end mark, uncut.

    Prompt and answer are tokenised apart, so that the answer's tokens are the same in training and when the
    model is asked. A tokenizer's start mark comes first, unless a chat template has put it there.
    """
    bos = tokenizer.bos_token_id
    starts_with_bos = bos is not None and bos in tokenizer("")["input_ids"]
    # One call for both: it takes as long as several examples in it.
    ids = tokenizer([*prompts, *answers], add_special_tokens=False, verbose=False)["input_ids"]
    prompt_ids, answer_ids = ids[: len(prompts)], ids[len(prompts) :]
    if starts_with_bos:
        prompt_ids = [ids if ids[:1] == [bos] else [bos, *ids] for ids in prompt_ids]
    sequences = [[*p, *a, tokenizer.eos_token_id] for p, a in zip(prompt_ids, answer_ids, strict=True)]
    return TokenizedExamples(
        ids=np.concatenate([np.array(sequence, np.int32) for sequence in sequences]),
        offsets=np.cumsum([0, *map(len, sequences)], dtype=np.int64),
        answer_start=np.array([len(ids) for ids in prompt_ids], np.int32),
        pad_id=tokenizer.pad_token_id,
    )


def collected(chosen: Sequence[tuple[TokenizedExamples, int]]) -> TokenizedExamples:
    """The examples at these places, uncut, of stores of one tokenizer. At least one."""
    parts = [store.tokens(i) for store, i in chosen]
    return TokenizedExamples(
        ids=np.concatenate(parts),
        offsets=np.cumsum([0, *map(len, parts)], dtype=np.int64),
        answer_start=np.array([store.answer_start[i] for store, i in chosen], np.int32),
        pad_id=chosen[0][0].pad_id,
    )


def select(whole: TokenizedExamples, chosen: Sequence[int] | np.ndarray, limit: int) -> TokenizedExamples:
    """The chosen examples, each cut to its first `limit` tokens."""
    parts = [whole.tokens(i)[:limit] for i in chosen]
    return TokenizedExamples(
        ids=np.concatenate(parts),
        offsets=np.cumsum([0, *map(len, parts)], dtype=np.int64),
        answer_start=whole.answer_start[np.asarray(chosen)],
        pad_id=whole.pad_id,
    )


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
