"""The `server:` section: which rules go with what, and what each mistake says."""

from pathlib import Path

import pytest

from parablock_ray.config import load_config
from parablock_ray.errors import UserError
from tests.config.names import method_names

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
TEN = ["clients.num=10", "data.split=iid", "clients.min_participants=7"]
RULES = [
    "{name: mean}",
    "{name: clip, norm: 1.5}",
    "{name: median}",
    "{name: trimmed_mean, num_attackers: 2}",
    "{name: krum, num_attackers: 2}",
    "{name: multi_krum, num_attackers: 2}",
]
COLLECTING = {"zero_pad", "hetlora", "fedex_lora", "flexlora", "flora", "florist"}


def mistake(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(QUICKSTART, [*TEN, *overrides])
    return str(caught.value)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_taken(rule):
    config = load_config(QUICKSTART, [*TEN, f"server.rule={rule}"])
    assert config.server.rule.name in rule


def test_a_rule_without_parameters_may_be_named_alone():
    assert load_config(QUICKSTART, [*TEN, "server.rule=median"]).server.rule.name == "median"
    assert mistake("server.rule=krum") == "server.rule.num_attackers: required, but missing"
    assert mistake("server.rule=7") == "server.rule: must be a mapping (got 7)"


@pytest.mark.parametrize("rule", RULES[1:])
@pytest.mark.parametrize("method", sorted(method_names()))
def test_every_method_has_its_rules(method, rule):
    overrides = [*TEN, f"method={{name: {method}}}", f"server.rule={rule}"]
    if method in COLLECTING or (method == "fedcybgd" and "clip" not in rule):
        with pytest.raises(UserError, match=r"^server\.rule: must be mean .*"):
            load_config(QUICKSTART, overrides)
    else:
        load_config(QUICKSTART, overrides)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["server.rule={name: kurm, num_attackers: 2}"],
            "server.rule.name: unknown rule 'kurm'; did you mean 'krum'? (allowed: mean, clip, median, trimmed_mean, "
            "krum, multi_krum)",
        ),
        (["server.rule={name: krum}"], "server.rule.num_attackers: required, but missing"),
        (["server.rule={name: clip, norm: 0}"], "server.rule.norm: must be greater than 0 (got 0)"),
        (["server.rule={num_attackers: 1}"], "server.rule.name: required, but missing"),
        (
            ["server.rule={name: krum, num_attackers: 4}"],
            "server.rule: krum with num_attackers 4 needs 11 clients a round or more; there are 10 "
            "(clients.per_round, or clients.num); a smaller num_attackers, or more clients",
        ),
        (
            ["server.rule={name: multi_krum, num_attackers: 2, num_selected: 7}", "clients.per_round=9"],
            "server.rule: multi_krum with num_attackers 2, num_selected 7 needs 11 clients a round or more; there are "
            "9 (clients.per_round, or clients.num); a smaller num_attackers, or more clients",
        ),
        (
            ["server.rule={name: trimmed_mean, num_attackers: 4}"],
            "clients.min_participants: must be at least 9 with server.rule trimmed_mean with num_attackers 4, which "
            "with fewer left in a round withstands less than it says (got 7)",
        ),
        (
            ["server.rule={name: median}", "clients.min_participants=2"],
            "clients.min_participants: must be at least 3 with server.rule median, which with fewer left in a round "
            "withstands less than it says (got 2)",
        ),
        (
            ["server.rule={name: krum, num_attackers: 2}", "network.exchange=cut_through"],
            "network.exchange: must be store_and_forward with server.rule krum, which needs whole updates before a "
            "chunk can be published (got cut_through); median and trimmed_mean go chunk by chunk",
        ),
        (
            ["server.rule={name: median}", "clients.per_round=8", "clients.sampling=by_size"],
            "clients.sampling: must be uniform with server.rule median, under which every update counts once: a client "
            "that is drawn twice cannot count twice (got by_size)",
        ),
        (
            ["server.rule={name: median}", "method={name: fedcybgd}"],
            "server.rule: must be mean or clip with method.name=fedcybgd, where a round has one client and nobody to "
            "hold it against (got median)",
        ),
        (
            ["server.rule={name: clip, norm: 1}", "method={name: florist}"],
            "server.rule: must be mean with method.name=florist, whose clients send whole adapters: their factors "
            "cannot stand for one another, coordinate by coordinate, as deltas can; fedit, ffa_lora and the block "
            "methods take the others (got clip)",
        ),
    ],
)
def test_what_cannot_work_is_refused(overrides, says):
    assert says in mistake(*overrides)


@pytest.mark.parametrize("rule", ["{name: median}", "{name: trimmed_mean, num_attackers: 2}"])
def test_rules_by_coordinate_may_cut_through(rule):
    load_config(QUICKSTART, [*TEN, f"server.rule={rule}", "network.exchange=cut_through"])


@pytest.mark.parametrize("key", ["max_norm", "max_norm_over_median"])
def test_norms_are_refused_where_they_cannot_be_judged(key):
    given = f"server.{key}=2.5"
    load_config(QUICKSTART, [given, "method={name: fedit}"])
    assert mistake(given, "network.exchange=cut_through") == (
        f"network.exchange: must be store_and_forward with server.{key}, since a norm is known once the whole update "
        "is here, and cut_through has published the first chunks by then (got cut_through)"
    )
    assert mistake(given, "method={name: flora}") == (
        f"server.{key}: must be left out with method.name=flora, whose clients send whole adapters: their norm is not "
        "that of what they change; fedit, ffa_lora and the block methods take it"
    )


def test_norms_have_their_range():
    assert mistake("server.max_norm=0") == "server.max_norm: must be greater than 0 (got 0)"
    assert mistake("server.max_norm_over_median=1") == "server.max_norm_over_median: must be greater than 1 (got 1)"
    assert mistake("server.median_rounds=0") == "server.median_rounds: must be greater than 0 (got 0)"
