"""What tests share: one torch thread (hashes are compared at equal thread counts), one Ray cluster, and patience: no
property fails because a machine is slow. With `--hypothesis-profile=repeatable`, as in CI, examples are the same every
time."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repeatable", settings.get_profile("patient"), derandomize=True)
settings.load_profile("patient")
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts Ray's processes is slow: each of them loads torch and transformers. `smoke` exempts a test."""
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()) and item.get_closest_marker("smoke") is None:
            item.add_marker("slow")


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A local cluster for the whole session: it takes seconds to start. More CPUs than there are, for 4 actors."""
    import ray

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_prestart_worker_first_driver", "0")  # our actors have environments of their own
        # Our own, whatever cluster runs here, or has left its address behind.
        ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def configs() -> Path:
    """The folder of example configs."""
    return Path(__file__).parents[1] / "configs"
