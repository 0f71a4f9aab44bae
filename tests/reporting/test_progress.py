"""Curves and the seconds to a loss."""

from pathlib import Path

import pytest

from parablock_ray.reporting.progress import curve, mean_curve, measures_in, seconds_along, seconds_to_loss
from parablock_ray.reporting.runs import gather
from tests.reporting.folders import run_folder, sweep_folder


def test_the_training_loss_is_smoothed_over_the_rounds_before(tmp_path: Path) -> None:
    losses = [7.0, 5.0, 3.0, 1.0, 4.0, 2.0]
    [group] = gather([run_folder(tmp_path / "run", losses=losses, round_s=2.5)]).groups
    found = curve(group.runs[0], "loss")
    assert found.rounds == [1, 2, 3, 4, 5, 6]
    assert found.seconds == [2.5, 5.0, 7.5, 10.0, 12.5, 15.0]
    assert found.num_bytes == [3_000_000 * n for n in found.rounds]
    assert found.loss == [7.0, 6.0, 5.0, 4.0, 4.0, 3.0]


def test_a_held_out_loss_is_taken_as_it_is_where_all_runs_have_it(tmp_path: Path) -> None:
    first = run_folder(tmp_path / "a", losses=[3.0] * 4, held_out=[2.0, 1.0])
    [group] = gather([first]).groups
    assert measures_in([group]) == ["held_out_loss", "loss"]
    found = curve(group.runs[0], "held_out_loss")
    assert (found.rounds, found.seconds, found.loss) == ([2, 4], [20.0, 40.0], [2.0, 1.0])
    for name, other in {"b": {}, "c": {"held_out": [2.0], "judged_on": "per_client"}}.items():
        groups = gather([first, run_folder(tmp_path / name, losses=[3.0] * 5, **other)]).groups
        assert measures_in(groups) == ["loss"]


def test_seeds_that_were_judged_at_different_rounds_are_averaged_where_all_were(tmp_path: Path) -> None:
    losses = [3.0] * 6
    folders = [
        run_folder(tmp_path / "x0", "seed=0", losses=losses, held_out=[5.0, 4.0, 3.0]),
        run_folder(tmp_path / "x1", "seed=1", losses=losses, held_out=[6.0, 2.0]),
        run_folder(tmp_path / "x2", "seed=2", losses=losses, held_out=[7.0, 6.0, 5.0, 4.0, 3.0, 1.0]),
    ]
    [group] = gather(folders).groups
    mean, std = mean_curve(group, "held_out_loss")
    assert (mean.rounds, mean.seconds, mean.num_bytes, mean.loss) == ([6], [60.0], [18_000_000], [2.0])
    assert std == pytest.approx([1.0])


def test_a_mean_curve_has_the_spread_of_its_seeds(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / f"x{i}", f"seed={i}", losses=[4.0 + i, 2.0 - i], round_s=1 + i) for i in range(2)]
    [group] = gather(folders).groups
    mean, std = mean_curve(group, "loss")
    assert (mean.seconds, mean.loss) == ([1.5, 3.0], [4.5, 3.0])
    assert std == pytest.approx([0.5**0.5, 0.0])


def test_seconds_to_the_loss_at_which_the_control_ends_with_the_same_seed(tmp_path: Path) -> None:
    sweep_folder(tmp_path)
    control, overlapped = gather([tmp_path]).groups
    # The control gets there when it ends, unless it was within 1 % before: 60 s; ParaBlock goes lower, 6 s a round.
    assert seconds_to_loss(control, control, "loss") == {0: 60.0, 1: 60.0}
    assert seconds_to_loss(overlapped, control, "loss") == {0: 36.0, 1: 36.0}


def test_seconds_along_the_control_s_way_start_from_the_loss_before_round_0(tmp_path: Path) -> None:
    losses, before = [3.0] * 4, 4.0  # the folder's loss_before
    control = run_folder(tmp_path / "control", "method.name=fedbcd", losses=losses, held_out=[3.0, 2.0, 1.0, 0.0])
    other = run_folder(tmp_path / "other", losses=losses, held_out=[3.5, 1.9, 1.9, 1.9], round_s=5)
    controls, others = gather([control, other]).groups
    assert controls.runs[0].summary["loss_before"] == before
    assert seconds_along(controls, controls, "held_out_loss", 0.5) == {0: 20.0}  # of 4 to 0: at 2
    assert seconds_along(others, controls, "held_out_loss", 0.5) == {0: 10.0}
    assert seconds_along(others, controls, "held_out_loss", 0.75) == {0: None}


def test_a_run_that_never_gets_there_has_none_and_one_percent_is_near_enough(tmp_path: Path) -> None:
    control = run_folder(tmp_path / "control", "method.name=fedbcd", losses=[1.0])
    near = run_folder(tmp_path / "near", losses=[1.0099])
    far = run_folder(tmp_path / "far", "method.lr=0.5", losses=[1.0101])
    lone = run_folder(tmp_path / "lone", "method.lr=0.7", "seed=5", losses=[0.5])
    groups = {group.label: group for group in gather([control, near, far, lone]).groups}
    found = {label: seconds_to_loss(group, groups["control"], "loss") for label, group in groups.items()}
    assert found == {"control": {0: 10.0}, "near": {0: 10.0}, "far": {0: None}, "lone": {}}
