"""Which methods a plan compares with and without overlap."""

from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest
from pydantic import NonNegativeInt, TypeAdapter

from parablock_ray.config.method import BlockTraining, MethodConfig
from parablock_ray.planning.overlap import overlapped, sequential
from parablock_ray.planning.scenario import Scenario
from tests.config.names import method_names

CAN = {"parablock", "fedbcd", "fedavg", "fedit", "ffa_lora", "flora", "florist"}


def scenario(method: Any) -> Any:
    """As much of one as is asked for."""
    return SimpleNamespace(
        config=SimpleNamespace(method=method),
        training=scenario,
        with_key=lambda key, value: scenario(method.model_copy(update={key: value})),
    )


def staleness_of(made: Scenario | None) -> int | None:
    return None if made is None else made.config.method.staleness


@pytest.mark.parametrize("name", sorted(method_names()))
def test_every_method_has_its_control_and_its_overlap(name: str) -> None:
    method = TypeAdapter(MethodConfig).validate_python({"name": name})
    assert staleness_of(sequential(scenario(method))) == 0
    assert staleness_of(overlapped(scenario(method))) == (1 if name in CAN else None)


def test_a_method_that_overlaps_keeps_its_staleness() -> None:
    method = TypeAdapter(MethodConfig).validate_python({"name": "flora", "staleness": 2})
    assert (staleness_of(sequential(scenario(method))), staleness_of(overlapped(scenario(method)))) == (0, 2)


def test_florist_cannot_where_it_carries_on() -> None:
    method = TypeAdapter(MethodConfig).validate_python({"name": "florist", "round_init": "carry"})
    assert overlapped(scenario(method)) is None


class Unheard(BlockTraining):
    """A method that nothing but its config knows."""

    name: Literal["unheard"] = "unheard"
    staleness: NonNegativeInt = 0


def test_a_new_method_needs_nothing_here() -> None:
    method = cast(Any, Unheard())
    assert (staleness_of(sequential(scenario(method))), staleness_of(overlapped(scenario(method)))) == (0, 1)
