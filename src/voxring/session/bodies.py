"""How the bodies of the researcher's and the parties' messages are written, and read strictly.

Integers are signed, highest byte first, in as few bytes as they need: msgpack's own end at 64 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, TypeVar

import msgspec

from voxring.errors import RemoteProtocolError
from voxring.ring.coin import COIN_BYTES

REASON_LENGTH = 300
MAX_PORT = 65535


class Status(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A party's answer to a poll: where it is, why it ended, the ring message that it hands to the master, and how many
    images its operator had it leave out.
    """

    state: str
    reason: str = ""
    share: bytes = b""
    skipped: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] = 0


class Welcome(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A party's answer to a hello: the coin that it keeps of an earlier run, what it commits to its part of a new one
    with, or both if the coin that it keeps was never used.
    """

    coin: bytes = b""
    commitment: bytes = b""


T = TypeVar("T")


def write_status(status: Status) -> bytes:
    """Write the answer to a poll."""
    return msgspec.msgpack.encode(status)


def read_status(body: bytes) -> Status:
    """Read the answer to a poll."""
    status: Status = _read(body, Status, "status")
    return status


def write_welcome(welcome: Welcome) -> bytes:
    """Write the answer to a hello."""
    return msgspec.msgpack.encode(welcome)


def read_welcome(body: bytes) -> Welcome:
    """Read the answer to a hello.

    Raises
    ------
    RemoteProtocolError
        The body is malformed, or holds neither a coin nor a commitment.
    """
    welcome: Welcome = _read(body, Welcome, "welcome")
    sizes = {len(welcome.coin), len(welcome.commitment)}
    if COIN_BYTES not in sizes or not sizes <= {0, COIN_BYTES}:
        raise RemoteProtocolError("welcome: expected a coin, a commitment or both, got something else")
    return welcome


def write_parts(parts: Mapping[str, bytes]) -> bytes:
    """Write commitments, or parts of the coin, by party."""
    return msgspec.msgpack.encode(list(parts.items()))


def read_parts(body: bytes, parties: Sequence[str], what: str) -> dict[str, bytes]:
    """Read commitments, or parts of the coin: one of each party, in the study's order.

    Raises
    ------
    RemoteProtocolError
        The body is malformed, or is not of these parties.
    """
    rows: list[tuple[str, bytes]] = _read(body, list[tuple[str, bytes]], what)
    if [name for name, _ in rows] != list(parties) or any(len(part) != COIN_BYTES for _, part in rows):
        raise RemoteProtocolError(f"{what}: expected {COIN_BYTES} bytes of each party of the study, got others")
    return dict(rows)


def write_scale(scale: Sequence[Fraction]) -> bytes:
    """Write the standard scale."""
    return msgspec.msgpack.encode([(_bytes(one.numerator), _bytes(one.denominator)) for one in scale])


def read_scale(body: bytes) -> tuple[Fraction, ...]:
    """Read the standard scale.

    Raises
    ------
    RemoteProtocolError
        The body is malformed or a landmark is not in lowest terms.
    """
    rows: list[tuple[bytes, bytes]] = _read(body, list[tuple[bytes, bytes]], "scale")
    return tuple(_fraction(high, low, "scale: expected landmarks") for high, low in rows)


def write_counts(counts: Mapping[str, int]) -> bytes:
    """Write n of each released class."""
    return msgspec.msgpack.encode([(name, _bytes(count)) for name, count in counts.items()])


def read_counts(body: bytes) -> dict[str, int]:
    """Read n of each released class; the names come once each, any number of them.

    Raises
    ------
    RemoteProtocolError
        The body is malformed.
    """
    rows = _read(body, list[tuple[str, bytes]], "released")
    return _once([(name, _integer(count)) for name, count in rows], "released")


def write_means(means: Mapping[str, Fraction]) -> bytes:
    """Write μ of each released class."""
    rows = [(name, _bytes(mean.numerator), _bytes(mean.denominator)) for name, mean in means.items()]
    return msgspec.msgpack.encode(rows)


def read_means(body: bytes) -> dict[str, Fraction]:
    """Read μ of each released class.

    Raises
    ------
    RemoteProtocolError
        The body is malformed or a μ is not in lowest terms.
    """
    rows = _read(body, list[tuple[str, bytes, bytes]], "means")
    return _once([(name, _fraction(high, low, "means: expected μ")) for name, high, low in rows], "means")


def write_weights(rows: Sequence[Sequence[int]]) -> bytes:
    """Write the weights of a step of a logistic regression."""
    return msgspec.msgpack.encode([[_bytes(one) for one in row] for row in rows])


def read_weights(body: bytes) -> tuple[tuple[int, ...], ...]:
    """Read the weights of a step; any number of rows of any length.

    Raises
    ------
    RemoteProtocolError
        The body is malformed.
    """
    rows: list[list[bytes]] = _read(body, list[list[bytes]], "weights")
    return tuple(tuple(map(_integer, row)) for row in rows)


def _fraction(high: bytes, low: bytes, expected: str) -> Fraction:
    numerator, denominator = _integer(high), _integer(low)
    if denominator < 1 or Fraction(numerator, denominator).denominator != denominator:
        raise RemoteProtocolError(f"{expected} in lowest terms, got another fraction")
    return Fraction(numerator, denominator)


def write_door(offset: int) -> bytes:
    """Write at which port a stream is taken: how much higher it is than the one that takes messages."""
    return _bytes(offset)


def read_door(body: bytes) -> int:
    """Read at which port a stream is taken.

    Raises
    ------
    RemoteProtocolError
        The body is malformed.
    """
    offset = _integer(body)
    if not -MAX_PORT < offset < MAX_PORT:
        raise RemoteProtocolError("door: expected the distance of two ports, got more")
    return offset


def write_reason(reason: str) -> bytes:
    """Write a plain reason, cut to a length that any frame holds."""
    return reason[:REASON_LENGTH].encode()


def read_reason(body: bytes) -> str:
    """Read a reason for an operator's eyes: one line, printable."""
    text = body[: 4 * REASON_LENGTH].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else " " for c in text)[:REASON_LENGTH]


def _bytes(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)


def _integer(digits: bytes) -> int:
    number = int.from_bytes(digits, "big", signed=True)
    if _bytes(number) != digits:
        raise RemoteProtocolError("expected an integer in as few bytes as it needs, got another")
    return number


def _read(body: bytes, kind: Any, what: str) -> Any:
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise RemoteProtocolError(f"{what}: the body is malformed") from None


def _once(rows: list[tuple[str, T]], what: str) -> dict[str, T]:
    if len(dict(rows)) != len(rows):
        raise RemoteProtocolError(f"{what}: expected each class once, got one twice")
    return dict(rows)
