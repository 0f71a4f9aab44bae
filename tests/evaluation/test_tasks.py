"""Tasks: their files and mistakes, what they ask and report, on the tiny model."""

import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from parablock_ray.algorithms.rng import generator
from parablock_ray.config.data import DataConfig
from parablock_ray.config.evaluation import TASK_FORMS, EvaluationConfig
from parablock_ray.errors import UserError
from parablock_ray.evaluation import tasks as tasks_module
from parablock_ray.evaluation.generate import Generated
from parablock_ray.evaluation.problems import problems
from parablock_ray.evaluation.prompts import prompt_ids
from parablock_ray.evaluation.results import Metric, Tally, TaskResult, metric_of
from parablock_ray.evaluation.tasks import TASKS, Context, evaluate, load_tasks
from parablock_ray.training.data import StoredClients, build_data
from parablock_ray.training.evaluate import held_out_loss
from parablock_ray.training.loss import answer_nll
from parablock_ray.training.model import load_model, load_tokenizer
from parablock_ray.training.sources import read_examples
from parablock_ray.training.tokens import TokenizedExamples

DATA = DataConfig(source="reasoning_gym", tasks=("gcd", "chain_sum"), num_train=60, num_eval=9)
GOOD = {
    "gsm8k": {"question": "2 + 2?", "answer": "2 + 2 = 4\n#### 4"},
    "rouge_l": {"instruction": "Say it.", "input": "it", "output": "it is it"},
    "ifeval": {
        "key": 1,
        "prompt": "Say a.",
        "instruction_id_list": ["punctuation:no_comma", "startend:end_checker"],
        "kwargs": [{}, {"end_phrase": "a", "num_words": None}],
    },
    "multiple_choice": {"question": "2 + 2?", "choices": ["3", "4"], "answer": 1},
    "mt_bench": {"question_id": 81, "category": "writing", "turns": ["Write.", "Write again."], "reference": []},
}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load_model("tiny", "float32", 0)


def context(num_examples: int = 4, template: str = "plain", with_data: bool = False) -> Context:
    tokenizer = load_tokenizer("tiny")
    data = build_data(DATA, 5, 0, tokenizer, 512) if with_data else None
    settings = EvaluationConfig(num_examples=num_examples, max_new_tokens=5, batch_size=3)
    return Context(settings, tokenizer, 512, template, 0, "tiny", data)


def judged(model: PreTrainedModel, task: str, where: Context) -> TaskResult:
    [loaded] = load_tasks([task], where)
    return evaluate(model, loaded)


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """A file of these rows; text stands as it is."""

    def write(*rows: Any) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return write


def values(result: TaskResult) -> dict[str, float]:
    return {metric.name: metric.value for metric in result.metrics}


# ---- names


def test_config_and_registry_know_the_same_tasks() -> None:
    assert list(TASKS) == list(TASK_FORMS)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["gms8k=x.jsonl"], "unknown task 'gms8k'; did you mean 'gsm8k=FILE'. .allowed: held_out, per_client, rea"),
        (["held-out"], "unknown task 'held-out'; did you mean 'held_out'"),
        (["gsm8k"], "'gsm8k' must be written gsm8k=FILE"),
        (["gsm8k="], "must be written gsm8k=FILE"),
        (["gsm8k:test"], "'gsm8k:test' must be written gsm8k=FILE"),
        (["reasoning_gym=gcd"], "must be written reasoning_gym:TASK"),
        (["held_out=x"], "'held_out=x' must be written held_out"),
        (["lm_eval"], "must be written lm_eval:TASK or lm_eval=FILE"),
        (["held_out", "held_out"], "every task may stand once only: held_out"),
        ([""], "unknown task ''"),
    ],
)
def test_tasks_that_are_no_tasks(tasks: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(tasks=tuple(tasks))


# ---- files


@pytest.mark.parametrize("kind", GOOD)
def test_task_files_that_cannot_be_read(kind: str, jsonl: Callable[..., Path], tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(UserError) as error:
            load_tasks([f"{kind}={path}"], context())
        return str(error.value)

    good = json.dumps(GOOD[kind])
    assert "there is no such file; name a task file" in message(tmp_path / "none.jsonl")
    assert "is a folder; name a task file" in message(tmp_path)
    assert "holds no examples" in message(jsonl("", " "))
    assert "rows.jsonl:2: this line is not JSON" in message(jsonl(good, good[:-9]))
    assert re.search("rows.jsonl:3: .* a JSON object", message(jsonl(good, "", "[1]")))
    lacking = message(jsonl(good, {"question_text": "x"}))
    assert "rows.jsonl:2: " in lacking
    assert "question_text" in lacking  # what is there


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("gsm8k", {"answer": 4}, "rows.jsonl:1: answer: must be text .got 4. .there is question, answer"),
        ("multiple_choice", {"answer": 2}, "rows.jsonl:1: `answer` must be 0 to 1, the place of a choice .got 2"),
        ("multiple_choice", {"answer": "B"}, "rows.jsonl:1: answer: must be a whole number"),
        ("multiple_choice", {"choices": ["4"]}, "rows.jsonl:1: choices: must be valid: List should have at least 2"),
        ("multiple_choice", {"choices": ["4", ""]}, r"rows.jsonl:1: choices\[1\]: must be text, not empty"),
        ("ifeval", {"kwargs": [{}]}, "rows.jsonl:1: `kwargs` must have an object for each of `instruction_id_list`"),
        ("ifeval", {"kwargs": [{}, {}]}, "rows.jsonl:1: startend:end_checker needs text as 'end_phrase'"),
        ("ifeval", {"instruction_id_list": ["x:y", "x:z"]}, "rows.jsonl:1: unknown instruction 'x:y' .allowed: keyw"),
        ("mt_bench", {"turns": []}, "rows.jsonl:1: turns: must be valid: List should have at least 1 item"),
        ("rouge_l", {"output": " "}, "rows.jsonl:1: the answer is empty"),
    ],
)
def test_rows_that_do_not_fit(kind: str, change: dict[str, Any], message: str, jsonl: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=message):
        load_tasks([f"{kind}={jsonl(GOOD[kind] | change)}"], context())


def test_only_the_first_examples_are_read(model: PreTrainedModel, jsonl: Callable[..., Path]) -> None:
    path = jsonl(*[GOOD["gsm8k"]] * 4, "cut")
    assert {metric.num_examples for metric in judged(model, f"gsm8k={path}", context()).metrics} == {4}
    with pytest.raises(UserError, match=r"rows.jsonl:5: this line is not JSON"):
        load_tasks([f"gsm8k={path}"], context(num_examples=5))


def test_chat_without_a_chat_template(jsonl: Callable[..., Path]) -> None:
    where = context(template="chat")
    where.tokenizer.chat_template = None
    with pytest.raises(UserError, match="chat needs a tokenizer with a chat template; use plain or alpaca"):
        load_tasks([f"gsm8k={jsonl(GOOD['gsm8k'])}"], where)


@pytest.mark.parametrize("kind", ["gsm8k", "rouge_l", "ifeval", "mt_bench"])
def test_answers_as_long_as_the_context_are_refused_before_there_is_a_model(
    kind: str, jsonl: Callable[..., Path]
) -> None:
    where = replace(context(), settings=EvaluationConfig(max_new_tokens=512))
    path = jsonl(GOOD[kind])
    with pytest.raises(UserError, match=r"evaluation.max_new_tokens: must be less than the model's context of 512 tok"):
        load_tasks([f"{kind}={path}"], where)
    assert load_tasks([f"{kind}={path}"], replace(where, max_context=513))


# ---- what they ask and report


@pytest.mark.parametrize(
    ("kind", "metrics"),
    [
        ("gsm8k", ["strict_match", "flexible_extract"]),
        ("rouge_l", ["rouge_l", "exact_match"]),
        ("ifeval", ["prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose"]),
        ("multiple_choice", ["acc", "acc_norm"]),
        ("mt_bench", ["ended"]),
    ],
)
def test_metrics_and_outputs_of_task_files(
    kind: str, metrics: list[str], model: PreTrainedModel, jsonl: Callable[..., Path]
) -> None:
    model.train()
    result = judged(model, f"{kind}={jsonl(GOOD[kind], GOOD[kind])}", context())
    assert model.training
    model.eval()
    assert [metric.name for metric in result.metrics] == metrics
    assert all(0 <= metric.value <= 1 and metric.num_examples == 2 for metric in result.metrics)
    assert len(json.loads(json.dumps(result.outputs))) == 2


def test_prompts_are_in_the_template_of_training(model: PreTrainedModel, jsonl: Callable[..., Path]) -> None:
    path = jsonl(GOOD["rouge_l"])
    [plain] = judged(model, f"rouge_l={path}", context()).outputs
    [chat] = judged(model, f"rouge_l={path}", context(template="chat")).outputs
    assert plain["prompt"] == "Say it.\nit\n"
    assert chat["prompt"] == "<|im_start|>user\nSay it.\n\nit<|im_end|>\n<|im_start|>assistant\n"


def test_mt_bench_answers_are_fastchats(model: PreTrainedModel, jsonl: Callable[..., Path]) -> None:
    path = jsonl(GOOD["mt_bench"], GOOD["mt_bench"] | {"question_id": 82, "turns": ["One turn."]})
    first, second = judged(model, f"mt_bench={path}", context(template="chat")).outputs
    assert list(first) == ["question_id", "answer_id", "model_id", "choices", "tstamp"]
    assert (first["question_id"], second["question_id"], first["model_id"]) == (81, 82, "tiny")
    assert [len(row["choices"][0]["turns"]) for row in (first, second)] == [2, 1]
    assert first["answer_id"] != second["answer_id"]
    assert isinstance(first["tstamp"], float)


def test_the_second_turn_sees_the_first(
    model: PreTrainedModel, jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def answer(
        model: object, tokenizer: object, prompts: list[str], max_new_tokens: int, batch: int
    ) -> list[Generated]:
        asked.append(prompts)
        return [Generated(f" answer {len(asked)} ", 3, ended=len(asked) == 1) for _ in prompts]

    monkeypatch.setattr(tasks_module, "generate", answer)
    result = judged(model, f"mt_bench={jsonl(GOOD['mt_bench'])}", context())
    assert asked == [["Write.\n"], ["Write.\nanswer 1\nWrite again.\n"]]
    assert result.outputs[0]["choices"][0]["turns"] == ["answer 1", "answer 2"]
    assert values(result) == {"ended": 0.5}


# ---- reasoning_gym


def prompts_of(store: TokenizedExamples) -> list[np.ndarray]:
    starts = zip(store.offsets[:-1], store.answer_start, strict=True)
    return [store.ids[start : start + length] for start, length in starts]


def test_reasoning_gym_problems_are_never_training_data(model: PreTrainedModel) -> None:
    where = context(num_examples=30, with_data=True)
    trained = {example.messages[0].content for example in read_examples(DATA, 0)}
    for task in ("gcd", "chain_sum"):
        outputs = judged(model, f"reasoning_gym:{task}", where).outputs
        asked = {row["prompt"].removesuffix("\n") for row in outputs}
        assert len(asked) == 30
        assert not asked & trained


def test_what_training_has_is_left_out_even_if_it_is_drawn_again(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw_as_training_does(seed: int, purpose: str) -> torch.Generator:
        return generator(seed, purpose.removesuffix(", evaluation"))

    monkeypatch.setattr("parablock_ray.evaluation.problems.generator", draw_as_training_does)
    where = context(num_examples=9, with_data=True)  # 180 problems, of which the first 35 are the run's
    train = where.data.clients.store
    trained = {ids.tobytes() for ids in prompts_of(train)}
    assert len(trained) == 60
    outputs = judged(model, "reasoning_gym:gcd", where).outputs
    assert len(outputs) == 9
    assert not trained.intersection(
        ids.tobytes() for ids in prompt_ids([row["prompt"] for row in outputs], where.tokenizer)
    )
    with pytest.raises(UserError, match="reasoning_gym:gcd: every problem that was drawn is training data"):
        load_tasks(["reasoning_gym:gcd"], replace(where, settings=EvaluationConfig(num_examples=1)))  # 20 problems


def test_reasoning_gym_uses_the_tasks_own_verifier() -> None:
    for task, wrong in (("chain_sum", "no"), ("countdown", "1 + 1"), ("gsm_symbolic", "x")):
        problem = next(problems(task, 0, 1))
        right = problem.entry["metadata"].get("expression", "") if task == "countdown" else problem.entry["answer"]
        assert problem.scores(f"So:\n#### {right}\n") == {"score": 1.0, "solved": 1.0}
        assert problem.scores(wrong)["solved"] == 0.0


def test_reasoning_gym_repeats_by_seed(model: PreTrainedModel) -> None:
    assert judged(model, "reasoning_gym:gcd", context()) == judged(model, "reasoning_gym:gcd", context())


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("chain_sun", "reasoning_gym:chain_sun: 'reasoning_gym' has no task 'chain_sun'; nearest: chain_sum"),
        (
            "chain_sum?terms=2",
            r"reasoning_gym:chain_sum\?terms=2: 'chain_sum' has no option 'terms' \(allowed: allow_negation, ",
        ),
        ("word_ladder", "reasoning_gym:word_ladder: 'word_ladder' makes other problems in every process; choose ano"),
    ],
)
def test_unknown_tasks_of_reasoning_gym(task: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_tasks([f"reasoning_gym:{task}"], context())


def test_reasoning_gym_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match=r"reasoning_gym:gcd: .* needs .*pip install 'parablock-ray\[demo\]'"):
        load_tasks(["reasoning_gym:gcd"], context())


# ---- a run's own data


def test_held_out_loss_is_the_runs_with_its_perplexity(model: PreTrainedModel) -> None:
    where = context(with_data=True)
    loss, perplexity = judged(model, "held_out", where).metrics
    assert loss.value == pytest.approx(held_out_loss(model, where.data.eval, 4), rel=1e-6)
    assert loss.num_examples == 9
    assert perplexity.value == pytest.approx(math.exp(loss.value))
    assert perplexity.standard_error == pytest.approx(perplexity.value * loss.standard_error)


def test_loss_per_client_with_its_worst_tenth(model: PreTrainedModel) -> None:
    where = context(num_examples=3, with_data=True)
    result = judged(model, "per_client", where)
    losses = [row["loss"] for row in result.outputs]
    nll, num_tokens = answer_nll(model, where.data.clients.store.batch(where.data.clients.indices[2][:3]))
    assert losses[2] == pytest.approx(float(nll.detach()) / num_tokens, rel=1e-6)
    assert [row["num_examples"] for row in result.outputs] == [3] * 5
    assert values(result) == pytest.approx(
        {"mean_loss": np.mean(losses), "worst_decile_loss": max(losses), "worst_client_loss": max(losses)}
    )


def test_the_worst_tenth_of_25_clients_is_three(model: PreTrainedModel) -> None:
    where = context(with_data=True)
    clients = StoredClients(where.data.clients.store, tuple(np.array([place]) for place in range(25)))
    result = judged(model, "per_client", replace(where, data=replace(where.data, clients=clients)))
    losses = sorted((row["loss"] for row in result.outputs), reverse=True)
    assert values(result)["worst_decile_loss"] == pytest.approx(np.mean(losses[:3]))
    assert [metric.num_examples for metric in result.metrics] == [25, 3, 1]


@pytest.mark.parametrize("task", ["held_out", "per_client"])
def test_a_model_that_no_run_made_has_no_such_data(task: str) -> None:
    with pytest.raises(UserError, match=f"{task}: needs the data of a run; name a run folder"):
        load_tasks([task], context())


# ---- metrics


def test_a_mean_and_its_standard_error() -> None:
    scores = np.array([1.0, 0.0, 0.5, 1.0])
    metric = metric_of("acc", [Tally(score, 1) for score in scores])
    assert metric.value == scores.mean()
    assert metric.standard_error == pytest.approx(scores.std(ddof=1) / 2)
    assert metric_of("acc", [Tally(1.0, 1)]) == Metric("acc", 1.0, 1, None)


def test_the_standard_error_of_a_ratio_is_that_of_repeated_draws() -> None:
    """Examples of 1 to 9 tokens whose loss depends on their length: 4,000 draws of 200 spread as one draw says."""
    draws = np.random.default_rng(0)
    nums = draws.integers(1, 10, (4000, 200))
    totals = nums * (1 + 0.2 * nums) + draws.normal(0, 1, nums.shape)
    ratios = totals.sum(axis=1) / nums.sum(axis=1)
    said = metric_of("loss", [Tally(*pair) for pair in zip(totals[0], nums[0], strict=True)]).standard_error
    assert said == pytest.approx(ratios.std(), rel=0.15)
