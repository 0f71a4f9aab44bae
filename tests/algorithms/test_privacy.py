"""Clipping, noise and the noised sum: bounds that hold to the last bit, and noise of just the stated size."""

import math

import pytest
import torch
from torch import Tensor

from parablock_ray.algorithms.aggregate import l2_norm
from parablock_ray.algorithms.base import Commit, RoundPlan, Visit
from parablock_ray.algorithms.methods import make_method, make_server
from parablock_ray.algorithms.population import Population
from parablock_ray.algorithms.privacy import GaussianMean, NoisedSum, clipped, with_share
from parablock_ray.algorithms.secret import derived, gaussian, uniform
from parablock_ray.algorithms.wire import Wire
from parablock_ray.config.method import FedBCD, ParaBlock

KEY, CLIP = b"a key of a test", 0.7
SIZE, BOUNDS = 40, [(0, 16), (16, 32), (32, 40)]
CLIENTS = (3, 1, 5, 0)


def deltas(scale: float = 1.0) -> dict[int, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {client: torch.randn(SIZE, generator=random) * scale for client in CLIENTS}


def plan_of(clients, round: int = 4) -> RoundPlan:
    visits = tuple(Visit(client, 10, 1, share=1 / 4) for client in clients)
    return RoundPlan(round, 0, round - 1, visits, 0.1, clip=CLIP)


def mean_of(updates: dict[int, Tensor], noise: float, round: int = 4, count_noise: float | None = None) -> NoisedSum:
    """Of what these clients send, through the very code of a run."""
    rule = GaussianMean(expected=4, noise=noise, count_noise=count_noise, key=KEY)
    total = NoisedSum(plan_of(updates, round), BOUNDS, torch.float32, rule)
    for client, delta in updates.items():
        cut = clipped(delta, CLIP)
        for chunk, (start, end) in enumerate(BOUNDS):
            total.add(client, chunk, cut[start:end])
    return total


def whole(total: NoisedSum) -> Tensor:
    return torch.cat([total.mean(chunk) for chunk in range(len(BOUNDS))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1.0, 300.0])
@pytest.mark.parametrize("norm", [1e-6, 0.7, 50.0])
def test_no_update_is_longer_than_the_clip_whatever_rounds_it(dtype, scale, norm):
    delta = (torch.randn(10_000, generator=torch.Generator().manual_seed(1)) * scale).to(dtype)
    cut = clipped(delta, norm)
    assert (cut.dtype, l2_norm([cut]) <= norm) == (dtype, True)
    if l2_norm([delta]) <= norm:
        assert cut is delta
    elif norm > 1e-3:  # else float16 has no such small numbers
        assert l2_norm([cut]) > 0.95 * norm
        direction = torch.nn.functional.cosine_similarity(cut.double(), delta.double(), dim=0)
        assert direction > 0.999


def test_one_client_moves_the_sum_by_the_clip_and_one_replaced_by_twice_that():
    """The sensitivity that the accountant is told. Rounding of fp32 sums is what the tolerance is for."""
    ours, bound = deltas(), CLIP / 4
    everybody = whole(mean_of(ours, noise=0.0))
    for client in CLIENTS:
        others = {each: delta for each, delta in ours.items() if each != client}
        moved = float((everybody - whole(mean_of(others, noise=0.0))).norm())
        assert moved == pytest.approx(bound, rel=1e-5), "every delta here is longer than the clip"
        replaced = whole(mean_of({**ours, client: ours[client] * -1e6}, noise=0.0))
        assert float((everybody - replaced).norm()) == pytest.approx(2 * bound, rel=1e-5)


def test_who_is_left_out_does_not_change_what_the_sum_is_divided_by():
    ours = deltas(scale=1e-3)  # below the clip
    few = {client: ours[client] for client in CLIENTS[:2]}
    assert torch.allclose(whole(mean_of(few, noise=0.0)), (ours[3] + ours[1]) / 4, rtol=1e-6, atol=0)
    dropped = mean_of(few, noise=0.0)  # planned for four, of whom two never come
    rule = GaussianMean(4, 0.0, None, None)
    planned = NoisedSum(plan_of(CLIENTS), BOUNDS, torch.float32, rule)
    for client, delta in few.items():
        for chunk, (start, end) in enumerate(BOUNDS):
            planned.add(client, chunk, delta[start:end])
    assert not planned.is_complete(0)
    for client in CLIENTS[2:]:
        planned.drop(client)
    assert torch.equal(whole(planned), whole(dropped))


def test_the_noise_is_normal_with_the_stated_variance():
    draws = gaussian(KEY, b"many", 1_000_001)
    num = len(draws)
    assert num == 1_000_001
    # Five standard errors of each moment of a standard normal.
    for power, (moment, variance) in {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}.items():
        assert float(draws.pow(power).mean()) == pytest.approx(moment, abs=5 * math.sqrt(variance / num))
    share = draws.sort().values
    empirical, expected = torch.arange(1, num + 1) / num, torch.special.ndtr(share)
    assert float((empirical - expected).abs().max()) < 1.95 / math.sqrt(num)  # Kolmogorov and Smirnov, p 1e-3
    lag = float((draws[:-1] * draws[1:]).mean())
    assert abs(lag) < 5 / math.sqrt(num)


def test_a_rounds_noise_has_the_stated_variance_and_is_another_in_every_round():
    noise, rounds = 1.5, 600
    clean = whole(mean_of(deltas(), noise=0.0)).double()
    drawn = torch.stack([whole(mean_of(deltas(), noise, round)).double() - clean for round in range(rounds)])
    std, num = noise * CLIP / 4, drawn.numel()
    assert float(drawn.mean()) == pytest.approx(0, abs=5 * std / math.sqrt(num))
    assert float(drawn.square().mean()) == pytest.approx(std**2, rel=5 * math.sqrt(2 / num))
    between = float((drawn[:-1] * drawn[1:]).mean()) / std**2
    assert abs(between) < 5 / math.sqrt(num)


def test_the_same_sum_has_the_same_noise_and_no_other_sum_shares_it():
    ours = deltas()
    clean, noised = whole(mean_of(ours, 0.0)), whole(mean_of(ours, 1.0))
    assert torch.equal(noised, whole(mean_of(ours, 1.0)))
    fewer = {client: ours[client] for client in CLIENTS[1:]}
    other = whole(mean_of(fewer, 1.0)) - whole(mean_of(fewer, 0.0))
    assert not torch.allclose(other, noised - clean, atol=1e-2), "their difference would show the client"


def test_shares_of_the_clients_sum_to_the_whole_noise():
    clients, std = 50, 2.0
    total = sum(
        with_share(torch.zeros(4000), std / math.sqrt(clients), derived(KEY, b"x"), 0, client).double()
        for client in range(clients)
    )
    assert float(total.square().mean()) == pytest.approx(std**2, rel=5 * math.sqrt(2 / 4000))
    delta = deltas()[3]
    assert torch.equal(with_share(delta, std, KEY, 1, 3), with_share(delta, std, KEY, 1, 3))
    assert not torch.equal(with_share(delta, std, KEY, 1, 3), with_share(delta, std, KEY, 1, 5))


def test_the_count_of_who_was_not_cut_is_noised():
    short = {client: delta * 1e-3 for client, delta in deltas().items()}
    mixed = {**deltas(), 3: short[3]}  # one of four is below the clip
    counts = [mean_of(mixed, 1.0, round, count_noise=0.5).unclipped for round in range(500)]
    drawn = torch.tensor(counts, dtype=torch.float64) - 0.25
    std = 0.5 / 4
    assert float(drawn.mean()) == pytest.approx(0, abs=5 * std / math.sqrt(500))
    assert float(drawn.square().mean()) == pytest.approx(std**2, rel=5 * math.sqrt(2 / 500))
    assert mean_of(short, 1.0, count_noise=1e-9).unclipped == pytest.approx(1.0)
    assert mean_of(short, 1.0).unclipped is None


def poisson(num_drawn: int, key: bytes = KEY, seed: int = 0) -> Population:
    return Population((3,) * 100, num_drawn, seed, sampling="poisson", is_private=True, key=key)


def test_poisson_draws_every_client_by_itself():
    method = make_method(FedBCD(name="fedbcd", rounds=4000), poisson(5))
    cohorts = [[visit.client for visit in method.plan(round).visits if visit.weight] for round in range(4000)]
    drawn = torch.zeros(100)
    for cohort in cohorts:
        drawn[cohort] += 1
    q = 0.05
    # χ² over the clients, which are independent: mean 100, standard deviation √200.
    assert float(((drawn - 4000 * q).square() / (4000 * q * (1 - q))).sum()) == pytest.approx(100, abs=5 * 200**0.5)
    sizes = torch.tensor([len(cohort) for cohort in cohorts], dtype=torch.float64)
    assert float(sizes.mean()) == pytest.approx(5, abs=5 * math.sqrt(4.75 / 4000))
    assert float(sizes.var()) == pytest.approx(4.75, rel=0.2)


def test_who_is_drawn_is_a_matter_of_the_key_alone():
    config = FedBCD(name="fedbcd", rounds=20)
    for sampling in ("poisson", "uniform"):

        def cohorts(key: bytes, seed: int, sampling=sampling) -> list[set[int]]:
            population = Population((3,) * 100, 5, seed, sampling=sampling, is_private=True, key=key)
            method = make_method(config, population)
            return [{visit.client for visit in method.plan(round).visits} for round in range(20)]

        assert cohorts(KEY, 0) == cohorts(KEY, 1) != cohorts(b"another", 0)
    fixed = Population((3,) * 100, 5, 0, sampling="uniform", is_private=True, key=KEY)
    assert {len(make_method(config, fixed).plan(round).visits) for round in range(20)} == {5}


def test_all_weigh_the_same_and_a_round_for_nobody_tells_its_noise():
    """With one of three clients expected many a round is for nobody: then one trains, and counts for nothing."""
    population = Population((9, 1, 4), 1, 0, sampling="poisson", is_private=True, key=b"almost nobody")
    config = ParaBlock(name="parablock", num_blocks=1, rounds=60, staleness=1)
    method = make_method(config, population)
    parameters = {"layers.0.weight": torch.zeros(6)}
    rule = GaussianMean(1, noise=1.0, count_noise=None, key=KEY)
    server = make_server(config, population, parameters, Wire(torch.float32, 8), cut_through=False, rule=rule)
    weights = set()
    for round in range(60):
        plan = method.plan(round)
        plan = RoundPlan(plan.round, plan.block, plan.reads, plan.visits, plan.lr, clip=CLIP)
        weights |= {(len(plan.visits), visit.weight, visit.share) for visit in plan.visits}
        server.open(plan)
        before = parameters["layers.0.weight"].clone()
        made = []
        for visit in plan.visits:
            update = torch.full((6,), 100.0) if visit.weight == 0 else torch.zeros(6)
            for chunk, (start, end) in enumerate(Wire(torch.float32, 8).bounds(6)):
                made += server.receive(round, visit.client, chunk, update[start:end])
        assert isinstance(made[-1], Commit)
        moved = parameters["layers.0.weight"] - before
        assert 0 < float(moved.abs().max()) < 6 * CLIP, "only the noise moves it"
    assert (1, 0, 0.0) in weights, "some rounds are for nobody"
    assert all(weight in (0, 1) and share == weight for _, weight, share in weights)


def test_uniform_numbers_are_uniform_and_never_zero():
    numbers = uniform(KEY, b"uniform", 300_000)
    assert float(numbers.mean()) == pytest.approx(0.5, abs=5 * math.sqrt(1 / 12 / 300_000))
    assert 0 < float(numbers.min()) <= float(numbers.max()) <= 1
    assert torch.equal(numbers, uniform(KEY, b"uniform", 300_000))
    assert not torch.equal(numbers, uniform(KEY, b"uniform2", 300_000))
