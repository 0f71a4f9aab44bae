"""What the sinks leave behind: files, lines on a terminal, a W&B run."""

import io
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import wandb
from rich.console import Console

from parablock_ray.config import Config
from parablock_ray.errors import RunFailed, UserError
from parablock_ray.tracking.sinks import ConsoleSink, JsonlSink, WandbSink, open_sinks
from tests.full_disk import at_most

SUMMARY: dict[str, Any] = {
    "status": "done",
    "method": "parablock",
    "loss_before": 2.0,
    "loss_after": 1.0,
    "seconds": 12.5,
    "seconds_bound": None,
    "overlap_efficiency": 0.95,
    "bytes_up": 2_500_000,
    "versions": {"ray": "2.60.0"},
}


RESULTS: dict[str, Any] = {
    "held_out": {
        "loss": {"value": 1.25, "standard_error": 0.5, "num_examples": 8},
        "perplexity": {"value": 3.5, "standard_error": None, "num_examples": 8},
    },
    "gsm8k=a b/test.jsonl": {"strict_match": {"value": 0.5, "standard_error": None, "num_examples": 2}},
}
FIGURES = {"held_out/loss": 1.25, "held_out/perplexity": 3.5, "gsm8k_a_b_test.jsonl/strict_match": 0.5}


def config(out: Path, wandb: str) -> Config:
    return Config.model_validate(
        {
            "name": "read-me-back",
            "out": str(out),
            "model": {"name": "tiny"},
            "data": {"source": "reasoning_gym", "tasks": ["chain_sum"], "num_train": 80},
            "clients": {"num": 2},
            "method": {"name": "parablock", "rounds": 3},
            "tracking": {"wandb": wandb},
        }
    )


def metrics_row(round: int) -> dict[str, Any]:
    times = {
        f"{phase}_s{suffix}": 0.1 * (round + 1)
        for phase in ("compute", "upload", "download", "wait")
        for suffix in ("", "_max")
    }
    counts = {"bytes_up": 10**6, "bytes_down": 500_000, "bytes_catch_up": 0, "num_participants": 2, "num_refused": 0}
    return {"round": round, "block": round % 2, "loss": 2.0 / (round + 3), "seconds": 1.25} | times | counts


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_jsonl_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "run")
    sink.event({"event": "committed", "round": 0})
    sink.round(metrics_row(0))
    assert read_lines(tmp_path / "run" / "events.jsonl") == [{"event": "committed", "round": 0}]
    assert read_lines(tmp_path / "run" / "metrics.jsonl") == [metrics_row(0)]
    sink.close()


def test_summary_comes_whole_and_only_at_the_end(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path)
    assert not (tmp_path / "summary.json").exists()
    sink.finish(SUMMARY)
    sink.close()
    assert json.loads((tmp_path / "summary.json").read_text()) == SUMMARY
    assert {path.name for path in tmp_path.iterdir()} == {"events.jsonl", "metrics.jsonl", "summary.json"}


def fill(sink: JsonlSink) -> None:
    for round in range(1, 1000):
        sink.round(metrics_row(round))


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path)
    sink.round(metrics_row(0))
    with at_most(4096):
        with pytest.raises(RunFailed) as failure:
            fill(sink)
        with pytest.raises(RunFailed):
            sink.close()
    assert str(failure.value) == f"{tmp_path}: cannot be written to: File too large; make room, then parablock resume"
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0]) == metrics_row(0)  # the last one is cut


def test_evaluations_have_files_of_their_own(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path)
    for round in (1, 3):
        sink.evaluation({"round": round, "results": RESULTS})
        assert read_lines(tmp_path / "evaluations.jsonl")[-1] == {"round": round, "results": RESULTS}
    assert len(read_lines(tmp_path / "evaluations.jsonl")) == 2
    sink.final_evaluation(RESULTS)
    sink.close()
    assert json.loads((tmp_path / "evaluation.json").read_text()) == RESULTS


@pytest.mark.parametrize("terminal", [False, True])
def test_an_evaluation_is_a_line_on_the_terminal(terminal: bool) -> None:
    out = io.StringIO()
    sink = ConsoleSink(Console(file=out, force_terminal=terminal, width=100), num_rounds=3)
    sink.round(metrics_row(1))
    sink.evaluation({"round": 0, "results": RESULTS})
    sink.close()
    told = "round 0  held_out/loss 1.2500  held_out/perplexity 3.5000  gsm8k_a_b_test.jsonl/strict_match 0.5000"
    assert told in out.getvalue().replace("\n", "") or told in out.getvalue()


def console_output(terminal: bool, num_rows: int) -> str:
    out = io.StringIO()
    sink = ConsoleSink(Console(file=out, force_terminal=terminal, width=100), num_rounds=num_rows)
    for round in range(num_rows):
        sink.round(metrics_row(round))
    sink.finish(SUMMARY)
    sink.close()
    return out.getvalue()


def test_without_a_terminal_a_round_is_one_plain_line() -> None:
    output = console_output(terminal=False, num_rows=2)
    assert output.splitlines()[1] == (
        "round 1  block 1  loss 0.5000  seconds 1.25  compute 0.20  exchange 0.40  wait 0.20  bytes 1.5 MB"
    )
    assert "\x1b" not in output
    assert all(text in output for text in ("parablock", "2.0000", "12.50", "95.0%", "2.5 MB"))
    assert "seconds_bound" not in output


def test_on_a_terminal_a_live_table_holds_the_last_rounds() -> None:
    last_screen = console_output(terminal=True, num_rows=12).rpartition("12 of 12 rounds")[2]
    assert "0.1429" in last_screen  # the loss of round 11
    assert "0.6667" not in last_screen  # that of round 0


def inspect(folder: Path, *options: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", *options, "--json", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_offline_wandb_run_reads_back_as_metrics_jsonl(tmp_path: Path) -> None:
    run_config = config(tmp_path, "offline")
    for sink in open_sinks(run_config, Console(file=io.StringIO()), resumes=False):
        for round in range(3):
            sink.round(metrics_row(round))
        sink.finish(SUMMARY)
        sink.close()

    records = [json.loads(line) for line in inspect(tmp_path / "wandb").splitlines()]
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [item["_step"] for item in history] == [0, 1, 2]
    assert [{key: x for key, x in item.items() if key[0] != "_"} for item in history] == [
        metrics_row(round) for round in range(3)
    ]
    assert read_lines(tmp_path / "metrics.jsonl") == [metrics_row(round) for round in range(3)]

    run = json.loads(inspect(tmp_path / "wandb", "--summary"))
    assert (run["name"], run["state"], run["exit_code"]) == ("read-me-back", "finished", 0)
    assert run["config"]["method"]["lr"] == run_config.method.lr
    told = {key: value for key, value in SUMMARY.items() if value is not None}
    assert {key: run["summary"][key] for key in told} == told  # the run's seconds, not those of its last round


def test_what_a_finished_run_leaves_is_an_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("trace.json", "report.html", "private.txt"):
        (tmp_path / name).write_text(name)
    sink = WandbSink(config(tmp_path, "offline"), resumes=False)
    run, kept = sink._run, []
    monkeypatch.setattr(run, "log_artifact", kept.append)
    sink.finish(SUMMARY)
    (tmp_path / "evaluation.json").write_text("{}")  # of what comes after the summary
    sink.close()
    [artifact] = kept
    assert artifact.name == f"run-{run.id}"
    assert set(artifact.manifest.entries) == {"trace.json", "report.html", "evaluation.json"}


def test_evaluations_that_come_late_are_in_the_wandb_run_by_their_round(tmp_path: Path) -> None:
    sink = WandbSink(config(tmp_path, "offline"), resumes=False)
    for round in range(3):
        sink.round(metrics_row(round))
        if round > 0:
            sink.evaluation({"round": round - 1, "results": RESULTS})
    sink.finish(SUMMARY)
    sink.evaluation({"round": 2, "results": RESULTS})
    sink.final_evaluation({"held_out": {"loss": {"value": 1.125}}})
    sink.close()

    records = [json.loads(line) for line in inspect(tmp_path / "wandb").splitlines()]
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    by_round = [{key: x for key, x in item.items() if key[0] != "_"} for item in history]
    assert [item for item in by_round if "block" in item] == [metrics_row(round) for round in range(3)]
    judged = {f"evaluation/{name}": value for name, value in FIGURES.items()}
    evaluations = [item for item in by_round if "block" not in item]
    assert evaluations == [{"evaluation/round": round, **judged} for round in range(3)]
    assert any("evaluation/round" in json.dumps(record) for record in records if record["type"] == "metric")
    found = json.loads(inspect(tmp_path / "wandb", "--summary"))["summary"]
    assert found["evaluation/held_out/loss"] == 1.125
    assert (found["seconds"], found["loss_after"]) == (12.5, 1.0)  # the run's, not those of a round


class HalfRun:
    """A W&B run that is online and holds rounds 0 and 1, and the evaluation of round 0."""

    def __init__(self) -> None:
        self.summary = {"round": 1, "evaluation/round": 0}
        self.logged: list[dict[str, Any]] = []

    def define_metric(self, name: str, step_metric: str) -> None:
        pass

    def log(self, row: dict[str, Any], commit: bool) -> None:
        self.logged.append(row)


def test_an_online_run_that_goes_on_is_told_only_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = HalfRun()
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    sink = WandbSink(config(tmp_path, "online"), resumes=True)
    for round in range(3):
        sink.round(metrics_row(round))
        sink.evaluation({"round": round, "results": {}})
    assert run.logged == [{"evaluation/round": 1}, metrics_row(2), {"evaluation/round": 2}]


def test_a_run_that_failed_is_marked_so(tmp_path: Path) -> None:
    sink = WandbSink(config(tmp_path, "offline"), resumes=False)
    sink.close()
    assert json.loads(inspect(tmp_path / "wandb", "--summary"))["exit_code"] == 1


class StubRun:
    """A W&B run that takes nothing."""

    error: ClassVar[Exception] = wandb.Error("disk full")
    id = "stub"
    summary: ClassVar[dict[str, Any]] = {}

    def define_metric(self, name: str, step_metric: str) -> None:
        pass

    def log(self, row: dict[str, Any], commit: bool) -> None:
        raise self.error

    def log_artifact(self, artifact: wandb.Artifact) -> None:
        raise self.error

    def finish(self, exit_code: int) -> None:
        raise self.error


@pytest.mark.parametrize("error", [wandb.Error("disk full"), ConnectionResetError("disk full")])
def test_a_wandb_error_while_logging_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    monkeypatch.setattr(StubRun, "error", error)
    monkeypatch.setattr(wandb, "init", lambda **_: StubRun())
    sink = WandbSink(config(tmp_path, "offline"), resumes=False)
    for round in range(3):
        sink.round(metrics_row(round))
    sink.finish(SUMMARY)
    sink.close()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "W&B failed, the run goes on without it: disk full"
    ]


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The modes that W&B was started in, on a machine without a login."""
    started: list[str] = []

    def init(mode: str, **_: Any) -> StubRun:
        started.append(mode)
        return StubRun()

    for variable in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(wandb, "init", init)
    return started


def test_auto_without_a_login_is_offline(tmp_path: Path, modes: list[str]) -> None:
    WandbSink(config(tmp_path, "auto"), resumes=False)
    assert modes == ["offline"]


def test_auto_with_a_key_is_online(tmp_path: Path, modes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    WandbSink(config(tmp_path, "auto"), resumes=False)
    assert modes == ["online"]


def test_auto_with_a_netrc_login_is_online(tmp_path: Path, modes: list[str]) -> None:
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    WandbSink(config(tmp_path, "auto"), resumes=False)
    assert modes == ["online"]


def test_auto_heeds_wandbs_own_switch(tmp_path: Path, modes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_MODE", "offline")
    WandbSink(config(tmp_path, "auto"), resumes=False)
    assert modes == ["offline"]


def refuse_online(mode: str, **_: Any) -> StubRun:
    if mode == "online":
        raise wandb.errors.CommError("no route")
    return StubRun()


def test_online_refused_is_the_users_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "init", refuse_online)
    with pytest.raises(UserError, match=r"tracking\.wandb: online refused by W&B \(no route\); log in, or use offline"):
        open_sinks(config(tmp_path, "online"), Console(file=io.StringIO()), resumes=False)
    assert list(tmp_path.iterdir()) == []


def test_auto_falls_back_to_offline(
    tmp_path: Path, modes: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setattr(wandb, "init", refuse_online)
    WandbSink(config(tmp_path, "auto"), resumes=False)
    assert "W&B cannot be reached, the run is kept offline: no route" in caplog.text


def test_off_does_not_import_wandb(tmp_path: Path) -> None:
    code = (
        "import sys; from rich.console import Console; from parablock_ray.config import load_config; "
        "from parablock_ray.tracking.sinks import open_sinks; "
        "open_sinks(load_config(sys.argv[1], ['tracking.wandb=off']), Console(), resumes=False); "
        "print(sorted({'wandb', 'torch', 'ray'} & set(sys.modules)))"
    )
    (tmp_path / "config.yaml").write_text(config(tmp_path / "run", "off").model_dump_json())
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "config.yaml")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_group_and_tags_are_those_of_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str | None, tuple[str, ...]]] = []

    def init(group: str | None, tags: tuple[str, ...], **_: Any) -> StubRun:
        started.append((group, tags))
        return StubRun()

    monkeypatch.setattr(wandb, "init", init)
    alone = config(tmp_path, "offline")
    WandbSink(alone, resumes=False)
    tracking = {"wandb": "offline", "wandb_group": "trial", "wandb_tags": ["paper", "figure 3"]}
    WandbSink(Config.model_validate(alone.model_dump() | {"tracking": tracking}), resumes=False)
    assert started == [(None, ()), ("trial", ("paper", "figure 3"))]


@pytest.mark.parametrize("terminal", [False, True])
def test_refused_updates_are_shown_where_there_are_any(terminal: bool) -> None:
    assert "refused" not in console_output(terminal, num_rows=2)
    out = io.StringIO()
    sink = ConsoleSink(Console(file=out, force_terminal=terminal, width=100), num_rounds=3)
    for round, num_refused in enumerate([0, 3]):
        sink.round(metrics_row(round) | {"num_refused": num_refused})
    sink.finish(SUMMARY | {"num_refused": 3})
    sink.close()
    rounds, summary = out.getvalue().rsplit("summary", 1)
    assert "refused" in rounds
    assert "num_refused" in summary
