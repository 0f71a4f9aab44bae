"""The driver's part of a checkpoint: what it writes down itself, and how a run is taken up from there."""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from parablock_ray.checkpoint import Checkpoint, clear_unfinished, discard_after, newest, sync
from parablock_ray.config import Config, differing_keys, fingerprint
from parablock_ray.config.differences import CHANGE_NO_VALUE, WHO_DOES_IT
from parablock_ray.config.explain import explain
from parablock_ray.errors import RunFailed, UserError
from parablock_ray.json_files import from_json, lines
from parablock_ray.tracking.evaluations import FILE as EVALUATIONS
from parablock_ray.tracking.evaluations import checked_row
from parablock_ray.tracking.events import Committed, Event, Span, from_row
from parablock_ray.training.checkpoints import FOLDER

_logger = logging.getLogger(__name__)

Complete = Callable[[int, Mapping[str, Any]], None]  # `Runtime.complete_checkpoint`


@dataclass(frozen=True)
class Resumed:
    """Where a run is taken up: a checkpoint, and all that was told of the rounds up to its own.

    `lines` of `events.jsonl`, and the events that they hold; `evaluations`: rows of `evaluations.jsonl`.
    """

    saved: Checkpoint
    lines: Sequence[str]
    events: Sequence[Event]
    evaluations: Sequence[Mapping[str, Any]]

    @property
    def loss_before(self) -> float:
        return float(self.saved.about["loss_before"])

    @property
    def clock_s(self) -> float:
        """The end of what was told."""
        commits = [event.time_s for event in self.events if isinstance(event, Committed)]
        return max(*commits, *(event.end_s for event in self.events if isinstance(event, Span)))


class Completer:
    """Lets a checkpoint be used once everything up to its round is told, and in `events.jsonl`, and on the disk.

    `num_done`: rounds of a resumed run, whose events come again.
    """

    def __init__(self, complete: Complete, config: Config, loss_before: float, num_done: int) -> None:
        self._complete, self._config = complete, config.checkpoint
        self._events_file = Path(config.out) / "events.jsonl"
        self._about = {
            "fingerprint": fingerprint(config),
            "config": config.model_dump(mode="json"),
            "loss_before": loss_before,
        }
        self._is_secret = config.secure_aggregation.enabled and config.method.staleness > 0
        self._num_done = num_done
        self._also: int | None = None  # a round with a checkpoint beside those that are due
        self._num_complete = 0  # rounds, of those that we were told of
        self._num_events: Counter[int] = Counter()  # by round

    def checkpoint_at(self, round: int) -> None:
        """See Runtime.checkpoint_at. Raises RunFailed where there can be none."""
        if self._is_secret:
            raise RunFailed(
                "ended by SIGTERM, without a checkpoint: with secure_aggregation.enabled and method.staleness over 0 "
                "the server does not know what is pending at the clients; run it again"
            )
        self._also = round

    def told(self, event: Event, num_complete: int) -> None:
        """The sinks know of this event, with which so many rounds, from the first, are complete."""
        self._num_events[event.round] += 1
        for round in range(self._num_complete, num_complete):
            if round >= self._num_done and (round == self._also or self._config.is_due(round)):
                self._seal(round)
        self._num_complete = num_complete

    def _seal(self, round: int) -> None:
        sync(self._events_file)
        num_events = sum(num for each, num in self._num_events.items() if each <= round)
        self._complete(round, {**self._about, "num_events": num_events})


def find_resumed(folder: Path, config: Config) -> Resumed:
    """The last usable checkpoint of the run in `folder`, which is to go on with `config`. Raises UserError, also where
    there is none."""
    resumed, wrong = last_resumed(folder, config)
    if resumed is None:
        why = f"no checkpoint can be used: {'; '.join(wrong)}" if wrong else "it has no checkpoint (checkpoint.every)"
        raise UserError(f"{folder}: {why}; delete the folder and run again")
    return resumed


def last_resumed(folder: Path, config: Config) -> tuple[Resumed | None, list[str]]:
    """As above, None where there is none; and what is wrong with those that are damaged."""
    saved, wrong = newest(folder / FOLDER)
    if saved is None:
        return None, wrong
    _check_about(saved)
    for damage in wrong:
        _logger.warning("damaged checkpoint: %s; going on from round %d", damage, saved.round)
    _check_same(saved, config)
    due = [round for round in range(saved.round + 1) if config.evaluation.is_due(round)]
    evaluations = _evaluations(folder / EVALUATIONS, due)
    lines, events = _events(folder / "events.jsonl", saved)
    return Resumed(saved, lines, events, evaluations), wrong


def rewind(folder: Path, resumed: Resumed | None) -> None:
    """Take back what the folder says of later rounds, of all rounds where it is None. What sinks can make again from
    the events is deleted."""
    lines, evaluations = ([], []) if resumed is None else (resumed.lines, resumed.evaluations)
    _shorten(folder / "events.jsonl", lines)
    if evaluations or (folder / EVALUATIONS).exists():
        _shorten(folder / EVALUATIONS, [json.dumps(row) + "\n" for row in evaluations])
    for name in ("metrics.jsonl", "summary.json", "evaluation.json"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    discard_after(folder / FOLDER, -1 if resumed is None else resumed.saved.round)
    clear_unfinished(folder / FOLDER)


def _shorten(path: Path, lines: Sequence[str]) -> None:
    """Leave these lines of the file, or all of it where that fails."""
    shorter = path.with_suffix(".jsonl.tmp")
    shorter.write_text("".join(lines), "utf-8")
    sync(shorter)
    shorter.replace(path)


def _check_same(saved: Checkpoint, config: Config) -> None:
    """Raises UserError where the run would go on as another one."""
    if saved.about["fingerprint"] == fingerprint(config):
        return
    before = _config_of(saved)
    differing = differing_keys([before, config], ignoring=CHANGE_NO_VALUE)
    may_grow = config.method.lr_schedule == "constant" and not config.privacy.is_on  # the noise is for so many rounds
    if config.method.rounds > before.method.rounds and may_grow:
        differing.pop("method.rounds", None)
    told = [f"{key} was {old!r} (now {new!r})" for key, (old, new) in differing.items() if key not in WHO_DOES_IT]
    if told:
        raise UserError(
            f"{config.out}: cannot be resumed as another run: {', '.join(told)}; allowed are other values of "
            f"{', '.join(sorted(CHANGE_NO_VALUE | WHO_DOES_IT))}, and more method.rounds if method.lr_schedule is "
            "constant and privacy is off"
        )


def _check_about(saved: Checkpoint) -> None:
    """Raises UserError for a checkpoint that is whole, but not as `Completer` writes it."""
    told = saved.about
    kinds: dict[str, type | tuple[type, ...]] = {
        "fingerprint": str,
        "config": dict,
        "loss_before": (float, int),
        "num_events": int,
    }
    for key, kind in kinds.items():
        if not isinstance(told.get(key), kind):
            raise UserError(
                f"{saved.folder}: its manifest has no {key} of a run; delete it, and resume from another one"
            )


def _config_of(saved: Checkpoint) -> Config:
    try:
        return Config.model_validate_json(json.dumps(saved.about["config"]), strict=True)
    except ValidationError as error:
        raise UserError(
            f"{saved.folder}: its config is not one of this version of parablock_ray ({explain(error, Config)}); go on "
            "with the version that wrote it, or delete the folder and run again"
        ) from None


def _events(path: Path, saved: Checkpoint) -> tuple[list[str], list[Event]]:
    """All events up to the checkpoint's round were on the disk before it was complete; after them a line may be cut."""
    try:
        told = [(line, from_row(from_json(line))) for line in _whole_lines(path)]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}; delete the folder and run again") from None
    told = [(line, event) for line, event in told if event.round <= saved.round]
    if len(told) != saved.about["num_events"]:
        raise UserError(
            f"{path}: holds {len(told)} of the {saved.about['num_events']} events up to round {saved.round}; "
            "delete the folder and run again"
        )
    return [line for line, _ in told], [event for _, event in told]


def _evaluations(path: Path, due: Sequence[int]) -> list[Mapping[str, Any]]:
    """A row for each of these rounds, without results where it is lost: it comes later than the round that it is of."""
    try:
        rows = [checked_row(from_json(line)) for line in _whole_lines(path)] if path.exists() else []
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}; delete the folder and run again") from None
    found = {row["round"]: row for row in rows}
    for round in due:
        if round not in found:
            _logger.warning("round %d is not judged: the run had ended before it was, and has gone past it", round)
    return [found.get(round, {"round": round, "results": {}}) for round in due]


def _whole_lines(path: Path) -> list[str]:
    """The last line of a process that was killed may be cut."""
    return [line.decode("utf-8") for _, line in lines(path) if line.endswith(b"\n")]
