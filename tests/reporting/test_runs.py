"""Which runs a report is about, how they are grouped, and what it warns of."""

import json
from pathlib import Path

import pytest

from parablock_ray.errors import UserError
from parablock_ray.reporting.runs import Gathered, compared_with, control_of, gather, warnings
from tests.reporting.folders import run_folder, sweep_folder


def labels(gathered: Gathered) -> dict[str, list[int]]:
    return {group.label: list(group.by_seed) for group in gathered.groups}


def test_runs_that_differ_in_seed_name_and_folder_are_one_group(tmp_path: Path) -> None:
    sweep_folder(tmp_path / "a")
    elsewhere = run_folder(tmp_path / "b" / "more", "seed=7", "tracking.wandb=off", losses=[3.0] * 6)
    gathered = gather([tmp_path / "a", elsewhere])
    assert labels(gathered) == {"fedbcd": [0, 1], "parablock": [0, 1, 7]}
    assert gathered.left_out == []
    assert warnings(gathered) == [
        "Not all groups have the same seeds. Differences to the control use the seeds that both have."
    ]


def test_a_sweep_keeps_the_order_of_its_file(tmp_path: Path) -> None:
    sweep_folder(tmp_path)
    order = ["parablock-seed1", "parablock-seed0", "fedbcd-seed0", "fedbcd-seed1", "fedavg-seed0"]
    (tmp_path / "sweep.json").write_text(json.dumps({"name": "x", "runs": order}))
    (tmp_path / "fedavg-seed0.failed").write_text("client 3: out of memory\n\nTraceback …\n")
    gathered = gather([tmp_path])
    assert labels(gathered) == {"parablock": [0, 1], "fedbcd": [0, 1]}
    assert [each.reason for each in gathered.left_out] == [f"{tmp_path}/fedavg-seed0: failed: client 3: out of memory"]


def test_groups_of_one_name_are_told_apart_by_folder(tmp_path: Path) -> None:
    first = run_folder(tmp_path / "one" / "run")
    second = run_folder(tmp_path / "two" / "run", "method.lr=0.5")
    assert list(labels(gather([first, second]))) == [f"run ({first})", f"run ({second})"]


def test_a_run_made_twice_counts_once(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / name) for name in ("first", "second")]
    gathered = gather(folders)
    assert labels(gathered) == {"first": [0]}
    assert warnings(gathered) == [f"Left out: {folders[1]}: has the config and the seed of {folders[0]}"]


def cut_summary(folder: Path) -> None:
    (folder / "summary.json").unlink()


def cut_metrics(folder: Path) -> None:
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text[:-20])


def drop_rounds(folder: Path) -> None:
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text(lines[0])


@pytest.mark.parametrize(
    ("cut", "reason"),
    [
        (cut_summary, "{folder}: this run did not finish (no summary.json); wait, or run it again"),
        (cut_metrics, "{folder}/metrics.jsonl, line 3: cut short; run it again"),
        (drop_rounds, "{folder}/metrics.jsonl: cut short, it has 1 of 3 rounds; run it again"),
        (lambda folder: (folder / "summary.json").write_text("{}"), "{folder}/summary.json: cut short; run it again"),
    ],
)
def test_a_run_cut_short_is_left_out_and_named(tmp_path: Path, cut: object, reason: str) -> None:
    whole, folder = run_folder(tmp_path / "whole"), run_folder(tmp_path / "cut", "seed=1")
    assert callable(cut)
    cut(folder)
    told = reason.format(folder=folder)
    gathered = gather([whole, folder])
    assert labels(gathered) == {"whole": [0]}
    assert warnings(gathered) == [f"Left out: {told}"]
    with pytest.raises(UserError) as caught:
        gather([folder])
    assert str(caught.value).splitlines() == ["no finished run to report:", told]


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        (1, "cut short, it has 1 of 3 evaluations; run it again"),
        (1.5, "line 2: cut short; run it again"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_run_whose_evaluations_are_cut_short_is_left_out(tmp_path: Path, kept: float | None, reason: str) -> None:
    folder = run_folder(tmp_path / "run", held_out=[3.0, 2.0, 1.0])
    file = folder / "evaluations.jsonl"
    [line, *_] = text = file.read_text().splitlines(keepends=True)
    file.write_text("".join(text)[: int(len(line) * kept)]) if kept is not None else file.unlink()
    with pytest.raises(UserError) as caught:
        gather([folder])
    assert str(caught.value).endswith(reason)
    assert f"{file}" in str(caught.value)


def test_a_folder_without_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no run and no sweep; name such folders, like runs/quickstart"):
        gather([tmp_path])
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(UserError, match=r"sweep\.json: cannot be read: "):
        gather([tmp_path])


def test_what_must_not_be_compared_is_warned_of(tmp_path: Path) -> None:
    gathered = gather(
        [
            run_folder(tmp_path / "a"),
            run_folder(tmp_path / "b", "data.tasks=[gcd]", "network.mode=none", "data.split=iid"),
            run_folder(tmp_path / "c", "model.name=smollm2-135m-instruct", versions={"torch": "2.8.0"}),
            run_folder(tmp_path / "d", "model.dtype=bfloat16", "data.template=alpaca", "data.max_length=64"),
        ]
    )
    tasks = '["chain_sum", "products", "gcd", "count_primes"], ["gcd"]'
    assert warnings(gathered) == [
        'These runs differ in model.name: "tiny", "smollm2-135m-instruct". Losses must not be compared across it.',
        'These runs differ in model.dtype: "float32", "bfloat16". Losses must not be compared across it.',
        f"These runs differ in data.tasks: {tasks}. Losses must not be compared across it.",
        'These runs differ in data.template: "plain", "alpaca". Losses must not be compared across it.',
        "These runs differ in data.max_length: 128, 64. Losses must not be compared across it.",
        'These runs differ in network.mode: "virtual", "none". Seconds must not be compared across it.',
        "These runs were made with different versions of torch: 2.9.0, 2.8.0.",
    ]


def test_a_group_is_compared_with_the_control_in_its_own_setting(tmp_path: Path) -> None:
    skew, fedavg = "data.split={name: dirichlet, alpha: 0.1}", ["method.name=fedavg", "method.num_blocks=1"]
    groups = gather(
        [
            run_folder(tmp_path / "fedbcd-iid", "method.name=fedbcd", "data.split=iid"),
            run_folder(tmp_path / "parablock-iid", "data.split=iid"),
            run_folder(tmp_path / "fedbcd-skew", "method.name=fedbcd", skew),
            run_folder(tmp_path / "parablock-skew", skew),
            run_folder(tmp_path / "fedavg-skew", *fedavg, "network.compute_s=0.7", skew),
            run_folder(tmp_path / "parablock-natural"),
        ]
    ).groups
    controls = {label: each.label for label, each in compared_with(groups, control_of(groups, None)).items()}
    assert controls == {
        "fedbcd-iid": "fedbcd-iid",
        "parablock-iid": "fedbcd-iid",
        "fedbcd-skew": "fedbcd-iid",
        "parablock-skew": "fedbcd-skew",
        "fedavg-skew": "fedbcd-skew",  # its step takes as long as its method makes it
        "parablock-natural": "fedbcd-iid",  # nothing nearer was run
    }
    assert control_of(groups, "fedbcd-skew").label == "fedbcd-skew"
    with pytest.raises(UserError, match=r"--control: no group 'fedbcd-ski'; did you mean 'fedbcd-skew'\?"):
        control_of(groups, "fedbcd-ski")
