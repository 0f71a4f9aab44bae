"""A client's half of the protocol, for one round: it is made for it and thrown away with it.

    keys() → server · share(server's list) → server · take_shares(server's list) · masked(chunk) … → server ·
    reveal(server's survivors) → server

Every step is taken once. A message that is refused changes nothing.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from parablock_ray.errors import UserError
from parablock_ray.secure.keys import OF_PAIR_KEY, OF_SELF_MASK, PublicKeys, check_of, pair_key, sealing_key
from parablock_ray.secure.masks import Mask, Words, apply_masks, pair_mask, self_mask
from parablock_ray.secure.messages import SERVER, Envelope, Kind, Refused, pack, unpack
from parablock_ray.secure.primitives import KEY_BYTES, agree, new_key_pair, require_packages, seal, unseal
from parablock_ray.secure.rounds import SecureRound
from parablock_ray.secure.shares import is_share, new_seed, split


class _Step(IntEnum):
    KEYS = 0
    SHARE = 1
    TAKE_SHARES = 2
    MASK = 3
    REVEAL = 4
    DONE = 5


class SecureClient:
    """Masks one vector, and helps once to unmask one sum.

    All secrets are new: the server may learn the seed of a dropped client's pair key, and with it all of that client's
    pair masks, which must be those of no other round. `weight`: what the vector is multiplied with.
    """

    def __init__(self, round: SecureRound, client: int, weight: int) -> None:
        require_packages()
        assert client in round.clients
        if not 1 <= weight <= round.encoding.max_weight:
            raise UserError(
                f"secure aggregation: client {client} has a weight of {weight}, allowed are 1 to "
                f"{round.encoding.max_weight}; the largest weight is part of the fixed point"
            )
        self.num_clipped = 0  # values that were cut to the clip range
        self._round = round
        self._client = client
        self._weight = weight
        self._step = _Step.KEYS
        self._sealing = new_key_pair()
        self._pair_seed = new_seed()
        self._self_seed = new_seed()
        self._pair = pair_key(self._pair_seed, round, client)
        self._listed: dict[int, bytes] = {}  # the keys of all, as the server has told them
        self._peers: dict[int, tuple[bytes, bytes]] = {}  # what is agreed with each: for sealing, for the pair mask
        self._held: dict[int, tuple[bytes, bytes]] = {}  # of each client its shares of self mask and pair key
        self._masks: list[Mask] = []
        self._num_masked = 0

    @property
    def bounds(self) -> Sequence[tuple[int, int]]:
        """The chunks in which it masks."""
        return self._round.bounds

    def keys(self) -> bytes:
        """The public keys, for the server."""
        self._expect(_Step.KEYS)
        self._step = _Step.SHARE
        return pack(self._to_server(Kind.KEYS), {self._client: self._keys_item()})

    def share(self, key_list: bytes) -> bytes:
        """Both seeds, shared among all who have sent keys, sealed for each of them. Raises Refused."""
        self._expect(_Step.SHARE)
        envelope = self._from_server(Kind.KEY_LIST)
        listed = unpack(envelope, key_list, len(self._round.clients))
        self._check_members(envelope, listed)
        if listed[self._client] != self._keys_item():
            raise envelope.refused("it has other keys than those that this client has sent")
        keys = {client: PublicKeys.unpacked(item) for client, item in listed.items()}
        publics = [public for its in keys.values() for public in (its.sealing, its.pair)]
        if len(set(publics)) < len(publics):
            raise envelope.refused("a key is there twice")
        peers = {}
        for peer, its in keys.items():
            if peer != self._client:
                try:
                    peers[peer] = agree(self._sealing, its.sealing), agree(self._pair, its.pair)
                except ValueError:
                    raise envelope.refused(f"no secret can be agreed on with a key of client {peer}") from None
        self._listed, self._peers = listed, peers
        self._step = _Step.TAKE_SHARES
        num_shares, threshold = len(self._round.clients), self._round.threshold
        of_self = split(self._self_seed, num_shares, threshold)
        of_pair = split(self._pair_seed, num_shares, threshold)
        place = {peer: self._round.x_of(peer) - 1 for peer in listed}
        self._held = {self._client: (of_self[place[self._client]], of_pair[place[self._client]])}
        return pack(
            self._to_server(Kind.SHARES),
            {
                peer: self._seal(peer, agreed, of_self[place[peer]] + of_pair[place[peer]])
                for peer, (agreed, _) in self._peers.items()
            },
        )

    def take_shares(self, share_list: bytes) -> None:
        """What peers have shared with this client: those who have are the ones that it masks with. Raises Refused."""
        self._expect(_Step.TAKE_SHARES)
        envelope = self._from_server(Kind.SHARE_LIST)
        sealed = unpack(envelope, share_list, len(self._peers))
        self._check_members(envelope, [*sealed, self._client])
        held = {}
        for peer, item in sealed.items():
            if peer not in self._peers:
                raise envelope.refused(f"client {peer} has sent no keys")
            shares = self._unseal(envelope, peer, item)
            held[peer] = shares[:KEY_BYTES], shares[KEY_BYTES:]
        self._held.update(held)
        session = self._round.session
        self._masks = [self_mask(self._self_seed, session, self._client, is_added=True)]
        self._masks += [pair_mask(self._peers[peer][1], session, self._client, peer) for peer in held]
        self._peers = {}
        self._step = _Step.MASK

    def masked(self, values: NDArray[np.floating]) -> Words:
        """The next chunk of the vector, as it is sent. Raises RunFailed if a value is not finite.

        Each chunk once: two vectors under one mask would tell their difference. So who must send again keeps the words,
        or takes another attempt. Noise, if any, is in the values already.
        """
        self._expect(_Step.MASK)
        start, end = self._round.bounds[self._num_masked]
        assert values.shape == (end - start,)
        words, num_clipped = self._round.encoding.encode(values, self._weight)
        self.num_clipped += num_clipped
        self._num_masked += 1
        is_last = self._num_masked == len(self._round.bounds)
        if is_last:
            words = np.append(words, words.dtype.type(self._weight))
        apply_masks(words, self._masks)
        if is_last:
            self._masks = []
            self._step = _Step.REVEAL
        return words

    def reveal(self, survivors: bytes) -> bytes:
        """For each survivor the share of its self mask, for each who has dropped out that of its pair key, never both.

        Once in a round, whatever is asked after that. Raises Refused.
        """
        self._expect(_Step.REVEAL)
        envelope = self._from_server(Kind.SURVIVORS)
        asked = unpack(envelope, survivors, len(self._held))
        self._check_members(envelope, asked)
        if strange := asked.keys() - self._held.keys():
            raise envelope.refused(f"client {min(strange)} has shared nothing")
        self._step = _Step.DONE
        held, self._held = self._held, {}
        return pack(
            self._to_server(Kind.REVEAL),
            {
                peer: OF_SELF_MASK + of_self if peer in asked else OF_PAIR_KEY + of_pair
                for peer, (of_self, of_pair) in held.items()
            },
        )

    def _expect(self, step: _Step) -> None:
        if self._step != step:
            raise Refused(
                f"secure aggregation: client {self._client} is at {self._step.name}, and was asked for {step.name}; "
                "every step of a round is taken once"
            )

    def _check_members(self, envelope: Envelope, clients: dict[int, bytes] | list[int]) -> None:
        if self._client not in clients:
            raise envelope.refused(f"client {self._client} itself is not among the clients")
        if len(clients) < self._round.threshold:
            raise envelope.refused(f"{len(clients)} clients are fewer than the threshold, {self._round.threshold}")
        if strange := set(clients) - set(self._round.clients):
            raise envelope.refused(f"client {min(strange)} is not of the cohort")

    def _keys_item(self) -> bytes:
        check = check_of(self._self_seed, self._round, self._client)
        return PublicKeys(self._sealing.public, self._pair.public, check).packed()

    def _seal(self, peer: int, agreed: bytes, shares: bytes) -> bytes:
        return seal(sealing_key(agreed, self._round, self._client, peer), shares, self._context(self._client, peer))

    def _unseal(self, envelope: Envelope, peer: int, sealed: bytes) -> bytes:
        key = sealing_key(self._peers[peer][0], self._round, peer, self._client)
        try:
            shares = unseal(key, sealed, self._context(peer, self._client))
        except ValueError:
            raise envelope.refused(
                f"what client {peer} has sealed for client {self._client} does not open: it was altered, or one of "
                "them was told other keys than the other"
            ) from None
        if not (is_share(shares[:KEY_BYTES]) and is_share(shares[KEY_BYTES:])):
            raise envelope.refused(f"what client {peer} has shared is no share")
        return shares

    def _context(self, sender: int, receiver: int) -> bytes:
        # With all keys of both: two clients who were told different ones would mask with masks that do not cancel.
        return self._round.session + self._listed[sender] + self._listed[receiver]

    def _to_server(self, kind: Kind) -> Envelope:
        return Envelope(kind, self._round.session, self._client, SERVER)

    def _from_server(self, kind: Kind) -> Envelope:
        return Envelope(kind, self._round.session, SERVER, self._client)
