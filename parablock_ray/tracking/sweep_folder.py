"""What a sweep leaves beside the folders of its runs."""

from collections.abc import Sequence
from pathlib import Path

from parablock_ray.errors import UserError
from parablock_ray.json_files import json_file

SWEEP_FILE = "sweep.json"  # name of the sweep, and its runs in the order of its file


def failure_beside(run_folder: Path) -> Path:
    """The file that says why the run failed; there only if it did."""
    return run_folder.with_name(f"{run_folder.name}.failed")


def sweep_runs(folder: Path) -> Sequence[Path] | None:
    """The folders of a sweep's runs in its order, None where there is no sweep. Raises UserError."""
    file = folder / SWEEP_FILE
    try:
        labels = json_file(file)["runs"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
    if not isinstance(labels, list) or not all(isinstance(label, str) and _is_name(label) for label in labels):
        raise UserError(f"{file}: must name folders beside it, without a / in them (got {labels!r})")
    return [folder / label for label in labels]


def _is_name(label: str) -> bool:
    return Path(label).name == label and "\0" not in label
