"""The same training without overlap and with it: what a plan compares."""

from parablock_ray.config.lora import FactorMethod, FLoRA, FLoRIST, TotalsMethod
from parablock_ray.config.method import FedAvg, FedBCD, FedCyBGD, ParaBlock
from parablock_ray.planning.scenario import Scenario

_OWN_KEYS = {"name", "staleness", "correction"}  # the rest is the same in FedBCD and ParaBlock


def sequential(scenario: Scenario) -> Scenario:
    """The scenario under its method's control, which waits for every exchange."""
    method = scenario.config.method
    match method:
        case ParaBlock():
            shared = method.model_dump(exclude=_OWN_KEYS)
            return scenario.training(FedBCD.model_validate({"name": "fedbcd", **shared}))
        case FedBCD() | FedCyBGD() | TotalsMethod():
            return scenario
        case FedAvg() | FactorMethod() | FLoRA() | FLoRIST():
            return scenario.with_key("staleness", 0)


def overlapped(scenario: Scenario) -> Scenario | None:
    """The scenario with the staleness of its method, or 1; None for a method that cannot overlap."""
    method = scenario.config.method
    match method:
        case FedBCD():
            shared = method.model_dump(exclude=_OWN_KEYS)
            return scenario.training(ParaBlock.model_validate({"name": "parablock", **shared}))
        case FLoRIST(round_init="carry") | FedCyBGD() | TotalsMethod():
            return None
        case ParaBlock() | FedAvg() | FactorMethod() | FLoRA() | FLoRIST():
            return scenario.with_key("staleness", max(1, method.staleness))
