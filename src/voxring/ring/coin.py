"""The coin that the parties throw together: nobody alone chooses who stands where.

Each party draws a part and commits to it by a hash. Only when it holds the commitments of all does it open its own
part; the coin is a hash over all parts. As long as one party draws honestly the coin is uniform, since every other
part was fixed before that one was seen. A party that opens another part than it committed to is found and named.

What this does not stop: whoever dislikes the coin can break the session off, and all draw again. That is seen, as a
session that failed between commitment and opening.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from voxring.errors import RemoteProtocolError

COIN_BYTES = 32
"""Bytes of a coin, a part and a commitment."""


def commitment(digest: bytes, session: bytes, party: str, part: bytes) -> bytes:
    """Return what a party commits to its part with; bound to study, session and name, so that nobody can repeat it."""
    return hashlib.sha256(b"voxring coin commitment 1|" + digest + session + _named(party, part)).digest()


def coin_of(digest: bytes, session: bytes, commitments: Mapping[str, bytes], parts: Mapping[str, bytes]) -> bytes:
    """Return the coin, once every part is what its party committed to.

    Raises
    ------
    RemoteProtocolError
        A part is missing, or is not the one committed to; names the party.

    Examples
    --------
    >>> parts = {"a": bytes(32), "b": b"b" * 32}
    >>> commitments = {name: commitment(bytes(32), bytes(16), name, part) for name, part in parts.items()}
    >>> len(coin_of(bytes(32), bytes(16), commitments, parts))
    32
    >>> coin_of(bytes(32), bytes(16), commitments, parts | {"b": b"c" * 32})
    Traceback (most recent call last):
    ...
    voxring.errors.RemoteProtocolError: coin: b opened another part than it committed to: start again without b, or ...
    """
    if parts.keys() != commitments.keys():
        raise RemoteProtocolError("coin: expected a part of each party that committed to one, got others")
    for name, part in parts.items():
        if commitment(digest, session, name, part) != commitments[name]:
            raise RemoteProtocolError(
                f"coin: {name} opened another part than it committed to: start again without {name}, or ask there why"
            )
    together = b"".join(_named(name, parts[name]) for name in sorted(parts))
    return hashlib.sha256(b"voxring coin 1|" + digest + session + together).digest()


def binding(digest: bytes, coin: bytes) -> bytes:
    """Return what stands for study and coin in shares: neighbours with different rings refuse each other."""
    return hashlib.sha256(b"voxring rings 1|" + digest + coin).digest()


def _named(party: str, part: bytes) -> bytes:
    name = party.encode()
    return len(name).to_bytes(2, "big") + name + len(part).to_bytes(2, "big") + part
