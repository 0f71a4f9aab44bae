"""Models: the built-in one, folders, digests, and names that cannot be loaded."""

import hashlib
import json
import shutil

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from parablock_ray.errors import UserError
from parablock_ray.training.model import (
    load_model,
    load_tokenizer,
    max_context,
    model_config,
    num_layers,
    save_model,
    weights_sha256,
)


@pytest.fixture(scope="module")
def saved_tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(load_model("tiny", "float32", 0), load_tokenizer("tiny"), folder)
    return folder


@pytest.fixture
def offline(monkeypatch):
    """The hub fails at once, rather than after half a minute of retries."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def digest(model) -> str:
    return weights_sha256(model.named_parameters())


def test_tiny_is_about_a_million_parameters_in_eight_layers():
    model, config = load_model("tiny", "float32", 0), model_config("tiny")
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_214_976
    assert (num_layers(config), max_context(config)) == (8, 512)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert config.vocab_size == len(load_tokenizer("tiny"))


def test_tiny_weights_depend_on_the_seed_alone():
    state = torch.get_rng_state()
    first = digest(load_model("tiny", "float32", 0))
    torch.rand(5)
    assert digest(load_model("tiny", "float32", 0)) == first
    assert digest(load_model("tiny", "float32", 1)) != first
    torch.set_rng_state(state)
    load_model("tiny", "float32", 2)
    assert torch.equal(torch.get_rng_state(), state)


def test_byte_tokenizer_takes_any_text_and_gives_it_back():
    tokenizer = load_tokenizer("tiny")
    text = "  Σ = 12\n\té 漢字 🙂 "
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


def test_a_saved_model_loads_with_the_same_weights_and_tokenizer(saved_tiny):
    model, tokenizer = load_model(str(saved_tiny), "float32", 99), load_tokenizer(str(saved_tiny))
    assert digest(model) == digest(load_model("tiny", "float32", 0))
    assert tokenizer("2 + 2 = 4")["input_ids"] == load_tokenizer("tiny")("2 + 2 = 4")["input_ids"]
    assert tokenizer.chat_template == load_tokenizer("tiny").chat_template
    assert num_layers(model_config(str(saved_tiny))) == 8
    assert not model.training


def test_bfloat16_rounds_the_weights_and_leaves_the_rotary_angles(saved_tiny):
    built, loaded = load_model("tiny", "bfloat16", 0), load_model(str(saved_tiny), "bfloat16", 0)
    assert digest(built) == digest(loaded)
    assert {parameter.dtype for parameter in built.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for model in (built, loaded) for buffer in model.buffers()} == {torch.float32}
    assert built.lm_head.weight is built.model.embed_tokens.weight
    ids = torch.arange(40)[None]
    assert torch.equal(built(ids).logits, loaded(ids).logits)


def test_a_step_is_deterministic_with_padding():
    model = load_model("tiny", "float32", 0)
    ids, mask = torch.arange(120).reshape(3, 40), torch.ones(3, 40, dtype=torch.int64)
    mask[1, 25:], mask[2, 5:] = 0, 0

    def gradients():
        model.zero_grad()
        model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    first = gradients()
    for _ in range(5):
        assert all(map(torch.equal, first, gradients()))


def test_dropout_is_off(tmp_path):
    folder = tmp_path / "gpt2"
    config = GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=259, n_positions=32, bos_token_id=None)
    save_model(GPT2LMHeadModel(config), load_tokenizer("tiny"), folder)
    model = load_model(str(folder), "float32", 0).train()
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}
    assert (num_layers(model_config(str(folder))), max_context(model_config(str(folder)))) == (2, 32)


def test_weights_sha256_is_over_name_dtype_shape_and_bytes_in_order_of_name():
    b, a = torch.tensor([[1.0, -2.0]]), torch.tensor(3.0)
    expected = hashlib.sha256(
        b"a float32 []\n" + a.numpy().tobytes() + b"b float32 [1, 2]\n" + b.numpy().astype("<f4").tobytes()
    )
    assert weights_sha256([("b", b), ("a", a)]) == expected.hexdigest()
    assert weights_sha256([("b", b.T.contiguous().T), ("a", a)]) == expected.hexdigest()
    assert weights_sha256([("b", b.reshape(2)), ("a", a)]) != expected.hexdigest()


def test_weights_sha256_counts_tied_weights_once():
    model = load_model("tiny", "float32", 0)
    assert "lm_head.weight" in model.state_dict()
    assert weights_sha256(model.state_dict().items()) == digest(model)


@pytest.mark.parametrize("load", [lambda name: load_model(name, "float32", 0), load_tokenizer, model_config])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("someone/unknown", "couldn't connect"),
        ("smollm2-135m-instuct", "did you mean 'smollm2-135m-instruct'"),
        ("Tiny", "did you mean 'tiny'"),
        ("./nowhere", "there is no such folder"),
        ("no name", "must use alphanumeric"),
    ],
)
def test_unknown_models(load, name, reason, offline):
    allowed = "allowed: tiny, smollm2-135m-instruct, a Hugging Face folder on this machine, or a name on its hub"
    with pytest.raises(UserError, match=rf"model.name: cannot load '{name}': .*{reason}.*; {allowed}"):
        load(name)


def test_a_folder_without_weights(saved_tiny, tmp_path):
    folder = shutil.copytree(saved_tiny, tmp_path / "copy")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no file named model.safetensors"):
        load_model(str(folder), "float32", 0)


def test_a_folder_with_broken_weights(saved_tiny, tmp_path):
    folder = shutil.copytree(saved_tiny, tmp_path / "copy")
    (folder / "model.safetensors").write_bytes((saved_tiny / "model.safetensors").read_bytes()[:10_000])
    with pytest.raises(UserError, match=r"model.name: cannot load .* header"):
        load_model(str(folder), "float32", 0)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"num_hidden_layers": 8', '"num_hidden_layers": 9', "its weights lack model.layers.8"),
        ('"hidden_size": 128', '"hidden_size": 64', "mismatched"),
    ],
)
def test_a_folder_whose_config_belongs_to_another_model(saved_tiny, tmp_path, old, new, reason):
    folder = shutil.copytree(saved_tiny, tmp_path / "copy")
    config = (folder / "config.json").read_text()
    assert old in config
    (folder / "config.json").write_text(config.replace(old, new))
    with pytest.raises(UserError, match=f"model.name: cannot load .*{reason}"):
        load_model(str(folder), "float32", 0)


def test_a_folder_without_a_config_or_tokenizer(tmp_path):
    with pytest.raises(UserError, match=r"model.name: cannot load"):
        model_config(str(tmp_path))
    with pytest.raises(UserError, match="its tokenizer"):
        load_tokenizer(str(tmp_path))


def test_pickled_weights_are_not_read(saved_tiny, tmp_path):
    shutil.copytree(saved_tiny, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(load_model("tiny", "float32", 0).state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"^model\.name: cannot load .*safetensors"):
        load_model(str(tmp_path / "pickled"), "float32", 0)


def test_code_beside_a_model_is_not_run(saved_tiny, tmp_path):
    folder = shutil.copytree(saved_tiny, tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": names}))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError, match=r"^model\.name: cannot load "):
        load_model(str(folder), "float32", 0)
    assert not (tmp_path / "ran").exists()
