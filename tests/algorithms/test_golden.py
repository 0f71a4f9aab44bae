"""Golden trajectories: what the protocol did on the toy federation when it was last looked at with care.

After a change that is meant to change values: `python -m tests.algorithms.test_golden` writes the file anew; say why
in the commit.
"""

import json
from pathlib import Path

import pytest
import torch

from parablock_ray.config.method import FedAvg, FedBCD, FedCyBGD, ParaBlock
from parablock_ray.config.training import ServerMomentum
from tests.algorithms.toy import Toy, run_toy

GOLDEN = Path(__file__).with_name("golden.json")
COMMON = {"rounds": 7, "num_blocks": 3, "local_steps": 2, "lr": 0.05, "batch_size": 1}
NESTEROV = ServerMomentum(name="nesterov", lr=0.7)
MANY = {"num_examples": (5, 9, 2, 7, 3), "per_round": 2}
TOYS = {
    "fedbcd": Toy(FedBCD(name="fedbcd", **COMMON)),
    "parablock own": Toy(ParaBlock(name="parablock", **COMMON)),
    "parablock eager": Toy(ParaBlock(name="parablock", correction="eager", **COMMON)),
    "parablock stale": Toy(ParaBlock(name="parablock", correction="stale", **COMMON)),
    "parablock staleness 2, bf16 wire": Toy(
        ParaBlock(name="parablock", staleness=2, **COMMON), wire_dtype=torch.bfloat16
    ),
    "parablock nesterov, sampled": Toy(ParaBlock(name="parablock", server_optimizer=NESTEROV, **COMMON), **MANY),
    "fedavg delayed": Toy(FedAvg(name="fedavg", staleness=1, **{**COMMON, "num_blocks": 1})),
    "fedcybgd": Toy(FedCyBGD(name="fedcybgd", **COMMON)),
}


def trajectory(toy: Toy) -> dict:
    """Per round: block, cohort, and the first numbers of the visited block after the commit."""
    history = run_toy(toy)
    return {
        "blocks": [plan.block for plan in history.plans],
        "cohorts": [[visit.client for visit in plan.visits] for plan in history.plans],
        "values": [
            history.versions[plan.round + 1][history.block_slices[plan.block]][:3].tolist() for plan in history.plans
        ],
    }


@pytest.mark.parametrize("name", TOYS)
def test_trajectory(name):
    golden, now = json.loads(GOLDEN.read_text())[name], trajectory(TOYS[name])
    assert now["blocks"] == golden["blocks"]
    assert now["cohorts"] == golden["cohorts"]
    assert torch.allclose(
        torch.tensor(now["values"], dtype=torch.float64),
        torch.tensor(golden["values"], dtype=torch.float64),
        rtol=0,
        atol=1e-10,
    )


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: trajectory(toy) for name, toy in TOYS.items()}, indent=1) + "\n")
