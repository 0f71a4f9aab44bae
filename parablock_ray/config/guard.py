"""What YAML of the user's may hold, looked at before anything is made of it: small, plain, and without a way out.

An alias stands for all that its anchor holds, so a kilobyte can stand for gigabytes; a resolver of OmegaConf's such as
`oc.env` would put a secret of the environment where it is written down.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from parablock_ray.errors import UserError

MAX_NODES = 10_000  # values and keys, every alias counted as all that it stands for
MAX_DEPTH = 20
MAX_TEXT = 10_000  # characters of one value
MAX_SIZE = 1_000_000  # characters and values, once every ${key} is what it stands for
MAX_LINKS = 20  # keys that stand for keys that stand for keys

Path = tuple[str, ...]  # keys and places in lists, from the top

_LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_OPENS = r"(?<!\\)(?:\\\\)*\$\{"  # after an odd number of backslashes it is text
_KEY = re.compile(_OPENS + r" *([\w.\[\]]+) *\}")
_NO_KEY = re.compile(_OPENS + r"(?! *[\w.\[\]]+ *\})")


def check_yaml(content: bytes | str, where: str) -> None:
    """Raises UserError that begins with `where` for what no config holds, yaml.YAMLError for what is no YAML."""
    sizes: dict[str, tuple[int, int]] = {}  # anchor → nodes and depth of what it stands for
    inside: list[tuple[str | None, int, int]] = []  # what is open: its anchor, nodes and depth so far
    for event in _events(content):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, num_nodes, depth = inside.pop()
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise UserError(f"{where}: *{event.anchor} stands inside of what it stands for, or for nothing")
            anchor, (num_nodes, depth) = None, sizes[event.anchor]
        else:
            assert isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent), "the only other nodes"
            _check_node(event, where)
            anchor, num_nodes, depth = event.anchor, 1, 1
            if isinstance(event, yaml.CollectionStartEvent):
                inside.append((anchor, num_nodes, depth))
                if len(inside) > MAX_DEPTH:
                    raise UserError(f"{where}: nested deeper than {MAX_DEPTH} levels; a config has a few")
                continue
        if anchor is not None:
            sizes[anchor] = num_nodes, depth
        if inside:
            outer, before, deepest = inside[-1]
            inside[-1] = outer, before + num_nodes, max(deepest, depth + 1)
        if len(inside) + depth > MAX_DEPTH:
            raise UserError(f"{where}: nested deeper than {MAX_DEPTH} levels; a config has a few")
        if sum(nodes for _, nodes, _ in inside) + (0 if inside else num_nodes) > MAX_NODES:
            raise UserError(f"{where}: holds more than {MAX_NODES:,} values, aliases (*) counted; a config has a few")


def _events(content: bytes | str) -> Iterator[yaml.Event]:
    """Those about nodes."""
    for event in yaml.parse(content, Loader=_LOADER):
        if isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent):
            yield event


def _check_node(event: yaml.ScalarEvent | yaml.CollectionStartEvent, where: str) -> None:
    if event.tag is not None:
        raise UserError(f"{where}: not a valid config: it has the tag {event.tag!r}; write plain YAML")
    if not isinstance(event, yaml.ScalarEvent):
        return
    if len(event.value) > MAX_TEXT:
        raise UserError(f"{where}: a value is longer than {MAX_TEXT:,} characters: {event.value[:40]!r}…")
    if "\0" in event.value:
        raise UserError(f"{where}: {event.value[:40]!r} holds a NUL character, which no name and no path may have")
    if _NO_KEY.search(event.value):
        raise UserError(
            f"{where}: not a valid config: {event.value[:80]!r}: only a key of the config may stand in "
            "${…}, like ${name}; variables of the environment and other resolvers are not read, since a run writes "
            "its config down"
        )


def check_expansion(values: Any) -> None:
    """Raises UserError where what `${key}` stands for, counted wherever it stands, is too much, or goes on and on.

    `values`: dicts and lists, before anything in them is resolved.
    """
    _size(values, (), values, {}, 0)


def _size(value: Any, path: Path, root: Any, known: dict[Path, int], num_links: int) -> int:
    """Characters and values of what is resolved. `known`: sizes by path; `num_links`: so many keys stand for one
    another on the way here."""
    if path in known:
        return known[path]
    if num_links > MAX_LINKS:
        raise UserError(f"{'.'.join(path)}: ${{…}} stands for itself, or for more than {MAX_LINKS} others in a row")
    size = 1
    if isinstance(value, str):
        size += len(value)
        for found in _KEY.finditer(value):
            for at, other in _named(found[1], path, root):
                size += _size(other, at, root, known, num_links + 1)
    elif isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            size += _size(item, (*path, str(name)), root, known, num_links)
    if size > MAX_SIZE:
        raise UserError(
            f"{'.'.join(path) or 'the config'}: stands for more than {MAX_SIZE:,} characters, ${{…}} counted"
        )
    known[path] = size
    return size


def _named(key: str, path: Path, root: Any) -> Iterator[tuple[Path, Any]]:
    """What `${key}` in the value at `path` can mean. Nothing: OmegaConf says what is wrong with it."""
    num_dots = len(key) - len(key.lstrip("."))
    parts = (*(path[: len(path) - num_dots] if num_dots else ()), *re.findall(r"\w+", key))
    found: list[tuple[Path, Any]] = [((), root)]
    for part in parts:
        found = [((*at, part), item) for at, value in found for item in _items(value, part)]
    yield from found


def _items(value: Any, name: str) -> list[Any]:
    """Of a dict the values of keys that read like this; of a list the one at this place."""
    if isinstance(value, dict):
        return [item for key, item in value.items() if str(key) == name]
    return value[int(name) : int(name) + 1] if isinstance(value, list) and name.isdecimal() else []
