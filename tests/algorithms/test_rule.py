"""ParaBlock's rule as a pure function: properties 1 to 5 and 8 of docs/methods.md, on exact quadratic clients."""

import random

import pytest
import torch

from parablock_ray.algorithms.base import RoundPlan, Update, Visit
from parablock_ray.algorithms.population import Population
from parablock_ray.algorithms.wire import Wire
from parablock_ray.config.method import FedAvg, FedBCD, FedCyBGD, ParaBlock
from parablock_ray.config.training import ServerAdaptive, ServerMomentum, ServerSGD
from tests.algorithms.toy import SIZE, History, Toy, make_all, objective, run_toy

COMMON = {"rounds": 14, "num_blocks": 3, "local_steps": 3, "lr": 0.05, "batch_size": 1}
WIRES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def parablock(staleness=1, correction="own", **changes) -> ParaBlock:
    return ParaBlock(name="parablock", staleness=staleness, correction=correction, **{**COMMON, **changes})


def fedbcd(**changes) -> FedBCD:
    return FedBCD(name="fedbcd", **{**COMMON, **changes})


def start_by_the_rule(toy: Toy, history: History, round: int, client: int) -> torch.Tensor:
    """z_i = cast( wire(x^{(≤ t−1−s)}) + a_i Σ_{pending} Δ ), written out from the history alone."""
    staleness = getattr(toy.method, "staleness", 0)
    correction = getattr(toy.method, "correction", "stale")
    reads = round - 1 - staleness
    version = history.versions[max(reads, -1) + 1]
    cohort = {visit.client: visit.num_examples for visit in history.plans[round].visits}
    factor = {"own": 1.0, "stale": 0.0, "eager": cohort[client] / sum(cohort.values())}[correction]
    expected = []
    for block, where in enumerate(history.block_slices):
        value = version[where]
        if any(plan.block == block for plan in history.plans[: max(reads, -1) + 1]):
            value = value.to(toy.wire_dtype).to(version.dtype)
        pending = [
            history.deltas[tau, client].to(version.dtype)
            for tau in range(max(reads, -1) + 1, round)
            if history.plans[tau].block == block and (tau, client) in history.deltas
        ]
        for delta in pending:
            value = value + factor * delta
        expected.append(value.to(toy.model_dtype))
    return torch.cat(expected)


@pytest.mark.parametrize("staleness", [0, 1, 2])
@pytest.mark.parametrize("correction", ["own", "eager", "stale"])
@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("num_blocks", [1, 2, 3])
def test_a_client_starts_from_the_rules_expression(staleness, correction, wire, num_blocks):
    toy = Toy(parablock(staleness, correction, num_blocks=num_blocks), wire_dtype=wire, num_workers=2)
    history = run_toy(toy)
    for round, client in history.starts:
        assert torch.equal(history.starts[round, client], start_by_the_rule(toy, history, round, client))


@pytest.mark.parametrize("staleness", [0, 1, 2])
@pytest.mark.parametrize("wire", [torch.float32, torch.bfloat16])
def test_a_bf16_client_starts_from_the_rules_expression(staleness, wire):
    toy = Toy(
        parablock(staleness, num_blocks=2),
        wire_dtype=wire,
        model_dtype=torch.bfloat16,
        master_dtype=torch.float32,
        num_workers=2,
    )
    history = run_toy(toy)
    for round, client in history.starts:
        assert torch.equal(history.starts[round, client], start_by_the_rule(toy, history, round, client))


def test_a_sampled_client_starts_from_the_rules_expression():
    toy = Toy(parablock(2, num_blocks=2, rounds=30), num_examples=(5, 9, 2, 7, 4, 4, 1), per_round=3, num_workers=2)
    history = run_toy(toy)
    assert len({client for _, client in history.starts}) == 7
    for round, client in history.starts:
        assert torch.equal(history.starts[round, client], start_by_the_rule(toy, history, round, client))


def test_after_the_drain_each_delta_is_in_exactly_once():
    toy = Toy(parablock(2))
    history = run_toy(toy)
    assert len(history.versions) == COMMON["rounds"] + 1
    x = history.versions[0].clone()
    for plan in history.plans:
        total = sum(visit.num_examples for visit in plan.visits)
        mean = sum(history.deltas[plan.round, visit.client] * visit.num_examples for visit in plan.visits) / total
        x[history.block_slices[plan.block]] += mean
    assert torch.equal(history.final, x)


def test_weights_sum_to_one():
    for plan in run_toy(Toy(parablock(), num_examples=(3, 1, 4, 1, 5), per_round=3)).plans:
        assert sum(visit.share for visit in plan.visits) == pytest.approx(1, abs=1e-15)


def test_blocks_not_visited_stay_bit_identical():
    history = run_toy(Toy(parablock(rounds=2, num_blocks=3, order="ascending")))
    last = history.block_slices[2]
    assert torch.equal(history.final[last], history.versions[0][last])
    assert not torch.equal(history.final[: last.start], history.versions[0][: last.start])


def test_round_t_reads_t_minus_2_and_not_t_minus_1():
    """With staleness 1 and no correction a client starts from exactly the model after round t − 2."""
    history = run_toy(Toy(parablock(1, "stale", num_blocks=1, rounds=6)))
    for round in range(2, 6):
        starts = [history.starts[round, client] for client in range(4)]
        assert all(torch.equal(start, history.versions[round - 1]) for start in starts)
        assert not any(torch.equal(start, history.versions[round]) for start in starts)
        assert not any(torch.equal(start, history.versions[round - 2]) for start in starts)


@pytest.mark.parametrize("staleness", [1, 2])
@pytest.mark.parametrize("num_blocks", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_client_equals_fedbcd_to_the_last_bit(staleness, num_blocks, dtype):
    def final(method):
        toy = Toy(method, num_examples=(49,), wire_dtype=dtype, model_dtype=dtype, master_dtype=dtype)
        return run_toy(toy).final

    control = final(fedbcd(num_blocks=num_blocks))
    assert torch.equal(final(parablock(staleness, "own", num_blocks=num_blocks)), control)
    assert torch.equal(final(parablock(staleness, "eager", num_blocks=num_blocks)), control)
    assert not torch.allclose(final(parablock(staleness, "stale", num_blocks=num_blocks)), control, atol=1e-3)


@pytest.mark.parametrize("num_blocks", [1, 3])
def test_identical_clients_equal_fedbcd_only_with_own(num_blocks):
    same = {"num_examples": (4, 4, 4), "heterogeneity": 0.0}
    control = run_toy(Toy(fedbcd(num_blocks=num_blocks), **same)).final
    own = run_toy(Toy(parablock(1, "own", num_blocks=num_blocks), **same)).final
    torch.testing.assert_close(own, control, rtol=0, atol=1e-13)
    for correction in ("eager", "stale"):
        other = run_toy(Toy(parablock(1, correction, num_blocks=num_blocks), **same)).final
        assert not torch.allclose(other, control, atol=1e-3)


@pytest.mark.parametrize(
    "server",
    [ServerSGD(lr=0.5), ServerMomentum(name="momentum", momentum=0.5), ServerAdaptive(name="adam", lr=0.1)],
)
def test_with_another_server_step_one_client_differs_from_fedbcd(server):
    control = run_toy(Toy(fedbcd(num_blocks=1, server_optimizer=server), num_examples=(5,))).final
    own = run_toy(Toy(parablock(num_blocks=1, server_optimizer=server), num_examples=(5,))).final
    assert not torch.allclose(own, control, atol=1e-6)


def test_own_differs_from_fedbcd_when_clients_differ():
    assert not torch.allclose(run_toy(Toy(parablock())).final, run_toy(Toy(fedbcd())).final, atol=1e-6)


def test_staleness_0_and_a_single_round_are_fedbcd():
    assert torch.equal(run_toy(Toy(parablock(0))).final, run_toy(Toy(fedbcd())).final)
    assert torch.equal(run_toy(Toy(parablock(rounds=1))).final, run_toy(Toy(fedbcd(rounds=1))).final)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("cut_through", [False, True])
@pytest.mark.parametrize("chunk_bytes", [8, 40, 10_000])
def test_arrival_order_chunks_and_workers_change_no_bit(seed, cut_through, chunk_bytes):
    def shuffled(messages):
        return random.Random(seed).sample(messages, len(messages))

    settings = {"wire_dtype": torch.bfloat16, "master_dtype": torch.float32, "model_dtype": torch.float32}
    method = parablock(2, "eager", server_optimizer=ServerMomentum(name="nesterov", lr=0.7))
    reference = run_toy(Toy(method, **settings)).final
    changed = Toy(method, arrival=shuffled, cut_through=cut_through, chunk_bytes=chunk_bytes, num_workers=3, **settings)
    assert torch.equal(run_toy(changed).final, reference)


@pytest.mark.parametrize("method", [fedbcd(rounds=200), parablock(rounds=200), parablock(2, "eager", rounds=200)])
def test_the_objective_falls_to_near_its_minimum(method):
    toy = Toy(method, heterogeneity=0.1)
    history = run_toy(toy)
    assert objective(toy, history.final) < 0.05 * objective(toy, history.versions[0])


def test_fedavg_is_one_block_with_everything():
    history = run_toy(Toy(FedAvg(name="fedavg", **{**COMMON, "num_blocks": 1})))
    assert history.block_slices == [slice(0, SIZE)]
    delayed = run_toy(Toy(FedAvg(name="fedavg", staleness=1, **{**COMMON, "num_blocks": 1})))
    assert not torch.equal(delayed.final, history.final)


def test_fedcybgd_overwrites_one_clients_block_at_a_time():
    toy = Toy(FedCyBGD(name="fedcybgd", **COMMON), num_examples=(5, 9, 2, 7))
    history = run_toy(toy)
    for plan, before, after in zip(history.plans, history.versions[:-1], history.versions[1:], strict=True):
        [visit] = plan.visits
        assert plan.block == visit.client % 3
        where = history.block_slices[plan.block]
        assert torch.equal(history.starts[plan.round, visit.client], before)
        assert torch.equal(after[where], before[where] + history.deltas[plan.round, visit.client])
    visited = [plan.visits[0].client for plan in history.plans]
    assert [sorted(visited[at : at + 4]) for at in (0, 4, 8)] == [[0, 1, 2, 3]] * 3


def test_no_visit_starts_from_half_a_value():
    toy, wire, values = Toy(fedbcd()), Wire(torch.float64, 40), torch.ones(12, dtype=torch.float64)
    [replica] = make_all(toy, Population(toy.num_examples, 4, seed=0), wire)[3]
    plan, visit = RoundPlan(round=1, block=0, reads=0, visits=(), lr=0.0), Visit(0, 5, weight=5, share=1.0)
    replica.apply(Update(0, 0, 0, (values[:6],)))
    with pytest.raises(AssertionError, match="last part"):
        replica.start(plan, visit)
    with pytest.raises(AssertionError, match="last part"):
        replica.apply(Update(1, 1, 0, (values,)))
    replica.apply(Update(0, 0, 0, (values[6:],), start=6))
    replica.start(plan, visit)
