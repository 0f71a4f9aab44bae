"""Every method by name: how it plans, and the two halves that carry its plans out.

To add a method: its config class in `parablock_ray/config/method.py` and an entry here. The runtime does not change.
A test asserts that both know the same names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import Parameter

from parablock_ray.algorithms.base import Method, Replica, Server
from parablock_ray.algorithms.block_methods import fedavg, fedbcd, fedcybgd, parablock
from parablock_ray.algorithms.block_replica import BlockReplica
from parablock_ray.algorithms.block_server import BlockServer
from parablock_ray.algorithms.population import Population
from parablock_ray.algorithms.wire import Wire
from parablock_ray.config.method import MethodConfig


@dataclass(frozen=True)
class MethodParts:
    """`server` takes the fp32 master's parameters, `replica` a worker's, by name; see the classes themselves."""

    schedule: Callable[..., Method]
    server: Callable[..., Server]
    replica: Callable[..., Replica]


METHODS: dict[str, MethodParts] = {
    "parablock": MethodParts(parablock, BlockServer, BlockReplica),
    "fedbcd": MethodParts(fedbcd, BlockServer, BlockReplica),
    "fedavg": MethodParts(fedavg, BlockServer, BlockReplica),
    "fedcybgd": MethodParts(fedcybgd, BlockServer, BlockReplica),
}


def make_method(config: MethodConfig, population: Population) -> Method:
    """The method named by `config.name`, as a planner."""
    return METHODS[config.name].schedule(config, population)


def make_server(
    config: MethodConfig, population: Population, parameters: Mapping[str, Tensor], wire: Wire, cut_through: bool
) -> Server:
    """Its server's half, around the parameters of the fp32 master, which it updates in place at each commit."""
    return METHODS[config.name].server(config, population, parameters, wire, cut_through)


def make_replica(
    config: MethodConfig,
    population: Population,
    parameters: Mapping[str, Parameter],
    exact: Mapping[str, Tensor],
    wire: Wire,
) -> Replica:
    """Its client's half, around the parameters of a worker's model, which it writes in place.

    `exact`: by name, the fp32 values of parameters that the model's dtype rounds.
    """
    return METHODS[config.name].replica(config, population, parameters, exact, wire)
