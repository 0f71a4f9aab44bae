"""Data: sources and their mistakes, templates, tokens, the held-out set, batches."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

from parablock_ray.config.data import DataConfig
from parablock_ray.errors import UserError
from parablock_ray.training.batches import batches, visit_order
from parablock_ray.training.data import build_data
from parablock_ray.training.loss import IGNORED
from parablock_ray.training.model import load_tokenizer
from parablock_ray.training.rows import Example, Message
from parablock_ray.training.sources import read_examples
from parablock_ray.training.templates import prompt_text
from parablock_ray.training.tokens import tokenize

TASKS = ("chain_sum", "gcd", "gsm_symbolic")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny")


@pytest.fixture
def jsonl(tmp_path):
    """Writes rows (or raw lines) to a .jsonl file and returns the `data:` section that reads it."""

    def write(*rows, **settings):
        path = tmp_path / "rows.jsonl"
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path.write_bytes(b"\n".join(lines) + b"\n")
        return DataConfig(source=str(path), **{"num_eval": 1, **settings})

    return write


def alpaca(number: int, **fields) -> dict:
    return {"instruction": f"Count to {number}.", "input": "", "output": f"I count to {number}!", **fields}


def generated(**settings) -> DataConfig:
    return DataConfig(**{"source": "reasoning_gym", "tasks": TASKS, "num_train": 60, "num_eval": 12, **settings})


def question(*contents: str, input: str = "") -> Example:
    roles = ["system", "user"] if len(contents) == 2 else ["user"]
    messages = tuple(Message(role, content) for role, content in zip(roles, contents, strict=True))
    return Example(messages, input=input, answer="4", task="sum", client=None)


def prompts_of(store, tokenizer) -> list[str]:
    ranges = zip(store.offsets[:-1], store.answer_start, strict=True)
    return [tokenizer.decode(store.ids[start : start + length]) for start, length in ranges]


# ---- sources


def test_generated_tasks_contribute_equal_parts_and_repeat_exactly():
    examples = read_examples(generated(), 7)
    assert [example.task for example in examples] == [task for task in TASKS for _ in range(24)]
    assert examples == read_examples(generated(), 7)
    assert examples != read_examples(generated(), 8)


def test_asking_for_more_keeps_the_problems_that_were_there():
    few, more = read_examples(generated(), 0), read_examples(generated(num_train=90), 0)
    assert set(few) < set(more)


def test_generated_problems_do_not_depend_on_the_process():
    program = (
        "from parablock_ray.config.data import DataConfig; from parablock_ray.training.sources import *;"
        f"data = DataConfig(source='reasoning_gym', tasks={TASKS}, num_train=60, num_eval=12);"
        "print([(e.messages[0].content, e.answer) for e in read_examples(data, 7)])"
    )
    output = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": "17", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output.strip() == str([(e.messages[0].content, e.answer) for e in read_examples(generated(), 7)])


def test_worked_solutions_are_learnt_where_a_task_has_them():
    answers = {example.task: example.answer for example in read_examples(generated(), 0)}
    assert "\n#### " in answers["gsm_symbolic"]
    assert answers["gcd"].isdigit()


def test_a_task_takes_options():
    easy = "chain_sum?max_terms=2&max_digits=1"
    examples = read_examples(generated(tasks=(easy,)), 0)
    assert {example.task for example in examples} == {easy}
    assert all(-9 <= int(example.answer) <= 18 for example in examples)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ()}, "data.tasks: name the tasks"),
        ({"tasks": ("chain_sun",)}, "no task 'chain_sun'; nearest: chain_sum"),
        ({"tasks": ("gcd", "gcd")}, "data.tasks: every task may stand once only"),
        ({"tasks": ("chain_sum?max_terms=1",)}, "'chain_sum[?]max_terms=1' is refused by reasoning_gym: "),
        ({"tasks": ("chain_sum?max_terms=two",)}, "'chain_sum[?]max_terms=two' is refused by reasoning_gym: "),
        ({"tasks": ("chain_sum?max_terms=[",)}, "must be written TASK[?]option=value&option=value"),
        ({"tasks": ("word_ladder",)}, "other problems in every process"),
        ({"tasks": ("composite",)}, "no task 'composite'"),
        ({"tasks": ("graph_color",)}, "'graph_color' gives no answer to learn from"),
        ({"num_train": None}, "data.num_train: .* say how many"),
        ({"num_train": 1, "num_eval": 1}, r"must reach the number of data.tasks \(3\)"),
    ],
)
def test_mistakes_with_generated_sources(settings, message):
    with pytest.raises(UserError, match=message):
        read_examples(generated(**settings), 0)


def test_reasoning_gym_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match=r"data.tasks: 'reasoning_gym' needs .*`pip install 'parablock-ray\[demo\]'"):
        read_examples(generated(), 0)


def test_alpaca_rows(jsonl):
    row = alpaca(3, input="slowly", client=5, task="counting", text="other columns are left alone")
    plain = {"instruction": "Hi", "output": "Hello", "input": None}
    assert read_examples(jsonl(row, b"", plain), 0) == [
        Example((Message("user", "Count to 3."),), "slowly", "I count to 3!", task="counting", client="5"),
        Example((Message("user", "Hi"),), "", "Hello", task="rows", client=None),
    ]


def test_chat_rows_learn_the_last_turn(jsonl):
    turns = [("system", "Be brief."), ("user", "2+2?"), ("assistant", "4"), ("user", "+1?"), ("assistant", "5")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (example,) = read_examples(jsonl(row), 0)
    assert example.messages == tuple(Message(*turn) for turn in turns[:-1])
    assert example.answer == "5"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b'{"instruction": "cut off', "this line is not JSON: Unterminated string"),
        (b"\xff\xfe", "this line is not JSON: .*utf-8"),
        (["a"], "expected a JSON object with .* found a list"),
        ({}, "needs `instruction` and `output` .* found no fields"),
        ({"instruction": "a", "answer": "b"}, "needs `instruction` and `output` .* found answer, instruction"),
        (alpaca(1, output=7), "`output` must be text, found a number"),
        (alpaca(1, instruction=None), "`instruction` must be text, found null"),
        (alpaca(1, input=["x"]), "`input` must be text, found a list"),
        (alpaca(1, output=" \n"), "the answer is empty"),
        (alpaca(1, task=3), "`task` must be text, found a number"),
        (alpaca(1, client=True), "`client` must be text or a whole number, found true or false"),
        ({"messages": []}, "`messages` must be a list of turns, found an empty list"),
        ({"messages": "hello"}, "`messages` must be a list of turns, found text"),
        ({"messages": [{"role": "user"}]}, "turn 1 of `messages` must have a `role`"),
        ({"messages": [{"role": "robot", "content": "a"}]}, r"turn 1 .*\(system, user, assistant\)"),
        ({"messages": [{"role": "user", "content": "a"}]}, "must end with the assistant's answer"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "must end with the assistant's answer"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]},
            "the answer is empty",
        ),
    ],
)
def test_malformed_rows_are_named_by_file_and_line(jsonl, row, message):
    with pytest.raises(UserError, match=rf"rows\.jsonl:3: .*{message}"):
        read_examples(jsonl(alpaca(1), b"", row), 0)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/rows.jsonl", "data.source: cannot read nowhere/rows.jsonl: No such file"),
        ("./nowhere", r"nowhere must be a .jsonl file \(one JSON object a line\) or a .parquet file"),
        (__file__, r"test_data.py must be a .jsonl file"),
    ],
)
def test_missing_and_other_files(source, message):
    with pytest.raises(UserError, match=message):
        read_examples(DataConfig(source=source), 0)


def test_tasks_of_a_file(jsonl):
    with pytest.raises(UserError, match=r"data.tasks: only for `data.source: reasoning_gym`"):
        read_examples(jsonl(alpaca(1), tasks=("gcd",)), 0)


def test_hub_rows_take_the_same_forms(monkeypatch):
    import datasets

    def load(name, subset, split):
        assert (name, subset, split) == ("some/set", None, "train")
        return datasets.Dataset.from_list([alpaca(1), {"instruction": None, "input": "", "output": "I can!"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match="some/set row 1: `instruction` must be text, found null"):
        read_examples(DataConfig(source="some/set"), 0)


def test_hub_out_of_reach(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"data.source: cannot load 'tatsu-lab/alpaca' from the hub"):
        read_examples(DataConfig(source="tatsu-lab/alpaca"), 0)


# ---- templates and tokens


def test_templates(tokenizer):
    plain = prompt_text(question("Be brief.", "2+2?", input="now"), "plain", tokenizer)
    assert plain == "Be brief.\n2+2?\nnow\n"
    with_input = prompt_text(question("Add {x}.", input="2 2"), "alpaca", tokenizer)
    assert "### Instruction:\nAdd {x}.\n\n### Input:\n2 2\n\n### Response:\n" in with_input
    assert "### Input" not in prompt_text(question("Add."), "alpaca", tokenizer)
    chat = prompt_text(question("Be brief.", "Add.", input="2 2"), "chat", tokenizer)
    assert chat == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nAdd.\n\n2 2<|im_end|>\n<|im_start|>assistant\n"
    )


def test_chat_without_a_template(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(UserError, match=r"data.template: chat needs a tokenizer with a chat template"):
        prompt_text(question("2+2?"), "chat", tokenizer)


def test_chat_template_that_refuses_a_role(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('no system turns') }}")
    with pytest.raises(UserError, match=r"refuses turns by system, user: no system turns; use plain"):
        prompt_text(question("Be brief.", "2+2?"), "chat", tokenizer)


def test_labels_cover_the_answer_and_its_end_mark_only(tokenizer):
    store = tokenize(["2+2\n", "one\n"], ["4", "seven"], tokenizer)
    batch = store.batch([0, 1])
    assert list(batch) == ["input_ids", "attention_mask", "labels"]
    assert {(tensor.dtype, tensor.shape) for tensor in batch.values()} == {(torch.int64, (2, 10))}
    learnt = [row[row != IGNORED] for row in batch["labels"]]
    assert [tokenizer.decode(row) for row in learnt] == ["4<|im_end|>", "seven<|im_end|>"]
    assert batch["attention_mask"].sum(dim=1).tolist() == [6, 10]
    assert batch["input_ids"][0, 6:].tolist() == [tokenizer.pad_token_id] * 4
    labelled = batch["labels"] != IGNORED
    assert torch.equal(batch["input_ids"][labelled], batch["labels"][labelled])


def test_a_start_mark_comes_first_and_once(tokenizer):
    class WithStart:
        bos_token_id, eos_token_id, pad_token_id = 257, 258, 256

        def __call__(self, texts, add_special_tokens=True, verbose=True):
            ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
            return {"input_ids": [257, *ids] if texts == "" and add_special_tokens else ids}

    store = tokenize(["2+2\n", "<|im_start|>user\n"], ["4", "4"], WithStart())
    assert [(store.ids[start : start + 3] == 257).sum() for start in store.offsets[:-1]] == [1, 1]
    assert store.ids[0] == 257
    assert store.answer_start.tolist() == [5, 6]


def test_the_store_pickles_as_it_is(tokenizer):
    store = tokenize(["2+2\n"], ["4"], tokenizer)
    copy = pickle.loads(pickle.dumps(store))
    copy.ids.flags.writeable = False  # as in Ray's object store
    copy.batch([0])["input_ids"] += 1
    assert np.array_equal(copy.ids, store.ids)


# ---- held out, cut, split


def test_held_out_prompts_are_never_trained_on(tokenizer):
    data = build_data(generated(tasks=("gcd", "coin_flip"), num_train=200, num_eval=40), 4, 0, tokenizer, 512)
    train, held_out = set(prompts_of(data.clients.store, tokenizer)), set(prompts_of(data.eval, tokenizer))
    assert not train & held_out
    assert data.report.num_duplicates > 0  # coin_flip has few questions
    assert len(data.eval) == 40
    assert len(data.clients.store) == 200 - data.report.num_duplicates
    assert sorted(np.concatenate(data.clients.indices)) == list(range(len(data.clients.store)))
    assert f"{data.report.num_duplicates} removed because their prompt is held out" in data.report.line()


def test_natural_split_follows_the_tasks_and_holds_out_of_each(tokenizer):
    data = build_data(generated(split="natural", max_length=4096), 3, 0, tokenizer, 4096)
    prompts = prompts_of(data.clients.store, tokenizer)
    for client, words in zip(
        data.clients.indices, ["arithmetic problem", "Greatest Common", "final answer. Do not"], strict=True
    ):
        assert len(client) == 20
        assert all(words in prompts[i] for i in client)
    assert sum("Greatest Common" in prompt for prompt in prompts_of(data.eval, tokenizer)) == 4
    assert data.report.num_tasks == 3


def test_natural_split_follows_the_client_column(jsonl, tokenizer):
    rows = [alpaca(i, client=i % 3) for i in range(31)]
    data = build_data(jsonl(*rows, split="natural"), 3, 0, tokenizer, 512)
    for client in data.clients.indices:
        numbers = [prompts_of(data.clients.store, tokenizer)[i].split()[2].rstrip(".") for i in client]
        assert len({int(number) % 3 for number in numbers}) == 1


def test_files_are_cut_to_num_train(jsonl, tokenizer):
    rows = [alpaca(i) for i in range(30)]
    data = build_data(jsonl(*rows, num_train=10, num_eval=5), 2, 0, tokenizer, 512)
    assert (len(data.clients.store), len(data.eval), data.report.num_read) == (10, 5, 30)


def test_equal_arguments_give_equal_data(tokenizer):
    one, two, other = (build_data(generated(), 4, seed, tokenizer, 512) for seed in (3, 3, 4))
    assert pickle.dumps(one) == pickle.dumps(two) != pickle.dumps(other)


def test_long_examples_are_cut_and_counted(jsonl, tokenizer):
    rows = [*(alpaca(i) for i in range(6)), alpaca(7, output="word " * 60), alpaca(8, instruction="word " * 60)]
    for settings, max_context in [({"max_length": 100}, 512), ({}, 100)]:
        data = build_data(jsonl(*rows, **settings), 1, 0, tokenizer, max_context)
        report = data.report
        assert (report.num_read, report.num_dropped, report.num_truncated) == (8, 1, 1)
        assert report.max_tokens <= 100
        longest = max(np.diff(data.clients.store.offsets).max(), np.diff(data.eval.offsets).max())
        assert longest == 100
        assert "1 dropped because no part of the answer fits; 1 cut at the end" in report.line()


@pytest.mark.parametrize(
    ("rows", "settings", "num_clients", "message"),
    [
        ([], {}, 1, "data.source: .* holds no examples"),
        ([alpaca(1)] * 2, {}, 1, "data.num_eval: all 1 examples .* repeat a held-out prompt"),
        ([alpaca(1), alpaca(2)], {"num_eval": 2}, 1, "data.num_eval: 2 examples cannot be held out of 2"),
        ([alpaca(i) for i in range(4)], {}, 4, "clients.num: 4 clients cannot share 3 training examples"),
        ([alpaca(1), alpaca(2)], {"max_length": 8}, 1, "data.max_length: the answers of all 2 .* at 8 tokens"),
    ],
)
def test_too_little_data(jsonl, tokenizer, rows, settings, num_clients, message):
    with pytest.raises(UserError, match=message):
        build_data(jsonl(*rows, **settings), num_clients, 0, tokenizer, 512)


# ---- batches


def test_batches_depend_on_seed_client_and_round_alone(tokenizer):
    held = build_data(generated(), 4, 0, tokenizer, 512).clients.held_by(0)

    def ids(seed=0, round=0, client=0):
        order = visit_order(held.indices, len(held.indices), seed, round, client)
        found = batches(held.store, order, num_steps=2, batch_size=4, packed_length=None)
        return [batch["input_ids"].tolist() for batch in found]

    state = torch.get_rng_state()
    assert ids() == ids()
    assert len({str(ids()), str(ids(seed=1)), str(ids(round=1)), str(ids(client=1))}) == 4
    assert torch.equal(torch.get_rng_state(), state)


def test_a_round_takes_every_example_before_it_repeats_one(tokenizer):
    store = tokenize([f"{i}\n" for i in range(5)], [str(i) for i in range(5)], tokenizer)
    order = visit_order(np.array([0, 2, 3, 4]), 4, seed=0, round=0, client=0)
    found = batches(store, order, num_steps=3, batch_size=2, packed_length=None)
    first = [tokenizer.decode(row[:1]) for batch in found for row in batch["input_ids"]]
    assert sorted(first[:4]) == ["0", "2", "3", "4"]
    assert first[4:] == first[:2]


@pytest.mark.parametrize("source", ["a" * 5_000, "~nobody9/rows.jsonl"])
def test_a_source_that_can_be_no_file_is_told(source):
    with pytest.raises(UserError, match=r"^data\.source: .* is no name of a file: "):
        read_examples(DataConfig(source=source), 0)


@pytest.mark.parametrize("line", ["[" * 100_000, '{"instruction": "a", "output": "\\ud800"}', "9" * 5_000])
def test_lines_that_no_reader_should_choke_on(tmp_path, line):
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"rows\.jsonl:1: this line is not JSON: "):
        read_examples(DataConfig(source=str(tmp_path / "rows.jsonl")), 0)


def test_a_small_parquet_file_of_very_many_rows_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("parablock_ray.training.sources.MAX_ROWS", 1_000)
    file = tmp_path / "rows.parquet"
    column = pyarrow.array(["a"]).take(pyarrow.array([0] * 1_001))
    parquet.write_table(pyarrow.table({"instruction": column, "output": column}), file)
    with pytest.raises(UserError, match=r"has 1,001 rows; at most 1,000 are read$"):
        read_examples(DataConfig(source=str(file)), 0)
