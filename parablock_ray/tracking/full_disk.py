"""A disk that takes no more, told as what it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parablock_ray.errors import RunFailed

RESUME = "parablock resume"


@contextmanager
def told_if_full(place: Path, then: str) -> Iterator[None]:
    """Raises RunFailed where what is written to `place`, a file or a folder, cannot be. `then`: what to do once there
    is room."""
    try:
        yield
    except OSError as error:
        raise RunFailed(f"{place}: cannot be written to: {error.strerror or error}; make room, then {then}") from None
