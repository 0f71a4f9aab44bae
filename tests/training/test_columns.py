"""Rows in other words: presets of the hub, named columns, Self-Instruct's instances, Parquet."""

import json
import logging
from pathlib import Path

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from parablock_ray.config.data import DataConfig
from parablock_ray.config.presets import DATASETS, Columns
from parablock_ray.errors import UserError
from parablock_ray.training.rows import Example, Message
from parablock_ray.training.sources import read_examples

ROWS_OF = {  # as the pages of the datasets have them
    "alpaca_gpt4": {"instruction": "Name it.", "input": "2, 4", "output": "even", "text": "the three in a template"},
    "math_instruct": {"instruction": "Name it.", "output": "even", "source": "data/CoT/aqua_rat.json"},
    "metamath_qa": {"query": "Name it.", "response": "even", "type": "GSM_Rephrased", "original_question": "?"},
    "gsm8k": {"question": "Name it.", "answer": "even"},
    "dolly": {"instruction": "Name it.", "context": "2, 4", "response": "even", "category": "closed_qa"},
}
TASK_OF = {"math_instruct": "data/CoT/aqua_rat.json", "metamath_qa": "GSM_Rephrased", "dolly": "closed_qa"}


def named_it(task: str, input: str = "", client: str | None = None) -> Example:
    return Example((Message("user", "Name it."),), input=input, answer="even", task=task, client=client)


def read(path: Path, columns: dict | str | None = None) -> list[Example]:
    return read_examples(DataConfig.model_validate({"source": str(path), "columns": columns}), 0)


@pytest.fixture
def write(tmp_path):
    """Writes rows to a file of this suffix; returns its path."""

    def to(suffix: str, *rows: dict) -> Path:
        path = tmp_path / f"rows{suffix}"
        if suffix == ".parquet":
            parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return to


# ---- presets


def test_every_preset_has_a_row_here():
    assert ROWS_OF.keys() == DATASETS.keys()


@pytest.mark.parametrize("name", DATASETS)
def test_a_preset_reads_its_dataset(monkeypatch, name):
    asked = []

    def load(hub_name, subset, split):
        asked.append((hub_name, subset, split))
        return datasets.Dataset.from_list([ROWS_OF[name]] * 2)

    monkeypatch.setattr(datasets, "load_dataset", load)
    preset = DATASETS[name]
    expected = named_it(TASK_OF.get(name, preset.hub_name), ROWS_OF[name].get(preset.columns.input, ""))
    assert read_examples(DataConfig(source=name), 0) == [expected] * 2
    assert asked == [(preset.hub_name, preset.subset, preset.split)]


@pytest.mark.parametrize("name", DATASETS)
def test_the_columns_of_a_preset_fit_a_file(write, name):
    [example] = read(write(".jsonl", ROWS_OF[name]), name)
    assert example == named_it(TASK_OF.get(name, "rows"), ROWS_OF[name].get(DATASETS[name].columns.input, ""))


def test_rows_of_the_hub_without_an_answer_are_left_out_and_counted(monkeypatch, caplog):
    rows = [ROWS_OF["gsm8k"], {"question": "Name it.", "answer": " "}, {"question": "Name it.", "answer": None}]
    monkeypatch.setattr(datasets, "load_dataset", lambda name, subset, split: datasets.Dataset.from_list(rows))
    with caplog.at_level(logging.WARNING):
        assert len(read_examples(DataConfig(source="gsm8k"), 0)) == 1
    assert "openai/gsm8k: 2 examples have no answer and are left out" in caplog.text


def test_an_instance_without_an_answer_costs_no_other_of_its_row(monkeypatch, caplog):
    answers = ["", "even", None, "even", " "]
    row = {"instruction": "Name it.", "instances": [{"input": "2, 4", "output": answer} for answer in answers]}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, subset, split: datasets.Dataset.from_list([row]))
    assert read_examples(DataConfig(source="some/seeds"), 0) == [named_it("some/seeds", "2, 4")] * 2
    assert "some/seeds: 3 examples have no answer and are left out" in caplog.text


def test_an_empty_split_of_the_hub(monkeypatch):
    empty = datasets.Dataset.from_dict({"question": [], "answer": []})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, subset, split: empty)
    assert read_examples(DataConfig(source="gsm8k"), 0) == []  # build_data says so


def test_a_preset_out_of_reach(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"data.source: cannot load 'openai/gsm8k' from the hub: .* allowed: .*gsm8k"):
        read_examples(DataConfig(source="gsm8k"), 0)


# ---- columns of one's own


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_named_columns_are_read_and_no_others(write, suffix):
    row = {"q": "Name it.", "a": "even", "more": "2, 4", "kind": "parity", "who": 7, "task": "not this", "client": 1}
    path = write(suffix, row, row | {"more": None, "kind": None, "who": None})
    columns = {"instruction": "q", "output": "a", "input": "more", "task": "kind", "client": "who"}
    assert read(path, columns) == [named_it("parity", "2, 4", "7"), named_it("rows")]
    assert read(path, {"instruction": "q", "output": "a"}) == [named_it("rows")] * 2


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("key", Columns.model_fields)
def test_a_column_that_is_not_there(write, suffix, key):
    columns = {"instruction": "question", "output": "answer"} | {key: "anwser"}
    message = f"data.columns.{key}: there is no column 'anwser'; there are: answer, question"
    with pytest.raises(UserError, match=message):
        read(write(suffix, ROWS_OF["gsm8k"]), columns)


def test_a_column_of_the_wrong_kind_is_named_as_in_the_file(write):
    with pytest.raises(UserError, match=r"rows.jsonl:1: `answer` must be text, found a number"):
        read(write(".jsonl", {"question": "2 + 2?", "answer": 4}), "gsm8k")


def test_rows_in_no_known_form_lead_to_the_columns(write):
    with pytest.raises(UserError, match=r"rows.jsonl:1: needs .*, or data.columns to say what .* found answer, quest"):
        read(write(".jsonl", ROWS_OF["gsm8k"]))


def test_columns_of_generated_problems():
    data = DataConfig(source="reasoning_gym", tasks=("gcd",), num_train=8, columns=DATASETS["gsm8k"].columns)
    with pytest.raises(UserError, match=r"data.columns: only for files and hub datasets"):
        read_examples(data, 0)


# ---- Self-Instruct


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_every_instance_of_an_instruction_is_an_example(write, suffix):
    instances = [{"input": "2, 4", "output": "even"}, {"input": "", "output": "even"}]
    row = {"id": "seed_task_0", "instruction": "Name it.", "instances": instances, "is_classification": False}
    assert read(write(suffix, row)) == [named_it("rows", "2, 4"), named_it("rows")]


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        ({"input": "2"}, "instance 2 of `instances` must have `output`"),
        ("even", "instance 2 of `instances` must have `output`"),
        ({"output": 2}, "instance 2: `output` must be text, found a number"),
        ({"output": ""}, "instance 2: the answer is empty"),
        ({"output": None}, "instance 2: the answer is empty"),
    ],
)
def test_a_malformed_instance(write, instance, message):
    row = {"instruction": "Name it.", "instances": [{"output": "even"}, instance]}
    with pytest.raises(UserError, match=rf"rows.jsonl:1[:,] {message}"):
        read(write(".jsonl", row))


# ---- Parquet


def test_parquet_takes_the_same_forms(write):
    rows = [
        {"instruction": "Name it.", "output": "even", "input": None, "messages": None, "client": 3},
        {
            "instruction": None,
            "output": None,
            "input": None,
            "messages": [{"role": "user", "content": "Name it."}, {"role": "assistant", "content": "even"}],
            "client": None,
        },
    ]
    assert read(write(".parquet", *rows)) == [named_it("rows", client="3"), named_it("rows")]


def test_a_parquet_file_cut_short(write):
    path = write(".parquet", *[ROWS_OF["gsm8k"]] * 100)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"rows.parquet: not a whole Parquet file: .*") as caught:
        read(path, "gsm8k")
    assert len(str(caught.value).splitlines()) == 1


def test_a_parquet_file_with_a_spoilt_page(write):
    path = write(".parquet", *[ROWS_OF["gsm8k"]] * 100)
    content = bytearray(path.read_bytes())
    content[4:40] = b"\xff" * 36
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"rows.parquet") as caught:
        read(path, "gsm8k")
    assert len(str(caught.value).splitlines()) == 1


def test_a_parquet_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"data.source: cannot read .*none.parquet: No such file"):
        read(tmp_path / "none.parquet")


def test_a_parquet_file_without_rows(tmp_path):
    parquet.write_table(pyarrow.table({"question": pyarrow.array([], pyarrow.string())}), tmp_path / "none.parquet")
    assert read(tmp_path / "none.parquet") == []  # build_data says so


def test_a_parquet_row_is_named_by_its_number(write):
    with pytest.raises(UserError, match=r"rows.parquet row 1: the answer is empty"):
        read(write(".parquet", ROWS_OF["gsm8k"], {"question": "?", "answer": ""}), "gsm8k")
