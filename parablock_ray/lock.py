"""One process at a time in a run folder."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parablock_ray.errors import UserError

_LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep the folder for this process. Raises UserError that names the process that has it.

    The system lets go of the lock when its process is gone, however it ended. A file left behind means nothing.
    """
    path = folder / _LOCK
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: a run is going on there{_holder(path)}; wait for it, or end it first") from None
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text("utf-8"))
        return f" (process {holder['pid']} on {holder['host']})"
    except (OSError, ValueError, KeyError, TypeError):  # it has just come or is about to go
        return ""
