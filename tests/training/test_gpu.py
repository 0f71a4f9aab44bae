"""The GPU path: bf16 model, fp32 master, one client per device. Run wherever there is a CUDA device."""

import copy

import pytest
import torch

from parablock_ray.algorithms.blocks import flatten
from parablock_ray.algorithms.methods import make_method
from parablock_ray.config import load_config
from parablock_ray.driver import prepare
from parablock_ray.runtime.memory import limit_device_memory
from parablock_ray.training.batches import move
from parablock_ray.training.engine import DeepSpeedEngine, TorchEngine, make_engine
from parablock_ray.training.model import load_model
from parablock_ray.training.worker import Worker
from tests.runtime.federation import QUICKSTART, SHORT, run_tiny
from tests.training.test_engine import ADAMW, block_of, random_batch, same_bits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def visit(model, engine, layer: int) -> torch.Tensor:
    engine.begin(block_of(model, layer), 1e-2)
    for step in range(3):
        engine.step(move(random_batch(step), torch.device("cuda")))
    return flatten(engine.end(), torch.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_engines_end_in_the_same_bits(dtype):
    by_torch = load_model("tiny", dtype, 0).cuda()
    by_deepspeed = copy.deepcopy(by_torch)
    engines = TorchEngine(by_torch, ADAMW), DeepSpeedEngine(by_deepspeed, ADAMW, {})
    for layer in (1, 0, 1):
        trained = [visit(model, engine, layer) for model, engine in zip((by_torch, by_deepspeed), engines, strict=True)]
        assert trained[0].dtype == torch.float32
        assert torch.equal(*trained)
    assert same_bits(by_torch, by_deepspeed)


def test_memory_returns_to_its_baseline_after_a_visit():
    model = load_model("tiny", "bfloat16", 0).cuda()
    engine = DeepSpeedEngine(model, ADAMW, {})
    visit(model, engine, 0)  # allocates what stays: workspaces
    baseline = torch.cuda.memory_allocated()
    for layer in range(4):
        visit(model, engine, layer)
    engine.begin(block_of(model, 0), 0.0)  # drops the last gradients
    engine.end()
    assert torch.cuda.memory_allocated() <= baseline * 1.01


def test_memory_returns_to_its_baseline_after_each_client(tmp_path):
    config = load_config(QUICKSTART, [*SHORT, f"out={tmp_path}", "model.dtype=bfloat16", "method.staleness=0"])
    prepared = prepare(config)
    worker = Worker(config, prepared.population, prepared.data, torch.device("cuda"), make_engine)
    plan = make_method(config.method, prepared.population).plan(0)
    after = []
    for visit in plan.visits:
        worker.train(plan, visit, put=torch.clone)
        after.append(torch.cuda.memory_allocated())
    assert max(after) <= after[0] * 1.01  # the first one allocates what stays: workspaces


def test_a_share_of_the_device_is_enforced():
    device = torch.device("cuda")
    _, total_bytes = torch.cuda.mem_get_info(device)
    limit_device_memory(device, 0.1)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(total_bytes // 5, dtype=torch.uint8, device=device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def test_two_workers_share_one_gpu(tmp_path, cluster):
    summary = run_tiny(tmp_path / "run", ["workers.num=2", "workers.gpus_per_worker=0.5", "method.rounds=8"])
    assert summary["num_workers"] == 2
    assert summary["loss_after"] < summary["loss_before"]


def test_a_bf16_run_on_ray_learns(tmp_path, cluster):
    bf16 = ["model.dtype=bfloat16", "network.wire_dtype=bfloat16", "workers.num=1", "workers.gpus_per_worker=1"]
    summary = run_tiny(tmp_path / "run", [*bf16, "method.rounds=8"])
    assert summary["loss_after"] < summary["loss_before"]
