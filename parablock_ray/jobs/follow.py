"""What becomes of a job: its log as it grows, and how it ends."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from parablock_ray.errors import RunFailed

_POLL_S = 0.5


def follow(client: JobSubmissionClient, job_id: str, show: Callable[[str], None]) -> None:
    """Shows the job's log, from its start, until it ends. Raises RunFailed where the cluster is lost."""

    async def tail() -> None:
        async for lines in client.tail_job_logs(job_id):
            show(lines)

    with cluster_answers(job_id):
        asyncio.run(tail())


def until_done(client: JobSubmissionClient, job_id: str, run_id: str) -> JobDetails:
    """How the job ended, once it has; `run_id`: as of `cluster_answers`. Raises RunFailed where the cluster is lost."""
    with cluster_answers(run_id):
        while not (details := client.get_job_info(job_id)).status.is_terminal():
            time.sleep(_POLL_S)
    return details


def exit_code(details: JobDetails) -> int:
    """The job's own; 1 where it has none, or was stopped or killed."""
    if details.status == JobStatus.SUCCEEDED:
        return 0
    return max(details.driver_exit_code or 1, 1)


@contextmanager
def cluster_answers(run_id: str) -> Iterator[None]:
    """Around one request of Ray's client. `run_id`: the job of the run, to come back to. Raises RunFailed where the
    cluster is lost."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # all that Ray's client raises
        raise RunFailed(
            f"the cluster no longer answers ({error}); job {run_id} may still run there, come back to it with --attach"
        ) from None
