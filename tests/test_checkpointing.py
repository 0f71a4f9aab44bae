"""With which config a run may go on."""

from pathlib import Path

import pytest

from parablock_ray.checkpoint import Checkpoint
from parablock_ray.checkpointing import last_resumed
from parablock_ray.config import Config, fingerprint, load_config
from parablock_ray.config.differences import CHANGE_NO_VALUE, WHO_DOES_IT
from parablock_ray.errors import UserError
from tests.runtime.federation import QUICKSTART

OTHERS = {
    "runtime": "serial",
    "workers.num": "1",
    "workers.gpus_per_worker": "0.5",
    "workers.placement": "pack",
    "clients.on_error": "drop",
    "clients.on_death": "drop",
    "clients.max_replays": "7",
}


def config(*overrides: str) -> Config:
    return load_config(QUICKSTART, overrides)


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run with a checkpoint of its round 0, before which nothing was told."""
    before = config()
    told = {"loss_before": 2.0, "num_events": 0}
    about = {"fingerprint": fingerprint(before), "config": before.model_dump(mode="json"), **told}
    checkpoint = Checkpoint(tmp_path / "checkpoints" / "round-00000", 0, about, frozenset())
    monkeypatch.setattr("parablock_ray.checkpointing.newest", lambda root: (checkpoint, []))
    (tmp_path / "events.jsonl").touch()
    return tmp_path


@pytest.mark.parametrize("key", sorted(WHO_DOES_IT))
def test_who_does_it_may_change(saved: Path, key: str) -> None:
    resumed, _ = last_resumed(saved, config(f"{key}={OTHERS[key]}"))
    assert resumed is not None


def test_the_message_names_all_that_may_change(saved: Path) -> None:
    with pytest.raises(UserError) as refused:
        last_resumed(saved, config("seed=1", "workers.placement=pack"))
    assert "cannot be resumed as another run: seed was 0 (now 1); allowed are other values of " in str(refused.value)
    assert [key for key in CHANGE_NO_VALUE | WHO_DOES_IT if key not in str(refused.value)] == []
