"""`parablock evaluate`: runs, folders and names, what it prints and writes, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from parablock_ray import cli
from parablock_ray.config.schema import WorkersConfig
from parablock_ray.errors import UserError
from parablock_ray.evaluation.evaluator import model_to_judge
from parablock_ray.tracking.compare import read_run
from parablock_ray.training.model import load_model, load_tokenizer, save_model
from tests.runtime.federation import rows, run_tiny

FAST = ["--num-examples", "3", "--max-new-tokens", "4"]


def evaluate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, ["evaluate", *map(str, arguments)])


def refused(*arguments: str | Path) -> str:
    result = evaluate(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    return result.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    overrides = ["runtime=serial", "evaluation.tasks=[held_out, reasoning_gym:gcd]", "evaluation.num_examples=2"]
    return folder, run_tiny(folder, [*overrides, "evaluation.max_new_tokens=3"])


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "my-tiny"
    save_model(load_model("tiny", "float32", 0), load_tokenizer("tiny"), folder)
    return folder


def test_a_run_is_judged_on_its_own_tasks_and_held_out_data(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = finished
    found = json.loads(evaluate(folder, "--json").stdout.splitlines()[-1])
    assert found["settings"]["max_new_tokens"] == 3
    assert (found["model"], found["template"], found["seed"]) == ("quickstart", "plain", 0)
    results = found["results"]
    assert list(results) == ["held_out", "reasoning_gym:gcd"]
    assert results["held_out"]["loss"]["value"] == pytest.approx(summary["loss_after"], rel=1e-6)
    assert results["held_out"]["loss"]["num_examples"] == 8
    assert results["reasoning_gym:gcd"]["solved"]["num_examples"] == 2


def test_a_run_judges_its_final_model_once_its_clock_has_stopped(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = finished
    written = json.loads((folder / "evaluation.json").read_text())
    found = json.loads(evaluate(folder, "--json").stdout.splitlines()[-1])
    assert written == found["results"]
    assert sorted(path.name for path in (folder / "evaluation").iterdir()) == [
        "held_out.jsonl",
        "reasoning_gym_gcd.jsonl",
    ]
    assert summary["seconds"] == pytest.approx(sum(row["seconds"] for row in rows(folder / "metrics.jsonl")))


def test_a_task_that_cannot_be_read_ends_a_run_before_it_trains(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.jsonl: there is no such file"):
        run_tiny(tmp_path, ["runtime=serial", "evaluation.tasks=[gsm8k=nowhere.jsonl]"])
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_data_is_gone_is_judged_on_what_does_not_need_it(tmp_path: Path) -> None:
    data, test, folder = tmp_path / "train.jsonl", tmp_path / "test.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps({"instruction": f"Say {i}.", "output": f"{i}"}) + "\n" for i in range(80)))
    test.write_text(json.dumps({"question": "2 + 2?", "answer": "#### 4"}))
    source = [f"data.source={data}", "data.tasks=[]", "data.split=iid"]
    run_tiny(folder, ["runtime=serial", "method.rounds=1", *source])
    data.unlink()
    result = evaluate(folder, *FAST, "--tasks", f"gsm8k={test}")
    assert result.exit_code == 0, result.output
    for task in ("held_out", "per_client", "reasoning_gym:gcd"):
        assert "data.source: cannot read" in refused(folder, *FAST, "--tasks", f"gsm8k={test},{task}")


@pytest.mark.parametrize(("gpus_per_worker", "device"), [("auto", "cuda"), (0.5, "cuda"), (0, "cpu")])
def test_a_run_without_gpus_is_judged_without(
    gpus_per_worker: float | str, device: str, finished: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("transformers.PreTrainedModel.to", lambda model, where: moved.append(str(where)))
    folder, _ = finished
    config = read_run(folder).config
    config = config.model_copy(update={"workers": WorkersConfig(gpus_per_worker=gpus_per_worker)})
    model_to_judge(str(folder / "model"), config.seed, config.workers)
    assert moved == [device]


def test_options_come_before_the_runs_own_keys(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = finished
    out, outputs = tmp_path / "found.json", tmp_path / "said"
    result = evaluate(
        folder, *FAST, "--tasks", "per_client,reasoning_gym:chain_sum", "--out", out, "--outputs", outputs
    )
    assert result.exit_code == 0, result.output
    table = [line.split() for line in result.stdout.splitlines()[-5:]]
    assert [line[:2] for line in table] == [
        ["per_client", "mean_loss"],
        ["per_client", "worst_decile_loss"],
        ["per_client", "worst_client_loss"],
        ["reasoning_gym:chain_sum", "score"],
        ["reasoning_gym:chain_sum", "solved"],
    ]
    found = json.loads(out.read_text())
    assert list(found["results"]) == ["per_client", "reasoning_gym:chain_sum"]
    assert f"{found['results']['per_client']['mean_loss']['value']:.4f}" == table[0][2]
    assert {path.name for path in outputs.iterdir()} == {"per_client.jsonl", "reasoning_gym_chain_sum.jsonl"}
    assert [row["client"] for row in rows(outputs / "per_client.jsonl")] == [0, 1, 2, 3]
    [first, *_] = rows(outputs / "reasoning_gym_chain_sum.jsonl")
    assert list(first) == ["prompt", "answer", "generated", "num_tokens", "ended", "scores"]


@pytest.mark.parametrize("template", ["plain", "alpaca", "chat"])
def test_folders_and_names_of_models(model_folder: Path, template: str) -> None:
    arguments = [*FAST, "--tasks", "reasoning_gym:gcd", "--template", template, "--json"]
    by_folder, by_name = (json.loads(evaluate(name, *arguments).stdout) for name in (model_folder, "tiny"))
    assert (by_folder["model"], by_name["model"]) == ("my-tiny", "tiny")
    assert by_folder["results"] == by_name["results"]
    assert by_folder["template"] == template


def test_task_files_with_the_same_name_do_not_share_a_file_of_outputs(model_folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "test.jsonl").write_text(json.dumps({"question": name, "answer": "#### 1"}))
    (tmp_path / "a_test.jsonl").write_text(json.dumps({"question": "c", "answer": "#### 1"}))
    files = ("a/test.jsonl", "b/test.jsonl", "a_test.jsonl")
    tasks = ",".join(f"gsm8k={tmp_path}/{name}" for name in files)
    assert evaluate(model_folder, *FAST, "--tasks", tasks, "--outputs", tmp_path / "said").exit_code == 0
    assert {rows(path)[0]["prompt"] for path in (tmp_path / "said").iterdir()} == {"a\n", "b\n", "c\n"}
    assert len([path for path in (tmp_path / "said").iterdir() if path.name.endswith("_b_test.jsonl")]) == 1


def test_what_is_no_model_and_no_run(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    (tmp_path / "unfinished").mkdir()
    for name in ("config.yaml", "events.jsonl"):
        (tmp_path / "unfinished" / name).touch()
    task = ("--tasks", "reasoning_gym:gcd")
    assert "neither a run (summary.json) nor a Hugging Face model (config.json); there is nothing" in refused(
        tmp_path / "empty", *task
    )
    assert "there is notes.txt" in refused(tmp_path / "other", *task)
    assert "this run did not finish" in refused(tmp_path / "unfinished", *task)
    assert "there is no such folder" in refused(tmp_path / "nowhere", *task)
    assert "did you mean 'tiny'" in refused("Tiny", *task)


def test_mistakes_with_the_options(finished: tuple[Path, dict[str, Any]], model_folder: Path, tmp_path: Path) -> None:
    folder, _ = finished
    for arguments, message in (
        ((model_folder,), "--tasks: name at least one, like --tasks held_out,reasoning_gym:chain_sum"),
        ((model_folder, "--tasks", "gms8k=x"), "evaluation.tasks: unknown task 'gms8k'; did you mean 'gsm8k=FILE'?"),
        ((model_folder, "--tasks", "held_out"), "held_out: needs the data of a run; name a run folder"),
        ((folder, "--num-examples", "0"), "evaluation.num_examples: must be greater than 0 (got 0)"),
        (
            (folder, "--max-new-tokens", "600", "--tasks", "reasoning_gym:gcd"),
            "evaluation.max_new_tokens: must be less",
        ),
        ((folder, "--template", "chat"), "--template: a run is judged in the form that it was trained in, plain"),
        (
            (model_folder, "--tasks", "reasoning_gym:gcd", "--template", "x"),
            "--template: must be plain, alpaca, chat, or a text with {instruction}",
        ),
        ((folder, "--out", tmp_path / "none" / "x.json"), "--out: cannot write to"),
        ((folder, "--outputs", folder / "summary.json"), "--outputs: cannot write to"),
    ):
        assert message in refused(*arguments)


def test_a_run_whose_model_is_gone(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = finished
    for name in ("summary.json", "config.yaml"):
        (tmp_path / name).write_text((folder / name).read_text())
    assert "the run's model is gone (no folder model/); run it again" in refused(tmp_path)
