"""The frames: what goes over the wire, and the strict reading of it.

A frame is ``VXR``, one byte of protocol version, 16 bytes of BLAKE2b over the rest, and the rest: a msgpack array of
the fields of `Message` in order. The hash finds accidents (a flipped bit in a residue would otherwise be a wrong
total that nobody sees); it is no signature and stops nobody who means it.

Bodies are bytes of fixed width, since msgpack ends at 64 bits and residues do not.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from voxring.errors import RemoteProtocolError

VERSION = 5
OVERHEAD = 512
"""No frame is longer than its body plus this."""

_MAGIC = b"VXR"
_HASH = 16
_HEAD = len(_MAGIC) + 1 + _HASH

SumName = Annotated[str, msgspec.Meta(pattern=r"^(|images|landmarks|voxels|sum|sdsum|statistics|step [1-9][0-9]?)$")]
"""Each sum of a session by a name of its own, which steps of a logistic regression number; none in other messages."""
Kind = Literal[
    "again",
    "hello",
    "welcome",
    "commitments",
    "opening",
    "openings",
    "kept",
    "poll",
    "status",
    "share",
    "stream",
    "door",
    "scale",
    "released",
    "means",
    "weights",
    "done",
    "abort",
    "ok",
    "refused",
]
Name = Annotated[str, msgspec.Meta(max_length=64)]


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """One message.

    ``share`` goes round a ring; for a long vector ``stream`` does, which ``door`` answers, and chunks follow. The
    researcher asks with ``again``, ``hello``, ``commitments``, ``openings``, ``kept``, ``poll``, ``scale``,
    ``released``, ``means``, ``weights``, ``done`` and ``abort``; the answers are ``welcome``, ``opening``, ``status``,
    ``ok`` and ``refused``. ``sum`` and ``ring`` matter to ``share``, ``stream`` and ``door``, ``sum`` also to
    ``weights``; the ``digest`` of the first two stands for study and coin.
    """

    kind: Kind
    digest: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    session: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    sender: Name
    receiver: Name
    sum: SumName = ""
    ring: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Described:
    """What one kind of message tells: from whom, to whom, what is in it, and how that is distributed.

    The distribution is that given the results which the receiver is meant to learn (Section 5).
    """

    sender: str
    receiver: str
    holds: str
    distribution: str


_FIXED = "fixed by the study and the protocol"
_COIN = "random, independent of every image"
MESSAGES: dict[Kind, Described] = {
    "again": Described(
        "researcher", "party", "a session failed before anything was released: another begins", _FIXED + "; its name"
    ),
    "hello": Described("researcher", "party", "a new session's random name", _FIXED + "; the name is random"),
    "welcome": Described(
        "party", "researcher", "the coin it keeps, a commitment to its part of a new one, or both", _COIN
    ),
    "commitments": Described("researcher", "party", "the commitments of all parties", _COIN),
    "opening": Described("party", "researcher", "its part of the coin", _COIN),
    "openings": Described("researcher", "party", "the parts of all parties", _COIN),
    "kept": Described("researcher", "party", "all parties keep the same coin, which is used", _COIN),
    "poll": Described("researcher", "party", "asks how far the party is", _FIXED),
    "status": Described(
        "party",
        "researcher",
        "how far it is, why it ended if it did, the share that the last of a ring hands over, and how many of its "
        "images cannot be used and were left out",
        _FIXED
        + ", but the time it takes tells how long the party computed, and a party whose ledger refuses the run says "
        "that it does, not why; the number of images left out is told as it is; the share as below",
    ),
    "share": Described(
        "member",
        "next in the ring",
        "blind plus the shares of the members before, one residue for each number summed",
        "uniform in [0, N), independent of every image and result; the researcher, who knows the blinds, finds uniform "
        "numbers that add up to the total",
    ),
    "stream": Described(
        "member",
        "next in the ring",
        "a long vector comes as chunks, each like a share of its slots, over a stream with this fresh key; the "
        "researcher also asks the last in the ring so, for the way back to itself",
        "random, independent of every image; chunks as shares",
    ),
    "door": Described("party", "researcher or member before", "at which port it takes the stream", _FIXED),
    "scale": Described(
        "researcher",
        "party",
        "the standard scale: the mean of each landmark over all images, exact",
        "the result itself",
    ),
    "released": Described("researcher", "party", "n of each released class", "the result itself"),
    "means": Described("researcher", "party", "μ of each released class, exact", "the result itself"),
    "weights": Described(
        "researcher",
        "party",
        "the weights of a step of the logistic regression, as integers",
        "fixed for the first step; of later ones, they follow from the results and the sums of the steps before, which "
        "the researcher learns",
    ),
    "done": Described("researcher", "party", "the session is over", _FIXED),
    "abort": Described(
        "researcher", "party", "the session has failed, and why", "fixed words and names of parties and classes"
    ),
    "ok": Described("party", "researcher or member before", "the message was taken", _FIXED),
    "refused": Described(
        "party",
        "researcher or member before",
        "why a message was not taken",
        "fixed words; that a party's numbers leave the study's bounds is told, the numbers are not",
    ),
}
"""Every kind of message. The disclosure sheet is made from this table; tests hold real traffic against it."""

_SEALED = "for whoever lacks the two members' keys random, but for its length"
CARRIERS: dict[str, Described] = {
    "handshake": Described(
        "member",
        "member",
        "hello, finish, answer, open, again or refused: the flights of TLS 1.3, in which both prove that they hold "
        "their keys, and why one ended",
        "random to whoever has not seen the study; to whoever has, the two public keys and fresh randomness",
    ),
    "question and answer": Described(
        "member", "member", "one message each, sealed under the channel of the two, with its number", _SEALED
    ),
    "chunk": Described(
        "member",
        "next in the ring",
        "a piece of a long vector, like a share of its slots, and a head: sum, ring, place, number, check",
        "as a share of its slots; sealed, " + _SEALED,
    ),
    "word of a stream": Described(
        "member",
        "member",
        "which stream this is; that it was understood; that both are there; that all has come",
        _FIXED + "; sealed as chunks",
    ),
}
"""What messages and chunks travel in; links of a study without keys have no handshake and seal nothing."""
RELAYED: dict[str, Described] = {
    "Ask": Described(
        "member", "relay", "the name of a mailbox, what is put into it, the ticket that was seen last", _SEALED
    ),
    "Take": Described(
        "member",
        "relay",
        "the tokens of the member's own mailbox, an answer to what was taken before, tickets, whether it leaves",
        _SEALED,
    ),
    "Question": Described(
        "relay", "member", "what was put into its mailbox, a ticket, the number of a connection", _SEALED
    ),
    "Answer": Described("relay", "member", "the answer to what it put, and a ticket", _SEALED),
    "Gone": Described("relay", "member", "that a connection which asked has closed, by its number", _FIXED),
    "Nothing": Described("relay", "member", "that nothing came in time", _FIXED),
    "Absent": Described("relay", "member", "that nobody has opened that mailbox", _FIXED),
    "Full": Described("relay", "member", "that the relay holds as much as it will", _FIXED),
    "Unreadable": Described("relay", "member", "that what came was no request", _FIXED),
}
"""What goes between a member and a relay."""

SUMS: dict[str, str] = {
    "images": "how many images and patients there are",
    "landmarks": "the sum over all images of each landmark between the first and the last",
    "voxels": "n and the patient count of every class of the study",
    "sum": "the sum of local means of every released class",
    "sdsum": "the sum of squared deviations from μ of every released class",
    "statistics": "the additive statistics that the study asks for, of every released class",
    "step": "the gradient and the Hessian of a logistic regression at the weights that were sent, of all released "
    "classes together; once for each step",
}
"""What each secure sum adds up; the steps of a logistic regression are alike."""


def step_name(number: int) -> str:
    """Return the name of the sum of a step of a logistic regression, the first of which has the number 1."""
    return f"step {number}"


def kind_of_sum(name: str) -> str:
    """Return the name under which `SUMS` describes a sum.

    Examples
    --------
    >>> kind_of_sum(step_name(3)), kind_of_sum("voxels")
    ('step', 'voxels')
    """
    return name.partition(" ")[0]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """Return the frame of a message."""
    payload = _encoder.encode(message)
    return _MAGIC + bytes([VERSION]) + _hash(payload) + payload


def decode(frame: bytes, *, limit: int) -> Message:
    """Read a frame of at most ``limit`` bytes.

    Raises
    ------
    RemoteProtocolError
        The frame is too long, of another program or protocol version, damaged, or malformed. What came is named by
        its kind, never by its content.

    Examples
    --------
    >>> hello = Message(kind="hello", digest=bytes(32), session=bytes(16), sender="researcher", receiver="a")
    >>> decode(encode(hello), limit=1000) == hello
    True
    """
    if len(frame) > limit:
        raise RemoteProtocolError(f"frame: expected at most {limit} bytes, got {len(frame)}")
    if len(frame) < _HEAD or not frame.startswith(_MAGIC):
        raise RemoteProtocolError("frame: expected a message of voxring, got something else")
    version = frame[len(_MAGIC)]
    if version != VERSION:
        raise RemoteProtocolError(
            f"frame: expected protocol version {VERSION}, got {version}: run the same release of voxring everywhere"
        )
    payload = frame[_HEAD:]
    if frame[len(_MAGIC) + 1 : _HEAD] != _hash(payload):
        raise RemoteProtocolError("frame: damaged on the way: its hash does not match")
    try:
        return _decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        # The decoder's own words could quote what came.
        raise RemoteProtocolError("frame: expected the fields of a message, got others") from None


def _hash(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=_HASH, person=b"voxring frame").digest()
