"""Multiple choice by log-likelihood: against sums by hand and against the lm-evaluation-harness."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from parablock_ray.config.evaluation import EvaluationConfig
from parablock_ray.errors import UserError
from parablock_ray.evaluation.choices import Choices, choice_log_likelihoods, choice_scores
from parablock_ray.evaluation.results import TaskResult, metrics_of, of_all
from parablock_ray.evaluation.tasks import Context, evaluate, load_tasks
from parablock_ray.training.model import load_model, load_tokenizer

ROWS = [
    {"question": "What is 2 + 2?", "choices": ["3", "4", "five and some"], "answer": 1},
    {"question": "Which one is the longest?", "choices": ["é", "漢字", "a", "aaaaaaaa"], "answer": 3},
    {"question": "x", "choices": ["yes", "no"], "answer": 0},
    {"question": "A question with many more words than any of the others has", "choices": ["b b", "ab"], "answer": 1},
    {"question": "Again: x", "choices": ["maybe", "y", "zz"], "answer": 2},
]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load_model("tiny", "float32", 5)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("tiny")


def context_of(tokenizer: PreTrainedTokenizerBase, settings: EvaluationConfig, template: str = "plain") -> Context:
    return Context(settings, tokenizer, 512, template, seed=0, model_id="tiny", data=None)


def log_likelihood(model: PreTrainedModel, prompt: bytes, choice: bytes, tokenizer: PreTrainedTokenizerBase) -> float:
    """One token after another."""
    prompt_ids, choice_ids = (tokenizer(text.decode())["input_ids"] for text in (prompt, choice))
    total, ids = 0.0, list(prompt_ids)
    for token in choice_ids:
        with torch.inference_mode():
            total += float(model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token])
        ids.append(token)
    return total


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_log_likelihoods_are_sums_over_the_choices_tokens(model, tokenizer, batch_size):
    questions = [Choices(row["question"] + "\n", tuple(row["choices"])) for row in ROWS]
    found = choice_log_likelihoods(model, tokenizer, questions, batch_size)
    for row, of_row in zip(ROWS, found, strict=True):
        prompt = f"{row['question']}\n".encode()
        by_hand = [log_likelihood(model, prompt, choice.encode(), tokenizer) for choice in row["choices"]]
        assert of_row == pytest.approx(by_hand, abs=1e-4)


def test_acc_and_acc_norm():
    assert choice_scores([-4.0, -3.0], ["abcd", "a"], 0) == {"acc": 0, "acc_norm": 1}
    assert choice_scores([-4.0, -3.0], ["abcd", "a"], 1) == {"acc": 1, "acc_norm": 0}
    assert choice_scores([-1.0, -1.0], ["a", "b"], 0) == {"acc": 1, "acc_norm": 1}  # a tie goes to the first


def test_a_choice_as_long_as_the_context_is_refused_before_there_is_a_model(tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"question": "x", "choices": ["n", "y" * num_tokens], "answer": 0} for num_tokens in (511, 512)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(UserError, match=r"rows.jsonl:2: `choices`: one has 512 tokens, .* less than .* context of 512"):
        load_tasks([f"multiple_choice={path}"], context_of(tokenizer, EvaluationConfig()))


def test_the_longest_choice_there_can_be(model, tokenizer):
    [[likelihood, _]] = choice_log_likelihoods(model, tokenizer, [Choices("x\n", ("y" * 511, "n"))], 1)
    assert math.isfinite(likelihood)


def test_a_long_question_loses_its_beginning(model, tokenizer, caplog):
    found = choice_log_likelihoods(model, tokenizer, [Choices("x" * 600, ("yes",)), Choices("x" * 509, ("yes",))], 2)
    assert found[0] == found[1]
    assert "1 of 2 prompts lost their beginning" in caplog.text


# ---- the harness


HARNESS_TASK = """
task: five_questions
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{form}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: "{delimiter}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@pytest.fixture
def task_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes the five questions as a task of the harness, with a prompt in this form."""
    pytest.importorskip("lm_eval", reason="the oracle: pip install 'parablock-ray[lm-eval]'")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "five.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))

    def write(form: str = "Question: {{question}}\\nAnswer:", delimiter: str = " ") -> Path:
        path = tmp_path / "five.yaml"
        path.write_text(HARNESS_TASK.format(data=tmp_path / "five.jsonl", form=form, delimiter=delimiter))
        return path

    return write


def results(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *tasks: str) -> list[TaskResult]:
    settings = EvaluationConfig(tasks=tasks, batch_size=2)
    context = context_of(tokenizer, settings)
    return [evaluate(model, task) for task in load_tasks(tasks, context)]


def harness_log_likelihoods(result: TaskResult) -> list[list[float]]:
    return [[float(answer.strip("()").split(",")[0]) for answer in row["generated"]] for row in result.outputs]


def test_log_likelihoods_and_figures_are_the_harnesss(model, tokenizer, task_file):
    state = torch.get_rng_state()
    [theirs] = results(model, tokenizer, f"lm_eval={task_file()}")
    assert torch.equal(torch.get_rng_state(), state)
    questions = [
        Choices(f"Question: {row['question']}\nAnswer:", tuple(f" {choice}" for choice in row["choices"]))
        for row in ROWS
    ]
    found = choice_log_likelihoods(model, tokenizer, questions, batch_size=2)
    for of_row, other in zip(found, harness_log_likelihoods(theirs), strict=True):
        assert of_row == pytest.approx(other, abs=1e-4)
    scores = [choice_scores(each, row["choices"], row["answer"]) for each, row in zip(found, ROWS, strict=True)]
    assert scores == [row["scores"] for row in theirs.outputs]
    assert 0 < sum(score for each in scores for score in each.values()) < 10, "these questions tell nothing apart"
    for ours, other in zip(metrics_of([of_all(each) for each in scores]), theirs.metrics, strict=True):
        assert (ours.name, ours.value, ours.num_examples) == (other.name, other.value, other.num_examples)
        assert ours.standard_error == pytest.approx(other.standard_error)


def test_after_white_space_the_harness_counts_it_to_every_choice(model, tokenizer, task_file, tmp_path):
    """Our templates end in a line break. The harness moves it into the choices, as much for each: acc is the same."""
    harness_task = task_file(form="{{question}}\\n", delimiter="")
    ours, theirs = results(model, tokenizer, f"multiple_choice={tmp_path / 'five.jsonl'}", f"lm_eval={harness_task}")
    assert ours.metrics[0] == theirs.metrics[0]
    for row, other in zip(ours.outputs, harness_log_likelihoods(theirs), strict=True):
        line_break = log_likelihood(model, row["prompt"][:-1].encode(), b"\n", tokenizer)
        expected = [each - line_break for each in other]
        assert list(row["log_likelihoods"].values()) == pytest.approx(expected, abs=1e-4)


def test_a_task_of_the_harness_is_judged_as_often_as_wanted(model, tokenizer, task_file):
    settings = EvaluationConfig(tasks=(f"lm_eval={task_file()}",), num_examples=3)
    context = context_of(tokenizer, settings, template="chat")
    [task] = load_tasks(settings.tasks, context)
    first, second = evaluate(model, task), evaluate(model, task)
    assert first == second
    assert {metric.num_examples for metric in first.metrics} == {3}
    assert "<|im_start|>user" in first.outputs[0]["prompt"]
    assert all(math.isfinite(metric.value) for metric in first.metrics)


@pytest.mark.parametrize("has_aggregate", [True, False])
def test_a_group_of_the_harness_comes_with_its_aggregate(
    model, tokenizer, task_file, tmp_path, has_aggregate, monkeypatch
):
    """Two and three questions, the latter in a group within the group: weighted by size, all five once more."""
    [whole] = results(model, tokenizer, f"lm_eval={task_file()}")
    common = yaml.safe_load(task_file().read_text())
    members = []
    for name, rows in (("two", ROWS[:2]), ("three", ROWS[2:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        files = {"data_files": {"test": str(tmp_path / f"{name}.jsonl")}}
        members.append(common | {"task": name, "dataset_kwargs": files})
    group = {"group": "five", "task": [members[0], {"group": "inner", "task": [members[1]]}]}
    if has_aggregate:
        group["aggregate_metric_list"] = [{"metric": "acc", "weight_by_size": True}]
    known = tmp_path / "known"
    known.mkdir()
    (known / "group.yaml").write_text(yaml.safe_dump(group))
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=known, include_defaults=False)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda: manager)  # of these tasks, not of its own 14,000
    [found] = results(model, tokenizer, "lm_eval:five")
    of_tasks = {name for name in (metric.name for metric in found.metrics) if name != "five acc"}
    assert of_tasks == {f"five::{name} {metric}" for name in ("two", "inner::three") for metric in ("acc", "acc_norm")}
    aggregates = [(metric.value, metric.num_examples) for metric in found.metrics if metric.name == "five acc"]
    assert aggregates == ([(pytest.approx(whole.metrics[0].value), 5)] if has_aggregate else [])


def test_tasks_that_the_harness_cannot_load(model, tokenizer, task_file, tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text(task_file().read_text().replace("five.jsonl", "six.jsonl"))
    no_task = tmp_path / "no_task.yaml"
    no_task.write_text("just: text\n")
    group = tmp_path / "group.yaml"
    group.write_text("group: both\ntask: [one, other]\n")
    for task, message in (
        (f"lm_eval={tmp_path / 'none.yaml'}", "none.yaml: there is no such file"),
        (f"lm_eval={broken}", "broken.yaml: the lm-evaluation-harness cannot load this task or its data: "),
        (f"lm_eval={group}", r"group.yaml: the lm-evaluation-harness reads groups by name only .lm_eval:GROUP., not"),
        (f"lm_eval={no_task}", "no_task.yaml: the lm-evaluation-harness cannot load this task"),
    ):
        with pytest.raises(UserError, match=message):
            results(model, tokenizer, task)


@pytest.mark.slow
def test_an_unknown_task_of_the_harness(model, tokenizer):  # its index of 14,000 tasks takes ten seconds
    pytest.importorskip("lm_eval", reason="pip install 'parablock-ray[lm-eval]'")
    with pytest.raises(UserError, match=r"lm_eval:gsm8kk: the lm-evaluation-harness has no task.*nearest: gsm8k"):
        results(model, tokenizer, "lm_eval:gsm8kk")


def test_the_harness_is_not_installed(model, tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"lm_eval:gsm8k needs the package lm-eval: `pip install 'parablock-ray\[lm"):
        results(model, tokenizer, "lm_eval:gsm8k")
