"""What a resumed run does with what a checkpoint holds: the server's state of s rounds ago, and the uploads since."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from parablock_ray.algorithms.base import Replica, RoundPlan, Server
from parablock_ray.algorithms.wire import Wire


def play_back(
    server: Server,
    replica_of: Callable[[int], Replica],
    plans: Sequence[RoundPlan],
    states: Mapping[int, dict[str, Tensor]],
    uploads: Mapping[tuple[int, int], Tensor],
    wire: Wire,
) -> None:
    """Bring a new server and new replicas to the end of `plans`. `states` by round, `uploads` by (round, client)."""
    staleness = plans[0].round - 1 - plans[0].reads
    num_rounds = max(0, len(plans) - staleness)
    if num_rounds:
        server.restore(plans[:num_rounds], states[num_rounds - 1])
    for plan in plans[num_rounds:]:
        server.open(plan)
        for visit in plan.visits:
            upload = uploads[plan.round, visit.client]
            replica_of(visit.client).remember(plan, visit, upload)
            for chunk, (start, end) in enumerate(wire.bounds(len(upload))):
                list(server.receive(plan.round, visit.client, chunk, upload[start:end]))
