"""Catching up: a client that starts a round holds just what it may read, and downloads nothing twice."""

import pytest
import torch

from parablock_ray.algorithms.blocks import make_layout
from parablock_ray.algorithms.methods import make_method, make_server
from parablock_ray.algorithms.population import Attendance, Population
from parablock_ray.algorithms.wire import Wire
from parablock_ray.config.method import FedCyBGD, ParaBlock
from parablock_ray.config.server import Mean

EVERYONE = Population(num_examples=(5, 9, 2, 9), num_drawn=4, seed=3)
SAMPLED = Population(num_examples=tuple(range(1, 21)), num_drawn=4, seed=3)
WIRE = Wire(torch.float32, 1000)


def parablock(**changes) -> ParaBlock:
    return ParaBlock(name="parablock", **{"num_blocks": 3, "rounds": 40, **changes})


def model() -> dict[str, torch.Tensor]:
    """Six layers of unlike sizes, so that a number of parameters tells which blocks it counts; and a frozen head."""
    return {f"layers.{i}.weight": torch.zeros(10**i) for i in range(6)} | {"head.weight": torch.zeros(7)}


def opened(method_config, population):
    """The plans of a whole run, and a server that has opened them."""
    method = make_method(method_config, population)
    server = make_server(method_config, population, model(), WIRE, cut_through=False, rule=Mean())
    plans = [method.plan(round) for round in range(method.num_rounds)]
    for plan in plans:
        server.open(plan)
    return plans, server


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_nobody_catches_up_where_all_take_part(staleness):
    plans, server = opened(parablock(staleness=staleness), EVERYONE)
    assert not any(server.catch_up_params(visit.client, plan.round) for plan in plans for visit in plan.visits)


@pytest.mark.parametrize("num_blocks", [1, 3])
@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_catching_up_leaves_every_client_with_just_what_it_may_read(staleness, num_blocks):
    """Follow each client's copy: downloads that may be read and catch-ups are x^{(≤ reads)}, and nothing twice."""
    plans, server = opened(parablock(staleness=staleness, num_blocks=num_blocks), SAMPLED)
    sizes = [block.num_params for block in make_layout(model(), num_blocks, "layers").blocks]
    copies: dict[int, dict[int, int]] = {}
    downloads: dict[int, list] = {}
    num_joined_late = 0
    for plan in plans:
        readable = {earlier.block: earlier.round for earlier in plans[: max(plan.reads, -1) + 1]}
        for visit in plan.visits:
            joins_late = visit.client not in copies and plan.round > 0
            num_joined_late += joins_late
            copy = copies.setdefault(visit.client, {})
            own = downloads.setdefault(visit.client, [])
            copy.update({each.block: each.round for each in own if copy.get(each.block, -1) < each.round <= plan.reads})
            missing = {block for block, round in readable.items() if copy.get(block, -1) < round}
            expected = 111_111 + 7 if joins_late else sum(sizes[block] for block in missing)
            assert server.catch_up_params(visit.client, plan.round) == expected
            copy.update({block: readable[block] for block in missing})
            own.append(plan)
    assert num_joined_late > 10


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_what_was_missed_is_every_readable_round_but_those_held(staleness):
    method = make_method(parablock(staleness=staleness), SAMPLED)
    attendance, held = Attendance(all_start=False), {}
    for plan in (method.plan(round) for round in range(40)):
        attendance.note(plan)
        for visit in plan.visits:
            assert attendance.joins_late(visit.client, plan.round) == (visit.client not in held and plan.round > 0)
            rounds = held.setdefault(visit.client, set())
            missed = attendance.missed(visit.client, plan.round)
            assert not rounds & set(missed)
            rounds |= set(missed)
            assert {round for round in rounds if round <= plan.reads} == set(range(plan.reads + 1))
            rounds.add(plan.round)


def test_fedcybgd_clients_start_with_the_base_model_and_fetch_what_others_changed():
    plans, server = opened(FedCyBGD(name="fedcybgd", num_blocks=2, order="ascending", rounds=8), EVERYONE)
    assert [plan.visits[0].client for plan in plans] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert [plan.block for plan in plans] == [0, 1, 0, 1, 0, 1, 0, 1]
    first, second = (block.num_params for block in make_layout(model(), 2, "layers").blocks)
    caught_up = [server.catch_up_params(plan.visits[0].client, plan.round) for plan in plans]
    assert caught_up == [0, first] + [first + second] * 6
