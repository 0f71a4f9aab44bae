"""Two nodes with a fake GPU each on this machine, in a process of its own; prints what was found as JSON.

`python -m tests.runtime.nodes_run FOLDER`: the session's shared cluster is left alone.
"""

import json
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from parablock_ray.config.schema import WorkersConfig
from parablock_ray.runtime import cluster as cluster_module
from parablock_ray.runtime import placement as placement_module
from parablock_ray.runtime.placement import Placement, nodes, reserve
from tests.runtime.federation import METHODS, run_tiny

_NODE = {"num_cpus": 2, "num_gpus": 1}


def main() -> None:
    folder = Path(sys.argv[1])
    cluster = Cluster(initialize_head=True, head_node_args={**_NODE, "include_dashboard": False})
    cluster.add_node(**_NODE)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        cluster.wait_for_nodes()
        print(json.dumps({**reserved(), **waited(), **trained(folder)}))
    finally:
        ray.shutdown()
        cluster.shutdown()


def reserved() -> dict[str, Any]:
    """On which nodes two workers with half a GPU each are, spread and packed."""
    found = {"num_nodes": len(nodes())}
    for strategy in ("spread", "pack"):
        group = reserve(WorkersConfig(placement=strategy), Placement(2, gpus_each=0.5, memory_bytes=0))
        found[strategy] = len(set(nodes_of(group)))
        place = PlacementGroupSchedulingStrategy(group, 1)
        found["share"] = ray.get(share_of_gpu.options(scheduling_strategy=place, num_gpus=0.5).remote())
        give_back(group)
    return found


def give_back(group: PlacementGroup) -> None:
    """Remove it, and wait until others can have its place."""
    remove_placement_group(group)
    while ray.available_resources().get("GPU", 0) < ray.cluster_resources()["GPU"]:
        time.sleep(0.1)


@ray.remote
def share_of_gpu() -> float:
    """As a worker asks for it, which limits its memory by it."""
    return float(ray.get_runtime_context().get_assigned_resources()["GPU"])


def nodes_of(group: PlacementGroup) -> list[str]:
    return list(placement_group_table(group)["bundles_to_node_id"].values())


def waited() -> dict[str, Any]:
    """What is said while another has the GPUs, and that they are given out once they are free."""
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger(placement_module.__name__).addHandler(handler)
    workers, placed = WorkersConfig(), Placement(2, gpus_each=1.0, memory_bytes=0)
    others = reserve(workers, placed)
    threading.Timer(1.5 * placement_module._PATIENCE_S, remove_placement_group, [others]).start()
    give_back(reserve(workers, placed))
    return {"told": told}


def trained(folder: Path) -> dict[str, Any]:
    """A run on both nodes, and its values."""
    on: set[str] = set()

    def noted(workers: WorkersConfig, placed: Placement) -> PlacementGroup:
        group = reserve(workers, placed)
        on.update(nodes_of(group))
        return group

    cluster_module.reserve = noted
    on_cpus = [*METHODS["parablock-sampled"], "workers.gpus_per_worker=0", "engine.name=torch"]
    summary = run_tiny(folder / "ray", [*on_cpus, "workers.num=auto"])
    serial = run_tiny(folder / "serial", [*on_cpus, "runtime=serial"])
    return {
        "num_workers": summary["num_workers"],
        "worker_nodes": len(on),
        "ray": summary["weights_sha256"],
        "serial": serial["weights_sha256"],
    }


if __name__ == "__main__":
    for name in ("RAY_ADDRESS", "CUDA_VISIBLE_DEVICES"):  # another's cluster; a GPU that is hidden cannot be declared
        os.environ.pop(name, None)
    main()
