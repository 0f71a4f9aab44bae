"""Several examples in a row: the same loss and the same gradients as each by itself."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, MistralConfig, OPTConfig

from parablock_ray.config import load_config
from parablock_ray.config.data import DataConfig
from parablock_ray.driver import prepare
from parablock_ray.errors import UserError
from parablock_ray.training.batches import batch_rows, batches, first_fit, padding_line, visit_order
from parablock_ray.training.data import build_data
from parablock_ray.training.loss import IGNORED, answer_nll
from parablock_ray.training.model import check_packing, load_model, load_tokenizer
from parablock_ray.training.tokens import TokenizedExamples, tokenize

SMALL = {"vocab_size": 300, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = {
    "llama": lambda: load_model("tiny", "float32", 0).config,
    "gpt2": lambda: GPT2Config(
        vocab_size=300, n_embd=32, n_layer=2, n_head=2, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0
    ),
    "sliding window": lambda: MistralConfig(
        **SMALL, hidden_size=32, num_key_value_heads=1, intermediate_size=32, sliding_window=6
    ),
}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny")


def examples(lengths: list[int]) -> TokenizedExamples:
    """Random tokens; the answer is the last third."""
    random = np.random.default_rng(len(lengths))
    return TokenizedExamples(
        ids=random.integers(0, 256, sum(lengths), np.int32),
        offsets=np.cumsum([0, *lengths]),
        answer_start=np.array([length - max(1, length // 3) for length in lengths], np.int32),
        pad_id=256,
    )


def nll_and_gradients(model, batch) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    total, num_tokens = answer_nll(model, batch)
    total.backward()
    return float(total.detach()), num_tokens, torch.cat([each.grad.flatten() for each in model.parameters()])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_a_packed_batch_has_the_loss_and_gradients_of_its_examples(name, attention):
    model = AutoModelForCausalLM.from_config(MODELS[name](), attn_implementation=attention).eval()
    store = examples([9, 17, 5, 30, 2, 12])
    packed = store.packed_batch([[3, 0, 4], [1, 2], [5]])
    assert packed["input_ids"].shape == (3, 41)
    nll, num_tokens, gradients = nll_and_gradients(model, packed)
    alone_nll, alone_num_tokens, alone_gradients = nll_and_gradients(model, store.batch(range(6)))
    assert num_tokens == alone_num_tokens == int((store.lengths - store.answer_start).sum())
    assert nll == pytest.approx(alone_nll, rel=1e-5)
    torch.testing.assert_close(gradients, alone_gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_other_neighbours_change_nothing(attention):
    """Bit for bit: what a row holds before an example has no weight in it."""
    model = AutoModelForCausalLM.from_config(MODELS["llama"](), attn_implementation=attention).eval()
    store = examples([9, 9, 14])
    rows = store.packed_batch([[0, 2], [1, 2]])
    with torch.inference_mode():
        logits = model(input_ids=rows["input_ids"], position_ids=rows["position_ids"], use_cache=False).logits
    assert torch.equal(logits[0, 9:], logits[1, 9:])
    assert not torch.equal(logits[0, :9], logits[1, :9])


def test_the_batch_of_a_packed_row(tokenizer):
    store = tokenize(["2+2\n", "", "one\n"], ["4", "7", "seven"], tokenizer)
    batch = store.packed_batch([[2, 1, 0], [1]])
    assert list(batch) == ["input_ids", "position_ids", "labels"]
    assert {(tensor.dtype, tensor.shape) for tensor in batch.values()} == {(torch.int64, (2, 18))}
    assert batch["position_ids"].tolist() == [[*range(10), *range(2), *range(6)], [0, 1, *[0] * 16]]
    assert tokenizer.decode(batch["input_ids"][0]) == "one\nseven<|im_end|>7<|im_end|>2+2\n4<|im_end|>"
    # An answer without a prompt: its first token is predicted by nothing, least of all by the example before it.
    assert tokenizer.decode(batch["labels"][0][batch["labels"][0] != IGNORED]) == "seven<|im_end|><|im_end|>4<|im_end|>"
    assert batch["input_ids"][1, 2:].tolist() == [tokenizer.pad_token_id] * 16


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=2),
        OPTConfig(**SMALL, hidden_size=32, ffn_dim=32, word_embed_proj_dim=32),
    ],
    ids=["alibi", "opt"],
)
def test_a_model_that_would_see_the_neighbour_is_refused(config):
    with pytest.raises(UserError, match=r"data.packing: this model lets an example see the one before it"):
        check_packing(AutoModelForCausalLM.from_config(config).eval())


# ---- which examples share a row


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    num_rows=st.integers(1, 12),
    row_length=st.integers(50, 120),
)
def test_first_fit(lengths, num_rows, row_length):
    order = np.arange(len(lengths))[::-1]
    rows = first_fit(order, np.array(lengths)[order], num_rows, row_length)
    filled = [sum(lengths[example] for example in row) for row in rows]
    assert len(rows) <= num_rows
    assert max(filled) <= row_length
    used = [example for row in rows for example in row]
    assert sorted(used, reverse=True) == order[: len(used)].tolist()  # the first of the order, each once
    if len(used) < len(lengths):  # the next one finds no room
        assert len(rows) == num_rows
        assert min(filled) + lengths[order[len(used)]] > row_length
    for row in rows:
        assert row == sorted(row, reverse=True)


def test_what_a_visit_packs_depends_on_seed_client_and_round_alone(tokenizer):
    data = DataConfig(source="reasoning_gym", tasks=("gcd", "chain_sum"), num_train=80, num_eval=8)
    held = build_data(data, 2, 0, tokenizer, 512).clients.held_by(1)

    def packed(seed=0, round=0, client=1):
        order = visit_order(held.indices, len(held.indices), seed, round, client)
        return [batch["input_ids"].tolist() for batch in batches(held.store, order, 2, 3, 512)]

    assert packed() == packed()
    assert len({str(packed()), str(packed(seed=1)), str(packed(round=1)), str(packed(client=2))}) == 4


def test_rows_are_taken_again_where_the_examples_do_not_fill_them():
    store = examples([10, 10, 10])
    steps = batch_rows(store, np.array([2, 0, 1]), num_steps=2, batch_size=2, packed_length=25)
    assert steps == [[[2, 0], [1]], [[2, 0], [1]]]
    alone = batch_rows(store, np.array([2, 0, 1]), num_steps=2, batch_size=2, packed_length=None)
    assert alone == [[[2], [0]], [[1], [2]]]


# ---- what it is worth


def padding_line_of(tmp_path, configs, *changes):
    """Of examples of 19 and of 39 tokens."""
    path = tmp_path / "rows.jsonl"
    rows = [{"instruction": f"{i:02}" + "?" * (7 if i % 2 else 27), "output": "12345678"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = [f"data.source={path}", "data.tasks=[]", "data.num_train=null", "data.num_eval=4", "data.split=iid"]
    overrides += ["clients.num=1", "workers.num=1", "method.batch_size=3", "method.local_steps=2", "data.max_length=40"]
    config = load_config(configs / "quickstart.yaml", [*overrides, *changes])
    prepared = prepare(config)
    return padding_line(prepared.data, prepared.population, config)


def test_the_padding_line_says_what_packing_saves(tmp_path, configs):
    """Some of an unpacked batch is padding, little of a packed one."""
    lines = {packing: padding_line_of(tmp_path, configs, f"data.packing={packing}") for packing in ("true", "false")}
    now, other = re.findall(r"(\d+)%", lines["false"])
    assert lines["false"] == f"padding: {now}% of the tokens of a batch; it would be {other}% with data.packing"
    assert lines["true"] == f"padding: {other}% of the tokens of a batch; it would be {now}% without data.packing"
    assert int(now) >= 10
    assert int(other) <= 5


def test_the_padding_line_looks_at_what_has_arrived(tmp_path, configs):
    """An example that is there alone pads nothing."""
    line = padding_line_of(tmp_path, configs, "data.arrival={initial: 0.01, every: 1, share: 0.1}")
    assert line.startswith("padding: 0% of the tokens of a batch")
