"""The runtime that a config names. Ray is imported only where it is used."""

from parablock_ray.config import Config
from parablock_ray.runtime.base import RunSetup, Runtime
from parablock_ray.tracking.sinks import Sink


def make_runtime(setup: RunSetup) -> Runtime:
    """The runtime named by `runtime`."""
    if setup.config.runtime == "serial":
        from parablock_ray.runtime.serial import SerialRuntime

        return SerialRuntime(setup)
    from parablock_ray.runtime.cluster import RayRuntime

    return RayRuntime(setup)


def runtime_sinks(config: Config) -> list[Sink]:
    """Sinks that belong to the runtime: with Ray, the metrics of its dashboard."""
    if config.runtime == "serial":
        return []
    from parablock_ray.runtime.metrics import RayMetricsSink

    return [RayMetricsSink(config)]
