"""Rows of files and hub datasets, in a known form or with named columns, as examples.

    Alpaca          {"instruction": "Add the numbers.", "input": "2 and 3", "output": "5"}      `input` may be left out
    chat            {"messages": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]}
    Self-Instruct   {"instruction": "Add the numbers.", "instances": [{"input": "2 and 3", "output": "5"}, …]}

A row may carry `client` (text or a whole number) and `task` (text), which `data.split` goes by. Of a conversation
the last turn is learnt; the turns before it are its prompt. With `data.columns` a row is read as Alpaca's with other
names; every row must have the columns that are named, if only as null.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from parablock_ray.config.presets import Columns
from parablock_ray.errors import UserError

ROLES = ("system", "user", "assistant")
FORMS = "`instruction` and `output` (Alpaca), `messages` (chat) or `instruction` and `instances` (Self-Instruct)"

STANDARD = {key: key for key in Columns.model_fields}  # what the known forms call their columns


class Message(NamedTuple):
    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """What the model reads, and the answer that it learns to give."""

    messages: tuple[Message, ...]  # one question, or the conversation up to the answer
    input: str  # Alpaca's `input`, which belongs to the last message; "" where there is none
    answer: str
    task: str
    client: str | None


class EmptyAnswer(UserError):
    """A row without anything to learn. In a file its owner can mend it; of a hub dataset it can only be left out."""


def parts_of(row: Any, columns: Columns | None, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of one example each that a row stands for, with what names them: itself, or Self-Instruct's instances,
    each as a row of Alpaca's form. `where` names the row. Raises UserError for what is no object or no instance."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object with {FORMS}, found {_kind(row)}")
    if columns is not None or not _has_instances(row):
        yield where, row
        return
    for number, instance in enumerate(row["instances"], start=1):
        if not isinstance(instance, dict) or "output" not in instance:
            raise UserError(f"{where}: instance {number} of `instances` must have `output` and may have `input`")
        yield f"{where}, instance {number}", {**row, **instance}


def example_of(row: Mapping[str, Any], columns: Columns | None, where: str, task: str) -> Example:
    """The example of a row from `parts_of`. `where` names the row, `task` is that of rows without one.

    Raises UserError for a row in no known form or without a column that is named, EmptyAnswer for an empty answer.
    """
    if columns is not None:
        return _instructed(row, _named(row, columns, where), where, task)
    if row.get("messages") is not None:
        return _conversation(row, where, task)
    if "instruction" in row and "output" in row:
        return _instructed(row, STANDARD, where, task)
    found = ", ".join(sorted(row)) or "no fields"
    raise UserError(f"{where}: needs {FORMS}, or data.columns to say what its columns hold; found {found}")


def _has_instances(row: Mapping[str, Any]) -> bool:
    """Whether it is in Self-Instruct's form and in no other."""
    is_other = row.get("messages") is not None or "output" in row
    return "instruction" in row and isinstance(row.get("instances"), list) and not is_other


def _named(row: Mapping[str, Any], columns: Columns, where: str) -> dict[str, str]:
    """The columns that are named, all of which the row has."""
    names: dict[str, str] = columns.model_dump(exclude_none=True)
    for key, name in names.items():
        if name not in row:
            there = ", ".join(sorted(row)) or "none"
            raise UserError(f"{where}: data.columns.{key}: there is no column {name!r}; there are: {there}")
    return names


def _instructed(row: Mapping[str, Any], names: Mapping[str, str], where: str, task: str) -> Example:
    return Example(
        messages=(Message("user", _text(row, names["instruction"], where)),),
        input=_optional_text(row, names.get("input"), where) or "",
        answer=_answer("" if row[names["output"]] is None else _text(row, names["output"], where), where),
        task=_optional_text(row, names.get("task"), where) or task,
        client=_client(row, names.get("client"), where),
    )


def _conversation(row: Mapping[str, Any], where: str, task: str) -> Example:
    *messages, last = _messages(row["messages"], where)
    if last.role != "assistant" or not messages:
        raise UserError(f"{where}: `messages` must end with the assistant's answer to a turn before it")
    return Example(
        messages=tuple(messages),
        input="",
        answer=_answer(last.content, where),
        task=_optional_text(row, "task", where) or task,
        client=_client(row, "client", where),
    )


def _messages(turns: Any, where: str) -> list[Message]:
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{where}: `messages` must be a list of turns, found {_kind(turns)}")
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict) or turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
            raise UserError(
                f"{where}: turn {number} of `messages` must have a `role` ({', '.join(ROLES)}) and a text `content`"
            )
    return [Message(turn["role"], turn["content"]) for turn in turns]


def _answer(text: str, where: str) -> str:
    if not text.strip():
        raise EmptyAnswer(f"{where}: the answer is empty; remove the line or give it one")
    return text


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row[name]
    if not isinstance(value, str):
        raise UserError(f"{where}: `{name}` must be text, found {_kind(value)}")
    return value


def _optional_text(row: Mapping[str, Any], name: str | None, where: str) -> str | None:
    return None if name is None or row.get(name) is None else _text(row, name, where)


def _client(row: Mapping[str, Any], name: str | None, where: str) -> str | None:
    value = None if name is None else row.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise UserError(f"{where}: `{name}` must be text or a whole number, found {_kind(value)}")
    return None if value is None else str(value)


def _kind(value: Any) -> str:
    """What JSON calls a value."""
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
    return "an empty list" if value == [] else names.get(type(value), "an object")
