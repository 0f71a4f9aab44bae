"""Links: how long some bytes take, and who has which. `up` is always towards the server, `down` towards a client."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

from parablock_ray.config.network import CLIENT_KEYS, Lognormal, NetworkConfig, Positive, Uniform
from parablock_ray.errors import UserError
from parablock_ray.network.link_trace import read_link_trace

_BITS_PER_MBIT = 1e6


def _transfer_s(num_bytes: int, rate_mbps: float) -> float:
    return num_bytes * 8 / (rate_mbps * _BITS_PER_MBIT)


def _check_rate(name: str, rate_mbps: float) -> None:
    if not rate_mbps > 0:  # so that NaN is refused too
        raise UserError(f"{name} of a link is {rate_mbps} Mbit/s; allowed: over 0, `inf` for a free link")


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


FREE = Link(math.inf, math.inf, 0.0, half_duplex=False)


@dataclass(slots=True)
class Line:
    """One direction of a link, or both of a half-duplex one: one transfer at a time, first come, first served."""

    free_s: float = 0.0

    def take(self, ready_s: float, busy_s: float) -> tuple[float, float]:
        """Start and end of a transfer that is ready at `ready_s`. Calls must come in the order of arrival."""
        start_s = max(ready_s, self.free_s)
        self.free_s = start_s + busy_s
        return start_s, self.free_s


def client_links(network: NetworkConfig, num_clients: int, seed: int) -> dict[int, Link]:
    """Every client's link; free in mode `none`. Raises UserError for a trace that cannot be used."""
    if network.mode == "none":
        return dict.fromkeys(range(num_clients), FREE)
    half_duplex = network.duplex == "half"
    return {
        client: Link(figures["up_mbps"], figures["down_mbps"], figures["latency_ms"] / 1000, half_duplex)
        for client, figures in enumerate(_client_figures(network, num_clients, seed))
    }


def paced_links(network: NetworkConfig, num_clients: int, seed: int) -> dict[int, Link]:
    """What a run really waits for: every client's link in mode `shaped`, and in the others nothing."""
    if network.mode != "shaped":
        return dict.fromkeys(range(num_clients), FREE)
    return client_links(network, num_clients, seed)


def compute_factors(network: NetworkConfig, num_clients: int, seed: int) -> dict[int, float]:
    """So many times longer than here does each client's computer take; 1 in mode `none`. Raises UserError as
    `client_links` does."""
    if network.mode == "none":
        return dict.fromkeys(range(num_clients), 1.0)
    figures = _client_figures(network, num_clients, seed)
    return {client: figures[client]["compute_factor"] for client in range(num_clients)}


def server_link(network: NetworkConfig) -> ServerLink:
    """The server's line; without limits but in mode `virtual`."""
    if network.mode != "virtual":
        return ServerLink(math.inf, math.inf)
    return ServerLink(network.server_up_mbps or math.inf, network.server_down_mbps or math.inf)


def _client_figures(network: NetworkConfig, num_clients: int, seed: int) -> list[Mapping[str, float]]:
    """The keys of CLIENT_KEYS for each client."""
    if network.trace is None:
        figures = {key: getattr(network, key) for key in CLIENT_KEYS}
        return [
            {key: _drawn(figure, seed, key, client) for key, figure in figures.items()} for client in range(num_clients)
        ]
    read = read_link_trace(Path(network.trace), num_clients)
    slowed = [client for client, figures in enumerate(read) if figures["compute_factor"] != 1]
    if network.mode == "shaped" and slowed:
        raise UserError(
            f"{network.trace}: compute_factor of client {slowed[0]} is not 1, which needs network.mode: virtual; "
            "shaped can delay a chunk but not slow a computer"
        )
    return read


def _drawn(figure: Positive, seed: int, key: str, client: int) -> float:
    """This client's own figure. Depends on nothing but the arguments: not on how many clients there are."""
    if isinstance(figure, Lognormal):
        return figure.median * math.exp(figure.sigma * NormalDist().inv_cdf(_uniform(seed, key, client)))
    if isinstance(figure, Uniform):
        return figure.low + (figure.high - figure.low) * _uniform(seed, key, client)
    return figure


def _uniform(seed: int, key: str, client: int) -> float:
    """A number between 0 and 1, both excluded: 52 bits of a hash, the same with every version of every library."""
    digest = hashlib.sha256(f"{seed}:network.{key}:{client}".encode()).digest()
    return ((int.from_bytes(digest[:8], "little") >> 12) + 0.5) / 2**52
