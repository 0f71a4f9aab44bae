"""Short LoRA runs of the tiny model through the real driver."""

from pathlib import Path
from typing import Any

from parablock_ray.config import Config, load_config
from parablock_ray.driver import run
from tests.runtime.federation import QUICKSTART, SHORT

MIXED = [2, 4, 4, 8]
TRAINING = {"rounds": 5, "local_steps": 2, "batch_size": 4, "lr": 0.01}
METHODS: dict[str, dict[str, Any]] = {
    "fedit": {"lora": {"ranks": 4}},
    "fedit-delayed": {"lora": {"ranks": 4}, "staleness": 1},
    "ffa_lora": {"lora": {"ranks": 4}},
    "ffa_lora-delayed": {"lora": {"ranks": 4}, "staleness": 1, "correction": "eager"},
    "zero_pad": {"lora": {"ranks": MIXED}},
    "hetlora": {"lora": {"ranks": MIXED}},
    "fedex_lora": {"lora": {"ranks": 4}},
    "flexlora": {"lora": {"ranks": MIXED}},
    "flora": {"lora": {"ranks": MIXED}},
    "flora-delayed": {"lora": {"ranks": MIXED}, "staleness": 1},
    "florist": {"lora": {"ranks": MIXED}, "threshold": 0.9},
    "florist-delayed": {"lora": {"ranks": MIXED}, "threshold": 0.9, "staleness": 2},
    "florist-carry": {"lora": {"ranks": MIXED}, "round_init": "carry"},
    "parablock-lora": {"lora": {"ranks": 4}, "parameters": "lora", "num_blocks": 2},
}
"""The `method` section of each run, beside TRAINING."""


def lora_config(out: Path, method: str, overrides: list[str]) -> Config:
    """The shortened quickstart's model, data and workers with this entry of METHODS."""
    quick = load_config(QUICKSTART, [*SHORT, *overrides, f"out={out}"]).model_dump()
    section = {"name": method.partition("-")[0], **TRAINING, **METHODS[method]}
    return Config.model_validate({**quick, "method": section})


def run_lora(out: Path, method: str, overrides: list[str]) -> dict[str, Any]:
    """Run it; returns its summary."""
    return run(lora_config(out, method, overrides))
