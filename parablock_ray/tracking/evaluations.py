"""What evaluations find, as it is written down and shown: rows of `evaluations.jsonl`, `evaluation.json`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, NonNegativeInt, TypeAdapter, ValidationError

FILE = "evaluations.jsonl"  # in the run folder

Results = Mapping[str, Mapping[str, Mapping[str, float | int | None]]]
"""Task → metric → `value`, `standard_error`, `num_examples`."""


@dataclass(frozen=True)
class Evaluated:
    """The model as it was after `round`: a row of `evaluations.jsonl`."""

    round: int
    results: Results


class _Value(BaseModel):
    value: float


class _Row(BaseModel):
    round: NonNegativeInt
    results: dict[str, dict[str, _Value]]


class _Metric(BaseModel):
    value: float
    standard_error: float | None
    num_examples: NonNegativeInt


_ROW = TypeAdapter(_Row)
_RESULTS = TypeAdapter(dict[str, dict[str, _Metric]])


def checked_row(row: Any) -> Mapping[str, Any]:
    """A row of `evaluations.jsonl` as it stands. Raises ValueError for what is none."""
    _check(row, _ROW)
    checked: Mapping[str, Any] = row
    return checked


def checked_results(results: Any) -> Results:
    """What `evaluation.json` holds. Raises ValueError for anything else."""
    _check(results, _RESULTS)
    checked: Results = results
    return checked


def _check(found: Any, kind: TypeAdapter[Any]) -> None:
    try:
        kind.validate_python(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def figures(results: Results) -> dict[str, float | int | None]:
    """The values, flat, by names that every tracker takes: `held_out/loss`, `gsm8k_test.jsonl/strict_match`."""
    return {
        f"{re.sub('[^A-Za-z0-9_.-]+', '_', task)}/{metric}": found["value"]
        for task, metrics in results.items()
        for metric, found in metrics.items()
    }


def line(row: Mapping[str, Any]) -> str:
    """`round 9  held_out/loss 1.2345  held_out/perplexity 3.4366`."""
    values = (f"{name} {value:.4f}" for name, value in figures(row["results"]).items())
    return "  ".join([f"round {row['round']}", *values])
