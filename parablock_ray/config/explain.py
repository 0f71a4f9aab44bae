"""Pydantic's findings as one clear line a mistake: the key, what is allowed, the nearest known key."""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "distribution": ("a number, {{dist: lognormal, median: …, sigma: …}} or {{dist: uniform, low: …, high: …}}"),
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "model_attributes_type": "a mapping",
    "model_type": "a mapping",
    "string_pattern_mismatch": "a name of letters, digits and . _ + = -",
    "string_too_short": "text, not empty",
    "string_type": "text",
    "tuple_type": "a list",
}
_LONGEST_VALUE = 80  # characters of a wrong value that a message repeats
_MOST_MISTAKES = 50  # that are told at once


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """One line for each wrong key of a `root` that failed to validate."""
    mistakes: dict[str, tuple[_Place, list[ErrorDetails]]] = {}
    for detail in error.errors(include_url=False):
        place = _place(detail["loc"], root)
        mistakes.setdefault(place.key, (place, []))[1].append(detail)  # one per member of a union
    told = [_line(*mistake, root) for mistake in itertools.islice(mistakes.values(), _MOST_MISTAKES)]
    more = len(mistakes) - len(told)
    return "\n".join([*told, *([f"and {more} more"] if more else [])])


@dataclass(frozen=True)
class _Place:
    """Where a mistake is."""

    key: str  # dotted, as the user writes it
    section: type[BaseModel]  # holds the last name of the key
    choices: Sequence[type[BaseModel]]  # what may stand at the key; empty for a plain value


def _place(location: tuple[int | str, ...], root: type[BaseModel]) -> _Place:
    """A pydantic location without the tags of unions, which no user writes."""
    key, section, choices, annotation = "", root, [root], None
    for part in location:
        if len(choices) > 1:
            choices = [model for model in choices if part in _tags(model)]
        elif choices:
            section = choices[0]
            key = f"{key}.{part}" if key else str(part)
            field = section.model_fields.get(str(part))
            annotation = field.annotation if field else None
            choices = list(_models(annotation))
        elif isinstance(part, int):
            key = f"{key}[{part}]"
        elif get_origin(annotation) is dict and part != "[key]":
            key, annotation = f"{key}.{part}", get_args(annotation)[1]
    return _Place(key, section, choices)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The config models that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for member in get_args(annotation):
        yield from _models(member)


def _tags(model: type[BaseModel]) -> tuple[str, ...]:
    """The values of the key that tells the members of a union apart."""
    key = next(key for key in ("name", "dist") if key in model.model_fields)
    return get_args(model.model_fields[key].annotation)


def _line(place: _Place, details: list[ErrorDetails], root: type[BaseModel]) -> str:
    detail = details[0]
    context = detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            return f"{place.key}: {_unknown_key(place, root)}"
        case "missing":
            return f"{place.key}: required, but missing"
        case "union_tag_not_found":
            allowed = [tag for model in place.choices for tag in _tags(model)]
            return f"{place.key}.name: required, but missing ({_listed(allowed)})"
        case "union_tag_invalid":
            noun, allowed = place.key.rpartition(".")[2], _quoted(context["expected_tags"])
            nearest = _nearest(context["tag"], allowed)
            return f"{place.key}.name: unknown {noun} {context['tag']!r}{nearest} ({_listed(allowed)})"
        case "value_error":
            return f"{place.key}: {context['error']}" if place.key else str(context["error"])
        case _:
            return f"{place.key}: {_wrong_value(details)}"


def _unknown_key(place: _Place, root: type[BaseModel]) -> str:
    parent, _, name = place.key.rpartition(".")
    allowed = list(place.section.model_fields)
    elsewhere = [key for key in _known_keys(root) if key.endswith(f".{name}")]
    if place.section is not root and place.key in elsewhere:
        hint = f" with this {parent}.name"
    else:
        hint = _nearest(name, allowed) or _nearest(name, elsewhere, cutoff=0)
    return f"unknown key{hint} ({_listed(allowed)})"


def _known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for section in _models(field.annotation):
            yield from _known_keys(section, f"{prefix}{name}.")


def _wrong_value(details: list[ErrorDetails]) -> str:
    expected = " or ".join(dict.fromkeys(_expected(detail) for detail in details))
    value = details[0]["input"]
    shown = repr(value) if isinstance(value, str) else json.dumps(value)
    if len(shown) > _LONGEST_VALUE:
        shown = f"{shown[:_LONGEST_VALUE]}…"
    nearest = _nearest(value, _quoted(expected)) if isinstance(value, str) else ""
    return f"must be {expected} (got {shown}){nearest}"


def _expected(detail: ErrorDetails) -> str:
    template = _EXPECTED.get(detail["type"])
    if template is None:
        return f"valid: {detail['msg']}"
    limits = {key: int(x) if isinstance(x, float) and x.is_integer() else x for key, x in detail.get("ctx", {}).items()}
    return template.format_map(limits)


def _nearest(word: str, allowed: Sequence[str], cutoff: float = 0.6) -> str:
    matches = get_close_matches(word, allowed, n=1, cutoff=cutoff)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _listed(allowed: Sequence[str]) -> str:
    return f"allowed: {', '.join(allowed)}"
