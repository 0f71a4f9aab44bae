"""`parablock submit` against a real cluster, that of launch/local_cluster.sh: with a token, over HTTP alone."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.runtime.federation import QUICKSTART, SHORT

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Cluster:
    address: str
    token_path: Path


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """Ours, without what would find another cluster or its token; jobs run this checkout, with this Python."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), **more}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    home = tmp_path_factory.mktemp("home")  # relative run folders lie there
    folder = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    ports = {name: free_port() for name in ("PORT", "DASHBOARD_PORT", "CLIENT_PORT")}
    script = subprocess.Popen(
        [ROOT / "launch" / "local_cluster.sh", "2", "2"],
        env=environment(DIR=str(folder), HOME=str(home), **ports),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert script.stdout is not None
    try:
        assert "Ctrl-C stops it\n" in iter(script.stdout.readline, "")
        yield Cluster(f"http://127.0.0.1:{ports['DASHBOARD_PORT']}", folder / "token")
    finally:
        script.send_signal(signal.SIGTERM)
        assert script.communicate()[0].endswith("stopped\n")
    assert script.returncode == 128 + signal.SIGTERM
    assert str(folder) not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def submit(cluster: Cluster, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "parablock_ray", "submit", "--address", cluster.address, *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True)


def test_a_run_is_followed_and_its_folder_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    told = submit(
        cluster,
        QUICKSTART,
        *SHORT,
        "--token-path",
        cluster.token_path,
        "--with-package",
        "--follow",
        "--fetch",
        tmp_path,
    )
    assert told.returncode == 0, told.stderr
    job, link = told.stdout.split("\n", 1)[0].removeprefix("job ").split(": ")
    assert link == f"{cluster.address}/#/jobs/{job}"
    assert "round 4  block" in told.stdout
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "done"
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_a_job_that_fails_gives_its_code_and_cause(cluster: Cluster, tmp_path: Path) -> None:
    mistake = ["data.source=nowhere.jsonl", "data.tasks=[]", "data.split=iid"]
    told = submit(
        cluster, QUICKSTART, *SHORT, *mistake, "--token-path", cluster.token_path, "--fetch", tmp_path / "folder"
    )
    assert told.returncode == 2
    assert "data.source: cannot read nowhere.jsonl" in told.stderr
    assert "--fetch: the job left no run folder" in told.stderr


def test_without_the_token_it_is_refused(cluster: Cluster) -> None:
    told = submit(cluster, QUICKSTART, *SHORT)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith(f"--token-path: the cluster at {cluster.address} asks for its token")


def test_a_job_that_is_not_there(cluster: Cluster) -> None:
    for option in ("--attach", "--stop"):
        told = submit(cluster, option, "nothing", "--token-path", cluster.token_path)
        assert (told.returncode, told.stderr) == (2, f"{option}: the cluster has no job nothing\n")
