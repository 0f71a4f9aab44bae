"""Scores of texts, against known values and against the lm-evaluation-harness's own rules."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from parablock_ray.evaluation.scorers import exact_match, final_answer, gsm8k_scores, rouge_l

TRICKY = [
    "#### 18",
    "####18",
    "#### 18.",
    "#### $18",
    "#### 1,800",
    "#### -18 dollars",
    "#### 18.00",
    "First #### 3, then\n#### 18",
    "The answer is 18.",
    "She has 18 eggs, or 2 more than 16.",
    "18",
    "$18.00",
    "no number",
    "",
    "#### ",
    "a - 18",
    "..,,$$",
    "1,234.5,",
    "18 eggs... 7",
    "²18¾",
]
REFERENCES = ["9 * 2 = $<<9*2=18>>18\n#### 18", "#### 1,800", "so\n#### -18", "#### 3", "#### 0.5"]


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("16 - 7 = 9 eggs\n#### 18", 1, 1),
        ("So she makes $18.", 0, 1),
        ("#### 18, which is 2 more than 16", 1, 0),
        ("#### $18", 0, 1),
        ("#### 18\n\nQuestion: What is 2 + 2?\n#### 4", 1, 1),
        ("#### 18.", 1, 1),
        ("#### 18.0", 0, 0),
        ("", 0, 0),
    ],
)
def test_gsm8k_by_hand(text: str, strict: int, flexible: int) -> None:
    found = gsm8k_scores(text, "She makes 9 * 2 = $<<9*2=18>>18.\n#### 18")
    assert found == {"strict_match": strict, "flexible_extract": flexible}


def harness_gsm8k(text: str, reference: str) -> dict[str, float]:
    """The harness's own filters and metric, as its task file sets them."""
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    [package] = find_spec("lm_eval").submodule_search_locations
    task = yaml.safe_load((Path(package) / "tasks" / "gsm8k" / "gsm8k.yaml").read_text())
    [metric] = task["metric_list"]
    settings = {key: metric[key] for key in ("regexes_to_ignore", "ignore_case", "ignore_punctuation")}
    scores = {}
    for each in task["filter_list"]:
        regex = {key: value for key, value in each["filter"][0].items() if key != "function"}
        [[extracted]] = RegexFilter(**regex).apply([[text]], [{}])
        score = exact_match_hf_evaluate([extracted], [reference], **settings)["exact_match"]
        scores[each["name"].replace("-", "_")] = float(score)
    return scores


@pytest.mark.parametrize("reference", REFERENCES)
def test_gsm8k_is_the_harnesss_on_tricky_answers(reference: str) -> None:
    pytest.importorskip("lm_eval", reason="the oracle: pip install 'parablock-ray[lm-eval]'")
    assert [gsm8k_scores(text, reference) for text in TRICKY] == [harness_gsm8k(text, reference) for text in TRICKY]


@given(st.text("0123456789$.,-# \nx=é", max_size=30), st.sampled_from(REFERENCES))
def test_gsm8k_is_the_harnesss_on_any_answer(text: str, reference: str) -> None:
    pytest.importorskip("lm_eval", reason="the oracle: pip install 'parablock-ray[lm-eval]'")
    assert gsm8k_scores(text, reference) == harness_gsm8k(text, reference)


@pytest.mark.parametrize(
    ("text", "reference", "score"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", 1.0),
        ("The cat, sat!", "the cat sat", 1.0),
        ("police kill the gunman", "police killed the gunman", 0.75),  # Lin, 2004, section 3.1
        ("the gunman kill police", "police killed the gunman", 0.5),  # the same
        ("a b", "a b c d", 2 / 3),
        ("x", "y", 0.0),
        ("", "y", 0.0),
    ],
)
def test_rouge_l_of_known_pairs(text: str, reference: str, score: float) -> None:
    assert rouge_l(text, reference) == pytest.approx(score)


def test_exact_match_looks_past_white_space_only() -> None:
    assert exact_match(" 12\n eggs ", "12 eggs") == 1
    assert exact_match("12 Eggs", "12 eggs") == 0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" 12 \n", "12"),
        ("3 + 4 = 7\n#### 7\nDone.", "7"),
        ("#### 1\n#### 2", "2"),
        ("I think <answer>\n4, 5\n</answer> is it", "4, 5"),
        ("<answer>1</answer> no, <answer>2</answer>", "2"),
        ("####", ""),
    ],
)
def test_the_final_answer_of_a_text(text: str, answer: str) -> None:
    assert final_answer(text) == answer
