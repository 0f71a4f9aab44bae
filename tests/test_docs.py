"""The documents say what is there: every config key with its defaults, every field of a run folder, no dead link."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from parablock_ray.config import Config
from parablock_ray.config.differences import CHANGE_NO_VALUE, WHO_DOES_IT
from parablock_ray.config.presets import DATASETS
from parablock_ray.config.sweep import SweepFile
from parablock_ray.tracking.events import Committed, Dropped, KeptRank, Span
from parablock_ray.tracking.rounds import RoundBook
from tests.config.names import method_names

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(file for room in ("docs", "launch") for file in (ROOT / room).rglob("*.md"))])

ROW = re.compile(r"^\| `([a-z_.0-9]+)` \| ([^|]*) \|", re.MULTILINE)
CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href|srcset)=\"([^\"]+)\"")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def members_of(annotation: Any) -> Iterator[Any]:
    """What a key may hold, unions taken apart."""
    if get_origin(annotation) is Annotated:
        yield from members_of(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from members_of(member)
    else:
        yield annotation


def is_section(member: Any) -> bool:
    return isinstance(member, type) and issubclass(member, BaseModel)


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key with its default or "required", once for each model that has it."""
    for name, field in model.model_fields.items():
        members = list(members_of(field.annotation))
        if all(is_section(member) for member in members):
            for section in members:
                yield from keys_of(section, f"{prefix}{name}.")
        else:
            default = field.get_default(call_default_factory=True)
            yield prefix + name, "required" if default is PydanticUndefined else default


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_every_config_key_is_documented_with_its_defaults() -> None:
    rows = dict(ROW.findall((ROOT / "docs" / "configuration.md").read_text("utf-8")))
    defaults = defaultdict(list)
    for key, default in keys_of(Config):
        defaults[key].append(default)
    assert sorted(defaults.keys() - rows.keys()) == [], "keys that are not documented"
    assert sorted(rows.keys() - defaults.keys()) == [], "keys that are not there"
    # Required, but for the default model.
    tags = {key for key in defaults if key.endswith(("server_optimizer.name", "data.split.name", "server.rule.name"))}
    for key, values in defaults.items():
        written = [yaml.safe_load(text) for text in CODE.findall(rows[key])]
        for value in values:
            if value == "required":
                assert "required" in rows[key] or key in tags, key
            else:
                assert plain(value) in written, f"{key}: default {value!r} is not in {rows[key]!r}"


def test_every_key_of_a_sweep_file_is_documented_with_its_default() -> None:
    rows = dict(ROW.findall((ROOT / "docs" / "sweeps-and-reports.md").read_text("utf-8")))
    assert list(rows) == list(SweepFile.model_fields)
    for key, default in keys_of(SweepFile):
        assert default == "required" or plain(default) in [yaml.safe_load(text) for text in CODE.findall(rows[key])]


@pytest.mark.parametrize("document", ["README.md", "docs/methods.md", "docs/configuration.md"])
def test_every_method_is_named(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    assert [name for name in method_names() if f"`{name}`" not in text] == []


@pytest.mark.parametrize("name", DATASETS)
def test_every_preset_is_documented_with_its_licence(name: str) -> None:
    preset = DATASETS[name]
    lines = (ROOT / "docs" / "data.md").read_text("utf-8").splitlines()
    [row] = [line for line in lines if line.startswith(f"| `{name}`")]
    assert f"`{preset.hub_name}`" in row
    assert row.endswith(f"| {preset.licence} |")
    assert all(f"`{column}`" in row for column in preset.columns.model_dump(exclude_none=True).values())


def test_every_field_of_a_run_folder_is_documented() -> None:
    book = RoundBook(num_rounds=1)
    book.add(Span("compute", 0, 0, client=0, worker=0, start_s=0.0, end_s=1.0, loss=1.0))
    book.add(Span("download", 0, 0, client=0, worker=0, start_s=1.0, end_s=2.0))
    kept = KeptRank("layers.0.q_proj", 1, 0.9, (1.0,))
    [metrics] = book.add(Committed(0, 0, 1.0, (0,), (1.0,), 1, update_norm=1.0, server_s=0.1, kept_ranks=(kept,)))
    assert metrics.keys() == set(described("metrics.jsonl"))
    events = described("events.jsonl")
    of_events = {field.name for event in (Span, Committed, Dropped) for field in fields(event)}
    assert of_events == set(events) - {"event"}
    assert [field.name for field in fields(KeptRank) if f"`{field.name}`" not in events["kept_ranks"]] == []


def described(part: str) -> dict[str, str]:
    """Name → the row that describes it, of the tables under a heading of docs/run-folder.md."""
    text = (ROOT / "docs" / "run-folder.md").read_text("utf-8")
    [section] = re.findall(rf"^## {re.escape(part)}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    return {name: row for row in rows for name in CODE.findall(row.split("|")[1])}


def test_every_room_and_every_file_of_the_package_is_named() -> None:
    """In docs/architecture.md, under the room that it lies in."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    [rooms] = re.findall(r"## The rooms\n\n```\n(.*?)```", text, re.DOTALL)
    named: defaultdict[str, list[str]] = defaultdict(list)
    room = ""
    for line in rooms.splitlines():
        if not line.startswith(" "):
            room = line.split()[0].rstrip("/")
        named[room] += re.findall(r"\w+\.py", line)
    of_the_top = {file for room, files in named.items() if room.endswith(".py") for file in files}
    package = ROOT / "parablock_ray"
    for file in package.rglob("*.py"):
        room = str(file.parent.relative_to(package))
        assert file.name == "__init__.py" or file.name in (of_the_top if room == "." else named[room]), file


def test_what_may_change_when_a_run_goes_on_is_documented() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text("utf-8")
    assert [key for key in sorted(CHANGE_NO_VALUE | WHO_DOES_IT) if f"`{key}`" not in text] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_relative_links_lead_somewhere(document: Path) -> None:
    for link in links_in(document):
        target, _, heading = link.partition("#")
        file = document.parent / target if target else document
        assert file.exists(), link
        if heading:
            assert heading in slugs_in(file), link


def links_in(document: Path) -> Iterator[str]:
    for groups in LINK.findall(FENCED.sub("", document.read_text("utf-8"))):
        link = "".join(groups)
        if not re.match(r"[a-z]+:", link):
            yield link


def slugs_in(document: Path) -> set[str]:
    """The anchors that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", document.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
