"""The seconds before a run begins."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from parablock_ray.config import Config


@contextmanager
def cluster_of(config: Config, module: str) -> Iterator[None]:
    """The cluster that the run needs, and `module` loaded: both take seconds, so they do it at the same time. Raises
    UserError where a cluster cannot be joined."""
    if config.runtime == "serial" or config.workers.num == "auto":
        yield  # auto: Ray takes stock of the free memory when it starts, so the driver must have taken its own
        return
    from parablock_ray.runtime.connection import connect, disconnect

    # The cluster in this thread, since Ray listens to signals. What fails to load will fail again where it is used.
    loading = threading.Thread(target=import_module, args=(module,))
    loading.start()
    try:
        connect(config)
        yield
    finally:
        disconnect()
        loading.join()  # a process that ends in the middle of it may crash
