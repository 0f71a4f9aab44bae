"""One experiment, from a config to its run folder: plan rounds, hand them out, write down what happens."""

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from parablock_ray.algorithms.base import Method, MethodTraits
from parablock_ray.algorithms.block_methods import Population, make_method
from parablock_ray.config import Config, save_resolved
from parablock_ray.errors import UserError
from parablock_ray.pricing import bound_s, round_loads
from parablock_ray.runtime import RunSetup, Runtime, make_runtime
from parablock_ray.tracking.events import Event, as_row
from parablock_ray.tracking.rounds import RoundBook
from parablock_ray.tracking.sinks import Sink, open_sinks
from parablock_ray.training.data import DataReport, build_data
from parablock_ray.training.model import load_tokenizer, max_context, model_config

_ROUNDS_AHEAD = 2  # plans lie ready beyond what staleness needs, so that no client waits for the driver


def run(config: Config) -> dict[str, Any]:
    """Run the experiment; return what `summary.json` says. Raises UserError or RunFailed."""
    out = Path(config.out)
    refuse_used_folder(out)
    console = Console()
    tokenizer, context = load_tokenizer(config.model.name), max_context(model_config(config.model.name))
    data = build_data(config.data, config.clients.num, config.seed, tokenizer, context)
    console.print(describe(data.report), highlight=False, soft_wrap=True)
    num_examples = tuple(len(indices) for indices in data.clients)
    population = Population(num_examples, config.clients.per_round or config.clients.num, config.seed)
    method = make_method(config.method, population)
    runtime = make_runtime(RunSetup(config, MethodTraits.of(method), data))
    sinks = open_sinks(config, console)
    try:
        save_resolved(config, out / "config.yaml")
        info = runtime.start()
        loss_before = runtime.evaluate()
        events, rows = run_rounds(method, runtime, sinks)
        loss_after = runtime.evaluate()
        final = runtime.finish(out / "model")
        seconds = sum(row["seconds"] for row in rows)
        bound = bound_s(round_loads(events, method.staleness), config.network)
        summary = {
            "status": "done",
            "name": config.name,
            "method": config.method.name,
            "seed": config.seed,
            "num_rounds": method.num_rounds,
            "num_clients": config.clients.num,
            "num_workers": info.num_workers,
            "loss_before": loss_before,
            "loss_after": loss_after,
            "seconds": seconds,
            "seconds_bound": bound,
            "seconds_mode": config.network.mode,
            "overlap_efficiency": bound / seconds,
            **{key: sum(row[key] for row in rows) for key in ("bytes_up", "bytes_down", "bytes_catch_up")},
            "weights_sha256": final.weights_sha256,
            "peak_rss_bytes": final.peak_rss_bytes,
            "versions": versions(),
        }
        for sink in sinks:
            sink.finish(summary)
        return summary
    finally:
        runtime.close()
        for sink in sinks:
            sink.close()


def run_rounds(method: Method, runtime: Runtime, sinks: Sequence[Sink]) -> tuple[list[Event], list[dict[str, Any]]]:
    """The round loop. Returns all events and the metrics rows once the last download is in."""
    book = RoundBook(method.num_rounds)
    events: list[Event] = []
    rows: list[dict[str, Any]] = []
    num_submitted = 0
    while len(rows) < method.num_rounds:
        ahead = len(rows) + method.staleness + _ROUNDS_AHEAD
        while num_submitted < min(ahead, method.num_rounds):
            runtime.submit(method.plan(num_submitted))
            num_submitted += 1
        for event in runtime.events():
            events.append(event)
            finished = book.add(event)
            rows += finished
            for sink in sinks:
                sink.event(as_row(event))
                for row in finished:
                    sink.round(row)
    return events, rows


def refuse_used_folder(out: Path) -> None:
    """A run folder holds one run. Raises UserError."""
    if (out / "config.yaml").exists() or (out / "events.jsonl").exists():
        raise UserError(f"out: {out} already holds a run; choose another --out or --name, or delete that folder")


def describe(report: DataReport) -> str:
    """One line about the data; what was left out of it is said only where something was."""
    line = (
        f"data: {report.num_train} training and {report.num_eval} held-out examples of {report.num_tasks} task(s), "
        f"{report.mean_tokens:.0f} tokens on average, {report.max_tokens} at most"
    )
    losses = {
        "cut at the end": report.num_truncated,
        "dropped, their answer beyond the limit": report.num_dropped,
        "removed from training, their prompt held out": report.num_duplicates,
    }
    return line + "".join(f"; {num} {what}" for what, num in losses.items() if num)


def versions() -> dict[str, str]:
    """What the figures of this run were made with."""
    packages = ("parablock-ray", "torch", "ray", "transformers", "deepspeed", "numpy")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}
