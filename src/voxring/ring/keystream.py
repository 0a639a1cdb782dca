"""Blinds and shares of long vectors, expanded from a short key.

A vector of millions takes as many random bytes for each blind. Those are the keystream of AES-256 in counter mode under
a key of 32 bytes from the operating system, and nobody who lacks the key tells them from uniform ones. Chunk c of the
stream starts at counter c · 2^64, so any chunk can be made again when it is needed, in any order, and none is stored.

A pair of key and counter that is used twice shows the difference of two messages. So a `Keystream` is for one purpose
alone: one blind, or one share, of one ring of one sum. It draws its own key and gives it to nobody.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from voxring.ring.residues import Random

KEY_BYTES = 32
_ZEROS = memoryview(bytes(1 << 18))


class Chunk:
    """The bytes of one chunk of a stream, from its start on, as a source of randomness."""

    def __init__(self, cipher: AES, number: int) -> None:
        self._encryptor = Cipher(cipher, CTR(number.to_bytes(8, "big") + bytes(8))).encryptor()

    def __call__(self, count: int) -> bytes:
        """Return the next bytes."""
        return self._encryptor.update(_zeros(count))

    def into(self, buffer: memoryview) -> None:
        """Write the next bytes over a buffer."""
        self._encryptor.update_into(_zeros(len(buffer)), buffer)


def _zeros(count: int) -> memoryview:
    return _ZEROS[:count] if count <= len(_ZEROS) else memoryview(bytes(count))


class Keystream:
    """The stream of one fresh key, by chunks.

    Examples
    --------
    >>> import secrets
    >>> stream = Keystream(secrets.token_bytes)
    >>> stream.chunk(7)(100) == stream.chunk(7)(100) != stream.chunk(8)(100)
    True
    """

    def __init__(self, random: Random) -> None:
        self._cipher = AES(random(KEY_BYTES))

    def chunk(self, number: int) -> Chunk:
        """Return the bytes of a chunk; each call of this starts them anew."""
        return Chunk(self._cipher, number)
