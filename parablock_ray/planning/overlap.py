"""The same training without overlap and with it: what a plan compares."""

from pydantic import ValidationError

from parablock_ray.config.method import FedBCD, MethodConfig, ParaBlock
from parablock_ray.planning.scenario import Scenario

_OWN_KEYS = {"name", "staleness", "correction"}  # the rest is the same in FedBCD and ParaBlock


def sequential(scenario: Scenario) -> Scenario:
    """The scenario under its method's control, which waits for every exchange."""
    method = scenario.config.method
    if isinstance(method, ParaBlock):
        return scenario.training(FedBCD.model_validate({"name": "fedbcd", **method.model_dump(exclude=_OWN_KEYS)}))
    return scenario if method.staleness == 0 else scenario.with_key("staleness", 0)


def overlapped(scenario: Scenario) -> Scenario | None:
    """The scenario with the staleness of its method, or 1; None for a method that cannot overlap."""
    method = scenario.config.method
    if isinstance(method, FedBCD):
        return scenario.training(
            ParaBlock.model_validate({"name": "parablock", **method.model_dump(exclude=_OWN_KEYS)})
        )
    staleness = max(1, method.staleness)
    return scenario.with_key("staleness", staleness) if _takes(method, staleness) else None


def _takes(method: MethodConfig, staleness: int) -> bool:
    """Whether a config of this method may say so: some have no such key, and others refuse it."""
    try:
        type(method).model_validate({**method.model_dump(), "staleness": staleness})
    except ValidationError:
        return False
    return True
