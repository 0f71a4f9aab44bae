"""Sweep files over a small config."""

from pathlib import Path
from typing import Any

import yaml

BASE = {
    "name": "base",
    "out": "runs/base",
    "runtime": "serial",
    "model": {"name": "tiny"},
    "data": {"source": "reasoning_gym", "tasks": ["chain_sum"], "num_train": 80},
    "clients": {"num": 4},
    "method": {"name": "parablock", "rounds": 3},
}
GRID = {
    "method": {"fedbcd": ["method.name=fedbcd"], "parablock": []},
    "lr": {"low": ["method.lr=1e-4"], "high": ["method.lr=1e-2"]},
}


def sweep_file(folder: Path, **changes: Any) -> Path:
    """A sweep over GRID in `folder`, changed by `changes`; a key that is None is left out."""
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    content = {"name": "trial", "config": "base.yaml", "out": str(folder / "out"), "grid": GRID} | changes
    file = folder / "sweep.yaml"
    told = {key: value for key, value in content.items() if value is not None}
    file.write_text(yaml.safe_dump(told, sort_keys=False))
    return file
