"""Who has which link: distributions, presets, traces."""

import statistics
from pathlib import Path
from typing import Any

import pytest

from parablock_ray.config.network import LINK_PRESETS, NetworkConfig
from parablock_ray.errors import UserError
from parablock_ray.network.links import FREE, client_links, compute_factors, paced_links, server_link

HEADER = "client,up_mbps,down_mbps,latency_ms,compute_factor\n"


def network(mode: str = "virtual", **keys: Any) -> NetworkConfig:
    return NetworkConfig.model_validate({"mode": mode, **keys})


def test_a_number_is_everybodys() -> None:
    links = client_links(network(up_mbps=20, down_mbps=50, latency_ms=7, duplex="half"), 3, seed=0)
    assert list(links) == [0, 1, 2]
    assert {(link.up_mbps, link.down_mbps, link.latency_s, link.half_duplex) for link in links.values()} == {
        (20, 50, 0.007, True)
    }


def test_lognormal_has_its_median_and_its_sigma() -> None:
    links = client_links(network(up_mbps={"dist": "lognormal", "median": 20, "sigma": 0.5}), 4000, seed=0)
    rates = sorted(link.up_mbps for link in links.values())
    assert statistics.median(rates) == pytest.approx(20, rel=0.03)
    assert rates[int(4000 * 0.8413)] == pytest.approx(20 * 2.718281828**0.5, rel=0.05)  # one sigma above


def test_uniform_stays_between_its_ends() -> None:
    links = client_links(network(latency_ms={"dist": "uniform", "low": 10, "high": 30}), 4000, seed=0)
    latencies_ms = [1000 * link.latency_s for link in links.values()]
    assert 10 <= min(latencies_ms) < 10.1 < 29.9 < max(latencies_ms) <= 30
    assert statistics.median(latencies_ms) == pytest.approx(20, rel=0.03)


def test_draws_depend_on_seed_key_and_client_only() -> None:
    spread = {"dist": "lognormal", "median": 20, "sigma": 1}
    section = network(up_mbps=spread, down_mbps=spread, compute_factor=spread)
    links = client_links(section, 8, seed=0)
    assert client_links(section, 4, seed=0) == {client: links[client] for client in range(4)}
    assert client_links(section, 8, seed=1) != links
    factors = compute_factors(section, 8, seed=0)
    drawn = [figure for id, link in links.items() for figure in (link.up_mbps, link.down_mbps, factors[id])]
    assert len(set(drawn)) == 24
    assert links[0].up_mbps == pytest.approx(31.255047539172082, rel=1e-12)  # the same everywhere and always


def test_modes() -> None:
    keys = {"up_mbps": 20, "latency_ms": 5}
    assert client_links(network("none", **keys), 1, 0) == paced_links(network("none", **keys), 1, 0) == {0: FREE}
    assert paced_links(network("virtual", **keys), 1, 0) == {0: FREE}  # it waits for nothing
    assert paced_links(network("shaped", **keys), 1, 0) == client_links(network("virtual", **keys), 1, 0) != {0: FREE}


def test_the_servers_line() -> None:
    assert server_link(network()).up_mbps == float("inf")
    limited = server_link(network(server_up_mbps=30))
    assert (limited.up_mbps, limited.down_mbps) == (30, float("inf"))


@pytest.mark.parametrize("preset", LINK_PRESETS)
def test_a_preset_fills_in_what_is_left_out(preset: str) -> None:
    filled = network(preset=preset)
    assert {key: getattr(filled, key) for key in LINK_PRESETS[preset]} == LINK_PRESETS[preset]
    own = network(preset=preset, up_mbps=3)
    assert (own.up_mbps, own.down_mbps) == (3, LINK_PRESETS[preset]["down_mbps"])


def test_a_trace_has_every_clients_figures(tmp_path: Path) -> None:
    file = tmp_path / "links.csv"
    file.write_text("latency_ms,client,up_mbps,down_mbps,compute_factor\n5,1,10,20,2.5\n\n0, 0, 30, 40, 1\n7,9,1,1,1\n")
    section = network(trace=str(file))
    links = client_links(section, 2, seed=0)
    figures = [(link.up_mbps, link.down_mbps, link.latency_s) for _, link in sorted(links.items())]
    assert figures == [(30, 40, 0), (10, 20, 0.005)]
    assert compute_factors(section, 2, seed=0) == {0: 1, 1: 2.5}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ":1: the first line must name the columns client,up_mbps,"),
        ("client,up_mbps\n0,1\n", ":1: the first line must name the columns client,up_mbps,"),
        (HEADER + "0,1,1,1,1\n1,fast,1,1,1\n", ":3: up_mbps: must be a number (got 'fast')"),
        (HEADER + "0,1,,1,1\n", ":2: down_mbps: must be a number (got '')"),
        (HEADER + "0,1,0,1,1\n", ":2: down_mbps: must be over 0, and finite (got 0)"),
        (HEADER + "0,-3,1,1,1\n", ":2: up_mbps: must be over 0, and finite (got -3)"),
        (HEADER + "0,inf,1,1,1\n", ":2: up_mbps: must be over 0, and finite (got inf)"),
        (HEADER + "0,1,1,nan,1\n", ":2: latency_ms: must be 0 or more, and finite (got nan)"),
        (HEADER + "0,1,1,-1,1\n", ":2: latency_ms: must be 0 or more, and finite (got -1)"),
        (HEADER + "0,1,1,1,0\n", ":2: compute_factor: must be over 0, and finite (got 0)"),
        (HEADER + "0,1,1,1\n", ":2: must have 5 cells, one for each column"),
        (HEADER + "0,1,1,1,1,1\n", ":2: must have 5 cells, one for each column"),
        (HEADER + "a,1,1,1,1\n", ":2: client: must be a whole number from 0 (got 'a')"),
        (HEADER + "-1,1,1,1,1\n", ":2: client: must be a whole number from 0 (got '-1')"),
        (HEADER + "0,1,1,1,1\n0,1,1,1,1\n", ":3: client 0 has a line already"),
        (HEADER + "1,1,1,1,1\n", ": no line for client(s) 0, 2; clients.num is 3, counted from 0"),
    ],
)
def test_a_wrong_trace_names_file_and_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "links.csv"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        client_links(network(trace=str(file)), 3, seed=0)
    assert str(caught.value).startswith(f"{file}{said}")


def test_a_trace_that_is_no_text_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("binary", "missing.csv", "."):
        with pytest.raises(UserError, match=r"^network\.trace: cannot read "):
            client_links(network(trace=str(tmp_path / name)), 1, seed=0)


def test_shaped_cannot_slow_a_computer(tmp_path: Path) -> None:
    file = tmp_path / "links.csv"
    file.write_text(HEADER + "0,1,1,1,1\n1,1,1,1,2\n")
    with pytest.raises(UserError, match=r"compute_factor of client 1 is not 1, which needs network\.mode: virtual"):
        client_links(network("shaped", trace=str(file)), 2, seed=0)
