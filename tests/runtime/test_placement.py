"""How many workers a cluster holds: each with its CPUs and its share of a GPU on one node."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from parablock_ray.config import load_config
from parablock_ray.driver import prepare
from parablock_ray.errors import UserError
from parablock_ray.runtime import cluster as cluster_module
from parablock_ray.runtime import connection
from parablock_ray.runtime.cluster import RayRuntime
from parablock_ray.runtime.connection import Connection, usable_cpus
from parablock_ray.runtime.memory import ProcessMemory
from parablock_ray.runtime.placement import NodeResources, Placement, placement, server_node, without
from parablock_ray.runtime.server import ServerActor
from parablock_ray.server_memory import first_traffic, server_bytes
from parablock_ray.training.model import model_shapes
from tests.runtime.federation import QUICKSTART, run_tiny

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

SIX_CPUS = NodeResources(6, 0)
GPU_NODE = NodeResources(16, 1)
STORE_FULL = ray.exceptions.RayTaskError("open", "traceback", ray.exceptions.ObjectStoreFullError("full"))
DISK_FULL = ray.exceptions.RayTaskError("open", "traceback", ray.exceptions.OutOfDiskError("full"))


def place(nodes: list[NodeResources], *overrides: str, measured: ProcessMemory | None = None) -> Placement:
    return placement(load_config(QUICKSTART, ["clients.num=50", "data.split=iid", *overrides]), nodes, measured)


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
    assert place(nodes, f"workers.{workers}") == Placement(*placed, memory_bytes=0)


@pytest.mark.parametrize("share", ["0.1", "0.2", "0.3", "0.3333", "0.5", "1.0"])
def test_a_share_of_a_gpu_that_is_asked_for(share):
    room = {"0.1": 10, "0.2": 5, "0.3": 3, "0.3333": 3, "0.5": 2, "1.0": 1}[share]
    placed = place([GPU_NODE], "workers.num=auto", f"workers.gpus_per_worker={share}")
    assert placed == Placement(room, float(share), memory_bytes=0)


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


@pytest.mark.parametrize(
    ("nodes", "took", "placed"),
    [
        ([NodeResources(16, 0, 10e9)], ProcessMemory(2 * 10**9, 0.0), (4, 0.0)),  # 2.5 GB each with the margin
        ([NodeResources(2, 0, 10e9)], ProcessMemory(2 * 10**9, 0.0), (2, 0.0)),  # there are no more CPUs
        (
            [NodeResources(16, 0, 6e9)] * 2,
            ProcessMemory(2 * 10**9, 0.0),
            (4, 0.0),
        ),  # two on each node
        ([NodeResources(16, 1, 99e9)], ProcessMemory(10**9, 0.15), (5, 0.2)),  # 18.75 % of the device each
        ([NodeResources(16, 2, 99e9)], ProcessMemory(10**9, 0.7), (2, 1.0)),
        ([NodeResources(16, 1, 4e9)], ProcessMemory(10**9, 0.1), (3, 0.125)),  # the host holds fewer than the device
    ],
)
def test_as_many_as_memory_holds(nodes, took, placed):
    found = place(nodes, "workers.num=auto", measured=took)
    assert (found.num_workers, found.gpus_each) == placed
    assert found.memory_bytes == took.host_bytes * 1.25


NODES = [NodeResources(8, 0, 4e9, "driver"), NodeResources(8, 0, 9e9, "large"), NodeResources(8, 0, 6e9, "middle")]


@pytest.mark.parametrize(("memory_bytes", "node_id"), [(4 * 10**9, "driver"), (5 * 10**9, "large"), (0, "driver")])
def test_the_server_is_beside_the_driver_where_its_memory_is(memory_bytes, node_id):
    found = server_node(NODES, "driver", memory_bytes)
    assert found.node_id == node_id
    left = [4e9, 9e9, 6e9]
    left[NODES.index(found)] -= memory_bytes
    assert [node.memory_bytes for node in without(NODES, found, memory_bytes)] == left


def test_a_server_that_no_node_has_the_memory_for():
    told = (
        r"the server needs 10.00 GB of memory .* largest of 3 node\(s\) has 9.00 GB .*--memory.* clients.max_in_flight"
    )
    with pytest.raises(UserError, match=told):
        server_node(NODES, "driver", 10**10)


class Witness(ServerActor):
    async def load(self):
        resources = ray.get_runtime_context().get_assigned_resources()
        Path(self._run_folder, "resources.json").write_text(json.dumps(resources))
        return await super().load()


def test_ray_keeps_the_servers_memory_on_the_drivers_node(cluster, tmp_path, monkeypatch):
    """And a run whose server is larger than every node is refused at once."""
    monkeypatch.setattr(cluster_module, "ServerActor", Witness)
    summary = run_tiny(tmp_path / "run", ["workers.num=1", "method.rounds=1"])
    seen = json.loads((tmp_path / "run" / "resources.json").read_text())
    assert summary["status"] == "done"
    assert seen["memory"] == pytest.approx(_told_bytes(tmp_path / "run"))
    monkeypatch.setattr(cluster_module, "needed_bytes", lambda setup: 10**15)
    with pytest.raises(UserError, match=r"the server needs 1000000.00 GB of memory"):
        run_tiny(tmp_path / "large", ["workers.num=1", "method.rounds=1"])


class Large(ServerActor):
    def needed_bytes(self):
        assert super().needed_bytes() > 1e6
        return 10**15


def test_a_server_that_our_own_cluster_is_too_small_for_says_so_itself(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "_ours", Connection.WARM)
    monkeypatch.setattr(cluster_module, "disconnect", lambda: None)  # it is not: others' tests need it
    monkeypatch.setattr(cluster_module, "ServerActor", Large)
    with pytest.raises(UserError, match=r"the server needs 1000000.00 GB of memory"):
        run_tiny(tmp_path / "run", ["workers.num=1", "method.rounds=1"])
    assert not (tmp_path / "run" / "config.yaml").exists()


def _told_bytes(out):
    config = load_config(out / "config.yaml", [])
    shapes = model_shapes(config.model.name)
    return sum(server_bytes(config, shapes, first_traffic(config, prepare(config).population, shapes)).values())


def test_a_worker_that_no_node_has_the_memory_for():
    with pytest.raises(UserError, match=r"2 threads and 0 GPUs and 5.0 GB of memory.* 0 GPUs and 3.0 GB .*room for 0$"):
        place([NodeResources(8, 0, 3e9)], "workers.num=auto", "workers.threads=2", measured=ProcessMemory(4 * 10**9, 0))


@pytest.mark.parametrize(("quota", "num_cpus"), [("max 100000", 6), ("250000 100000", 2), ("50000 100000", 1)])
def test_cpus_that_a_container_may_use(monkeypatch, tmp_path, quota, num_cpus):
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(connection, "_CPU_LIMIT", tmp_path / "cpu.max")
    monkeypatch.setattr(connection.os, "sched_getaffinity", lambda pid: set(range(6)))
    assert usable_cpus() == num_cpus


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            ray.exceptions.RuntimeEnvSetupError("no such wheel"),
            r"the cluster cannot set up the environment of the server",
        ),
        (STORE_FULL, r"the object store of a node is full.*--object-store-memory"),
        (DISK_FULL, r"the object store of a node is full.*clients.max_in_flight.*network.wire_dtype"),
    ],
)
def test_what_the_cluster_cannot_do_is_told_in_a_line(monkeypatch, error, told):
    def get(reference):
        raise error

    monkeypatch.setattr(cluster_module.ray, "get", get)
    with pytest.raises(UserError, match=told):
        RayRuntime(SimpleNamespace(config=SimpleNamespace(name="run")))._get(reference=None)
