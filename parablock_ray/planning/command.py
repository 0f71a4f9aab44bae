"""`parablock plan`: where the seconds of a local step come from, and the plan made with them."""

import math
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from parablock_ray.algorithms.population import Population
from parablock_ray.config import Config
from parablock_ray.config.privacy import PrivacyConfig
from parablock_ray.driver import claimed, prepare
from parablock_ray.errors import UserError
from parablock_ray.named_files import check_files
from parablock_ray.planning.plan import Plan, plan
from parablock_ray.planning.scenario import Scenario
from parablock_ray.runtime.base import RunSetup
from parablock_ray.runtime.make import make_runtime
from parablock_ray.secure_terms import check_secure_aggregation
from parablock_ray.training.data import FederatedData
from parablock_ray.training.engine import make_engine
from parablock_ray.training.model import model_shapes

NUM_STEPS = 3  # measured on every block


@dataclass(frozen=True)
class Steps:
    """Seconds of a local step by block, and what they were taken on."""

    step_s: tuple[float, ...]
    num_workers: int
    peak_rss_bytes: dict[str, int] | None
    origin: str


def make_plan(config: Config, compute_s: str | None) -> Plan:
    """The plan of a run of this config, which is not made and leaves no run folder.

    `compute_s`: seconds of a local step, like "1.2" or "1.2,1.4" (one for each block). Without it, and without a
    fixed `network.compute_s`, models are loaded and steps are taken to measure them. Raises UserError, RunFailed.
    """
    given = None if compute_s is None else step_figures(compute_s, config.method.num_blocks)
    check_files(config)  # before anything is loaded
    check_secure_aggregation(config, largest=1)
    prepared = prepare(config)
    steps = _fixed(config, given) or _measured(config, prepared.data, prepared.population)
    scenario = Scenario(config, prepared.population, model_shapes(config.model.name), steps.num_workers, steps.step_s)
    return plan(scenario, steps.origin, steps.peak_rss_bytes)


def step_figures(text: str, num_blocks: int) -> tuple[float, ...]:
    """What `--compute-s` says, by block. Raises UserError."""
    try:
        figures = [float(part) for part in text.split(",")]
    except ValueError:
        figures = []
    if len(figures) not in (1, num_blocks) or not all(0 < figure < math.inf for figure in figures):
        raise UserError(
            f"--compute-s: must be seconds of a local step, over 0: one number, or one for each of "
            f"method.num_blocks = {num_blocks} blocks with commas between (got {text!r})"
        )
    return tuple(figures) if len(figures) == num_blocks else tuple(figures * num_blocks)


def _fixed(config: Config, given: Sequence[float] | None) -> Steps | None:
    """Figures of the command line, or else those by which the run itself would be priced; None: to be measured."""
    if given is not None:
        return Steps(tuple(given), _expected_workers(config), None, "given by --compute-s")
    step_s = config.network.compute_s
    if config.network.mode != "virtual" or step_s is None:
        return None
    by_block = tuple(step_s) if isinstance(step_s, list) else (step_s,) * config.method.num_blocks
    return Steps(by_block, _expected_workers(config), None, "given by network.compute_s")


def _expected_workers(config: Config) -> int:
    """As many as a run on this machine alone would start."""
    if config.runtime == "serial":
        return 1
    if config.workers.num != "auto":
        return config.workers.num
    from parablock_ray.runtime.connection import usable_cpus  # imports Ray, starts nothing
    from parablock_ray.runtime.placement import NodeResources, placement

    return placement(config, [NodeResources(usable_cpus(), torch.cuda.device_count())], measured=None).num_workers


def _measured(config: Config, data: FederatedData, population: Population) -> Steps:
    """On a runtime started as for the run, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="parablock-plan-") as folder:
        placed = config.model_copy(update={"out": folder, "privacy": PrivacyConfig()})  # steps are the same without
        runtime = make_runtime(RunSetup(placed, population, data, make_engine))
        with claimed(Path(folder), placed), closing(runtime):
            info = runtime.start()
            step_s = tuple(runtime.step_seconds(NUM_STEPS))
            return Steps(
                step_s, info.num_workers, runtime.peak_rss_bytes(), f"measured here (the median of {NUM_STEPS})"
            )
