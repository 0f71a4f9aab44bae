"""Multiple choice: the choice that the model finds most likely."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from parablock_ray.evaluation.likelihood import answer_nlls
from parablock_ray.evaluation.prompts import with_room
from parablock_ray.training.model import max_context
from parablock_ray.training.tokens import TokenizedExamples, tokenize


@dataclass(frozen=True)
class Choices:
    """A question as the model reads it, and what it is given to choose from."""

    prompt: str
    choices: tuple[str, ...]


def check_choices(choices: Sequence[str], tokenizer: PreTrainedTokenizerBase, context: int) -> None:
    """Raises ValueError for a choice that leaves no token of its question in the model's context."""
    num_tokens = max(len(ids) for ids in tokenizer(list(choices), add_special_tokens=False, verbose=False)["input_ids"])
    if num_tokens >= context:
        raise ValueError(
            f"`choices`: one has {num_tokens} tokens, which must be less than the model's context of {context}"
        )


def choice_log_likelihoods(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Choices], batch_size: int
) -> list[list[float]]:
    """log P(choice | prompt) in nats, without an end mark, for every choice of every question.

    The choices fit the model's context (`check_choices`). Prompts that leave no room for theirs lose their beginning.
    """
    asked = [(question.prompt, choice) for question in questions for choice in question.choices]
    prompts, choices = (list(column) for column in zip(*asked, strict=True))
    examples = _without_end(tokenize(prompts, choices, tokenizer), max_context(model.config))
    found = iter(answer_nlls(model, examples, range(len(examples)), batch_size))
    return [[-next(found).total for _ in question.choices] for question in questions]


def choice_scores(log_likelihoods: Sequence[float], choices: Sequence[str], answer: int) -> dict[str, float]:
    """`acc`: the most likely choice is the right one. `acc_norm`: the most likely for each of its characters is.

    As in the lm-evaluation-harness, `process_results` of its multiple-choice tasks; ties go to the first.
    """
    lengths = np.array([len(choice) for choice in choices])
    return {
        "acc": float(np.argmax(log_likelihoods) == answer),
        "acc_norm": float(np.argmax(np.array(log_likelihoods) / lengths) == answer),
    }


def _without_end(examples: TokenizedExamples, context: int) -> TokenizedExamples:
    """Without end marks; what is longer than the context loses its beginning."""
    whole = [examples.ids[start : end - 1] for start, end in pairwise(examples.offsets)]
    kept = with_room(whole, context)
    answer_start = examples.answer_start - np.array([len(a) - len(b) for a, b in zip(whole, kept, strict=True)])
    assert (answer_start >= 1).all(), "check_choices, and no prompt is empty"
    return TokenizedExamples(
        ids=np.concatenate(kept),
        offsets=np.cumsum([0, *map(len, kept)], dtype=np.int64),
        answer_start=answer_start.astype(np.int32),
        pad_id=examples.pad_id,
    )
