"""The `privacy:` section: what goes with it, and what each mistake says."""

from pathlib import Path

import pytest

from parablock_ray.config import load_config
from parablock_ray.errors import UserError
from tests.config.names import method_names

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
TEN = ["clients.num=10", "data.split=iid"]
PRIVATE = ["privacy.clip=1", "privacy.noise_multiplier=1", "privacy.delta=1e-3"]
COLLECTING = {"zero_pad", "hetlora", "fedex_lora", "flexlora", "flora", "florist"}


def mistake(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(QUICKSTART, [*TEN, *overrides])
    return str(caught.value)


@pytest.mark.parametrize("method", sorted(method_names()))
def test_methods_that_send_deltas_take_it(method):
    overrides = [*PRIVATE, f"method={{name: {method}}}"]
    if method in COLLECTING | {"fedcybgd"}:
        assert mistake(*overrides).startswith(f"privacy.clip: must be left out with method.name={method}, whose ")
    else:
        assert load_config(QUICKSTART, [*TEN, *overrides]).privacy.is_on


def test_it_is_off_unless_there_is_a_clip():
    assert not load_config(QUICKSTART, []).privacy.is_on


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["privacy.delta=1e-3"], "privacy: clip is required with delta: without a bound on each update noise hides"),
        (["privacy.clip=1", "privacy.delta=1e-3"], "privacy: give either noise_multiplier or target_epsilon"),
        ([*PRIVATE, "privacy.target_epsilon=3"], "privacy: give either noise_multiplier or target_epsilon"),
        (["privacy.clip=1", "privacy.noise_multiplier=1"], "privacy: delta is required with clip"),
        (
            ["privacy.clip=1", "privacy.target_epsilon=3", "privacy.delta=1e-3", "privacy.max_epsilon=3"],
            "privacy: max_epsilon ends a run of a noise_multiplier over 0; leave it out with target_epsilon",
        ),
        (
            [*PRIVATE, "privacy.noise_multiplier=0", "privacy.max_epsilon=3"],
            "privacy: max_epsilon ends a run of a noise_multiplier over 0; leave it out with noise_multiplier 0",
        ),
        ([*PRIVATE, "privacy.count_noise=3"], "privacy: count_noise is for the count that quantile takes"),
        ([*PRIVATE, "privacy.quantile=0.5", "privacy.noise=clients"], "privacy: quantile must be left out with noise:"),
        ([*PRIVATE, "privacy.quantile=0.5", "privacy.noise_multiplier=0"], "privacy: quantile needs a noise_multip"),
        (
            [*PRIVATE, "privacy.quantile=0.5", "secure_aggregation.enabled=true"],
            "privacy.quantile: must be left out with secure_aggregation.enabled, whose server sees no single update",
        ),
        (
            [*PRIVATE, "secure_aggregation.enabled=true", "secure_aggregation.max_weight=9"],
            "secure_aggregation.max_weight: must be left out with privacy.clip, with which all clients weigh 1 (got 9)",
        ),
        ([*PRIVATE, "privacy.delta=0.1"], "privacy.delta: must be less than 1 / clients.num = 0.1"),
        ([*PRIVATE, "privacy.clip=0"], "privacy.clip: must be greater than 0 (got 0)"),
        ([*PRIVATE, "network.exchange=cut_through"], "network.exchange: must be store_and_forward with privacy.clip"),
        ([*PRIVATE, "server.rule={name: clip, norm: 1}"], "server.rule: must be mean with privacy.clip"),
        ([*PRIVATE, "server.max_norm=0.5"], "server.max_norm: with privacy.clip it refuses those who did not cut"),
        ([*PRIVATE, "server.max_norm_over_median=3"], "server.max_norm_over_median: must be left out with privacy."),
        (
            [*PRIVATE, "clients.per_round=3", "clients.sampling=by_size"],
            "clients.sampling: must be uniform or poisson with privacy.clip",
        ),
        ([*PRIVATE, "clients.on_death=drop"], "clients.on_death: must be replay or fail with privacy.clip"),
        (
            [*PRIVATE, "clients.per_round=3", "clients.sampling=poisson", "clients.min_participants=2"],
            "clients.sampling: must be uniform with clients.min_participants over 1",
        ),
        (
            [*PRIVATE, "clients.per_round=3", "clients.sampling=poisson", "privacy.noise=clients"],
            "clients.sampling: must be uniform with clients.min_participants over 1 and with privacy.noise: clients",
        ),
        (["clients.per_round=3", "clients.sampling=poisson"], "clients.sampling: poisson is for privacy.clip"),
        ([*PRIVATE, "clients.sampling=poisson"], "clients: sampling: poisson draws some of the clients for a round"),
        (
            [
                *(*PRIVATE, "clients.per_round=3", "clients.over_sample=1"),
                *("network.mode=virtual", "network.compute_s=1", "network.up_mbps=10", "network.down_mbps=10"),
            ],
            "clients.over_sample: must be 0 with privacy.clip",
        ),
    ],
)
def test_a_mistake_is_named(overrides, says):
    assert mistake(*overrides).startswith(says)
