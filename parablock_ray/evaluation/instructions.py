"""Instructions that a program can check: those of IFEval (Zhou et al., arXiv 2311.07911, table 1).

Ids and arguments are those of IFEval's file, https://github.com/google-research/google-research, folder
instruction_following_eval. Each kind is a function of the text and the arguments of its row; a new kind is a function
and an entry in `INSTRUCTIONS`. Where IFEval's own checker reads a keyword as a regular expression, here it is plain
text. Sentences are found by NLTK's Punkt with a list of abbreviations in place of its trained model, which would have
to be downloaded.
"""

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langdetect import PROFILES_DIRECTORY, DetectorFactory, LangDetectException
from nltk.tokenize import NLTKWordTokenizer
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

from parablock_ray.evaluation.results import Tally

CONSTRAINED_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
RELATIONS = ("less than", "at least")
ABBREVIATIONS = (
    *("dr", "mr", "mrs", "ms", "prof", "capt", "gen", "lt", "col", "sgt", "rev", "st", "jr", "sr", "inc", "ltd", "co"),
    *("corp", "vs", "etc", "e.g", "i.e", "a.m", "p.m", "u.s", "u.k", "ph.d"),
)

ARGUMENTS: Mapping[str, type] = {
    "capital_frequency": int,
    "capital_relation": str,
    "end_phrase": str,
    "first_word": str,
    "forbidden_words": list,
    "frequency": int,
    "keyword": str,
    "keywords": list,
    "language": str,
    "let_frequency": int,
    "let_relation": str,
    "letter": str,
    "nth_paragraph": int,
    "num_bullets": int,
    "num_highlights": int,
    "num_paragraphs": int,
    "num_placeholders": int,
    "num_sections": int,
    "num_sentences": int,
    "num_words": int,
    "postscript_marker": str,
    "prompt_to_repeat": str,
    "relation": str,
    "section_spliter": str,
}
"""The type of every argument of an instruction; of a list, its members are text."""


@dataclass(frozen=True)
class Kind:
    """`follows(text, *arguments)`: whether a text that is not blank follows the instruction."""

    arguments: tuple[str, ...]
    follows: Callable[..., bool]


@dataclass(frozen=True)
class Instruction:
    """One instruction of a prompt. Raises ValueError for an id that is unknown and for arguments that do not fit."""

    id: str
    arguments: Mapping[str, Any]  # IFEval's `kwargs`: those of other kinds may stand there as null

    def __post_init__(self) -> None:
        if self.id not in INSTRUCTIONS:
            raise ValueError(f"unknown instruction {self.id!r} (allowed: {', '.join(INSTRUCTIONS)})")
        for name in INSTRUCTIONS[self.id].arguments:
            value = self.arguments.get(name)
            if not isinstance(value, ARGUMENTS[name]) or isinstance(value, bool):
                needed = {int: "a whole number", str: "text", list: "a list of texts"}[ARGUMENTS[name]]
                raise ValueError(f"{self.id} needs {needed} as {name!r} (found {json.dumps(value)})")
            if isinstance(value, list) and not all(isinstance(member, str) for member in value):
                raise ValueError(f"{self.id} needs a list of texts as {name!r} (found {json.dumps(value)})")
            if name.endswith("relation") and value not in RELATIONS:
                raise ValueError(f"{self.id}: {name!r} must be {' or '.join(RELATIONS)} (found {value!r})")

    def followed_by(self, text: str) -> bool:
        """An empty text follows nothing."""
        kind = INSTRUCTIONS[self.id]
        return bool(text.strip()) and kind.follows(text, *(self.arguments[name] for name in kind.arguments))


def instruction_tallies(text: str, instructions: Sequence[Instruction]) -> dict[str, Tally]:
    """IFEval's four accuracies (section 2.2): of each instruction by itself, and of all of a prompt's together; strict,
    and loose, where it is enough that one of `relaxed(text)` follows an instruction."""
    strict = [instruction.followed_by(text) for instruction in instructions]
    loose = [any(map(instruction.followed_by, relaxed(text))) for instruction in instructions]
    return {
        "prompt_strict": Tally(float(all(strict)), 1),
        "prompt_loose": Tally(float(all(loose)), 1),
        "instruction_strict": Tally(float(sum(strict)), len(strict)),
        "instruction_loose": Tally(float(sum(loose)), len(loose)),
    }


def relaxed(text: str) -> Iterator[str]:
    """The text, and it without its first line, its last line, both: with and without asterisks."""
    lines = text.split("\n")
    for variant in (text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))):
        yield variant
        yield variant.replace("*", "")


# ---- keywords


def _has_all(text: str, keywords: Sequence[str]) -> bool:
    return all(_count(text, keyword) for keyword in keywords)


def _has_none(text: str, words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in words)


def _keyword_frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return _compare(_count(text, keyword.strip()), relation, frequency)


def _letter_frequency(text: str, letter: str, frequency: int, relation: str) -> bool:
    return _compare(text.lower().count(letter.strip().lower()), relation, frequency)


# ---- length


def _num_words(text: str, num: int, relation: str) -> bool:
    return _compare(len(re.findall(r"\w+", text)), relation, num)


def _num_sentences(text: str, num: int, relation: str) -> bool:
    return _compare(len(_sentences(text)), relation, num)


def _num_paragraphs(text: str, num: int) -> bool:
    """Paragraphs with `***` between them."""
    return _num_parts(re.split(r"\s?\*\*\*\s?", text)) == num


def _nth_paragraph_starts(text: str, num: int, nth: int, word: str) -> bool:
    """Paragraphs with a blank line between them; the first word without quotation marks and what follows it."""
    paragraphs = text.split("\n\n")
    if sum(bool(paragraph.strip()) for paragraph in paragraphs) != num or not 1 <= nth <= num:
        return False
    words = paragraphs[nth - 1].split()
    return bool(words) and re.split(r"[.,?!'\"]", words[0].lstrip("'").lstrip('"'))[0].lower() == word.lower()


# ---- content and format


def _num_placeholders(text: str, num: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num


def _postscript(text: str, marker: str) -> bool:
    pattern = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(marker.strip(), re.escape(marker.strip().lower()))
    return re.search(pattern, text.lower()) is not None


def _num_bullets(text: str, num: int) -> bool:
    """Lines that begin with `*` or `-`."""
    return len(re.findall(r"^\s*(?:\*[^*].*|-.*)$", text, re.MULTILINE)) == num


def _constrained(text: str) -> bool:
    return any(answer in text for answer in CONSTRAINED_ANSWERS)


def _num_highlights(text: str, num: int) -> bool:
    """`*like this*` or `**like this**`."""
    single = [part.strip("*") for part in re.findall(r"\*[^\n*]*\*", text)]
    double = [part.strip("*") for part in re.findall(r"\*\*[^\n*]*\*\*", text)]
    return sum(bool(part.strip()) for part in single + double) >= num


def _num_sections(text: str, mark: str, num: int) -> bool:
    """`Section 1`, `Section 2`, …"""
    return len(re.findall(rf"\s?{re.escape(mark.strip())}\s?\d+\s?", text)) >= num


def _is_json(text: str) -> bool:
    """With or without a fence of Markdown around it."""
    bare = re.sub(r"^```(?:json|Json|JSON)?|```$", "", text.strip()).strip()
    try:
        json.loads(bare)
    except ValueError:
        return False
    return True


def _has_title(text: str) -> bool:
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", text))


# ---- combinations, start and end, case, punctuation, language


def _two_answers(text: str) -> bool:
    """Two different answers with `******` between them."""
    parts = text.split("******")
    answers = {part.strip() for part in parts if part.strip()}
    return _num_parts(parts) == 2 and len(answers) == 2


def _repeats(text: str, prompt: str) -> bool:
    return text.strip().lower().startswith(prompt.strip().lower())


def _ends_with(text: str, phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(phrase.strip().lower())


def _quoted(text: str) -> bool:
    bare = text.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


def _num_capital_words(text: str, num: int, relation: str) -> bool:
    words = [word for sentence in _sentences(text) for word in NLTKWordTokenizer().tokenize(sentence)]
    return _compare(sum(word.isupper() for word in words), relation, num)


def _english_capitals(text: str) -> bool:
    return text.isupper() and _in_language(text, "en")


def _english_lowercase(text: str) -> bool:
    return text.islower() and _in_language(text, "en")


def _no_comma(text: str) -> bool:
    return "," not in text


def _in_language(text: str, code: str) -> bool:
    """By the package langdetect, as in IFEval; a text without any letters is in every language."""
    detector = _languages().create()
    detector.append(text)
    try:
        return bool(detector.detect() == code)
    except LangDetectException:
        return True


# ---- what they share


def _compare(num: int, relation: str, threshold: int) -> bool:
    return num < threshold if relation == "less than" else num >= threshold


def _count(text: str, keyword: str) -> int:
    return len(re.findall(re.escape(keyword), text, re.IGNORECASE))


def _num_parts(parts: Sequence[str]) -> int:
    """How many parts there are; the first and the last may be blank and do not count, else a blank one makes it 0."""
    filled = [bool(part.strip()) for part in parts]
    return sum(filled) if all(filled[1:-1]) else 0


def _sentences(text: str) -> list[str]:
    return list(_sentence_tokenizer().tokenize(text))


@functools.cache
def _sentence_tokenizer() -> PunktSentenceTokenizer:
    parameters = PunktParameters()
    parameters.abbrev_types = set(ABBREVIATIONS)
    return PunktSentenceTokenizer(parameters)


@functools.cache
def _languages() -> DetectorFactory:
    """A factory of our own: langdetect's global one draws with a seed of its own choice."""
    factory = DetectorFactory()
    factory.set_seed(0)
    factory.load_profile(PROFILES_DIRECTORY)
    return factory


INSTRUCTIONS: Mapping[str, Kind] = {
    "keywords:existence": Kind(("keywords",), _has_all),
    "keywords:frequency": Kind(("keyword", "frequency", "relation"), _keyword_frequency),
    "keywords:forbidden_words": Kind(("forbidden_words",), _has_none),
    "keywords:letter_frequency": Kind(("letter", "let_frequency", "let_relation"), _letter_frequency),
    "language:response_language": Kind(("language",), _in_language),
    "length_constraints:number_sentences": Kind(("num_sentences", "relation"), _num_sentences),
    "length_constraints:number_paragraphs": Kind(("num_paragraphs",), _num_paragraphs),
    "length_constraints:number_words": Kind(("num_words", "relation"), _num_words),
    "length_constraints:nth_paragraph_first_word": Kind(
        ("num_paragraphs", "nth_paragraph", "first_word"), _nth_paragraph_starts
    ),
    "detectable_content:number_placeholders": Kind(("num_placeholders",), _num_placeholders),
    "detectable_content:postscript": Kind(("postscript_marker",), _postscript),
    "detectable_format:number_bullet_lists": Kind(("num_bullets",), _num_bullets),
    "detectable_format:constrained_response": Kind((), _constrained),
    "detectable_format:number_highlighted_sections": Kind(("num_highlights",), _num_highlights),
    "detectable_format:multiple_sections": Kind(("section_spliter", "num_sections"), _num_sections),
    "detectable_format:json_format": Kind((), _is_json),
    "detectable_format:title": Kind((), _has_title),
    "combination:two_responses": Kind((), _two_answers),
    "combination:repeat_prompt": Kind(("prompt_to_repeat",), _repeats),
    "startend:end_checker": Kind(("end_phrase",), _ends_with),
    "startend:quotation": Kind((), _quoted),
    "change_case:capital_word_frequency": Kind(("capital_frequency", "capital_relation"), _num_capital_words),
    "change_case:english_capital": Kind((), _english_capitals),
    "change_case:english_lowercase": Kind((), _english_lowercase),
    "punctuation:no_comma": Kind((), _no_comma),
}
"""Every instruction by IFEval's id."""
