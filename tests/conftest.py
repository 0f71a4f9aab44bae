"""What tests share: one torch thread (hashes are compared at equal thread counts), and one Ray cluster."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A local cluster for the whole session: it takes seconds to start. More CPUs than there are, for 4 actors."""
    import ray

    # Our own, whatever cluster runs here, or has left its address behind.
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def configs() -> Path:
    """The folder of example configs."""
    return Path(__file__).parents[1] / "configs"
