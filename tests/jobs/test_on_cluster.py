"""`parablock submit` against a real cluster, that of launch/local_cluster.sh: with a token, over HTTP alone."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.runtime.federation import QUICKSTART, SHORT

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Cluster:
    """`address` of the dashboard; `nodes`: where drivers and other nodes come; `folder`: of all that it writes."""

    address: str
    nodes: str
    folder: Path

    @property
    def token_path(self) -> Path:
        return self.folder / "token"


def free_port() -> str:
    """None that the system gives away by itself: Ray takes such for its other services, and might take the same."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return str(port)
    raise AssertionError("no port is free")


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
        yield Cluster(f"http://127.0.0.1:{ports['DASHBOARD_PORT']}", f"127.0.0.1:{ports['PORT']}", folder)
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
    assert told.returncode == 0, told.stderr + told.stdout
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


@pytest.mark.parametrize("token", [None, "0123456789abcdef" * 4], ids=["no token", "another token"])
def test_a_driver_without_the_token_is_refused(cluster: Cluster, tmp_path: Path, token: str | None) -> None:
    own = {} if token is None else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    run = [sys.executable, "-m", "parablock_ray", "run", QUICKSTART, *SHORT, "--out", tmp_path / "run"]
    told = subprocess.run(
        list(map(str, run)),
        env=environment(RAY_ADDRESS=cluster.nodes, HOME=str(tmp_path), **own),  # in whose home no token lies
        capture_output=True,
        text=True,
    )
    assert told.returncode == 2, told.stderr
    assert told.stderr.splitlines()[-1].startswith("RAY_ADDRESS: ")
    assert not (tmp_path / "run" / "summary.json").exists()


def test_the_dashboard_listens_on_the_loopback_alone(cluster: Cluster) -> None:
    port = f":{int(cluster.address.rpartition(':')[2]):04X}"
    told = [line.split() for file in ("tcp", "tcp6") for line in Path(f"/proc/net/{file}").read_text().splitlines()]
    listening = [local for _, local, _, state, *_ in told if state == "0A" and local.endswith(port)]
    assert listening == [f"0100007F{port}"]  # 127.0.0.1, in the machine's order of bytes


def test_the_token_is_for_its_owner_and_in_no_other_file(cluster: Cluster) -> None:
    """After the jobs above, the refused ones among them."""
    assert cluster.token_path.stat().st_mode & 0o777 == 0o600
    token = cluster.token_path.read_bytes()
    files = [path for path in cluster.folder.rglob("*") if path.is_file() and path != cluster.token_path]
    assert any(path.suffix == ".log" for path in files)
    assert [path for path in files if token in path.read_bytes()] == []


def test_a_job_that_is_not_there(cluster: Cluster) -> None:
    for option in ("--attach", "--stop"):
        told = submit(cluster, option, "nothing", "--token-path", cluster.token_path)
        assert (told.returncode, told.stderr) == (2, f"{option}: the cluster has no job nothing\n")
