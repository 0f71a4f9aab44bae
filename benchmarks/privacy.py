"""What does privacy cost? `python benchmarks/privacy.py --json`.

Loss against ε on the small Llama (models/small-llama, see configs/experiments/README.md) and arithmetic: many simulated
clients of a few examples each, Poisson sampling, a local step a visit, one process. Each method runs once without clip
and noise, once with the clip alone (`none`), and once for every ε of `--epsilons`, for which the noise is solved.

A figure is the fall of the held-out loss: of the run that is neither clipped nor noised in nats, of the others over
that one's. 1 is as good, 0 has learnt nothing, and −1 stands for all that is worse. Noise comes from `privacy.seed`, so
figures can be made again.

The norm of the noise in a round is z C √d / m against at most C of what was learnt: how many parameters d are trained,
with a cohort of what size m, decides. `ffa_lora` trains 12 thousand, a block of `parablock` 1.4 million.
"""

import io
import math
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from harness import Row, note, parser, report

from parablock_ray.config import load_config
from parablock_ray.driver import run

SMALL = Path(__file__).parents[1] / "configs" / "experiments" / "math_small.yaml"
WORST = -1.0

METHODS: Mapping[str, Sequence[str]] = {
    "ffa_lora": [
        "method={name: ffa_lora, lr: 0.01, batch_size: 4, local_steps: 1, lora: {ranks: 4}}",
        "privacy.clip=0.5",
    ],
    "parablock": ["method.name=parablock", "method.lr=3e-4", "method.local_steps=1", "privacy.clip=0.15"],
}


def main() -> None:
    options = arguments(None)
    report(figures(options), options.json)


def arguments(given: Sequence[str] | None) -> Namespace:
    """What is asked for on the command line, or in `given`."""
    options = parser(str(__doc__))
    options.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="to train with")
    options.add_argument("--epsilons", nargs="*", type=float, default=[64.0, 16.0, 8.0, 4.0, 2.0], help="to solve for")
    options.add_argument("--clients", type=int, default=1000, help="that there are, with four examples each")
    options.add_argument("--per-round", type=int, default=50, help="that are expected in a round")
    options.add_argument("--rounds", type=int, default=16, help="of every run")
    options.add_argument("--delta", type=float, default=1e-4, help="privacy.delta")
    options.add_argument("--model", default="models/small-llama", help="model.name")
    options.add_argument("--seed", type=int, default=0, help="of every run, and of its noise")
    return options.parse_args(given)


def figures(options: Namespace) -> Iterator[Row]:
    """A row for the plain run of each method, one for the clip, two for each ε: what is left, and the noise."""
    for method in options.methods:
        plain = summary_of(method, ["privacy.clip=1e9", "privacy.noise_multiplier=0"], options)
        whole = plain["loss_before"] - plain["loss_after"]
        note(f"{method}: held-out loss {plain['loss_before']:.4f}, {plain['loss_after']:.4f} without clip and noise")
        yield Row(f"privacy/{method}/fall", whole, "nats")
        yield progress("none", method, ["privacy.noise_multiplier=0"], options, whole)[0]
        for epsilon in options.epsilons:
            yield from progress(f"{epsilon:g}", method, [f"privacy.target_epsilon={epsilon}"], options, whole)


def progress(name: str, method: str, overrides: Sequence[str], options: Namespace, whole: float) -> list[Row]:
    """What is left of the fall, and the noise multiplier that took the rest."""
    summary = summary_of(method, overrides, options)
    fall = summary["loss_before"] - summary["loss_after"]
    left = max(WORST, fall / whole) if math.isfinite(fall) else WORST
    noise = summary["noise_multiplier"]
    note(f"{method}, epsilon {name}: {summary['loss_after']:.4f}, {left:.3f} of the fall, noise multiplier {noise:.3f}")
    return [
        Row(f"privacy/{method}/epsilon_{name}/progress", left, "ratio"),
        Row(f"privacy/{method}/epsilon_{name}/noise_multiplier", noise, "ratio"),
    ]


def summary_of(method: str, overrides: Sequence[str], options: Namespace) -> dict[str, Any]:
    """Of one run."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        common = [
            *("tracking.wandb=off", "evaluation.every=null", f"out={folder}/run", f"model.name={options.model}"),
            *(f"seed={options.seed}", f"privacy.seed={options.seed}", f"privacy.delta={options.delta}"),
            *(f"clients.num={options.clients}", f"clients.per_round={options.per_round}", "clients.sampling=poisson"),
            *(f"data.num_train={4 * options.clients}", "network.compute_s=0.1"),
        ]
        last = [f"method.rounds={options.rounds}", "method.lr_schedule=constant", *overrides]
        return run(load_config(SMALL, [*common, *METHODS[method], *last]))


if __name__ == "__main__":
    main()
