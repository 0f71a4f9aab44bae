"""A finished run under another link, without training again: the same events, priced anew."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from parablock_ray.config import Config, load_config
from parablock_ray.config.network import CLIENT_KEYS, LINK_PRESETS, NetworkConfig
from parablock_ray.errors import UserError
from parablock_ray.pricing import Pricing, price
from parablock_ray.tracking.compare import read_run
from parablock_ray.tracking.events import Dropped, Event, read_events
from parablock_ray.tracking.trace import chrome_trace


@dataclass(frozen=True)
class Repriced:
    """`before_s`, `after_s`: what the recurrence says of the run's own link and of the new one."""

    summary: Mapping[str, Any]  # of the run
    before: Config
    after: Config
    before_s: float
    after_s: float
    trace: dict[str, Any]  # of the run under the new link, in Chrome's format

    def table(self) -> Table:
        """Seconds in all and of a round; speed over the run's own link."""
        table = Table(box=None, pad_edge=False)
        for header in ("", "network", "seconds", "seconds a round", "speed"):
            table.add_column(header, justify="right" if header.startswith(("seconds", "speed")) else "left")
        if self.before.network.mode != "virtual":
            self._add_row(table, "as it ran", self.before, self.summary["seconds"])
        self._add_row(table, "priced, own link", self.before, self.before_s)
        self._add_row(table, "priced, new link", self.after, self.after_s)
        return table

    def _add_row(self, table: Table, what: str, config: Config, seconds: float) -> None:
        network = f"{config.network.mode} {config.network.described()}".strip()
        a_round, speed = seconds / self.summary["num_rounds"], self.before_s / seconds
        table.add_row(what, network, f"{seconds:.3f}", f"{a_round:.3f}", f"{speed:.2f}x")


def reprice(folder: Path, overrides: Sequence[str]) -> Repriced:
    """Price the run in `folder` under its config changed by `overrides`, of `network.*` only.

    A run in mode `none`, which had no link, is priced in mode `virtual` unless the overrides name a mode. Raises
    UserError for a run that did not finish and for a key that would have changed more than seconds.
    """
    run = read_run(folder)
    after = load_config(folder / "config.yaml", _changes(run.config, overrides))
    events = _read_events(folder / "events.jsonl")
    if any(isinstance(event, Dropped) and event.why == "late" for event in events):
        raise UserError(
            f"{folder}: has clients that were late, and over another network it would be others; train again"
        )
    before_s = price(events, Pricing(run.config))[0].seconds
    timeline, told = price(events, Pricing(after))
    num_rounds = run.summary["num_rounds"]
    if len(timeline.rounds) != num_rounds:
        raise UserError(f"{folder}/events.jsonl: holds {len(timeline.rounds)} of {num_rounds} rounds; run it again")
    trace = chrome_trace(
        told, {"seconds": timeline.seconds, "network": after.network.model_dump(mode="json")}, with_server=False
    )
    return Repriced(run.summary, run.config, after, before_s, timeline.seconds, trace)


def _changes(config: Config, overrides: Sequence[str]) -> list[str]:
    """The overrides, after what clears the ground for them: in a run's config every key is filled in."""
    given = {}
    for override in overrides:
        key, _, value = override.partition("=")
        section, _, name = key.partition(".")
        if section != "network" or not name:
            raise UserError(
                f"{key}: reprice takes keys of network only, like network.up_mbps=20; train again to change it"
            )
        if name == "wire_dtype":
            raise UserError(f"{key}: it changes values and bytes, not only seconds; train again to change it")
        given[name.partition(".")[0]] = value
    cleared: dict[str, Any] = {}
    if config.network.mode == "none":
        cleared["mode"] = "virtual"
    if given.get("trace", "null") != "null":
        cleared["preset"] = None
    for key in CLIENT_KEYS:
        if given.get("trace", "null") != "null":
            cleared[key] = NetworkConfig.model_fields[key].default
    cleared |= LINK_PRESETS.get(given.get("preset", ""), {})
    return [*(f"network.{key}={json.dumps(value)}" for key, value in cleared.items()), *overrides]


def _read_events(path: Path) -> list[Event]:
    try:
        return list(read_events(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
