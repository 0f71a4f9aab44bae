"""One process at a time in a folder."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from parablock_ray.errors import UserError
from parablock_ray.json_files import json_file

_LOCK = ".lock"


def take(folder: Path) -> TextIO | None:
    """The folder's lock, held for as long as this file is open; None where another process holds it. Raises OSError.

    The system lets go of it when its process is gone, however it ended. A file left behind means nothing.
    """
    file = (folder / _LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep the run folder for this process. Raises UserError that names the process that has it."""
    path = folder / _LOCK
    try:
        file = take(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {error.strerror}") from None
    if file is None:
        raise UserError(f"{folder}: a run is going on there{_holder(path)}; wait for it, or end it first")
    with file:
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _holder(path: Path) -> str:
    try:
        holder = json_file(path)
        return f" (process {holder['pid']} on {holder['host']})"
    except (OSError, ValueError, KeyError, TypeError):  # it has just come or is about to go
        return ""
