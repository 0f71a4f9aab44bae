"""What a job takes along: its config, whole, and the files that the config names by a relative path."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from rich.filesize import decimal

import parablock_ray
from parablock_ray.config import Config, save_resolved
from parablock_ray.errors import UserError
from parablock_ray.named_files import named_paths

CONFIG_FILE = "config.yaml"
MAX_BYTES = 512 * 2**20  # Ray refuses a packed working directory from here on; ours is counted before it is packed

_NUM_BIGGEST_TOLD = 3


def stage(config: Config, folder: Path, with_package: bool) -> None:
    """Fills an empty folder. With the package itself too, the cluster needs only what the package depends on.

    Of folders what is not hidden goes along: no .env, no .git, and no .gitignore, by which Ray would leave files out.

    Raises UserError for files that are too much for a job, or that do not lie in the current folder.
    """
    files = sorted({file for key, path in relative_paths(config) for file in _files_in(key, path)})
    refuse_too_much(files)
    save_resolved(config, folder / CONFIG_FILE)
    for file in files:
        copy = folder / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    if with_package:
        package = Path(parablock_ray.__file__).parent
        shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))


def relative_paths(config: Config) -> Iterator[tuple[str, Path]]:
    """The files and folders of this machine that the config names by a relative path, each with its key."""
    for key, name in named_paths(config):
        path = Path(name)
        if not path.expanduser().is_absolute() and path.exists():
            yield key, path


def _files_in(key: str, path: Path) -> Iterator[Path]:
    inside = Path(os.path.normpath(path))
    if inside.parts[:1] == ("..",):
        raise UserError(
            f"{key}: {path} lies outside of the current folder, which stands for the job's; submit from a folder that "
            "holds it, or give an absolute path that the cluster has"
        )
    if path.is_file():
        yield inside
    for file in sorted(path.rglob("*")):
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts):
            _refuse_way_out(key, path, file)
            yield Path(os.path.normpath(file))


def _refuse_way_out(key: str, folder: Path, file: Path) -> None:
    """Raises UserError for a link in a folder to what lies neither in it nor in the current one: nobody named that."""
    target = file.resolve()
    if not any(target.is_relative_to(home.resolve()) for home in (folder, Path())):
        raise UserError(
            f"{key}: {file} is a link to {target}, outside of the current folder, which does not go along; copy it "
            "into the folder, or give an absolute path that the cluster has"
        )


def refuse_too_much(files: list[Path]) -> None:
    """Raises UserError that names the biggest files where they are too much for a job to take along."""
    sizes = {file: file.stat().st_size for file in files}
    if sum(sizes.values()) < MAX_BYTES:
        return
    biggest = sorted(files, key=lambda file: -sizes[file])[:_NUM_BIGGEST_TOLD]
    told = ", ".join(f"{file} ({decimal(sizes[file])})" for file in biggest)
    raise UserError(
        f"a job takes along less than {decimal(MAX_BYTES)}, and the files that the config names by relative paths have "
        f"{decimal(sum(sizes.values()))}, the biggest: {told}; put them where every node of the cluster sees them and "
        "give absolute paths"
    )
