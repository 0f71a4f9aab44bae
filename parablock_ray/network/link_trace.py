"""A CSV file with a line for every client: its link and its computer, as somebody measured them.

    client,up_mbps,down_mbps,latency_ms,compute_factor
    0,20,100,14,1
    1,12,12,35,2.5

The columns may stand in any order. Lines of clients that a run does not have are skipped.
"""

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from parablock_ray.config.network import CLIENT_KEYS
from parablock_ray.errors import UserError

_MOST_DIGITS = 18
_COLUMNS = ("client", *CLIENT_KEYS)


def read_link_trace(path: Path, num_clients: int) -> list[Mapping[str, float]]:
    """The figures of clients 0 to `num_clients` - 1, by column. Raises UserError, naming file and line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            by_client = _read(csv.DictReader(file, skipinitialspace=True), path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"network.trace: cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    missing = [client for client in range(num_clients) if client not in by_client]
    if missing:
        shown = ", ".join(map(str, missing[:8])) + (" …" if len(missing) > 8 else "")
        raise UserError(f"{path}: no line for client(s) {shown}; clients.num is {num_clients}, counted from 0")
    return [by_client[client] for client in range(num_clients)]


def _read(reader: csv.DictReader, path: Path) -> dict[int, Mapping[str, float]]:
    header = reader.fieldnames or []
    if sorted(header) != sorted(_COLUMNS):
        raise UserError(f"{path}:1: the first line must name the columns {','.join(_COLUMNS)} (got {','.join(header)})")
    by_client: dict[int, Mapping[str, float]] = {}
    for cells in reader:
        where = f"{path}:{reader.line_num}"
        if None in cells or None in cells.values():
            raise UserError(f"{where}: must have {len(_COLUMNS)} cells, one for each column")
        client = _client(cells["client"], where)
        if client in by_client:
            raise UserError(f"{where}: client {client} has a line already")
        by_client[client] = {key: _figure(key, cells[key], where) for key in CLIENT_KEYS}
    return by_client


def _client(cell: str, where: str) -> int:
    if not cell.strip().isdecimal() or len(cell) > _MOST_DIGITS:
        raise UserError(f"{where}: client: must be a whole number from 0 (got {cell!r})")
    return int(cell)


def _figure(key: str, cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise UserError(f"{where}: {key}: must be a number (got {cell!r})") from None
    may_be_zero = key == "latency_ms"
    if not math.isfinite(value) or value < 0 or (value == 0 and not may_be_zero):
        raise UserError(f"{where}: {key}: must be {'0 or more' if may_be_zero else 'over 0'}, and finite (got {cell})")
    return value
