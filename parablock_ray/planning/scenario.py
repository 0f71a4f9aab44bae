"""A run that is not made: who would do what in it, handed to the recurrence."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from parablock_ray.algorithms.base import RoundPlan, Visit
from parablock_ray.algorithms.blocks import BlockLayout
from parablock_ray.algorithms.methods import make_method
from parablock_ray.algorithms.population import Population
from parablock_ray.algorithms.wire import Wire
from parablock_ray.config import Config
from parablock_ray.config.method import MethodConfig
from parablock_ray.config.network import NetworkConfig
from parablock_ray.network.timeline import RoundLoad, VisitLoad
from parablock_ray.pricing import Pricing
from parablock_ray.runtime.base import worker_of
from parablock_ray.sizes import VisitSizes, download_bytes, make_sizes, trained_layout, upload_bytes


@dataclass(frozen=True)
class Scenario:
    """What a plan is made from.

    `shapes`: the model's parameters by name (`model_shapes`). `step_s`: seconds of a local step on each block, with
    as many processes at work as in the run.
    """

    config: Config
    population: Population
    shapes: Mapping[str, Tensor]
    num_workers: int
    step_s: tuple[float, ...]

    @cached_property
    def layout(self) -> BlockLayout:
        """What is trained, in blocks."""
        return trained_layout(self.config, self.shapes)

    @property
    def num_params(self) -> int:
        """Of the model, tied ones once; without adapters."""
        return sum(tensor.numel() for tensor in self.shapes.values())

    @cached_property
    def wire(self) -> Wire:
        return Wire.of(self.config.network)

    @cached_property
    def pricing(self) -> Pricing:
        return Pricing(self.config)

    @cached_property
    def loads(self) -> list[RoundLoad]:
        """What every client computes and sends in every round."""
        method = make_method(self.config.method, self.population)
        sizes = make_sizes(self.config, self.population, self.shapes, self.wire)
        loads = []
        for round in range(method.num_rounds):
            plan = method.plan(round)
            sizes.open(plan)
            visits = tuple(self._visit_load(plan, visit, sizes.of(plan, visit)) for visit in plan.visits)
            loads.append(RoundLoad(round, plan.reads, visits))
        return loads

    def _visit_load(self, plan: RoundPlan, visit: Visit, sizes: VisitSizes) -> VisitLoad:
        return VisitLoad(
            client=visit.client,
            worker=worker_of(visit.client, self.num_workers),
            compute_s=self.pricing.visit_s(visit.client, self.step_s[plan.block]),
            up_bytes=upload_bytes(self.config, sizes.up, len(plan.visits)),
            down_bytes=download_bytes(self.config, sizes.down, len(plan.visits)),
            catch_up_bytes=self.wire.num_bytes(sizes.catch_up),
        )

    def total_s(self, network: NetworkConfig) -> float:
        """Seconds of the whole run over this network, whose wire dtype is the run's.

        Raises UserError as `network.timeline.simulate` does.
        """
        config = self.config.model_copy(update={"network": network})
        return Pricing(config).timeline(self.loads).seconds

    def compute_alone_s(self) -> float:
        """Seconds of the whole run if no exchange took any time."""
        free = {"trace": None, "up_mbps": math.inf, "down_mbps": math.inf, "latency_ms": 0.0}
        unlimited = {"server_up_mbps": None, "server_down_mbps": None}
        return self.total_s(self.config.network.model_copy(update=free | unlimited))

    def exchange_alone_s(self) -> float:
        """Seconds of the whole run if training took no time."""
        idle = [tuple(replace(visit, compute_s=0.0) for visit in load.visits) for load in self.loads]
        loads = [replace(load, visits=visits) for load, visits in zip(self.loads, idle, strict=True)]
        return self.pricing.timeline(loads).seconds

    def training(self, method: MethodConfig) -> "Scenario":
        """The same federation under another method.

        Where it has other blocks, a step on one of them is taken to last as long as on the block that now holds the
        middle of its layers.
        """
        config = self.config.model_copy(update={"method": method})
        num_old, num_new = len(self.step_s), method.num_blocks
        step_s = tuple(self.step_s[(2 * new + 1) * num_old // (2 * num_new)] for new in range(num_new))
        return replace(self, config=config, step_s=step_s)

    def with_key(self, key: str, value: int) -> "Scenario":
        """The same federation with another value of one key of `method`."""
        return self.training(self.config.method.model_copy(update={key: value}))
