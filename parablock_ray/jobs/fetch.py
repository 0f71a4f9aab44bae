"""A run folder from the cluster to here, over HTTP alone: a second job prints it, and its log is what we read.

Ray's API for jobs gives back logs and nothing else. A log passes whole through the memory of the cluster's dashboard,
so there is a limit to what comes this way.
"""

import base64
import hashlib
import io
import json
import shlex
import zipfile
from pathlib import Path
from typing import Any, cast

from ray.job_submission import JobSubmissionClient

from parablock_ray.errors import RunFailed, UserError
from parablock_ray.jobs import print_folder
from parablock_ray.jobs.follow import cluster_answers, until_done

MAX_BYTES = 64_000_000  # of the files, before they are packed


def refuse_used(folder: Path) -> None:
    """Raises UserError for a folder in which something is already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--fetch: {folder} must be a new or an empty folder")


def fetch(client: JobSubmissionClient, run_id: str, python: str, out: str, folder: Path) -> list[str]:
    """Fills `folder` with the run folder `out` of job `run_id` of the cluster; returns the files that were too much.

    Raises RunFailed where there is no run folder, it does not arrive, or the cluster is lost.
    """
    script = Path(print_folder.__file__).read_text("utf-8")
    with cluster_answers(run_id):
        job_id = client.submit_job(entrypoint=shlex.join([python, "-c", script, out, str(MAX_BYTES)]))
    ended = until_done(client, job_id, run_id)
    with cluster_answers(run_id):
        log = client.get_job_logs(job_id)
    told = _last_json(log)
    if told is None:
        raise RunFailed(f"--fetch: the run folder could not be read in the cluster: {ended.message}")
    if told["run_folder"] is None:
        raise RunFailed(f"--fetch: the job left no run folder ({out} in the cluster)")
    unpack(told, folder)
    return list(told["left_behind"])


def _last_json(log: str) -> dict[str, Any] | None:
    """What `print_folder` printed; before it the log has Ray's lines and the script itself."""
    found = [line for line in log.splitlines() if line.startswith('{"run_folder": ')]
    return cast(dict[str, Any], json.loads(found[-1])) if found else None


def unpack(told: dict[str, Any], folder: Path) -> None:
    """What `print_folder.packed` made, into `folder`. Raises RunFailed where it is not what was sent."""
    content = base64.b64decode(told["run_folder"])
    if hashlib.sha256(content).hexdigest() != told["sha256"]:
        raise RunFailed("--fetch: the run folder was damaged on its way; try again")
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(content)) as zipped:
        zipped.extractall(folder)
