"""From the command line to the run folder and back: what a run leaves behind, and how it ends if something is wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from math import nan
from pathlib import Path

import pytest
import ray
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from parablock_ray import cli
from parablock_ray.config import load_config
from parablock_ray.runtime import cluster as cluster_module
from parablock_ray.runtime.client import ClientActor
from parablock_ray.training.data import build_data
from parablock_ray.training.model import load_model, load_tokenizer, save_model, weights_sha256
from tests.runtime.federation import QUICKSTART, SHORT, rows
from tests.test_docs import described

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

RUN_FILES = {
    "config.yaml",
    "clients.svg",
    "events.jsonl",
    "metrics.jsonl",
    "summary.json",
    "trace.json",
    "timeline.svg",
    "model",
}
SMALL = ["clients.num=2", "data.split=iid", "method.rounds=2", "data.num_train=8"]
TOO_FAST = ["method.local_optimizer=sgd", "method.lr=1e30", "method.local_steps=2"]  # NaN from the second step on


def invoke(out: Path, *overrides: str) -> Result:
    """`parablock run` on the shortened quickstart, in one process unless the overrides say otherwise."""
    return CliRunner().invoke(
        cli.app, ["run", str(QUICKSTART), *SHORT, "runtime=serial", *overrides, "--out", str(out)]
    )


def failed(result: Result, exit_code: int) -> str:
    """What a run that had to fail said on stderr; it said it without a traceback of ours."""
    assert result.exit_code == exit_code, result.output
    assert isinstance(result.exception, SystemExit)
    return result.stderr


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---- a run that ends well


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    result = invoke(out, "tracking.wandb=offline")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].startswith("60 training and 8 held-out examples of 4 tasks, ")
    assert result.stdout.splitlines()[-1] == f"run folder: {out}"
    return out


@pytest.fixture(scope="module")
def summary(finished) -> dict:
    return json.loads((finished / "summary.json").read_text())


def test_the_config_is_kept_resolved(finished):
    overrides = [*SHORT, "runtime=serial", "tracking.wandb=offline", f"out={finished}"]
    assert load_config(finished / "config.yaml", []) == load_config(QUICKSTART, overrides)


def test_events_tell_of_every_visit_and_every_commit(finished):
    events = rows(finished / "events.jsonl")
    commits = [event["round"] for event in events if event["event"] == "committed"]
    assert commits == list(range(5))
    for phase in ("compute", "upload", "download"):
        visits = [(e["round"], e["client"]) for e in events if e["event"] == "span" and e["phase"] == phase]
        assert sorted(visits) == [(round, client) for round in range(5) for client in range(4)]


def test_metrics_have_a_row_a_round(finished, summary):
    metrics = rows(finished / "metrics.jsonl")
    assert [row["round"] for row in metrics] == list(range(5))
    phases = {f"{phase}_s{suffix}" for phase in ("compute", "upload", "download", "wait") for suffix in ("", "_max")}
    counts = {"bytes_up", "bytes_down", "bytes_catch_up", "num_participants", "num_refused", "num_examples", "server_s"}
    assert all(row.keys() == {"round", "block", "loss", "seconds"} | phases | counts for row in metrics)
    assert sum(row["seconds"] for row in metrics) == pytest.approx(summary["seconds"], rel=1e-12)


def test_the_summary_is_complete(summary):
    expected = {
        "status": "done",
        "method": "parablock",
        "seed": 0,
        "num_rounds": 5,
        "num_clients": 4,
        "seconds_mode": "none",
        "bytes_catch_up": 0,
    }
    assert {key: summary[key] for key in expected} == expected
    assert 0 < summary["loss_after"] < summary["loss_before"]
    assert 0 < summary["seconds_bound"] < summary["seconds"]
    assert summary["overlap_efficiency"] == summary["seconds_bound"] / summary["seconds"]
    assert re.fullmatch("[0-9a-f]{64}", summary["weights_sha256"])
    assert summary["peak_rss_bytes"]["driver"] > 10**8
    assert summary["versions"]["torch"] == torch.__version__
    of_lora = {name for name in described("summary.json") if name.startswith("lora_")}
    of_private = {"epsilon", "delta", "noise_multiplier", "adjacency"}
    assert summary.keys() == described("summary.json").keys() - of_lora - of_private


def block_params(block: int, model: torch.nn.Module) -> int:
    """The quickstart's 4 blocks of the tiny model's 8 layers, counted here by hand."""
    outside = {0: "model.embed_tokens.", 3: "model.norm."}  # the head is the embeddings
    inside = tuple(f"model.layers.{layer}." for layer in (2 * block, 2 * block + 1))
    prefixes = (*inside, outside[block]) if block in outside else inside
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name.startswith(prefixes))


@pytest.fixture
def finished_bf16(tmp_path) -> Path:
    out = tmp_path / "run"
    assert invoke(out, *SMALL, "network.wire_dtype=bfloat16", "network.chunk_mb=0.1").exit_code == 0
    return out


@pytest.mark.parametrize(("run", "cohort", "itemsize"), [("finished", 4, 4), ("finished_bf16", 2, 2)])
def test_bytes_are_rounds_times_cohort_times_block(request, run, cohort, itemsize):
    out = request.getfixturevalue(run)
    model = load_model("tiny", "float32", seed=0)
    assert sum(block_params(block, model) for block in range(4)) == model.num_parameters()
    due = [cohort * block_params(row["block"], model) * itemsize for row in rows(out / "metrics.jsonl")]
    summary = json.loads((out / "summary.json").read_text())
    for key in ("bytes_up", "bytes_down"):
        assert [row[key] for row in rows(out / "metrics.jsonl")] == due
        assert summary[key] == sum(due)
    assert summary["bytes_catch_up"] == 0  # everyone took part in every round


def test_the_exported_model_is_the_runs_model(finished, summary):
    model = AutoModelForCausalLM.from_pretrained(finished / "model")
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    assert weights_sha256(model.named_parameters()) == summary["weights_sha256"]
    config = load_config(finished / "config.yaml", [])
    held_out = build_data(config.data, config.clients.num, config.seed, tokenizer, 512).eval
    with torch.inference_mode():
        loss = model(**held_out.batch(range(len(held_out)))).loss.item()  # transformers' own
    assert loss == pytest.approx(summary["loss_after"], rel=1e-5)


def inspect(folder: Path, *options: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", *options, "--json", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_offline_wandb_run_reads_back_as_metrics_jsonl(finished, summary):
    records = [json.loads(line) for line in inspect(finished / "wandb").splitlines()]
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    figures = [{key: value for key, value in item.items() if key[0] != "_"} for item in history]
    assert figures == rows(finished / "metrics.jsonl")
    told = json.loads(inspect(finished / "wandb", "--summary"))
    assert (told["name"], told["exit_code"]) == ("quickstart", 0)
    assert {key: told["summary"][key] for key in summary} == summary


def test_a_used_folder_is_refused_and_left_alone(finished, summary):
    said = failed(invoke(finished), 2)
    assert said == f"out: {finished} already holds a run; choose another --out or --name, or delete that folder\n"
    assert json.loads((finished / "summary.json").read_text()) == summary


# ---- the user's mistakes


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("method.round=3", "method.round: unknown key; did you mean 'rounds'? (allowed: "),
        ("method.rounds=many", "method.rounds: must be a whole number (got 'many')"),
        ("method.rounds=-3", "method.rounds: must be greater than 0 (got -3)"),
        ("method.num_blocks=9", "method.num_blocks: 9 blocks but the model has 8 layers; allowed: 1 to 8"),
        ("method.name=parablok", "method.name: unknown method 'parablok'; did you mean 'parablock'? (allowed: "),
        (
            "method.name=fedcybgd method.num_blocks=8",
            "method.num_blocks: fedcybgd trains block (client mod ",
        ),
        ("model.name=tinny", "model.name: cannot load 'tinny': did you mean 'tiny'?; allowed: tiny, smollm2-135m"),
        ("model.name=/no/such/folder", "model.name: cannot load '/no/such/folder': there is no such folder; allowed: "),
        ("data.tasks=[] data.source=no.jsonl", "data.source: cannot read no.jsonl: No such file or directory"),
        ("data.tasks=[]", "data.tasks: name the tasks of 'reasoning_gym', such as [chain_sum, gsm_symbolic]"),
        ("data.num_train=null", "data.num_train: 'reasoning_gym' makes any number of examples; say how many"),
        ("data.tasks=[chain_sun]", "data.tasks: 'reasoning_gym' has no task 'chain_sun'; nearest: chain_sum"),
    ],
)
def test_a_mistake_in_the_config(tmp_path, override, line):
    out = tmp_path / "run"
    said = failed(invoke(out, *override.split(" ")), 2)
    assert said.startswith(line)
    assert len(said.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize("override", ["data.tasks=[]", "data.num_train=null", "data.source=some.jsonl"])
def test_validate_knows_what_a_source_needs(override):
    said = failed(CliRunner().invoke(cli.app, ["validate", str(QUICKSTART), override]), 2)
    assert said.startswith(f"data.{'num_train' if 'num_train' in override else 'tasks'}: ")
    assert len(said.splitlines()) == 1


def example(number: int, output: str = "four") -> str:
    return json.dumps({"instruction": f"Say {number}.", "output": output})


def from_file(path: Path, *lines: str) -> list[str]:
    """Overrides that train on a file of these lines."""
    path.write_text("".join(f"{line}\n" for line in lines))
    return [f"data.source={path}", "data.tasks=[]", "data.split=iid", "data.num_train=null", "data.num_eval=1"]


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        ([example(1), '{"instruction": "cut of'], "{path}:2: this line is not JSON: Unterminated string"),
        ([example(1), example(2), '{"question": "?"}'], "{path}:3: needs `instruction` and `output` (Alpaca), "),
        ([example(1), example(2, output=" ")], "{path}:2: the answer is empty; remove the line or give it one"),
        ([example(i) for i in range(4)], "clients.num: 4 clients cannot share 3 training examples; lower it or give"),
        ([example(1)], "data.num_eval: 1 examples cannot be held out of 1 "),
        ([], "data.source: {path} holds no examples"),
    ],
)
def test_a_mistake_in_the_data(tmp_path, lines, line):
    path, out = tmp_path / "data.jsonl", tmp_path / "run"
    said = failed(invoke(out, *from_file(path, *lines)), 2)
    assert said.startswith(line.format(path=path))
    assert len(said.splitlines()) == 1
    assert not out.exists()


def test_a_run_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    said = failed(invoke(tmp_path / "file" / "run"), 2)
    assert said == f"out: cannot write to {tmp_path / 'file' / 'run'}: Not a directory; choose another --out\n"


def test_a_model_folder_without_its_weights(tmp_path):
    """Found only when the model is loaded, after the run folder was claimed: it must be free again."""
    model = tmp_path / "model"
    save_model(load_model("tiny", "float32", seed=0), load_tokenizer("tiny"), model)
    (model / "model.safetensors").write_bytes(b"cut off")
    said = failed(invoke(tmp_path / "run", f"model.name={model}"), 2)
    assert said.startswith(f"model.name: cannot load '{model}': ")
    assert len(said.splitlines()) == 1
    assert files(tmp_path / "run") == set()


def test_a_sequence_longer_than_the_model_takes_is_cut_and_counted(tmp_path):
    lines = [*(example(number) for number in range(8)), example(9, output="very " * 200 + "long")]
    data = from_file(tmp_path / "data.jsonl", *lines)
    result = invoke(tmp_path / "run", *data, *SMALL, "data.num_train=null", "data.max_length=4096", "method.rounds=1")
    assert result.exit_code == 0, result.output
    report = result.stdout.splitlines()[0]
    assert report.startswith("8 training and 1 held-out examples of 1 tasks, ")
    assert report.endswith("; 1 cut at the end of the answer")


# ---- runs that break while they go on


def test_a_nan_ends_the_run_and_frees_the_folder(tmp_path):
    out = tmp_path / "run"
    said = failed(invoke(out, *SMALL, *TOO_FAST), 1)
    assert re.fullmatch(r"client \d, round 0, block \d: training is not finite \(loss nan\); a smaller .*\n", said)
    assert files(out) == set()
    assert invoke(out, *SMALL).exit_code == 0
    assert files(out) == RUN_FILES


def test_a_later_nan_leaves_the_rounds_before_it(tmp_path, monkeypatch):
    out, losses = tmp_path / "run", iter([1.0] * 11)  # of five rounds of two clients and one more
    monkeypatch.setattr("parablock_ray.training.engine.DeepSpeedEngine.step", lambda self, batch: next(losses, nan))
    monkeypatch.setattr("parablock_ray.training.worker.Worker.warm_up", lambda self: None)
    said = failed(invoke(out, *SMALL, "method.rounds=8"), 1)
    assert re.match(r"client \d, round 5, block \d: training is not finite \(loss nan\)", said)
    assert [row["round"] for row in rows(out / "metrics.jsonl")] in ([0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4])
    assert "already holds a run" in failed(invoke(out, *SMALL), 2)
    compared = CliRunner().invoke(cli.app, ["compare", str(out)])
    assert failed(compared, 2) == f"{out}: this run did not finish (no summary.json); wait, or run it again\n"


def test_a_nan_after_the_last_training_step_is_found_too(tmp_path):
    said = failed(invoke(tmp_path / "run", *SMALL, *TOO_FAST, "method.local_steps=1", "method.rounds=1"), 1)
    assert said == "the held-out loss after the last round is nan; a smaller method.lr may help\n"
    assert "summary.json" not in files(tmp_path / "run")


def test_a_poisoned_model_is_named_by_its_first_client(tmp_path):
    model = load_model("tiny", "float32", seed=0)
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight[5, 7] = torch.nan
    save_model(model, load_tokenizer("tiny"), tmp_path / "model")
    said = failed(invoke(tmp_path / "run", *SMALL, f"model.name={tmp_path / 'model'}"), 1)
    assert re.match(r"client \d, round 0, block \d: training is not finite \(loss nan\)", said)


def explode(batch: object) -> float:
    raise ZeroDivisionError("a bug of the engine")


def test_an_exception_in_training_is_told_with_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr("parablock_ray.training.engine.DeepSpeedEngine.step", lambda self, batch: explode(batch))
    monkeypatch.setattr("parablock_ray.training.worker.Worker.warm_up", lambda self: None)
    said = failed(invoke(tmp_path / "run", *SMALL), 1)
    assert re.match(r"client \d, round 0, block \d: ZeroDivisionError: a bug of the engine\n\nTraceback ", said)
    assert "in explode\n" in said


@pytest.mark.parametrize(
    ("blocked", "told", "then", "overrides"),
    [
        ("trace.json", "", "parablock resume", []),
        ("ranks.svg", "", "parablock resume", ["method={name: florist, lora: {ranks: 2}}"]),
        (
            "uploads/round-00000.safetensors",
            "/uploads",
            "parablock resume",
            ["method={name: flora, lora: {ranks: 2}, keep_uploads: true}"],
        ),
        ("model/model.safetensors", "", "parablock resume", []),
        (
            "adapter/adapter_model.safetensors",
            "",
            "parablock resume",
            ["method={name: fedit, lora: {ranks: 2}}"],
        ),
        ("clients.svg", "/clients.svg", "parablock data {out}/config.yaml --out {out}/clients.svg", []),
        ("evaluation.json", "/evaluation.json", "parablock evaluate {out}", ["evaluation.tasks=[held_out]"]),
        ("evaluation/held_out.jsonl", "/evaluation", "parablock evaluate {out}", ["evaluation.tasks=[held_out]"]),
        (
            "report.html",
            "/report.html",
            "parablock report {out} --out {out}/report.html",
            ["tracking.wandb=offline"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_what_cannot_be_written_ends_the_run_and_is_named(tmp_path, blocked, told, then, overrides):
    """A folder in a file's place stands for the full disk."""
    out = tmp_path / "run"
    (out / blocked).mkdir(parents=True)
    said = failed(invoke(out, *SMALL, *overrides, "method.rounds=1", "engine.name=torch"), 1)
    assert said.startswith(f"{out}{told}: cannot be written to: ")
    assert said.endswith(f"; make room, then {then.format(out=out)}\n")
    assert len(said.splitlines()) == 1


# ---- the same on Ray


class Noted(ClientActor):
    """Leaves its process id beside the run folder."""

    def __init__(self, setup, *others):
        pids = Path(setup.config.out).with_name("pids")
        pids.mkdir(exist_ok=True)
        (pids / str(os.getpid())).touch()
        super().__init__(setup, *others)


class Faulty(Noted):
    async def _train(self, plan, visit):
        if (plan.round, visit.client) == (1, 1):
            self._worker._engine.step = explode
        return await super()._train(plan, visit)


class Mortal(Noted):
    async def _train(self, plan, visit):
        if (plan.round, visit.client) == (1, 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return await super()._train(plan, visit)


def wait_until_gone(processes) -> None:
    """Ends of processes take a moment; `processes()` are those that are still there."""
    give_up = time.monotonic() + 60
    while processes():
        assert time.monotonic() < give_up, processes()
        time.sleep(0.2)


def run_on_ray(out: Path, monkeypatch: pytest.MonkeyPatch, actor: type) -> str:
    """Run with this client actor, which makes the run fail; returns what it said once its processes are gone."""
    monkeypatch.setattr(cluster_module, "ClientActor", actor)
    said = failed(invoke(out, *SMALL, "runtime=ray", "workers.num=2", "clients.on_death=fail"), 1)
    pids = [Path("/proc", pid.name) for pid in out.with_name("pids").iterdir()]
    assert len(pids) == 2
    wait_until_gone(lambda: [pid for pid in pids if pid.exists()])
    return said


@pytest.mark.smoke
def test_a_clients_exception_ends_the_run_on_ray(cluster, tmp_path, monkeypatch):
    said = run_on_ray(tmp_path / "run", monkeypatch, Faulty)
    assert re.match(r"client 1, round 1, block \d: ZeroDivisionError: a bug of the engine\n\n", said)
    assert "ray::Faulty.run" in said  # the remote traceback
    assert "in explode\n" in said


def test_a_dead_process_ends_the_run_on_ray(cluster, tmp_path, monkeypatch):
    said = run_on_ray(tmp_path / "run", monkeypatch, Mortal)
    assert said.startswith("the process of worker 1 (clients 1) died: ")
    # Round 0 may still be under way too: the server commits it when client 0's last chunk is there.
    assert re.search(r"; under way: .*round 1 \(block \d\).*; with clients.on_death=replay a run goes on\n", said)


def test_a_nan_ends_a_run_with_its_own_cluster(tmp_path):
    """The whole command from a shell: nothing of the cluster that it started is left."""
    mark = f"PARABLOCK_TEST={uuid.uuid4()}"
    command = [Path(sys.executable).with_name("parablock"), "run", QUICKSTART, *SHORT, *SMALL, *TOO_FAST]
    environment = os.environ | dict([mark.split("=")])
    done = subprocess.run(
        [*command, "--out", tmp_path / "run"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert re.match(r"client \d, round 0, block \d: training is not finite \(loss nan\)", done.stderr)
    assert "ray::ClientActor.run" in done.stderr  # the remote traceback
    assert files(tmp_path / "run") == set()
    wait_until_gone(lambda: processes_with(mark))


def processes_with(mark: str) -> list[str]:
    """The running processes that inherited this environment variable (on Linux)."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in environ.read_bytes():
                found.append(environ.parent.name)
        except OSError:  # ended meanwhile, or another user's
            continue
    return found
