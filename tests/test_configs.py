"""Every config and every sweep in the repository loads, whatever happens to the schema."""

import re
from pathlib import Path

import pytest

from parablock_ray.config import load_config
from parablock_ray.sweeping.expand import load_sweep

CONFIGS = Path(__file__).parents[1] / "configs"
SWEEPS = sorted(CONFIGS.rglob("sweeps/*.yaml"))
PARTS = sorted(CONFIGS.rglob("parts/*.yaml"))  # of configs and sweeps, and none by themselves
FILES = sorted({*CONFIGS.rglob("*.yaml")} - {*SWEEPS, *PARTS})


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_config_is_valid(file: Path) -> None:
    load_config(file, [])


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_every_run_of_a_sweep_is_valid(file: Path) -> None:
    assert load_sweep(file, None).runs


def test_every_part_is_a_part_of_a_config_or_a_sweep() -> None:
    texts = [file.read_text("utf-8") for file in (*FILES, *SWEEPS)]
    used = {name for text in texts for name in re.findall(r"parts/(\w+)", text)}
    assert used == {part.stem for part in PARTS}


def test_the_quick_start_is_there() -> None:
    assert CONFIGS / "quickstart.yaml" in FILES
    assert load_config(CONFIGS / "quickstart.yaml", []).name == "quickstart"
