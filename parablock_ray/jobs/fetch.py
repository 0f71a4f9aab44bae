"""A run folder from the cluster to here, over HTTP alone: a second job prints it, and its log is what we read.

Ray's API for jobs gives back logs and nothing else. A log passes whole through the memory of the cluster's dashboard,
so there is a limit to what comes this way.
"""

import base64
import hashlib
import io
import shlex
import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ray.job_submission import JobSubmissionClient

from parablock_ray.errors import RunFailed, UserError
from parablock_ray.jobs import print_folder
from parablock_ray.jobs.follow import cluster_answers, until_done
from parablock_ray.json_files import from_json

MAX_BYTES = 64_000_000  # of the files, before they are packed
MAX_FILES = 10_000


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
    if told == {"run_folder": None}:
        raise RunFailed(f"--fetch: the job left no run folder ({out} in the cluster)")
    unpack(told, folder)
    return list(map(str, told["left_behind"]))


def _last_json(log: str) -> Any:
    """What `print_folder` printed, None where it did not; before it the log has Ray's lines and the script itself."""
    found = [line for line in log.splitlines() if line.startswith('{"run_folder": ')]
    try:
        return from_json(found[-1]) if found else None
    except ValueError:
        return None


def unpack(told: Any, folder: Path) -> None:
    """What `print_folder.packed` made, into `folder`. Raises RunFailed where it is not what was sent, or would leave
    `folder`, or is more than was asked for: nothing is written then."""
    try:
        content = base64.b64decode(told["run_folder"], validate=True)
        if hashlib.sha256(content).hexdigest() != told["sha256"]:
            raise RunFailed("--fetch: the run folder was damaged on its way; try again")
        list(told["left_behind"])
        with zipfile.ZipFile(io.BytesIO(content)) as zipped:
            _refuse_strange(zipped.infolist())
            folder.mkdir(parents=True, exist_ok=True)
            zipped.extractall(folder)  # of each file no more than it says
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise RunFailed(f"--fetch: what came from the cluster is no run folder: {error!r}") from None


def _refuse_strange(files: Sequence[zipfile.ZipInfo]) -> None:
    """Raises RunFailed for what `packed` does not make."""
    num_bytes = sum(file.file_size for file in files)
    if len(files) > MAX_FILES or num_bytes > MAX_BYTES:
        raise RunFailed(
            f"--fetch: the run folder that came holds {len(files):,} files of {num_bytes:,} bytes; at most "
            f"{MAX_FILES:,} of {MAX_BYTES:,} are taken"
        )
    for file in files:
        path, kind = PurePosixPath(file.filename), stat.S_IFMT(file.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or "\\" in file.filename or kind not in (0, stat.S_IFREG):
            raise RunFailed(f"--fetch: the run folder that came holds {file.filename!r}, which is no file in it")
