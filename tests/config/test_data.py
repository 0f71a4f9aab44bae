"""`data:`: what each mistake in it says."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from parablock_ray.config import load_config, save_resolved
from parablock_ray.config.data import Arrival
from parablock_ray.config.presets import DATASETS
from parablock_ray.errors import UserError

MINIMAL = {
    "name": "run",
    "out": "runs/run",
    "model": {"name": "tiny"},
    "data": {"source": "rows.jsonl"},
    "clients": {"num": 4},
    "method": {"name": "parablock"},
}
GENERATED = ("data.source=reasoning_gym", "data.tasks=[gcd, lcm]")


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.columns=gsm9k"],
            "data.columns: no preset 'gsm9k'; allowed: alpaca_gpt4, math_instruct, metamath_qa, gsm8k, dolly, or "
            "{instruction: …, output: …}",
        ),
        (["data.columns={instruction: q}"], "data.columns.output: required, but missing"),
        (
            ["data.columns={instruction: q, output: a, question: x}"],
            "data.columns.question: unknown key (allowed: instruction, output, input, task, client)",
        ),
        (
            ["data.template=alpacca"],
            "data.template: must be plain, alpaca, chat, or a text with {instruction} in it (got 'alpacca'); did you "
            "mean 'alpaca'?",
        ),
        (
            ["data.template='Q: {question} A: '"],
            "data.template: unknown placeholder {question} (allowed: {instruction}, {input})",
        ),
        (
            ["data.template='Q: {input} A: '"],
            "data.template: must be plain, alpaca, chat, or a text with {instruction} in it (got 'Q: {input} A: ')",
        ),
        (["data.arrival={every: 2, share: 0.1}"], "data.arrival.initial: required, but missing"),
        (
            ["data.arrival={initial: 0, every: 2, share: 0.1}"],
            "data.arrival.initial: must be greater than 0 (got 0)",
        ),
        (["data.arrival=0.5"], "data.arrival: must be a mapping (got 0.5)"),
        (["data.packing=1"], "data.packing: must be true or false (got 1)"),
        (
            ["data.per_client=4"],
            "data.per_client: only for `data.source: reasoning_gym`, whose examples are made; leave it out",
        ),
        (
            [*GENERATED],
            "data.num_train: 'reasoning_gym' makes any number of examples; say how many to train on, or how many each "
            "client holds (data.per_client)",
        ),
        (
            [*GENERATED, "data.per_client=4", "data.num_train=80"],
            "data.per_client: each client's examples are made for it; leave out data.num_train",
        ),
        (
            [*GENERATED, "data.per_client=4", "data.split={name: dirichlet, alpha: 1}"],
            "data.split: dirichlet divides examples that are there; with data.per_client each client's are made when "
            "it is visited (allowed: iid, natural)",
        ),
    ],
)
def test_a_mistake_is_one_line(minimal: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(minimal, overrides)
    assert str(caught.value) == message


def test_a_preset_stands_for_its_columns(minimal: Path, tmp_path: Path) -> None:
    config = load_config(minimal, ["data.columns=gsm8k"])
    assert config.data.columns == DATASETS["gsm8k"].columns
    save_resolved(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml", []) == config


def test_braces_of_ones_own_are_text(minimal: Path) -> None:
    template = '{{"q": {instruction}, {}: { input }} \\boxed{}'
    assert load_config(minimal, [f"data.template='{template}'"]).data.template == template


@given(
    num_examples=st.integers(1, 10_000),
    initial=st.floats(0, 1, exclude_min=True),
    every=st.integers(1, 20),
    share=st.floats(0, 1, exclude_min=True),
    round=st.integers(0, 300),
)
def test_examples_come_in_and_stay(num_examples: int, initial: float, every: int, share: float, round: int) -> None:
    arrival = Arrival(initial=initial, every=every, share=share)
    here, next_round = (arrival.num_arrived(num_examples, each) for each in (round, round + 1))
    assert 1 <= here <= next_round <= num_examples
    if (round + 1) % every:
        assert here == next_round
    ideal = min(1.0, initial + share * (round // every)) * num_examples
    assert here == 1 or abs(here - ideal) <= 0.5 + 1e-6


def test_thirds_add_up() -> None:
    arrival = Arrival(initial=0.1, every=1, share=0.1)
    assert [arrival.num_arrived(30, round) for round in range(11)] == [*range(3, 31, 3), 30]
