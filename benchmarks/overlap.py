"""How much of what overlap can be worth the runtime really gives: `python benchmarks/overlap.py --json`.

Runs through the package's own driver loop and Ray actors, two workers with a client each, every chunk really delayed
(`network.mode: shaped`). Training is a fixed amount of work (federation.py), calibrated alone beforehand to c seconds.
Beside each measured time stands that of the recurrence for exactly c, with no overhead at all; efficiency is their
quotient. u and d are seconds of one block's upload and download.

    A   c = u + d, store-and-forward (a block is one chunk), serial pipeline: FedBCD against ParaBlock (bound 1.935)
    B   c = u = d: ParaBlock with cut-through exchange (16 chunks), duplex pipeline, against FedBCD with
        store-and-forward (bound 2.818) and with cut-through exchange (1.937); and with the serial pipeline
        (2.738, 1.882)
    real  (`--real`, in their place) a few rounds of SmolLM2-135M, FedBCD against ParaBlock

Two busy clients leave no core of a two-core machine for the server and for Ray, whose messages (2 ms of computing for a
chunk that is put, sent and got) then slow the training: `--training asleep` shows the same runs with the cores free, as
they are where clients train on GPUs.

`plan_error`: on the workers of each run, before its first round, steps are measured as `parablock plan` measures them,
and the run is planned with them; the largest difference from a measured time, as a fraction of that.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from federation import (
    Federation,
    FixedWork,
    Measured,
    asleep_for,
    busy_for,
    make_federation,
    measure,
    own_cluster,
    planned_s,
)
from harness import Row, note, parser, report

from parablock_ray.config import Config, load_config
from parablock_ray.errors import UserError
from parablock_ray.planning.command import NUM_STEPS
from parablock_ray.training.engine import make_engine

NUM_CHUNKS = 16
EFFICIENCY_GOAL = 0.95
PLAN_ERROR_GOAL = 0.10
DEMO = Path(__file__).parents[1] / "configs" / "demo_parablock.yaml"


TRAINING = {"busy": busy_for, "asleep": asleep_for}


@dataclass(frozen=True)
class Case:
    """One run: `exchange_ratio` is u/c and d/c."""

    method: str
    exchange: str
    pipeline: str
    exchange_ratio: float


CASES = {
    "A/fedbcd": Case("fedbcd", "store_and_forward", "serial", 0.5),
    "A/parablock": Case("parablock", "store_and_forward", "serial", 0.5),
    "B/fedbcd": Case("fedbcd", "store_and_forward", "duplex", 1.0),
    "B/fedbcd_cut_through": Case("fedbcd", "cut_through", "duplex", 1.0),
    "B/parablock_serial": Case("parablock", "cut_through", "serial", 1.0),
    "B/parablock_duplex": Case("parablock", "cut_through", "duplex", 1.0),
}
# Name of the row → (the control, the case measured against it). The bounds are computed, not written down here.
SPEEDUPS = {
    "speedup/store_and_forward": ("A/fedbcd", "A/parablock"),
    "speedup/cut_through": ("B/fedbcd", "B/parablock_duplex"),
    "speedup/cut_through_vs_cut_through": ("B/fedbcd_cut_through", "B/parablock_duplex"),
    "speedup/cut_through_serial": ("B/fedbcd", "B/parablock_serial"),
    "speedup/cut_through_serial_vs_cut_through": ("B/fedbcd_cut_through", "B/parablock_serial"),
}
EFFICIENCIES = {
    "efficiency/store_and_forward": "A/parablock",
    "efficiency/cut_through": "B/parablock_duplex",
    "efficiency/cut_through_serial": "B/parablock_serial",
}


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder, own_cluster():  # one for all runs: its start is no part of them
        rows = real_training(folder) if options.real else fixed_training(Path(folder), options)
        report(list(rows), options.json)


def fixed_training(folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """The cases A and B."""
    federation = make_federation(folder)
    work = TRAINING[options.training](options.compute_s)
    configs = {name: config_of(CASES[name], federation, options) for name in options.cases}
    runs = {name: run_case(name, config, work, options.compute_s) for name, config in configs.items()}
    planned = {name: planned_s(run) for name, run in runs.items()}
    yield from figures(runs, options.compute_s)
    yield from plan_figures(planned, runs)


def arguments() -> argparse.Namespace:
    options = parser("Overlap in the real runtime against the recurrence.")
    options.add_argument("--compute-s", type=float, default=0.6, help="c: seconds of one client's training in a round")
    options.add_argument("--rounds", type=int, default=30)
    options.add_argument("--training", choices=TRAINING, default="busy", help="asleep: as if it were on a GPU")
    options.add_argument("--real", action="store_true", help="train SmolLM2-135M in place of the cases")
    options.add_argument(
        "--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES)
    )
    return options.parse_args()


def config_of(case: Case, federation: Federation, options: argparse.Namespace) -> Config:
    seconds = case.exchange_ratio * options.compute_s
    mbps = federation.block_bytes * 8 / 1e6 / seconds
    num_chunks = NUM_CHUNKS if case.exchange == "cut_through" else 1
    network = {
        "mode": "shaped",
        "up_mbps": mbps,
        "down_mbps": mbps,
        "pipeline": case.pipeline,
        "exchange": case.exchange,
        "chunk_mb": -(-federation.block_bytes // num_chunks) / 1e6,
    }
    return federation.config({"name": case.method, "rounds": options.rounds}, network, num_clients=2)


def run_case(name: str, config: Config, work: FixedWork, compute_s: float) -> Measured:
    run = measure(config, work, NUM_STEPS)
    note(
        f"{name}: {run.seconds:.2f} s, bound {run.bound_s(compute_s):.2f} s "
        f"({run.bound_s():.2f} s with the {run.compute_s:.3f} s of compute that were measured)"
    )
    return run


def figures(runs: dict[str, Measured], compute_s: float) -> Iterator[Row]:
    """The rows of the cases that were run."""
    for name, run_name in EFFICIENCIES.items():
        if run_name in runs:
            run = runs[run_name]
            yield Row(name, run.bound_s(compute_s) / run.seconds, "ratio", EFFICIENCY_GOAL)
            yield Row(f"{name}/measured_compute", run.bound_s() / run.seconds, "ratio")
    for name, (control_name, run_name) in SPEEDUPS.items():
        if control_name in runs and run_name in runs:
            control, run = runs[control_name], runs[run_name]
            bound = control.bound_s(compute_s) / run.bound_s(compute_s)
            yield Row(name, control.seconds / run.seconds, "x", EFFICIENCY_GOAL * bound)
            yield Row(f"{name}/bound", bound, "x", spread=0.0)
    for name, run in runs.items():
        yield Row(f"seconds/{name}", run.seconds, "s")
        yield Row(f"seconds_bound/{name}", run.bound_s(compute_s), "s")
        yield Row(f"compute/{name}", run.compute_s / compute_s, "of c")


def plan_figures(planned: Mapping[str, float], runs: Mapping[str, Measured]) -> Iterator[Row]:
    """How far the plans, in seconds by case, were from the runs."""
    error = max(abs(planned[name] - run.seconds) / run.seconds for name, run in runs.items())
    yield Row("plan_error", error, "of measured", PLAN_ERROR_GOAL, at_most=True)
    for name, seconds in planned.items():
        yield Row(f"seconds_planned/{name}", seconds, "s")


def real_training(folder: str) -> Iterator[Row]:
    """SmolLM2-135M over the demo's link, a client to a worker, as FedBCD and as ParaBlock."""
    runs = {}
    for method in ("fedbcd", "parablock"):
        try:
            run = measure(real_config(method, folder), make_engine)
        except UserError as error:
            note(f"real/: left out: {error}")
            return
        note(f"real/{method}: {run.seconds:.2f} s, bound {run.bound_s():.2f} s, compute {run.compute_s:.2f} s a visit")
        runs[method] = run
    fedbcd, parablock = runs["fedbcd"], runs["parablock"]
    yield Row("real/speedup", fedbcd.seconds / parablock.seconds, "x")
    yield Row("real/speedup/bound", fedbcd.bound_s() / parablock.bound_s(), "x")
    yield Row("real/efficiency", parablock.bound_s() / parablock.seconds, "ratio")


def real_config(method: str, folder: str) -> Any:
    overrides = {
        "method.name": method,
        "method.rounds": 4,
        "clients.num": 2,
        "data.tasks": "[chain_sum, gcd]",
        "data.num_train": 200,
        "out": f"{folder}/real",
        "tracking.wandb": "off",
    }
    return load_config(DEMO, [f"{key}={value}" for key, value in overrides.items()])


if __name__ == "__main__":
    main()
