"""`parablock resume`: a run that was interrupted goes on from its last checkpoint."""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from parablock_ray.checkpointing import Resumed, find_resumed, rewind
from parablock_ray.config import Config, load_config, save_resolved
from parablock_ray.driver import go_on, run
from parablock_ray.errors import UserError
from parablock_ray.json_files import json_file
from parablock_ray.lock import locked

_logger = logging.getLogger(__name__)


def resume(folder: Path, overrides: Sequence[str]) -> bool:
    """Whether there was something to do. Raises UserError for a folder without a run that can be taken up here and
    now, and for overrides that would make it another run; RunFailed as a run does."""
    if not (folder / "config.yaml").exists():
        raise UserError(f"{folder}: holds no run (no config.yaml); name a run folder, like runs/quickstart")
    here = f"out={json.dumps(str(folder), ensure_ascii=False)}"  # wherever it was when it began
    config = load_config(folder / "config.yaml", [*overrides, here])
    with locked(folder):
        if _is_finished(folder, config):
            return False
        _take_up(folder, config, find_resumed(folder, config))
    return True


def run_or_resume(config: Config) -> None:
    """Run the experiment, from the last checkpoint in its folder if that can be used, else from the start: then what is
    there is deleted. Raises as `run` does."""
    folder = Path(config.out)
    if (folder / "config.yaml").exists():
        with locked(folder):
            try:
                resumed = find_resumed(folder, config)
            except UserError as error:
                _logger.warning("started over: %s", error)
                shutil.rmtree(folder)
            else:
                _take_up(folder, config, resumed)
                return
    run(config)


def _take_up(folder: Path, config: Config, resumed: Resumed) -> None:
    rewind(folder, resumed)
    save_resolved(config, folder / "config.yaml")
    go_on(config, resumed)


def _is_finished(folder: Path, config: Config) -> bool:
    """Whether it came to its end, and no more rounds are asked for. A private run is over for good: its key is gone."""
    try:
        num_rounds = int(json_file(folder / "summary.json")["num_rounds"])
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/summary.json: cannot be read: {error!r}; delete it, and resume again") from None
    return config.privacy.is_on or config.method.rounds <= num_rounds
