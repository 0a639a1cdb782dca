"""What goes between members and a relay: names of mailboxes, requests and replies.

A member's mailbox has a name that all members of the study can work out and nobody else: the hash of a token, which is
a hash of the study's digest, the member and the UTC day. Who puts something in says the name; who takes something out
shows the token. So having seen the name is not enough to take.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Annotated

import msgspec

from voxring.errors import RemoteProtocolError

NAME = 16
"""Bytes of a name, of a token and of a ticket."""
MAX_FRAME = (1 << 20) + (1 << 12)
"""Bytes of the largest frame that a relay carries: of the longest chunk of a vector, and what is around it."""
MAX_MESSAGE = MAX_FRAME + 256
"""Bytes of the largest request or reply."""
DAY = 86_400
SLACK = 7_200
"""Seconds by which members' clocks may differ: round midnight a member also opens the neighbouring day's mailbox."""

_Name = Annotated[bytes, msgspec.Meta(min_length=NAME, max_length=NAME)]


class Ask(msgspec.Struct, tag=1, frozen=True, array_like=True, forbid_unknown_fields=True):
    """To a relay: put a question into a mailbox and wait for the answer.

    ``seen`` is, here as in `Take`, the ticket of what was last read of this connection: the relay then knows that it
    holds it no more.
    """

    name: _Name
    frame: bytes
    seen: _Name | None = None


class Take(msgspec.Struct, tag=2, frozen=True, array_like=True, forbid_unknown_fields=True):
    """To a relay: open the mailboxes of these tokens, answer the question taken before, wait for another."""

    tokens: Annotated[tuple[_Name, ...], msgspec.Meta(min_length=1, max_length=2)]
    ticket: _Name | None = None
    answer: bytes = b""
    seen: _Name | None = None
    last: bool = False
    """Do not wait: the taker goes away."""


class Answer(msgspec.Struct, tag=3, frozen=True, array_like=True, forbid_unknown_fields=True):
    """To who asked."""

    ticket: _Name
    frame: bytes


class Question(msgspec.Struct, tag=4, frozen=True, array_like=True, forbid_unknown_fields=True):
    """To who takes: a question, the ticket to answer it with, and a number for the connection of who asked."""

    ticket: _Name
    asker: int
    frame: bytes


class Gone(msgspec.Struct, tag=5, frozen=True, array_like=True, forbid_unknown_fields=True):
    """To who takes: the connection of one who asked has closed."""

    asker: int


class Nothing(msgspec.Struct, tag=6, frozen=True, array_like=True, forbid_unknown_fields=True):
    """To who takes: there was no question. To who asked: there was no answer; ask again."""


class Absent(msgspec.Struct, tag=7, frozen=True, array_like=True, forbid_unknown_fields=True):
    """To who asked: nobody has opened this mailbox."""


class Full(msgspec.Struct, tag=8, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The relay or the mailbox holds as much as it will: try later."""


class Unreadable(msgspec.Struct, tag=9, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What came was no request."""


Request = Ask | Take
Reply = Answer | Question | Gone | Nothing | Absent | Full | Unreadable

_requests = msgspec.msgpack.Decoder(Request)
_replies = msgspec.msgpack.Decoder(Reply)
write = msgspec.msgpack.Encoder().encode


def read_request(message: bytes) -> Request | None:
    """Read what a member says; None for what is no request."""
    try:
        request: Request = _requests.decode(message)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return request


def read_reply(message: bytes, relay: str) -> Reply:
    """Read what the relay at an address says.

    Raises
    ------
    RemoteProtocolError
        It is no relay.
    """
    try:
        reply: Reply = _replies.decode(message)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise RemoteProtocolError(
            f"expected a relay of this release of voxring at {relay}, got something else: check its address and release"
        ) from None
    return reply


def tokens(digest: bytes, member: str, now: float) -> Iterator[bytes]:
    """Yield the token of the day, and near midnight that of the other day, too.

    Examples
    --------
    >>> noon, midnight = DAY * 10 + DAY / 2, DAY * 10
    >>> len([*tokens(bytes(32), "north", noon)]), len([*tokens(bytes(32), "north", midnight)])
    (1, 2)
    """
    days = (int((now + slack) // DAY) for slack in (0, -SLACK, SLACK))
    for day in dict.fromkeys(days):
        content = len(member).to_bytes(1, "big") + member.encode() + day.to_bytes(8, "big")
        yield hashlib.blake2b(content, digest_size=NAME, key=digest, person=b"voxring mailbox").digest()


def name_of(token: bytes) -> bytes:
    """Return the name of the mailbox that a token opens.

    Examples
    --------
    >>> name_of(bytes(16)).hex()
    'fe1416f42b9106b2545c684156854d69'
    """
    return hashlib.blake2b(token, digest_size=NAME, person=b"voxring name").digest()
