"""The keys of one round, each derived for one purpose: what client and server must both be able to make."""

from parablock_ray.secure.primitives import KeyPair, derive, key_pair
from parablock_ray.secure.rounds import SecureRound

OF_SELF_MASK = b"\0"  # which of a client's two seeds a revealed share belongs to
OF_PAIR_KEY = b"\1"


def pair_key(seed: bytes, round: SecureRound, client: int) -> KeyPair:
    """The keys for pair masks that belong to a seed: what is shared is the seed."""
    return key_pair(derive(seed, "pair key", round.session, client))


def check_of(seed: bytes, round: SecureRound, client: int) -> bytes:
    """By this the server knows the seed of a self mask when it has recovered it, and learns nothing before."""
    return derive(seed, "check of the self mask", round.session, client)


def sealing_key(agreed: bytes, round: SecureRound, sender: int, receiver: int) -> bytes:
    """For shares in one direction."""
    return derive(agreed, "shares", round.session, sender, receiver)
