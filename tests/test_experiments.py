"""The experiments in configs/experiments: every run can be planned without a network, and those for a CPU are made."""

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from parablock_ray.config import load_config
from parablock_ray.config.load import load_checked
from parablock_ray.config.sweep import SweepFile
from parablock_ray.driver import run
from parablock_ray.planning.command import make_plan
from parablock_ray.planning.plan import Plan
from parablock_ray.sweeping.expand import load_sweep
from parablock_ray.training.model import TINY, load_tokenizer

EXPERIMENTS = Path(__file__).parents[1] / "configs" / "experiments"
TASKS = ("math", "instructions")
SCALES = ("cpu", "1gpu", "8gpu")
METHODS = {
    *("fedavg", "fedbcd", "fedcybgd", "parablock-own", "parablock-eager", "parablock-stale"),
    *("fedit", "ffa_lora", "flora", "flexlora", "florist"),
}

# hidden_size, num_hidden_layers, intermediate_size, num_attention_heads, num_key_value_heads, tie_word_embeddings
LLAMA = {
    "meta-llama/Llama-3.2-1B-Instruct": (2048, 16, 8192, 32, 8, True),
    "meta-llama/Llama-3.2-3B-Instruct": (3072, 28, 8192, 24, 8, True),
    "meta-llama/Meta-Llama-3-8B-Instruct": (4096, 32, 14336, 32, 8, False),
}
NUM_PARAMETERS = {
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
}


def variants(sweep: str) -> list[tuple[str, tuple[str, ...]]]:
    return list(load_checked(EXPERIMENTS / "sweeps" / f"{sweep}.yaml", [], SweepFile).variants())


ALL = [(task, scale, *variant) for task in TASKS for scale in SCALES for variant in variants(f"{task}_{scale}")]
NAMES = [f"{task}_{scale}-{label}" for task, scale, label, _ in ALL]


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name on the hub → a local folder with the model's shape, no weights, and a tokenizer of bytes."""
    folders = {}
    for name, (hidden, layers, intermediate, heads, key_value_heads, tied) in LLAMA.items():
        folder = tmp_path_factory.mktemp("llama")
        config = LlamaConfig(
            architectures=["LlamaForCausalLM"],
            vocab_size=128256,
            hidden_size=hidden,
            num_hidden_layers=layers,
            intermediate_size=intermediate,
            num_attention_heads=heads,
            num_key_value_heads=key_value_heads,
            max_position_embeddings=8192,
            tie_word_embeddings=tied,
        )
        config.save_pretrained(folder)
        load_tokenizer(TINY).save_pretrained(folder)
        folders[name] = str(folder)
    return folders


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of instructions, in place of those that need a hub or a package index."""
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    made = ({"instruction": f"Say {n}.", "input": "", "output": f"{n}", "task": f"task {n % 5}"} for n in range(240))
    file.write_text("".join(f"{json.dumps(row)}\n" for row in made), encoding="utf-8")
    return str(file)


def offline(task: str, scale: str, rows: str, llamas: dict[str, str]) -> list[str]:
    """Overrides that put made-up rows and shapes of models in place of what must be downloaded."""
    changes = ["data.num_eval=16", "data.num_train=80", "method.rounds=4"]
    if task == "instructions" or scale != "cpu":
        changes.append(f"data.source={rows}")
    if scale != "cpu":
        hub_name = load_config(EXPERIMENTS / f"{task}_{scale}.yaml", []).model.name
        changes.append(f"model.name={llamas[hub_name]}")
    return changes


def plan_of(task: str, scale: str, overrides: list[str]) -> Plan:
    return make_plan(load_config(EXPERIMENTS / f"{task}_{scale}.yaml", overrides), compute_s="1")


def test_every_experiment_has_every_method_on_every_split() -> None:
    wanted = {f"{method}-{split}" for method in METHODS for split in ("iid", "dirichlet")}
    for task in TASKS:
        for scale in SCALES:
            assert {label for label, _ in variants(f"{task}_{scale}")} == wanted


@pytest.mark.parametrize(("task", "scale", "label", "overrides"), ALL, ids=NAMES)
def test_every_run_can_be_planned(
    task: str, scale: str, label: str, overrides: tuple[str, ...], rows: str, llamas: dict[str, str]
) -> None:
    plan = plan_of(task, scale, [*overrides, *offline(task, scale, rows, llamas)])
    assert plan.configured.total_s is not None
    assert sum(block.num_params for block in plan.blocks) > 0


def test_llamas_have_their_published_number_of_parameters(rows: str, llamas: dict[str, str]) -> None:
    for name, num_params in NUM_PARAMETERS.items():
        overrides = [*offline("math", "1gpu", rows, llamas), f"model.name={llamas[name]}", "method.name=fedavg"]
        plan = plan_of("math", "1gpu", overrides)
        assert [block.num_params for block in plan.blocks] == [num_params]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "scale", "label", "overrides"),
    [run for run in ALL if run[1] == "cpu"],
    ids=[name for name, run in zip(NAMES, ALL, strict=True) if run[1] == "cpu"],
)
def test_one_round_of_every_run_for_a_cpu(
    task: str, scale: str, label: str, overrides: tuple[str, ...], rows: str, llamas: dict[str, str], tmp_path: Path
) -> None:
    short = ["method.rounds=1", "method.local_steps=1", "tracking.wandb=off", f"out={tmp_path / 'run'}"]
    changes = [*overrides, *offline(task, scale, rows, llamas), *short]
    run(load_config(EXPERIMENTS / f"{task}_{scale}.yaml", changes))
    assert (tmp_path / "run" / "summary.json").is_file()


@pytest.mark.parametrize(
    ("sweep", "num_runs"), [("results_small", 42), ("results_step_size", 24), ("results_smollm2", 18)]
)
def test_the_results_have_so_many_runs(sweep: str, num_runs: int) -> None:
    assert len(load_sweep(EXPERIMENTS / "sweeps" / f"{sweep}.yaml", None).runs) == num_runs
