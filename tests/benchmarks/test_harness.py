"""The figures of a benchmark as other programs read them."""

import json

import pytest

from benchmarks.harness import Row, in_turns, meets_goal, report, speed_row, table

ROWS = [Row("efficiency", 0.97, "ratio", 0.95), Row("speedup", 1.5, "x", 1.84), Row("seconds", 12.0, "s")]


def test_json_is_one_object_on_the_last_line(capsys):
    report(iter(ROWS), as_json=True)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found) == {"machine", "versions", "rows"}
    first = {"name": "efficiency", "value": 0.97, "unit": "ratio", "goal": 0.95, "at_most": False, "spread": None}
    assert found["rows"][0] == first
    assert found["rows"][2]["goal"] is None
    assert found["machine"]["num_cpus"] >= 1
    assert "ray" in found["versions"]


def test_a_table_says_which_goals_are_missed():
    lines = table(ROWS).splitlines()
    assert [("MISSED" in line) for line in lines] == [False, True, False]


def test_of_an_error_the_goal_is_the_most():
    good, bad = table(
        [Row(name, value, "of measured", 0.1, at_most=True) for name, value in (("a", 0.1), ("b", 0.2))]
    ).splitlines()
    assert good.endswith("goal at most 0.1")
    assert bad.endswith("goal at most 0.1  MISSED")


def test_measures_take_turns_after_one_of_each_that_does_not_count():
    told = []
    found = in_turns({name: lambda name=name: told.append(name) or float(len(told)) for name in "AB"}, num_turns=3)
    assert told == list("ABABABAB")
    assert found == {"A": [3.0, 5.0, 7.0], "B": [4.0, 6.0, 8.0]}


def test_a_speed_is_the_median_of_pairs_and_tells_their_spread():
    row = speed_row("engine", ours_s=[1.0, 2.0, 4.0, 1.0, 1.0], theirs_s=[2.0, 4.0, 8.0, 4.0, 1.0], goal=2)
    assert (row.value, row.unit, row.goal) == (2.0, "x", 2)
    assert row.spread == 0.0  # 1, 2, 2, 2, 4
    assert meets_goal(row)
    apart = speed_row("engine", [1.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0], goal=4)
    assert (apart.value, apart.spread) == (3.0, pytest.approx(2 / 3))
    assert table([apart]).endswith("spread 67%  goal 4  MISSED")
