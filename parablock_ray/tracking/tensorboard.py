"""A run for TensorBoard: event files in the run folder, by a writer that needs neither torch nor TensorFlow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parablock_ray.errors import UserError
from parablock_ray.tracking.evaluations import Results, figures

FOLDER = "tensorboard"  # in the run folder


def require_tensorboard() -> None:
    """Raises UserError where the package that writes event files is missing."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        raise UserError(
            "tracking.tensorboard: needs the package tensorboardX; pip install 'parablock-ray[tensorboard]', "
            "or set it to false"
        ) from None


class TensorBoardSink:
    """The columns of `metrics.jsonl` and the evaluations as scalars by round; the numbers of the summary and of the
    final evaluation under `summary/`."""

    def __init__(self, out: Path, num_rounds: int) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(out / FOLDER))
        self._num_rounds = num_rounds

    def event(self, row: dict[str, Any]) -> None:
        pass

    def round(self, row: dict[str, Any]) -> None:
        self._write(row, "", row["round"])

    def evaluation(self, row: dict[str, Any]) -> None:
        self._write(figures(row["results"]), "", row["round"])

    def finish(self, summary: dict[str, Any]) -> None:
        self._write(summary, "summary/", self._num_rounds)

    def final_evaluation(self, results: Results) -> None:
        self._write(figures(results), "summary/", self._num_rounds)

    def close(self) -> None:
        self._writer.close()

    def _write(self, row: Mapping[str, Any], prefix: str, step: int) -> None:
        for key, value in row.items():
            if isinstance(value, int | float) and key != "round":
                self._writer.add_scalar(prefix + key, value, step)
        self._writer.flush()  # it can be watched while the run goes on
