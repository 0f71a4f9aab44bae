"""Two Ray nodes on this machine with a real slow link between them: a network namespace, veth and a token bucket.

Linux, root and iproute2 only. What is started here is ended here, by its process group, also on failure.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import ray

from parablock_ray.errors import UserError

SERVER_IP, CLIENT_IP = "10.77.31.1", "10.77.31.2"
_PORT = 6399  # below those that Ray gives to its workers
_TIMEOUT_S = 90
# A throwaway cluster on addresses of this machine alone, so without Ray's token. Its workers at no lesser priority
# than what else runs here.
_ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}


class _Node(NamedTuple):
    process: subprocess.Popen[bytes]
    log: Path


def check_possible() -> None:
    """Raises UserError where this machine or this user cannot have such a link."""
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if sys.platform != "linux" or missing:
        raise UserError(f"a real slow link needs Linux with iproute2 (missing: {', '.join(missing) or 'Linux'})")
    if os.geteuid() != 0:
        raise UserError("a real slow link needs root: network namespaces and queueing disciplines are root's")


@contextmanager
def slow_link_cluster(mbps: float, temp_folder: Path) -> Iterator[None]:
    """A cluster that this process has joined on the server's side; all CPUs are on the client's, over the link.

    `temp_folder` must have a short path: Ray puts Unix sockets below it.
    """
    with ExitStack() as cleanup:
        namespace = cleanup.enter_context(_linked_namespace(mbps))
        os.environ.update(_ENVIRONMENT)
        inside = ["ip", "netns", "exec", namespace]
        head = [
            "--head",
            f"--port={_PORT}",
            f"--node-ip-address={SERVER_IP}",
            "--num-cpus=0",
            "--include-dashboard=false",
        ]
        node = [f"--address={SERVER_IP}:{_PORT}", f"--node-ip-address={CLIENT_IP}", "--num-cpus=1"]
        # One after the other: of two raylets that start at once one may time out.
        server = cleanup.enter_context(_ray_node([], [*head, f"--temp-dir={temp_folder}"], temp_folder / "server.log"))
        _wait_until(server, _listens)
        ray.init(address=f"{SERVER_IP}:{_PORT}", log_to_driver=False, logging_level="ERROR")
        cleanup.callback(ray.shutdown)
        client = cleanup.enter_context(_ray_node(inside, node, temp_folder / "client.log"))
        _wait_until(client, lambda: sum(node["Alive"] for node in ray.nodes()) == 2)
        yield


@contextmanager
def _linked_namespace(mbps: float) -> Iterator[str]:
    """A network namespace with the client's address, at the far end of a link of `mbps` each way."""
    name, near, far = (f"parablock-{os.getpid()}", f"pbs{os.getpid()}", f"pbc{os.getpid()}")
    _call("ip", "netns", "add", name)
    try:
        _call("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        _call("ip", "addr", "add", f"{SERVER_IP}/30", "dev", near)
        _call("ip", "-n", name, "addr", "add", f"{CLIENT_IP}/30", "dev", far)
        _call("ip", "link", "set", near, "up")
        for device in ("lo", far):
            _call("ip", "-n", name, "link", "set", device, "up")
        bucket = ["root", "tbf", "rate", f"{mbps}mbit", "burst", "256kb", "latency", "100ms"]
        _call("tc", "qdisc", "add", "dev", near, *bucket)
        _call("tc", "-n", name, "qdisc", "add", "dev", far, *bucket)
        yield name
    finally:
        _call("ip", "netns", "del", name)  # and with it both ends of the link


@contextmanager
def _ray_node(prefix: list[str], options: list[str], log: Path) -> Iterator[_Node]:
    """A Ray node in a process group of its own, which is what ends it: `ray stop` would end other people's too."""
    log.parent.mkdir(exist_ok=True)
    command = [*prefix, sys.executable, "-m", "ray.scripts.scripts", "start", *options, "--block", "--log-style=record"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, start_new_session=True, stdout=output, stderr=output)
    try:
        yield _Node(process, log)
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)  # `ray start --block` ends its node's processes in turn
    with suppress(subprocess.TimeoutExpired):
        process.wait(15)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait_until(node: _Node, is_up: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + _TIMEOUT_S
    while not is_up():
        if node.process.poll() is not None or time.monotonic() > deadline_s:
            raise UserError(f"a Ray node did not come up:\n{node.log.read_text()[-2000:]}")
        time.sleep(0.5)


def _listens() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((SERVER_IP, _PORT)) == 0


def _call(*command: str) -> None:
    subprocess.run(command, check=True)
