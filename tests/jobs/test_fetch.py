"""A run folder packed there and unpacked here."""

import base64
import hashlib
import io
import json
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parablock_ray.errors import RunFailed, UserError
from parablock_ray.jobs import print_folder
from parablock_ray.jobs.fetch import refuse_used, unpack
from parablock_ray.jobs.print_folder import packed

FILES = st.dictionaries(st.sampled_from(["a", "b/c", "b/d", "e/f/g"]), st.binary(max_size=50))


def written(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@settings(deadline=None)
@given(files=FILES, max_bytes=st.integers(0, 200))
def test_small_files_come_first_and_none_is_forgotten(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], max_bytes: int
) -> None:
    folder = written(tmp_path_factory.mktemp("there"), files)
    told = packed(folder, max_bytes)
    here = tmp_path_factory.mktemp("here")
    unpack(told, here)
    came, left = read(here), {name: files[name] for name in told["left_behind"]}
    assert {**came, **left} == files
    assert not came.keys() & left.keys()
    assert sum(map(len, came.values())) <= max_bytes
    assert not left or sum(map(len, came.values())) + min(map(len, left.values())) > max_bytes
    assert max(map(len, came.values()), default=0) <= min(map(len, left.values()), default=50)


def test_it_runs_as_a_script_without_the_package(tmp_path: Path) -> None:
    folder = written(tmp_path / "there", {"summary.json": b"{}"})
    script = Path(print_folder.__file__).read_text()
    command = [sys.executable, "-I", "-S", "-c", script, str(folder), "100"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    unpack(json.loads(told), tmp_path / "here")
    assert read(tmp_path / "here") == {"summary.json": b"{}"}


def test_links_stay_behind(tmp_path: Path) -> None:
    folder = written(tmp_path / "there", {"a": b"a"})
    (folder / "link").symlink_to(folder / "a")
    unpack(packed(folder, 100), tmp_path / "here")
    assert read(tmp_path / "here") == {"a": b"a"}


def test_no_folder(tmp_path: Path) -> None:
    assert packed(tmp_path / "nowhere", 100) == {"run_folder": None}


def test_what_was_damaged_is_not_unpacked(tmp_path: Path) -> None:
    told = packed(written(tmp_path / "there", {"a": b"a"}), 100)
    with pytest.raises(RunFailed, match=r"^--fetch: the run folder was damaged on its way"):
        unpack({**told, "sha256": "0" * 64}, tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refuse_used(tmp_path / "new")
    for used in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match=r"^--fetch: .* must be a new or an empty folder"):
            refuse_used(used)


def told_of(files: dict[str, bytes], kind: int = 0) -> dict[str, object]:
    """As a cluster could tell it that is not ours. `kind`: of the files' modes."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = kind << 16
            zipped.writestr(info, content, zipfile.ZIP_DEFLATED)
    content = archive.getvalue()
    return {
        "run_folder": base64.b64encode(content).decode(),
        "sha256": hashlib.sha256(content).hexdigest(),
        "left_behind": [],
    }


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../out", "a\\..\\out"])
def test_what_would_leave_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunFailed, match=r"^--fetch: the run folder that came holds .* which is no file in it"):
        unpack(told_of({"a": b"a", name: b"b"}), tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_links_that_come_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="which is no file in it"):
        unpack(told_of({"link": b"/etc/passwd"}, stat.S_IFLNK | 0o777), tmp_path / "here")


def test_little_that_becomes_very_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunFailed, match=r"holds 1 files of 70,000,000 bytes; at most 10,000 of 64,000,000 are taken"):
        unpack(told_of({"zeros": bytes(70_000_000)}), tmp_path / "here")
    monkeypatch.setattr("parablock_ray.jobs.fetch.MAX_FILES", 2)
    with pytest.raises(RunFailed, match="holds 3 files"):
        unpack(told_of(dict.fromkeys("abc", b"")), tmp_path / "here")
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize(
    "told", [{}, [], "no", {"run_folder": 3}, {"run_folder": "AAAA", "sha256": 1, "left_behind": []}]
)
def test_what_is_no_run_folder_is_refused(tmp_path: Path, told: object) -> None:
    with pytest.raises(RunFailed, match=r"^--fetch: (what came from the cluster is no run folder|.* was damaged)"):
        unpack(told, tmp_path / "here")
    content = b"no zip"
    digest = hashlib.sha256(content).hexdigest()
    whole = {"run_folder": base64.b64encode(content).decode(), "sha256": digest, "left_behind": []}
    with pytest.raises(RunFailed, match="no run folder: BadZipFile"):
        unpack(whole, tmp_path / "here")
