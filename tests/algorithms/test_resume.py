"""Whatever the method, a run made anew from a checkpoint goes on in the very same bits."""

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from parablock_ray.algorithms.methods import METHODS
from parablock_ray.config.method import MethodConfig
from tests.algorithms.lora_toy import LoraToy, run_lora_toy
from tests.algorithms.toy import Toy, run_toy

ROUNDS = 8
BLOCK_METHODS = ("parablock", "fedbcd", "fedavg", "fedcybgd")
SERVER_OPTIMIZERS = ("sgd", "momentum", "nesterov", "adagrad", "adam", "yogi")
WIRES = (torch.float32, torch.bfloat16)


def method(name: str, **section) -> MethodConfig:
    common = {"rounds": ROUNDS, "local_steps": 2, "lr": 0.05, "batch_size": 1}
    return TypeAdapter(MethodConfig).validate_python({"name": name, **common, **section})


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(BLOCK_METHODS),
    staleness=st.integers(0, 3),
    correction=st.sampled_from(["own", "eager", "stale"]),
    optimizer=st.sampled_from(SERVER_OPTIMIZERS),
    num_blocks=st.integers(1, 3),
    per_round=st.integers(1, 4),
    wire=st.sampled_from(WIRES),
    model=st.sampled_from(WIRES),
    cut_through=st.booleans(),
    num_workers=st.integers(1, 3),
    resumes_after=st.integers(0, ROUNDS - 1),
)
def test_block_methods(
    name, staleness, correction, optimizer, num_blocks, per_round, wire, model, cut_through, num_workers, resumes_after
):
    section = {"num_blocks": 1 if name == "fedavg" else num_blocks, "server_optimizer": {"name": optimizer}}
    if name in ("parablock", "fedavg"):
        section |= {"staleness": staleness, "correction": correction}
    toy = Toy(
        method(name, **section),
        per_round=None if name == "fedcybgd" else per_round,
        wire_dtype=wire,
        model_dtype=model,
        master_dtype=torch.float32,
        cut_through=cut_through,
        num_workers=num_workers,
    )
    whole, resumed = run_toy(toy), run_toy(replace(toy, resumes_after=resumes_after))
    assert whole.versions[-1].equal(resumed.versions[-1])
    for at, start in whole.starts.items():
        assert torch.equal(start, resumed.starts[at]), at


@settings(deadline=None, max_examples=120)
@given(
    name=st.sampled_from([name for name in METHODS if name not in BLOCK_METHODS]),
    staleness=st.integers(0, 2),
    correction=st.sampled_from(["own", "eager", "stale"]),
    carry=st.booleans(),
    ranks=st.sampled_from([[1, 2, 3], [2, 2, 2]]),
    per_round=st.integers(1, 3),
    wire=st.sampled_from(WIRES),
    model=st.sampled_from(WIRES),
    num_workers=st.integers(1, 3),
    resumes_after=st.integers(0, ROUNDS - 1),
)
def test_lora_methods(name, staleness, correction, carry, ranks, per_round, wire, model, num_workers, resumes_after):
    section = {"lora": {"ranks": ranks, "alpha": 4, "target_modules": ["q_proj"]}}
    if name in ("fedit", "ffa_lora", "fedex_lora"):
        section["lora"]["ranks"] = 2
    if name == "florist" and carry:
        section["round_init"] = "carry"
    elif name in ("fedit", "ffa_lora", "flora", "florist"):
        section |= {"staleness": staleness, "correction": correction}
    toy = LoraToy(
        method(name, **section), per_round=per_round, wire_dtype=wire, model_dtype=model, num_workers=num_workers
    )
    whole, resumed = run_lora_toy(toy), run_lora_toy(replace(toy, resumes_after=resumes_after))
    for name, weight in whole.final.items():
        assert torch.equal(weight, resumed.final[name]), name
    assert whole.catch_up == resumed.catch_up
    for at, start in whole.starts.items():
        for before, after in zip(start, resumed.starts[at], strict=True):
            assert all(torch.equal(*pair) for pair in zip(before, after, strict=True)), at
