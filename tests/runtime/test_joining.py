"""A cluster that cannot be joined, or on which driver and server do not share the run folder: said at once."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
import ray

from parablock_ray.config import load_config
from parablock_ray.errors import UserError
from parablock_ray.runtime.base import RunSetup
from parablock_ray.runtime.connection import join
from parablock_ray.runtime.server import ServerActor
from tests.runtime.federation import QUICKSTART

MISMATCH = """\
Version mismatch: The cluster was started with:
    Ray: 2.52.0
    Python: 3.11.7
This process on node 10.0.0.1 was started with:
    Ray: 2.60.0
    Python: 3.11.7
"""


def test_nobody_answers() -> None:
    with socket.socket() as taken:  # bound and not listening: nobody else gets this port
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(
            UserError, match=rf"^RAY_ADDRESS: no Ray cluster .* answers at {address} \(.*refused'\)\); start"
        ):
            join(address)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ConnectionError("Failed to connect"),
            r"answers at auto \(.*Failed to connect.*\); .* set RAY_AUTH_MODE=token and",
        ),
        (
            ray.exceptions.AuthenticationError("no token"),
            r"auto needs its token, .*; set RAY_AUTH_TOKEN_PATH to the file",
        ),
        (
            RuntimeError(MISMATCH),
            r"with: Ray: 2\.52\.0 .* Ray: 2\.60\.0 Python: 3\.11\.7; use the Ray and the Python of",
        ),
    ],
    ids=["a wrong token", "no token", "another Ray"],
)
def test_the_cluster_does_not_take_us(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def refuse(**_: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(UserError, match=rf"^RAY_ADDRESS: .*{message}"):
        join("auto")


def test_a_folder_that_the_server_does_not_see(tmp_path: Path) -> None:
    setup = RunSetup(load_config(QUICKSTART, []), *(None,) * 3)  # it must not come so far as to need them
    server = ServerActor(setup, 2, str(tmp_path / "of the driver"))
    with pytest.raises(
        UserError, match=r"^out: the server does not see .*of the driver, .*; choose a folder that driver"
    ):
        asyncio.run(server.load())
