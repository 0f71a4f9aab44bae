"""Federated LoRA as a protocol: what a client starts from, what overlap changes, what travels."""

from types import SimpleNamespace
from typing import cast

import pytest
import torch

from parablock_ray.algorithms import lora_costs
from parablock_ray.algorithms.adapters import client_ranks, find_targets, random_A, taken_apart
from parablock_ray.algorithms.lora import Adapter, fedit, ffa_lora, fit
from parablock_ray.algorithms.wire import Wire
from parablock_ray.config import Config
from parablock_ray.config.lora import FedExLoRA, FedIT, FFALoRA, FlexLoRA, FLoRA, FLoRIST, HetLoRA, LoraConfig, ZeroPad
from parablock_ray.config.method import ParaBlock
from parablock_ray.errors import UserError
from parablock_ray.sizes import make_sizes
from tests.algorithms.lora_toy import SHAPES, LoraHistory, LoraToy, run_lora_toy, weights

COMMON = {"rounds": 5, "local_steps": 3, "batch_size": 1, "lr": 0.05}
EQUAL = LoraConfig(ranks=2, alpha=3.0, target_modules=("q_proj",))
MIXED = LoraConfig(ranks=(2, 4, 1), alpha=3.0, target_modules=("q_proj",))
ONE = LoraConfig(ranks=2, alpha=3.0, target_modules=("q_proj",))
METHODS = {
    "fedit": FedIT(name="fedit", lora=EQUAL, **COMMON),
    "ffa_lora": FFALoRA(name="ffa_lora", lora=EQUAL, **COMMON),
    "zero_pad": ZeroPad(name="zero_pad", lora=MIXED, **COMMON),
    "hetlora": HetLoRA(name="hetlora", lora=MIXED, **COMMON),
    "fedex_lora": FedExLoRA(name="fedex_lora", lora=EQUAL, **COMMON),
    "flexlora": FlexLoRA(name="flexlora", lora=MIXED, **COMMON),
    "flora": FLoRA(name="flora", lora=MIXED, **COMMON),
    "florist": FLoRIST(name="florist", lora=MIXED, threshold=0.8, **COMMON),
    "florist-carry": FLoRIST(name="florist", lora=MIXED, threshold=0.8, round_init="carry", **COMMON),
}
WIRES = [torch.float32, torch.bfloat16]


def with_(config, **changes):
    """The config with other values, checked anew."""
    return type(config).model_validate({**config.model_dump(), **changes})


def pairs(history: LoraHistory, vector: torch.Tensor, rank: int):
    return list(taken_apart(vector, history.targets, [rank] * len(history.targets)))


def merged_by_the_rule(toy: LoraToy, history: LoraHistory, up_to: int) -> list[torch.Tensor]:
    """W_0 + Σ of what rounds 0..up_to published to be merged, in order, fp32."""
    values = list(weights(toy.seed).values())
    for round in range(up_to + 1):
        update = history.updates[round, history.plans[round].visits[0].variant]
        both = [target for target in history.targets for _ in range(2)]
        for index, (B, A) in enumerate(list(taken_apart(update.values, both, update.ranks))[1::2]):
            if B.numel():
                values[index] = values[index] + B.float() @ A.float()
    return values


@pytest.mark.parametrize("method", ["flora", "florist"])
@pytest.mark.parametrize("staleness", [0, 1, 2])
@pytest.mark.parametrize("correction", ["own", "eager", "stale"])
@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("model", [torch.float32, torch.bfloat16])
def test_a_merge_methods_client_starts_from_the_rules_expression(method, staleness, correction, wire, model):
    config = with_(METHODS[method], staleness=staleness, correction=correction)
    toy = LoraToy(config, wire_dtype=wire, model_dtype=model, num_workers=2)
    history = run_lora_toy(toy)
    ranks = client_ranks(config.lora, 3, toy.seed)
    for (round, client), start in history.starts.items():
        reads, rank = round - 1 - staleness, ranks[client]
        share = {visit.client: visit.share for visit in history.plans[round].visits}[client]
        factor = {"own": 1.0, "eager": share, "stale": 0.0}[correction]
        expected = merged_by_the_rule(toy, history, max(reads, -1))
        for tau in range(max(reads, -1) + 1, round):
            for index, (B, A) in enumerate(pairs(history, history.uploads[tau, client], rank)):
                expected[index] = expected[index] + (B.float() @ (A.float() * (3.0 / rank))) * factor
        for target, value, (W, B, A) in zip(history.targets, expected, start, strict=True):
            assert torch.equal(W, value.to(model))
            assert not B.any()
            assert torch.equal(A, random_A(target, rank, toy.seed, round, client))


@pytest.mark.parametrize("method", ["zero_pad", "hetlora", "flexlora", "fedex_lora", "florist-carry"])
@pytest.mark.parametrize("wire", WIRES)
def test_a_client_trains_on_with_what_it_was_handed_cut_to_its_rank(method, wire):
    config = METHODS[method]
    toy = LoraToy(config, wire_dtype=wire, num_workers=2)
    history = run_lora_toy(toy)
    ranks = client_ranks(config.lora, 3, toy.seed)
    for (round, client), start in history.starts.items():
        rank = ranks[client]
        merged = merged_by_the_rule(toy, history, round - 1)
        if round == 0:
            handed = [(torch.zeros(t.m, rank), random_A(t, rank, toy.seed), rank) for t in history.targets]
        else:
            variant = {visit.client: visit.variant for visit in history.plans[round].visits}[client]
            update = history.updates[round - 1, variant]
            both = [target for target in history.targets for _ in range(2)]
            scaling = 1.0 if method == "florist-carry" else 3.0 / rank
            handed = []
            for B, A in list(taken_apart(update.values, both, update.ranks))[::2]:
                cut = fit(Adapter(B.float(), A.float(), scaling), rank, 3.0 / rank)
                handed.append((cut.B, cut.A, min(rank, len(A))))
        for W, (B, A, num_kept), (seen_W, seen_B, seen_A) in zip(merged, handed, start, strict=True):
            assert torch.equal(seen_W, W)
            assert torch.equal(seen_B, B)
            assert torch.equal(seen_A[:num_kept], A[:num_kept])
            assert seen_A.any(dim=1).all(), "a component with A = 0 and B = 0 would never train"


@pytest.mark.parametrize(("method", "rule"), [("fedit", fedit), ("ffa_lora", ffa_lora)])
def test_the_sum_of_what_changed_is_the_papers_mean_of_whole_factors(method, rule):
    history = run_lora_toy(LoraToy(METHODS[method]))
    for plan in history.plans[:-1]:
        shares = [visit.share for visit in plan.visits]
        trained = [sent_back(history, plan.round, visit.client, method) for visit in plan.visits]
        for index in range(len(history.targets)):
            mean = rule([adapters[index] for adapters in trained], shares)
            for visit in plan.visits:
                _, B, A = history.starts[plan.round + 1, visit.client][index]
                torch.testing.assert_close(B, mean.B, rtol=0, atol=1e-6)
                torch.testing.assert_close(A, mean.A, rtol=0, atol=1e-6)
                assert mean.scaling == 3.0 / 2


def sent_back(history: LoraHistory, round: int, client: int, method: str) -> list[Adapter]:
    """A client's whole adapters after its visit, by module: where it started, and what it sent as changed."""
    starts, sent = history.starts[round, client], history.uploads[round, client]
    if method == "ffa_lora":
        parts = sent.split([B.numel() for _, B, _ in starts])
        changed = [(part.view_as(B), 0.0) for part, (_, B, _) in zip(parts, starts, strict=True)]
    else:
        changed = pairs(history, sent, 2)
    return [Adapter(B + dB, A + dA, 3.0 / 2) for (_, B, A), (dB, dA) in zip(starts, changed, strict=True)]


@pytest.mark.parametrize("method", METHODS)
def test_the_server_holds_the_weights_that_its_clients_hold(method):
    """One more round of the same run starts from the settled master: W for merge methods, W + s B A for factors."""
    config = METHODS[method]
    final = run_lora_toy(LoraToy(with_(config, rounds=4))).final
    start = run_lora_toy(LoraToy(config)).starts[4, 1]  # the client of the highest rank
    for value, (W, B, A) in zip(final.values(), start, strict=True):
        held = W + B @ A * (3.0 / B.shape[1])
        if method in ("flexlora", "florist-carry"):  # the server holds more components than any client trains on with
            assert (held - value).norm() < 0.5 * value.norm()
        else:
            torch.testing.assert_close(held, value, rtol=0, atol=2e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wire", WIRES)
def test_the_adapters_that_a_server_ends_with_are_all_that_its_model_is_beyond_the_initial_one(method, wire):
    """But for methods that merge as they go, which have none to show."""
    toy = LoraToy(METHODS[method], wire_dtype=wire)
    history = run_lora_toy(toy)
    if method in ("flora", "florist", "fedex_lora"):
        assert history.adapters == {}
        return
    assert list(history.adapters) == [target.name for target in history.targets]
    for target in history.targets:
        B, A, scaling = history.adapters[target.name]
        assert B.any()
        assert torch.equal(history.final[target.weight], weights(toy.seed)[target.weight] + B @ (A * scaling))


@pytest.mark.parametrize("method", ["fedit", "ffa_lora", "flora"])
@pytest.mark.parametrize("staleness", [1, 2])
def test_one_client_own_equals_the_sequential_run_to_the_last_bit(method, staleness):
    def final(**changes):
        toy = LoraToy(with_(METHODS[method], lora=ONE.model_dump(), **changes), num_examples=(49,))
        return run_lora_toy(toy).final

    control = final()
    for correction in ("own", "eager"):
        delayed = final(staleness=staleness, correction=correction)
        assert all(torch.equal(delayed[name], control[name]) for name in control)
    stale = final(staleness=staleness, correction="stale")
    assert not any(torch.allclose(stale[name], control[name], atol=1e-3) for name in control)


def test_one_client_florist_equals_the_sequential_run_only_where_nothing_is_cut():
    def final(**changes):
        toy = LoraToy(with_(METHODS["florist"], lora=ONE.model_dump(), **changes), num_examples=(49,))
        return run_lora_toy(toy).final

    whole = [final(threshold=1.0, staleness=staleness) for staleness in (0, 1)]
    cut = [final(threshold=0.7, staleness=staleness) for staleness in (0, 1)]
    for name in whole[0]:
        torch.testing.assert_close(whole[1][name], whole[0][name], rtol=0, atol=1e-5)
        assert not torch.allclose(cut[1][name], cut[0][name], atol=1e-3)


def test_florist_at_threshold_1_is_flora():
    flora, florist = (
        run_lora_toy(LoraToy(METHODS["flora"])),
        run_lora_toy(LoraToy(with_(METHODS["florist"], threshold=1.0))),
    )
    for name in flora.final:
        torch.testing.assert_close(florist.final[name], flora.final[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_workers_and_chunks_change_no_bit(method):
    reference = run_lora_toy(LoraToy(METHODS[method])).final
    other = run_lora_toy(LoraToy(METHODS[method], num_workers=3, chunk_bytes=1000)).final
    assert all(torch.equal(other[name], reference[name]) for name in reference)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "florist-carry"])
def test_what_travels_is_what_the_cost_model_says(method):
    config = METHODS[method]
    history = run_lora_toy(LoraToy(config))
    shapes, ranks = list(SHAPES.values()), client_ranks(config.lora, 3, 0)
    kept = [each.rank for each in history.commits[1].module_ranks]
    up = [history.uploads[1, client].numel() for client in range(3)]
    assert up == lora_costs.upload_params(method, shapes, ranks)
    variants = {visit.client: visit.variant for visit in history.plans[1].visits}
    down = [history.updates[1, variants[client]].values.numel() for client in range(3)]
    assert down == lora_costs.download_params(method, shapes, ranks, kept)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("staleness", [0, 1])
def test_a_client_that_was_left_out_catches_up_with_all_that_was_merged(method, staleness):
    config = METHODS[method]
    if staleness and method not in ("fedit", "ffa_lora", "flora", "florist"):
        pytest.skip("runs one round after the other")
    lora = {**config.lora.model_dump(), "ranks": 2}
    toy = LoraToy(with_(config, rounds=12, staleness=staleness, lora=lora), num_examples=(5,) * 6, per_round=2)
    history = run_lora_toy(toy)
    held: dict[int, set[int]] = {}
    both = [target for target in history.targets for _ in range(2)]

    def sizes(round: int) -> tuple[int, int]:
        """Parameters of the factors and of what is to be merged in a round's publication."""
        update = history.updates[round, history.plans[round].visits[0].variant]
        if not update.ranks:
            return update.values.numel(), 0
        numbers = [target.num_params(rank) for target, rank in zip(both, update.ranks, strict=True)]
        return sum(numbers[::2]), sum(numbers[1::2])

    for (round, client), num_params in history.catch_up.items():
        own = held.setdefault(client, set())
        reads = round - 1 - staleness
        missed = [tau for tau in range(reads + 1) if tau not in own]
        expected = sum(sizes(tau)[1] for tau in missed) + (sizes(reads)[0] if reads in missed else 0)
        assert num_params == expected
        own |= {*missed, round}
    assert sum(history.catch_up.values()) > 0


@pytest.mark.parametrize("method", ["zero_pad", "hetlora", "flexlora", "florist-carry"])
def test_with_sampled_clients_of_mixed_ranks_no_component_is_dead(method):
    """A cohort of small ranks leaves nothing beyond them: a client of a larger rank must get fresh components."""
    lora = {**MIXED.model_dump(), "ranks": (1, 1, 2, 2, 4, 4)}
    toy = LoraToy(with_(METHODS[method], rounds=12, lora=lora), num_examples=(5,) * 6, per_round=2)
    history = run_lora_toy(toy)
    ranks = client_ranks(toy.method.lora, 6, toy.seed)
    joined_a_smaller_cohort = 0
    for (round, client), start in history.starts.items():
        before = [ranks[visit.client] for visit in history.plans[round - 1].visits] if round else [4]
        joined_a_smaller_cohort += max(before) < ranks[client]
        for _, B, A in start:
            assert (B.any(dim=0) | A.any(dim=1)).all(), "a component with A = 0 and B = 0 never trains"
    assert joined_a_smaller_cohort > 2


@pytest.mark.parametrize("method", ["zero_pad", "hetlora", "flexlora"])
def test_the_plan_foretells_what_sampled_clients_of_mixed_ranks_download(method):
    lora = {**MIXED.model_dump(), "ranks": (1, 2, 2, 4, 4, 9)}
    config = with_(METHODS[method], rounds=12, lora=lora)
    toy = LoraToy(config, num_examples=(5,) * 6, per_round=2)
    history = run_lora_toy(toy)
    named = cast(Config, SimpleNamespace(method=config))
    sizes = make_sizes(named, toy.population, weights(0), Wire(toy.wire_dtype, toy.chunk_bytes))
    for plan in history.plans:
        sizes.open(plan)
        for visit in plan.visits:
            foretold = sizes.of(plan, visit)
            assert foretold.up == history.uploads[plan.round, visit.client].numel()
            assert foretold.down == history.updates[plan.round, visit.variant].values.numel()
            assert foretold.catch_up == history.catch_up[plan.round, visit.client]
    assert sum(history.catch_up.values()) > 0


def test_parablock_over_blocks_of_adapters_trains_one_modules_factors_at_a_time():
    config = ParaBlock(name="parablock", parameters="lora", num_blocks=2, lora=EQUAL, order="ascending", **COMMON)
    history = run_lora_toy(LoraToy(with_(config, rounds=1)))
    before = weights(0)
    assert not torch.equal(history.final["layers.0.q_proj.weight"], before["layers.0.q_proj.weight"])
    assert torch.equal(history.final["layers.1.q_proj.weight"], before["layers.1.q_proj.weight"])


def test_targets_are_found_by_their_last_name():
    parameters = {**weights(0), "layers.0.k_proj.weight": torch.zeros(2, 3), "embed_tokens.weight": torch.zeros(9, 3)}
    assert [target.name for target in find_targets(parameters, ["q_proj"])] == list(SHAPES)
    with pytest.raises(UserError, match=r"no linear module 'qproj'; allowed: k_proj, q_proj$"):
        find_targets(parameters, ["k_proj", "qproj"])


def test_ranks_as_a_number_a_list_or_a_choice():
    assert client_ranks(EQUAL, 4, 0) == (2, 2, 2, 2)
    assert client_ranks(MIXED, 3, 0) == (2, 4, 1)
    drawn = client_ranks(LoraConfig(ranks={"dist": "choice", "of": (4, 8)}), 200, seed=1)
    assert 60 < drawn.count(4) < 140
    assert client_ranks(LoraConfig(ranks={"dist": "choice", "of": (4, 8)}), 100, seed=1) == drawn[:100]
    with pytest.raises(UserError, match=r"method.lora.ranks: 3 ranks for clients.num = 4"):
        client_ranks(MIXED, 4, 0)


def test_a_smaller_ranks_shared_start_is_the_first_rows_of_a_larger_ones():
    target = find_targets(weights(0), ["q_proj"])[0]
    assert torch.equal(random_A(target, 16, 0)[:3], random_A(target, 3, 0))
    assert not torch.equal(random_A(target, 3, 0), random_A(target, 3, 1))
    assert random_A(target, 1000, 0).abs().max() <= target.n**-0.5
