"""How many workers a cluster holds: each with its CPUs and its share of a GPU on one node."""

import pytest

from parablock_ray.config import load_config
from parablock_ray.errors import UserError
from parablock_ray.runtime.cluster import NodeResources, placement
from tests.runtime.federation import QUICKSTART

SIX_CPUS = NodeResources(6, 0)
GPU_NODE = NodeResources(16, 1)


def place(nodes: list[NodeResources], *overrides: str) -> tuple[int, float]:
    return placement(load_config(QUICKSTART, ["clients.num=50", "data.split=iid", *overrides]), nodes)


@pytest.mark.parametrize(
    ("nodes", "workers", "placed"),
    [
        ([SIX_CPUS], "num=4", (4, 0.0)),
        ([SIX_CPUS], "num=auto", (6, 0.0)),
        ([NodeResources(100, 0)], "num=auto", (50, 0.0)),  # no more than there are clients
        ([GPU_NODE], "num=auto", (1, 1.0)),
        ([GPU_NODE] * 2, "num=auto", (2, 1.0)),
        ([GPU_NODE], "num=5", (5, 0.2)),
        ([GPU_NODE], "num=10", (10, 0.1)),
        ([GPU_NODE], "num=3", (3, 0.3333)),
        ([GPU_NODE] * 2, "num=3", (3, 0.5)),  # two thirds of a GPU each would leave room for two
        ([NodeResources(64, 4)], "num=6", (6, 0.5)),
        ([NodeResources(4, 1), NodeResources(64, 0)], "num=4", (4, 0.25)),
    ],
)
def test_placed(nodes, workers, placed):
    assert place(nodes, f"workers.{workers}") == placed


@pytest.mark.parametrize("share", ["0.1", "0.2", "0.3", "0.3333", "0.5", "1.0"])
def test_a_share_of_a_gpu_that_is_asked_for(share):
    room = {"0.1": 10, "0.2": 5, "0.3": 3, "0.3333": 3, "0.5": 2, "1.0": 1}[share]
    assert place([GPU_NODE], "workers.num=auto", f"workers.gpus_per_worker={share}") == (room, float(share))


@pytest.mark.parametrize(
    ("nodes", "overrides", "room"),
    [
        ([SIX_CPUS], ["workers.num=7"], 6),
        ([SIX_CPUS] * 2, ["workers.num=3", "workers.threads=4"], 2),  # 12 CPUs, but 4 of them on one node
        ([GPU_NODE], ["workers.num=3", "workers.gpus_per_worker=0.5"], 2),
        ([NodeResources(2, 1), SIX_CPUS], ["workers.num=4"], 2),  # the other node has no GPU
        ([], ["workers.num=auto"], 0),
    ],
)
def test_what_does_not_fit_is_refused(nodes, overrides, room):
    with pytest.raises(UserError, match=rf"workers.num: .* room for {room}$"):
        place(nodes, *overrides)
