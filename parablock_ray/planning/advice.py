"""What would make overlap worth more: every figure here is priced like the plan's own, and nothing is set by itself."""

import math
from collections.abc import Iterator

from parablock_ray.algorithms.blocks import num_layers
from parablock_ray.config.method import FedBCD, FedCyBGD, ParaBlock
from parablock_ray.planning.overlap import overlapped, sequential
from parablock_ray.planning.scenario import Scenario

_SMALL_GAIN = 1.1  # of overlap over no overlap: below that, advice is due
_WORTH_SAYING = 0.05  # so much less of the seconds
_MOST_STALENESS_ADDED = 3


def advice(scenario: Scenario) -> Iterator[str]:
    """Sentences for people; none where there is nothing to say."""
    if scenario.config.network.mode == "none":
        yield (
            "network.mode is none: an exchange takes no time, so there is nothing to hide; set network.mode=virtual "
            "(or shaped) with network.up_mbps and network.down_mbps, or a network.preset"
        )
        return
    control, other = sequential(scenario), overlapped(scenario)
    if other is None:
        return
    control_s, other_s = _seconds(control), _seconds(other)
    if control_s < _SMALL_GAIN * other_s:
        yield from _balance(control, control_s / other_s)
    elif scenario.config.method.staleness == 0:
        method = other.config.method
        yield f"method.name={method.name} method.staleness={method.staleness} would take {_change(control_s, other_s)}"
    yield from _more_staleness(other, other_s)


def _seconds(scenario: Scenario) -> float:
    return scenario.total_s(scenario.config.network)


def _balance(control: Scenario, gain: float) -> Iterator[str]:
    """Why overlap gains so little, and which local steps or blocks would change that."""
    compute_s, exchange_s = control.compute_alone_s(), control.exchange_alone_s()
    longer, shorter = ("exchange", "compute") if exchange_s > compute_s else ("compute", "exchange")
    yield (
        f"overlap gains {gain:.2f}x only: {longer}-bound, without overlap the run spends {compute_s:.1f} s computing "
        f"and {exchange_s:.1f} s exchanging, and only the {shorter} can be hidden"
    )
    ratio = exchange_s / compute_s if compute_s else math.inf
    for key, at_most in _balancing_keys(control):
        tried = {value: _gain(control.with_key(key, value)) for value in _near(control, key, ratio, at_most)}
        best = max(tried, key=lambda value: tried[value], default=None)
        if best is not None and tried[best] > gain + _WORTH_SAYING:
            assumed = "; a step on a new block taken to last as long as on the old one there"
            note = assumed if key == "num_blocks" else ""
            yield f"method.{key}={best} would balance them: a gain of {tried[best]:.2f}x{note}"


def _balancing_keys(control: Scenario) -> Iterator[tuple[str, float]]:
    """Keys whose value shifts the balance towards compute as it grows, with their largest value."""
    yield "local_steps", math.inf
    if isinstance(control.config.method, ParaBlock | FedBCD | FedCyBGD):
        yield "num_blocks", num_layers(control.shapes)


def _near(control: Scenario, key: str, ratio: float, at_most: float) -> list[int]:
    """Whole numbers on both sides of the value at which compute would equal exchange."""
    now: int = getattr(control.config.method, key)
    wanted = min(max(now * ratio, 1.0), at_most)
    return [] if math.isinf(wanted) else sorted({math.floor(wanted), math.ceil(wanted)} - {now})


def _gain(control: Scenario) -> float:
    other = overlapped(control)
    assert other is not None
    return _seconds(control) / _seconds(other)


def _more_staleness(scenario: Scenario, own_s: float) -> Iterator[str]:
    """With one communication thread no staleness beyond 1 helps: a round takes max(c, m) then."""
    if scenario.config.network.pipeline != "duplex":
        return
    own = scenario.config.method.staleness
    tried = {
        staleness: _seconds(scenario.with_key("staleness", staleness))
        for staleness in range(own + 1, own + 1 + _MOST_STALENESS_ADDED)
    }
    least_s = min(tried.values())
    first = next(staleness for staleness, seconds in tried.items() if seconds <= 1.01 * least_s)
    if tried[first] < (1 - _WORTH_SAYING) * own_s:
        yield (
            f"method.staleness={first} would take {_change(own_s, tried[first])}: with pipeline duplex more rounds can "
            "be under way at once (docs/time.md)"
        )


def _change(before_s: float, after_s: float) -> str:
    return f"{after_s:.1f} s instead of {before_s:.1f} s ({before_s / after_s:.2f}x)"
