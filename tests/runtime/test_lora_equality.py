"""Every method of federated LoRA ends in the same weights on Ray as in one process."""

import pytest

from tests.runtime.lora_runs import METHODS, run_lora

# Each method once, overlapped where it can be. Plain torch in place of DeepSpeed: actors start sooner. With the first
# ones goes each kind of message: by rank, with a residual, stacked and cut, B alone, by blocks.
ON_RAY = ["hetlora", "fedex_lora", "florist-delayed", "ffa_lora-delayed", "parablock-lora"]
LIKE_THEM = ["fedit-delayed", "zero_pad", "flexlora", "flora-delayed", "florist-carry"]


@pytest.mark.slow
@pytest.mark.parametrize("method", [*ON_RAY, *(pytest.param(each, marks=pytest.mark.thorough) for each in LIKE_THEM)])
def test_ray_ends_in_the_serial_weights(cluster, tmp_path, method):
    # Of those whose clients download what they missed also with clients that miss rounds.
    sampled = ["clients.per_round=2"] if method.startswith(("flor", "zero", "het", "flex")) else []
    overrides = ["engine.name=torch", "network.chunk_mb=0.01", *sampled]
    reference = run_lora(tmp_path / "serial", method, ["runtime=serial", *overrides])
    summary = run_lora(tmp_path / "ray", method, ["workers.num=2", *overrides])
    for key in ("weights_sha256", "loss_after", "bytes_up", "bytes_down", "bytes_catch_up"):
        assert summary[key] == reference[key]
    assert summary["loss_after"] < summary["loss_before"]
    assert (summary["bytes_catch_up"] > 0) == bool(sampled)


@pytest.mark.parametrize("method", ["flora", "hetlora"])
def test_both_engines_give_the_same_weights(tmp_path, method):
    runs = [
        run_lora(tmp_path / engine, method, ["runtime=serial", f"engine.name={engine}"])
        for engine in ("torch", "deepspeed")
    ]
    assert runs[0]["weights_sha256"] == runs[1]["weights_sha256"]


@pytest.mark.parametrize("method", METHODS)
def test_a_bf16_model_trains_its_adapters(tmp_path, method):
    overrides = ["runtime=serial", "engine.name=torch", "model.dtype=bfloat16", "workers.threads=1"]
    summary = run_lora(tmp_path / "run", method, overrides)
    assert summary["loss_after"] < summary["loss_before"]
