"""Secrets of the environment, planted: no run and no job takes them along, in whatever file, log or message."""

import base64
import gzip
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from typer.testing import CliRunner

from parablock_ray import cli
from parablock_ray.config import load_config
from parablock_ray.jobs.command import submit_job
from tests.runtime.federation import QUICKSTART, SHORT

PLANTED = {
    "WANDB_API_KEY": "5eed" * 10,  # W&B takes 40 characters and more
    "HF_TOKEN": "hf_plantedplantedplantedplantedplanted",
    "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
    "SOMETHING_ELSE": "planted-and-named-nowhere",
}
SMALL = [
    *SHORT,
    "clients.num=2",
    "data.split=iid",
    "data.num_train=8",
    "method.rounds=2",
    "engine.name=torch",
    "runtime=serial",
    "checkpoint.every=2",
    "evaluation.every=2",
]
ALL_SINKS = ["tracking.wandb=offline", "tracking.tensorboard=true"]


def test_no_file_of_a_run_holds_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    places = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path), "MPLCONFIGDIR": matplotlib.get_cachedir()}
    for name, value in {**PLANTED, **places}.items():  # the last: else it would look for fonts anew
        monkeypatch.setenv(name, value)
    run = [
        sys.executable,
        "-m",
        "parablock_ray",
        "run",
        str(QUICKSTART),
        *SMALL,
        *ALL_SINKS,
        "--out",
        str(tmp_path / "run"),
    ]
    told = subprocess.run(run, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    failed = in_process("run", str(QUICKSTART), *SMALL, "method.lr=1e30", "--out", str(tmp_path / "failed"), code=1)
    exported = in_process("export", str(tmp_path / "run"), "--to", str(tmp_path / "exported"), code=0)
    reported = in_process("report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html"), code=0)
    written = {path.relative_to(tmp_path): path for path in tmp_path.rglob("*") if path.is_file()}
    for expected in ("config.yaml", "report.html", "checkpoints/*/manifest.json", "wandb/*/*.wandb", "tensorboard/*"):
        assert any(path.match(f"run/{expected}") for path in written), f"{expected} is not looked at"
    assert_without_secrets("\n".join([told.stdout, told.stderr, failed, exported, reported]).encode(), "what was said")
    for name, path in written.items():
        for content in contents(path):
            assert_without_secrets(content, str(name))


def test_a_secret_that_is_there_is_found() -> None:
    for secret in PLANTED.values():
        for form in (secret.encode(), base64.b64encode(b"x" + secret.encode()), b"\0" + secret.encode() + b"\0"):
            with pytest.raises(AssertionError, match="holds a planted secret"):
                assert_without_secrets(b"before " + form + b" after", "it")


def test_a_job_takes_no_secret_along(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    sent: list[bytes] = []

    class Client:
        def submit_job(self, **options: Any) -> str:
            sent.append(json.dumps(options).encode())
            folder = Path(options["runtime_env"]["working_dir"])
            sent.extend(path.read_bytes() for path in folder.rglob("*") if path.is_file())
            return "an-id"

    client: Any = Client()
    submit_job(client, load_config(QUICKSTART, []), "python", {"HF_HOME": "/shared/hf"}, with_package=False)
    assert len(sent) == 2
    for content in sent:
        assert_without_secrets(content, "the job")


def in_process(*arguments: str, code: int) -> str:
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == code, result.output
    return f"{result.output}{result.exception or ''}"


def contents(path: Path) -> Iterator[bytes]:
    """The file, and what is packed in it."""
    yield path.read_bytes()
    if path.suffix == ".gz":
        yield gzip.decompress(path.read_bytes())
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            yield from (packed.read(name) for name in packed.namelist())


def assert_without_secrets(content: bytes, what: str) -> None:
    for name, secret in PLANTED.items():
        inner = [base64.b64encode(b"x" * shift + secret.encode())[4:-4] for shift in range(3)]  # wherever it begins
        for form in (secret.encode(), *inner):
            assert form not in content, f"{what} holds a planted secret, that of {name}"
