"""The protocol as a whole: the exact sum whoever drops out, a refusal where too many do, one unmasking in a round."""

import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parablock_ray.errors import RunFailed, UserError
from parablock_ray.secure.client import SecureClient
from parablock_ray.secure.keys import OF_SELF_MASK
from parablock_ray.secure.messages import SERVER, Envelope, Kind, Refused, pack, unpack
from parablock_ray.secure.rounds import threshold_for
from parablock_ray.secure.server import SecureServer, SecureSum
from tests.secure.federation import MAX_WEIGHT, Federation, make_round

PHASES = ("without_keys", "without_shares", "without_vector", "half", "without_reveal")


def check_exact(federation: Federation, found: SecureSum, survivors: set[int]) -> None:
    sums, weight = federation.plain(sorted(survivors))
    assert found.clients == tuple(sorted(survivors))
    assert found.sums.tolist() == sums
    assert found.weight == weight


@settings(max_examples=40, deadline=None)
@given(data=st.data(), bits=st.sampled_from([32, 64]), num_clients=st.integers(2, 12), seed=st.integers(0, 99))
def test_the_sum_is_exact_whoever_drops_out_up_to_the_threshold(data, bits, num_clients, seed):
    threshold = data.draw(st.integers(num_clients // 2 + 1, num_clients))
    federation = Federation(make_round(num_clients, threshold, bits=bits), seed)
    lost = data.draw(st.sets(st.sampled_from(federation.round.clients), max_size=num_clients - threshold))
    where = {client: data.draw(st.sampled_from(PHASES)) for client in sorted(lost)}
    phases = {phase: {client for client in lost if where[client] == phase} for phase in PHASES}
    found = federation.run(**phases)
    check_exact(federation, found, set(federation.round.clients) - lost | phases["without_reveal"])


@pytest.mark.parametrize("num_clients", [2, 3, 31, 100])
def test_the_sum_is_exact_for_cohorts_up_to_100(num_clients):
    threshold = threshold_for(num_clients, 1 / 3)
    federation = Federation(make_round(num_clients, threshold))
    lost = random.Random(num_clients).sample(federation.round.clients, num_clients - threshold)
    phases = {phase: lost[place :: len(PHASES)] for place, phase in enumerate(PHASES)}
    found = federation.run(**phases)
    check_exact(federation, found, set(federation.round.clients) - set(lost) | set(phases["without_reveal"]))


@pytest.mark.parametrize("phase", PHASES)
def test_one_more_than_may_drop_out_is_refused_and_nothing_is_unmasked(phase):
    federation = Federation(make_round(7, threshold=5))
    lost = federation.round.clients[:3]
    what = {"without_keys": "sent keys", "without_shares": "sent shares", "without_reveal": "revealed shares"}
    message = f"round 4: 4 of 7 clients have {what.get(phase, 'sent their vectors')}, fewer than the threshold, 5"
    with pytest.raises(RunFailed, match=message):
        federation.run(**{phase: lost})


def test_dropouts_of_all_phases_add_up():
    federation = Federation(make_round(7, threshold=5))
    first, second, third = federation.round.clients[:3]
    with pytest.raises(RunFailed, match="4 of 7 clients have sent their vectors"):
        federation.run(without_keys={first}, without_shares={second}, half={third})


def test_the_mean_is_that_of_the_clipped_values_to_half_a_step():
    federation = Federation(make_round(5, threshold=3))
    found = federation.run()
    encoding = federation.round.encoding
    clipped = {client: np.clip(vector.astype(float), -1, 1) for client, vector in federation.vectors.items()}
    mean = sum(n * clipped[client] for client, n in federation.weights.items()) / found.weight
    assert np.abs(found.sums / encoding.scale / found.weight - mean).max() <= 0.5 / encoding.scale + 1e-15
    num_clipped = sum(np.count_nonzero(np.abs(vector) > 1) for vector in federation.vectors.values())
    assert sum(client.num_clipped for client in federation.clients.values()) == num_clipped > 0


def test_survivors_are_named_once():
    federation = Federation(make_round(4, threshold=3))
    survivors = federation.send_vectors(federation.send_shares(federation.send_keys()), federation.round.clients[:1])
    with pytest.raises(Refused, match="VECTORS cannot be closed, the round is at REVEAL"):
        federation.server.survivors()
    federation.send_reveals(survivors)
    with pytest.raises(Refused, match="nothing can be unmasked, the round is at DONE"):
        federation.server.unmask()


def test_a_client_answers_one_set_of_survivors_only():
    federation = Federation(make_round(4, threshold=3))
    first, *others = federation.round.clients
    survivors = federation.send_vectors(federation.send_shares(federation.send_keys()))
    asked = others[0]
    federation.clients[asked].reveal(survivors[asked])
    without_first = pack(Envelope(Kind.SURVIVORS, federation.round.session, SERVER, asked), dict.fromkeys(others, b""))
    for again in (without_first, survivors[asked]):
        with pytest.raises(Refused, match=f"client {asked} is at DONE, and was asked for REVEAL"):
            federation.clients[asked].reveal(again)
    assert first not in unpack(Envelope(Kind.SURVIVORS, federation.round.session, SERVER, asked), without_first, 9)


def test_a_client_reveals_one_seed_of_each_and_its_own_self_mask():
    federation = Federation(make_round(4, threshold=3))
    dropped, one, *_ = federation.round.clients
    survivors = federation.send_vectors(federation.send_shares(federation.send_keys()), {dropped})
    reply = federation.clients[one].reveal(survivors[one])
    items = unpack(Envelope(Kind.REVEAL, federation.round.session, one, SERVER), reply, 4)
    assert {client for client, item in items.items() if item[:1] == OF_SELF_MASK} == survivors.keys()
    assert items.keys() - survivors.keys() == {dropped}


def test_a_client_reveals_nothing_for_fewer_survivors_than_the_threshold_or_without_itself():
    federation = Federation(make_round(5, threshold=4))
    survivors = federation.send_vectors(federation.send_shares(federation.send_keys()))
    asked, *others = federation.round.clients
    envelope = Envelope(Kind.SURVIVORS, federation.round.session, SERVER, asked)
    for clients, why in (
        ([asked, *others[:2]], "3 clients are fewer than the threshold, 4"),
        (others, f"client {asked} itself is not among the clients"),
        ([asked, 4, *others[:2]], "client 4 is not of the cohort"),
    ):
        with pytest.raises(Refused, match=why):
            federation.clients[asked].reveal(pack(envelope, dict.fromkeys(clients, b"")))
    check_exact(federation, federation.send_reveals(survivors), set(federation.round.clients))


def test_every_chunk_is_masked_once():
    federation = Federation(make_round(3, threshold=2))
    share_lists = federation.send_shares(federation.send_keys())
    client = federation.round.clients[0]
    federation.clients[client].take_shares(share_lists[client])
    federation.masked(client)
    with pytest.raises(Refused, match=f"client {client} is at REVEAL, and was asked for MASK"):
        federation.masked(client)


def test_a_value_that_is_not_finite_is_not_sent_and_spends_no_mask():
    federation = Federation(make_round(3, threshold=2))
    share_lists = federation.send_shares(federation.send_keys())
    client = federation.clients[federation.round.clients[0]]
    client.take_shares(share_lists[federation.round.clients[0]])
    for bad in (np.nan, np.inf):
        with pytest.raises(RunFailed, match="not finite"):
            client.masked(np.full(5, bad, np.float32))


def test_chunks_come_in_any_order_and_strange_ones_are_refused():
    federation = Federation(make_round(3, threshold=2))
    share_lists = federation.send_shares(federation.send_keys(), federation.round.clients[2:])
    first, second, third = federation.round.clients
    chunks = {}
    for client in (first, second):
        federation.clients[client].take_shares(share_lists[client])
        chunks[client] = federation.masked(client)
    add = federation.server.add
    add(first, 2, chunks[first][2])
    for arguments, why in (
        ((first, 2, chunks[first][2]), "it is here already"),
        ((first, 3, chunks[first][2]), "the vector has 3 chunks"),
        ((first, -1, chunks[first][2]), "the vector has 3 chunks"),
        ((first, 0, chunks[first][1]), "it must be 5 words of type uint32"),
        ((first, 0, chunks[first][0].view(np.int32)), "it must be 5 words of type uint32"),
        ((first, 0, chunks[first][0].tobytes()), "it must be 5 words of type uint32"),
        ((third, 0, chunks[first][0]), "it is not of this round"),
        ((99, 0, chunks[first][0]), "it is not of this round"),
    ):
        with pytest.raises(Refused, match=rf"chunk {arguments[1]} from client {arguments[0]} was refused: {why}"):
            add(*arguments)
    for client in (second, first):
        for chunk in (1, 0, 2):
            if (client, chunk) != (first, 2):
                add(client, chunk, chunks[client][chunk])
    with pytest.raises(Refused, match="it is here already"):
        add(first, 0, chunks[first][0])
    survivors = federation.server.survivors()
    with pytest.raises(Refused, match="the round is at REVEAL"):
        add(first, 0, chunks[first][0])
    check_exact(federation, federation.send_reveals(survivors), {first, second})


def test_who_is_missing_in_each_phase():
    federation = Federation(make_round(4, threshold=2 + 1))
    server, (first, *others) = federation.server, federation.round.clients
    assert server.missing() == {first, *others}
    key_lists = federation.send_keys()
    assert server.missing() == {first, *others}
    share_lists = federation.send_shares(key_lists, {first})
    assert server.missing() == set(others)
    survivors = federation.send_vectors(share_lists)
    assert server.missing() == set(others)
    federation.send_reveals(survivors)
    assert server.missing() == set()


def test_keys_of_rounds_and_attempts_have_nothing_in_common():
    round = make_round(3, threshold=2)
    client = round.clients[0]
    [one], [other] = (
        unpack(Envelope(Kind.KEYS, round.session, client, SERVER), SecureClient(round, client, 1).keys(), 1).values()
        for _ in range(2)
    )
    assert {one[:32], one[32:64], one[64:]}.isdisjoint({other[:32], other[32:64], other[64:]})


def test_the_server_keeps_one_vector_however_many_clients():
    num_params, num_clients = 50_000, 12
    federation = Federation(make_round(num_clients, 7, [(0, 25_000), (25_000, num_params)]))
    share_lists = federation.send_shares(federation.send_keys())
    vector_bytes = 4 * num_params
    masked = {}
    for client in federation.round.clients:
        federation.clients[client].take_shares(share_lists[client])
        masked[client] = federation.masked(client)
    tracemalloc.start()
    for client, chunks in masked.items():
        for chunk, words in enumerate(chunks):
            federation.server.add(client, chunk, words.copy())
    held_bytes, peak_bytes = tracemalloc.get_traced_memory()
    survivors = federation.server.survivors()
    found = federation.send_reveals(survivors)
    _, peak_of_all = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held_bytes < 1.1 * vector_bytes
    assert peak_bytes < 2.5 * vector_bytes  # the sum, and the one vector that is on its way
    assert peak_of_all < 4 * vector_bytes
    assert found.weight == sum(federation.weights.values())


@pytest.mark.parametrize(
    ("num_clients", "threshold", "message"),
    [
        (1, 1, "a cohort of 1, allowed are 2 to 4096 clients"),
        (4, 2, "a threshold of 2 for 4 clients, allowed are 3 to 4: more than half"),
        (4, 5, "a threshold of 5 for 4 clients"),
    ],
)
def test_what_cannot_be_is_refused_before_the_start(num_clients, threshold, message):
    with pytest.raises(UserError, match=message):
        make_round(num_clients, threshold)


def test_a_weight_above_the_largest_is_refused():
    round = make_round(2, 2)
    for weight in (0, MAX_WEIGHT + 1):
        with pytest.raises(UserError, match=f"client 3 has a weight of {weight}, allowed are 1 to {MAX_WEIGHT}"):
            SecureClient(round, 3, weight)


def test_the_threshold_for_a_fraction():
    assert [threshold_for(n, 0.3) for n in (2, 3, 4, 10, 100)] == [2, 3, 3, 7, 70]
    assert all(threshold_for(n, 0.499) > n / 2 for n in range(2, 101))
    with pytest.raises(UserError, match=r"allowed is 0 to under 0\.5"):
        threshold_for(10, 0.5)


@pytest.mark.parametrize("package", ["cryptography", "shamirs"])
def test_a_missing_package_is_named_with_the_extra(monkeypatch, package):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    for start in (lambda: SecureServer(make_round(2, 2)), lambda: SecureClient(make_round(2, 2), 3, 1)):
        with pytest.raises(UserError, match=rf"needs the package {package}; pip install 'parablock-ray\[secure\]'"):
            start()
