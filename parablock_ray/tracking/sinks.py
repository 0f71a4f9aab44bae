"""Where a run's events, rounds and summary go: files, the terminal, Weights & Biases, TensorBoard."""

import json
import logging
import netrc
import os
import shutil
from collections import deque
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from rich.console import Console
from rich.filesize import decimal
from rich.live import Live
from rich.table import Table

from parablock_ray.config import Config
from parablock_ray.errors import UserError
from parablock_ray.tracking.evaluations import FILE as EVALUATIONS
from parablock_ray.tracking.evaluations import Results, figures, line
from parablock_ray.tracking.events import Event, from_row
from parablock_ray.tracking.full_disk import RESUME, told_if_full
from parablock_ray.tracking.kept_ranks import HEADER, kept_ranks, rank_figure, rank_rows
from parablock_ray.tracking.tensorboard import TensorBoardSink, require_tensorboard

Row = dict[str, Any]

_NUM_ROUNDS_SHOWN = 10
_FINISH_TIMEOUT_S = 300.0  # for W&B to take the last rows of a run; then they are in its folder, for `wandb sync`

_logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Told everything by the driver, in order, from one thread.

    A resumed run is told from its first round on: a sink leaves out what it holds already.
    """

    def event(self, row: Row) -> None:
        """One event, as `events.as_row` makes it."""
        ...

    def round(self, row: Row) -> None:
        """One finished round, as `RoundBook` makes it."""
        ...

    def evaluation(self, row: Row) -> None:
        """What was found of the model after a round: `round`, `results`. In their order, but later than its row, and
        the last ones after `finish`."""
        ...

    def finish(self, summary: Row) -> None:
        """The run came to its end; not called when it failed."""
        ...

    def final_evaluation(self, results: Results) -> None:
        """What was found of the final model (`evaluation.tasks`), after `finish`."""
        ...

    def close(self) -> None:
        """Always the last call."""
        ...


def open_sinks(config: Config, console: Console, resumes: bool) -> list[Sink]:
    """The sinks of a run; `resumes`: one that goes on. What may refuse comes first: then no file of a run should be
    there yet.

    Raises UserError where `tracking.tensorboard` or `tracking.wandb=online` cannot be had.
    """
    out, num_rounds = Path(config.out), config.method.rounds
    if config.tracking.tensorboard:
        require_tensorboard()
    sinks: list[Sink] = [] if config.tracking.wandb == "off" else [WandbSink(config, resumes)]
    if config.tracking.tensorboard:
        sinks.append(TensorBoardSink(out, num_rounds))
    return [*sinks, JsonlSink(out), ConsoleSink(console, num_rounds)]


class JsonlSink:
    """`events.jsonl`, `metrics.jsonl` and `evaluations.jsonl`, readable line by line while the run goes on, then
    `summary.json` and `evaluation.json`."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._out = out
        self._num_held = _num_lines(out / "events.jsonl")
        self._num_judged = _num_lines(out / EVALUATIONS)  # there only if a round is judged
        self._events = (out / "events.jsonl").open("a", encoding="utf-8", buffering=1)
        self._metrics = (out / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)

    def event(self, row: Row) -> None:
        if self._num_held > 0:
            self._num_held -= 1
        else:
            with told_if_full(self._out, RESUME):
                self._events.write(json.dumps(row) + "\n")

    def round(self, row: Row) -> None:
        with told_if_full(self._out, RESUME):
            self._metrics.write(json.dumps(row) + "\n")

    def evaluation(self, row: Row) -> None:
        if self._num_judged > 0:
            self._num_judged -= 1
            return
        with told_if_full(self._out, RESUME), (self._out / EVALUATIONS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def finish(self, summary: Row) -> None:
        unfinished = self._out / "summary.json.tmp"
        with told_if_full(self._out, RESUME):
            unfinished.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
            unfinished.replace(self._out / "summary.json")  # whole or not at all

    def final_evaluation(self, results: Results) -> None:
        file = self._out / "evaluation.json"
        with told_if_full(file, f"parablock evaluate {self._out}"):  # the run is over: there is nothing to resume
            file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")

    def close(self) -> None:
        with told_if_full(self._out, RESUME):  # what is left of a line that could not be written is tried again
            self._events.close()
            self._metrics.close()


def _num_lines(path: Path) -> int:
    """None where there is no such file."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)


class ConsoleSink:
    """On a terminal a live table of the last rounds, elsewhere a line a round; a line an evaluation; then a summary."""

    def __init__(self, console: Console, num_rounds: int) -> None:
        self._console = console
        self._num_rounds = num_rounds
        self._last_rows: deque[Row] = deque(maxlen=_NUM_ROUNDS_SHOWN)
        self._live = Live(console=console, auto_refresh=False)

    def event(self, row: Row) -> None:
        pass

    def round(self, row: Row) -> None:
        if not self._console.is_terminal:
            cells = _round_cells(row, row["num_refused"] > 0)
            line = "  ".join(f"{name} {cell}" for name, cell in cells.items())
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
            return
        self._last_rows.append(row)
        self._live.start()  # does nothing from the second time on
        self._live.update(self._table(), refresh=True)

    def evaluation(self, row: Row) -> None:
        self._console.print(line(row), highlight=False, markup=False, soft_wrap=True)

    def finish(self, summary: Row) -> None:
        self._live.stop()
        table = Table(title="summary", show_header=False)
        for key, show in _SUMMARY.items():
            if summary.get(key) is not None and (key, summary[key]) != ("num_refused", 0):
                table.add_row(key, show(summary[key]))
        self._console.print(table)

    def final_evaluation(self, results: Results) -> None:
        """The driver prints them with their standard errors."""

    def close(self) -> None:
        self._live.stop()

    def _table(self) -> Table:
        num_done = self._last_rows[-1]["round"] + 1
        table = Table(title=f"{num_done} of {self._num_rounds} rounds")
        any_refused = any(row["num_refused"] for row in self._last_rows)
        for name in _round_cells(self._last_rows[-1], any_refused):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self._last_rows:
            table.add_row(*_round_cells(row, any_refused).values())
        return table


def _round_cells(row: Row, with_refused: bool) -> dict[str, str]:
    """What the terminal shows of a round; the times after `seconds` are means over the participants."""
    refused = {"refused": str(row["num_refused"])} if with_refused else {}
    return {
        "round": str(row["round"]),
        "block": str(row["block"]),
        "loss": f"{row['loss']:.4f}",
        "seconds": f"{row['seconds']:.2f}",
        "compute": f"{row['compute_s']:.2f}",
        "exchange": f"{row['upload_s'] + row['download_s']:.2f}",
        "wait": f"{row['wait_s']:.2f}",
        "bytes": decimal(row["bytes_up"] + row["bytes_down"] + row["bytes_catch_up"]),
        **refused,
        **({"epsilon": f"{row['epsilon']:.4g}"} if "epsilon" in row else {}),
    }


_SUMMARY: dict[str, Callable[[Any], str]] = {
    "method": str,
    "num_rounds": str,
    "num_clients": str,
    "num_refused": str,
    "loss_before": "{:.4f}".format,
    "loss_after": "{:.4f}".format,
    "seconds": "{:.2f}".format,
    "seconds_bound": "{:.2f}".format,
    "seconds_mode": str,
    "overlap_efficiency": "{:.1%}".format,
    "bytes_up": decimal,
    "bytes_down": decimal,
    "bytes_catch_up": decimal,
    "epsilon": "{:.4g}".format,
    "delta": "{:g}".format,
    "weights_sha256": str,
}


_IN_ARTIFACT = (  # of the run folder, what there is
    *("config.yaml", "summary.json", "evaluation.json", "metrics.jsonl", "evaluations.jsonl"),
    *("trace.json", "timeline.svg", "report.html"),
)
_ROUND, _JUDGED = "round", "evaluation/round"  # axes of W&B: of the rounds' rows, of the evaluations


def _judged(results: Results) -> Row:
    return {f"evaluation/{name}": value for name, value in figures(results).items()}


class WandbSink:
    """One W&B run for the experiment. What goes wrong with W&B while logging is told once and does not end the run."""

    def __init__(self, config: Config, resumes: bool) -> None:
        import wandb  # takes a second

        self._errors = (wandb.Error, OSError)  # it passes on what happens to the connection to its own process
        self._out = Path(config.out)
        self._run = _start_run(config, _taken_up(Path(config.out)) if resumes else None)
        # What an online run that goes on holds already: the last value of each axis.
        self._last_round, self._last_judged = (self._run.summary.get(axis, -1) for axis in (_ROUND, _JUDGED))
        self._columns: set[str] = set()
        self._finished = False
        self._warned = False
        self._commits: list[Event] = []  # of methods that cut

    def event(self, row: Row) -> None:
        if row.get("kept_ranks"):
            self._commits.append(from_row(row))

    def round(self, row: Row) -> None:
        if row["round"] <= self._last_round:
            return
        for column in row.keys() - self._columns:  # W&B's own step counts evaluations too
            self._attempt(partial(self._run.define_metric, column, step_metric=_ROUND))
        self._columns |= row.keys()
        # Left open, the last round would be written after the summary, over its keys of the same name.
        self._attempt(lambda: self._run.log(row, commit=True))

    def evaluation(self, row: Row) -> None:
        if row["round"] <= self._last_judged:
            return
        # A row of its own with an axis of its own: that of its round was written long ago.
        self._attempt(lambda: self._run.log({_JUDGED: row["round"], **_judged(row["results"])}, commit=True))

    def finish(self, summary: Row) -> None:
        if self._commits:
            self._attempt(self._log_kept_ranks)
        self._attempt(lambda: self._run.summary.update(summary))
        self._finished = True

    def final_evaluation(self, results: Results) -> None:
        self._attempt(lambda: self._run.summary.update(_judged(results)))

    def _log_kept_ranks(self) -> None:
        import wandb
        from PIL import Image  # comes with matplotlib

        by_round = kept_ranks(self._commits)
        table = wandb.Table(columns=list(HEADER), data=[list(row) for row in rank_rows(by_round)])
        picture = BytesIO()
        rank_figure(by_round).savefig(picture, format="png", dpi=150)
        # A row of its own: every round's is closed.
        self._run.log({"kept_ranks": table, "kept_ranks_picture": wandb.Image(Image.open(picture))})

    def close(self) -> None:
        if self._finished:  # only now is every file written
            self._attempt(self._log_files)
        self._attempt(lambda: self._run.finish(exit_code=0 if self._finished else 1))

    def _log_files(self) -> None:
        import wandb

        artifact = wandb.Artifact(f"run-{self._run.id}", type="run")
        for name in _IN_ARTIFACT:
            if (self._out / name).is_file():
                artifact.add_file(str(self._out / name), policy="immutable")  # no copy: nobody changes it any more
        self._run.log_artifact(artifact)

    def _attempt(self, call: Callable[[], None]) -> None:
        try:
            call()
        except self._errors as error:
            if not self._warned:
                _logger.warning("W&B failed, the run goes on without it: %s", error)
            self._warned = True


def _taken_up(out: Path) -> str | None:
    """The id of the W&B run in this run folder. What was kept offline of it is deleted, since it is told again."""
    folders = sorted((out / "wandb").glob("*run-*-*"))
    for folder in folders:
        if folder.name.startswith("offline-"):
            shutil.rmtree(folder, ignore_errors=True)
    return folders[-1].name.rpartition("-")[2] if folders else None


def _start_run(config: Config, id: str | None) -> Any:
    """A new run, or the one of this id again. Raises UserError where the user asked for `online` and W&B says no."""
    import wandb

    def start(mode: Literal["online", "offline"]) -> Any:
        run = wandb.init(
            project=config.tracking.wandb_project,
            group=config.tracking.wandb_group,
            tags=config.tracking.wandb_tags,
            name=config.name,
            id=id,
            resume="allow" if id else None,
            dir=config.out,
            config=config.model_dump(mode="json"),
            mode=mode,
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", finish_timeout=_FINISH_TIMEOUT_S),
        )
        run.define_metric("evaluation/*", step_metric=_JUDGED)
        return run

    Path(config.out).mkdir(parents=True, exist_ok=True)  # without it W&B writes to a temporary folder
    mode = config.tracking.wandb
    if mode == "offline" or (mode == "auto" and not _may_go_online()):
        return start("offline")
    try:
        return start("online")
    except wandb.Error as error:
        if mode == "online":
            raise UserError(f"tracking.wandb: online refused by W&B ({error}); log in, or use offline") from None
        _logger.warning("W&B cannot be reached, the run is kept offline: %s", error)
        return start("offline")


def _may_go_online() -> bool:
    """Whether W&B would find a key by itself, and its own switch is not off. Asks neither user nor network."""
    import wandb

    if os.environ.get("WANDB_MODE", "online") != "online":
        return False
    return bool(os.environ.get("WANDB_API_KEY") or wandb.setup().settings.api_key or _in_netrc())


def _in_netrc() -> bool:
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
