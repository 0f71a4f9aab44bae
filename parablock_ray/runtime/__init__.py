"""Runtimes: who carries out the plans. The only room that imports Ray."""

from parablock_ray.runtime.base import RunSetup, Runtime


def make_runtime(setup: RunSetup) -> Runtime:
    """The runtime named by `runtime`; Ray is imported only where it is used."""
    if setup.config.runtime == "serial":
        from parablock_ray.runtime.serial import SerialRuntime

        return SerialRuntime(setup)
    from parablock_ray.runtime.cluster import RayRuntime

    return RayRuntime(setup)


__all__ = ["RunSetup", "Runtime", "make_runtime"]
