"""The seconds before a run begins."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from parablock_ray.config import Config


@contextmanager
def own_cluster_of(config: Config) -> Iterator[None]:
    """The cluster of a run that has one to itself: up before this process loads torch and transformers, so that the
    cluster's processes load them at the same time.

    Not in a thread beside these imports: Ray imports some of the same modules, and Python may then hand out half of
    one. Not for `workers.num: auto`, where Ray takes stock of the free memory when it starts, so that the driver must
    have taken its own. A cluster that is joined comes later too: connected to one, a job's torch has failed to load.
    """
    if config.runtime == "serial" or config.workers.num == "auto" or os.environ.get("RAY_ADDRESS"):
        yield
        return
    from parablock_ray.runtime.connection import connect, disconnect

    try:
        connect(config)
        yield
    finally:
        disconnect()
