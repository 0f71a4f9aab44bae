"""A template of one's own."""

import pytest

from parablock_ray.errors import UserError
from parablock_ray.training.model import load_tokenizer
from parablock_ray.training.rows import Example, Message
from parablock_ray.training.templates import prompt_text

OWN = "Q: {instruction} ({input})\nA: "


def question(text: str, input: str = "") -> Example:
    return Example((Message("user", text),), input=input, answer="4", task="sum", client=None)


def test_placeholders_are_filled_once():
    tokenizer = load_tokenizer("tiny")
    assert prompt_text(question("Add {input}.", "2 {instruction}"), OWN, tokenizer) == (
        "Q: Add {input}. (2 {instruction})\nA: "
    )
    assert prompt_text(question("2+2?"), OWN, tokenizer) == "Q: 2+2? ()\nA: "
    assert prompt_text(question("2+2?"), "{ {instruction} }", tokenizer) == "{ 2+2? }"


def test_an_input_that_the_model_would_not_see():
    with pytest.raises(UserError, match=r"data.template: it has no {input}, but there are examples with an `input`"):
        prompt_text(question("Add.", "2 2"), "Q: {instruction}\nA: ", load_tokenizer("tiny"))
