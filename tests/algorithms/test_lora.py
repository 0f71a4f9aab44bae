"""Federated LoRA: every method against the dense ΔW in fp64, and against the faults that others have."""

import ast
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_leaves

import parablock_ray
from benchmarks.tensor_memory import TensorMemory
from parablock_ray.algorithms import lora
from parablock_ray.algorithms.lora import (
    Adapter,
    fedex_lora,
    fedit,
    ffa_lora,
    fit,
    flexlora,
    flora,
    florist,
    hetlora,
    zero_pad,
)
from parablock_ray.errors import UserError
from tests.algorithms.lora_cases import ACCURACY, DTYPES, KINDS, Case, cases, dense, product, random_adapters
from tests.algorithms.lora_cases import spectral_norm as norm

many = settings(max_examples=60, deadline=None)
thresholds = st.floats(0.01, 1.0)
WELL_POSED = [kind for kind in KINDS if kind != "cancelling"]
MIXED = [1, 4, 2, 8]
WEIGHTS = [0.4, 0.1, 0.3, 0.2]


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool(found.isfinite().all()) and norm(found - expected) <= tolerance


# FLoRIST


@many
@given(cases())
def test_florist_at_threshold_1_is_the_exact_update(case: Case):
    B, A, info = florist(case.adapters, case.weights, 1.0)
    assert B.dtype == A.dtype == info.singular_values.dtype == case.dtype
    assert B.shape[1] == len(A) == info.rank
    assert close(product((B, A, 1.0)), case.exact, case.tolerance)
    sigma = torch.linalg.svdvals(case.exact)[: sum(case.ranks)]
    assert (info.singular_values - sigma).abs().max() <= case.tolerance


@many
@given(cases(kinds=WELL_POSED), thresholds)
def test_florist_keeps_the_least_rank_that_has_the_energy(case: Case, threshold: float):
    B, A, info = florist(case.adapters, case.weights, threshold)
    energy = torch.linalg.svdvals(case.exact).square()
    kept = energy.cumsum(0) / energy.sum()
    tie = ACCURACY[case.dtype]
    assert kept[info.rank - 1] >= threshold - tie
    assert info.rank == 1 or kept[info.rank - 2] < threshold + tie
    assert info.kept_energy == pytest.approx(float(kept[info.rank - 1]), abs=tie)
    lost = (case.exact - product((B, A, 1.0))).square().sum() / energy.sum()
    assert float(lost) == pytest.approx(1 - info.kept_energy, abs=tie)


@many
@given(cases(kinds=WELL_POSED), st.lists(thresholds, min_size=2, max_size=6))
def test_rank_never_falls_as_the_threshold_rises(case: Case, some: list[float]):
    ranks = [florist(case.adapters, case.weights, threshold)[2].rank for threshold in sorted(some)]
    assert ranks == sorted(ranks)


@many
@given(cases(kinds=WELL_POSED), thresholds, st.randoms(), st.sampled_from([1e-6, 0.3, 1e6]))
def test_order_of_clients_and_the_size_of_all_a_change_nothing(case: Case, threshold: float, shuffle, size: float):
    energy = torch.linalg.svdvals(case.exact).square()
    kept = energy.cumsum(0) / energy.sum()
    assume(threshold < 1 and (kept - threshold).abs().min() > ACCURACY[case.dtype])  # no tie at the cut
    B, A, info = florist(case.adapters, case.weights, threshold)
    order = list(range(len(case.adapters)))
    shuffle.shuffle(order)
    resized = [Adapter(case.adapters[i].B, case.adapters[i].A * size, case.adapters[i].scaling) for i in order]
    B2, A2, info2 = florist(resized, [case.weights[i] for i in order], threshold)
    assert info2.rank == info.rank
    assert info2.kept_energy == pytest.approx(info.kept_energy, abs=ACCURACY[case.dtype])
    sigma = info.singular_values
    if info.rank == len(sigma) or sigma[info.rank - 1] > 1.1 * sigma[info.rank]:  # or the cut subspace is ill-posed
        assert close(product((B2, A2, 1.0)) / size, product((B, A, 1.0)), 20 * case.tolerance)


@many
@given(cases(kinds=["one_client"]))
def test_one_client_gets_its_own_product_back(case: Case):
    B, A, _ = florist(case.adapters, [1.0], 1.0)
    assert close(product((B, A, 1.0)), product(case.adapters[0]), case.tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n", "ranks"), [(40, 30, [4, 8]), (6, 30, [4, 8]), (3, 2, [9, 9])])
@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_all_zero_adapters_give_rank_1_and_zero_factors(dtype, m, n, ranks, threshold):
    real = random_adapters(m, n, ranks, dtype)
    for zeroed in ("B", "A", "both"):
        adapters = [Adapter(each.B * (zeroed == "A"), each.A * (zeroed == "B"), each.scaling) for each in real]
        B, A, info = florist(adapters, [0.25, 0.75], threshold)
        assert (B.shape, A.shape, info.rank, info.kept_energy) == ((m, 1), (1, n), 1, 1.0)
        assert not B.any()
        assert not A.any()
        assert not info.singular_values.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_updates_that_cancel_leave_nothing_not_noise(dtype):
    (plus,) = random_adapters(50, 40, [4], dtype)
    minus = Adapter(plus.B, -plus.A, plus.scaling)
    B, _, info = florist([plus, minus], [0.5, 0.5], 1.0)
    assert info.rank == 1
    assert not B.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_copies", [2, 30])
def test_at_threshold_1_the_rank_is_the_numerical_rank(dtype, num_copies):
    same = random_adapters(90, 70, [3], dtype)[0]
    weights = [1 / num_copies] * num_copies
    assert florist([same] * num_copies, weights, 1.0)[2].rank == 3
    assert florist([same] * (num_copies - 1) + random_adapters(90, 70, [2], dtype, 1), weights, 1.0)[2].rank == 5


def test_max_rank_limits_the_rank_and_says_what_it_costs():
    adapters = random_adapters(30, 20, MIXED)
    all_of_it = florist(adapters, WEIGHTS, 1.0)[2]
    B, A, info = florist(adapters, WEIGHTS, 1.0, max_rank=5)
    assert (B.shape, A.shape, info.rank) == ((30, 5), (5, 20), 5)
    energy = all_of_it.singular_values.square()
    assert info.kept_energy == pytest.approx(float(energy[:5].sum() / energy.sum()))
    assert florist(adapters, WEIGHTS, 0.1, max_rank=5)[2].rank == florist(adapters, WEIGHTS, 0.1)[2].rank


def test_half_precision_comes_back_as_half_precision():
    adapters = random_adapters(40, 30, [2, 4], torch.float32)
    halves = [Adapter(each.B.bfloat16(), each.A.bfloat16(), each.scaling) for each in adapters]
    B, A, _ = florist(halves, [0.5, 0.5], 1.0)
    assert B.dtype == A.dtype == torch.bfloat16
    exact = dense(halves, [0.5, 0.5])
    assert close(product((B, A, 1.0)), exact, 0.01 * norm(exact))


def test_columns_that_even_the_ridge_cannot_hold_go_by_qr(monkeypatch):
    monkeypatch.setattr(lora, "_RIDGE", 0.0)
    went = []
    by_qr = lora._qr_route
    monkeypatch.setattr(lora, "_qr_route", lambda *arguments: went.append(True) or by_qr(*arguments))
    same = random_adapters(90, 70, [3], torch.float32)[0]
    B, A, info = florist([same] * 20, [0.05] * 20, 1.0)
    assert went
    assert info.rank == 3
    assert close(product((B, A, 1.0)), product(same), 1e-5 * norm(product(same)))


# The others, and what they are in relation to each other


@many
@given(cases())
def test_flora_and_flexlora_are_exact(case: Case):
    stack = flora(case.adapters, case.weights)
    assert (stack.rank, stack.scaling) == (sum(case.ranks), 1.0)
    assert close(product(stack), case.exact, case.tolerance)
    whole = flexlora(case.adapters, case.weights)
    assert close(product(whole), case.exact, case.tolerance)
    B, A, _ = florist(case.adapters, case.weights, 1.0)
    assert close(product(whole), product((B, A, 1.0)), 2 * case.tolerance)


@many
@given(cases(kinds=["equal_ranks", "copies"]))
def test_fedex_is_exact_with_its_residual_and_ffa_with_one_a(case: Case):
    mean, residual = fedex_lora(case.adapters, case.weights)
    terms = [*(Adapter(each.B, each.A, each.scaling) for each in case.adapters), mean]
    tolerance = ACCURACY[case.dtype] * sum(norm(product(each)) for each in terms)
    assert close(product(mean) + product(residual), case.exact, tolerance)
    shared = [Adapter(each.B, case.adapters[0].A, each.scaling) for each in case.adapters]
    result = ffa_lora(shared, case.weights)
    assert torch.equal(result.A, shared[0].A)
    assert close(product(result), dense(shared, case.weights), tolerance)


def test_fedit_is_the_mean_of_the_factors_and_so_not_exact():
    adapters = [Adapter(each.B, each.A, 2.0) for each in random_adapters(12, 9, [3] * 4)]
    found = fedit(adapters, WEIGHTS)
    assert found.scaling == 2.0
    torch.testing.assert_close(found.B, sum(p * each.B for p, each in zip(WEIGHTS, adapters, strict=True)))
    torch.testing.assert_close(found.A, sum(p * each.A for p, each in zip(WEIGHTS, adapters, strict=True)))
    exact = dense(adapters, WEIGHTS)
    assert norm(product(found) - exact) > 0.1 * norm(exact)
    same = [adapters[0]] * 4
    assert close(product(fedit(same, WEIGHTS)), product(adapters[0]), 1e-12 * norm(product(adapters[0])))


def test_scalings_that_differ_count_once_each():
    """With one A the mean of factors is exact, so that nothing but the scalings could be wrong."""
    A = random_adapters(12, 9, [3])[0].A
    adapters = [Adapter(each.B, A, each.scaling) for each in random_adapters(12, 9, [3] * 4, seed=1)]
    assert len({each.scaling for each in adapters}) == 4
    exact = dense(adapters, WEIGHTS)
    for method in (fedit, zero_pad, ffa_lora):
        assert close(product(method(adapters, WEIGHTS)), exact, 1e-12 * norm(exact))


def test_zero_pad_is_fedit_of_padded_factors():
    adapters = random_adapters(12, 9, MIXED)
    padded = [fit(each, 8, each.scaling) for each in adapters]
    assert [each.rank for each in padded] == [8] * 4
    for before, after in zip(adapters, padded, strict=True):
        assert torch.equal(product(before), product(after))
    assert torch.equal(product(zero_pad(adapters, WEIGHTS)), product(fedit(padded, WEIGHTS)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_hetlora_weighs_by_the_norm_of_the_product(dtype):
    adapters = random_adapters(12, 9, MIXED, dtype)
    norms = [float((each.B.double() @ each.A.double()).norm()) for each in adapters]
    expected = zero_pad(adapters, [each / sum(norms) for each in norms])
    found = hetlora(adapters, WEIGHTS)
    torch.testing.assert_close(found.B, expected.B)
    torch.testing.assert_close(found.A, expected.A)
    assert found.scaling == pytest.approx(expected.scaling)


def test_hetlora_of_products_that_are_all_zero_has_no_nan():
    adapters = [Adapter(each.B * 0, each.A, each.scaling) for each in random_adapters(12, 9, MIXED)]
    assert torch.equal(hetlora(adapters, WEIGHTS).A, zero_pad(adapters, WEIGHTS).A)


def test_a_client_that_is_fitted_keeps_the_update_under_its_own_scaling():
    given_out = random_adapters(12, 9, [4])[0]
    for rank, scaling in [(4, 0.5), (7, 3.0)]:
        fitted = fit(given_out, rank, scaling)
        assert (fitted.rank, fitted.scaling) == (rank, scaling)
        torch.testing.assert_close(product(fitted), product(given_out))
    cut = fit(given_out, 2, given_out.scaling)
    assert torch.equal(cut.B, given_out.B[:, :2])
    assert torch.equal(cut.A, given_out.A[:2])


METHODS: dict[str, Callable] = {
    "fedit": fedit,
    "zero_pad": zero_pad,
    "hetlora": hetlora,
    "ffa_lora": ffa_lora,
    "fedex_lora": fedex_lora,
    "flora": flora,
    "flexlora": flexlora,
    "florist": lambda adapters, weights: florist(adapters, weights, 0.9),
}


@pytest.mark.parametrize("method", METHODS)
def test_plain_tuples_do_and_nothing_given_is_changed(method):
    A = random_adapters(12, 9, [3])[0].A
    adapters = [(each.B, A.clone(), 2.0) for each in random_adapters(12, 9, [3, 3])]
    before = [(B.clone(), A.clone()) for B, A, _ in adapters]
    METHODS[method](adapters, [0.5, 0.5])
    for (B, A, _), (old_B, old_A) in zip(adapters, before, strict=True):
        assert torch.equal(B, old_B)
        assert torch.equal(A, old_A)


@pytest.mark.parametrize("method", METHODS)
def test_live_parameters_of_a_model_do_too(method):
    A = torch.nn.Parameter(torch.randn(3, 9))
    results = METHODS[method]([(torch.nn.Parameter(torch.randn(12, 3)), A, 2.0) for _ in range(2)], [0.5, 0.5])
    tensors = [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]
    assert len(tensors) >= 2
    assert not any(tensor.requires_grad for tensor in tensors)


# Memory


def check_memory(rule: Callable[[Sequence[Adapter], list[float]], object], dtype: torch.dtype, side: int) -> None:
    """No tensor is larger than the two stacks, and all that is alive at once is a small number of stacks in fp64."""
    adapters, weights = random_adapters(side, side, [4, 8, 16, 4], dtype), WEIGHTS
    stacks = 2 * side * 32
    with TensorMemory() as memory:
        rule(adapters, weights)
    assert memory.largest <= stacks
    assert memory.peak_bytes <= 5 * stacks * 8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", [24, 48, 400, 1600])
@pytest.mark.parametrize("method", ["florist", "hetlora", "flora", "zero_pad"])
def test_memory_grows_with_m_plus_n_not_with_their_product(method, dtype, side):
    check_memory(METHODS[method], dtype, side)


def test_the_check_of_memory_rejects_a_dense_update():
    with pytest.raises(AssertionError):
        check_memory(flexlora, torch.float32, 400)
    with pytest.raises(AssertionError):
        check_memory(dense, torch.float64, 400)


def test_fedex_forms_no_dense_residual():
    adapters = random_adapters(800, 800, [4] * 4, torch.float32)
    with TensorMemory() as memory:
        fedex_lora(adapters, WEIGHTS)
    assert memory.largest <= 2 * 800 * 16


# Faults of public reference code: each check passes for ours and fails for the faulty rule.

Rule = Callable[[Sequence[Adapter], Sequence[float]], list[Adapter]]  # what each client trains on with


def fitted_to_each(method: Callable) -> Rule:
    """Our rule as clients see it."""
    return lambda adapters, weights: [fit(method(adapters, weights), each.rank, each.scaling) for each in adapters]


def check_each_has_its_own_best_approximation(rule: Rule) -> None:
    adapters = random_adapters(20, 16, MIXED)
    exact = dense(adapters, WEIGHTS)
    sigma = torch.linalg.svdvals(exact)
    for client, result in zip(adapters, rule(adapters, WEIGHTS), strict=True):
        assert (result.rank, result.scaling) == (client.rank, client.scaling)
        assert norm(exact - product(result)) == pytest.approx(float(sigma[client.rank]), rel=1e-9)


def test_fault_flexlora_cuts_all_clients_alike():
    def faulty(adapters, weights):
        result = flexlora(adapters, weights)
        return [fit(result, min(each.rank for each in adapters), each.scaling) for each in adapters]

    def faulty_padded(adapters, weights):
        return [
            fit(cut, each.rank, each.scaling) for cut, each in zip(faulty(adapters, weights), adapters, strict=True)
        ]

    check_each_has_its_own_best_approximation(fitted_to_each(flexlora))
    for rule in (faulty, faulty_padded):
        with pytest.raises(AssertionError):
            check_each_has_its_own_best_approximation(rule)


def check_factors_are_told_apart(method: Callable, m: int, n: int, rank: int) -> None:
    adapters = random_adapters(m, n, [rank] * 2)
    result = method(adapters, [0.25, 0.75])
    expected = zero_pad([fit(each, rank, each.scaling) for each in adapters], [0.25, 0.75])
    assert torch.equal(result.B, expected.B)
    assert torch.equal(result.A, expected.A)


def test_fault_factors_told_apart_by_shape():
    def faulty(adapters, weights):
        def is_a(factor: Tensor, rank: int) -> bool:
            return factor.shape[0] == rank

        swapped = [Adapter(A, B, s) if is_a(B, B.shape[1]) else Adapter(B, A, s) for B, A, s in adapters]
        mean = fedit(swapped, weights)
        return Adapter(mean.B, mean.A, mean.scaling)

    check_factors_are_told_apart(faulty, 7, 5, 3)  # mostly it works
    for m, n in [(4, 4), (4, 7), (7, 4)]:
        check_factors_are_told_apart(fedit, m, n, 4)
    with pytest.raises(AssertionError):
        check_factors_are_told_apart(faulty, 4, 4, 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n"), [(4, 4), (4, 9), (9, 4)])
@pytest.mark.parametrize("method", [flora, flexlora])
def test_exact_methods_where_a_side_equals_the_rank(method, m, n, dtype):
    adapters = random_adapters(m, n, [4, 4], dtype)
    exact = dense(adapters, [0.25, 0.75])
    assert close(product(method(adapters, [0.25, 0.75])), exact, ACCURACY[dtype] * norm(exact))
    B, A, _ = florist(adapters, [0.25, 0.75], 1.0)
    assert close(product((B, A, 1.0)), exact, ACCURACY[dtype] * norm(exact))


def check_only_b_moves(method: Callable) -> None:
    """Clients keep A as handed out and train B from zero."""
    handed_out = random_adapters(8, 6, [3])[0].A
    adapters = [Adapter(each.B, handed_out.clone(), 2.0) for each in random_adapters(8, 6, [3] * 4, seed=1)]
    result = method(adapters, WEIGHTS)
    assert torch.equal(result.A, handed_out)
    exact = dense(adapters, WEIGHTS)
    assert close(product(result), exact, 1e-12 * norm(exact))


def test_fault_ffa_freezes_the_wrong_factor():
    def faulty(adapters, weights):
        return Adapter(adapters[0].B, fedit(adapters, weights).A, adapters[0].scaling)

    check_only_b_moves(ffa_lora)
    with pytest.raises(AssertionError):
        check_only_b_moves(faulty)
    trained_a = [Adapter(torch.zeros(8, 3), each.A.float(), 2.0) for each in random_adapters(8, 6, [3, 3])]
    with pytest.raises(UserError, match=r"adapters\[1\]: its A differs .* ffa_lora averages B alone"):
        ffa_lora(trained_a, [0.5, 0.5])


def check_alpha_under_mixed_ranks(method: Callable[[Sequence[Adapter], list[float]], Adapter]) -> None:
    alpha = 16
    adapters = [Adapter(each.B, each.A, alpha / each.rank) for each in random_adapters(20, 16, MIXED)]
    exact = dense(adapters, WEIGHTS)
    assert close(product(method(adapters, WEIGHTS)), exact, 1e-12 * norm(exact))


def test_fault_the_server_has_one_scaling_where_clients_have_theirs():
    def faulty(adapters, weights):
        common = 16 / max(each.rank for each in adapters)
        return flora([Adapter(each.B, each.A, common) for each in adapters], weights)

    def weighted_twice(adapters, weights):
        return flora([Adapter(each.B, each.A * each.scaling, each.scaling) for each in adapters], weights)

    for method in (flora, flexlora, lambda *given: Adapter(*florist(*given, 1.0)[:2], 1.0)):
        check_alpha_under_mixed_ranks(method)
    for rule in (faulty, weighted_twice):
        with pytest.raises(AssertionError):
            check_alpha_under_mixed_ranks(rule)


def check_all_train_on_with_the_mean(rule: Rule) -> None:
    adapters = random_adapters(8, 6, [3] * 4)
    weights_B = [p * each.scaling for p, each in zip(WEIGHTS, adapters, strict=True)]
    B = sum(weight * each.B for weight, each in zip(weights_B, adapters, strict=True))
    A = sum(p * each.A for p, each in zip(WEIGHTS, adapters, strict=True))
    results = rule(adapters, WEIGHTS)
    assert len(results) == 4
    for client, result in zip(adapters, results, strict=True):
        assert result.scaling == client.scaling
        assert close(product(result), B @ A, 1e-12 * norm(B @ A))


def test_fault_fedit_gives_its_mean_to_one_client_only():
    def faulty(adapters, weights):
        return [fit(fedit(adapters, weights), 3, adapters[0].scaling), *adapters[1:]]

    check_all_train_on_with_the_mean(fitted_to_each(fedit))
    with pytest.raises(AssertionError):
        check_all_train_on_with_the_mean(faulty)


def asserted_tuples(source: str) -> list[int]:
    """Lines with `assert (condition, "text")`: a tuple is true, so that this never fails."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assert) and isinstance(node.test, ast.Tuple)
    ]


def test_fault_assert_of_a_tuple_never_fails():
    for file in Path(parablock_ray.__file__).parent.rglob("*.py"):
        assert asserted_tuples(file.read_text("utf-8")) == [], file
    assert asserted_tuples("x = 1\nassert (x == 2, 'x is 2')") == [2]


# Mistakes of the user


def adapters_with(**changed: object) -> list[Adapter]:
    good = random_adapters(6, 5, [2, 2])
    return [good[0], good[1]._replace(**changed)]


HALVES = [0.5, 0.5]


@pytest.mark.parametrize(
    ("adapters", "weights", "message"),
    [
        ([], [], r"adapters: none given; allowed: one \(B, A, scaling\) or more"),
        (adapters_with(B=torch.zeros(6, 0), A=torch.zeros(0, 5)), HALVES, r"adapters\[1\]: rank 0; allowed: 1 or"),
        (adapters_with(B=torch.zeros(6, 3)), HALVES, r"adapters\[1\]: B is 6x3 and A is 2x5; allowed: B m x r"),
        (adapters_with(B=torch.zeros(6)), HALVES, r"adapters\[1\]: B is 6 and A is 2x5; allowed: B m x r"),
        (adapters_with(A=torch.zeros(2, 9)), HALVES, r"adapters\[1\]: for a weight of 6x9, adapters\[0\] for .* 6x5"),
        (adapters_with(A=torch.zeros(2, 5)), HALVES, r"adapters\[1\]: .* A is torch.float32 .*; allowed: one floating"),
        (adapters_with(scaling=0.0), HALVES, r"adapters\[1\]: scaling 0.0; allowed: above 0 and finite"),
        (adapters_with(scaling=float("nan")), HALVES, r"adapters\[1\]: scaling nan; allowed"),
        (adapters_with(), [1.0], "weights: 1 for 2 adapters; allowed: one for each"),
        (adapters_with(), [3.0, 5.0], "sum to 8; allowed: none below 0, sum 1; divide each n_k"),
        (adapters_with(), [1.5, -0.5], "allowed: none below 0"),
        (adapters_with(), [float("nan"), 1.0], "sum to nan; allowed"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_aggregated_is_refused(method, adapters, weights, message):
    with pytest.raises(UserError, match=message):
        METHODS[method](adapters, weights)


@pytest.mark.parametrize("threshold", [0, -0.1, 1.01, float("nan"), 90])
def test_threshold_outside_0_to_1_is_refused(threshold):
    with pytest.raises(UserError, match=r"threshold: .*; allowed: above 0, up to 1; it is the share of squared"):
        florist(adapters_with(), HALVES, threshold)


def test_max_rank_0_is_refused():
    with pytest.raises(UserError, match="max_rank: 0; allowed: 1 or more; leave it out for no limit"):
        florist(adapters_with(), HALVES, 0.9, max_rank=0)


@pytest.mark.parametrize("method", ["fedit", "ffa_lora", "fedex_lora"])
def test_mixed_ranks_are_refused_where_factors_are_averaged(method):
    message = rf"ranks \[2, 3\] with {method}; allowed: one rank for all clients, since {method} averages .* or use"
    with pytest.raises(UserError, match=message):
        METHODS[method](random_adapters(6, 5, [2, 3]), HALVES)


@pytest.mark.parametrize("method", METHODS)
def test_a_rank_above_both_sides_is_allowed(method):
    A = random_adapters(3, 2, [7])[0].A
    METHODS[method]([Adapter(each.B, A, each.scaling) for each in random_adapters(3, 2, [7, 7])], HALVES)
