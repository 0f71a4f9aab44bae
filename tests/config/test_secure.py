"""The `secure_aggregation:` section: what cannot go with it, and what each mistake says."""

import sys
from pathlib import Path

import pytest

from parablock_ray.config import load_config
from parablock_ray.errors import UserError
from parablock_ray.secure_terms import check_secure_aggregation, fixed_point, threshold
from tests.config.names import method_names

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
SECURE = "secure_aggregation.enabled=true"
LINEAR = {"parablock", "fedbcd", "fedavg", "fedit", "ffa_lora"}
SINGLE = " with secure_aggregation.enabled, whose server sees no single update"
AGAIN = " with secure_aggregation.enabled, where a round that is done again must be so with the same clients"


def mistake(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        check_secure_aggregation(load_config(QUICKSTART, [SECURE, *overrides]), largest=1)
    return str(caught.value)


def test_it_is_off_by_default():
    assert not load_config(QUICKSTART, []).secure_aggregation.enabled


@pytest.mark.parametrize("method", sorted(method_names()))
def test_methods_whose_server_needs_the_mean_only_are_taken(method):
    if method in LINEAR:
        load_config(QUICKSTART, [SECURE, f"method={{name: {method}}}"])
    else:
        assert mistake(f"method={{name: {method}}}").startswith("method.name: ")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["server.rule=median"], f"server.rule: must be mean{SINGLE} (got median)"),
        (["server.rule={name: clip, norm: 1}"], f"server.rule: must be mean{SINGLE} (got clip)"),
        (["server.max_norm=3"], f"server.max_norm: leave it out{SINGLE}, so no norm of one (got 3)"),
        (["server.max_norm_over_median=3"], f"server.max_norm_over_median: leave it out{SINGLE}"),
        (
            ["network.exchange=cut_through"],
            "network.exchange: must be store_and_forward with secure_aggregation.enabled, since nothing may be "
            "unmasked before it is fixed whose updates are in the sum (got cut_through)",
        ),
        (["method.correction=eager"], "method.correction: must be own or stale with secure_aggregation.enabled"),
        (
            ["method={name: florist}"],
            f"method.name: must be one whose server needs only the mean{SINGLE}: fedit, ffa_lora, parablock, fedbcd or "
            "fedavg (got florist, which needs every client's adapters)",
        ),
        (["method={name: fedcybgd}"], f"method.name: fedcybgd cannot go{SINGLE}"),
        (["clients.num=2", "data.split=iid"], "clients.num: must be at least 3 with secure_aggregation.enabled"),
        (["clients.per_round=2"], "clients.per_round: must be at least 3 with secure_aggregation.enabled"),
        (["clients.per_round=3", "clients.sampling=by_size"], "clients.sampling: must be uniform with secure_agg"),
        (["clients.on_death=drop"], f"clients.on_death: must be replay or fail{AGAIN} (got drop)"),
        (["clients.on_error=drop"], f"clients.on_death: must be fail with clients.on_error: drop{AGAIN} (got replay)"),
        (
            ["clients.on_error=drop", "clients.on_death=fail", "checkpoint.every=2", "method.staleness=0"],
            f"checkpoint.every: leave it out with clients.on_error: drop{AGAIN} (got 2)",
        ),
        (
            ["checkpoint.every=2"],
            "checkpoint.every: leave it out with secure_aggregation.enabled and method.staleness over 0: the server, "
            "which writes checkpoints, must not know the updates that are pending at the clients; or take a staleness "
            "of 0 (got 2)",
        ),
        (["secure_aggregation.bits=16"], "secure_aggregation.bits: must be 32 or 64 (got 16)"),
        (["secure_aggregation.tolerated_dropouts=0.5"], "tolerated_dropouts: must be less than 0.5 (got 0.5)"),
        (
            ["secure_aggregation.fraction_bits=33", "secure_aggregation.max_weight=100"],
            "secure_aggregation.fraction_bits: must be at most 25 with 32 bits, clip 0.1, 4 clients a round and "
            "weights up to 100, so that no sum overflows (got 33)",
        ),
        (
            ["secure_aggregation.max_weight=1000000000"],
            "secure_aggregation.bits: no sum has room with 32 bits, clip 0.1, 4 clients a round and weights up to "
            "1000000000; take 64 bits, fewer clients, or smaller secure_aggregation.max_weight",
        ),
        (
            ["secure_aggregation.fraction_bits=0"],
            "secure_aggregation.fraction_bits: too few for clip 0.1, every number would be 0; take more",
        ),
    ],
)
def test_what_cannot_hold_is_refused(overrides, says):
    assert says in mistake(*overrides)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "shamirs", None)
    assert "needs the package shamirs; pip install 'parablock-ray[secure]'" in mistake()


def test_sums_have_room_by_themselves():
    config = load_config(QUICKSTART, [SECURE, "clients.num=10", "data.split=iid"])
    encoding = fixed_point(config, largest=300)
    encoding.require_room(10)
    assert encoding.max_weight == 300
    assert threshold(config) == 7
