"""The plan of a federated LoRA run: its bytes and seconds are the run's, or the most that FLoRIST may make of them."""

from pathlib import Path

import pytest

from parablock_ray.planning.command import make_plan
from parablock_ray.planning.tables import parts
from parablock_ray.training.model import model_shapes
from tests.runtime.lora_runs import METHODS, MIXED, lora_config, run_lora

ON_LTE = [
    "runtime=serial",
    "engine.name=torch",
    "network.mode=virtual",
    "network.preset=lte",
    "network.compute_s=0.3",
    "network.wire_dtype=float16",
]
KEEPS_LESS_THAN_ALL = ("florist", "florist-delayed", "florist-carry")


@pytest.mark.parametrize("method", METHODS)
def test_a_virtual_run_takes_what_its_plan_says(tmp_path: Path, method: str) -> None:
    overrides = [*ON_LTE, "clients.per_round=3"]
    made = make_plan(lora_config(tmp_path, method, overrides), None)
    summary = run_lora(tmp_path, method, overrides)
    planned = {f"bytes_{name}": each.total_bytes for name, each in made.traffic.items()}
    measured = {key: summary[key] for key in ("bytes_up", "bytes_down", "bytes_catch_up")}
    assert measured["bytes_catch_up"] > 0
    assert planned["bytes_up"] == measured["bytes_up"]
    if method in KEEPS_LESS_THAN_ALL:
        assert all(planned[key] >= measured[key] for key in measured)
        assert made.configured.total_s is not None
        assert made.configured.total_s > summary["seconds"]
    else:
        assert planned == measured
        assert made.configured.total_s == pytest.approx(summary["seconds"], rel=1e-9)


def test_what_florist_may_keep_is_bounded_by_max_rank(tmp_path: Path) -> None:
    config = lora_config(tmp_path, "florist", ON_LTE)
    capped = config.model_copy(update={"method": config.method.model_copy(update={"max_rank": 3})})
    widths = sum(sum(shape.shape) for name, shape in model_shapes("tiny").items() if is_target(name))
    for each, num_kept in ((config, sum(MIXED)), (capped, 3)):
        traffic = make_plan(each, None).traffic
        sizes = [traffic[name].round_bytes for name in ("up", "down")]
        assert sizes == [2 * widths * sum(MIXED), 2 * widths * num_kept * len(MIXED)]
    assert "downloads are the most that florist may keep" in "".join(map(str, parts(make_plan(config, None))))


def is_target(name: str) -> bool:
    return name.endswith(("q_proj.weight", "v_proj.weight"))


@pytest.mark.parametrize(
    ("method", "num_rows"),
    [("fedit", 8), ("flora", 8), ("florist", 8), ("parablock-lora", 8), ("florist-carry", 4), ("hetlora", 4)],
)
def test_what_cannot_overlap_has_no_row_for_it(tmp_path: Path, method: str, num_rows: int) -> None:
    made = make_plan(lora_config(tmp_path, method, ON_LTE), "0.5")
    assert len(made.cases) == num_rows
    is_whole = method.startswith("flor") or method == "hetlora"
    left_out = [case for case in made.cases if case.left_out]
    assert [case.exchange for case in left_out] == ["cut_through"] * (len(made.cases) // 2 if is_whole else 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_memory_holds_the_whole_model_and_the_adapters(tmp_path: Path, method: str, dtype: str) -> None:
    config = lora_config(tmp_path, method, [*ON_LTE, f"model.dtype={dtype}"])
    [driver] = make_plan(config, "0.5").memory
    num_params = sum(shape.numel() for shape in model_shapes("tiny").values())
    assert driver.parts_bytes["model"] == num_params * (4 if dtype == "float32" else 2)
    assert driver.parts_bytes["master model, fp32"] == 4 * num_params
    assert 0 < driver.parts_bytes["gradients"] < 0.1 * 4 * num_params
    is_merged = method.startswith(("flor", "fedex"))
    is_kept = is_merged and ((dtype == "bfloat16" and method != "florist-carry") or method.endswith("delayed"))
    if not method.startswith(("fedit", "ffa", "parablock")):
        assert ("clean copies, fp32" in driver.parts_bytes) == is_kept
