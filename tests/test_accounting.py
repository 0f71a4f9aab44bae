"""ε is the library's own, for the event that a round is; it grows, it is solved for, and it ends a run in time."""

import sys

import pytest
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent, SampledWithoutReplacementDpEvent
from dp_accounting.rdp import RdpAccountant

from parablock_ray.accounting import Accountant, check_noise, noise_on_sum
from parablock_ray.config import load_config
from parablock_ray.errors import UserError
from tests.runtime.federation import QUICKSTART

ADDED, REPLACED = NeighboringRelation.ADD_OR_REMOVE_ONE, NeighboringRelation.REPLACE_ONE
CLIENTS = ["clients.num=200", "data.split=iid", "method.rounds=30", "privacy.clip=1", "privacy.delta=1e-4"]
SOME = ["clients.per_round=10"]
POISSON = [*SOME, "clients.sampling=poisson"]
FRESH = ["method.name=fedbcd"]


def accountant(*overrides: str) -> Accountant:
    return Accountant(load_config(QUICKSTART, [*CLIENTS, *overrides]))


@pytest.mark.parametrize(
    ("overrides", "event", "relation"),
    [
        ([], lambda z: GaussianDpEvent(z), ADDED),
        (POISSON, lambda z: PoissonSampledDpEvent(10 / 200, GaussianDpEvent(z)), ADDED),
        ([*POISSON, "method.staleness=2"], lambda z: PoissonSampledDpEvent(10 / 200, GaussianDpEvent(z)), ADDED),
        # Of a fixed number of clients: twice the sensitivity, and amplified only where nothing pending is carried over.
        ([*SOME, *FRESH], lambda z: SampledWithoutReplacementDpEvent(200, 10, GaussianDpEvent(z / 2)), REPLACED),
        (
            [*SOME, "method.correction=stale"],
            lambda z: SampledWithoutReplacementDpEvent(200, 10, GaussianDpEvent(z / 2)),
            REPLACED,
        ),
        (SOME, lambda z: GaussianDpEvent(z), ADDED),
    ],
    ids=["everybody", "poisson", "poisson-2", "fixed", "fixed-stale", "fixed-pending"],
)
def test_epsilon_is_the_librarys(overrides, event, relation):
    made = accountant(*overrides, "privacy.noise_multiplier=1.3")
    for num_rounds in (1, 30):
        reference = RdpAccountant(neighboring_relation=relation)
        reference.compose(event(1.3), num_rounds)
        assert made.epsilon(num_rounds) == pytest.approx(reference.get_epsilon(1e-4), rel=1e-6)
    assert (made.adjacency == "replace_one_client") is (relation is REPLACED)


def test_a_known_figure():
    """The classic of Abadi et al. (arXiv 1607.00133): q 0.01, σ 4, δ 1e-5, 10,000 steps; the moments accountant has
    1.26, today's conversion from Rényi less."""
    reference = RdpAccountant()
    reference.compose(PoissonSampledDpEvent(0.01, GaussianDpEvent(4.0)), 10_000)
    made = accountant(
        *("clients.num=10000", "data.num_train=10000", "clients.per_round=100", "clients.sampling=poisson"),
        *("method.rounds=10000", "privacy.delta=1e-5", "privacy.noise_multiplier=4"),
    )
    assert made.epsilon(10_000) == pytest.approx(reference.get_epsilon(1e-5), rel=1e-6)
    assert 0.9 < made.epsilon(10_000) < 1.26


def test_epsilon_grows_with_rounds_and_falls_with_noise():
    made = accountant(*POISSON, "privacy.noise_multiplier=1")
    epsilons = [made.epsilon(num_rounds) for num_rounds in (1, 2, 10, 30)]
    assert epsilons == sorted(epsilons)
    assert epsilons[0] < epsilons[-1]
    assert accountant(*POISSON, "privacy.noise_multiplier=2").epsilon(30) < epsilons[-1]
    assert accountant(*POISSON, "privacy.noise_multiplier=0").epsilon(1) == float("inf")


def test_the_noise_is_solved_for_and_is_enough():
    made = accountant(*POISSON, "privacy.target_epsilon=3")
    assert 2.9999 < made.epsilon(30) <= 3, "as little noise as may be"


def test_a_run_ends_with_the_last_round_that_keeps_the_budget():
    made = accountant(*POISSON, "privacy.noise_multiplier=1", "privacy.max_epsilon=1.8")
    assert 1 < made.num_rounds < 30
    assert made.epsilon(made.num_rounds) <= 1.8 < made.epsilon(made.num_rounds + 1)
    assert f"after {made.num_rounds} rounds of 30" in made.described()
    assert accountant(*POISSON, "privacy.noise_multiplier=1", "privacy.max_epsilon=90").num_rounds == 30
    with pytest.raises(UserError, match=r"^privacy\.max_epsilon: 0\.1 is passed by the first round"):
        _ = accountant(*POISSON, "privacy.noise_multiplier=1", "privacy.max_epsilon=0.1").num_rounds


def test_sum_and_count_together_tell_as_much_as_one_release():
    on_sum = noise_on_sum(1.0, 2.5)
    both, one = RdpAccountant(), RdpAccountant()
    both.compose(GaussianDpEvent(on_sum)).compose(GaussianDpEvent(2 * 2.5))  # the count's sensitivity is 1/2
    one.compose(GaussianDpEvent(1.0))
    assert both.get_epsilon(1e-5) == pytest.approx(one.get_epsilon(1e-5), rel=1e-9)
    assert noise_on_sum(1.0, None) == 1.0
    with pytest.raises(UserError, match=r"^privacy\.count_noise: must be over half of the noise multiplier"):
        noise_on_sum(1.0, 0.5)


def test_a_missing_library_is_told_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(UserError, match=r"^privacy: needs dp-accounting, .*pip install 'parablock-ray\[private\]'"):
        accountant("privacy.noise_multiplier=1")


def test_against_the_server_of_secure_aggregation_no_sampling_counts():
    """It knows who takes part. What the clients add must survive the fixed point."""
    sampled = [
        "method.name=fedbcd",
        "clients.per_round=20",
        "clients.min_participants=16",
        "privacy.noise_multiplier=2",
    ]
    secure = ["secure_aggregation.enabled=true", "secure_aggregation.clip=9"]
    shares = [*sampled, *secure, "privacy.noise=clients"]
    every = accountant("method.name=fedbcd", "privacy.noise_multiplier=2").epsilon(30)
    assert f"; against the server, which knows who takes part, {every:.4g}" in accountant(*shares).described()
    assert "against the server" not in accountant(*sampled, *secure).described()
    assert accountant(*shares).epsilon(30) < every
    coarse = load_config(QUICKSTART, [*CLIENTS, *shares, "secure_aggregation.fraction_bits=1"])
    with pytest.raises(
        UserError, match=r"fraction_bits: 1 are too few with privacy.noise: clients, of whose noise, 0\.5"
    ):
        check_noise(coarse, 2)
    check_noise(coarse.model_copy(update={"privacy": coarse.privacy.model_copy(update={"noise": "server"})}), 2)
