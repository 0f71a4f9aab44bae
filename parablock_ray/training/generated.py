"""Clients whose examples are made when they are visited, so that very many of them cost nothing before."""

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from parablock_ray.algorithms.rng import generator
from parablock_ray.config.data import DataConfig, NaturalSplit
from parablock_ray.errors import UserError
from parablock_ray.training.rows import Example
from parablock_ray.training.sources import problems
from parablock_ray.training.templates import prompt_text
from parablock_ray.training.tokens import Held, TokenizedExamples, collected, select, tokenize

_MAX_DRAWS = 50  # problems looked at, at most, for each that is wanted


class _Written(NamedTuple):
    """A problem's prompt, and where its tokens are."""

    prompt: str
    store: TokenizedExamples
    place: int


@dataclass(frozen=True)
class ProblemSource:
    """reasoning_gym's problems as this run writes them, and which of them it can use."""

    data: DataConfig
    seed: int
    tokenizer: PreTrainedTokenizerBase
    max_length: int  # tokens of an example

    def drawn(
        self, tasks: Sequence[str], refused: Set[str], purpose: str, *keys: int
    ) -> tuple[TokenizedExamples, list[str]]:
        """A problem for each of `tasks`, uncut, and its prompt: a function of (seed, purpose, keys, tasks, refused).

        Problems whose prompt is refused, or of whose answer nothing fits, are passed over. Raises UserError for a
        task that gives too few others.
        """
        size, usable = _MAX_DRAWS * len(tasks), {}
        for task, num in Counter(tasks).items():
            made = problems(task, size, generator(self.seed, f"{purpose} {task}", *keys))
            found = list(islice(self._usable(made, num, refused), num))
            if len(found) < num:
                raise UserError(
                    f"data.tasks: {size} problems of {task!r} do not give {num} with a prompt that is "
                    f"not held out and is shorter than {self.max_length} tokens; choose another task, lower "
                    "data.num_eval, or raise data.max_length"
                )
            usable[task] = iter(found)
        chosen = [next(usable[task]) for task in tasks]
        return collected([(each.store, each.place) for each in chosen]), [each.prompt for each in chosen]

    def _usable(self, made: Iterator[Example], num: int, refused: Set[str]) -> Iterator[_Written]:
        """Those that can be used. Looks at `num` at a time: a call of the tokenizer takes as long as several examples
        in it."""
        while batch := list(islice(made, num)):
            prompts = [prompt_text(example, self.data.template, self.tokenizer) for example in batch]
            answers = [example.answer for example in batch]
            store = tokenize(prompts, answers, self.tokenizer)
            for index, prompt in enumerate(prompts):
                if store.answer_start[index] < self.max_length and prompt not in refused:
                    yield _Written(prompt, store, index)


@dataclass(frozen=True)
class GeneratedClients:
    """`data.per_client` examples for each client: of one task with the split `natural`, else of all in turn.

    Holds none of them. No prompt is one of `held_out`.
    """

    source: ProblemSource
    num_clients: int
    held_out: frozenset[str]

    @property
    def num_examples(self) -> tuple[int, ...]:
        """n_i by client."""
        return (self._per_client,) * self.num_clients

    def held_by(self, client: int) -> Held:
        """The client's examples, made now: a function of (config, seed, client)."""
        whole = self.uncut(client)
        everything = np.arange(len(whole))
        return Held(select(whole, everything, self.source.max_length), everything)

    def uncut(self, client: int) -> TokenizedExamples:
        """The same as they were made, however long."""
        return self.source.drawn(self._tasks_of(client), self.held_out, "reasoning_gym client", client)[0]

    @property
    def labels(self) -> dict[str, tuple[int, ...]]:
        """Label → how many examples of it each client holds. The task where each client has one."""
        tasks = self.source.data.tasks
        if not isinstance(self.source.data.split, NaturalSplit):
            return {"all tasks in turn": self.num_examples}
        return {
            task: tuple(self._per_client * (client % len(tasks) == position) for client in range(self.num_clients))
            for position, task in enumerate(tasks)
        }

    @property
    def _per_client(self) -> int:
        assert self.source.data.per_client is not None
        return self.source.data.per_client

    def _tasks_of(self, client: int) -> list[str]:
        """The task of each of its examples."""
        tasks = self.source.data.tasks
        if isinstance(self.source.data.split, NaturalSplit):
            return [tasks[client % len(tasks)]] * self._per_client
        first = client * self._per_client
        return [tasks[number % len(tasks)] for number in range(first, first + self._per_client)]
