"""JSON and JSON Lines of whatever origin: what is wrong with them is a ValueError, and they take no more memory than a
file of ours could."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_BYTES = 64 * 2**20  # of a JSON file, and of a line of JSON Lines: far more than any of ours has


def from_json(text: str | bytes) -> Any:
    """`json.loads`; a ValueError also for what is nested too deep, and for halves of characters, which nothing that
    takes text takes."""
    try:
        value = json.loads(text)
        is_escaped = b"\\u" in text if isinstance(text, bytes) else "\\u" in text
        if is_escaped:
            json.dumps(value, ensure_ascii=False).encode()  # "\ud800" is JSON, and a str, and no text
    except RecursionError:
        raise ValueError("nested too deep") from None
    return value


def json_file(path: Path) -> Any:
    """What a JSON file holds. Raises OSError, ValueError."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES:,} bytes")
    return from_json(content.decode("utf-8"))


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Every line with its end, and its number from 1. Raises OSError; ValueError that says which line is too long."""
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(MAX_BYTES + 1)
            if not line:
                return
            if len(line) > MAX_BYTES:
                raise ValueError(f"line {number} is longer than {MAX_BYTES:,} bytes")
            yield number, line
