"""Checkable instructions: by hand, and against the lm-evaluation-harness's copy of IFEval's own checkers."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parablock_ray.evaluation.instructions import (
    ARGUMENTS,
    INSTRUCTIONS,
    Instruction,
    instruction_tallies,
    relaxed,
)

LESS, LEAST = "less than", "at least"
EXAMPLES: list[tuple[str, dict[str, Any], str, str]] = [
    # id, arguments, a text that follows it, one that does not
    ("keywords:existence", {"keywords": ["Block", "ray"]}, "blocks and RAYS", "blocks"),
    ("keywords:frequency", {"keyword": "it", "frequency": 2, "relation": LEAST}, "It is it", "it is"),
    ("keywords:forbidden_words", {"forbidden_words": ["ice"]}, "nice", "Ice cream"),
    ("keywords:letter_frequency", {"letter": "E", "let_frequency": 3, "let_relation": LESS}, "Eel", "eels eat"),
    ("language:response_language", {"language": "de"}, "Das ist ein ganz normaler Satz.", "This is a plain sentence."),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": LESS}, "Dr. Lin left.", "He left. So?"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One.\n***\nTwo.\n***\n", "One.\n\nTwo."),
    ("length_constraints:number_words", {"num_words": 4, "relation": LEAST}, "one, two, three-four", "one two"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Yet"},
        "One.\n\n'yet, two.",
        "One.\n\nYetis.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name], [address]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye\np. p.s. x", "P.S. x"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n - b\n**c**", "* a\n* b\n* c"),
    ("detectable_format:constrained_response", {}, "My answer is no.", "No."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a* **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2\nb",
        "Section 1 Section 2",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<A title>>\nText", "<< >>"),
    ("combination:two_responses", {}, "a\n******\nb", "a ****** a"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say a."}, " say A. a", "a"),
    ("startend:end_checker", {"end_phrase": "The end."}, 'So. the end."', "The end. So."),
    ("startend:quotation", {}, ' "a" ', '"'),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": LESS}, "An ACE.", "AN ACE."),
    ("change_case:english_capital", {}, "THIS IS ALL IN CAPITALS", "THIS is not"),
    ("change_case:english_lowercase", {}, "this is all in small letters", "This is not"),
    ("punctuation:no_comma", {}, "a b", "a, b"),
]
WITHOUT_TRAINED_MODELS = [  # of the harness; the others would have to be downloaded, or draw from a global seed
    example
    for example in EXAMPLES
    if example[0].partition(":")[0] not in ("language", "change_case") and "sentences" not in example[0]
]


@pytest.mark.parametrize(("id", "arguments", "good", "bad"), EXAMPLES, ids=[example[0] for example in EXAMPLES])
def test_each_instruction_by_hand(id: str, arguments: dict[str, Any], good: str, bad: str) -> None:
    instruction = Instruction(id, arguments)
    assert instruction.followed_by(good)
    assert not instruction.followed_by(bad)
    assert not instruction.followed_by(" \n")


def test_every_instruction_and_every_argument_has_an_example() -> None:
    assert [example[0] for example in EXAMPLES] == list(INSTRUCTIONS)
    assert {name for kind in INSTRUCTIONS.values() for name in kind.arguments} == set(ARGUMENTS)


@pytest.fixture(scope="module")
def oracle() -> Any:
    """IFEval's checkers. Their module wants to download a sentence splitter; it is told that it has one."""
    pytest.importorskip("lm_eval", reason="the oracle: pip install 'lm-eval[ifeval]'")
    pytest.importorskip("immutabledict", reason="the oracle: pip install 'lm-eval[ifeval]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nltk.data.find", lambda name: name)
        from lm_eval.tasks.ifeval import utils
    return utils


PIECES = (
    *(
        "\n",
        "\n\n",
        "***",
        "******",
        "*",
        "-",
        "[x]",
        "<<",
        ">>",
        '"',
        "'",
        "{",
        "}",
        "1",
        "SECTION 1",
        "P.S.",
        "p. p.s.",
    ),
    *(" ", "ice", "it", "Block", "ray", "e", "Yet", "The end.", "My answer is no.", "Say a.", ",", "```json", "```"),
)


@pytest.mark.parametrize("example", WITHOUT_TRAINED_MODELS, ids=[example[0] for example in WITHOUT_TRAINED_MODELS])
@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join))
def test_each_instruction_is_the_oracles(
    oracle: Any, example: tuple[str, dict[str, Any], str, str], pieces: str
) -> None:
    id, arguments, good, bad = example
    row = oracle.InputExample(key=0, instruction_id_list=[id], prompt="", kwargs=[arguments])
    for text in (pieces, good, bad, good + pieces, pieces + good):
        found = instruction_tallies(text, [Instruction(id, arguments)])
        strict = oracle.test_instruction_following_strict(row, text)
        loose = oracle.test_instruction_following_loose(row, text)
        assert bool(found["prompt_strict"].total) == strict.follow_all_instructions
        assert bool(found["prompt_loose"].total) == loose.follow_all_instructions


def test_accuracies_of_a_prompt_and_of_its_instructions() -> None:
    instructions = [
        Instruction("punctuation:no_comma", {}),
        Instruction("startend:quotation", {}),
        Instruction("length_constraints:number_words", {"num_words": 3, "relation": LESS}),
    ]
    found = instruction_tallies('Sure:\n"one two"', instructions)
    assert found["prompt_strict"] == (0, 1)
    assert found["instruction_strict"] == (1, 3)
    assert found["prompt_loose"] == (1, 1)
    assert found["instruction_loose"] == (3, 3)


def test_what_loose_forgives() -> None:
    assert set(relaxed("a\n*b*\nc")) == {"a\n*b*\nc", "a\nb\nc", "*b*\nc", "b\nc", "a\n*b*", "a\nb", "*b*", "b"}


@pytest.mark.parametrize(
    ("id", "arguments", "message"),
    [
        ("length_constraints:number_wrods", {}, "unknown instruction 'length_constraints:number_wrods'.*allowed: key"),
        ("startend:end_checker", {"end_phrase": None}, "needs text as 'end_phrase' .found null"),
        ("length_constraints:number_paragraphs", {"num_paragraphs": "2"}, "needs a whole number as 'num_paragraphs'"),
        ("length_constraints:number_paragraphs", {"num_paragraphs": True}, "needs a whole number"),
        ("keywords:existence", {"keywords": ["a", 1]}, "needs a list of texts as 'keywords'"),
        (
            "length_constraints:number_words",
            {"num_words": 2, "relation": "more than"},
            "'relation' must be less than or at least .found 'more than'",
        ),
    ],
)
def test_instructions_that_cannot_be_checked(id: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Instruction(id, arguments)
