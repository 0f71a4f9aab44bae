"""Who is late, on the virtual clock."""

from pathlib import Path

import pytest
import torch

from parablock_ray.algorithms.base import RoundPlan, Visit
from parablock_ray.algorithms.population import Population
from parablock_ray.config import Config, load_config
from parablock_ray.deadlines import late_by
from parablock_ray.errors import RunFailed, UserError
from parablock_ray.pricing import Pricing
from parablock_ray.reprice import reprice
from tests.runtime.federation import QUICKSTART, SHORT, rows, run_tiny

FEW_MBPS = {0: 8.0, 1: 4.0, 2: 2.0, 3: 1.0}  # up, by client
SHAPES = {"model.layers.0.weight": torch.empty(1000, 250, device="meta")}  # 1 MB in fp32: 1, 2, 4 and 8 s


def config(tmp_path: Path, *overrides: str) -> Config:
    links = tmp_path / "links.csv"
    lines = [f"{client},{rate},100,0,1" for client, rate in FEW_MBPS.items()]
    links.write_text("\n".join(["client,up_mbps,down_mbps,latency_ms,compute_factor", *lines]) + "\n")
    virtual = ["network.mode=virtual", "network.compute_s=0.5", f"network.trace={links}", "method.local_steps=2"]
    whole = ["method.name=fedavg", "method.num_blocks=1", "tracking.wandb=off"]
    return load_config(QUICKSTART, [*virtual, *whole, *overrides, f"out={tmp_path / 'run'}"])


@pytest.mark.parametrize(
    ("overrides", "late"),
    [
        (["clients.deadline_s=10"], {}),
        (["clients.deadline_s=5"], {3: "9.000 s"}),
        (["clients.deadline_s=4.9"], {2: "5.000 s", 3: "9.000 s"}),
        (["clients.per_round=2", "clients.over_sample=2"], {2: "5.000 s", 3: "9.000 s"}),
        (
            ["clients.per_round=2", "clients.over_sample=2", "clients.deadline_s=2"],
            {1: "3.000 s", 2: "5.000 s", 3: "9.000 s"},
        ),
        # On the server's line the upload takes a second more, or, in four chunks, a quarter: that of the last one.
        (["clients.deadline_s=6", "network.server_up_mbps=8"], {3: "10.000 s"}),
        (["clients.deadline_s=5.9", "network.server_up_mbps=8"], {2: "6.000 s", 3: "10.000 s"}),
        (["clients.deadline_s=5.2", "network.server_up_mbps=8", "network.chunk_mb=0.25"], {2: "5.250 s", 3: "9.250 s"}),
    ],
)
def test_against_hand_computed_seconds(tmp_path, overrides, late):
    visits = tuple(Visit(client, 10, 10, 0.25) for client in FEW_MBPS)
    late_of = config(tmp_path, *overrides)
    dropped = late_by(late_of, Pricing(late_of), Population((10,) * 4, 4, 0), SHAPES)(RoundPlan(3, 0, 2, visits, 0.1))
    assert {each.client: each.detail for each in dropped} == late
    assert {(each.round, each.why) for each in dropped} <= {(3, "late")}


@pytest.mark.parametrize("exchange", ["store_and_forward", "cut_through"])
def test_without_a_limit_at_the_server_it_is_the_plain_sum(tmp_path, exchange):
    """To the last bit, whatever the chunks."""
    drawn = ["network.latency_ms={dist: uniform, low: 1, high: 90}", "network.compute_factor=1.7"]
    drawn += ["network.trace=null", "network.up_mbps={dist: lognormal, median: 7, sigma: 1}", "clients.num=40"]
    pricing = Pricing(config(tmp_path, *drawn, f"network.exchange={exchange}", "network.chunk_mb=0.01"))
    for client, link in pricing.links.items():
        for num_bytes in (1, 10_000, 1_234_567):
            plain = pricing.visit_s(client, 0.123) + link.up_s(num_bytes) + link.latency_s
            assert pricing.arrival_s(client, 0.123, num_bytes) == plain


SLOW = ["network.mode=virtual", "network.compute_s=0.1", "network.up_mbps={dist: lognormal, median: 5, sigma: 1}"]


def test_a_run_goes_on_without_who_is_late(tmp_path):
    """More are drawn than take part; a run cannot be repriced then, and the serial runtime takes the log."""
    drawn = ["clients.num=6", "clients.per_round=2", "clients.over_sample=2", "data.split=iid"]
    common = [*SLOW, *drawn, "runtime=serial", "engine.name=torch"]
    summary = run_tiny(tmp_path / "run", common)
    dropped = [row for row in rows(tmp_path / "run" / "events.jsonl") if row["event"] == "dropped"]
    assert summary["num_dropped"] == len(dropped) == 2 * 5
    assert {row["num_participants"] for row in rows(tmp_path / "run" / "metrics.jsonl")} == {2}
    with pytest.raises(UserError, match="has clients that were late, and over another network it would be others"):
        reprice(tmp_path / "run", ["network.up_mbps=20"])


def test_too_many_are_late(tmp_path):
    with pytest.raises(RunFailed) as failure:
        run_tiny(tmp_path / "run", [*SLOW, "runtime=serial", "engine.name=torch", "clients.deadline_s=0.001"])
    assert str(failure.value).startswith(
        "round 0: 0 client(s) left, fewer than clients.min_participants = 1; the last "
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["clients.deadline_s=3"], "who is late is decided on the virtual clock; set network.mode: virtual and "),
        ([*SLOW, "clients.over_sample=1"], r"over_sample \(1\) is drawn beyond per_round \(None\), and both together "),
        (["clients.per_round=2", "clients.min_participants=3"], r"min_participants \(3\) must be at most the clients "),
        (["clients.participation=none.jsonl"], r"clients.participation: none.jsonl cannot be read \("),
    ],
)
def test_mistakes(tmp_path, overrides, said):
    with pytest.raises(UserError, match=said):
        run_tiny(tmp_path / "run", [*SHORT, "runtime=serial", *overrides])
