"""The engines: a block switch equals a plain torch loop with the same frozen set, bit for bit."""

import copy

import pytest
import torch
from torch import Tensor

from parablock_ray.algorithms.blocks import flatten
from parablock_ray.algorithms.rng import generator
from parablock_ray.training.engine import DeepSpeedEngine, TorchEngine
from parablock_ray.training.loss import IGNORED, answer_loss, answer_nll
from parablock_ray.training.model import load_model
from parablock_ray.training.optimizer import LocalSettings

ADAMW = LocalSettings("adamw", weight_decay=0.01, max_grad_norm=None, prox_mu=0.0)


@pytest.fixture(scope="module")
def tiny() -> torch.nn.Module:
    torch.set_num_threads(1)
    return load_model("tiny", "float32", 0)


def random_batch(step: int) -> dict[str, Tensor]:
    ids = torch.randint(0, 256, (3, 20), generator=generator(0, "batch", step))
    labels = ids.clone()
    labels[0, :9] = labels[1, :12] = labels[2, :15] = IGNORED
    mask = torch.ones_like(ids)
    mask[1, 18:], labels[1, 18:] = 0, IGNORED
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def block_of(model: torch.nn.Module, layer: int) -> list[torch.nn.Parameter]:
    return [p for name, p in model.named_parameters() if f"layers.{layer}." in name]


def visits(model, engine, layers=(1, 0, 1), lr=1e-2, num_steps=3) -> torch.nn.Module:
    """Visit layers one after the other through an engine, writing back what it returns."""
    for visit, layer in enumerate(layers):
        parameters = block_of(model, layer)
        engine.begin(parameters, lr)
        for step in range(num_steps):
            engine.step(random_batch(visit * num_steps + step))
        trained = engine.end()
        assert all(each.dtype == torch.float32 for each in trained)
        for each, parameter in zip(trained, parameters, strict=True):
            torch.testing.assert_close(each.to(parameter.dtype), parameter.detach())
        assert all(p.grad is None for p in parameters), "gradients of a whole block would lie about"
    return model


def plain_loop(model, layers=(1, 0, 1), lr=1e-2, num_steps=3) -> torch.nn.Module:
    """What a reader would write without this package."""
    for visit, layer in enumerate(layers):
        model.requires_grad_(False)
        parameters = [p.requires_grad_(True) for p in block_of(model, layer)]
        masters = [p.detach().float().requires_grad_(True) for p in parameters]
        optimizer = torch.optim.AdamW(masters, lr=lr, weight_decay=0.01, fused=True)
        for step in range(num_steps):
            batch = random_batch(visit * num_steps + step)
            for parameter in parameters:
                parameter.grad = None
            answer_loss(model, batch).backward()
            for parameter, master in zip(parameters, masters, strict=True):
                master.grad = parameter.grad.float()
            optimizer.step()
            with torch.no_grad():
                for parameter, master in zip(parameters, masters, strict=True):
                    parameter.copy_(master)
    return model


def same_bits(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_engines_end_in_the_same_bits(tiny, dtype):
    by_torch, by_deepspeed = copy.deepcopy(tiny).to(dtype), copy.deepcopy(tiny).to(dtype)
    visits(by_torch, TorchEngine(by_torch, ADAMW))
    visits(by_deepspeed, DeepSpeedEngine(by_deepspeed, ADAMW, {}))
    assert same_bits(by_torch, by_deepspeed)
    assert not same_bits(by_torch, copy.deepcopy(tiny).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_block_switch_equals_a_plain_loop(tiny, dtype):
    ours, plain = copy.deepcopy(tiny).to(dtype), copy.deepcopy(tiny).to(dtype)
    visits(ours, DeepSpeedEngine(ours, ADAMW, {}))
    plain_loop(plain)
    assert same_bits(ours, plain)


def test_the_loss_is_transformers_own(tiny):
    batch = random_batch(0)
    theirs = tiny(**batch).loss
    torch.testing.assert_close(answer_loss(tiny, batch), theirs, rtol=1e-5, atol=1e-6)
    total, num_tokens = answer_nll(tiny, batch)
    assert num_tokens == int((batch["labels"][:, 1:] != IGNORED).sum())
    torch.testing.assert_close(total / num_tokens, theirs, rtol=1e-5, atol=1e-6)


def test_a_visit_trains_its_block_alone_and_starts_afresh(tiny):
    model = copy.deepcopy(tiny)
    engine = DeepSpeedEngine(model, ADAMW, {})
    visits(model, engine, layers=(1,))
    changed = {name for (name, p), q in zip(model.named_parameters(), tiny.parameters(), strict=True) if not p.equal(q)}
    assert changed
    assert all("layers.1." in name for name in changed)
    again = copy.deepcopy(model)
    visits(model, engine, layers=(0,))  # the long-lived engine
    visits(again, TorchEngine(again, ADAMW), layers=(0,))  # one that never saw layer 1
    assert same_bits(model, again)


def one_step(model, settings: LocalSettings, lr: float) -> Tensor:
    engine = TorchEngine(model, settings)
    engine.begin(block_of(model, 1), lr)
    engine.step(random_batch(0))
    return flatten(engine.end(), torch.float32)


def test_sgd_weight_decay_clipping_and_prox(tiny):
    model = copy.deepcopy(tiny)
    model.requires_grad_(True)
    parameters = block_of(model, 1)
    before = torch.cat([p.detach().flatten() for p in parameters])
    answer_loss(model, random_batch(0)).backward()
    gradient = torch.cat([p.grad.flatten() for p in parameters])
    lr = 0.1
    plain = one_step(copy.deepcopy(tiny), LocalSettings("sgd", 0.0, None, 0.0), lr)
    torch.testing.assert_close(plain, before - lr * gradient)
    decayed = one_step(copy.deepcopy(tiny), LocalSettings("sgd", 0.5, None, 0.0), lr)
    torch.testing.assert_close(decayed, before - lr * (gradient + 0.5 * before))
    clipped = one_step(copy.deepcopy(tiny), LocalSettings("sgd", 0.0, 1e-3, 0.0), lr)
    torch.testing.assert_close((clipped - before).norm(), torch.tensor(lr * 1e-3), rtol=1e-2, atol=0)
    first_step = one_step(copy.deepcopy(tiny), LocalSettings("sgd", 0.0, None, 3.0), lr)
    assert torch.equal(first_step, plain), "FedProx pulls to the start, so not in the first step"


def test_prox_pulls_towards_the_start_of_the_visit(tiny):
    def distance(mu: float) -> float:
        model = copy.deepcopy(tiny)
        start = torch.cat([p.detach().flatten() for p in block_of(model, 1)])
        engine = TorchEngine(model, LocalSettings("sgd", 0.0, None, mu))
        engine.begin(block_of(model, 1), 0.5)
        for step in range(8):
            engine.step(random_batch(step))
        return float((flatten(engine.end(), torch.float32) - start).norm())

    assert distance(1.0) < 0.7 * distance(0.0)


def test_gradient_checkpointing_changes_no_bit(tiny):
    ours, plain = copy.deepcopy(tiny), copy.deepcopy(tiny)
    ours.train()
    ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    visits(ours, DeepSpeedEngine(ours, ADAMW, {}))
    visits(plain, TorchEngine(plain, ADAMW))
    assert same_bits(ours, plain)
