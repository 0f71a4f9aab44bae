"""Task files: JSON Lines, a row an example, checked against a model of the row."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from parablock_ray.config.explain import explain
from parablock_ray.errors import UserError
from parablock_ray.json_files import from_json, lines

Text = Annotated[str, Field(min_length=1)]


class Row(BaseModel):
    """A row may hold more than the fields that are read."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class GSM8KRow(Row):
    question: Text
    answer: Text  # the reasoning, then `#### number`


class ChoiceRow(Row):
    question: Text
    choices: Annotated[list[Text], Field(min_length=2)]
    answer: Annotated[int, Field(ge=0)]  # the right choice, counted from 0


class InstructionRow(Row):
    prompt: Text
    instruction_id_list: Annotated[list[str], Field(min_length=1)]
    arguments: Annotated[list[dict[str, Any]], Field(alias="kwargs")]  # one for each instruction


class ConversationRow(Row):
    question_id: int | str
    turns: Annotated[list[Text], Field(min_length=1)]  # what the user says, turn after turn


AnyRow = TypeVar("AnyRow", bound=Row)
Made = TypeVar("Made")


def read_rows(path: Path, kind: type[AnyRow], num: int, make: Callable[[AnyRow], Made]) -> list[Made]:
    """The first `num` rows of a file, each as `make` turns it into what a task needs.

    Raises UserError, naming file and line, for what is not such a row; `make` says so with a ValueError.
    """
    made: list[Made] = []
    for number, line in _lines(path):
        if len(made) == num:
            break
        if line.strip():
            made.append(_made(line, f"{path}:{number}", kind, make))
    if not made:
        raise UserError(f"{path}: holds no examples; it must have a JSON object a line, with {_fields(kind)}")
    return made


def existing(path: Path) -> Path:
    """Raises UserError where there is no such file."""
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'there is no such file'}; name a task file")
    return path


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        yield from lines(existing(path))
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read: {reason}") from None


def _made(line: bytes, where: str, kind: type[AnyRow], make: Callable[[AnyRow], Made]) -> Made:
    try:
        found = from_json(line.rstrip(b"\r\n").decode("utf-8-sig"))
    except ValueError as error:  # of the JSON or of its UTF-8
        raise UserError(f"{where}: this line is not JSON, is the file cut? ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{where}: must be a JSON object with {_fields(kind)}")
    try:
        row = kind.model_validate(found)
    except ValidationError as error:
        there = ", ".join(found) or "nothing"
        raise UserError(f"{where}: {'; '.join(explain(error, kind).splitlines())} (there is {there})") from None
    try:
        return make(row)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def _fields(kind: type[Row]) -> str:
    return ", ".join(f"`{field.alias or name}`" for name, field in kind.model_fields.items())
