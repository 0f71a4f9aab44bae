"""What cryptography the protocol needs, from the package `cryptography`.

All randomness is the operating system's. No value of a run depends on it: masks cancel to the last bit.
"""

import secrets
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from parablock_ray.errors import UserError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

KEY_BYTES = 32  # of everything: seeds, shares, private and public keys, symmetric keys
_NONCE_BYTES = 12
_TAG_BYTES = 16
SEAL_BYTES = _NONCE_BYTES + _TAG_BYTES  # what sealing adds


def require_packages() -> None:
    """Raises UserError where a package is missing."""
    try:
        import cryptography  # noqa: F401
        import shamirs  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"secure aggregation: needs the package {error.name}; pip install 'parablock-ray[secure]', "
            "or run without secure aggregation"
        ) from None


@dataclass(frozen=True)
class KeyPair:
    """For X25519 (RFC 7748)."""

    private: "X25519PrivateKey"
    public: bytes


def key_pair(secret: bytes) -> KeyPair:
    """The pair whose private key is `secret`, 32 bytes that nobody can guess."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    private = X25519PrivateKey.from_private_bytes(secret)
    return KeyPair(private, private.public_key().public_bytes_raw())


def new_key_pair() -> KeyPair:
    """A pair that nobody can recover."""
    return key_pair(secrets.token_bytes(KEY_BYTES))


def agree(mine: KeyPair, public: bytes) -> bytes:
    """The secret that whoever holds either private key can compute. Raises ValueError for a point of low order, with
    which it would be no secret."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    return mine.private.exchange(X25519PublicKey.from_public_bytes(public))


def derive(secret: bytes, purpose: str, session: bytes, *clients: int) -> bytes:
    """A key for one purpose, one session and these clients, by HKDF with SHA-256 (RFC 5869)."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = f"parablock-ray secure aggregation: {purpose}".encode() + struct.pack(f"<{len(clients)}I", *clients)
    return HKDF(SHA256(), KEY_BYTES, salt=session, info=info).derive(secret)


def seal(key: bytes, plain: bytes, context: bytes) -> bytes:
    """Encrypted and authenticated, together with the context, by AES-256-GCM."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, context)


def unseal(key: bytes, sealed: bytes, context: bytes) -> bytes:
    """What was sealed with this key and context. Raises ValueError if it was not, or has been altered."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context)
    except InvalidTag:
        raise ValueError("not sealed with this key") from None


class Keystream:
    """Pseudo-random bytes without end from a key that is used for nothing else: AES-256 in counter mode from 0."""

    def __init__(self, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher
        from cryptography.hazmat.primitives.ciphers.algorithms import AES
        from cryptography.hazmat.primitives.ciphers.modes import CTR

        self._encryptor = Cipher(AES(key), CTR(bytes(16))).encryptor()

    def fill(self, buffer: bytearray, zeros: memoryview) -> None:
        """The next `len(zeros)` bytes, into a buffer that is 15 bytes longer at least."""
        self._encryptor.update_into(zeros, buffer)
