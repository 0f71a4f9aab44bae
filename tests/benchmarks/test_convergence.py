"""The benchmark of convergence: its problem's gradient, its fit, and that the package's own rule runs in it."""

import importlib
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture
def convergence(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; scripts find each other in their own folder."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("convergence")


def test_the_gradient_is_that_of_the_objective_as_the_document_writes_it(convergence):
    problem = convergence.make_problem((3, 5), num_seeds=2)
    x = problem.start.clone().requires_grad_()
    objective = 0.0
    for client in problem.clients:
        margins = client.signs * torch.einsum("snd,sd->sn", client.features, x)
        losses = torch.log1p(torch.exp(-margins)).mean(dim=1)
        regularisers = convergence.REGULARISER * (x**2 / (1 + x**2)).sum(dim=1)
        objective += (losses + regularisers).sum() * client.signs.shape[1] / 8
    objective.backward()
    torch.testing.assert_close(convergence.gradient(problem.together, problem.start), x.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_clients", [1, 3])
def test_overlap_changes_no_value_for_one_client_and_some_for_several(convergence, num_clients):
    problem = convergence.make_problem((4, 6, 5)[:num_clients], num_seeds=2)
    fedbcd, parablock, stale = (
        convergence.mean_squared_gradient(convergence.config_of(name, 12, 1.0), problem)
        for name in ("fedbcd", "parablock", "parablock_stale")
    )
    assert torch.equal(fedbcd, parablock) == (num_clients == 1)
    assert not torch.equal(fedbcd, stale)


def test_seeds_side_by_side_are_what_they_are_alone(convergence):
    together, alone = (
        convergence.mean_squared_gradient(
            convergence.config_of("parablock", 8, 1.0), convergence.make_problem((4, 6), num_seeds)
        )
        for num_seeds in (3, 1)
    )
    torch.testing.assert_close(together[:1], alone, rtol=1e-12, atol=0)


def test_a_power_law_is_fitted_exactly_and_a_bend_shows_in_the_error(convergence):
    exact = {t: torch.tensor([3.0, 5.0]).double() * t**-0.5 for t in (8, 16, 32, 64)}
    fitted = convergence.fit(exact)
    assert (fitted.slope, fitted.at(1)) == pytest.approx((-0.5, 4.0))
    assert fitted.error == pytest.approx(0, abs=1e-9)
    assert [slope for _, slope in convergence.local_slopes(exact)] == pytest.approx([-0.5] * 3)
    # By hand: log2 T = 0, 1, 2 and log2 of the means 0, 1, 0: slope 0, residuals ∓1/3, ±2/3, ∓1/3 → √((2/3) / 1 / 2).
    bent = convergence.fit({1: torch.tensor([1.0]), 2: torch.tensor([2.0]), 4: torch.tensor([1.0])})
    assert (bent.slope, bent.error) == pytest.approx((0.0, math.sqrt(1 / 3)))


def test_rows_and_figure_of_a_tiny_grid(convergence, tmp_path):
    options = convergence.arguments(["--rounds", "8", "4", "6", "--seeds", "2", "--methods", "parablock"])
    problem = convergence.make_problem((4, 6), options.seeds)
    curves = {name: convergence.curve(name, problem, options) for name in ("fedbcd", "parablock")}
    fits = {name: convergence.fit(curves[name]) for name in curves}
    rows = {row.name: row for row in convergence.figures(curves, fits)}
    slope = rows["convergence/slope/parablock"]
    assert (slope.value, slope.goal, slope.at_most) == (fits["parablock"].slope, -0.45, True)
    ratios = curves["fedbcd"][8] / curves["parablock"][8]
    assert rows["convergence/ratio/parablock"].value == pytest.approx(float(ratios.mean()))
    assert "convergence/ratio/fedbcd" not in rows
    convergence.draw(curves, fits, tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text("utf-8")
    assert all(f"{name}: " in text for name in [*curves, "theory"])
