"""Composing, checking, saving: what a user may write, and what each mistake says."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from parablock_ray.config import Config, fingerprint, load_config, save_resolved
from parablock_ray.config.schema import SAFE_DEEPSPEED_KEYS
from parablock_ray.errors import UserError

MINIMAL = {
    "name": "run",
    "out": "runs/${name}",
    "model": {"name": "tiny"},
    "data": {"source": "reasoning_gym", "tasks": ["chain_sum"], "num_train": 80},
    "clients": {"num": 4},
    "method": {"name": "parablock"},
}


def write(folder: Path, content: Any, name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    return write(tmp_path, MINIMAL)


def mistakes(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_config(path, list(overrides))
    return str(caught.value).splitlines()


def test_defaults_and_interpolation(minimal: Path) -> None:
    config = load_config(minimal, [])
    assert config.out == "runs/run"
    assert config.method.name == "parablock"
    assert config.method.correction == "own"


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("method.rounds=20", lambda c: c.method.rounds == 20),
        ("method.lr=1e-3", lambda c: c.method.lr == 1e-3),
        ("method.lr=1", lambda c: c.method.lr == 1.0),
        ("method.max_grad_norm=null", lambda c: c.method.max_grad_norm is None),
        ("clients.per_round=2", lambda c: c.clients.per_round == 2),
        ("data.tasks=[chain_sum, leg_counting]", lambda c: c.data.tasks == ("chain_sum", "leg_counting")),
        ("workers.num=2", lambda c: c.workers.num == 2),
        ("workers.num=auto", lambda c: c.workers.num == "auto"),
        ("tracking.wandb=off", lambda c: c.tracking.wandb == "off"),
        ("name=a=b", lambda c: c.out == "runs/a=b"),
        ("method={server_optimizer: {name: adam}}", lambda c: c.method.server_optimizer.tau == 1e-3),
        ("engine.deepspeed.dump_state=true", lambda c: c.engine.deepspeed == {"dump_state": True}),
    ],
)
def test_override(minimal: Path, override: str, read: Any) -> None:
    assert read(load_config(minimal, [override]))


def test_later_overrides_win(minimal: Path) -> None:
    assert load_config(minimal, ["seed=1", "seed=2"]).seed == 2


def test_default_files_merge_in_order_below_the_file(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    write(tmp_path / "base", MINIMAL | {"seed": 1}, "first.yaml")
    write(tmp_path / "base", {"seed": 2, "method": {"rounds": 20, "num_blocks": 2}}, "second.yaml")
    top = {"defaults": ["base/first", "base/second.yaml"], "method": {"num_blocks": 3}}
    config = load_config(write(tmp_path, top), [])
    assert (config.seed, config.method.rounds, config.method.num_blocks) == (2, 20, 3)


def test_one_default_file_may_serve_two(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL, "base.yaml")
    write(tmp_path, {"defaults": ["base"], "seed": 1}, "left.yaml")
    write(tmp_path, {"defaults": ["base"]}, "right.yaml")
    assert load_config(write(tmp_path, {"defaults": ["left", "right"], "name": "top"}), []).out == "runs/top"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("method.rounds=-3", "method.rounds: must be greater than 0 (got -3)"),
        ("method.rounds=3.5", "method.rounds: must be a whole number (got 3.5)"),
        ("method.rounds='12'", "method.rounds: must be a whole number (got '12')"),
        ("method.rounds=true", "method.rounds: must be a whole number (got true)"),
        ("method.lr=fast", "method.lr: must be a number (got 'fast')"),
        ("network.up_mbps=.inf", "network.up_mbps: must be a finite number (got Infinity)"),
        ("method.weight_decay=-1", "method.weight_decay: must be at least 0 (got -1)"),
        ("method=parablock", "method: must be a mapping (got 'parablock')"),
        ("method.name=fedavg method.num_blocks=2", "method.num_blocks: must be 1 (got 2)"),
        (
            "method.server_optimizer.name=sgd method.server_optimizer.lr=0",
            "method.server_optimizer.lr: must be greater",
        ),
        ("workers.num=aut", "workers.num: must be a whole number or 'auto' (got 'aut'); did you mean 'auto'?"),
        ("workers.num=0", "workers.num: must be greater than 0 or 'auto' (got 0)"),
        ("workers.gpus_per_worker=2", "workers.gpus_per_worker: must be at most 1 or 'auto' (got 2)"),
        ("runtime=seral", "runtime: must be 'ray' or 'serial' (got 'seral'); did you mean 'serial'?"),
        ("name=3", "name: must be text (got 3)"),
        ("out=''", "out: must be text, not empty (got '')"),
        ("data.tasks=chain_sum", "data.tasks: must be a list (got 'chain_sum')"),
        ("data.tasks=[a,1]", "data.tasks[1]: must be text (got 1)"),
        ("tracking=null", "tracking: must be a mapping (got null)"),
        ("tracking.wandb=on", "tracking.wandb: must be 'auto', 'offline', 'online' or 'off' (got true)"),
        ("rounds=3", "rounds: unknown key; did you mean 'method.rounds'? (allowed: name, seed"),
        ("colour=red", "colour: unknown key (allowed: name, seed"),
        ("method.num_block=3", "method.num_block: unknown key; did you mean 'num_blocks'? (allowed: name, rounds, "),
        ("method.name=fedbcd method.correction=own", "method.correction: unknown key with this method.name (allowed: "),
        (
            "method.name=parablok",
            "method.name: unknown method 'parablok'; did you mean 'parablock'? (allowed: parablock",
        ),
        (
            "method.server_optimizer.name=sdg",
            "method.server_optimizer.name: unknown server_optimizer 'sdg'; did you mean",
        ),
        ("method.server_optimizer.lr=1", "method.server_optimizer.name: required, but missing (allowed: sgd, momentum"),
        ("method.warmup_rounds=30", "method: warmup_rounds (30) must be less than rounds (10)"),
        ("clients.per_round=5", "clients: per_round (5) must be at most num (4)"),
        (
            "clients.sampling=by_size",
            "clients: sampling: by_size draws some of the clients for a round",
        ),
        ("data.num_train=3", "data.num_train: must be at least clients.num = 4"),
        ("runtime=serial network.mode=shaped", "network.mode: must be none or virtual with runtime=serial"),
        (
            "engine.deepspeed.fp16.enabled=true",
            "engine.deepspeed: fp16: set by parablock_ray, remove it here (allowed: ",
        ),
        ("method.rounds", "'method.rounds': not an override; write key=value"),
        ("=3", "'=3': not an override; write key=value"),
        ("method..rounds=3", "'method..rounds=3': not an override; write key=value"),
        ("data.tasks=[a", "data.tasks: the value in 'data.tasks=[a' is not valid YAML: "),
        ("model.name=${nam}", "model.name: Interpolation key 'nam' not found"),
    ],
)
def test_mistake_says(minimal: Path, override: str, line: str) -> None:
    said = mistakes(minimal, *override.split(" "))
    assert len(said) == 1
    assert said[0].startswith(line)


@pytest.mark.parametrize("key", ["optimizer", "scheduler", "bf16", "zero_optimization", "train_batch_size", "nonsense"])
def test_deepspeed_keys_of_ours_are_refused_by_name(minimal: Path, key: str) -> None:
    (line,) = mistakes(minimal, f"engine.deepspeed.{key}=1")
    assert line.startswith(f"engine.deepspeed: {key}: ")
    assert all(safe in line for safe in SAFE_DEEPSPEED_KEYS)


def test_every_mistake_gets_its_line(minimal: Path) -> None:
    said = mistakes(minimal, "seed=-1", "clients.num=four", "method.rounds=0", "method.round=0", "workers.num=0")
    keys = [line.partition(":")[0] for line in said]
    assert sorted(keys) == ["clients.num", "method.round", "method.rounds", "seed", "workers.num"]


def test_missing_keys_are_named(tmp_path: Path) -> None:
    said = mistakes(write(tmp_path, {"name": "x", "model": {}, "method": {"rounds": 3}}))
    assert "model.name: required, but missing" in said
    assert "clients: required, but missing" in said
    assert any(line.startswith("method.name: required, but missing (allowed: parablock") for line in said)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("name: a\nout: [1\nseed: 2\n", ", line 3: not valid YAML: "),
        ("name: a\n\tout: b\n", ", line 2: not valid YAML: "),
        ("name: a\nname: b\n", ", line 2: not valid YAML: found duplicate key name"),
        ("- a\n", "config.yaml: must hold `key: value` lines at the top, not a list"),
        ("3\n", "config.yaml: not a valid config: "),
        ("name: ${a\n", "config.yaml: not a valid config: '${a': only a key of the config may stand in ${…}"),
        (
            "a: !!python/object:os.system x\n",
            "config.yaml: not a valid config: it has the tag 'tag:yaml.org,2002:python/object:os.system'",
        ),
        ("[" * 5_000 + "]" * 5_000, ": not "),  # valid YAML, or a valid config: PyYAML's version decides
        ("defaults: base\n", "config.yaml: defaults: must be a list of file names"),
        ("defaults: [base]\n", "base.yaml: cannot be read: No such file or directory (in the defaults of "),
        ("# " + "x" * 1_000_000, "config.yaml: larger than 1,000,000 bytes"),
    ],
    ids=lambda text: text[:20],
)
def test_bad_file_is_named(tmp_path: Path, content: str, line: str) -> None:
    (said,) = mistakes(write(tmp_path, content))
    assert said.startswith(str(tmp_path))
    assert line in said


def test_not_text_not_there_and_a_folder(tmp_path: Path) -> None:
    binary = tmp_path / "model.safetensors"
    binary.write_bytes(b"\xff\xfe\x00\xd8\x00")
    assert "model.safetensors" in mistakes(binary)[0]
    assert mistakes(tmp_path / "none.yaml") == [f"{tmp_path / 'none.yaml'}: cannot be read: No such file or directory"]
    assert mistakes(tmp_path) == [f"{tmp_path}: cannot be read: Is a directory"]


def test_defaults_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path, {"defaults": ["b"]}, "a.yaml")
    write(tmp_path, {"defaults": ["a"]}, "b.yaml")
    (said,) = mistakes(tmp_path / "a.yaml")
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    assert said == f"defaults: go round in a circle: {a} -> {b} -> {a}"


def test_saved_config_loads_equal(minimal: Path, tmp_path: Path) -> None:
    overrides = ["tracking.wandb=off", "method.lr=1e-5", "data.tasks=['1e-4', 'no', 'null']", "clients.per_round=null"]
    config = load_config(minimal, overrides)
    save_resolved(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml", []) == config
    assert "${" not in (tmp_path / "saved.yaml").read_text()


@given(text=st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp"]), min_size=1))
def test_any_text_survives_saving(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("saved") / "config.yaml"
    config = Config.model_validate(MINIMAL | {"out": text, "name": f"${{{text}}} \\${{seed}} \\\\${{"})
    save_resolved(config, path)
    assert load_config(path, []) == config


def test_fingerprint_sees_every_value_and_no_spelling(minimal: Path, tmp_path: Path) -> None:
    config = load_config(minimal, [])
    spelt_out = write(tmp_path, MINIMAL | {"seed": 0, "out": "runs/run"}, "spelt_out.yaml")
    assert fingerprint(load_config(spelt_out, [])) == fingerprint(config)
    assert fingerprint(load_config(minimal, ["method.lr=2e-4"])) != fingerprint(config)
    assert fingerprint(load_config(minimal, ["name=again", "out=elsewhere"])) == fingerprint(config)
    assert len(fingerprint(config)) == 64


def test_loading_imports_neither_torch_nor_ray(minimal: Path) -> None:
    code = (
        "import sys; from parablock_ray.config import load_config; load_config(sys.argv[1], []); "
        "print(sorted({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(minimal)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_mapping_that_says_its_kind_replaces_the_one_in_the_file(minimal: Path) -> None:
    skewed = "data.split={name: dirichlet, alpha: 0.5}"
    assert load_config(minimal, [skewed, "data.split.alpha=2"]).data.split.alpha == 2
    assert load_config(minimal, [skewed, "data.split={name: iid}"]).data.split.name == "iid"
    spread = "network.up_mbps={dist: lognormal, median: 20, sigma: 1}"
    uniform = load_config(minimal, [spread, "network.up_mbps={dist: uniform, low: 1, high: 2}"]).network.up_mbps
    assert (uniform.low, uniform.high) == (1, 2)
    assert load_config(minimal, [spread, "network.up_mbps=5"]).network.up_mbps == 5


def test_what_cannot_run_is_refused_before_a_model_is_loaded(minimal: Path) -> None:
    for overrides, line in (
        (["workers.num=5"], "workers.num: must be at most clients.num = 4"),
        (["method.name=flora", "method.lora.ranks=[4, 8]"], "method.lora.ranks: 2 ranks for clients.num = 4; give one"),
        (["method.name=flora", "clients.max_in_flight=2"], "clients.max_in_flight: leave it out with method."),
        (["method.name=fedcybgd", "method.num_blocks=5"], "method.num_blocks: fedcybgd trains block (client mod"),
        (["method.name=fedcybgd", "clients.per_round=2"], "clients.per_round: fedcybgd trains one client at a time"),
    ):
        [said] = mistakes(minimal, *overrides)
        assert said.startswith(line)


def test_tasks_of_the_evaluation_are_checked_by_name(minimal: Path) -> None:
    config = load_config(minimal, ['evaluation.tasks=[held_out, reasoning_gym:gcd, "gsm8k=a b.jsonl"]'])
    assert config.evaluation.tasks == ("held_out", "reasoning_gym:gcd", "gsm8k=a b.jsonl")
    [line] = mistakes(minimal, "evaluation.tasks=[held_out, gms8k=test.jsonl]")
    assert line.startswith("evaluation.tasks: unknown task 'gms8k'; did you mean 'gsm8k=FILE'? (allowed: held_out, ")


def test_which_rounds_are_judged(minimal: Path) -> None:
    settings = load_config(minimal, ["evaluation.every=3"]).evaluation
    assert settings.during == ("held_out",)
    assert [round for round in range(10) if settings.is_due(round)] == [2, 5, 8]
    assert not any(map(load_config(minimal, []).evaluation.is_due, range(10)))
    [line] = mistakes(minimal, "evaluation.during=[held_oud]")
    assert line.startswith("evaluation.during: unknown task 'held_oud'; did you mean 'held_out'? (allowed: ")
    [line] = mistakes(minimal, "evaluation.every=0")
    assert line == "evaluation.every: must be greater than 0 (got 0)"
    [line] = mistakes(minimal, "evaluation.every=2", "evaluation.during=[]")
    assert line == "evaluation: during must name at least one task, like held_out, where every is set"
