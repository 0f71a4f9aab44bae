"""A client that is refused in the middle of a round: what was public comes again, and of it nothing is left."""

import pytest
import torch

from parablock_ray.algorithms.base import Commit, Publication
from parablock_ray.algorithms.methods import make_method, make_server
from parablock_ray.algorithms.population import Population
from parablock_ray.algorithms.wire import Wire
from parablock_ray.config.method import ParaBlock
from parablock_ray.config.server import Mean, Median
from parablock_ray.config.training import ServerAdaptive, ServerSGD

POPULATION = Population((5, 9, 2, 7), 4, seed=0)
WIRE = Wire(torch.float32, 8)


def served(optimizer, rule, refused: int | None, num_before: int):
    """Two rounds on one block, the second of which client `refused` leaves after so many chunks of each client; its
    weights, its state, and what was published of it."""
    config = ParaBlock(name="parablock", num_blocks=1, rounds=2, server_optimizer=optimizer)
    parameters = {"layers.0.weight": torch.arange(6.0)}
    server = make_server(config, POPULATION, parameters, WIRE, cut_through=True, rule=rule)
    random, made = torch.Generator().manual_seed(1), []
    for round in range(2):
        plan = make_method(config, POPULATION).plan(round)
        server.open(plan)
        deltas = {visit.client: torch.randn(6, generator=random) for visit in plan.visits}
        made = []
        for chunk, (start, end) in enumerate(WIRE.bounds(6)):
            if round == 1 and chunk == num_before and refused is not None:
                made += server.refuse(round, refused)
            for client, delta in deltas.items():
                if client != refused or round == 0 or chunk < num_before:
                    made += server.receive(round, client, chunk, delta[start:end])
    return parameters["layers.0.weight"], server.state(), made


@pytest.mark.parametrize("optimizer", [ServerSGD(), ServerAdaptive(name="adam")], ids=["sgd", "adam"])
@pytest.mark.parametrize("rule", [Mean(), Median(name="median")], ids=lambda rule: rule.name)
@pytest.mark.parametrize("num_before", [1, 2])
def test_it_is_as_if_it_had_sent_nothing(optimizer, rule, num_before):
    weights, state, made = served(optimizer, rule, refused=1, num_before=num_before)
    expected, expected_state, clean = served(optimizer, rule, refused=1, num_before=0)
    whole, _, _ = served(optimizer, rule, refused=None, num_before=0)
    assert torch.equal(weights, expected)
    assert not torch.equal(weights, whole)
    assert state.keys() == expected_state.keys()
    assert all(torch.equal(vector, expected_state[name]) for name, vector in state.items())
    chunks = [each.chunk for each in made if isinstance(each, Publication)]
    assert chunks == [*range(num_before), *range(3)]
    again = [each for each in made if isinstance(each, Publication)][num_before:]
    assert [each.is_last for each in again] == [False, False, True]
    published = torch.cat([each.values for each in again])
    assert torch.equal(published, torch.cat([each.values for each in clean if isinstance(each, Publication)]))
    [commit] = [each for each in made if isinstance(each, Commit)]
    assert (commit.refused, {visit.client for visit in commit.plan.visits}) == ((1,), {0, 2, 3})
    [clean_commit] = [each for each in clean if isinstance(each, Commit)]
    assert commit.update_norm == clean_commit.update_norm


def test_refused_clients_stand_in_fold_order_whoever_came_first():
    config = ParaBlock(name="parablock", num_blocks=1, rounds=2)
    server = make_server(config, POPULATION, {"layers.0.weight": torch.zeros(6)}, WIRE, cut_through=True, rule=Mean())
    server.open(make_method(config, POPULATION).plan(0))
    list(server.refuse(0, 3))
    list(server.refuse(0, 1))
    made = []
    for client in (0, 2):
        for chunk, (start, end) in enumerate(WIRE.bounds(6)):
            made += server.receive(0, client, chunk, torch.ones(end - start))
    assert made[-1].refused == (1, 3)
    assert server.catch_up_params(1, 0) == 0
