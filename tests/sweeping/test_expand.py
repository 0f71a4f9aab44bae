"""From a sweep file to checked runs, and what each mistake says."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parablock_ray.errors import UserError
from parablock_ray.sweeping.expand import load_sweep
from tests.sweeping.files import sweep_file

LABELS = st.from_regex(r"[a-z0-9][a-z0-9_.+=]{0,5}", fullmatch=True)


def mistakes(folder: Path, **changes: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_sweep(sweep_file(folder, **changes), None)
    return str(caught.value).splitlines()


def test_every_cell_of_the_grid_with_every_seed(tmp_path: Path) -> None:
    file = sweep_file(tmp_path, seeds=[3, 7], overrides=["method.rounds=9"], runs={"long": ["method.rounds=20"]})
    sweep = load_sweep(file, None)
    kinds = ["fedbcd-low", "fedbcd-high", "parablock-low", "parablock-high", "long"]
    assert [run.label for run in sweep.runs] == [f"{kind}-seed{seed}" for kind in kinds for seed in (3, 7)]
    run = sweep.runs[3]
    config = run.config
    assert (config.method.name, config.method.lr, config.method.rounds, config.seed) == ("fedbcd", 0.01, 9, 7)
    assert (config.name, run.folder) == ("fedbcd-high-seed7", tmp_path / "out" / "fedbcd-high-seed7")
    assert {each.config.tracking.wandb_group for each in sweep.runs} == {"trial"}
    assert sweep.runs[-1].config.method.rounds == 20  # a run's own overrides come after those of all


def test_its_folder_is_runs_and_its_name_unless_told(tmp_path: Path) -> None:
    file = sweep_file(tmp_path, out=None)
    assert load_sweep(file, None).runs[0].folder == Path("runs/trial/fedbcd-low-seed0")
    odd = tmp_path / "it's # odd: 7"
    assert load_sweep(file, odd).runs[0].folder == odd / "fedbcd-low-seed0"


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(LABELS, min_size=1, max_size=3, unique=True), min_size=1, max_size=3), st.integers(1, 3))
def test_a_run_has_a_folder_of_its_own_or_the_sweep_is_refused(axes: list[list[str]], num_seeds: int) -> None:
    grid = {f"axis{i}": {label: [] for label in labels} for i, labels in enumerate(axes)}
    with TemporaryDirectory() as folder:
        runs = load_sweep(sweep_file(Path(folder), grid=grid, seeds=list(range(num_seeds))), None).runs
    assert len({run.folder for run in runs}) == len(runs) == math.prod(map(len, axes)) * num_seeds


def test_two_runs_with_one_folder_are_refused(tmp_path: Path) -> None:
    twice = f"two runs would share the folder {tmp_path}/out/"
    joined = {"a": {"x-y": [], "x": []}, "b": {"z": [], "y-z": []}}
    for changes, label in [
        ({"seeds": [1, 1]}, "fedbcd-low-seed1"),
        ({"runs": {"fedbcd-low": []}}, "fedbcd-low-seed0"),
        ({"grid": joined}, "x-y-z-seed0"),
    ]:
        assert mistakes(tmp_path, **changes) == [f"{tmp_path}/sweep.yaml: {twice}{label}; make their labels differ"]


def test_a_label_twice_in_an_axis_is_no_yaml_of_ours(tmp_path: Path) -> None:
    file = sweep_file(tmp_path)
    file.write_text("name: trial\nconfig: base.yaml\ngrid:\n  method:\n    a: []\n    a: []\n")
    with pytest.raises(UserError, match=r"sweep\.yaml, line 6: not valid YAML: found duplicate key a"):
        load_sweep(file, None)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"grd": {}},
            "grd: unknown key; did you mean 'grid'? (allowed: name, config, out, seeds, overrides, grid, runs)",
        ),
        ({"grid": None}, "grid: names no run; give it an axis with labels, or list the runs under `runs`"),
        ({"grid": {}}, "grid: names no run; give it an axis with labels, or list the runs under `runs`"),
        (
            {"grid": {"method": {}}},
            "grid.method: has no labels; give it some, like {a: [method.lr=0.1]}, or remove it",
        ),
        ({"seeds": []}, "seeds: names none; give at least one, like [0, 1, 2], or leave it out for [0]"),
        ({"seeds": [-1]}, "seeds[0]: must be at least 0 (got -1)"),
        ({"name": "a/b"}, "name: must be a name of letters, digits and . _ + = - (got 'a/b')"),
        (
            {"runs": {"a b": []}},
            "runs.a b: must be a name of letters, digits and . _ + = - (got 'a b')",
        ),
        ({"grid": {"m": {"a": "method.lr=1"}}}, "grid.m.a: must be a list (got 'method.lr=1')"),
        ({"grid": {"m": {"a": [1]}}}, "grid.m.a[0]: must be text (got 1)"),
        ({"overrides": ["seed=3"]}, "seed=3: seed is set by the sweep; use `seeds`"),
        (
            {"runs": {"a": ["out=b"]}},
            "out=b: out is set by the sweep; every run has its folder in the sweep's; the sweep's own `out` says where",
        ),
    ],
)
def test_a_wrong_sweep_file(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    assert mistakes(tmp_path, **changes) == [line]


def test_every_mistake_of_every_run_is_listed_with_who_makes_it(tmp_path: Path) -> None:
    grid = {"method": {"a": ["method.name=fedbcd"], "b": ["method.lr=-1", "runtime=seral"]}}
    lines = mistakes(tmp_path, grid=grid, seeds=[0, 1], overrides=["clients.num=0"])
    assert lines == [
        "a-seed0, a-seed1, b-seed0 and 1 more: clients.num: must be greater than 0 (got 0)",
        "b-seed0, b-seed1: runtime: must be 'ray' or 'serial' (got 'seral'); did you mean 'serial'?",
        "b-seed0, b-seed1: method.lr: must be greater than 0 (got -1)",
    ]


def test_a_file_that_cannot_be_read_is_a_mistake_too(tmp_path: Path) -> None:
    runs = {
        "traced": ["network.mode=virtual", f"network.trace={tmp_path}/none.csv"],
        "lossy": [f"clients.participation={tmp_path}/none.jsonl"],
    }
    traced, lossy = mistakes(tmp_path, grid=None, runs=runs)
    assert traced.startswith("traced-seed0: network.trace: ")
    assert lossy.startswith("lossy-seed0: clients.participation: ")


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    [line] = mistakes(tmp_path, config="none.yaml")
    assert line.endswith(f"{tmp_path}/none.yaml: cannot be read: No such file or directory")
