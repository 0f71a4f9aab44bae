"""The page: what it says, and that a real browser shows all of it without asking anyone for anything."""

import csv
import re
from html import unescape
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from parablock_ray import cli
from tests.reporting.browser import measure, open_page
from tests.reporting.folders import run_folder, sweep_folder


def report(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, ["report", *map(str, arguments)])


@pytest.fixture
def page(tmp_path: Path) -> Path:
    result = report(sweep_folder(tmp_path / "trial"), "--out", tmp_path / "page.html")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"report: {tmp_path}/page.html (4 run(s) in 2 group(s))\n"
    return tmp_path / "page.html"


def cells(page: Path) -> list[str]:
    """The text of all cells of all tables."""
    found = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", page.read_text("utf-8"), re.DOTALL)
    return [unescape(re.sub(r"<[^>]*>", "", cell)).strip() for cell in found]


def test_the_table_has_means_over_seeds_and_paired_differences(page: Path) -> None:
    found = cells(page)
    at = found.index("parablock")
    assert found[at : at + 8] == [
        "parablock",
        "2",
        "0.9750 ± 0.0354",
        "-0.0750 [-0.3927, +0.2427]",  # differences of -0.05 and -0.10: 12.7062 · 0.0354 / √2
        "36.0 ± 0.0",
        "1.67x",
        "36.0 ± 0.0",
        "18.0 MB",
    ]


def test_a_browser_shows_every_plot_and_asks_for_nothing(page: Path, tmp_path: Path) -> None:
    opened = open_page(page, tmp_path)
    assert opened.console == []
    assert opened.requests == []
    measured = measure(page, "figure.plot > svg", tmp_path)["shown"]
    assert len(measured) == 5  # against rounds, seconds, bytes; at the end; seconds to the loss
    for plot in measured:
        assert min(plot["width"], plot["height"]) > 100
        assert plot["paths"] > 10
    pictures = measure(page, "details[open] img", tmp_path)["shown"]
    assert len(pictures) == 2  # a timeline for each group
    assert all(min(picture["natural"], picture["width"], picture["height"]) > 100 for picture in pictures)


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_window(page: Path, tmp_path: Path, width: int) -> None:
    measured = measure(page, "main", tmp_path, width)["page"]
    assert measured["scroll"] <= max(measured["client"], 500)  # a browser's window is 500 pixels wide at the least


def test_the_browser_would_tell_of_a_request_and_of_an_error(page: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.html"
    far = '<img src="http://192.0.2.1/picture.png"></body>'
    wrong.write_text(page.read_text("utf-8").replace("</body>", far))
    assert any("Content Security Policy" in line for line in open_page(wrong, tmp_path).console)
    wrong.write_text(f"<!doctype html><body><script>throw Error('wrong')</script>{far}")
    opened = open_page(wrong, tmp_path)
    assert any("wrong" in line for line in opened.console)
    assert opened.requests == ["http://192.0.2.1/picture.png"]


def test_names_from_a_run_are_text_and_no_html(tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script>&amp;|"
    folder = run_folder(tmp_path / "run", f'name="{nasty}"')
    result = report(folder, "--out", tmp_path / "page.html", "--markdown", tmp_path / "page.md")
    assert result.exit_code == 0
    text = (tmp_path / "page.html").read_text()
    assert "<script" not in text
    assert nasty in cells(tmp_path / "page.html")
    for table in (tmp_path / "page.md").read_text().split("\n\n"):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_the_same_runs_give_the_same_bytes(page: Path, tmp_path: Path) -> None:
    before = page.read_bytes()
    assert report(tmp_path / "trial", "--out", page).exit_code == 0
    assert page.read_bytes() == before


def test_warnings_stand_in_the_page_and_on_stderr(tmp_path: Path) -> None:
    first, other = run_folder(tmp_path / "a"), run_folder(tmp_path / "b", "data.tasks=[gcd]")
    cut = run_folder(tmp_path / "c", "seed=1")
    (cut / "summary.json").unlink()
    result = report(first, other, cut, "--out", tmp_path / "page.html")
    assert result.exit_code == 0
    warned = result.stderr.splitlines()
    assert [line.split(": ")[:2] for line in warned] == [
        ["warning", "These runs differ in data.tasks"],
        ["warning", "Left out"],
    ]
    text = unescape((tmp_path / "page.html").read_text())
    assert all(line.removeprefix("warning: ") in text for line in warned)


def test_tables_as_files(tmp_path: Path) -> None:
    sweep_folder(tmp_path / "trial")
    options = ["--csv", tmp_path / "tables" / "here", "--markdown", tmp_path / "table.md", "--control", "parablock"]
    assert report(tmp_path / "trial", "--out", tmp_path / "page.html", *options).exit_code == 0
    with (tmp_path / "tables" / "here" / "groups.csv").open() as file:
        groups = {row["runs"]: row for row in csv.DictReader(file)}
    assert groups["fedbcd"]["control"] == "parablock"
    assert float(groups["fedbcd"]["loss_after_difference"]) == pytest.approx(0.075)
    assert float(groups["fedbcd"]["loss_after_difference_half_width"]) == pytest.approx(12.7062 * 0.025)
    assert float(groups["fedbcd"]["seconds_mean"]) == 60.0
    with (tmp_path / "tables" / "here" / "runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert [(row["runs"], row["seed"], row["num_bytes"]) for row in runs] == [
        (method, seed, "18000000") for method in ("fedbcd", "parablock") for seed in ("0", "1")
    ]
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[2].startswith("| fedbcd | 2 | 1.0500 ± 0.0707 | +0.0750 [-0.2427, +0.3927] | 60.0 ± 0.0 | 0.60x | ")


def test_a_loss_that_is_never_reached_and_a_seed_that_the_control_has_not(tmp_path: Path) -> None:
    control = run_folder(tmp_path / "control", "method.name=fedbcd", losses=[1.0])
    others = [run_folder(tmp_path / "far", losses=[2.0]), run_folder(tmp_path / "lone", "method.lr=1", "seed=1")]
    result = report(control, *others, "--out", tmp_path / "page.html", "--markdown", tmp_path / "page.md")
    assert result.exit_code == 0
    main = (tmp_path / "page.md").read_text().partition("\n\n")[0]
    lines = [line.split(" | ") for line in main.splitlines()]
    rows = {line[0].removeprefix("| "): line for line in lines}
    at = rows["runs"].index("seconds to loss")
    assert [rows[label][at] for label in ("control", "far", "lone")] == ["10.0", "never", ""]
    assert rows["lone"][3] == "no seed in common"


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    out = ["--out", tmp_path / "page.html"]
    for options, option in [
        (["--out", tmp_path / "none" / "page.html"], "--out"),
        ([*out, "--csv", folder / "summary.json"], "--csv"),
        ([*out, "--markdown", tmp_path], "--markdown"),
    ]:
        result = report(folder, *options)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"{option}: cannot write to ")
        assert len(result.stderr.splitlines()) == 1


def test_a_lone_run_has_a_page_too(tmp_path: Path) -> None:
    result = report(run_folder(tmp_path / "run", losses=[1.0]), "--out", tmp_path / "page.html")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "There is one group of runs." in (tmp_path / "page.html").read_text()


def test_names_are_text_wherever_they_stand(tmp_path: Path) -> None:
    """Neither a tag of HTML, nor markup of the terminal, nor mathematics."""
    name = "<script>alert(1)</script> [/red] $\\frac$ --> &amp;"
    folder = run_folder(tmp_path / "named")
    config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "name": name}), "utf-8")
    plain = run_folder(tmp_path / "plain", "seed=1", "method.lr=0.5")
    assert report(folder, plain, "--out", tmp_path / "page.html").exit_code == 0
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "<script" not in page
    assert name in cells(tmp_path / "page.html")
    assert name in unescape(re.sub(r"<[^>]*>", "", page[page.index("<figure") :]))  # in a picture too
    compared = CliRunner().invoke(cli.app, ["compare", str(folder), str(plain)])
    assert compared.exit_code == 0
    assert "[/red]" in compared.output


def test_refused_updates_have_a_column_where_there_are_any(page: Path, tmp_path: Path) -> None:
    assert "updates refused" not in cells(page)
    folders = [run_folder(tmp_path / f"run-seed{seed}", f"seed={seed}", num_refused=3 * seed) for seed in (0, 1)]
    assert report(*folders, "--out", tmp_path / "refused.html").exit_code == 0
    found = cells(tmp_path / "refused.html")
    assert found.count("updates refused") == 2  # of the groups and of the runs
    assert "1.5 ± 2.1" in found
