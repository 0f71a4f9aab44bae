"""Every method by name: how it plans, and the two halves that carry its plans out.

To add a method that trains blocks: its config class in `parablock_ray/config/method.py` and an entry here; what one of
federated LoRA needs is listed in `parablock_ray/config/lora.py`. The runtime does not change. A test asserts that both
know the same names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from parablock_ray.algorithms.base import LiveModel, Method, Replica, RoundPlan, Server
from parablock_ray.algorithms.block_methods import fedavg, fedbcd, fedcybgd, parablock
from parablock_ray.algorithms.block_replica import BlockReplica
from parablock_ray.algorithms.block_server import BlockServer
from parablock_ray.algorithms.lora_methods import LoraSchedule
from parablock_ray.algorithms.lora_replica import LoraReplica, factor_replica
from parablock_ray.algorithms.lora_server import FactorServer, LoraServer
from parablock_ray.algorithms.population import Population
from parablock_ray.algorithms.privacy import GaussianMean
from parablock_ray.algorithms.wire import Wire
from parablock_ray.config.lora import LoraMethod
from parablock_ray.config.method import BlockMethod, MethodConfig
from parablock_ray.config.server import Rule


@dataclass(frozen=True)
class MethodParts:
    """`server` takes the fp32 master's parameters by name, `replica` a worker's model; see the classes themselves."""

    schedule: Callable[..., Method]
    server: Callable[..., Server]
    replica: Callable[..., Replica]


def block_server(
    config: BlockMethod,
    population: Population,
    parameters: Mapping[str, Tensor],
    wire: Wire,
    cut_through: bool,
    rule: Rule | GaussianMean,
) -> Server:
    """Around blocks of the model's parameters, or of adapters."""
    kind = FactorServer if config.parameters == "lora" else BlockServer
    return kind(config, population, parameters, wire, cut_through, rule)


def block_replica(config: BlockMethod, population: Population, live: LiveModel, wire: Wire) -> Replica:
    """Around blocks of the model's parameters, or of adapters."""
    make = factor_replica if config.parameters == "lora" else BlockReplica
    return make(config, population, live, wire)


METHODS: dict[str, MethodParts] = {
    "parablock": MethodParts(parablock, block_server, block_replica),
    "fedbcd": MethodParts(fedbcd, block_server, block_replica),
    "fedavg": MethodParts(fedavg, block_server, block_replica),
    "fedcybgd": MethodParts(fedcybgd, block_server, block_replica),
    "fedit": MethodParts(LoraSchedule, FactorServer, factor_replica),
    "ffa_lora": MethodParts(LoraSchedule, FactorServer, factor_replica),
    "zero_pad": MethodParts(LoraSchedule, LoraServer, LoraReplica),
    "hetlora": MethodParts(LoraSchedule, LoraServer, LoraReplica),
    "fedex_lora": MethodParts(LoraSchedule, LoraServer, LoraReplica),
    "flexlora": MethodParts(LoraSchedule, LoraServer, LoraReplica),
    "flora": MethodParts(LoraSchedule, LoraServer, LoraReplica),
    "florist": MethodParts(LoraSchedule, LoraServer, LoraReplica),
}


def trains_adapters(config: MethodConfig) -> bool:
    """Whether clients train adapters in place of the model's own parameters."""
    return isinstance(config, LoraMethod) or config.parameters == "lora"


def make_method(config: MethodConfig, population: Population) -> Method:
    """The method named by `config.name`, as a planner."""
    return METHODS[config.name].schedule(config, population)


@dataclass(frozen=True)
class WithoutSizes:
    """A planner whose plans tell nobody's n_i."""

    method: Method

    @property
    def num_rounds(self) -> int:
        return self.method.num_rounds

    @property
    def staleness(self) -> int:
        return self.method.staleness

    def plan(self, round: int) -> RoundPlan:
        return self.method.plan(round).without_sizes()


def make_server(
    config: MethodConfig,
    population: Population,
    parameters: Mapping[str, Tensor],
    wire: Wire,
    cut_through: bool,
    rule: Rule | GaussianMean,
) -> Server:
    """Its server's half, around the parameters of the fp32 master, which it updates in place at each commit."""
    return METHODS[config.name].server(config, population, parameters, wire, cut_through, rule)


def make_replica(config: MethodConfig, population: Population, live: LiveModel, wire: Wire) -> Replica:
    """Its client's half, around a worker's model, whose parameters it writes in place."""
    return METHODS[config.name].replica(config, population, live, wire)
