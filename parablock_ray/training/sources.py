"""Where examples come from: reasoning_gym's generators, a local .jsonl file, or a dataset of the hub.

Whatever the source, what comes out is `Example`s. Rows of files and hub datasets take one of two forms:

    Alpaca   {"instruction": "Add the numbers.", "input": "2 and 3", "output": "5"}      `input` may be left out
    chat     {"messages": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]}

and may carry `client` (text or a whole number) and `task` (text), which `data.split: natural` goes by. Of a
conversation the last turn is learnt; the turns before it are its prompt.
"""

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from parablock_ray.algorithms.rng import generator
from parablock_ray.config.data import GENERATED, DataConfig, check_source
from parablock_ray.errors import UserError

ROLES = ("system", "user", "assistant")
FORMS = "`instruction` and `output` (Alpaca) or `messages` (chat)"

# Seen in reasoning_gym 0.1.25 to make other problems in another process with the same seed: they use the global
# generator, or the order of a set of strings (PYTHONHASHSEED).
NOT_REPRODUCIBLE = (
    "codeio",
    "intermediate_integration",
    "isomorphic_strings",
    "knight_swap",
    "list_functions",
    "polynomial_multiplication",
    "ransom_note",
    "word_ladder",
)
NOT_A_TASK = "composite"  # a mixture of others, which wants a configuration of its own


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


def read_examples(data: DataConfig, seed: int) -> list[Example]:
    """All examples of `data.source`, in a fixed order. `seed` matters to generated sources only.

    Raises UserError for a source that cannot be found, reached or read, naming file and line.
    """
    check_source(data)
    if data.source == GENERATED:
        return list(_generated(data, seed))
    path = Path(data.source).expanduser()
    if path.suffix == ".jsonl" or path.exists() or data.source.startswith((".", "/", "~")):
        return list(_jsonl(path))
    return list(_hub(data.source))


def _generated(data: DataConfig, seed: int) -> Iterator[Example]:
    """Equal parts of every task. A task that explains its answers (gsm_symbolic) is learnt with the explanation.

    Problem k of a task depends on (seed, task, k) alone: asking for more adds to those that were there.
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise UserError(
            f"data.source {GENERATED!r} needs the package reasoning-gym: `pip install 'parablock-ray[demo]'`"
        ) from error
    _check_tasks(data.tasks, sorted(set(DATASETS).difference(NOT_REPRODUCIBLE, [NOT_A_TASK])))
    assert data.num_train is not None  # check_source
    num_examples = data.num_train + data.num_eval
    for position, task in enumerate(data.tasks):
        size = len(range(position, num_examples, len(data.tasks)))
        task_seed = torch.randint(2**31, (), generator=generator(seed, f"reasoning_gym {task}")).item()
        problems = reasoning_gym.create_dataset(task, seed=task_seed, size=size)
        for problem in (problems[i] for i in range(size)):
            answer = problem["metadata"].get("answer_cot") or problem["answer"]
            if not isinstance(answer, str) or not answer.strip():
                raise UserError(f"data.tasks: {task!r} gives no answer to learn from; choose another task")
            question = (Message("user", problem["question"]),)
            yield Example(messages=question, input="", answer=answer, task=task, client=None)


def _check_tasks(tasks: tuple[str, ...], known: list[str]) -> None:
    for task in tasks:
        if task in NOT_REPRODUCIBLE:
            raise UserError(f"data.tasks: {task!r} makes other problems in every process; choose another task")
        if task not in known:
            nearest = difflib.get_close_matches(task, known, n=3) or known
            raise UserError(f"data.tasks: {GENERATED!r} has no task {task!r}; nearest: {', '.join(nearest)}")


def _jsonl(path: Path) -> Iterator[Example]:
    if path.suffix != ".jsonl":
        raise UserError(f"data.source: {path} must be a .jsonl file: one JSON object a line, with {FORMS}")
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"data.source: cannot read {path}: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except ValueError as error:  # of the JSON or of its UTF-8
            raise UserError(f"{path}:{number}: this line is not JSON: {error}") from error
        yield _example(row, where=f"{path}:{number}", task=path.stem)


def _hub(name: str) -> Iterator[Example]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"data.source {name!r} needs the package datasets: `pip install datasets`") from error
    try:
        rows = datasets.load_dataset(name, split="train")
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"data.source: cannot load {name!r} from the hub: {error}; "
            f"allowed: {GENERATED}, a local .jsonl file, or a hub dataset with a `train` split (network needed)"
        ) from error
    for number, row in enumerate(rows):
        yield _example(row, where=f"{name} row {number}", task=name)


def _example(row: Any, where: str, task: str) -> Example:
    """One row in either form; `where` names it in errors."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object with {FORMS}, found {_kind(row)}")
    if row.get("messages") is not None:
        *messages, last = _messages(row["messages"], where)
        if last.role != "assistant" or not messages:
            raise UserError(f"{where}: `messages` must end with the assistant's answer to a turn before it")
        extra, answer = "", last.content
    elif "instruction" in row and "output" in row:
        messages = [Message("user", _text(row, "instruction", where))]
        extra = _text(row, "input", where) if row.get("input") is not None else ""
        answer = _text(row, "output", where)
    else:
        raise UserError(f"{where}: needs {FORMS}; found {', '.join(sorted(row)) or 'no fields'}")
    if not answer.strip():
        raise UserError(f"{where}: the answer is empty; remove the line or give it one")
    if row.get("task") is not None:
        task = _text(row, "task", where)
    return Example(tuple(messages), input=extra, answer=answer, task=task, client=_client(row, where))


def _messages(turns: Any, where: str) -> list[Message]:
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{where}: `messages` must be a list of turns, found {_kind(turns)}")
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict) or turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
            raise UserError(
                f"{where}: turn {number} of `messages` must have a `role` ({', '.join(ROLES)}) and a text `content`"
            )
    return [Message(turn["role"], turn["content"]) for turn in turns]


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise UserError(f"{where}: `{key}` must be text, found {_kind(value)}")
    return value


def _client(row: dict[str, Any], where: str) -> str | None:
    value = row.get("client")
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise UserError(f"{where}: `client` must be text or a whole number, found {_kind(value)}")
    return None if value is None else str(value)


def _kind(value: Any) -> str:
    """What JSON calls a value."""
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
    return "an empty list" if value == [] else names.get(type(value), "an object")
