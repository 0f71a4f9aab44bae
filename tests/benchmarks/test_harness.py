"""The figures of a benchmark as other programs read them."""

import json

from benchmarks.harness import Row, report, table

ROWS = [Row("efficiency", 0.97, "ratio", 0.95), Row("speedup", 1.5, "x", 1.84), Row("seconds", 12.0, "s")]


def test_json_is_one_object_on_the_last_line(capsys):
    report(iter(ROWS), as_json=True)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found) == {"machine", "versions", "rows"}
    assert found["rows"][0] == {"name": "efficiency", "value": 0.97, "unit": "ratio", "goal": 0.95, "at_most": False}
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
