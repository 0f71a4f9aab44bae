"""What a sweep leaves beside the folders of its runs."""

import json
from collections.abc import Sequence
from pathlib import Path

from parablock_ray.errors import UserError

SWEEP_FILE = "sweep.json"  # name of the sweep, and its runs in the order of its file


def failure_beside(run_folder: Path) -> Path:
    """The file that says why the run failed; there only if it did."""
    return run_folder.with_name(f"{run_folder.name}.failed")


def sweep_runs(folder: Path) -> Sequence[Path] | None:
    """The folders of a sweep's runs in its order, None where there is no sweep. Raises UserError."""
    file = folder / SWEEP_FILE
    try:
        return [folder / label for label in json.loads(file.read_text("utf-8"))["runs"]]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
