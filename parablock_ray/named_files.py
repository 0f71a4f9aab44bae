"""The files that a config names by their paths: which keys do, and whether what those name can be used."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from parablock_ray.config import Config
from parablock_ray.config.evaluation import parse_task
from parablock_ray.errors import UserError
from parablock_ray.network.links import client_links
from parablock_ray.tracking.events import Dropped, read_events


def named_paths(config: Config) -> Iterator[tuple[str, str]]:
    """Key and value of all that may be the path of a file or a folder to read. A model's or a source's may be a name
    instead, which is then no path of this machine."""
    yield "model.name", config.model.name
    yield "data.source", config.data.source
    if config.network.trace is not None:
        yield "network.trace", config.network.trace
    if config.clients.participation is not None:
        yield "clients.participation", config.clients.participation
    for key, tasks in (("tasks", config.evaluation.tasks), ("during", config.evaluation.during)):
        yield from ((f"evaluation.{key}", task.of) for task in map(parse_task, tasks) if task.mark == "=")


def check_files(config: Config) -> None:
    """Reads the files that can be checked without a model or data. Raises UserError for one that cannot be used."""
    client_links(config.network, config.clients.num, config.seed)  # reads network.trace
    known_participation(config)


def known_participation(config: Config) -> list[Dropped]:
    """What `clients.participation` says. Raises UserError."""
    if config.clients.participation is None:
        return []
    path = Path(config.clients.participation)
    try:
        events = list(read_events(path))
    except (OSError, ValueError) as error:
        raise UserError(
            f"clients.participation: {path} cannot be read ({error}); name the events.jsonl of a run"
        ) from None
    dropped = [replace(event, detail=f"as in {path}") for event in events if isinstance(event, Dropped)]
    if config.secure_aggregation.enabled and any(each.has_sent for each in dropped):
        raise UserError(
            f"clients.participation: {path} holds updates that the server refused; with secure_aggregation.enabled it "
            "sees none of them and can refuse none; name the log of another run"
        )
    return dropped
