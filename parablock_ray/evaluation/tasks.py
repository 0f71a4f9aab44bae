"""Every task by name.

A task is a function in `TASKS`: it gets its name as the user wrote it and a `Context`, reads its files and writes its
prompts at once, so that a mistake shows before a model is loaded, and returns a `Judge`, which asks a model and scores
it, as often as wanted. To add one:

1. its form in `TASK_FORMS` (config/evaluation.py); a test asserts that both know the same names;
2. a function here and its entry in `TASKS`; if it has a score for an answer, `_asked` does the rest;
3. for a file of a new form, a `Row` (evaluation/files.py);
4. a row in the table of docs/evaluation.md.
"""

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from parablock_ray.config.data import DataConfig
from parablock_ray.config.evaluation import EvaluationConfig, TaskName, parse_task
from parablock_ray.errors import UserError
from parablock_ray.evaluation.choices import Choices, check_choices, choice_log_likelihoods, choice_scores
from parablock_ray.evaluation.files import (
    ChoiceRow,
    ConversationRow,
    GSM8KRow,
    InstructionRow,
    existing,
    read_rows,
)
from parablock_ray.evaluation.generate import Generated, generate, room_for_prompts
from parablock_ray.evaluation.harness import harness_judge
from parablock_ray.evaluation.instructions import Instruction, instruction_tallies
from parablock_ray.evaluation.likelihood import answer_nlls
from parablock_ray.evaluation.problems import Problem, problems
from parablock_ray.evaluation.prompts import prompt_ids
from parablock_ray.evaluation.results import Metric, Tallies, Tally, TaskResult, metric_of, metrics_of, of_all
from parablock_ray.evaluation.scorers import exact_match, gsm8k_scores, rouge_l
from parablock_ray.training.data import FederatedData, StoredClients
from parablock_ray.training.rows import Example, Message
from parablock_ray.training.sources import read_examples
from parablock_ray.training.templates import prompt_text

Judge = Callable[[PreTrainedModel], TaskResult]


@dataclass(frozen=True)
class Context:
    """What tasks need beside a model."""

    settings: EvaluationConfig
    tokenizer: PreTrainedTokenizerBase
    max_context: int  # of the model, in tokens
    template: str  # prompts are written as for training
    seed: int  # of generated problems
    model_id: str  # in exported answers
    data: FederatedData | None  # of the run that made the model; None: no run did, or no task needs it


@dataclass(frozen=True)
class Task:
    name: str  # as the user wrote it
    judge: Judge


def need_data(texts: Sequence[str]) -> bool:
    """Whether any of these tasks needs the data of the run that made the model (`Context.data`)."""
    return any(parse_task(text).kind in NEED_DATA for text in texts)


def load_tasks(texts: Sequence[str], context: Context) -> list[Task]:
    """Reads what these tasks need; their forms are checked (`EvaluationConfig`). Raises UserError, naming the file and
    the line or the task."""
    names = [parse_task(text) for text in texts]
    return [Task(name.text, TASKS[name.kind](name, context)) for name in names]


def evaluate(model: PreTrainedModel, task: Task) -> TaskResult:
    """The model's metrics on the task and what it said. Deterministic; the model ends in the mode it came in."""
    was_training = model.training
    model.eval()
    try:
        return task.judge(model)
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class _Question:
    example: Example
    tallies: Callable[[str], Tallies]  # of the text that the model gives


def _asked(name: TaskName, questions: Sequence[_Question], context: Context) -> Judge:
    """One answer to each question, each scored by itself."""
    _check_room(context)
    prompts = [_prompt(question.example, context) for question in questions]

    def judge(model: PreTrainedModel) -> TaskResult:
        answers = _generate(model, prompts, context)
        tallies = [question.tallies(answer.text) for question, answer in zip(questions, answers, strict=True)]
        rows = (
            _row(prompt, question.example.answer, answer, of_example)
            for prompt, question, answer, of_example in zip(prompts, questions, answers, tallies, strict=True)
        )
        return TaskResult(name.text, metrics_of(tallies), tuple(rows))

    return judge


def _gsm8k(name: TaskName, context: Context) -> Judge:
    def question(row: GSM8KRow) -> _Question:
        return _Question(_example(row.question, row.answer), lambda text: of_all(gsm8k_scores(text, row.answer)))

    return _asked(name, read_rows(Path(name.of), GSM8KRow, context.settings.num_examples, question), context)


def _rouge_l(name: TaskName, context: Context) -> Judge:
    """Rows in the forms of `data.source`."""

    def question(example: Example) -> _Question:
        scorers = {"rouge_l": rouge_l, "exact_match": exact_match}
        return _Question(
            example, lambda text: of_all({metric: score(text, example.answer) for metric, score in scorers.items()})
        )

    examples = read_examples(DataConfig(source=str(existing(Path(name.of)))), context.seed)
    if not examples:
        raise UserError(f"{name.of}: holds no examples")
    return _asked(name, [question(example) for example in examples[: context.settings.num_examples]], context)


def _ifeval(name: TaskName, context: Context) -> Judge:
    def question(row: InstructionRow) -> _Question:
        if len(row.arguments) != len(row.instruction_id_list):
            raise ValueError("`kwargs` must have an object for each of `instruction_id_list`")
        pairs = zip(row.instruction_id_list, row.arguments, strict=True)
        instructions = [Instruction(instruction, arguments) for instruction, arguments in pairs]
        return _Question(_example(row.prompt, ""), lambda text: instruction_tallies(text, instructions))

    return _asked(name, read_rows(Path(name.of), InstructionRow, context.settings.num_examples, question), context)


def _reasoning_gym(name: TaskName, context: Context) -> Judge:
    """Problems of another seed than the training data's; those that training has by chance are left out, where its
    examples are there to compare with (data.per_client makes them on demand)."""
    trained = _trained_prompts(context.data)

    def question(problem: Problem) -> _Question:
        return _Question(problem.example, lambda text: of_all(problem.scores(text)))

    def is_new(problem: Problem) -> bool:
        [ids] = prompt_ids([_prompt(problem.example, context)], context.tokenizer)
        return ids.tobytes() not in trained

    num = context.settings.num_examples
    new = list(itertools.islice(filter(is_new, problems(name.of, context.seed, num)), num))
    if not new:
        raise UserError(f"{name.text}: every problem that was drawn is training data; judge on another task")
    return _asked(name, [question(problem) for problem in new], context)


def _multiple_choice(name: TaskName, context: Context) -> Judge:
    def checked(row: ChoiceRow) -> ChoiceRow:
        if row.answer >= len(row.choices):
            raise ValueError(f"`answer` must be 0 to {len(row.choices) - 1}, the place of a choice (got {row.answer})")
        check_choices(row.choices, context.tokenizer, context.max_context)
        return row

    rows = read_rows(Path(name.of), ChoiceRow, context.settings.num_examples, checked)
    questions = [Choices(_prompt(_example(row.question, ""), context), tuple(row.choices)) for row in rows]

    def judge(model: PreTrainedModel) -> TaskResult:
        found = choice_log_likelihoods(model, context.tokenizer, questions, context.settings.batch_size)
        scores = [choice_scores(each, row.choices, row.answer) for each, row in zip(found, rows, strict=True)]
        outputs = (
            {
                "prompt": question.prompt,
                "answer": row.choices[row.answer],
                "log_likelihoods": dict(zip(row.choices, log_likelihoods, strict=True)),
                "scores": of_example,
            }
            for question, row, log_likelihoods, of_example in zip(questions, rows, found, scores, strict=True)
        )
        return TaskResult(name.text, metrics_of([of_all(each) for each in scores]), tuple(outputs))

    return judge


def _mt_bench(name: TaskName, context: Context) -> Judge:
    """No score: answers for a judge elsewhere, in the form of FastChat's model_answer files
    (https://github.com/lm-sys/FastChat, fastchat/llm_judge)."""
    _check_room(context)
    rows = read_rows(Path(name.of), ConversationRow, context.settings.num_examples, lambda row: row)

    def judge(model: PreTrainedModel) -> TaskResult:
        said: list[list[Message]] = [[] for _ in rows]
        ended: list[list[bool]] = [[] for _ in rows]
        for turn in range(max(len(row.turns) for row in rows)):
            asked = [place for place, row in enumerate(rows) if turn < len(row.turns)]
            for place in asked:
                said[place].append(Message("user", rows[place].turns[turn]))
            prompts = [_prompt(_conversation(said[place]), context) for place in asked]
            for place, answer in zip(asked, _generate(model, prompts, context), strict=True):
                said[place].append(Message("assistant", answer.text.strip()))
                ended[place].append(answer.ended)
        tallies = [{"ended": Tally(float(sum(of_row)), len(of_row))} for of_row in ended]
        outputs = (_model_answer(row, turns, context.model_id) for row, turns in zip(rows, said, strict=True))
        return TaskResult(name.text, metrics_of(tallies), tuple(outputs))

    return judge


def _held_out(name: TaskName, context: Context) -> Judge:
    examples = _data(name, context).eval

    def judge(model: PreTrainedModel) -> TaskResult:
        nlls = answer_nlls(model, examples, range(len(examples)), context.settings.batch_size)
        loss = metric_of("loss", nlls)
        outputs = ({"example": place, "loss": nll.mean, "num_tokens": nll.num} for place, nll in enumerate(nlls))
        return TaskResult(name.text, (loss, _perplexity(loss)), tuple(outputs))

    return judge


def _per_client(name: TaskName, context: Context) -> Judge:
    """Loss on each client's own training examples, and how unequal clients are served: the mean of the worst tenth of
    them, as in q-FFL (Li et al., arXiv 1905.10497, section 4)."""
    clients, settings = _data(name, context).clients, context.settings

    def loss_of(model: PreTrainedModel, client: int) -> Metric:
        store, indices = clients.held_by(client)
        return metric_of("loss", answer_nlls(model, store, indices[: settings.num_examples], settings.batch_size))

    def judge(model: PreTrainedModel) -> TaskResult:
        losses = [loss_of(model, client) for client in range(len(clients.num_examples))]
        ordered = sorted((loss.value for loss in losses), reverse=True)
        worst = ordered[: math.ceil(len(ordered) / 10)]
        metrics = (
            Metric("mean_loss", sum(ordered) / len(ordered), len(ordered), standard_error=None),
            Metric("worst_decile_loss", sum(worst) / len(worst), len(worst), standard_error=None),
            Metric("worst_client_loss", ordered[0], 1, standard_error=None),
        )
        outputs = (
            {"client": client, "loss": loss.value, "num_examples": loss.num_examples}
            for client, loss in enumerate(losses)
        )
        return TaskResult(name.text, metrics, tuple(outputs))

    return judge


def _lm_eval(name: TaskName, context: Context) -> Judge:
    settings = context.settings
    return harness_judge(
        name, context.tokenizer, settings.num_examples, settings.batch_size, chat=context.template == "chat"
    )


TASKS: Mapping[str, Callable[[TaskName, Context], Judge]] = {
    "held_out": _held_out,  # loss and perplexity on the run's held-out examples
    "per_client": _per_client,  # loss on each client's examples: mean, worst tenth, worst
    "reasoning_gym": _reasoning_gym,  # generated problems, reasoning_gym's verifiers
    "gsm8k": _gsm8k,  # grade-school mathematics, exact match
    "rouge_l": _rouge_l,  # instructions with a reference answer
    "ifeval": _ifeval,  # instructions that a program can check
    "multiple_choice": _multiple_choice,  # by log-likelihood
    "mt_bench": _mt_bench,  # conversations for a judge elsewhere
    "lm_eval": _lm_eval,  # whatever the lm-evaluation-harness has
}

NEED_DATA = frozenset({"held_out", "per_client", "reasoning_gym"})  # the last, to leave out what was trained on


def _data(name: TaskName, context: Context) -> FederatedData:
    if context.data is None:
        raise UserError(f"{name.text}: needs the data of a run; name a run folder, or leave the task out")
    return context.data


def _prompt(example: Example, context: Context) -> str:
    return prompt_text(example, context.template, context.tokenizer)


def _check_room(context: Context) -> None:
    """`generate` would say so too, but only once the model has been trained or loaded."""
    room_for_prompts(context.settings.max_new_tokens, context.max_context)


def _generate(model: PreTrainedModel, prompts: Sequence[str], context: Context) -> list[Generated]:
    settings = context.settings
    return generate(model, context.tokenizer, prompts, settings.max_new_tokens, settings.batch_size)


def _example(question: str, answer: str) -> Example:
    return Example((Message("user", question),), input="", answer=answer, task="", client=None)


def _conversation(messages: Sequence[Message]) -> Example:
    return Example(tuple(messages), input="", answer="", task="", client=None)


def _row(prompt: str, reference: str, answer: Generated, tallies: Tallies) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "answer": reference,
        "generated": answer.text,
        "num_tokens": answer.num_tokens,
        "ended": answer.ended,
        "scores": {metric: tally.mean for metric, tally in tallies.items()},
    }


def _model_answer(row: ConversationRow, said: Sequence[Message], model_id: str) -> dict[str, Any]:
    turns = [message.content for message in said if message.role == "assistant"]
    return {
        "question_id": row.question_id,
        "answer_id": hashlib.sha256(repr((model_id, row.question_id, turns)).encode()).hexdigest()[:22],
        "model_id": model_id,
        "choices": [{"index": 0, "turns": turns}],
        "tstamp": time.time(),
    }


def _trained_prompts(data: FederatedData | None) -> frozenset[bytes]:
    """The ids of every prompt that a run has trained on."""
    if data is None or not isinstance(data.clients, StoredClients):
        return frozenset()
    store = data.clients.store
    return frozenset(store.tokens(i)[: store.answer_start[i]].tobytes() for i in range(len(store)))


def _perplexity(loss: Metric) -> Metric:
    """exp(loss), its standard error to first order."""
    value = float(np.exp(loss.value))
    error = None if loss.standard_error is None else value * loss.standard_error
    return replace(loss, name="perplexity", value=value, standard_error=error)
