"""Problems of reasoning_gym that a model was not trained on, each with its own verifier."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from parablock_ray.algorithms.rng import generator
from parablock_ray.config.data import GENERATED
from parablock_ray.evaluation.scorers import final_answer
from parablock_ray.training.rows import Example, Message
from parablock_ray.training.sources import check_tasks, problem_maker

_MOST_REPEATS = 20  # problems that are drawn for each one wanted; some tasks have few that differ


@dataclass(frozen=True)
class Problem:
    example: Example  # its answer is "" where a task has many right ones
    dataset: Any  # reasoning_gym's, which verifies
    entry: dict[str, Any]

    def scores(self, text: str) -> dict[str, float]:
        """`score`: the verifier's, 0 to 1, some of them with a little for the right form. `solved`: it is 1."""
        score = float(self.dataset.score_answer(final_answer(text), self.entry))
        return {"score": score, "solved": float(score == 1.0)}


def problems(task: str, seed: int, num: int) -> Iterator[Problem]:
    """Different problems, more than `num` of them, as the caller may have to leave some out.

    Their seed is derived for another purpose than that of training data (training/sources.py). Raises UserError as
    `check_tasks` does.
    """
    check_tasks([task], f"{GENERATED}:{task}")
    task_seed = int(torch.randint(2**31, (), generator=generator(seed, f"reasoning_gym {task}, evaluation")))
    return _different(problem_maker(task, task_seed, num * _MOST_REPEATS), task)


def _different(dataset: Any, task: str) -> Iterator[Problem]:
    seen = set()
    for position in range(len(dataset)):
        entry = dataset[position]
        question = entry["question"]
        if question not in seen:
            seen.add(question)
            turns = (Message("user", question),)
            yield Problem(
                Example(turns, input="", answer=entry["answer"] or "", task=task, client=None), dataset, entry
            )
