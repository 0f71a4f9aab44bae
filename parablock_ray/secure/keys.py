"""The keys of one round, each derived for one purpose: what client and server must both be able to make."""

from dataclasses import dataclass

from parablock_ray.secure.primitives import KEY_BYTES, KeyPair, derive, key_pair
from parablock_ray.secure.rounds import SecureRound

OF_SELF_MASK = b"\0"  # which of a client's two seeds a revealed share belongs to
OF_PAIR_KEY = b"\1"


@dataclass(frozen=True)
class PublicKeys:
    """What a client tells all before a round: a key for sealing, one for pair masks, the check of its self mask."""

    sealing: bytes
    pair: bytes
    check: bytes

    @staticmethod
    def unpacked(item: bytes) -> "PublicKeys":
        """Of `packed`, whose length was checked."""
        return PublicKeys(item[:KEY_BYTES], item[KEY_BYTES : 2 * KEY_BYTES], item[2 * KEY_BYTES :])

    def packed(self) -> bytes:
        """As it travels."""
        return self.sealing + self.pair + self.check


def pair_key(seed: bytes, round: SecureRound, client: int) -> KeyPair:
    """The keys for pair masks that belong to a seed: what is shared is the seed."""
    return key_pair(derive(seed, "pair key", round.session, client))


def check_of(seed: bytes, round: SecureRound, client: int) -> bytes:
    """By this the server knows the seed of a self mask when it has recovered it, and learns nothing before."""
    return derive(seed, "check of the self mask", round.session, client)


def sealing_key(agreed: bytes, round: SecureRound, sender: int, receiver: int) -> bytes:
    """For shares in one direction."""
    return derive(agreed, "shares", round.session, sender, receiver)
