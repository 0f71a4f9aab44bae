"""Where examples come from: reasoning_gym's generators, a local .jsonl or .parquet file, or a dataset of the hub.

Whatever the source, what comes out is `Example`s; rows.py says which forms the rows of files and hub datasets take.
"""

import dataclasses
import difflib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from parablock_ray.algorithms.rng import generator
from parablock_ray.config.data import GENERATED, DataConfig, check_source
from parablock_ray.config.presets import DATASETS, Columns
from parablock_ray.errors import UserError
from parablock_ray.json_files import from_json, lines
from parablock_ray.training.rows import FORMS, EmptyAnswer, Example, Message, example_of, parts_of

_logger = logging.getLogger(__name__)

FILES = (".jsonl", ".parquet")
MAX_ROWS = 10_000_000  # of a Parquet file: all of them are held in memory

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


def read_examples(data: DataConfig, seed: int) -> list[Example]:
    """All examples of `data.source`, in a fixed order. `seed` matters to generated sources only.

    Raises UserError for a source that cannot be found, reached or read, naming file and line.
    """
    check_source(data)
    if data.source == GENERATED:
        return list(_generated(data, seed))
    if data.source in DATASETS:
        preset = DATASETS[data.source]
        return list(_hub(preset.hub_name, preset.subset, preset.split, data.columns or preset.columns))
    path = Path(data.source)
    try:
        path = path.expanduser()
        is_there = path.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long; a ~user that is not there
        raise UserError(f"data.source: {data.source[:80]!r} is no name of a file: {error}") from None
    if path.suffix in FILES or is_there or data.source.startswith((".", "/", "~")):
        return list(_file(path, data.columns))
    return list(_hub(data.source, None, "train", data.columns))


def _generated(data: DataConfig, seed: int) -> Iterator[Example]:
    """Equal parts of every task.

    Problem k of a task depends on (seed, task, k) alone: asking for more adds to those that were there.
    """
    assert data.num_train is not None  # check_source
    num_examples = data.num_train + data.num_eval
    check_tasks(data.tasks, "data.tasks")
    for position, task in enumerate(data.tasks):
        size = len(range(position, num_examples, len(data.tasks)))
        yield from problems(task, size, generator(seed, f"reasoning_gym {task}"))


def problems(task: str, size: int, random: torch.Generator) -> Iterator[Example]:
    """`size` problems of a reasoning_gym task, made one by one. The first ones are the same for every `size`.

    A task that explains its answers (gsm_symbolic) is learnt with the explanation. Raises UserError for one that
    has no answers. The tasks are checked (`check_tasks`).
    """
    made = problem_maker(task, int(torch.randint(2**31, (), generator=random)), size)
    for problem in (made[i] for i in range(size)):
        answer = problem["metadata"].get("answer_cot") or problem["answer"]
        if not isinstance(answer, str) or not answer.strip():
            raise UserError(f"data.tasks: {task!r} gives no answer to learn from; choose another task")
        yield Example((Message("user", problem["question"]),), input="", answer=answer, task=task, client=None)


def problem_maker(task: str, seed: int, size: int) -> Any:
    """reasoning_gym's dataset of a task, which makes and verifies problems. The task is checked (`check_tasks`)."""
    import reasoning_gym

    name, options = task_options(task)
    return reasoning_gym.create_dataset(name, seed=seed, size=size, **options)


def task_options(task: str) -> tuple[str, dict[str, Any]]:
    """`chain_sum?max_terms=2&max_digits=1` → `chain_sum` and what reasoning_gym is asked for. Values as in YAML."""
    name, _, written = task.partition("?")
    pairs = [pair.partition("=") for pair in written.split("&") if pair]
    return name, {key: yaml.safe_load(value) for key, _, value in pairs}


def check_tasks(tasks: Sequence[str], where: str) -> None:
    """Raises UserError where reasoning_gym is missing, or a task of it is unknown, makes other problems each time, or
    has other options. `where` names what the tasks are from, such as "data.tasks"."""
    try:
        import reasoning_gym.factory
    except ImportError as error:
        raise UserError(
            f"{where}: {GENERATED!r} needs the package reasoning-gym: `pip install 'parablock-ray[demo]'`"
        ) from error
    known = sorted(set(reasoning_gym.factory.DATASETS).difference(NOT_REPRODUCIBLE, [NOT_A_TASK]))
    for task in tasks:
        name = task.partition("?")[0]
        if name in NOT_REPRODUCIBLE:
            raise UserError(f"{where}: {name!r} makes other problems in every process; choose another task")
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=3) or known
            raise UserError(f"{where}: {GENERATED!r} has no task {name!r}; nearest: {', '.join(nearest)}")
        _check_options(task, where)


def _check_options(task: str, where: str) -> None:
    from reasoning_gym.factory import DATASETS

    try:
        name, options = task_options(task)
    except (yaml.YAMLError, ValueError):  # a date that there is not
        raise UserError(f"{where}: {task!r} must be written TASK?option=value&option=value") from None
    allowed = sorted({field.name for field in dataclasses.fields(DATASETS[name][1])} - {"seed", "size"})
    for option in sorted(options.keys() - set(allowed)):
        raise UserError(f"{where}: {name!r} has no option {option!r} (allowed: {', '.join(allowed)})")
    try:
        problem_maker(task, seed=0, size=1)
    except (AssertionError, TypeError, ValueError) as error:  # what its checks of options raise
        raise UserError(f"{where}: {task!r} is refused by {GENERATED}: {error}") from None


def _file(path: Path, columns: Columns | None) -> Iterator[Example]:
    match path.suffix:
        case ".jsonl":
            rows = _jsonl(path)
        case ".parquet":
            rows = _parquet(path)
        case _:
            raise UserError(
                f"data.source: {path} must be a .jsonl file (one JSON object a line) or a .parquet file, with {FORMS}"
            )
    for row_name, row in rows:
        for where, part in parts_of(row, columns, row_name):
            yield example_of(part, columns, where, task=path.stem)


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    """Every line's object, with what names it."""
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = from_json(line.rstrip(b"\r\n").decode("utf-8-sig"))
        except ValueError as error:  # of the JSON or of its UTF-8
            raise UserError(f"{path}:{number}: this line is not JSON: {error}") from error
        yield f"{path}:{number}", row


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        yield from lines(path)
    except OSError as error:
        raise UserError(f"data.source: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"data.source: {path}: {error}") from None


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    """Every row, with what names it."""
    import pyarrow
    from pyarrow import parquet

    content = pyarrow.BufferReader(_content(path))
    try:
        file = parquet.ParquetFile(content)
        if file.metadata.num_rows > MAX_ROWS:  # a kilobyte can stand for so many equal ones
            raise UserError(f"data.source: {path} has {file.metadata.num_rows:,} rows; at most {MAX_ROWS:,} are read")
        rows = file.read().to_pylist()
    except UserError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # a spoilt page is an OSError, text a ValueError
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: not a whole Parquet file: {reason}; write or download it again") from error
    for number, row in enumerate(rows):
        yield f"{path} row {number}", row


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"data.source: cannot read {path}: {error.strerror}") from error


def _hub(name: str, subset: str | None, split: str, columns: Columns | None) -> Iterator[Example]:
    """The examples of a hub dataset but for those without an answer, which are counted in a warning."""
    import datasets

    try:
        rows = datasets.load_dataset(name, subset, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"data.source: cannot load {name!r} from the hub: {error}; allowed: {GENERATED}, a local .jsonl or "
            f".parquet file, {', '.join(DATASETS)}, or a hub dataset with a `train` split (network needed)"
        ) from error
    num_empty = 0
    for number, row in enumerate(rows):
        for where, part in parts_of(row, columns, f"{name} row {number}"):
            try:
                yield example_of(part, columns, where, task=name)
            except EmptyAnswer:
                num_empty += 1
    if num_empty:
        _logger.warning("%s: %d examples have no answer and are left out", name, num_empty)
