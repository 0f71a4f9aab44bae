"""Examples made when a client is visited: nothing before, and the same for everyone who asks."""

import pickle

import numpy as np
import pytest

from parablock_ray.config.data import DataConfig
from parablock_ray.errors import UserError
from parablock_ray.training import generated as generated_module
from parablock_ray.training.data import build_data
from parablock_ray.training.model import load_tokenizer
from parablock_ray.training.tokens import tokenize

TASKS = ("chain_sum", "gcd", "count_primes")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny")


def made_for_each(**settings) -> DataConfig:
    return DataConfig(**{"source": "reasoning_gym", "tasks": TASKS, "per_client": 4, "num_eval": 9, **settings})


def texts(held, tokenizer) -> list[str]:
    return [tokenizer.decode(held.store.tokens(i)) for i in held.indices]


def prompts(store, tokenizer) -> list[str]:
    return [tokenizer.decode(store.tokens(i)[: store.answer_start[i]]) for i in range(len(store))]


@pytest.fixture
def num_made(monkeypatch) -> list[int]:
    """One element for each problem that is made."""
    made = []

    def counting(task, size, random):
        for example in problems(task, size, random):
            made.append(1)
            yield example

    problems = generated_module.problems
    monkeypatch.setattr(generated_module, "problems", counting)
    return made


def test_a_hundred_thousand_clients_cost_what_few_cost(tokenizer, num_made):
    data = build_data(made_for_each(split="natural"), 100_000, 0, tokenizer, 512)
    assert len(num_made) <= 3 * (9 + 3 * 4)  # held out, and a client of each task, with what is passed over
    assert data.clients.num_examples == (4,) * 100_000
    assert len(pickle.dumps(data)) < 1_000_000
    num_built = len(num_made)
    build_data(made_for_each(split="natural"), 3, 0, tokenizer, 512)
    assert len(num_made) == 2 * num_built
    assert len(data.clients.held_by(99_999).indices) == 4


def test_what_a_client_gets_does_not_depend_on_who_asks_or_when(tokenizer):
    data = build_data(made_for_each(), 1000, 0, tokenizer, 512)
    asked_last = [texts(data.clients.held_by(client), tokenizer) for client in (3, 999, 17)][-1]
    elsewhere = pickle.loads(pickle.dumps(data)).clients.held_by(17)
    fewer_clients = build_data(made_for_each(), 18, 0, tokenizer, 512).clients.held_by(17)
    assert asked_last == texts(elsewhere, tokenizer) == texts(fewer_clients, tokenizer)
    other_seed = build_data(made_for_each(), 1000, 1, tokenizer, 512).clients.held_by(17)
    assert asked_last != texts(other_seed, tokenizer) != texts(data.clients.held_by(18), tokenizer)


def test_a_visit_asks_the_tokenizer_once_for_each_task(tokenizer, monkeypatch):
    """And what it takes from several answers is what one answer would have been."""
    asked = []

    def counted(prompts, answers, tokenizer):
        asked.append((prompts, answers))
        return tokenize(prompts, answers, tokenizer)

    clients = build_data(made_for_each(per_client=6, num_eval=1), 6, 0, tokenizer, max_context=512).clients
    monkeypatch.setattr(generated_module, "tokenize", counted)
    held = clients.held_by(1)
    assert len(asked) == len(TASKS)
    in_turn = [(task[0][turn], task[1][turn]) for turn in range(2) for task in asked]
    at_once = tokenize([prompt for prompt, _ in in_turn], [answer for _, answer in in_turn], tokenizer)
    found = held.store
    for name in ("ids", "offsets", "answer_start"):
        assert np.array_equal(getattr(found, name), getattr(at_once, name))
        assert getattr(found, name).dtype == getattr(at_once, name).dtype


def test_natural_clients_have_one_task_and_iid_clients_all(tokenizer):
    words = ("arithmetic problem", "Greatest Common", "prime numbers")

    def counts(split: str, client: int) -> list[int]:
        data = build_data(made_for_each(split=split), 12, 0, tokenizer, 512)
        held = texts(data.clients.held_by(client), tokenizer)
        return [sum(each in text for text in held) for each in words]

    assert [counts("natural", client) for client in (0, 1, 2, 3)] == [[4, 0, 0], [0, 4, 0], [0, 0, 4], [4, 0, 0]]
    assert [counts("iid", client) for client in (0, 1, 2)] == [[2, 1, 1], [1, 2, 1], [1, 1, 2]]


def test_labels_are_known_without_making_anything(tokenizer):
    natural = build_data(made_for_each(split="natural"), 5, 0, tokenizer, 512).report
    assert natural.labels == {"chain_sum": (4, 0, 0, 4, 0), "gcd": (0, 4, 0, 0, 4), "count_primes": (0, 0, 4, 0, 0)}
    assert build_data(made_for_each(), 5, 0, tokenizer, 512).report.labels == {"all tasks in turn": (4,) * 5}
    assert natural.line().startswith("20 training and 9 held-out examples of 3 tasks, ")
    assert "at most (of the first 3 client(s); a client's examples are made when it is visited)" in natural.line()


def test_no_client_gets_a_held_out_prompt(tokenizer):
    """coin_flip has few questions, so that many draws are passed over."""
    data = build_data(made_for_each(tasks=("coin_flip",), num_eval=60, per_client=10), 30, 0, tokenizer, 512)
    held_out = set(prompts(data.eval, tokenizer))
    assert len(data.eval) == 60
    for client in range(30):
        held = data.clients.held_by(client)
        assert len(held.indices) == 10
        assert not held_out & set(prompts(held.store, tokenizer))
    free, _ = data.clients.source.drawn(["coin_flip"] * 300, set(), "reasoning_gym client", 0)
    assert held_out & set(prompts(free, tokenizer)), "without the refusal there would be some"


def test_examples_are_cut_and_those_that_do_not_fit_passed_over(tokenizer):
    data = build_data(made_for_each(tasks=("chain_sum",), max_length=80), 4, 0, tokenizer, 512)
    assert data.max_length == 80
    assert data.report.num_truncated > 0
    for client in range(4):
        store = data.clients.held_by(client).store
        assert store.lengths.max() <= 80
        assert np.all(store.answer_start < 80)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ("chain_sun",)}, "no task 'chain_sun'; nearest: chain_sum"),
        ({"split": "natural"}, "data.split: natural gives every client one task, but there are 3 for clients.num = 2"),
        ({"max_length": 10}, r"data.tasks: 450 problems of 'chain_sum' do not give 3 .* shorter than 10 tokens"),
    ],
)
def test_mistakes(tokenizer, settings, message):
    with pytest.raises(UserError, match=message):
        build_data(made_for_each(**settings), 2, 0, tokenizer, 512)
