"""The command line of `parablock submit`, as far as it goes without a cluster."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType
from typer.testing import CliRunner, Result

from parablock_ray import cli
from parablock_ray.config import load_config
from parablock_ray.errors import RunFailed, UserError
from parablock_ray.jobs.command import Job, failure, find_job, stop_job, submit_job
from parablock_ray.jobs.fetch import fetch
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
    assert (refused.exit_code, refused.stderr) == (2, "--env: must be KEY=VALUE (got 'HF_HOME' and no value)\n")


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "RAY_AUTH_TOKEN", "my_password", "AWS_SECRET"])
def test_a_secret_is_no_variable_of_a_job(configs: Path, name: str) -> None:
    refused = submit(str(configs / "quickstart.yaml"), "--env", f"{name}=planted")
    assert refused.exit_code == 2
    assert refused.stderr.startswith(
        f"--env: {name} is the name of a secret, and the dashboard shows a job's variables"
    )
    assert "planted" not in refused.stderr


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


class Losing:
    """A client of a cluster that goes away at one request; `told`: what Ray's client raises then."""

    def __init__(self, lost_at: str, told: Exception) -> None:
        self._lost_at, self._told = lost_at, told

    def __getattr__(self, request: str) -> Callable[..., Any]:
        def answer(*arguments: object, **options: object) -> Any:
            if request == self._lost_at:
                raise self._told
            info = ended(JobStatus.SUCCEEDED)
            known = SimpleNamespace(status=info.status, message="", metadata={"out": "out", "python": "python"})
            return known if request == "get_job_info" else "an-id"

        return answer


@pytest.mark.parametrize("told", [ConnectionError("refused"), RuntimeError("Request failed with status code 500: .")])
@pytest.mark.parametrize(
    ("request_name", "call"),
    [
        ("submit_job", lambda client, config, folder: submit_job(client, config, "python", {}, False)),
        ("get_job_info", lambda client, config, folder: find_job(client, "parablock-1", "--attach")),
        ("stop_job", lambda client, config, folder: stop_job(client, "parablock-1")),
        ("submit_job", lambda client, config, folder: fetch(client, "parablock-1", "python", "out", folder)),
        ("get_job_info", lambda client, config, folder: fetch(client, "parablock-1", "python", "out", folder)),
        ("get_job_logs", lambda client, config, folder: fetch(client, "parablock-1", "python", "out", folder)),
    ],
    ids=["submit", "find", "stop", "fetch", "wait", "logs"],
)
def test_a_cluster_that_goes_away(
    configs: Path, tmp_path: Path, told: Exception, request_name: str, call: Callable[..., object]
) -> None:
    config = load_config(configs / "quickstart.yaml", [])
    with pytest.raises(
        RunFailed, match=r"^the cluster no longer answers \(.*\); job parablock-\w+ may still run"
    ) as lost:
        call(Losing(request_name, told), config, tmp_path)
    assert str(told) in str(lost.value)


def test_a_job_that_is_not_there() -> None:
    client: Any = Losing("get_job_info", RuntimeError("Request failed with status code 404: Job a does not exist."))
    with pytest.raises(UserError, match=r"^--attach: the cluster has no job a$"):
        find_job(client, "a", "--attach")


def test_a_failure_is_told_once() -> None:
    job = ended(JobStatus.FAILED, "exit code 2, last words: data.source: cannot read it", code=2)
    assert failure(JOB, job, log_was_shown=False).endswith("data.source: cannot read it")
    assert failure(JOB, job, log_was_shown=True) == "job parablock-1 failed: exit code 2"


def test_a_cluster_without_the_package() -> None:
    job = ended(JobStatus.FAILED, "python: No module named parablock_ray", code=1)
    assert "--python: python in the cluster lacks a package; name one that has" in failure(JOB, job, log_was_shown=True)
