"""What evaluations find, as it is written down and shown: rows of `evaluations.jsonl`, `evaluation.json`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FILE = "evaluations.jsonl"  # in the run folder

Results = Mapping[str, Mapping[str, Mapping[str, float | int | None]]]
"""Task → metric → `value`, `standard_error`, `num_examples`."""


@dataclass(frozen=True)
class Evaluated:
    """The model as it was after `round`: a row of `evaluations.jsonl`."""

    round: int
    results: Results


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
