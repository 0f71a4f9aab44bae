"""What `network:` refuses, and how it says so."""

from pathlib import Path

import pytest

from parablock_ray.config import load_config, save_resolved
from parablock_ray.config.network import NetworkConfig
from parablock_ray.errors import UserError

SPREAD = "{dist: lognormal, median: 20, sigma: 0.5}"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ("network.up_mbps=0", "network.up_mbps: must be greater than 0 (got 0)"),
        ("network.down_mbps=-5", "network.down_mbps: must be greater than 0 (got -5)"),
        ("network.server_up_mbps=0", "network.server_up_mbps: must be greater than 0 (got 0)"),
        ("network.latency_ms=-1", "network.latency_ms: must be at least 0 (got -1)"),
        ("network.compute_factor=0", "network.compute_factor: must be greater than 0 (got 0)"),
        ("network.up_mbps=fast", "network.up_mbps: must be a number (got 'fast')"),
        ("network.up_mbps=null", "network.up_mbps: must be a number (got null)"),
        (
            "network.up_mbps={dist: normal, median: 1}",
            "network.up_mbps: must be a number, {dist: lognormal, median: …, sigma: …} or {dist: uniform, low: …",
        ),
        (
            "network.up_mbps={dist: lognormal, median: 0, sigma: 1}",
            "network.up_mbps.median: must be greater than 0 (got 0)",
        ),
        (
            "network.up_mbps={dist: lognormal, median: 1, sigma: -1}",
            "network.up_mbps.sigma: must be at least 0 (got -1)",
        ),
        ("network.up_mbps={dist: lognormal, median: 1}", "network.up_mbps.sigma: required, but missing"),
        (
            "network.up_mbps={dist: uniform, low: 1, high: 2, hihg: 3}",
            "network.up_mbps.hihg: unknown key; did you mean 'high'? (allowed: dist, low, high)",
        ),
        ("network.up_mbps={dist: uniform, low: 2, high: 1}", "network.up_mbps: low (2) must be at most high (1)"),
        (
            "network.up_mbps={dist: uniform, low: 0, high: 1}",
            "network.up_mbps: low must be greater than 0 (got 0)",
        ),
        ("network.preset=5g", "network.preset: must be 'fiber', 'broadband', 'lte' or 'wan_silo' (got '5g')"),
        ("network.chunk_mb=0", "network.chunk_mb: must be at least 0.001 (got 0)"),
        ("network.duplex=none", "network.duplex: must be 'full' or 'half' (got 'none')"),
        ("network.compute_s=0", "network.compute_s: must be greater than 0 (got 0)"),
        ("network.compute_s=[1,2,3,-4]", "network.compute_s[3]: must be greater than 0 (got -4)"),
        (
            "network.compute_s=[1,2,3]",
            "network.compute_s: must be one number, or one for each of method.num_blocks = 4 blocks (got 3)",
        ),
        ("network.mode=shaped network.compute_factor=2", "network: compute_factor needs mode: virtual; shaped can"),
        ("network.mode=shaped network.compute_s=2", "network: compute_s needs mode: virtual; in shaped time"),
        ("network.mode=shaped network.server_down_mbps=2", "network: server_down_mbps needs mode: virtual; shaped "),
        ("network.trace=a.csv network.preset=lte", "network: preset and trace exclude each other; leave one out"),
        ("network.trace=a.csv network.latency_ms=3", "network: latency_ms and trace exclude each other; leave one"),
        ("runtime=serial network.mode=shaped", "network.mode: must be none or virtual with runtime=serial"),
        ("method.staleness=-1", "method.staleness: must be at least 0 (got -1)"),
    ],
)
def test_mistake_says(configs: Path, overrides: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(configs / "quickstart.yaml", overrides.replace(" network", "\nnetwork").split("\n"))
    (said,) = str(caught.value).splitlines()
    assert said.startswith(line)


@pytest.mark.parametrize(
    "overrides",
    [
        ["network.mode=virtual", f"network.up_mbps={SPREAD}", "network.latency_ms={dist: uniform, low: 0, high: 9}"],
        [
            "network.mode=virtual",
            "network.compute_s=[1,2,3,0.5]",
            "network.compute_factor={dist: uniform, low: 1, high: 2}",
        ],
        ["network.mode=virtual", "network.compute_s=2", "network.server_up_mbps=100", "runtime=serial"],
        ["network.mode=shaped", "network.preset=lte", "network.up_mbps=3", "network.duplex=half"],
    ],
)
def test_what_is_saved_loads_equal(configs: Path, tmp_path: Path, overrides: list[str]) -> None:
    config = load_config(configs / "quickstart.yaml", overrides)
    save_resolved(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", []) == config


def test_links_in_a_few_words(configs: Path) -> None:
    def described(*overrides: str) -> str:
        return load_config(configs / "quickstart.yaml", ["network.mode=virtual", *overrides]).network.described()

    assert described(f"network.up_mbps={SPREAD}") == "lognormal(20, 0.5)/100 Mbit/s up/down"
    assert described("network.down_mbps={dist: uniform, low: 1, high: 2}") == "100/uniform(1, 2) Mbit/s up/down"
    assert described("network.trace=links.csv") == "links of links.csv"
    assert described("network.mode=none") == ""


@pytest.mark.parametrize(
    ("network", "num_bytes"),
    [
        ({}, 32_000_000),
        ({"exchange": "cut_through"}, 8_000_000),
        ({"mode": "virtual", "compute_s": 1, "up_mbps": 9, "down_mbps": 9, "server_up_mbps": 9}, 8_000_000),
        ({"chunk_mb": 0.5}, 500_000),
    ],
)
def test_chunks_are_small_where_they_matter_for_time(network, num_bytes):
    assert NetworkConfig.model_validate(network).chunk_bytes == num_bytes
