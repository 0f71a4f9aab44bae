"""PEFT's folder of adapters: what it makes of a model is W + scaling · B A, whatever the ranks of the modules."""

from pathlib import Path

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel

from parablock_ray.algorithms.lora import Adapter
from parablock_ray.algorithms.rng import generator
from parablock_ray.training.adapters import copy_adapters, merged_sha256, save_adapters
from parablock_ray.training.model import load_model

MODULES = [f"model.layers.{layer}.self_attn.{name}" for layer in (0, 7) for name in ("q_proj", "v_proj")]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ranks=st.lists(st.integers(1, 9), min_size=len(MODULES), max_size=len(MODULES)),
    scalings=st.lists(st.floats(0.1, 10), min_size=len(MODULES), max_size=len(MODULES)),
)
def test_peft_reads_the_adapters_of_every_module(tmp_path: Path, ranks: list[int], scalings: list[float]) -> None:
    wanted, random = load_model("tiny", "float32", 0), generator(0, "adapters")
    adapters = {}
    for name, rank, scaling in zip(MODULES, ranks, scalings, strict=True):
        weight = wanted.get_submodule(name).weight
        B, A = (torch.randn(shape, generator=random) * 0.1 for shape in ((len(weight), rank), (rank, weight.shape[1])))
        adapters[name] = Adapter(B, A, scaling)
        weight.data += scaling * B @ A
    save_adapters(adapters, "tiny", "abc", tmp_path)
    assert merged_sha256(tmp_path) == "abc"
    peft = PeftModel.from_pretrained(load_model("tiny", "float32", 0), tmp_path)
    assert peft.peft_config["default"].base_model_name_or_path == "tiny"
    merged = dict(peft.merge_and_unload().named_parameters())
    for name, weight in wanted.named_parameters():
        torch.testing.assert_close(merged[name], weight, rtol=1e-4, atol=1e-5)


def test_a_copy_in_another_dtype_keeps_all_else(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    save_adapters({MODULES[0]: Adapter(torch.ones(128, 2), torch.ones(2, 128), 0.5)}, "tiny", "abc", tmp_path)
    factors = copy_adapters(tmp_path, tmp_path / "copy", torch.bfloat16)
    assert {factor.dtype for factor in factors.values()} == {torch.bfloat16}
    assert merged_sha256(tmp_path / "copy") == "abc"
    config = "adapter_config.json"
    assert (tmp_path / "copy" / config).read_text() == (tmp_path / config).read_text()
