"""Scores of a generated text: text in, number out. Nothing here knows a model."""

import functools
import re

from rouge_score.rouge_scorer import RougeScorer

# The rules of the lm-evaluation-harness's task gsm8k, version 3.0:
# https://github.com/EleutherAI/lm-evaluation-harness, lm_eval/tasks/gsm8k/gsm8k.yaml
_GSM8K_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_GSM8K_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_GSM8K_NOISE = (re.compile(","), re.compile(r"\$"), re.compile(r"(?s).*#### "), re.compile(r"\.$"))
_GSM8K_END = ("Question:", "</s>", "<|im_end|>")

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def exact_match(text: str, reference: str) -> float:
    """1 if both are the same, white space apart, else 0."""
    return float(text.split() == reference.split())


def gsm8k_scores(text: str, reference: str) -> dict[str, float]:
    """GSM8K's exact match (arXiv 2110.14168) with the two filters of the lm-evaluation-harness.

    `strict_match`: the first number after `#### `. `flexible_extract`: the last number of the text. Both without
    commas, dollar signs and a full stop at the end, compared as text. What follows a new `Question:` does not count.
    """
    for mark in _GSM8K_END:
        text = text.partition(mark)[0]
    strict, flexible = _GSM8K_STRICT.search(text), _GSM8K_FLEXIBLE.findall(text)
    expected = _bare_number(reference)
    return {
        "strict_match": float(strict is not None and _bare_number(strict[1]) == expected),
        "flexible_extract": float(bool(flexible) and _bare_number(flexible[-1]) == expected),
    }


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L's F-measure, 0 to 1: longest common subsequence of words (Lin, 2004, https://aclanthology.org/W04-1013).

    As the package rouge-score has it, without stemming.
    """
    return float(_rouge_scorer().score(reference, text)["rougeL"].fmeasure)


def final_answer(text: str) -> str:
    """What a text gives as its answer: the line after the last `####` (GSM8K's form), else what stands last in
    `<answer>` tags (reasoning_gym's form), else the whole text; without white space around it."""
    _, mark, after = text.rpartition("####")
    if mark:
        return after.strip().partition("\n")[0].strip()
    tagged = _TAGGED.findall(text)
    return (tagged[-1] if tagged else text).strip()


def _bare_number(text: str) -> str:
    for noise in _GSM8K_NOISE:
        text = noise.sub("", text)
    return text.lower()


@functools.cache
def _rouge_scorer() -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=False)
