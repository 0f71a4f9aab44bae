"""The robust rules against their textbook definitions, and what f arbitrary updates can do to them."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parablock_ray.algorithms.aggregate import RoundSum, l2_norm
from parablock_ray.algorithms.base import RoundPlan, Visit
from parablock_ray.algorithms.robust import (
    RoundVectors,
    coordinate_median,
    krum_scores,
    open_round,
    squared_distances,
    trimmed_mean,
)
from parablock_ray.algorithms.wire import Wire
from parablock_ray.config.method import FedBCD, ParaBlock
from parablock_ray.config.server import Clip, Krum, Median, MultiKrum, TrimmedMean
from tests.algorithms.toy import Toy, run_toy

seeds = st.integers(0, 2**32 - 1)


def updates_of(seed: int, num: int, size: int = 7) -> Tensor:
    return torch.randn(num, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plan_of(num: int, num_examples: int = 3) -> RoundPlan:
    visits = tuple(Visit(client, num_examples + client, num_examples + client, 1 / num) for client in range(num))
    return RoundPlan(0, 0, -1, visits, 0.1)


def aggregate(rule, updates: Tensor, order: list[tuple[int, int]] | None = None, chunk_bytes: int = 24) -> Tensor:
    """What the server's book makes of the updates, whose chunks arrive in this order."""
    bounds = Wire(updates.dtype, chunk_bytes).bounds(updates.shape[1])
    book = open_round(rule, plan_of(len(updates)), bounds, updates.dtype, by_chunk=False)
    for client, chunk in order or list(itertools.product(range(len(updates)), range(len(bounds)))):
        start, end = bounds[chunk]
        book.add(client, chunk, updates[client, start:end])
    return torch.cat([book.mean(chunk) for chunk in range(len(bounds))])


# ---- the textbook


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 9), st.integers(1, 5))
def test_the_median_is_numpys(seed, num, size):
    updates = updates_of(seed, num, size).round(decimals=1)  # with ties
    assert np.array_equal(coordinate_median(updates).numpy(), np.median(updates.numpy(), axis=0))


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(0, 4), st.integers(1, 4))
def test_the_trimmed_mean_is_scipys(seed, num_attackers, num_more):
    stats = pytest.importorskip("scipy.stats")
    num = 2 * num_attackers + num_more
    updates = updates_of(seed, num)
    share = (num_attackers + 0.5) / num  # it rounds down; f / n times n may lie just below f
    expected = stats.trim_mean(updates.numpy(), share)
    torch.testing.assert_close(trimmed_mean(updates, num_attackers), torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


def krum_by_definition(updates: Tensor, num_attackers: int) -> list[float]:
    """s(i) = Σ_{i→j} ‖V_i − V_j‖², over the n − f − 2 closest V_j (Blanchard et al., section 4)."""
    vectors = updates.tolist()
    scores = []
    for i, mine in enumerate(vectors):
        distances = sorted(
            sum((a - b) ** 2 for a, b in zip(mine, other, strict=True)) for j, other in enumerate(vectors) if j != i
        )
        scores.append(sum(distances[: len(vectors) - num_attackers - 2]))
    return scores


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(0, 3), st.integers(0, 3), st.integers(1, 5))
def test_krum_is_that_of_the_paper(seed, num_attackers, num_more, num_pieces):
    updates = updates_of(seed, 2 * num_attackers + 3 + num_more)
    distances = squared_distances(iter(updates.tensor_split(num_pieces, dim=1)), len(updates))
    expected = krum_by_definition(updates, num_attackers)
    assert krum_scores(distances, num_attackers).tolist() == pytest.approx(expected, rel=1e-12)
    if num_attackers:
        best = min(range(len(updates)), key=lambda client: expected[client])
        assert torch.equal(aggregate(Krum(name="krum", num_attackers=num_attackers), updates), updates[best])


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 2), st.integers(0, 3), st.integers(1, 3))
def test_multi_krum_is_the_mean_of_the_best(seed, num_attackers, num_more, num_selected):
    updates = updates_of(seed, 2 * num_attackers + 3 + num_more)
    scores = krum_by_definition(updates, num_attackers)
    best = sorted(range(len(updates)), key=lambda client: scores[client])
    for given_num, num in ((num_selected, num_selected), (None, len(updates) - num_attackers - 2)):
        rule = MultiKrum(name="multi_krum", num_attackers=num_attackers, num_selected=given_num)
        torch.testing.assert_close(aggregate(rule, updates), updates[best[:num]].mean(dim=0), rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(2, 6), st.floats(0.1, 5))
def test_clipping_bounds_every_norm_and_keeps_the_weights(seed, num, norm):
    updates = updates_of(seed, num) * torch.logspace(-2, 2, num, dtype=torch.float64)[:, None]
    weights = torch.arange(num, dtype=torch.float64)[:, None] + 3
    factors = (norm / updates.norm(dim=1, keepdim=True)).clamp(max=1)
    expected = (updates * factors * weights).sum(dim=0) / weights.sum()
    found = aggregate(Clip(name="clip", norm=norm), updates)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.norm() <= norm * (1 + 1e-12)


def test_a_norm_overflows_in_no_dtype():
    largest = torch.finfo(torch.float32).max
    assert l2_norm([torch.full((3,), largest), torch.full((1,), -largest)]) == pytest.approx(2 * largest)


# ---- what holds whatever arrives

RULES = [
    Median(name="median"),
    TrimmedMean(name="trimmed_mean", num_attackers=2),
    Krum(name="krum", num_attackers=2),
    MultiKrum(name="multi_krum", num_attackers=2),
    Clip(name="clip", norm=1.0),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@settings(max_examples=25, deadline=None)
@given(seeds, st.randoms(), st.integers(4, 60))
def test_order_of_arrival_and_chunks_change_no_bit(rule, seed, shuffle, chunk_bytes):
    updates = updates_of(seed, 8)
    num_chunks = len(Wire(torch.float64, 24).bounds(7))
    order = list(itertools.product(range(8), range(num_chunks)))
    shuffle.shuffle(order)
    assert torch.equal(aggregate(rule, updates, order), aggregate(rule, updates))
    if not isinstance(rule, Clip):  # a norm is summed by chunk
        assert torch.equal(aggregate(rule, updates, chunk_bytes=max(8, chunk_bytes)), aggregate(rule, updates))


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.name != "clip"], ids=lambda rule: rule.name)
@settings(max_examples=25, deadline=None)
@given(seeds, st.randoms())
def test_who_sent_what_does_not_matter(rule, seed, shuffle):
    """Unweighted: of the same updates in other hands the same comes out. In whole numbers, so to the last bit."""
    updates = (updates_of(seed, 9) * 1000).round()
    hands = list(range(9))
    shuffle.shuffle(hands)
    scores = krum_by_definition(updates, 2)
    if len(set(scores)) == len(scores):
        assert torch.equal(aggregate(rule, updates[hands]), aggregate(rule, updates))


EVIL = st.one_of(st.floats(-1e12, 1e12), st.sampled_from([0.0, 1e30, -1e30]))


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 3), st.lists(EVIL, min_size=21, max_size=21), st.randoms())
def test_f_arbitrary_updates_move_no_coordinate_out_of_the_range_of_the_honest(seed, num_attackers, evil, shuffle):
    honest = updates_of(seed, num_attackers + 1)
    updates = torch.cat([honest, torch.tensor(evil, dtype=torch.float64).view(3, 7)[:num_attackers]])
    hands = list(range(len(updates)))
    shuffle.shuffle(hands)
    low, high = honest.amin(dim=0), honest.amax(dim=0)
    for found in (coordinate_median(updates[hands]), trimmed_mean(updates[hands], num_attackers)):
        assert ((found >= low - 1e-9) & (found <= high + 1e-9)).all()


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 3), st.lists(EVIL, min_size=21, max_size=21))
def test_f_arbitrary_updates_lead_krum_no_further_than_the_honest_are_apart(seed, num_attackers, evil):
    """Who is chosen scores no more than an honest one, and one of those that it is scored by is honest."""
    honest = updates_of(seed, num_attackers + 3)
    updates = torch.cat([honest, torch.tensor(evil, dtype=torch.float64).view(3, 7)[:num_attackers]])
    found = aggregate(Krum(name="krum", num_attackers=num_attackers), updates)
    apart = squared_distances(iter([honest]), len(honest)).max()
    nearest = (honest - found).square().sum(dim=1).min()
    assert nearest <= (len(updates) - num_attackers - 2) * apart * (1 + 1e-9)


def test_with_a_majority_that_lies_none_holds():
    """The limit is a limit: what the tests above show does not come from updates that could do nothing."""
    updates = torch.cat([updates_of(0, 3), torch.full((4, 7), 1e6, dtype=torch.float64)])
    assert coordinate_median(updates).min() == 1e6
    assert trimmed_mean(updates, 3).min() == 1e6
    assert aggregate(Krum(name="krum", num_attackers=2), updates).min() == 1e6


# ---- in the server


def test_who_is_dropped_has_no_part_and_krum_is_asked_anew():
    updates, rule = updates_of(1, 8), Krum(name="krum", num_attackers=2)
    book = RoundVectors(plan_of(8), [(0, 7)], torch.float64, rule)
    for client in range(1, 8):
        book.add(client, 0, updates[client])
    assert not book.is_complete(0)
    book.drop(0)
    assert torch.equal(book.mean(0), aggregate(rule, updates[1:]))


@pytest.mark.parametrize("rule", [RULES[0], TrimmedMean(name="trimmed_mean", num_attackers=1)], ids=["median", "trim"])
def test_by_coordinate_chunks_may_cut_through(rule):
    method = ParaBlock(name="parablock", num_blocks=3, rounds=7, lr=0.05)
    plain, cut = (run_toy(Toy(method, rule=rule, cut_through=cut)) for cut in (False, True))
    assert torch.equal(plain.final, cut.final)


@pytest.mark.parametrize("rule", [RULES[0], RULES[4]], ids=["median", "clip"])
def test_a_resumed_server_goes_on_with_its_rule(rule):
    method = ParaBlock(name="parablock", num_blocks=3, rounds=7, lr=0.05)
    whole, resumed = (run_toy(Toy(method, rule=rule, resumes_after=each)) for each in (None, 3))
    assert torch.equal(whole.final, resumed.final)
    assert not torch.equal(whole.final, run_toy(Toy(method)).final)


def test_one_round_of_the_server_is_the_rule_on_its_deltas():
    history = run_toy(Toy(FedBCD(name="fedbcd", num_blocks=3, rounds=1, lr=0.05), rule=RULES[0]))
    deltas = torch.stack([history.deltas[0, visit.client] for visit in history.plans[0].visits])
    block = history.block_slices[history.plans[0].block]
    assert torch.equal(history.final[block], history.versions[0][block] + coordinate_median(deltas))


def test_clipping_takes_whole_clients():
    with pytest.raises(AssertionError):
        RoundSum(plan_of(2), [(0, 2), (2, 4)], torch.float32, by_chunk=True, clip=1.0)
