"""Who is too late for a round, on the virtual clock: known before the round begins."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from parablock_ray.algorithms.base import RoundPlan, Visit
from parablock_ray.algorithms.population import Population
from parablock_ray.config import Config
from parablock_ray.participation import Late
from parablock_ray.pricing import Pricing
from parablock_ray.sizes import upload_bytes, upload_params
from parablock_ray.tracking.events import Dropped


def nobody(plan: RoundPlan) -> Sequence[Dropped]:
    """Late where there is no deadline."""
    return ()


def late_by(config: Config, pricing: Pricing, population: Population, shapes: Mapping[str, Tensor]) -> Late:
    """A plan's visits that `clients.deadline_s` or `clients.over_sample` leaves out.

    What counts are the seconds from the start of a client's training until its upload is in, with its own line and the
    server's to itself: what it waits for before, and whom it meets on the way, is not its doing. `shapes`: the model's
    parameters by name.
    """
    clients = config.clients
    num_params = upload_params(config, population, shapes)

    def turnaround_s(plan: RoundPlan, visit: Visit) -> float:
        step_s = pricing.step_s(plan.block)
        assert step_s is not None, "the config says so: seconds must be given"
        num_bytes = upload_bytes(config, num_params(plan, visit), len(plan.visits))
        return pricing.arrival_s(visit.client, step_s, num_bytes)

    def late(plan: RoundPlan) -> Sequence[Dropped]:
        seconds = {visit.client: turnaround_s(plan, visit) for visit in plan.visits}
        in_time = [client for client in seconds if clients.deadline_s is None or seconds[client] <= clients.deadline_s]
        first = sorted(in_time, key=lambda client: (seconds[client], client))[: clients.per_round]
        return [
            Dropped(plan.round, client, "late", f"{taken_s:.3f} s")
            for client, taken_s in seconds.items()
            if client not in first
        ]

    return late
