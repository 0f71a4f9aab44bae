"""Who answers at an address, and whether it lets us in, against a small HTTP server in the dashboard's place."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from parablock_ray.errors import UserError
from parablock_ray.jobs.cluster import connect, find_token, ray_version, refuse_other_ray


@contextmanager
def answering(status: int, body: str, token: str | None = None) -> Iterator[str]:
    """The address of a server that answers so; with a token, only to who has it, as Ray does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown = self.headers.get("Authorization")
            allowed = token is None or shown == f"Bearer {token}"
            self.send_response(status if allowed else 403 if shown else 401)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_cluster_that_asks_for_its_token() -> None:
    with answering(200, json.dumps({"ray_version": "2.60.0"}), token="open") as address:
        with pytest.raises(UserError, match=r"^--token-path: the cluster at .* asks for its token; give the file"):
            connect(address, None)
        with pytest.raises(UserError, match=r"^--token-path: the cluster at .* refuses this token; take the file"):
            connect(address, "wrong")
        assert ray_version(address, {"Authorization": "Bearer open"}) == "2.60.0"


@pytest.mark.parametrize("there", ["2.51.0", "3.0.0"])
def test_another_ray_is_refused(there: str) -> None:
    with (
        answering(200, json.dumps({"ray_version": there})) as address,
        pytest.raises(
            UserError, match=rf"^--address: the cluster runs Ray {there}, and parablock_ray needs ray.*2\.52"
        ),
    ):
        connect(address, None)


@pytest.mark.parametrize("there", ["2.52.0", "2.60.0", "2.99.1"])
def test_a_ray_of_ours_is_not(there: str) -> None:
    refuse_other_ray(there)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, "<html>", r"what answers at http://.* is no Ray dashboard"),
        (200, "[]", r"what answers at http://.* is no Ray dashboard"),
        (404, "", r"http://.* answers 404 Not Found; is it a Ray dashboard\?"),
    ],
)
def test_what_is_no_dashboard(status: int, body: str, message: str) -> None:
    with answering(status, body) as address, pytest.raises(UserError, match=rf"^--address: {message}"):
        connect(address, None)


def test_nobody_answers() -> None:
    with socket.socket() as taken:  # bound and not listening: nobody else gets this port
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"^--address: no Ray dashboard answers at {address} \(.*refused\); start"):
            connect(address, None)


@pytest.mark.parametrize("address", ["head:8265", "ray://head:10001"])
def test_an_address_is_that_of_the_dashboard(address: str) -> None:
    with pytest.raises(UserError, match=r"^--address: must be that of the dashboard, like http://head:8265 \(got"):
        connect(address, None)


def test_where_the_token_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "given").write_text("of the option\n")
    (tmp_path / "named").write_text("of the file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "named"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert find_token(None) is None
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert find_token(None) == "of the file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the variable")
    assert find_token(None) == "of the variable"
    assert find_token(tmp_path / "given") == "of the option"


def test_a_token_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(UserError, match=r"^--token-path: no token in .*nowhere \(.*\); copy the file"):
        find_token(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"^--token-path: .*empty is empty; copy the file"):
        find_token(tmp_path / "empty")
