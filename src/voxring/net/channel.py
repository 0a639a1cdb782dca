"""Sealed channels between two members of a study, without I/O: frames in, frames out.

Theory of operation
-------------------
One end asks (`Initiator`), the other answers (`Responder`, which has all who ask it). A channel begins with a mutual
TLS 1.3 handshake, carried in two questions and their answers:

    hello:  ClientHello                     -> hello:  ServerHello ... Finished
    finish: Certificate ... Finished        -> finish

Each end shows a certificate that it made for itself, and takes exactly the public key that the study gives for the
other; no name, date or issuer in a certificate means anything. From the handshake both derive (RFC 8446, exporter) one
AES-256-GCM key for questions and one for answers. After that TLS is not used: nng may deliver a question twice, or
late, and TLS would end the connection. A frame of the channel is

    16 bytes: the channel, drawn by the initiator | 8 bytes: number of the question | ciphertext | 16 bytes: tag

An answer has the number of its question. The number is the nonce; study, members, channel, direction and number are
authenticated with the content. A question that was seen before is not opened again: the same frame gets the same
answer, sealed once. Numbers may come out of order by less than `WINDOW`; a number older than that, and another
frame under a number that was seen, are refused.

A responder that does not know a channel, having been started anew, says "again", and the initiator begins another.
Frames of the handshake are encrypted too, under a key that follows from the study's digest: who has not seen the study
can begin no handshake, does not learn whose keys are used here, and finds nothing on the wire that is not random. The
digest is no secret to rely on, and nothing else is built upon it.

Not hidden: that there are messages, when, how many, and how long. Who forges, changes or holds back frames can end a
session, and no more.
"""

from __future__ import annotations

import datetime
import hashlib
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from OpenSSL import SSL, crypto

from voxring.errors import PeerError, RemoteProtocolError
from voxring.net.keys import Keyring, fingerprint, public_of

WINDOW = 64
"""How many questions of a channel are remembered with their answers."""
HANDSHAKE_LIMIT = 1 << 14
"""Bytes of the largest frame of a handshake; those of TLS take some 2,000."""
OVERHEAD = 16 + 8 + 16
"""A sealed frame is longer than its content by this."""
HALF_OPEN = 16
"""Handshakes that a responder keeps; the oldest gives way."""
CHANNELS = 4
"""Channels that a responder keeps for one peer; the one longest unused gives way."""

_ID, _NUMBER, _NONCE = 16, 8, 12
_BLOCK = 1 << 16

Random = Callable[[int], bytes]
Word = Literal["hello", "finish", "answer", "open", "again", "refused"]


class ChannelLostError(RemoteProtocolError):
    """The peer does not know the channel any more: it was started anew. Begin another handshake."""


class _Flight(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a frame of the handshake holds. An initiator says hello and finish, a responder the rest."""

    word: Word
    channel: Annotated[bytes, msgspec.Meta(min_length=_ID, max_length=_ID)]
    body: bytes = b""


class _Wrap:
    """Encrypts frames of the handshake under a key that follows from the study."""

    def __init__(self, digest: bytes, random: Random) -> None:
        self._cipher, self._random = AESGCM(HKDF(SHA256(), 32, None, b"voxring handshake").derive(digest)), random
        self._decoder = msgspec.msgpack.Decoder(_Flight)

    def wrap(self, flight: _Flight) -> bytes:
        nonce = self._random(_NONCE)
        return nonce + self._cipher.encrypt(nonce, msgspec.msgpack.encode(flight), None)

    def unwrap(self, frame: bytes) -> _Flight | None:
        """Return None for what is no frame of a handshake of this study."""
        if not _NONCE + 16 <= len(frame) <= HANDSHAKE_LIMIT:
            return None
        try:
            return self._decoder.decode(self._cipher.decrypt(frame[:_NONCE], frame[_NONCE:], None))
        except (InvalidTag, msgspec.MsgspecError, UnicodeDecodeError):
            return None


class _Handshake:
    """One end of a TLS 1.3 handshake in memory; the peer must prove that it holds one of the accepted keys."""

    def __init__(self, keyring: Keyring, accepted: Collection[str], *, asks: bool) -> None:
        presented: list[str] = []

        def check(tls: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int) -> bool:
            presented.append(_public_in(certificate))
            return depth == 0 and presented[-1] in accepted

        context = SSL.Context(SSL.TLS_METHOD)
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, check)
        context.use_certificate(_certificate(keyring))
        context.use_privatekey(keyring.key.signer)
        self._tls = SSL.Connection(context, None)
        if asks:
            self._tls.set_connect_state()
        else:
            self._tls.set_accept_state()
        self._presented, self._accepted = presented, accepted
        self.done = False

    def step(self, flight: bytes) -> bytes:
        """Take the peer's flight and return the next one.

        Raises
        ------
        RemoteProtocolError
            The flight is none, or the peer's key is not accepted.
        """
        try:
            if flight:
                self._tls.bio_write(flight)
            self._tls.do_handshake()
            self.done = _public_in(self._tls.get_peer_certificate()) in self._accepted
        except SSL.WantReadError:
            pass
        except SSL.Error:
            raise RemoteProtocolError("handshake: expected one of TLS 1.3, got something else") from None
        return self._waiting()

    def _waiting(self) -> bytes:
        try:
            return self._tls.bio_read(_BLOCK)
        except SSL.WantReadError:
            return b""

    @property
    def presented(self) -> str:
        """The public key that the peer showed, or nothing; that it holds it is proven when the handshake is done."""
        return self._presented[-1] if self._presented else ""

    def secrets(self, context: bytes) -> tuple[bytes, bytes]:
        """Return the keys of questions and of answers."""
        both = self._tls.export_keying_material(b"EXPORTER-voxring channel", 64, context)
        return both[:32], both[32:]


def _public_in(certificate: crypto.X509 | None) -> str:
    """Return nothing for what holds no Ed25519 key."""
    try:
        key = None if certificate is None else certificate.to_cryptography().public_key()
    except (ValueError, UnsupportedAlgorithm):
        return ""
    return public_of(key) if isinstance(key, Ed25519PublicKey) else ""


def _certificate(keyring: Keyring) -> x509.Certificate:
    """Put the public key where TLS looks for it. Nothing else in it is looked at."""
    nobody, signer = x509.Name([]), keyring.key.signer
    return (
        x509.CertificateBuilder()
        .subject_name(nobody)
        .issuer_name(nobody)
        .public_key(signer.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(1970, 1, 1))
        .not_valid_after(datetime.datetime(9999, 12, 31))
        .sign(signer, None)
    )


@dataclass(slots=True)
class _Sealing:
    """One direction of a channel. No number is sealed twice."""

    channel: bytes
    cipher: AESGCM
    bound: bytes

    def seal(self, number: int, content: bytes) -> bytes:
        head = self.channel + number.to_bytes(_NUMBER, "big")
        return head + self.cipher.encrypt(number.to_bytes(_NONCE, "big"), content, self.bound + head)

    def open(self, frame: bytes) -> bytes | None:
        """Return None if the frame was not sealed by the other end as it came."""
        head, sealed = frame[: _ID + _NUMBER], frame[_ID + _NUMBER :]
        try:
            return self.cipher.decrypt(_number(frame).to_bytes(_NONCE, "big"), sealed, self.bound + head)
        except (InvalidTag, ValueError):
            return None


def _number(frame: bytes) -> int:
    return int.from_bytes(frame[_ID : _ID + _NUMBER], "big")


def _sealings(
    handshake: _Handshake, digest: bytes, asker: str, answerer: str, channel: bytes
) -> tuple[_Sealing, _Sealing]:
    """Return the sealing of questions and that of answers."""
    context = b"".join([digest, *(len(name).to_bytes(1, "big") + name.encode() for name in (asker, answerer)), channel])
    questions, answers = map(AESGCM, handshake.secrets(context))
    return _Sealing(channel, questions, b"question" + context), _Sealing(channel, answers, b"answer" + context)


class Initiator:
    """The asking end of the channel to one peer.

    Examples
    --------
    >>> from voxring.net.keys import PrivateKey
    >>> private = {name: PrivateKey.new() for name in ("researcher", "north")}
    >>> public = {name: key.public for name, key in private.items()}
    >>> def ring(name): return Keyring(bytes(32), name, private[name], public)
    >>> initiator, responder = Initiator(ring("researcher"), "north"), Responder(ring("north"))
    >>> initiator.take(responder.receive(initiator.take(responder.receive(initiator.hello()))))
    >>> number, question = initiator.seal(b"how far are you?")
    >>> asked = responder.receive(question)
    >>> asked.peer, asked.content
    ('researcher', b'how far are you?')
    >>> initiator.open(number, responder.seal(asked, b"ready"))
    b'ready'
    """

    def __init__(self, keyring: Keyring, peer: str, random: Random = secrets.token_bytes) -> None:
        self.peer, self._keyring, self._random = peer, keyring, random
        self._wrap = _Wrap(keyring.digest, random)
        self._channel = b""
        self._handshake: _Handshake | None = None
        self._questions: _Sealing | None = None
        self._answers: _Sealing | None = None
        self._next = 0

    @property
    def is_open(self) -> bool:
        """Whether `seal` can be used."""
        return self._questions is not None and self._handshake is None

    def hello(self) -> bytes:
        """Begin a handshake, leaving any channel before; return the first question."""
        self._channel, self._questions, self._answers, self._next = self._random(_ID), None, None, 0
        self._handshake = _Handshake(self._keyring, {self._keyring.keys[self.peer]}, asks=True)
        return self._wrap.wrap(_Flight("hello", self._channel, self._handshake.step(b"")))

    def take(self, frame: bytes) -> bytes | None:
        """Take the answer to a question of the handshake; return the next one, or None when the channel is open.

        Raises
        ------
        ChannelLostError
            The peer has forgotten the handshake: begin anew.
        PeerError
            The peer has another key than the study says, or does not take ours.
        RemoteProtocolError
            What came is no answer of this study.
        """
        flight = self._flight(frame)
        if flight.word == "open" and self._questions is not None:
            self._handshake = None
            return None
        if flight.word != "answer" or self._handshake is None or self._questions is not None:
            raise RemoteProtocolError(f"{self.peer} sent a handshake out of order")
        try:
            last = self._handshake.step(flight.body)
        except RemoteProtocolError as error:
            presented = self._handshake.presented
            if presented in ("", self._keyring.keys[self.peer]):
                raise RemoteProtocolError(f"{self.peer}: {error}") from None
            raise PeerError(
                f"{self.peer}: expected the key with the fingerprint {fingerprint(self._keyring.keys[self.peer])}, got "
                f"{fingerprint(presented)}: whoever answers there is not {self.peer}: check the address, and compare "
                "fingerprints over the telephone"
            ) from None
        self._questions, self._answers = _sealings(
            self._handshake, self._keyring.digest, self._keyring.name, self.peer, self._channel
        )
        return self._wrap.wrap(_Flight("finish", self._channel, last))

    def seal(self, content: bytes) -> tuple[int, bytes]:
        """Return the number of a new question, and its frame."""
        if self._questions is None:
            raise RemoteProtocolError(f"the channel to {self.peer} is not open")
        number, self._next = self._next, self._next + 1
        return number, self._questions.seal(number, content)

    def open(self, number: int, frame: bytes) -> bytes:
        """Return the content of the answer to a question.

        Raises
        ------
        ChannelLostError
            The peer does not know the channel: begin another.
        RemoteProtocolError
            The answer is another one's, or was changed on the way.
        """
        if self._answers is not None and frame[:_ID] == self._channel:
            content = self._answers.open(frame)
            if content is None or _number(frame) != number:
                raise RemoteProtocolError(f"{self.peer}'s answer was changed on the way or is to another question")
            return content
        flight = self._flight(frame)
        raise RemoteProtocolError(f"{self.peer} answered a question with {flight.word!r} of a handshake")

    def _flight(self, frame: bytes) -> _Flight:
        flight = self._wrap.unwrap(frame)
        if flight is None:
            raise RemoteProtocolError(
                f"{self.peer}: expected an answer under study {self._keyring.digest.hex()[:12]}, got something else: "
                "both need the same study file: compare what `voxring study check` says of it"
            )
        if flight.channel != self._channel:
            raise RemoteProtocolError(f"{self.peer} answered for another channel")
        if flight.word == "again":
            raise ChannelLostError(f"{self.peer} does not know this channel")
        if flight.word == "refused":
            raise PeerError(f"{self.peer} refused: {flight.body.decode('utf-8', 'replace')}")
        return flight


class Asked(NamedTuple):
    """A question that is to be answered with `Responder.seal`."""

    peer: str
    content: bytes
    channel: bytes
    number: int


@dataclass(slots=True)
class _Channel:
    """The responder's end. ``answers`` has None while a question is being answered."""

    peer: str
    questions: _Sealing
    answers: _Sealing
    handshake: dict[bytes, bytes]
    highest: int = -1
    seen: dict[int, tuple[bytes, bytes | None]] = field(default_factory=dict)


@dataclass(slots=True)
class _HalfOpen:
    tls: _Handshake
    answered: dict[bytes, bytes] = field(default_factory=dict)


class Responder:
    """The answering end of the channels of all members that ask this one. Must be called by one thread at a time."""

    def __init__(self, keyring: Keyring, random: Random = secrets.token_bytes) -> None:
        self._keyring, self._wrap = keyring, _Wrap(keyring.digest, random)
        self._members = {key: name for name, key in keyring.keys.items() if name != keyring.name}
        self._half_open: dict[bytes, _HalfOpen] = {}
        self._channels: dict[bytes, _Channel] = {}
        self.refused = ""
        """Why the last frame that did not fit was refused."""

    def receive(self, frame: bytes) -> Asked | bytes | None:
        """Take a frame; never raises, whatever came.

        Returns
        -------
        Asked
            A question, to be answered with `seal`.
        bytes
            The frame to send back at once.
        None
            The same question has come before and is being answered: call again when it is.
        """
        channel = self._channels.get(frame[:_ID])
        if channel is not None:
            self._channels[frame[:_ID]] = self._channels.pop(frame[:_ID])  # the last to give way
            return self._sealed(channel, frame)
        flight = self._wrap.unwrap(frame)
        if flight is None:
            self.refused = "a frame that is not of this study, or of a channel that ended"
            return self._say("again", frame[:_ID].ljust(_ID, b"\0"))
        return self._shake(flight, hashlib.sha256(frame).digest())

    def seal(self, asked: Asked, content: bytes) -> bytes:
        """Return the answer to a question."""
        channel = self._channels.get(asked.channel)
        if channel is None or asked.number not in channel.seen:
            return self._say("again", asked.channel)  # it gave way meanwhile
        known, answer = channel.seen[asked.number]
        if answer is None:
            answer = channel.answers.seal(asked.number, content)
            channel.seen[asked.number] = known, answer
        return answer

    def _sealed(self, channel: _Channel, frame: bytes) -> Asked | bytes | None:
        number, came = _number(frame), hashlib.sha256(frame).digest()
        if number in channel.seen:
            known, answer = channel.seen[number]
            if known != came:
                return self._refuse(channel.questions.channel, "a second, different message under the same number")
            return answer
        if number <= channel.highest - WINDOW:
            return self._refuse(channel.questions.channel, "a message from long ago")
        content = channel.questions.open(frame)
        if content is None:
            return self._refuse(channel.questions.channel, "a message that was changed on the way")
        channel.highest = max(channel.highest, number)
        channel.seen[number] = came, None
        for old in [old for old in channel.seen if old <= channel.highest - WINDOW]:
            del channel.seen[old]
        return Asked(channel.peer, content, channel.questions.channel, number)

    def _shake(self, flight: _Flight, came: bytes) -> bytes:
        known = self._channels.get(flight.channel) or self._half_open.get(flight.channel)
        answered = known.handshake if isinstance(known, _Channel) else known.answered if known else {}
        if came in answered:
            return answered[came]
        if flight.word == "hello" and known is None:
            begun = _HalfOpen(_Handshake(self._keyring, self._members, asks=False))
            answer = self._step(begun, flight)
            self._half_open[flight.channel] = begun
            for old in [*self._half_open][:-HALF_OPEN]:
                del self._half_open[old]
        elif flight.word == "finish" and isinstance(known, _HalfOpen):
            begun = self._half_open.pop(flight.channel)
            answer = self._step(begun, flight)
        elif flight.word == "finish" and known is None:
            return self._say("again", flight.channel)
        else:
            return self._refuse(flight.channel, "a handshake out of order")
        begun.answered[came] = answer
        return answer

    def _step(self, begun: _HalfOpen, flight: _Flight) -> bytes:
        try:
            body = begun.tls.step(flight.body)
        except RemoteProtocolError as error:
            return self._refuse(flight.channel, self._why(begun.tls.presented, str(error)))
        if not begun.tls.done:
            return self._say("answer", flight.channel, body)
        self._open(begun, flight.channel)
        return self._say("open", flight.channel)

    def _why(self, presented: str, error: str) -> str:
        if not presented or presented in self._members:
            return error
        members = ", ".join(f"{name} {fingerprint(key)}" for key, name in self._members.items())
        return f"expected the key of a member of the study ({members}), got {fingerprint(presented)}"

    def _open(self, begun: _HalfOpen, channel: bytes) -> None:
        peer = self._members[begun.tls.presented]
        questions, answers = _sealings(begun.tls, self._keyring.digest, peer, self._keyring.name, channel)
        self._channels[channel] = _Channel(peer, questions, answers, begun.answered)
        of_peer = [known for known, one in self._channels.items() if one.peer == peer]
        for old in of_peer[:-CHANNELS]:
            del self._channels[old]

    def _refuse(self, channel: bytes, reason: str) -> bytes:
        self.refused = reason
        return self._say("refused", channel, reason.encode())

    def _say(self, word: Word, channel: bytes, body: bytes = b"") -> bytes:
        return self._wrap.wrap(_Flight(word, channel, body))
