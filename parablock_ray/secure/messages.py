"""The control messages as bytes: a header that says from whom, to whom and in which session, then items of one size.

All numbers are little-endian. Lengths are checked before anything is taken apart, so a message costs no more than it
holds. The masked vector itself travels as arrays, chunk by chunk.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from parablock_ray.errors import RunFailed
from parablock_ray.secure.primitives import KEY_BYTES, SEAL_BYTES

SERVER = 0xFFFFFFFF  # its address; clients have theirs below

_MAGIC = b"PBS1"
_HEADER = struct.Struct("<4sB16sII")  # magic, kind, session, sender, receiver
_CLIENT = struct.Struct("<I")


class Refused(RunFailed):
    """A message that is not taken, and has changed nothing: says whose, and what is wrong with it."""


class Kind(IntEnum):
    """In the order in which they travel."""

    KEYS = 1  # client → server: its public keys and the check of its self mask
    KEY_LIST = 2  # server → client: those of all
    SHARES = 3  # client → server: sealed shares, one for each peer
    SHARE_LIST = 4  # server → client: those that its peers have sealed for it
    SURVIVORS = 5  # server → client: whose vectors are in the sum
    REVEAL = 6  # client → server: one share of each client's one seed


ITEM_BYTES = {  # beside the number of the client that an item is about
    Kind.KEYS: 3 * KEY_BYTES,
    Kind.KEY_LIST: 3 * KEY_BYTES,
    Kind.SHARES: 2 * KEY_BYTES + SEAL_BYTES,
    Kind.SHARE_LIST: 2 * KEY_BYTES + SEAL_BYTES,
    Kind.SURVIVORS: 0,
    Kind.REVEAL: 1 + KEY_BYTES,
}


@dataclass(frozen=True)
class ControlBytes:
    """Beside its vector, what one client sends and gets in a round."""

    up: int
    down: int


def control_bytes(num_clients: int) -> ControlBytes:
    """In a round of so many clients, of whom none drops out."""
    others = num_clients - 1
    up = {Kind.KEYS: 1, Kind.SHARES: others, Kind.REVEAL: num_clients}
    down = {Kind.KEY_LIST: num_clients, Kind.SHARE_LIST: others, Kind.SURVIVORS: num_clients}
    return ControlBytes(_message_bytes(up), _message_bytes(down))


def _message_bytes(num_items: Mapping[Kind, int]) -> int:
    return sum(_HEADER.size + num * (_CLIENT.size + ITEM_BYTES[kind]) for kind, num in num_items.items())


@dataclass(frozen=True)
class Envelope:
    """What the header of a message must say."""

    kind: Kind
    session: bytes
    sender: int
    receiver: int

    def refused(self, why: str) -> Refused:
        """The error for such a message."""
        return Refused(f"secure aggregation: {self.kind.name} from {party(self.sender)} was refused: {why}")


def party(number: int) -> str:
    """For people."""
    return "the server" if number == SERVER else f"client {number}"


def pack(envelope: Envelope, items: Mapping[int, bytes]) -> bytes:
    """A message; `items`: by the client that they are about."""
    assert all(len(item) == ITEM_BYTES[envelope.kind] for item in items.values())
    header = _HEADER.pack(_MAGIC, envelope.kind, envelope.session, envelope.sender, envelope.receiver)
    return header + b"".join(_CLIENT.pack(client) + items[client] for client in sorted(items))


def unpack(envelope: Envelope, message: bytes, max_items: int) -> dict[int, bytes]:
    """The items of a message, in ascending order of clients. Raises Refused."""
    if not isinstance(message, bytes):
        raise envelope.refused(f"bytes are expected, not {type(message).__name__}")
    item_bytes = _CLIENT.size + ITEM_BYTES[envelope.kind]
    num_items, rest = divmod(len(message) - _HEADER.size, item_bytes)
    if num_items < 0 or rest:
        raise envelope.refused(f"{len(message)} bytes are no whole message; it was cut short or added to")
    if num_items > max_items:
        raise envelope.refused(f"it has {num_items} items, {max_items} is the most")
    _check_header(envelope, message)
    items: dict[int, bytes] = {}
    last = -1
    for start in range(_HEADER.size, len(message), item_bytes):
        [client] = _CLIENT.unpack_from(message, start)
        if client <= last:
            raise envelope.refused(f"client {client} comes after client {last}; clients are in order, each once")
        items[client] = message[start + _CLIENT.size : start + item_bytes]
        last = client
    return items


def _check_header(envelope: Envelope, message: bytes) -> None:
    magic, kind, session, sender, receiver = _HEADER.unpack_from(message)
    if magic != _MAGIC:
        raise envelope.refused("it is no message of this protocol, or of another version of it")
    if kind != envelope.kind:
        raise envelope.refused(f"it is of kind {kind}")
    if session != envelope.session:
        raise envelope.refused(
            "it belongs to another run, round or attempt, or its sender has other settings (clients, threshold, "
            "chunks, fixed point)"
        )
    if sender != envelope.sender:
        raise envelope.refused(f"it says that it is from {party(sender)}")
    if receiver != envelope.receiver:
        raise envelope.refused(f"it is meant for {party(receiver)}")
