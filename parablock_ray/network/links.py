"""Links: how long some bytes take. `up` is always towards the server, `down` towards a client."""

import math
from dataclasses import dataclass

from parablock_ray.config.schema import NetworkConfig
from parablock_ray.errors import UserError

_BITS_PER_MBIT = 1e6


@dataclass(frozen=True)
class Link:
    """One client's own link.

    `up_mbps`, `down_mbps`: Mbit/s (1e6 bits), over 0; `inf` is free. `latency_s`: one-way seconds of a
    message, which do not occupy the link. `half_duplex`: both directions share the line, one transfer at a
    time. Raises UserError on a rate or a latency that cannot be.
    """

    up_mbps: float
    down_mbps: float
    latency_s: float
    half_duplex: bool

    def __post_init__(self) -> None:
        _check_rate("up_mbps", self.up_mbps)
        _check_rate("down_mbps", self.down_mbps)
        if not 0 <= self.latency_s < math.inf:
            raise UserError(f"latency of a link is {self.latency_s} s; allowed: 0 or more, and finite")

    def up_s(self, num_bytes: int) -> float:
        """Seconds for which an upload occupies the link."""
        return _transfer_s(num_bytes, self.up_mbps)

    def down_s(self, num_bytes: int) -> float:
        """Seconds for which a download occupies the link."""
        return _transfer_s(num_bytes, self.down_mbps)


@dataclass(frozen=True)
class ServerLink:
    """The server's line, shared by all clients: one queue each way, Mbit/s (1e6 bits), `inf` where unlimited.

    `up_mbps` carries what clients upload, `down_mbps` what they download. Raises UserError on a rate that
    cannot be.
    """

    up_mbps: float
    down_mbps: float

    def __post_init__(self) -> None:
        _check_rate("up_mbps", self.up_mbps)
        _check_rate("down_mbps", self.down_mbps)

    def up_s(self, num_bytes: int) -> float:
        """Seconds for which one client's upload occupies the line."""
        return _transfer_s(num_bytes, self.up_mbps)

    def down_s(self, num_bytes: int) -> float:
        """Seconds for which one client's download occupies the line."""
        return _transfer_s(num_bytes, self.down_mbps)


def client_link(network: NetworkConfig, client: int) -> Link:
    """The link of one client under `network:`; free and without latency in mode `none`."""
    if network.mode == "none":
        return Link(math.inf, math.inf, 0.0, half_duplex=False)
    return Link(network.up_mbps, network.down_mbps, network.latency_ms / 1000, half_duplex=False)


def _transfer_s(num_bytes: int, rate_mbps: float) -> float:
    return num_bytes * 8 / (rate_mbps * _BITS_PER_MBIT)


def _check_rate(name: str, rate_mbps: float) -> None:
    if not rate_mbps > 0:  # so that NaN is refused too
        raise UserError(f"{name} of a link is {rate_mbps} Mbit/s; allowed: over 0, `inf` for a free link")
