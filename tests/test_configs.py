"""Every config in the repository loads, whatever happens to the schema."""

from pathlib import Path

import pytest

from parablock_ray.config import load_config

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_config_is_valid(file: Path) -> None:
    load_config(file, [])


def test_the_quick_start_is_there() -> None:
    assert CONFIGS / "quickstart.yaml" in FILES
    assert load_config(CONFIGS / "quickstart.yaml", []).name == "quickstart"
