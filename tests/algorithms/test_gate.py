"""What the gate lets pass, what it refuses and says, and that nothing that comes makes it raise."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parablock_ray.algorithms.base import RoundPlan, Sent, Visit
from parablock_ray.algorithms.gate import Gate, Ignored, Passed, Refused
from parablock_ray.algorithms.wire import Wire
from parablock_ray.config.server import ServerConfig

NUM_PARAMS = 8  # in two chunks
WIRE = Wire(torch.float32, 16)
CHUNKS = (torch.arange(4.0), torch.arange(4.0, 8.0))
NORM = float(torch.cat(CHUNKS).norm())


def plan_of(round: int = 0, staleness: int = 1, refused: frozenset[int] = frozenset()) -> RoundPlan:
    visits = tuple(Visit(client, 10, 10, 1 / 3) for client in range(3))
    return RoundPlan(round, 5, round - 1 - staleness, visits, 0.1, refused)


def gate_of(by_chunk: bool = False, staleness: int = 1, wire: Wire = WIRE, **config) -> Gate:
    return Gate(ServerConfig(**config), staleness, wire, by_chunk, torch.float32)


def opened(by_chunk: bool = False, refused: frozenset[int] = frozenset(), **config) -> Gate:
    gate = gate_of(by_chunk, **config)
    gate.open(plan_of(refused=refused), dict.fromkeys(range(3), NUM_PARAMS))
    return gate


def send(gate: Gate, client: int = 0, round: int = 0, scale: float = 1.0) -> Passed | Refused | Ignored:
    """A whole update; what is said of its last chunk."""
    assert gate.admit(Sent(round, 5, client, 0), CHUNKS[0] * scale) == Passed({})
    return gate.admit(Sent(round, 5, client, 1), CHUNKS[1] * scale)


def test_a_whole_client_passes_at_once_and_in_order():
    gate = opened()
    assert gate.admit(Sent(0, 5, 1, 1), CHUNKS[1]) == Passed({})
    passed = gate.admit(Sent(0, 5, 1, 0), CHUNKS[0])
    assert list(passed.chunks) == [0, 1]
    assert [values is chunk for values, chunk in zip(passed.chunks.values(), CHUNKS, strict=True)] == [True, True]


def test_with_cut_through_chunks_pass_as_they_come():
    gate = opened(by_chunk=True)
    for chunk in (1, 0):
        passed = gate.admit(Sent(0, 5, 1, chunk), CHUNKS[chunk])
        assert list(passed.chunks) == [chunk]


@pytest.mark.parametrize("by_chunk", [False, True])
@pytest.mark.parametrize(
    ("sent", "values", "why"),
    [
        (Sent(0, 4, 0, 1), CHUNKS[1], "it is of block 4; round 0 is for block 5"),
        (Sent(0, 5, 0, 2), CHUNKS[1], "it has a chunk 2; allowed: 0 to 1"),
        (Sent(0, 5, 0, -1), CHUNKS[1], "it has a chunk -1; allowed: 0 to 1"),
        (Sent(0, 5, 0, 0), CHUNKS[0], "chunk 0 came twice"),
        (Sent(0, 5, 0, 1), None, "chunk 1 is no vector of numbers; allowed: a vector of torch.float32"),
        (
            Sent(0, 5, 0, 1),
            CHUNKS[1].view(2, 2),
            "chunk 1 is torch.float32 of shape (2, 2); allowed: a vector of torch.float32",
        ),
        (
            Sent(0, 5, 0, 1),
            CHUNKS[1].double(),
            "chunk 1 is torch.float64 of shape (4,); allowed: a vector of torch.float32",
        ),
        (Sent(0, 5, 0, 1), CHUNKS[1][:3], "chunk 1 has 3 numbers; allowed: 4"),
        (Sent(0, 5, 0, 1), torch.zeros(0), "chunk 1 has 0 numbers; allowed: 4"),
        (Sent(0, 5, 0, 1), torch.tensor([0, 1, math.nan, 2]), "chunk 1 of 2 is not finite"),
        (Sent(0, 5, 0, 1), torch.tensor([0, 1, -math.inf, 2]), "chunk 1 of 2 is not finite"),
        (Sent(0, 5, 0, 1), torch.full((4,), -1e38), "chunk 1 of 2 holds 1e+38, which would overflow the sum"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_is_not_sound_is_refused_with_the_reason(by_chunk, sent, values, why):
    gate = opened(by_chunk)
    assert isinstance(gate.admit(Sent(0, 5, 0, 0), CHUNKS[0]), Passed)
    assert gate.admit(sent, values) == Refused(why, is_news=True, is_sound=False)
    assert gate.admit(Sent(0, 5, 0, 1), CHUNKS[1]) == Ignored(None)  # the rest of it
    assert isinstance(gate.admit(Sent(0, 5, 1, 0), CHUNKS[0]), Passed)  # others


def test_who_has_no_business_here_changes_nothing():
    gate = opened()
    assert gate.admit(Sent(7, 5, 0, 0), CHUNKS[0]) == Ignored("client 0 sent something of round 7, which is not open")
    assert gate.admit(Sent(0, 5, 9, 0), CHUNKS[0]) == Ignored("client 9, which is not of round 0, sent something of it")
    gate.drop(0, 2)
    assert isinstance(gate.admit(Sent(0, 5, 2, 0), CHUNKS[0]), Ignored)
    assert isinstance(send(gate, client=1), Passed)
    again = "client 1 sent chunk 0 of round 0 again, all of which had come"
    assert gate.admit(Sent(0, 5, 1, 0), CHUNKS[0]) == Ignored(again)


def test_what_comes_before_its_round_could_have_begun_is_refused():
    gate = opened()
    gate.open(plan_of(2), dict.fromkeys(range(3), NUM_PARAMS))  # it reads round 0
    early = "it came before round 0, which it is to start from, was part of the model"
    assert gate.admit(Sent(2, 5, 0, 0), CHUNKS[0]) == Refused(early, is_news=True, is_sound=False)
    gate.committed(0)
    assert isinstance(gate.admit(Sent(2, 5, 1, 0), CHUNKS[0]), Passed)


@pytest.mark.parametrize("by_chunk", [False, True])
def test_who_is_known_to_be_refused_is_once_all_is_there(by_chunk):
    gate = opened(by_chunk, refused=frozenset({1}))
    assert send(gate, client=1) == Refused("as the log of participation has it", is_news=False, is_sound=True)
    gate = opened(by_chunk, refused=frozenset({1}))
    assert gate.admit(Sent(0, 5, 1, 0), CHUNKS[0] * math.nan) == Refused(
        "chunk 0 of 2 is not finite", is_news=False, is_sound=False
    )


def test_the_largest_norm():
    assert isinstance(send(opened(max_norm=NORM * 1.001)), Passed)
    assert send(opened(max_norm=2.0)) == Refused(
        f"its norm is {NORM:.4g}; server.max_norm is 2", is_news=True, is_sound=True
    )


def judged(gate: Gate, round: int, scales: list[float]) -> list[bool]:
    """Open a round, send an update of each size, commit it; which of them passed."""
    gate.open(plan_of(round), dict.fromkeys(range(3), NUM_PARAMS))
    passed = [isinstance(send(gate, client, round, scale), Passed) for client, scale in enumerate(scales)]
    gate.committed(round)
    return passed


def test_the_median_is_that_of_the_rounds_that_are_read_and_of_what_passed():
    gate = gate_of(max_norm_over_median=2.0, median_rounds=2)
    assert judged(gate, 0, [1.0, 100.0, 1.2]) == [True, True, True]  # nothing is known yet
    assert judged(gate, 1, [9.0, 9.0, 9.0]) == [True, True, True]  # staleness 1: it reads no round
    assert judged(gate, 2, [2.3, 2.5, 1.0]) == [True, False, True]  # it reads round 0: the median is 1.2
    assert judged(gate, 3, [17.0, 19.0, 1.0]) == [True, False, True]  # rounds 0 and 1: 9
    assert judged(gate, 4, [17.0, 19.0, 1.0]) == [True, False, True]  # rounds 1 and 2: 9, since one of 2 was refused
    median = statistics.median([2.3, 1.0, 17.0, 1.0])
    assert judged(gate, 5, [median * 1.99, median * 2.01, 1.0]) == [True, False, True]  # rounds 2 and 3


def test_what_is_refused_by_the_median_says_so():
    gate = gate_of(max_norm_over_median=2.0, staleness=0)
    gate.open(plan_of(0, staleness=0), dict.fromkeys(range(3), NUM_PARAMS))
    send(gate)
    gate.committed(0)
    gate.open(plan_of(1, staleness=0), dict.fromkeys(range(3), NUM_PARAMS))
    why = (
        "its numbers are 3 times as large as the median update's of the rounds before; server.max_norm_over_median is 2"
    )
    assert send(gate, round=1, scale=-3.0) == Refused(why, is_news=True, is_sound=True)


def test_zeros_refuse_nobody():
    gate = gate_of(max_norm_over_median=2.0)
    for round in range(3):
        assert judged(gate, round, [0.0, 0.0, 0.0]) == [True, True, True]
    assert judged(gate, 3, [1.0, 2.0, 3.0]) == [True, True, True]


@pytest.mark.parametrize("num_rounds", [1, 2, 5])
def test_a_gate_made_anew_from_its_state_judges_alike(num_rounds):
    config = {"max_norm_over_median": 2.0, "median_rounds": 2}
    scales = torch.rand(8, 3, generator=torch.Generator().manual_seed(num_rounds)).mul(4).exp().tolist()
    whole = gate_of(**config)
    found = [judged(whole, round, scales[round]) for round in range(8)]
    gate = gate_of(**config)
    for round in range(num_rounds):
        judged(gate, round, scales[round])
    restored = gate_of(**config)
    restored.restore(num_rounds, gate.state() | {"parameters.a": torch.zeros(1)})
    assert [judged(restored, round, scales[round]) for round in range(num_rounds, 8)] == found[num_rounds:]
    assert len(gate.state()) <= 3
    assert not all(all(each) for each in found)


def test_what_is_over_is_let_go():
    gate = gate_of(max_norm_over_median=100.0, median_rounds=1)
    for round in range(50):
        judged(gate, round, [1.0, 1.0, 1.0])
    assert (len(gate._rounds), len(gate._sizes)) == (2, 2)


# ---- malformed, at random

numbers = st.integers(-2, 3) | st.integers()
tensors = st.one_of(
    st.none(),
    st.sampled_from([*CHUNKS, CHUNKS[0].double(), CHUNKS[0].to(torch.int64), torch.zeros(()), torch.zeros(0)]),
    st.lists(st.floats(width=32), min_size=4, max_size=4).map(torch.tensor),
    st.integers(0, 6).map(lambda size: torch.full((size,), math.inf)),
)


@settings(max_examples=200, deadline=None)
@given(
    st.booleans(),
    st.lists(st.tuples(st.builds(Sent, numbers, st.just(5) | numbers, numbers, numbers), tensors), max_size=30),
)
def test_nothing_that_comes_makes_it_raise_or_pass_what_is_not_sound(by_chunk, messages):
    gate, seen = opened(by_chunk, max_norm=1e6), {}
    for sent, values in messages:
        judgement = gate.admit(sent, values)
        if isinstance(judgement, Passed):
            for chunk, passed in judgement.chunks.items():
                key = (sent.round, sent.client, chunk)
                assert key not in seen
                seen[key] = passed
                assert passed.dtype == torch.float32
                assert passed.shape == (4,)
                assert passed.isfinite().all()
        elif isinstance(judgement, Refused):
            assert judgement.why
    assert {key[0] for key in seen} <= {0}
    assert {key[1] for key in seen} <= {0, 1, 2}
