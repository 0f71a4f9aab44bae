"""The command line of `parablock submit`, as far as it goes without a cluster."""

from pathlib import Path

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType
from typer.testing import CliRunner, Result

from parablock_ray import cli
from parablock_ray.jobs.command import Job, failure
from parablock_ray.jobs.follow import exit_code

NOWHERE = "http://127.0.0.1:1"
JOB = Job("parablock-1", "~/parablock-jobs/parablock-1", "python")


def submit(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["submit", "--address", NOWHERE, *arguments])


def ended(status: JobStatus, message: str | None = None, code: int | None = None) -> JobDetails:
    return JobDetails(type=JobType.SUBMISSION, entrypoint="run", status=status, message=message, driver_exit_code=code)


@pytest.mark.parametrize("arguments", [[], ["--attach", "a", "--stop", "a"], ["small.yaml", "--stop", "a"]])
def test_one_job_and_no_other(arguments: list[str]) -> None:
    refused = submit(*arguments)
    assert (refused.exit_code, refused.stderr) == (2, "submit: give either CONFIG, --attach or --stop\n")


def test_a_mistake_in_the_config_is_told_before_the_cluster_is_asked(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("name: small\n")
    refused = submit(str(tmp_path / "small.yaml"))
    assert refused.exit_code == 2
    assert "method" in refused.stderr
    assert NOWHERE not in refused.stderr


def test_a_variable_needs_a_name_and_a_value(configs: Path) -> None:
    refused = submit(str(configs / "quickstart.yaml"), "--env", "HF_HOME")
    assert (refused.exit_code, refused.stderr) == (2, "--env: must be KEY=VALUE (got 'HF_HOME')\n")


def test_a_used_folder_is_refused_before_the_job_starts(configs: Path, tmp_path: Path) -> None:
    (tmp_path / "summary.json").touch()
    refused = submit(str(configs / "quickstart.yaml"), "--fetch", str(tmp_path))
    assert (refused.exit_code, refused.stderr) == (2, f"--fetch: {tmp_path} must be a new or an empty folder\n")


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, 130, 130),
        (JobStatus.FAILED, -9, 1),
        (JobStatus.FAILED, None, 1),
        (JobStatus.STOPPED, None, 1),
    ],
)
def test_the_exit_code_is_the_jobs_own(status: JobStatus, code: int | None, expected: int) -> None:
    assert exit_code(ended(status, code=code)) == expected


def test_a_failure_is_told_once() -> None:
    job = ended(JobStatus.FAILED, "exit code 2, last words: data.source: cannot read it", code=2)
    assert failure(JOB, job, log_was_shown=False).endswith("data.source: cannot read it")
    assert failure(JOB, job, log_was_shown=True) == "job parablock-1 failed: exit code 2"


def test_a_cluster_without_the_package() -> None:
    job = ended(JobStatus.FAILED, "python: No module named parablock_ray", code=1)
    assert "--python: python in the cluster lacks a package; name one that has" in failure(JOB, job, log_was_shown=True)
