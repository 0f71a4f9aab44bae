"""The `network:` section: every client's link and computer, how blocks travel, and what a second is."""

from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    Tag,
    field_validator,
    model_validator,
)

from parablock_ray.config.base import Strict

CLIENT_KEYS = ("up_mbps", "down_mbps", "latency_ms", "compute_factor")
"""The keys that may differ from client to client; also the columns of a trace."""

Sigma = Annotated[float, Field(ge=0, le=10)]  # beyond 10, e^(8·sigma) leaves what a float can hold


class Lognormal(Strict):
    """median · e^(sigma · z) with z normal: half of the clients are below the median."""

    dist: Literal["lognormal"]
    median: PositiveFloat
    sigma: Sigma


class Uniform(Strict):
    dist: Literal["uniform"]
    low: NonNegativeFloat
    high: PositiveFloat

    @model_validator(mode="after")
    def _low_is_below_high(self) -> "Uniform":
        if self.low > self.high:
            raise ValueError(f"low ({self.low:g}) must be at most high ({self.high:g})")
        return self


def _kind(value: Any) -> str | None:
    """Which of the forms of a figure somebody wrote; None: a mapping that is no distribution."""
    if isinstance(value, Lognormal | Uniform):
        return value.dist
    if isinstance(value, dict):
        return value["dist"] if value.get("dist") in ("lognormal", "uniform") else None
    return "number"


_Forms = Discriminator(_kind, custom_error_type="distribution", custom_error_message="a number or a distribution")
_Spread = Annotated[Lognormal, Tag("lognormal")] | Annotated[Uniform, Tag("uniform")]

Positive = Annotated[Annotated[PositiveFloat, Tag("number")] | _Spread, _Forms]
"""A number for all clients, or a distribution from which each draws its own (`network/links.py`)."""

NotNegative = Annotated[Annotated[NonNegativeFloat, Tag("number")] | _Spread, _Forms]


def _is_listed(value: Any) -> str:
    return "list" if isinstance(value, list) else "measured" if value is None else "number"


StepSeconds = Annotated[
    Annotated[PositiveFloat, Tag("number")]
    | Annotated[list[PositiveFloat], Tag("list")]
    | Annotated[None, Tag("measured")],
    Discriminator(_is_listed),
]

# Rates and one-way latencies, half of the round trip that the source gives. WebPageTest: its sample of
# connectivity profiles, github.com/WPO-Foundation/webpagetest, www/settings/connectivity.ini.sample.
LINK_PRESETS: dict[str, dict[str, float]] = {
    # Rates: the FCC's long-term goal for fixed broadband (2024 Section 706 Report, FCC 24-27).
    # Latency: WebPageTest, FIOS.
    "fiber": {"down_mbps": 1000.0, "up_mbps": 500.0, "latency_ms": 2.0},
    # Rates: the FCC's benchmark for fixed broadband (the same report). Latency: WebPageTest, Cable.
    "broadband": {"down_mbps": 100.0, "up_mbps": 20.0, "latency_ms": 14.0},
    # WebPageTest, LTE.
    "lte": {"down_mbps": 12.0, "up_mbps": 12.0, "latency_ms": 35.0},
    # Rates: the core links of Marfoq et al., cross-silo topologies (arXiv 2010.12229, table 3). Latency: 88 ms between
    # two AWS regions, Oregon and Virginia (edge-cloud.net, 2013-06-28).
    "wan_silo": {"down_mbps": 1000.0, "up_mbps": 1000.0, "latency_ms": 44.0},
}


class NetworkConfig(Strict):
    """The clients' links, each its own, and the server's.

    `mode` says what a second of the run is. `none`: as fast as the machine. `shaped`: every chunk is really
    delayed. `virtual`: nothing waits, `network/timeline.py` says when everything would have happened.
    """

    mode: Literal["none", "shaped", "virtual"] = "none"
    preset: Literal["fiber", "broadband", "lte", "wan_silo"] | None = None  # fills in what is left out below
    up_mbps: Positive = 100.0
    down_mbps: Positive = 100.0
    latency_ms: NotNegative = 0.0  # one way; does not occupy the link
    compute_factor: Positive = 1.0  # so many times longer does the client's computer take; virtual only
    trace: Annotated[str, Field(min_length=1)] | None = None  # a CSV file in place of the four keys above
    compute_s: StepSeconds = None  # None: measured; seconds of a local step, for all blocks or each; virtual only
    duplex: Literal["full", "half"] = "full"  # half: both directions of a client share its line
    server_up_mbps: PositiveFloat | None = None  # None: no limit; virtual only
    server_down_mbps: PositiveFloat | None = None
    pipeline: Literal["serial", "duplex"] = "serial"  # serial: one communication thread per client, as in the paper
    exchange: Literal["store_and_forward", "cut_through"] = "store_and_forward"  # cut_through: published by chunk
    chunk_mb: Annotated[float, Field(ge=1e-3)] | None = None  # None: 8 where chunks matter for time, else 32
    wire_dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_preset(cls, values: Any) -> Any:
        preset = values.get("preset") if isinstance(values, dict) else None
        return {**LINK_PRESETS[preset], **values} if isinstance(preset, str) and preset in LINK_PRESETS else values

    @field_validator("up_mbps", "down_mbps", "compute_factor")
    @classmethod
    def _nobody_draws_zero(cls, value: Positive) -> Positive:
        if isinstance(value, Uniform) and value.low == 0:
            raise ValueError("low must be greater than 0 (got 0)")
        return value

    @model_validator(mode="after")
    def _a_trace_stands_alone(self) -> "NetworkConfig":
        given = [key for key in CLIENT_KEYS if getattr(self, key) != type(self).model_fields[key].default]
        if self.trace is not None and (self.preset or given):
            raise ValueError(f"{'preset' if self.preset else given[0]} and trace exclude each other; leave one out")
        return self

    @model_validator(mode="after")
    def _a_pacer_can_do_it(self) -> "NetworkConfig":
        if self.mode != "shaped":
            return self
        if self.compute_factor != 1:
            raise ValueError("compute_factor needs mode: virtual; shaped can delay a chunk but not slow a computer")
        if self.compute_s is not None:
            raise ValueError("compute_s needs mode: virtual; in shaped time training takes as long as it takes")
        for key in ("server_up_mbps", "server_down_mbps"):
            if getattr(self, key) is not None:
                raise ValueError(
                    f"{key} needs mode: virtual; shaped delays at each client, where nobody sees the server's queue"
                )
        return self

    @property
    def chunk_bytes(self) -> int:
        """The most that a chunk holds. Large ones cost less; small ones are published earlier with cut_through, and
        take finer turns at a limited server."""
        if self.chunk_mb is not None:
            return round(self.chunk_mb * 1e6)
        is_limited = self.server_up_mbps is not None or self.server_down_mbps is not None
        return 8_000_000 if is_limited or self.exchange == "cut_through" else 32_000_000

    def described(self) -> str:
        """The clients' links in a few words."""
        if self.mode == "none":
            return ""
        if self.trace:
            return f"links of {self.trace}"
        return f"{_shown(self.up_mbps)}/{_shown(self.down_mbps)} Mbit/s up/down"


def _shown(figure: Positive) -> str:
    match figure:
        case Lognormal():
            return f"lognormal({figure.median:g}, {figure.sigma:g})"
        case Uniform():
            return f"uniform({figure.low:g}, {figure.high:g})"
    return f"{figure:g}"
