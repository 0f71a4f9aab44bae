"""One experiment, from a config to its run folder: plan rounds, hand them out, write down what happens."""

import json
import logging
import math
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console

from parablock_ray import __version__
from parablock_ray.algorithms.adapters import check_adapters
from parablock_ray.algorithms.base import Method
from parablock_ray.algorithms.blocks import check_num_blocks
from parablock_ray.algorithms.methods import WithoutSizes, trains_adapters
from parablock_ray.algorithms.population import Population
from parablock_ray.checkpoint import newest
from parablock_ray.checkpointing import Completer, Resumed
from parablock_ray.config import Config, save_resolved
from parablock_ray.deadlines import late_by, nobody
from parablock_ray.errors import ProcessDied, RunFailed, Stopped, UserError
from parablock_ray.evaluation.results import TaskResult, as_json, result_table, write_outputs
from parablock_ray.lock import locked
from parablock_ray.lora_measures import lora_measures
from parablock_ray.named_files import known_participation
from parablock_ray.participation import Late, Participation
from parablock_ray.pricing import Pricing, VirtualBook, price
from parablock_ray.privacy import KEY_FILE, Privacy
from parablock_ray.recovery import recover
from parablock_ray.runtime.base import RunSetup, Runtime
from parablock_ray.runtime.make import make_runtime, runtime_sinks
from parablock_ray.secure_terms import check_secure_aggregation, clip_before_rounding
from parablock_ray.sizes import trained_layout
from parablock_ray.stopping import stop_requests
from parablock_ray.tracking.client_split import split_figure, split_line
from parablock_ray.tracking.events import Dropped, Event, as_row
from parablock_ray.tracking.full_disk import RESUME, told_if_full
from parablock_ray.tracking.kept_ranks import kept_ranks, rank_figure, write_rank_table
from parablock_ray.tracking.rounds import RoundBook
from parablock_ray.tracking.sinks import Sink, open_sinks
from parablock_ray.tracking.trace import chrome_trace, gantt_svg
from parablock_ray.training.batches import padding_line
from parablock_ray.training.checkpoints import FOLDER as CHECKPOINTS
from parablock_ray.training.data import FederatedData, build_data
from parablock_ray.training.engine import make_engine
from parablock_ray.training.model import load_tokenizer, max_context, model_config, model_shapes, num_layers

_logger = logging.getLogger(__name__)

_RUN_FILES = ("config.yaml", "events.jsonl", "metrics.jsonl", "evaluations.jsonl", KEY_FILE)
Judge = Callable[[Path], list[TaskResult]]
"""What the model of a folder is found to do."""

_ROUNDS_AHEAD = 2  # plans lie ready beyond what staleness needs, so that no client waits for the driver


def run(config: Config) -> dict[str, Any]:
    """Run the experiment; return what `summary.json` says. Raises UserError, RunFailed or Stopped."""
    refuse_used_folder(Path(config.out))
    return _carry_out(config, None)


def go_on(config: Config, resumed: Resumed) -> dict[str, Any]:
    """`run` from a checkpoint on. The caller holds the folder, and has rewound it."""
    return _carry_out(config, resumed)


@dataclass(frozen=True)
class _Experiment:
    """What stays the same however often processes of it die."""

    config: Config
    data: FederatedData
    population: Population
    method: Method
    participation: Participation
    privacy: Privacy
    pricing: Pricing
    judge: Judge | None
    console: Console
    made_with: Mapping[str, str]  # versions

    @property
    def out(self) -> Path:
        return Path(self.config.out)


def _carry_out(config: Config, resumed: Resumed | None) -> dict[str, Any]:
    made_with, console, prepared = versions(), Console(markup=False), prepare(config)
    privacy = Privacy(config, resumes=resumed is not None)
    data, population = prepared.data, prepared.population
    method = privacy.method(config.method, population)
    if config.secure_aggregation.enabled:
        method = WithoutSizes(method)
    if (line := privacy.line()) is not None:
        console.print(line, highlight=False, soft_wrap=True)
    console.print(data.report.line(), highlight=False, soft_wrap=True)
    console.print(split_line(config.data.split.name, data.report.labels), highlight=False, soft_wrap=True)
    console.print(padding_line(data, population, config), highlight=False, soft_wrap=True)
    judge = ready_to_judge(config, data)
    pricing = Pricing(config)  # reads its trace: before the folder is taken
    late: Late = nobody
    if config.clients.leaves_out_the_slow:
        late = late_by(config, pricing, population, model_shapes(config.model.name))
    participation = Participation(config.clients.min_participants, late, known_participation(config))
    experiment = _Experiment(
        config, data, population, method, participation, privacy, pricing, judge, console, made_with
    )
    with ExitStack() as cleanup:
        if resumed is None:
            cleanup.enter_context(claimed(experiment.out, config))
            privacy.write_key()
        for num_replays in count():
            try:
                return _attempt(experiment, resumed, num_replays)
            except ProcessDied as death:
                resumed = recover(death, config, num_replays, participation)
    raise AssertionError("some attempt is the last")


def _attempt(experiment: _Experiment, resumed: Resumed | None, num_replays: int) -> dict[str, Any]:
    """The run, from where it is taken up to its end. Raises ProcessDied with every process of it ended."""
    config, method, console, out = experiment.config, experiment.method, experiment.console, experiment.out
    participation, privacy = experiment.participation, experiment.privacy
    pricing, virtual = experiment.pricing, config.network.mode == "virtual"
    book = VirtualBook(method.num_rounds, pricing) if virtual else RoundBook(method.num_rounds)
    setup = RunSetup(privacy.told, experiment.population, experiment.data, make_engine, privacy.share_key)
    runtime = make_runtime(setup)
    with ExitStack() as cleanup:
        resumes = resumed is not None or num_replays > 0
        sinks = [*open_sinks(config, console, resumes), *runtime_sinks(config)]
        for sink in sinks:
            cleanup.callback(sink.close)
        cleanup.callback(runtime.close)  # what comes last here closes first
        console.print(f"starting {config.runtime} with {config.model.name}", highlight=False)
        info = runtime.start()
        loss_before = runtime.evaluate() if resumed is None else resumed.loss_before
        console.print(ready_line(config, info.num_workers, loss_before), highlight=False, soft_wrap=True)
        num_done, told = 0, list[Event]()
        if resumed is not None:
            num_done, told = resumed.saved.round + 1, list(resumed.events)
            for event in told:
                participation.note(event)
                privacy.note(event)
            plans = [privacy.with_clip(participation.attend(method.plan(round))[0]) for round in range(num_done)]
            runtime.restore(resumed.saved, plans, resumed.clock_s)
            for row in resumed.evaluations:
                tell_evaluation(row, sinks)
        completer = Completer(runtime.complete_checkpoint, config, loss_before, num_done)
        events, rows = run_rounds(method, participation, privacy, runtime, book, sinks, completer, told)
        loss_after = finite(runtime.evaluate())
        with told_if_full(out, RESUME):
            final = runtime.finish(out / "model")
        timeline, priced = price(events, pricing)
        write_trace(out, config, priced if virtual else events)
        write_kept_ranks(out, events)
        summary = {
            "status": "done",
            "name": config.name,
            "method": config.method.name,
            "seed": config.seed,
            "num_rounds": method.num_rounds,
            "num_clients": config.clients.num,
            "num_dropped": sum(isinstance(event, Dropped) for event in events),
            "num_refused": sum(isinstance(event, Dropped) and event.has_sent for event in events),
            "num_replays": num_replays,
            "num_workers": info.num_workers,
            "loss_before": loss_before,
            "loss_after": loss_after,
            **summed(rows, bound_s=timeline.seconds, mode=config.network.mode),
            **privacy.summary(method.num_rounds),
            **lora_measures(config, experiment.population, events),
            "weights_sha256": final.weights_sha256,
            "peak_rss_bytes": final.peak_rss_bytes,
            "versions": experiment.made_with,
        }
        for sink in sinks:
            sink.finish(summary)
        privacy.forget_key()
        for evaluated in runtime.remaining_evaluations():
            tell_evaluation(asdict(evaluated), sinks)
        runtime.close()  # its processes give their memory back before another model is loaded
        judge_run(experiment.judge, out, config, console, sinks)
        write_split(experiment)
        if config.tracking.wandb != "off":  # W&B takes it along
            write_page(out)
        return summary


@dataclass(frozen=True)
class Prepared:
    """What a run starts from."""

    data: FederatedData
    population: Population


def prepare(config: Config) -> Prepared:
    """The clients' data and who they are. Raises UserError for what could not run."""
    shape, tokenizer = model_config(config.model.name), load_tokenizer(config.model.name)
    check_num_blocks(config.method.num_blocks, num_layers(shape))
    if trains_adapters(config.method):
        lora, shapes = config.method.lora, model_shapes(config.model.name)
        for oddity in check_adapters(lora, shapes, config.clients.num, config.seed):
            _logger.warning(oddity)
    data = build_data(config.data, config.clients.num, config.seed, tokenizer, max_context(shape))
    num_drawn, sampling = config.clients.cohort_size + config.clients.over_sample, config.clients.sampling
    population = Population(
        data.clients.num_examples, num_drawn, config.seed, config.data.arrival, sampling, config.privacy.is_on
    )
    check_secure_aggregation(config, largest=max(population.num_examples))
    if config.privacy.clip is not None:
        blocks = trained_layout(config, model_shapes(config.model.name)).blocks
        clip_before_rounding(config, config.privacy.clip, max(block.num_params for block in blocks))  # may refuse it
    return Prepared(data, population)


def ready_to_judge(config: Config, data: FederatedData) -> Judge | None:
    """None: neither the final model nor any round's is judged. Raises UserError for a task that cannot be read."""
    if not config.evaluation.tasks and config.evaluation.every is None:
        return None
    from parablock_ray.evaluation.evaluator import final_judge  # its scorers take seconds to import

    return final_judge(config, data)


def ready_line(config: Config, num_workers: int, loss_before: float) -> str:
    """Who will do what, and where they start."""
    who = f"{config.clients.num} client(s) on {num_workers} worker(s), {config.clients.cohort_size} a round"
    return f"{who}; held-out loss {loss_before:.4f}"


def run_rounds(
    method: Method,
    participation: Participation,
    privacy: Privacy,
    runtime: Runtime,
    book: RoundBook | VirtualBook,
    sinks: Sequence[Sink],
    completer: Completer,
    told: Sequence[Event],
) -> tuple[list[Event], list[dict[str, Any]]]:
    """The round loop. Returns all events and the metrics rows once the last download is in. Raises Stopped where a
    SIGTERM came and rounds are left, which a checkpoint precedes.

    `told`: all events of the rounds that a resumed run has behind it; the sinks are told of them again.
    """
    events: list[Event] = []
    rows: list[dict[str, Any]] = []

    def note(event: Event) -> None:
        events.append(event)
        participation.note(event)
        privacy.note(event)
        finished, as_told = [{**row, **privacy.columns(row["round"])} for row in book.add(event)], as_row(event)
        rows.extend(finished)
        for sink in sinks:
            sink.event(as_told)
            for row in finished:
                sink.round(row)
        completer.told(event, book.num_complete)

    for event in told:
        note(event)
    num_submitted, num_wanted = book.num_complete, method.num_rounds
    with stop_requests() as is_asked_to_stop:
        while book.num_complete < num_wanted:
            if is_asked_to_stop() and num_submitted + method.staleness + 1 < num_wanted:
                # With the last of these rounds nothing is under way, and all that its checkpoint needs is yet to come.
                num_wanted = num_submitted + method.staleness + 1
                completer.checkpoint_at(num_wanted - 1)
                runtime.checkpoint_at(num_wanted - 1)
            ahead = book.num_complete + method.staleness + _ROUNDS_AHEAD
            while num_submitted < min(ahead, num_wanted):
                plan, dropped = participation.attend(method.plan(num_submitted))
                for each in dropped:
                    note(each)
                runtime.submit(privacy.with_clip(plan))
                num_submitted += 1
            for event in runtime.events():
                note(event)
            for evaluated in runtime.evaluations():
                tell_evaluation(asdict(evaluated), sinks)
    if num_wanted < method.num_rounds:
        runtime.wait_for_checkpoint()
        raise Stopped(num_wanted)
    return events, rows


def tell_evaluation(row: Mapping[str, Any], sinks: Sequence[Sink]) -> None:
    """A row of `evaluations.jsonl`."""
    for sink in sinks:
        sink.evaluation(dict(row))


def summed(rows: Sequence[Mapping[str, Any]], bound_s: float, mode: str) -> dict[str, Any]:
    """The seconds and bytes of a whole run. In virtual time the recurrence is the clock, so nothing is lost to it."""
    seconds = bound_s if mode == "virtual" else sum(row["seconds"] for row in rows)
    return {
        "seconds": seconds,
        "seconds_bound": bound_s,
        "seconds_mode": mode,
        "overlap_efficiency": bound_s / seconds,
        **{key: sum(row[key] for row in rows) for key in ("bytes_up", "bytes_down", "bytes_catch_up", "server_s")},
    }


def judge_run(judge: Judge | None, out: Path, config: Config, console: Console, sinks: Sequence[Sink]) -> None:
    """The final model on `evaluation.tasks`: `evaluation.json`, the trackers, and what it said in `evaluation/`.

    The clock has stopped and the run is written down: whatever fails here, `parablock evaluate` can do again.
    """
    if judge is None or not config.evaluation.tasks:
        return
    console.print(f"judging the model on {', '.join(config.evaluation.tasks)}", highlight=False)
    results = judge(out / "model")
    console.print(result_table(results))
    with told_if_full(out / "evaluation", f"parablock evaluate {out}"):
        write_outputs(out / "evaluation", results)
    for sink in sinks:
        sink.final_evaluation(as_json(results))


def write_trace(out: Path, config: Config, events: Sequence[Event]) -> None:
    """`trace.json` for Perfetto, `timeline.svg` for a quick look."""
    about = f"{config.name}: {config.method.name}, network.mode {config.network.mode}"
    trace = chrome_trace(events, {"run": about}, with_server=config.network.mode != "virtual")
    picture = gantt_svg(events, about)
    with told_if_full(out, RESUME):
        (out / "trace.json").write_text(json.dumps(trace) + "\n", "utf-8")
        (out / "timeline.svg").write_text(picture, "utf-8")


def write_split(experiment: _Experiment) -> None:
    """`clients.svg`. Not before the run: drawing would delay its start."""
    figure, file = split_figure(experiment.data.report.labels), experiment.out / "clients.svg"
    with told_if_full(file, f"parablock data {experiment.out / 'config.yaml'} --out {file}"):
        figure.savefig(file, format="svg")


def write_kept_ranks(out: Path, events: Sequence[Event]) -> None:
    """`ranks.csv` and `ranks.svg`, of methods that cut."""
    by_round = kept_ranks(events)
    if by_round:
        with told_if_full(out, RESUME):
            write_rank_table(by_round, out / "ranks.csv")
            rank_figure(by_round).savefig(out / "ranks.svg", format="svg")


def write_page(out: Path) -> None:
    """`report.html`, of this run alone."""
    from parablock_ray.reporting.command import page_of_run  # draws with matplotlib, which a start need not wait for

    page, file = page_of_run(out), out / "report.html"
    with told_if_full(file, f"parablock report {out} --out {file}"):
        file.write_text(page, "utf-8")


def refuse_used_folder(out: Path) -> None:
    """A run folder holds one run. Raises UserError."""
    if any((out / name).exists() for name in (*_RUN_FILES, CHECKPOINTS)):
        raise UserError(f"out: {out} already holds a run; choose another --out or --name, or delete that folder")


@contextmanager
def claimed(out: Path, config: Config) -> Iterator[None]:
    """Mark the folder as this run's; one that fails before its first round is done leaves it free for the next try."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_resolved(config, out / "config.yaml")
    except OSError as error:
        raise UserError(f"out: cannot write to {out}: {error.strerror}; choose another --out") from None
    with locked(out):
        try:
            yield
        finally:
            metrics = out / "metrics.jsonl"
            is_begun = metrics.exists() and metrics.stat().st_size > 0
            if not is_begun and newest(out / CHECKPOINTS)[0] is None:
                for name in _RUN_FILES:
                    (out / name).unlink(missing_ok=True)
                shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)


def finite(loss: float) -> float:
    """The held-out loss after the last round, whose update no client trains on. Raises RunFailed."""
    if not math.isfinite(loss):
        raise RunFailed(f"the held-out loss after the last round is {loss}; a smaller method.lr may help")
    return loss


def versions() -> dict[str, str]:
    """What the figures of this run were made with."""
    packages = ("torch", "ray", "transformers", "deepspeed", "numpy")
    return {
        "python": platform.python_version(),
        "parablock-ray": __version__,
        **{package: version(package) for package in packages},
    }
