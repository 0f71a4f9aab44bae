"""From a sweep file to its runs, each with a checked config."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parablock_ray.config import Config, load_config
from parablock_ray.config.load import load_checked
from parablock_ray.config.sweep import Overrides, SweepFile
from parablock_ray.errors import UserError
from parablock_ray.named_files import check_files
from parablock_ray.secure_terms import check_secure_aggregation

_MAX_LABELS = 3  # that a mistake of many runs names


@dataclass(frozen=True)
class SweepRun:
    """`label`: those of the file, and the seed; the name of the run, and of its folder in the sweep's."""

    label: str
    config: Config

    @property
    def folder(self) -> Path:
        return Path(self.config.out)


@dataclass(frozen=True)
class Sweep:
    """`folder` holds the folders of the runs."""

    name: str
    folder: Path
    runs: Sequence[SweepRun]


def load_sweep(file: Path, out: Path | None) -> Sweep:
    """The runs of a sweep file, in its order, seed by seed. `out`: the sweep's folder, in place of the file's.

    Raises UserError with every mistake of every run, and for two runs with one folder.
    """
    told = load_checked(file, [], SweepFile)
    folder = out or Path(told.out or f"runs/{told.name}")
    changes: dict[str, Overrides] = {}
    for label, overrides in _seeded(told, folder):
        if label in changes:
            raise UserError(f"{file}: two runs would share the folder {folder / label}; make their labels differ")
        changes[label] = overrides
    runs, mistakes = [], defaultdict(list)
    for label, overrides in changes.items():
        try:
            config = load_config(file.parent / told.config, overrides)
            check_files(config)
            check_secure_aggregation(config, largest=1)
        except UserError as error:
            for line in str(error).splitlines():
                mistakes[line].append(label)
        else:
            runs.append(SweepRun(label, config))
    if mistakes:
        raise UserError(_listed(mistakes))
    return Sweep(told.name, folder, runs)


def _seeded(told: SweepFile, folder: Path) -> Iterator[tuple[str, Overrides]]:
    for variant, overrides in told.variants():
        for seed in told.seeds:
            label = f"{variant}-seed{seed}"
            ours = (f"name='{label}'", f"seed={seed}", f"tracking.wandb_group='{told.name}'")
            yield label, (*overrides, *ours, f"out={_quoted(folder / label)}")


def _quoted(path: Path) -> str:
    """YAML that stands for this path, whatever is in it."""
    text = str(path).replace("'", "''")
    return f"'{text}'"


def _listed(mistakes: Mapping[str, Sequence[str]]) -> str:
    """A line a mistake, with the runs that make it."""
    return "\n".join(f"{_some(labels)}: {mistake}" for mistake, labels in mistakes.items())


def _some(labels: Sequence[str]) -> str:
    more = len(labels) - _MAX_LABELS
    return ", ".join(labels[:_MAX_LABELS]) + (f" and {more} more" if more > 0 else "")
