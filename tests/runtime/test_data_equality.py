"""However data comes to the clients, Ray ends in the serial weights: packed, arriving, made when it is visited."""

import pytest

from tests.runtime.federation import rows, run_tiny

PLAIN = ["method.rounds=6", "clients.num=3", "data.split=iid", "engine.name=torch"]
ARRIVING = ["data.arrival={initial: 0.2, every: 2, share: 0.4}"]
MADE = ["data.num_train=null", "data.per_client=6", "clients.num=1000", "clients.per_round=3"]
SETTINGS = {"arrival": ARRIVING, "packing": ["data.packing=true", "data.max_length=256"], "made": MADE}
TOGETHER = [each for overrides in SETTINGS.values() for each in overrides]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run_tiny(tmp_path_factory.mktemp("plain") / "run", [*PLAIN, "runtime=serial"])


@pytest.mark.parametrize("name", SETTINGS)
def test_each_makes_other_weights_and_learns(tmp_path, plain, name):
    summary = run_tiny(tmp_path / "run", [*PLAIN, *SETTINGS[name], "runtime=serial"])
    assert summary["weights_sha256"] != plain["weights_sha256"]
    assert summary["loss_after"] < summary["loss_before"]


def test_rounds_tell_what_the_cohort_held(tmp_path):
    run_tiny(tmp_path / "run", [*PLAIN, *ARRIVING, "runtime=serial"])
    held = [row["num_examples"] for row in rows(tmp_path / "run" / "metrics.jsonl")]
    assert held == [12, 12, 36, 36, 60, 60]


def test_with_all_of_it_there_from_the_start_nothing_changes(tmp_path, plain):
    all_there = ["data.arrival={initial: 1, every: 1, share: 1}"]
    summary = run_tiny(tmp_path / "run", [*PLAIN, *all_there, "runtime=serial"])
    assert summary["weights_sha256"] == plain["weights_sha256"]


@pytest.mark.slow
def test_ray_ends_in_the_serial_weights(cluster, tmp_path):
    """All three at once, with clients that miss rounds."""
    serial = run_tiny(tmp_path / "serial", [*PLAIN, *TOGETHER, "runtime=serial"])
    summary = run_tiny(tmp_path / "ray", [*PLAIN, *TOGETHER, "workers.num=2"])
    for key in ("weights_sha256", "loss_before", "loss_after", "bytes_up", "bytes_catch_up"):
        assert summary[key] == serial[key]
