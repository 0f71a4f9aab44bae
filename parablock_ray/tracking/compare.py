"""Finished runs side by side: what each reached, in what time, and how much sooner than the first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError
from rich.filesize import decimal
from rich.table import Table

from parablock_ray.config import Config, differing_keys, load_config
from parablock_ray.config.differences import CHANGE_NO_VALUE
from parablock_ray.config.explain import explain
from parablock_ray.errors import UserError
from parablock_ray.json_files import json_file

MIN_WIDTH = 100  # characters a line, into which the table fits; longer names of runs are folded


class _Summary(BaseModel):
    """What is needed of it by whatever reads a finished run: a comparison, a report, an export, a repricing."""

    method: str
    num_rounds: PositiveInt
    num_clients: PositiveInt
    num_workers: PositiveInt
    loss_before: float
    loss_after: float
    weights_sha256: str
    versions: dict[str, str]
    seconds: PositiveFloat
    seconds_bound: PositiveFloat
    seconds_mode: str
    overlap_efficiency: float
    server_s: float
    bytes_up: NonNegativeInt
    bytes_down: NonNegativeInt
    bytes_catch_up: NonNegativeInt


# What a comparison is about; runs that differ in anything else are told apart by more than their method.
_MAY_DIFFER = CHANGE_NO_VALUE | {"method"}


@dataclass(frozen=True)
class FinishedRun:
    """What a run folder says of its run."""

    folder: str
    config: Config
    summary: Mapping[str, Any]  # its keys: docs/run-folder.md


def read_run(folder: Path) -> FinishedRun:
    """Raises UserError for a folder without a run, with one that did not come to its end, or with half a summary."""
    try:
        summary = json_file(folder / "summary.json")
    except FileNotFoundError:
        if (folder / "config.yaml").exists():
            raise UserError(f"{folder}: this run did not finish (no summary.json); wait, or run it again") from None
        raise UserError(f"{folder}: holds no run (no summary.json); name run folders, like runs/quickstart") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/summary.json: cannot be read: {error}") from None
    if not isinstance(summary, dict) or not summary.keys() >= _Summary.model_fields.keys():
        raise UserError(f"{folder}/summary.json: cut short; run it again")
    try:
        _Summary.model_validate(summary)
    except ValidationError as error:
        said = "; ".join(explain(error, _Summary).splitlines())
        raise UserError(f"{folder}/summary.json: not as a run writes it: {said}; run it again") from None
    return FinishedRun(str(folder), load_config(folder / "config.yaml", []), summary)


def setting(run: FinishedRun) -> str:
    """One line on what the times were made with; no figure is told without it."""
    summary = run.summary
    return (
        f"seconds of network.mode {summary['seconds_mode']}, network.pipeline {run.config.network.pipeline}; "
        f"{summary['num_clients']} client(s) on {summary['num_workers']} worker(s)"
    )


def comparison_table(runs: Sequence[FinishedRun]) -> Table:
    """A row a run. Speed-ups are over the first run; `bound` columns are the recurrence's, without overhead."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    rows = [_cells(run, runs) for run in runs]
    for header in rows[0]:
        if header == "run":
            table.add_column(header, overflow="fold")
        else:
            table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row.values())
    return table


def _cells(run: FinishedRun, runs: Sequence[FinishedRun]) -> dict[str, str]:
    """Header → what stands below it."""
    summary, first = run.summary, runs[0].summary
    before, after = summary["loss_before"], summary["loss_after"]
    return {
        "run": _label(run, runs),
        "method": summary["method"],
        "loss\nbefore": f"{before:.4f}",
        "loss\nafter": f"{after:.4f}",
        "fall": f"{1 - after / before:.1%}",
        "seconds": f"{summary['seconds']:.1f}",
        "speed-up": f"{first['seconds'] / summary['seconds']:.2f}x",
        "bound\nseconds": f"{summary['seconds_bound']:.1f}",
        "bound\nspeed-up": f"{first['seconds_bound'] / summary['seconds_bound']:.2f}x",
        "overlap\nefficiency": f"{summary['overlap_efficiency']:.1%}",
        # What a client downloads to catch up is paid for like the rest.
        "bytes up\n+ down": decimal(summary["bytes_up"] + summary["bytes_down"] + summary["bytes_catch_up"]),
    }


def lora_table(runs: Sequence[FinishedRun]) -> Table | None:
    """Of the runs of federated LoRA what travelled, in the measures of FLoRIST's paper, a client's of a round; and for
    how long the server computed."""
    lora = [run for run in runs if "lora_download_efficiency" in run.summary]
    if not lora:
        return None
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("run", overflow="fold")
    for header in ("ranks", "loss\nafter", "download\nefficiency", "megabits\nup", "megabits\ndown", "server\nseconds"):
        table.add_column(header, justify="right", no_wrap=True)
    for run in lora:
        summary = run.summary
        table.add_row(
            _label(run, runs),
            run.config.method.lora.ranks_described(),
            f"{summary['loss_after']:.4f}",
            f"{summary['lora_download_efficiency']:.2e}",
            f"{summary['lora_megabits_up']:.1f}",
            f"{summary['lora_megabits_down']:.1f}",
            f"{summary['server_s']:.2f}",
        )
    return table


def _label(run: FinishedRun, runs: Sequence[FinishedRun]) -> str:
    """The run's name, or its folder where others have the same name."""
    same_name = [other for other in runs if other.config.name == run.config.name]
    return run.config.name if len(same_name) == 1 else run.folder


def differences(configs: Sequence[Config]) -> list[str]:
    """The dotted keys, methods and names aside, in which any two of the configs differ."""
    return list(differing_keys(configs, ignoring=_MAY_DIFFER))
