"""Greedy answers: the same in any batch, those of a plain loop, and ended by end marks."""

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from parablock_ray.errors import UserError
from parablock_ray.evaluation.generate import generate
from parablock_ray.evaluation.prompts import prompt_ids
from parablock_ray.training.model import END, START, load_model, load_tokenizer
from parablock_ray.training.tokens import tokenize

PROMPTS = ["2 + 2 =", "x", "What is the capital of France?\n", "A longer prompt than the others, é and 漢字.\n", "0"]


@pytest.fixture
def model() -> PreTrainedModel:
    """Weights as they come only repeat the last token; larger ones make the answer depend on all of the prompt."""
    model = load_model("tiny", "float32", 3)
    for layer in model.model.layers:
        for parameter in layer.parameters():
            if parameter.ndim > 1:
                parameter.data *= 8
    return model


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("tiny")


def plain_greedy(model: PreTrainedModel, prompt: list[int], num: int) -> list[int]:
    """No cache, no padding, no batch."""
    ids = list(prompt)
    for _ in range(num):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_answers_are_those_of_a_plain_loop_in_any_batch(model, tokenizer):
    ids = prompt_ids(PROMPTS, tokenizer)
    expected = [tokenizer.decode(plain_greedy(model, prompt.tolist(), 12), skip_special_tokens=True) for prompt in ids]
    assert len(set(expected)) == len(PROMPTS), "these prompts tell nothing apart"
    state = torch.get_rng_state()
    for batch_size in (1, 2, 5, 64):
        assert [answer.text for answer in generate(model, tokenizer, PROMPTS, 12, batch_size)] == expected
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("marks", [None, "list", "one"])
def test_an_answer_ends_at_an_end_mark_of_tokenizer_or_model(model, tokenizer, marks):
    [prompt] = prompt_ids(PROMPTS[:1], tokenizer)
    tokens = plain_greedy(model, prompt.tolist(), 12)
    end = next(token for token in tokens if tokens.index(token) > 0)  # one that does not come first
    length = tokens.index(end)
    if marks is None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    else:
        model.generation_config.eos_token_id = [end, 258] if marks == "list" else end
    [answer] = generate(model, tokenizer, PROMPTS[:1], 12, batch_size=4)
    assert (answer.ended, answer.num_tokens) == (True, length + 1)
    assert answer.text == tokenizer.decode(tokens[:length], skip_special_tokens=True)


def test_max_new_tokens_ends_what_the_model_does_not(model, tokenizer):
    answers = generate(model, tokenizer, PROMPTS, 3, batch_size=2)
    assert {(answer.num_tokens, answer.ended) for answer in answers} <= {(3, False), (3, True), (2, True), (1, True)}
    assert not all(answer.ended for answer in answers)


def test_what_a_model_says_of_sampling_is_ignored(model, tokenizer):
    expected = generate(model, tokenizer, PROMPTS, 8, batch_size=8)
    model.generation_config.update(
        do_sample=True, temperature=5.0, repetition_penalty=3.0, no_repeat_ngram_size=1, num_beams=3
    )
    assert generate(model, tokenizer, PROMPTS, 8, batch_size=8) == expected


def test_prompts_are_tokenised_as_in_training(tokenizer):
    tokenizer.bos_token = START
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, tokenizer.bos_token_id)]
    )
    prompts = ["2 + 2 =", f"{START}user\n2 + 2 =", ""]
    store = tokenize(prompts, ["4"] * 3, tokenizer)
    trained = [
        store.ids[start:][:length].tolist()
        for start, length in zip(store.offsets[:-1], store.answer_start, strict=True)
    ]
    found = [ids.tolist() for ids in prompt_ids(prompts, tokenizer)]
    assert found == trained
    assert [ids.count(tokenizer.bos_token_id) for ids in found] == [1, 1, 1]
    assert tokenizer.eos_token == END


def test_a_prompt_without_room_loses_its_beginning(model, tokenizer, caplog):
    long = "".join(f"{number} " for number in range(300))
    cut, short = generate(model, tokenizer, [long, "x"], 12, batch_size=2)
    assert [cut] == generate(model, tokenizer, [long[-500:]], 12, batch_size=1)
    assert [short] == generate(model, tokenizer, ["x"], 12, batch_size=1)
    assert "1 of 2 prompts lost their beginning" in caplog.text


def test_no_room_for_any_prompt(model, tokenizer):
    with pytest.raises(UserError, match=r"evaluation.max_new_tokens: must be less than the model's context of 512 tok"):
        generate(model, tokenizer, PROMPTS, 512, batch_size=1)
