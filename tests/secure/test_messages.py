"""Messages that are not what they should be: refused with a reason, by parties that go on as if nothing had come."""

import random
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parablock_ray.errors import RunFailed
from parablock_ray.secure.client import SecureClient
from parablock_ray.secure.messages import ITEM_BYTES, SERVER, Envelope, Kind, Refused, pack, unpack
from parablock_ray.secure.server import SecureServer
from tests.secure.federation import Federation, make_round
from tests.secure.test_protocol import check_exact

SESSION = bytes(range(16))
HEADER_BYTES = 29
KINDS = st.sampled_from(list(Kind))


def some_message(kind: Kind, num_items: int = 3) -> tuple[Envelope, bytes]:
    envelope = Envelope(kind, SESSION, 7, SERVER)
    return envelope, pack(envelope, {2 * place: bytes([place]) * ITEM_BYTES[kind] for place in range(num_items)})


@settings(deadline=None)
@given(kind=KINDS, num_items=st.integers(0, 5))
def test_what_is_packed_is_unpacked(kind, num_items):
    envelope, message = some_message(kind, num_items)
    items = unpack(envelope, message, 5)
    assert items == {2 * place: bytes([place]) * ITEM_BYTES[kind] for place in range(num_items)}
    assert len(message) == HEADER_BYTES + num_items * (4 + ITEM_BYTES[kind])


@settings(max_examples=200, deadline=None)
@given(kind=KINDS, message=st.binary(max_size=400))
def test_noise_is_refused(kind, message):
    with pytest.raises(Refused, match=f"{kind.name} from client 7 was refused: "):
        unpack(Envelope(kind, SESSION, 7, SERVER), message, 3)


def test_ten_thousand_messages_with_wrong_bytes_are_refused_or_taken_as_they_are():
    noise, num_refused = random.Random(0), 0
    for _ in range(10_000):
        envelope, message = some_message(noise.choice(list(Kind)), noise.randrange(4))
        altered = bytearray(message[: noise.choice([len(message), noise.randrange(len(message))])])
        for _ in range(noise.randrange(1, 4)):
            altered += noise.randbytes(noise.choice([0, 0, 4, 37, noise.randrange(99)]))
            if altered:
                altered[noise.randrange(len(altered))] ^= noise.randrange(1, 256)
        try:
            assert pack(envelope, unpack(envelope, bytes(altered), 3)) == altered
        except Refused:
            num_refused += 1
    assert num_refused > 5_000


@settings(max_examples=200, deadline=None)
@given(kind=KINDS, body=st.binary(max_size=400))
def test_noise_behind_a_right_header_is_refused_or_is_items_in_order(kind, body):
    envelope, message = some_message(kind, 0)
    try:
        items = unpack(envelope, message + body, 3)
    except Refused:
        return
    assert list(items) == sorted(items)
    assert len(items) <= 3
    assert pack(envelope, items) == message + body


@pytest.mark.parametrize("kind", Kind)
def test_one_wrong_byte_in_the_header_is_refused(kind):
    envelope, message = some_message(kind)
    for place in range(HEADER_BYTES):
        for change in range(1, 256):
            altered = bytearray(message)
            altered[place] ^= change
            with pytest.raises(Refused):
                unpack(envelope, bytes(altered), 3)


@settings(deadline=None)
@given(kind=KINDS, num_bytes=st.integers(0, 28) | st.integers(30, 500))
def test_messages_cut_short_or_added_to_are_refused(kind, num_bytes):
    envelope, message = some_message(kind)
    if (num_bytes - HEADER_BYTES) % (4 + ITEM_BYTES[kind]):
        with pytest.raises(Refused, match=f"{num_bytes} bytes are no whole message"):
            unpack(envelope, (message * 20)[:num_bytes], 3)


def test_an_oversized_message_is_refused_before_it_is_taken_apart():
    envelope, message = some_message(Kind.SURVIVORS, 0)
    huge = message + bytes(4 * 10_000_000)
    with pytest.raises(Refused, match="it has 10000000 items, 3 is the most"):
        unpack(envelope, huge, 3)


def test_the_reason_is_said():
    envelope, message = some_message(Kind.SURVIVORS)
    for change, why in (
        ({"kind": Kind.REVEAL}, "are no whole message"),
        ({"session": bytes(16)}, "it belongs to another run, round or attempt"),
        ({"sender": 8}, "it says that it is from client 7"),
        ({"receiver": 7}, "it is meant for the server"),
    ):
        with pytest.raises(Refused, match=why):
            unpack(replace(envelope, **change), message, 3)
    with pytest.raises(Refused, match="client 2 comes after client 2; clients are in order, each once"):
        unpack(envelope, message[:HEADER_BYTES] + struct.pack("<II", 2, 2), 3)
    with pytest.raises(Refused, match="bytes are expected, not list"):
        unpack(envelope, [1, 2], 3)
    with pytest.raises(Refused, match="another version"):
        unpack(envelope, b"PBS2" + message[4:], 3)


Take = Callable[[bytes], object]


class Pestered(Federation):
    """A federation in which every right message comes after wrong ones, and twice. `pester` is told what takes it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.old: list[bytes] = []  # messages of this and of another round
        self.num_wrong = 0
        super().__init__(make_round(4, 3), seed)

    def pester(self, take: Take, message: bytes) -> object:
        for wrong in self.wrong(message):
            with pytest.raises(Refused, match="secure aggregation: "):
                take(wrong)
            self.num_wrong += 1
        answer = take(message)
        with pytest.raises(Refused):
            take(message)
        self.old.append(message)
        return answer

    def wrong(self, message: bytes) -> list[bytes]:
        """Replayed, cut, prolonged, with a wrong header, misaddressed, with an item too few or twice."""
        place = self.random.randrange(HEADER_BYTES)
        altered = bytearray(message)
        altered[place] ^= self.random.randrange(1, 256)
        cut = message[: self.random.randrange(len(message))]
        item_bytes = 4 + ITEM_BYTES[Kind(message[4])]
        return [
            *(old for old in self.old if old != message),
            bytes(altered),
            cut if (len(cut) - HEADER_BYTES) % item_bytes else cut + b"\0",
            message + self.random.randbytes(self.random.randrange(1, item_bytes)),
            message + message[-item_bytes:],
            message[:HEADER_BYTES],
            self.random.randbytes(len(message)),
            message[:21] + struct.pack("<I", self.random.randrange(2**32)) + message[25:],
            message[:25] + struct.pack("<I", self.random.randrange(2**32)) + message[29:],
            b"",
        ]

    def run_pestered(self) -> None:
        server, clients = self.server, self.clients
        for name, client in clients.items():
            self.pester(lambda message, name=name: server.take_keys(name, message), client.keys())
        replies = {name: self.pester(clients[name].share, message) for name, message in server.key_lists().items()}
        for name, message in replies.items():
            self.pester(lambda message, name=name: server.take_shares(name, message), message)
        for name, message in server.share_lists().items():
            self.pester(clients[name].take_shares, message)
            for chunk, words in enumerate(self.masked(name)):
                if name != self.round.clients[0]:
                    server.add(name, chunk, words)
        replies = {name: self.pester(clients[name].reveal, message) for name, message in server.survivors().items()}
        for name, message in replies.items():
            self.pester(lambda message, name=name: server.take_reveal(name, message), message)


@pytest.mark.parametrize("seed", range(4))
def test_a_round_goes_on_to_the_exact_sum_whatever_else_comes(seed):
    federation = Pestered(seed)
    federation.run_pestered()
    check_exact(federation, federation.server.unmask(), set(federation.round.clients[1:]))
    assert federation.num_wrong > 300


class Altered(Federation):
    """A federation in which one byte of one message is another one than was sent."""

    def __init__(self, which: int, place: int, change: int) -> None:
        super().__init__(make_round(3, 2))
        self.which, self.place, self.change = which, place, change

    def on_the_way(self, message: bytes) -> bytes:
        self.which -= 1
        if self.which != -1:
            return message
        altered = bytearray(message)
        altered[self.place % len(message)] ^= self.change
        return bytes(altered)

    def run_altered(self) -> None:
        server, clients = self.server, self.clients
        for name, client in clients.items():
            server.take_keys(name, self.on_the_way(client.keys()))
        for name, message in server.key_lists().items():
            server.take_shares(name, self.on_the_way(clients[name].share(self.on_the_way(message))))
        for name, message in server.share_lists().items():
            clients[name].take_shares(self.on_the_way(message))
            for chunk, words in enumerate(self.masked(name)):
                if name != self.round.clients[0]:
                    server.add(name, chunk, words)
        for name, message in server.survivors().items():
            server.take_reveal(name, self.on_the_way(clients[name].reveal(self.on_the_way(message))))
        self.found = server.unmask()


@settings(max_examples=50, deadline=None)
@given(which=st.integers(0, 15), place=st.integers(0, 10_000), change=st.integers(1, 255))
def test_one_altered_byte_of_any_message_never_gives_a_wrong_sum(which, place, change):
    federation = Altered(which, place, change)
    with pytest.raises(RunFailed, match="secure aggregation"):
        federation.run_altered()


def test_without_the_alteration_the_sum_is_there():
    federation = Altered(16, 0, 1)  # one message more than there are
    federation.run_altered()
    check_exact(federation, federation.found, set(federation.round.clients[1:]))
    assert federation.which == 0


def test_keys_with_which_no_secret_can_be_agreed_on_are_refused():
    federation = Federation(make_round(3, 2))
    first, *_ = federation.round.clients
    envelope = Envelope(Kind.KEYS, federation.round.session, first, SERVER)
    for item in (bytes(96), bytes(32) + unpack(envelope, federation.clients[first].keys(), 1)[first][32:]):
        with pytest.raises(Refused, match=f"KEYS from client {first} was refused: no secret can be agreed on"):
            federation.server.take_keys(first, pack(envelope, {first: item}))


def test_a_client_refuses_lists_that_are_not_those_of_its_cohort():
    federation = Federation(make_round(3, 2))
    first, second, third = federation.round.clients
    items = {
        name: unpack(Envelope(Kind.KEYS, federation.round.session, name, SERVER), client.keys(), 1)[name]
        for name, client in federation.clients.items()
    }
    envelope = Envelope(Kind.KEY_LIST, federation.round.session, SERVER, first)
    for changed, why in (
        ({second: items[second], third: items[third]}, f"client {first} itself is not among the clients"),
        ({first: items[first]}, "1 clients are fewer than the threshold, 2"),
        ({first: items[second], second: items[second]}, "it has other keys than those that this client has sent"),
        ({**items, second: items[third]}, "a key is there twice"),
        ({first: items[first], 4: items[second]}, "client 4 is not of the cohort"),
        (
            {**items, second: bytes(32) + items[second][32:]},
            f"no secret can be agreed on with a key of client {second}",
        ),
    ):
        with pytest.raises(Refused, match=f"KEY_LIST from the server was refused: {why}"):
            federation.clients[first].share(pack(envelope, changed))


def test_clients_who_were_told_different_keys_find_out():
    federation = Federation(make_round(3, 2))
    first, second, third = federation.round.clients
    key_lists = federation.send_keys()
    stranger = SecureClient(federation.round, second, 1)
    of_stranger = unpack(Envelope(Kind.KEYS, federation.round.session, second, SERVER), stranger.keys(), 1)[second]
    envelope = Envelope(Kind.KEY_LIST, federation.round.session, SERVER, first)
    told = unpack(envelope, key_lists[first], 3)
    told[second] = told[second][:32] + of_stranger[32:64] + told[second][64:]  # another pair key, the same sealing key
    share_lists = federation.send_shares({**key_lists, first: pack(envelope, told)})
    with pytest.raises(
        Refused, match=f"what client {second} has sealed for client {first} does not open: .* told other"
    ):
        federation.clients[first].take_shares(share_lists[first])
    federation.clients[third].take_shares(share_lists[third])


def test_other_settings_are_another_session():
    round = make_round(3, 2)
    others = [
        replace(round, run="other"),
        replace(round, round=5),
        replace(round, attempt=1),
        replace(round, threshold=3),
        replace(round, bounds=((0, 13),)),
        replace(round, clients=(3, 10, 18)),
        make_round(3, 2, bits=64),
        replace(round, encoding=replace(round.encoding, clip=0.5)),
    ]
    assert len({round.session, *(other.session for other in others)}) == 1 + len(others)
    for other in others:
        with pytest.raises(Refused, match="another run, round or attempt, or its sender has other settings"):
            SecureServer(other).take_keys(3, SecureClient(round, 3, 1).keys())
