"""From a source to what a run needs: the held-out set, who holds what, and a report of what became of the examples."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from parablock_ray.algorithms.rng import generator
from parablock_ray.config.data import DataConfig, DirichletSplit, NaturalSplit, ShardsSplit, SplitConfig, check_source
from parablock_ray.errors import UserError
from parablock_ray.training.generated import GeneratedClients, ProblemSource
from parablock_ray.training.partition import Parts, length_labels, split
from parablock_ray.training.rows import Example
from parablock_ray.training.sources import check_tasks, read_examples
from parablock_ray.training.templates import prompt_text
from parablock_ray.training.tokens import Held, TokenizedExamples, select, tokenize


class Clients(Protocol):
    """Who holds what."""

    @property
    def num_examples(self) -> tuple[int, ...]:
        """n_i by client, once all of its examples have arrived."""
        ...

    def held_by(self, client: int) -> Held:
        """What the client holds: the same whoever asks, and whenever."""
        ...


@dataclass(frozen=True)
class StoredClients:
    """Clients whose examples are all there: `indices[i]` into `store` (int64, ascending) are client i's."""

    store: TokenizedExamples
    indices: Parts

    @property
    def num_examples(self) -> tuple[int, ...]:
        return tuple(len(held) for held in self.indices)

    def held_by(self, client: int) -> Held:
        return Held(self.store, self.indices[client])


@dataclass(frozen=True)
class DataReport:
    """What became of the examples of a source.

    Of clients whose examples are made when they are visited, tokens and `num_truncated` are those of the first
    `num_sampled` clients; it is None where all examples are there.
    """

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
    num_sampled: int | None

    def line(self) -> str:
        """The report for people, with what was left out where anything was."""
        text = (
            f"{self.num_train} training and {self.num_eval} held-out examples of {self.num_tasks} tasks, "
            f"{self.mean_tokens:.0f} tokens on average, {self.max_tokens} at most"
        )
        if self.num_sampled is not None:
            text += f" (of the first {self.num_sampled} client(s); a client's examples are made when it is visited)"
        losses = {
            "dropped because no part of the answer fits": self.num_dropped,
            "cut at the end of the answer": self.num_truncated,
            "removed because their prompt is held out": self.num_duplicates,
        }
        return "; ".join([text, *(f"{num} {what}" for what, num in losses.items() if num)])


@dataclass(frozen=True)
class FederatedData:
    """`max_length`: of the longest example there can be, in tokens."""

    clients: Clients
    eval: TokenizedExamples
    max_length: int
    report: DataReport


def build_data(
    data: DataConfig, num_clients: int, seed: int, tokenizer: PreTrainedTokenizerBase, max_context: int
) -> FederatedData:
    """The clients' data and the held-out set; `max_context` is the longest sequence in tokens.

    No training example has the prompt of a held-out one. The same for the same arguments. Raises UserError, see
    sources.py, partition.py and generated.py.
    """
    check_source(data)
    limit = min(data.max_length, max_context)
    if data.per_client is not None:
        return _generated_data(ProblemSource(data, seed, tokenizer, limit), num_clients)
    return _stored_data(data, num_clients, seed, tokenizer, limit)


def _stored_data(
    data: DataConfig, num_clients: int, seed: int, tokenizer: PreTrainedTokenizerBase, limit: int
) -> FederatedData:
    """Reads, tokenises, holds out and splits. Held-out examples are set apart in proportion to the tasks."""
    examples = read_examples(data, seed)
    if not examples:
        raise UserError(f"data.source: {data.source} holds no examples")
    prompts = [prompt_text(example, data.template, tokenizer) for example in examples]
    whole = tokenize(prompts, [example.answer for example in examples], tokenizer)
    usable = np.flatnonzero(whole.answer_start < limit)
    if len(usable) <= data.num_eval:
        raise _too_few(len(examples), len(usable), limit, data)

    groups = [_group(example) for example in examples]
    held_out = _spread(usable, groups, data.num_eval, generator(seed, "held out"))
    train, num_duplicates = _without_prompts_of(held_out, usable, prompts)
    if data.num_train is not None and len(train) > data.num_train:
        train = _spread(train, groups, data.num_train, generator(seed, "cut"))
    lengths = np.minimum(whole.lengths, limit)
    labels = _labels(data.split, [examples[i].task for i in train], lengths[train])
    clients = split(data.split, [groups[i] for i in train], labels, num_clients, seed)
    return FederatedData(
        clients=StoredClients(select(whole, train, limit), clients),
        eval=select(whole, held_out, limit),
        max_length=limit,
        report=DataReport(
            num_read=len(examples),
            num_dropped=len(examples) - len(usable),
            num_truncated=int((whole.lengths > limit)[np.concatenate([train, held_out])].sum()),
            num_duplicates=num_duplicates,
            num_train=len(train),
            num_eval=len(held_out),
            num_tasks=len({examples[i].task for i in train}),
            mean_tokens=float(lengths[train].mean()),
            max_tokens=int(lengths[train].max()),
            labels=_counts(clients, labels),
            num_sampled=None,
        ),
    )


def _generated_data(source: ProblemSource, num_clients: int) -> FederatedData:
    """Makes the held-out set, and the first clients' examples to see that the tasks can give them."""
    data, tasks = source.data, source.data.tasks
    check_tasks(tasks, "data.tasks")
    if isinstance(data.split, NaturalSplit) and len(tasks) > num_clients:
        raise UserError(
            f"data.split: natural gives every client one task, but there are {len(tasks)} for clients.num = "
            f"{num_clients}; raise it to {len(tasks)}, or use iid"
        )
    whole, prompts = source.drawn(
        [tasks[i % len(tasks)] for i in range(data.num_eval)], set(), "reasoning_gym held out"
    )
    clients = GeneratedClients(source, num_clients, frozenset(prompts))
    num_sampled = min(num_clients, len(tasks))
    uncut = np.concatenate([clients.uncut(client).lengths for client in range(num_sampled)])
    lengths = np.minimum(uncut, source.max_length)
    num_train = sum(clients.num_examples)
    return FederatedData(
        clients=clients,
        eval=select(whole, range(len(whole)), source.max_length),
        max_length=source.max_length,
        report=DataReport(
            num_read=num_train + data.num_eval,
            num_dropped=0,
            num_truncated=int((uncut > source.max_length).sum() + (whole.lengths > source.max_length).sum()),
            num_duplicates=0,
            num_train=num_train,
            num_eval=data.num_eval,
            num_tasks=len(tasks),
            mean_tokens=float(lengths.mean()),
            max_tokens=int(lengths.max()),
            labels=clients.labels,
            num_sampled=num_sampled,
        ),
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
    numbers = {label: number for number, label in enumerate(sorted(set(labels), key=_with_numbers))}
    of_example = np.array([numbers[label] for label in labels])
    by_client = np.array([np.bincount(of_example[indices], minlength=len(numbers)) for indices in clients])
    return {label: tuple(by_client[:, number].tolist()) for label, number in numbers.items()}


def _with_numbers(label: str) -> list[tuple[bool, int | str]]:
    """Sorts by the numbers in labels: up to 73 tokens comes before up to 129 tokens."""
    return [(part.isdigit(), int(part) if part.isdigit() else part) for part in re.split(r"(\d+)", label)]


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
