"""A sweep file: one config, what to change in it, and with which seeds."""

import itertools
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, model_validator

from parablock_ray.config.base import Strict
from parablock_ray.config.schema import Seed, Text

Label = Annotated[str, Field(pattern=r"^\w[\w.+=-]*$")]  # a part of a folder's name
Overrides = tuple[str, ...]  # key=value, as on the command line

_SET_BY_THE_SWEEP = {
    "name": "every run is named after its labels",
    "out": "every run has its folder in the sweep's; the sweep's own `out` says where",
    "seed": "use `seeds`",
    "tracking.wandb_group": "it is the sweep's name",
}


class SweepFile(Strict):
    """The runs are the product of the grid's axes, then those of `runs`, each with every seed."""

    name: Label  # of the sweep: its W&B group and its folder
    config: Text  # the file that every run starts from, relative to this one
    out: Text | None = None  # the sweep's folder; None: runs/<name>
    seeds: tuple[Seed, ...] = (0,)
    overrides: Overrides = ()  # of all runs
    grid: dict[Label, dict[Label, Overrides]] = Field(default_factory=dict)  # axis → label → overrides
    runs: dict[Label, Overrides] = Field(default_factory=dict)  # label → overrides

    def variants(self) -> Iterator[tuple[str, Overrides]]:
        """Label and overrides of every kind of run, seeds aside; labels of different axes are joined."""
        if self.grid:
            for cell in itertools.product(*(axis.items() for axis in self.grid.values())):
                changes = itertools.chain.from_iterable(overrides for _, overrides in cell)
                yield "-".join(label for label, _ in cell), (*self.overrides, *changes)
        for label, overrides in self.runs.items():
            yield label, (*self.overrides, *overrides)

    @model_validator(mode="after")
    def _has_runs(self) -> "SweepFile":
        empty = [axis for axis, labels in self.grid.items() if not labels]
        if empty:
            raise ValueError(f"grid.{empty[0]}: has no labels; give it some, like {{a: [method.lr=0.1]}}, or remove it")
        if not self.grid and not self.runs:
            raise ValueError("grid: names no run; give it an axis with labels, or list the runs under `runs`")
        if not self.seeds:
            raise ValueError("seeds: names none; give at least one, like [0, 1, 2], or leave it out for [0]")
        return self

    @model_validator(mode="after")
    def _leaves_our_keys_alone(self) -> "SweepFile":
        for _, overrides in self.variants():
            for override in overrides:
                key = override.partition("=")[0]
                if key in _SET_BY_THE_SWEEP:
                    raise ValueError(f"{override}: {key} is set by the sweep; {_SET_BY_THE_SWEEP[key]}")
        return self
