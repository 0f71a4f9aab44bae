"""`parablock submit`: a run as a job of a cluster, from its config here to its exit code and its folder."""

import re
import secrets
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from ray.job_submission import JobDetails, JobSubmissionClient

from parablock_ray.config import Config
from parablock_ray.errors import RunFailed, UserError
from parablock_ray.jobs.cluster import connect, find_token
from parablock_ray.jobs.fetch import fetch, refuse_used
from parablock_ray.jobs.follow import cluster_answers, exit_code, follow, until_done
from parablock_ray.jobs.package import CONFIG_FILE, stage

__all__ = ["connect", "find_job", "find_token", "read_env", "refuse_used", "see_through", "stop_job", "submit_job"]

_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_UNKNOWN = "status code 404"  # in what Ray's client says of a job that the cluster has not
_MISSING = "No module named"  # of a Python without us, or without what we need


@dataclass(frozen=True)
class Job:
    """`out`: the run folder in the cluster; `python`: the interpreter there."""

    id: str
    out: str
    python: str


def submit_job(
    client: JobSubmissionClient, config: Config, python: str, env: Mapping[str, str], with_package: bool
) -> Job:
    """Sends the config, with what it names, and starts the run on the cluster's head. Raises UserError, RunFailed.

    A relative `out` gets a folder of its own there: the job's working directory is Ray's, which may delete it.
    """
    job_id = f"parablock-{secrets.token_hex(4)}"
    own_out = Path(config.out).is_absolute()
    job = Job(job_id, config.out if own_out else f"~/parablock-jobs/{job_id}", python)
    run = shlex.join([python, "-m", "parablock_ray", "run", CONFIG_FILE])
    with tempfile.TemporaryDirectory() as folder:
        stage(config, Path(folder), with_package)
        with cluster_answers(job.id):
            client.submit_job(
                entrypoint=run if own_out else f"{run} --out {job.out}",  # the shell there knows its home folder
                submission_id=job.id,
                runtime_env={"working_dir": folder, "env_vars": {"PYTHONUNBUFFERED": "1", **env}},
                metadata={"job_name": config.name, "out": job.out, "python": python},
            )
    return job


def find_job(client: JobSubmissionClient, job_id: str, option: str) -> Job:
    """A job that `submit_job` sent. Raises UserError that names the option which asked for it, RunFailed."""
    try:
        with cluster_answers(job_id):
            metadata = client.get_job_info(job_id).metadata or {}
    except RunFailed as error:
        if _UNKNOWN not in str(error):
            raise
        raise UserError(f"{option}: the cluster has no job {job_id}") from None
    if not {"out", "python"} <= metadata.keys():
        raise UserError(f"{option}: {job_id} was not sent by parablock submit")
    return Job(job_id, metadata["out"], metadata["python"])


def stop_job(client: JobSubmissionClient, job_id: str) -> str:
    """Stops a job; says how it ended. Raises UserError, RunFailed."""
    job = find_job(client, job_id, "--stop")
    with cluster_answers(job.id):
        client.stop_job(job.id)
    return str(until_done(client, job.id, job.id).status.value)


def see_through(client: JobSubmissionClient, job: Job, with_log: bool, folder: Path | None) -> int:
    """Waits for the job, with its log or without, and brings its run folder back; returns the job's exit code."""
    try:
        if with_log:
            follow(client, job.id, lambda lines: typer.echo(lines, nl=False))
        ended = until_done(client, job.id, job.id)
    except KeyboardInterrupt:
        typer.echo(f"job {job.id} goes on: --attach {job.id} comes back to it, --stop {job.id} ends it", err=True)
        raise
    code = exit_code(ended)
    if code:
        typer.echo(failure(job, ended, with_log), err=True)
    if folder is not None:
        _fetch(client, job, folder, failed=code != 0)
    return code


def failure(job: Job, ended: JobDetails, log_was_shown: bool) -> str:
    """Why the job failed: its last words, unless its whole log was shown."""
    message = ended.message or ""
    lines = [f"job {job.id} {ended.status.value.lower()}: {message}"]
    if log_was_shown and ended.driver_exit_code is not None:
        lines = [f"job {job.id} {ended.status.value.lower()}: exit code {ended.driver_exit_code}"]
    if _MISSING in message:
        lines.append(
            f"--python: {job.python} in the cluster lacks a package; name one that has parablock-ray installed (or all "
            "that it depends on, and send it by --with-package)"
        )
    return "\n".join(lines)


def _fetch(client: JobSubmissionClient, job: Job, folder: Path, failed: bool) -> None:
    """A failed job may have left no folder: then its failure is what counts."""
    try:
        left_behind = fetch(client, job.id, job.python, job.out, folder)
    except RunFailed as error:
        if not failed:
            raise
        typer.echo(error, err=True)
        return
    typer.echo(f"run folder: {folder}")
    if left_behind:
        typer.echo(f"too large to come along, still in the cluster in {job.out}: {', '.join(left_behind)}", err=True)


def read_env(pairs: Sequence[str]) -> dict[str, str]:
    """`KEY=VALUE` each. Raises UserError, also for a name that is a secret's: Ray shows a job's environment, and logs
    it."""
    for pair in pairs:
        key = pair.partition("=")[0]
        if not key or "=" not in pair:
            raise UserError(f"--env: must be KEY=VALUE (got {key!r} and no value)")
        if _SECRET.search(key):
            raise UserError(
                f"--env: {key} is the name of a secret, and the dashboard shows a job's variables; set it where the "
                "cluster is started (docs/security.md)"
            )
    return {key: value for key, _, value in (pair.partition("=") for pair in pairs)}
