"""What goes along with a job."""

from pathlib import Path

import pytest

from parablock_ray.config import Config, load_config
from parablock_ray.errors import UserError
from parablock_ray.jobs.package import MAX_BYTES, stage

CONFIG = """\
name: small
out: runs/small
model: {name: tiny}
data: {source: data/train.jsonl}
clients: {num: 2}
method: {name: parablock}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the data that CONFIG names; the job's is made in another."""
    folder = tmp_path / "here"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "train.jsonl").write_text("{}\n")
    (folder / "small.yaml").write_text(CONFIG)
    monkeypatch.chdir(folder)
    return folder


def config(*overrides: str) -> Config:
    return load_config("small.yaml", overrides)


def staged(tmp_path: Path, config: Config, with_package: bool = False) -> Path:
    folder = tmp_path / "job"
    folder.mkdir(parents=True)
    stage(config, folder, with_package)
    return folder


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_config_and_what_it_names_by_relative_paths_go_along(here: Path, tmp_path: Path) -> None:
    for name in (
        "model/config.json",
        "model/.git/objects/pack",
        "model/.gitignore",
        "questions.jsonl",
        "links.csv",
        "lossy/events.jsonl",
    ):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(name)
    wanted = config(
        "model.name=./model",
        "evaluation.tasks=[held_out]",
        "evaluation.during=['gsm8k=questions.jsonl']",
        "network.trace=links.csv",
        "clients.participation=lossy/events.jsonl",
    )
    job = staged(tmp_path, wanted)
    assert files_in(job) == {
        "config.yaml",
        "data/train.jsonl",
        "links.csv",
        "lossy/events.jsonl",
        "model/config.json",
        "questions.jsonl",
    }
    assert load_config(job / "config.yaml", []) == wanted


def test_what_has_an_absolute_path_is_taken_to_be_in_the_cluster(here: Path, tmp_path: Path) -> None:
    assert files_in(staged(tmp_path, config(f"data.source={here}/data/train.jsonl"))) == {"config.yaml"}


def test_the_package_goes_along_where_it_is_wanted(here: Path, tmp_path: Path) -> None:
    files = files_in(staged(tmp_path, config(), with_package=True))
    assert {"parablock_ray/__main__.py", "parablock_ray/reporting/page.html.jinja"} <= files
    assert not [file for file in files if file.endswith(".pyc")]


def test_too_much_is_refused_with_the_biggest_files(here: Path, tmp_path: Path) -> None:
    for name, size in {"a.bin": MAX_BYTES - 30_000_000, "b.bin": 20_000_000, "c.bin": 11_000_000, "d.bin": 5}.items():
        (here / "data" / name).touch()
        with (here / "data" / name).open("wb") as file:
            file.truncate(size)  # takes no room on the disk
    with pytest.raises(UserError) as refused:
        staged(tmp_path, config("model.name=data", "data.source=data/train.jsonl"))
    assert str(refused.value) == (
        "a job takes along less than 536.9 MB, and the files that the config names by relative paths have 537.9 MB, "
        "the biggest: data/a.bin (506.9 MB), data/b.bin (20.0 MB), data/c.bin (11.0 MB); put them where every node of "
        "the cluster sees them and give absolute paths"
    )
    assert files_in(tmp_path / "job") == set()


def test_a_file_outside_of_the_current_folder_is_refused(here: Path, tmp_path: Path) -> None:
    (here.parent / "far.jsonl").write_text("{}\n")
    with pytest.raises(
        UserError, match=r"^data\.source: \.\./far\.jsonl lies outside of the current folder, .* absolute"
    ):
        staged(tmp_path, config("data.source=../far.jsonl"))


def test_what_is_hidden_stays_here(here: Path, tmp_path: Path) -> None:
    for name in ("model/config.json", "model/.env", "model/.cache/token", "model/sub/.netrc"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("secret")
    assert files_in(staged(tmp_path, config("model.name=./model"))) == {
        "config.yaml",
        "data/train.jsonl",
        "model/config.json",
    }


def test_a_link_that_leads_out_of_a_folder_is_refused(here: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (here / "blobs").mkdir()
    (here / "blobs" / "weights").write_text("weights")
    (here / "model").mkdir()
    (here / "model" / "model.safetensors").symlink_to("../blobs/weights")  # as the hub's cache has them
    assert "model/model.safetensors" in files_in(staged(tmp_path, config("model.name=./model")))
    (here / "model" / "config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(
        UserError, match=r"^model\.name: model/config\.json is a link to .*secret, outside of the current"
    ):
        staged(tmp_path / "other", config("model.name=./model"))
