"""Short runs of the tiny model through the real driver."""

import json
from pathlib import Path
from typing import Any

from parablock_ray.config import load_config
from parablock_ray.driver import run

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
SHORT = [
    "method.rounds=5",
    "method.local_steps=1",
    "method.batch_size=2",
    "data.num_train=60",
    "data.num_eval=8",
    "tracking.wandb=off",
]
METHODS = {
    "fedbcd": ["method.name=fedbcd"],
    "parablock": [],
    "parablock-bf16-wire": [
        "method.correction=eager",
        "method.staleness=2",
        "method.server_optimizer={name: adam, lr: 0.001}",
        "method.prox_mu=0.1",
        "network.wire_dtype=bfloat16",
        "network.chunk_mb=0.05",
    ],
    "parablock-sampled": ["clients.num=7", "clients.per_round=3", "data.split=iid", "method.rounds=8"],
    "fedavg-delayed": [
        "method.name=fedavg",
        "method.num_blocks=1",
        "method.staleness=1",
        "clients.num=7",
        "clients.per_round=3",
        "clients.sampling=by_size",
        "data.split={name: quantity, alpha: 0.5}",
        "method.rounds=8",
    ],
    "parablock-multi-krum": [
        "server.rule={name: multi_krum, num_attackers: 1}",
        "clients.num=6",
        "clients.min_participants=5",
        "data.split=iid",
    ],
    "fedavg": ["method.name=fedavg", "method.num_blocks=1"],
    "fedcybgd": ["method.name=fedcybgd"],
}
"""Overrides that turn the quickstart's ParaBlock into each method, with what else should change no bit."""


def run_tiny(out: Path, overrides: list[str]) -> dict[str, Any]:
    """Run the shortened quickstart; returns its summary."""
    return run(load_config(QUICKSTART, [*SHORT, *overrides, f"out={out}"]))


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
