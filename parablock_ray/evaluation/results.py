"""What an evaluation finds: metrics with their standard errors, and what the model said to each example."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from parablock_ray.tracking.evaluations import Results


class Tally(NamedTuple):
    """One example's part of a metric: so much of so many, such as 2 of 3 instructions, or 9.1 nats in 4 tokens."""

    total: float
    num: int

    @property
    def mean(self) -> float:
        return self.total / self.num


Tallies = Mapping[str, Tally]
"""One example's part of every metric, by the metric's name."""


@dataclass(frozen=True)
class Metric:
    name: str
    value: float
    num_examples: int
    standard_error: float | None  # over the examples; None where there is none to be had


@dataclass(frozen=True)
class TaskResult:
    task: str  # as the user wrote it
    metrics: tuple[Metric, ...]
    outputs: tuple[Mapping[str, Any], ...]  # a row for each example, JSON's types only


def of_all(scores: Mapping[str, float]) -> dict[str, Tally]:
    """Scores that count once for every example."""
    return {name: Tally(score, 1) for name, score in scores.items()}


def metrics_of(examples: Sequence[Tallies]) -> tuple[Metric, ...]:
    """Every metric over all examples, which have the same ones."""
    return tuple(metric_of(name, [example[name] for example in examples]) for name in examples[0])


def metric_of(name: str, tallies: Sequence[Tally]) -> Metric:
    """Σ total / Σ num, with the standard error of such a ratio when examples are drawn at random (W. G. Cochran,
    Sampling Techniques, 1977, section 6.4, without a finite population). Where every num is 1, that is the mean
    with the sample's standard deviation over √n.
    """
    n = len(tallies)
    totals, nums = (np.array(column, np.float64) for column in zip(*tallies, strict=True))
    value = totals.sum() / nums.sum()
    if n == 1:
        return Metric(name, float(value), n, standard_error=None)
    spread = math.sqrt(n / (n - 1) * np.square(totals - value * nums).sum())
    return Metric(name, float(value), n, standard_error=spread / float(nums.sum()))


def result_table(results: Iterable[TaskResult]) -> Table:
    """A row a metric."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("task", overflow="fold")
    table.add_column("metric", overflow="fold")
    for header in ("value", "± standard error", "examples"):
        table.add_column(header, justify="right", no_wrap=True)
    for result in results:
        for metric in result.metrics:
            error = "" if metric.standard_error is None else f"{metric.standard_error:.4f}"
            table.add_row(result.task, metric.name, f"{metric.value:.4f}", error, f"{metric.num_examples}")
    return table


def as_json(results: Iterable[TaskResult]) -> Results:
    """The metrics, without what the model said."""
    return {
        result.task: {
            metric.name: {
                "value": metric.value,
                "standard_error": metric.standard_error,
                "num_examples": metric.num_examples,
            }
            for metric in result.metrics
        }
        for result in results
    }


def write_outputs(folder: Path, results: Sequence[TaskResult]) -> None:
    """A .jsonl file for each task, named after it: what the model read and said, a line an example. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for result, name in zip(results, _file_names([result.task for result in results]), strict=True):
        rows = (json.dumps(row, ensure_ascii=False) + "\n" for row in result.outputs)
        (folder / name).write_text("".join(rows), encoding="utf-8")


def _file_names(tasks: Sequence[str]) -> list[str]:
    """`gsm8k=data/test.jsonl` → `gsm8k_data_test.jsonl`; `reasoning_gym:gcd` → `reasoning_gym_gcd.jsonl`. Tasks that
    would share a name have a digest of their own behind it."""
    stems = [re.sub(r"[^\w.-]+", "_", task.removesuffix(".jsonl")) for task in tasks]
    digests = [f"-{hashlib.sha256(task.encode()).hexdigest()[:8]}" for task in tasks]
    return [
        f"{stem}{digest if stems.count(stem) > 1 else ''}.jsonl" for stem, digest in zip(stems, digests, strict=True)
    ]
