"""From examples to what the engine takes: templates, tokens, the held-out set, clients, batches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from parablock_ray.algorithms.rng import generator
from parablock_ray.config.data import DataConfig, DirichletSplit, ShardsSplit, SplitConfig
from parablock_ray.errors import UserError
from parablock_ray.training.loss import IGNORED
from parablock_ray.training.partition import Parts, length_labels, split
from parablock_ray.training.sources import Example, read_examples

Template = Literal["plain", "alpaca", "chat"]

# The wording of Stanford Alpaca, https://github.com/tatsu-lab/stanford_alpaca (Apache-2.0).
ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


@dataclass(frozen=True)
class TokenizedExamples:
    """Examples as three flat arrays, which pickle and travel through shared memory without a copy."""

    ids: np.ndarray  # int32 (all tokens,): prompt, answer and end mark of one example after another
    offsets: np.ndarray  # int64 (examples + 1,): where in `ids` each example begins
    answer_start: np.ndarray  # int32 (examples,): the answer's first token, counted from the example's first
    pad_id: int

    def __len__(self) -> int:
        return len(self.answer_start)

    def batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask`, `labels`: int64 (len(indices), longest of them), padded on the right.

        Labels are -100 except on the answer and its end mark.
        """
        lengths = [int(self.offsets[i + 1] - self.offsets[i]) for i in indices]
        shape = (len(lengths), max(lengths))
        input_ids = np.full(shape, self.pad_id, np.int64)
        attention_mask = np.zeros(shape, np.int64)
        labels = np.full(shape, IGNORED, np.int64)
        for row, (i, length) in enumerate(zip(indices, lengths, strict=True)):
            start, tokens = self.answer_start[i], self.ids[self.offsets[i] : self.offsets[i + 1]]
            input_ids[row, :length] = tokens
            attention_mask[row, :length] = 1
            labels[row, start:length] = tokens[start:]
        arrays = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


@dataclass(frozen=True)
class DataReport:
    """What became of the examples of a source."""

    num_read: int
    num_dropped: int  # of those read: nothing of their answer fits the context
    num_truncated: int  # of those used: they lost the end of their answer
    num_duplicates: int  # training examples removed because their prompt is held out
    num_train: int
    num_eval: int
    num_tasks: int
    mean_tokens: float  # of training examples, prompt and answer
    max_tokens: int
    labels: Mapping[str, tuple[int, ...]]  # label → how many training examples of it each client holds

    def line(self) -> str:
        """The report for people, with what was left out where anything was."""
        text = (
            f"{self.num_train} training and {self.num_eval} held-out examples of {self.num_tasks} tasks, "
            f"{self.mean_tokens:.0f} tokens on average, {self.max_tokens} at most"
        )
        losses = {
            "dropped because no part of the answer fits": self.num_dropped,
            "cut at the end of the answer": self.num_truncated,
            "removed because their prompt is held out": self.num_duplicates,
        }
        return "; ".join([text, *(f"{num} {what}" for what, num in losses.items() if num)])


@dataclass(frozen=True)
class FederatedData:
    """`clients[i]` are the indices into `train` (int64, ascending) that client i holds."""

    train: TokenizedExamples
    eval: TokenizedExamples
    clients: tuple[np.ndarray, ...]
    report: DataReport


def build_data(
    data: DataConfig, num_clients: int, seed: int, tokenizer: PreTrainedTokenizerBase, max_context: int
) -> FederatedData:
    """Reads, tokenises, holds out and splits the data; `max_context` is the longest sequence in tokens.

    Held-out examples are set apart before the split, in proportion to the tasks, and no training example has
    the prompt of one. The same for the same arguments. Raises UserError, see sources.py and partition.py.
    """
    examples = read_examples(data, seed)
    if not examples:
        raise UserError(f"data.source: {data.source} holds no examples")
    prompts = [prompt_text(example, data.template, tokenizer) for example in examples]
    whole = tokenize(prompts, [example.answer for example in examples], tokenizer)
    limit = min(data.max_length, max_context)
    usable = np.flatnonzero(whole.answer_start < limit)
    if len(usable) <= data.num_eval:
        raise _too_few(len(examples), len(usable), limit, data)

    groups = [_group(example) for example in examples]
    held_out = _spread(usable, groups, data.num_eval, generator(seed, "held out"))
    train, num_duplicates = _without_prompts_of(held_out, usable, prompts)
    if data.num_train is not None and len(train) > data.num_train:
        train = _spread(train, groups, data.num_train, generator(seed, "cut"))
    lengths = np.diff(whole.offsets)
    labels = _labels(data.split, [examples[i].task for i in train], np.minimum(lengths[train], limit))
    clients = split(data.split, [groups[i] for i in train], labels, num_clients, seed)
    return FederatedData(
        clients=clients,
        train=_select(whole, train, limit),
        eval=_select(whole, held_out, limit),
        report=DataReport(
            num_read=len(examples),
            num_dropped=len(examples) - len(usable),
            num_truncated=int((lengths[train] > limit).sum() + (lengths[held_out] > limit).sum()),
            num_duplicates=num_duplicates,
            num_train=len(train),
            num_eval=len(held_out),
            num_tasks=len({examples[i].task for i in train}),
            mean_tokens=float(np.minimum(lengths[train], limit).mean()),
            max_tokens=int(np.minimum(lengths[train], limit).max()),
            labels=_counts(clients, labels),
        ),
    )


def batches(
    store: TokenizedExamples,
    examples: np.ndarray,
    seed: int,
    round: int,
    client: int,
    num_steps: int,
    batch_size: int,
) -> Iterator[dict[str, torch.Tensor]]:
    """The batches of one client in one round, as `TokenizedExamples.batch` makes them.

    `examples` are the client's indices into `store`, taken in a fresh order every round, and once more from
    the start of that order where they are fewer than num_steps · batch_size.
    """
    order = torch.randperm(len(examples), generator=generator(seed, "batches", client, round)).numpy()
    chosen = np.resize(examples[order], (num_steps, batch_size))
    for indices in chosen:
        yield store.batch(indices)


def move(batch: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """The batch on `device`."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def prompt_text(example: Example, template: Template, tokenizer: PreTrainedTokenizerBase) -> str:
    """What stands before the answer. `plain` and `alpaca` put the turns of a conversation line by line."""
    contents = [message.content for message in example.messages]
    if template == "plain":
        return "\n".join([*contents, example.input] if example.input else contents) + "\n"
    if template == "alpaca":
        form = ALPACA_WITH_INPUT if example.input else ALPACA
        return form.format(instruction="\n".join(contents), input=example.input)
    if tokenizer.chat_template is None:
        raise UserError("data.template: chat needs a tokenizer with a chat template; use plain or alpaca")
    if example.input:
        contents[-1] += f"\n\n{example.input}"
    turns = [
        {"role": message.role, "content": content} for message, content in zip(example.messages, contents, strict=True)
    ]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        roles = ", ".join(message.role for message in example.messages)
        raise UserError(
            f"data.template: the model's chat template refuses turns by {roles}: {error}; use plain or alpaca"
        ) from error


def tokenize(prompts: list[str], answers: list[str], tokenizer: PreTrainedTokenizerBase) -> TokenizedExamples:
    """Every prompt with its answer and an end mark, uncut.

    Prompt and answer are tokenised apart, so that the answer's tokens are the same in training and when the
    model is asked. A tokenizer's start mark comes first, unless a chat template has put it there.
    """
    bos = tokenizer.bos_token_id
    starts_with_bos = bos is not None and bos in tokenizer("")["input_ids"]
    prompt_ids = tokenizer(prompts, add_special_tokens=False, verbose=False)["input_ids"]
    answer_ids = tokenizer(answers, add_special_tokens=False, verbose=False)["input_ids"]
    if starts_with_bos:
        prompt_ids = [ids if ids[:1] == [bos] else [bos, *ids] for ids in prompt_ids]
    sequences = [[*p, *a, tokenizer.eos_token_id] for p, a in zip(prompt_ids, answer_ids, strict=True)]
    return TokenizedExamples(
        ids=np.concatenate([np.array(sequence, np.int32) for sequence in sequences]),
        offsets=np.cumsum([0, *map(len, sequences)], dtype=np.int64),
        answer_start=np.array([len(ids) for ids in prompt_ids], np.int32),
        pad_id=tokenizer.pad_token_id,
    )


def _without_prompts_of(held_out: np.ndarray, usable: np.ndarray, prompts: list[str]) -> tuple[np.ndarray, int]:
    """What is left to train on once the held-out prompts are gone, and how many more than `held_out` that cost."""
    held_prompts = {prompts[i] for i in held_out}
    others = np.setdiff1d(usable, held_out)
    train = np.array([i for i in others if prompts[i] not in held_prompts], np.int64)
    if len(train) == 0:
        raise UserError(
            f"data.num_eval: all {len(others)} examples left to train on repeat a held-out prompt; "
            "lower it, or use data with more different prompts"
        )
    return train, len(others) - len(train)


def _select(whole: TokenizedExamples, chosen: np.ndarray, limit: int) -> TokenizedExamples:
    """The chosen examples, each cut to its first `limit` tokens."""
    parts = [whole.ids[whole.offsets[i] :][: min(limit, whole.offsets[i + 1] - whole.offsets[i])] for i in chosen]
    return TokenizedExamples(
        ids=np.concatenate(parts),
        offsets=np.cumsum([0, *map(len, parts)], dtype=np.int64),
        answer_start=whole.answer_start[chosen],
        pad_id=whole.pad_id,
    )


def _spread(members: np.ndarray, groups: list[str], num: int, shuffle: torch.Generator) -> np.ndarray:
    """`num` of the members, ascending: at random within a group, from every group in proportion to its size."""
    order = members[torch.randperm(len(members), generator=shuffle).numpy()].tolist()
    order.sort(key=lambda i: groups[i])
    return np.sort([order[(2 * k + 1) * len(order) // (2 * num)] for k in range(num)])


def _labels(config: SplitConfig, tasks: list[str], lengths: np.ndarray) -> list[str]:
    """What a skewed split goes by; the task where a split goes by nothing."""
    if isinstance(config, DirichletSplit | ShardsSplit) and config.label == "length":
        return length_labels(lengths, config.num_buckets)
    return tasks


def _counts(clients: Parts, labels: list[str]) -> dict[str, tuple[int, ...]]:
    numbers = {label: number for number, label in enumerate(sorted(set(labels)))}
    of_example = np.array([numbers[label] for label in labels])
    by_client = np.array([np.bincount(of_example[indices], minlength=len(numbers)) for indices in clients])
    return {label: tuple(by_client[:, number].tolist()) for label, number in numbers.items()}


def _group(example: Example) -> str:
    """What `data.split: natural` keeps together."""
    return f"task {example.task!r}" if example.client is None else f"client {example.client!r}"


def _too_few(num_read: int, num_usable: int, limit: int, data: DataConfig) -> UserError:
    if num_usable == 0 < num_read:
        return UserError(
            f"data.max_length: the answers of all {num_read} examples are cut away at {limit} tokens (the smaller "
            "of data.max_length and the model's context); raise it, or use shorter prompts or a longer context"
        )
    return UserError(
        f"data.num_eval: {data.num_eval} examples cannot be held out of {num_usable} "
        f"({num_read} read, {num_read - num_usable} too long) with any left to train on; lower it"
    )
