"""The server's half of the protocol, for one round.

    take_keys(client) … key_lists() → clients · take_shares(client) … share_lists() → clients · add(client, chunk) … ·
    survivors() → clients · take_reveal(client) … unmask()

Each phase ends when the caller says so, with those who have answered; whoever has not is out of the round. A message
that is refused changes nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from parablock_ray.errors import RunFailed
from parablock_ray.secure.fixed_point import Integers
from parablock_ray.secure.keys import OF_PAIR_KEY, OF_SELF_MASK, PublicKeys, check_of, pair_key
from parablock_ray.secure.masks import Mask, Words, apply_masks, pair_mask, self_mask
from parablock_ray.secure.messages import SERVER, Envelope, Kind, Refused, pack, party, unpack
from parablock_ray.secure.primitives import agree, new_key_pair, require_packages
from parablock_ray.secure.rounds import SecureRound
from parablock_ray.secure.shares import is_share, recover, weights_at_zero


class _Phase(IntEnum):
    KEYS = 0
    SHARES = 1
    VECTORS = 2
    REVEAL = 3
    DONE = 4


@dataclass(frozen=True)
class SecureSum:
    """Σ n_i · steps_i over the survivors and Σ n_i, both exact."""

    sums: Integers
    weight: int
    clients: tuple[int, ...]


class SecureServer:
    """Sees masked vectors, and in the end one sum.

    Memory: one vector, and the chunks of those clients whose vectors are not complete yet. A vector is added when it is
    complete, since what is in the sum cannot be taken out.
    """

    def __init__(self, round: SecureRound) -> None:
        require_packages()
        self._round = round
        self._phase = _Phase.KEYS
        self._throwaway = new_key_pair()  # to try others' keys with
        self._keys: dict[int, PublicKeys] = {}
        self._sealed: dict[int, dict[int, bytes]] = {}  # sender → receiver → shares
        self._incomplete: dict[int, dict[int, Words]] = {}  # client → chunk → words
        self._complete: set[int] = set()
        self._survivors: tuple[int, ...] = ()
        self._revealed: dict[int, dict[int, bytes]] = {}  # responder → client → flagged share
        self._total: Words | None = None  # not before the first vector

    def missing(self) -> set[int]:
        """Who may still answer in this phase, and has not."""
        answers: tuple[tuple[Iterable[int], Iterable[int]], ...] = (
            (self._round.clients, self._keys),
            (self._keys, self._sealed),
            (self._sealed, self._complete),
            (self._survivors, self._revealed),
            ((), ()),
        )
        asked, answered = answers[self._phase]
        return set(asked).difference(answered)

    def take_keys(self, client: int, message: bytes) -> None:
        """A client's public keys. Raises Refused."""
        envelope = self._expect(_Phase.KEYS, Kind.KEYS, client)
        items = unpack(envelope, message, 1)
        if items.keys() != {client}:
            raise envelope.refused("it must be about its sender, and has " + _named(items))
        keys = PublicKeys.unpacked(items[client])
        for public in (keys.sealing, keys.pair):
            try:
                agree(self._throwaway, public)
            except ValueError:
                raise envelope.refused("no secret can be agreed on with its keys") from None
        self._keys[client] = keys

    def key_lists(self) -> dict[int, bytes]:
        """No more keys. What each client is told. Raises RunFailed if the clients are too few."""
        self._close(_Phase.KEYS, self._keys, "sent keys")
        items = {client: keys.packed() for client, keys in self._keys.items()}
        return {client: pack(self._to(client, Kind.KEY_LIST), items) for client in items}

    def take_shares(self, client: int, message: bytes) -> None:
        """A client's sealed shares. Raises Refused."""
        envelope = self._expect(_Phase.SHARES, Kind.SHARES, client)
        items = unpack(envelope, message, len(self._keys))
        if items.keys() != self._keys.keys() - {client}:
            raise envelope.refused("its receivers are not those who have sent keys")
        self._sealed[client] = items

    def share_lists(self) -> dict[int, bytes]:
        """No more shares. What each client is told. Raises RunFailed if the clients are too few."""
        self._close(_Phase.SHARES, self._sealed, "sent shares")
        return {
            client: pack(
                self._to(client, Kind.SHARE_LIST),
                {sender: items[client] for sender, items in self._sealed.items() if sender != client},
            )
            for client in self._sealed
        }

    def add(self, client: int, chunk: int, words: Words) -> None:
        """One chunk of a client's masked vector, in any order; only read, and kept until the vector is complete. Raises
        Refused."""
        who = f"secure aggregation: chunk {chunk} from {party(client)} was refused: "
        if self._phase != _Phase.VECTORS:
            raise Refused(f"{who}the round is at {self._phase.name}")
        if client not in self._sealed:
            raise Refused(f"{who}it is not of this round")
        arrived = self._incomplete.get(client, {})
        if client in self._complete or chunk in arrived:
            raise Refused(f"{who}it is here already")
        sizes = self._round.chunk_words
        if not 0 <= chunk < len(sizes):
            raise Refused(f"{who}the vector has {len(sizes)} chunks")
        dtype = self._round.encoding.dtype
        if not isinstance(words, np.ndarray) or words.dtype != dtype or words.shape != (sizes[chunk],):
            raise Refused(f"{who}it must be {sizes[chunk]} words of type {dtype}")
        self._incomplete.setdefault(client, arrived)[chunk] = words
        if len(arrived) == len(sizes):
            self._fold(self._incomplete.pop(client))
            self._complete.add(client)

    def survivors(self) -> dict[int, bytes]:
        """No more chunks: whoever is complete is in the sum. What each of them is told.

        Said once in a round, since sums over two sets of clients would tell their difference. Raises RunFailed if the
        clients are too few.
        """
        self._close(_Phase.VECTORS, self._complete, "sent their vectors")
        self._incomplete = {}
        self._survivors = tuple(sorted(self._complete))
        items = dict.fromkeys(self._survivors, b"")
        return {client: pack(self._to(client, Kind.SURVIVORS), items) for client in self._survivors}

    def take_reveal(self, client: int, message: bytes) -> None:
        """A survivor's shares. Raises Refused."""
        envelope = self._expect(_Phase.REVEAL, Kind.REVEAL, client)
        items = unpack(envelope, message, len(self._sealed))
        if items.keys() != self._sealed.keys():
            raise envelope.refused("its shares are not those of the clients that have shared")
        for about, item in items.items():
            if item[:1] != (OF_SELF_MASK if about in self._complete else OF_PAIR_KEY):
                raise envelope.refused(f"it has a share of the wrong seed of client {about}")
            if not is_share(item[1:]):
                raise envelope.refused(f"what it has of client {about} is no share")
        self._revealed[client] = items

    def unmask(self) -> SecureSum:
        """The sum over the survivors. Raises RunFailed if too few of them have answered, or a share is wrong."""
        if self._phase != _Phase.REVEAL:
            raise Refused(f"secure aggregation: nothing can be unmasked, the round is at {self._phase.name}")
        self._require_enough(self._revealed, "revealed shares")
        masks = self._masks_in_the_sum()
        assert self._total is not None
        self._phase = _Phase.DONE
        words, self._total = self._total, None
        apply_masks(words, masks)
        sums = self._round.encoding.as_signed(words)
        return SecureSum(sums[:-1], int(sums[-1]), self._survivors)

    def _masks_in_the_sum(self) -> list[Mask]:
        """What must be taken off: of each survivor its self mask, of each who dropped out its pair masks."""
        responders = sorted(self._revealed)[: self._round.threshold]
        weights = weights_at_zero([self._round.x_of(responder) for responder in responders])
        session = self._round.session
        masks = []
        for client in self._sealed:
            seed = recover([self._revealed[responder][client][1:] for responder in responders], weights)
            keys = self._keys[client]
            if client in self._complete:
                self._check(client, check_of(seed, self._round, client) == keys.check)
                masks.append(self_mask(seed, session, client, is_added=False))
            else:
                pair = pair_key(seed, self._round, client)
                self._check(client, pair.public == keys.pair)
                # Of a dropped client's own masks the sum has the opposites, which cancel with what it would have sent.
                for peer in self._survivors:
                    masks.append(pair_mask(agree(pair, self._keys[peer].pair), session, client, peer))
        return masks

    def _check(self, client: int, is_right: bool) -> None:
        if not is_right:
            raise RunFailed(
                f"secure aggregation, round {self._round.round}: a secret of client {client} could not be recovered, a "
                "share of it is wrong; the sum stays masked; try the round again"
            )

    def _fold(self, chunks: Mapping[int, Words]) -> None:
        sizes = self._round.chunk_words
        if self._total is None:
            self._total = np.zeros(sum(sizes), self._round.encoding.dtype)
        start = 0
        for chunk, size in enumerate(sizes):
            part = self._total[start : start + size]
            np.add(part, chunks[chunk], out=part)
            start += size

    def _expect(self, phase: _Phase, kind: Kind, client: int) -> Envelope:
        envelope = Envelope(kind, self._round.session, client, SERVER)
        if self._phase != phase:
            raise envelope.refused(f"the round is at {self._phase.name}")
        if client not in self._round.clients:
            raise envelope.refused("it is not of this round")
        if client not in self.missing():
            raise envelope.refused("it has answered, or is out of the round")
        return envelope

    def _close(self, phase: _Phase, answered: Iterable[int], what: str) -> None:
        if self._phase != phase:
            raise Refused(f"secure aggregation: {phase.name} cannot be closed, the round is at {self._phase.name}")
        self._require_enough(answered, what)
        self._phase = _Phase(phase + 1)

    def _require_enough(self, answered: Iterable[int], what: str) -> None:
        num_answered = len(set(answered))
        if num_answered < self._round.threshold:
            raise RunFailed(
                f"secure aggregation, round {self._round.round}: {num_answered} of {len(self._round.clients)} clients "
                f"have {what}, fewer than the threshold, {self._round.threshold}; no sum can be unmasked"
            )

    def _to(self, client: int, kind: Kind) -> Envelope:
        return Envelope(kind, self._round.session, SERVER, client)


def _named(items: Mapping[int, bytes]) -> str:
    return ", ".join(party(client) for client in items) or "no item"
