"""In which keys configs differ, and which of those change no value."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from parablock_ray.config.schema import Config

CHANGE_NO_VALUE = frozenset({"name", "out", "checkpoint", "evaluation", "tracking"})
"""Top-level keys in which runs may differ and still end in the same weights."""

WHO_DOES_IT = frozenset(
    {
        *("runtime", "workers.num", "workers.gpus_per_worker", "workers.placement"),
        *("clients.on_error", "clients.on_death", "clients.max_replays"),
    }
)
"""Dotted keys with another value of which a run may go on too: who carries it out, and what a failure there does."""


def differing_keys(configs: Sequence[Config], ignoring: Collection[str]) -> dict[str, list[Any]]:
    """Dotted key → its value in each config, None where it has no such key; of the keys that are not the same in all.

    `ignoring`: top-level keys that may differ.
    """
    flat = [dict(_flat(config.model_dump(mode="json", exclude=set(ignoring)))) for config in configs]
    keys = dict.fromkeys(key for values in flat for key in values)
    values_of = {key: [values.get(key) for values in flat] for key in keys}
    return {key: values for key, values in values_of.items() if any(value != values[0] for value in values)}


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
