"""Long vectors over nng: frames one way between two members, changed where they lie.

Theory of operation
-------------------
A stream is one connection of two Pair0 sockets. One end listens, the other dials: the receiver listens, except that the
researcher, who has no door, dials the one that it receives from. Who dialled says which stream it means, and is told
back that it is right; sealed, if frames are. Until then a connection has two seconds; one that says anything else is
closed. From then on the stream is that connection's alone and any other is closed before it exists. Frames follow in
order; after the last, the receiver says so, and the sender hangs up.

nng loses messages when a connection breaks, so a stream whose connection is gone has ended, with an error that names
the peer; nothing is sent twice. It queues `QUEUE` frames at each end, then whoever sends waits, so memory is bounded;
longer frames than a door allows are refused by nng before they take memory. A frame is the body of an nng message:
received, changed in place and sent on without a copy.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import urlsplit

import pynng
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from voxring.errors import PeerError, RemoteProtocolError
from voxring.net.link import LOOK, RECONNECT_MS
from voxring.net.listener import bound_port

KEY_BYTES = 19
"""Bytes of the name of a stream."""
MAX_FRAME = 1 << 20
"""Longest frame, in bytes, with its seal."""
QUEUE = 4
"""Frames that wait at each end of a connection, at most."""

_HELLO, _WELCOME, _DONE = 1 << 90, (1 << 90) + 1, (1 << 90) + 2  # numbers that no frame has
_GREETING_SECONDS = 2.0
_SOON = 5, 8  # NNG_ETIMEDOUT, NNG_EAGAIN


class Seal(Protocol):
    """Hides and guards the frames of one stream."""

    overhead: int
    """Bytes by which a sealed frame is longer."""

    def close(self, number: int, frame: memoryview, into: memoryview) -> None:
        """Seal a frame; the same number must always come with the same frame."""

    def open(self, number: int, sealed: memoryview, into: memoryview) -> None:
        """Open what was sealed under that number, or raise RemoteProtocolError."""


class AesGcm:
    """AES-256-GCM under a key that is for one stream of one sum alone; the nonce is the number of the frame."""

    overhead = 16

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)

    def close(self, number: int, frame: memoryview, into: memoryview) -> None:
        """Seal a frame."""
        self._aead.encrypt_into(number.to_bytes(12, "big"), frame, None, into)

    def open(self, number: int, sealed: memoryview, into: memoryview) -> None:
        """Open a frame.

        Raises
        ------
        RemoteProtocolError
            It was sealed under another key or number, or was changed.
        """
        try:
            self._aead.decrypt_into(number.to_bytes(12, "big"), sealed, None, into)
        except InvalidTag:
            raise RemoteProtocolError("stream: a frame was changed on the way, or sealed with another key") from None


class Receiving(Protocol):
    """The receiving end of a stream; what its methods raise is said at `Incoming`."""

    @property
    def peer(self) -> str:
        """The other side."""

    def receive(self, size: int) -> Message:
        """Receive the next frame, of so many bytes."""

    def finish(self) -> None:
        """Say that the last frame is here, and wait a moment until the peer has heard it."""

    def stop(self) -> None:
        """Make whoever waits here get a PeerError soon."""

    def close(self) -> None:
        """Close the stream; no thread may be in it."""


class Sending(Protocol):
    """The sending end of a stream; what its methods raise is said at `Outgoing`."""

    @property
    def peer(self) -> str:
        """The other side."""

    def meet(self) -> None:
        """Wait until the two ends know each other; another thread may send meanwhile, and waits for that."""

    def message(self, size: int) -> Message:
        """Return a new message for a frame of so many bytes."""

    def send(self, message: Message) -> None:
        """Send a frame; the message is the caller's no more."""

    def finish(self) -> None:
        """Wait until the receiver has the last frame, and hang up."""

    def stop(self) -> None:
        """Make whoever waits here get a PeerError soon."""

    def close(self) -> None:
        """Close the stream; no thread may be in it."""


class Message:
    """An nng message and a view of its bytes; it is freed, or sent on, once."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.body = memoryview(pynng.ffi.buffer(pynng.lib.nng_msg_body(handle), pynng.lib.nng_msg_len(handle)))
        self.frame = self.body
        """The frame in the clear; somewhere else if the body is sealed."""

    @classmethod
    def of(cls, size: int) -> Message:
        """Return a new one of that many bytes."""
        handle = pynng.ffi.new("nng_msg **")
        pynng.check_err(pynng.lib.nng_msg_alloc(handle, size))
        return cls(handle[0])

    def free(self) -> None:
        """Give its memory back; the views must not be used any more."""
        self.frame = self.body = memoryview(b"")
        pynng.lib.nng_msg_free(self.handle)


class End:
    """A Pair0 socket at one end, which takes a single connection once `bound` is set."""

    def __init__(self, address: str, *, listens: bool) -> None:
        self.address, self.listens = address, listens
        self.bound: int | None = None
        self.empty = True
        """Whether nothing is left in it of a stream before."""
        self.pipes: dict[int, tuple[pynng.Pipe, float]] = {}
        """Connections that are open, and since when."""
        self._message = pynng.ffi.new("nng_msg **")
        self._socket = pynng.Pair0(
            recv_max_size=MAX_FRAME,
            recv_buffer_size=QUEUE,
            send_buffer_size=QUEUE,
            recv_timeout=round(LOOK * 1000),
            send_timeout=round(LOOK * 1000),
            reconnect_time_min=RECONNECT_MS[0],
            reconnect_time_max=RECONNECT_MS[1],
        )
        self._socket.add_pre_pipe_connect_cb(self._came)
        self._socket.add_post_pipe_remove_cb(self._went)
        try:
            if listens:
                listener = self._socket.listen(address)
                self.address = f"{address.rpartition(':')[0]}:{bound_port(listener, address)}"
            else:
                self._socket.dial(address, block=False)
        except pynng.NNGException as error:
            self._socket.close()
            what = "cannot listen at" if listens else "cannot dial"
            raise PeerError(f"{what} {address}: {error}: choose another address") from None

    # Both run in a thread of nng, where coverage does not look.

    def _came(self, pipe: pynng.Pipe) -> None:  # pragma: no cover
        if self.bound is not None:
            pipe.close()
        else:
            self.pipes[pipe.id] = pipe, time.monotonic()

    def _went(self, pipe: pynng.Pipe) -> None:  # pragma: no cover
        self.pipes.pop(pipe.id, None)

    def hang_up(self, pipe: int) -> None:
        """Close a connection."""
        known = self.pipes.pop(pipe, None)
        if known is not None:
            pynng.lib.nng_pipe_close(known[0].pipe)

    def receive(self) -> tuple[Message, int] | None:
        """Return the next message and its connection, or None if there is none for a moment."""
        code = pynng.lib.nng_recvmsg(self._socket.socket, self._message, 0)
        if code in _SOON:
            return None
        pynng.check_err(code)
        return Message(self._message[0]), pynng.lib.nng_msg_get_pipe(self._message[0]).id

    def send(self, message: Message) -> bool:
        """Send a message and forget it; False if there is no room for a moment: then it is still the caller's."""
        code = pynng.lib.nng_sendmsg(self._socket.socket, message.handle, 0)
        if code not in _SOON:
            pynng.check_err(code)
        return bool(code == 0)

    def close(self) -> None:
        """Close the socket; no thread may be in it."""
        self._socket.close()


class Streams:
    """A member's doors: one for each stream that may be dialled, all at one host.

    Parameters
    ----------
    address : str
        ``tcp://HOST:PORT``; the doors take that port and the next ones, or free ones if it is 0. `addresses` tells.
    rings : int
        How many rings there are. There is a door for what arrives round each, and one for what the master fetches.

    Raises
    ------
    PeerError
        An address cannot be listened at.
    """

    def __init__(self, address: str, rings: int = 1) -> None:
        host, port = address.rpartition(":")[0], urlsplit(address).port or 0
        self._ends: list[End] = []
        try:
            for door in range(rings + 1):
                self._ends.append(End(f"{host}:{port and port + door}", listens=True))
        except PeerError:
            self.close()
            raise
        self.addresses = tuple(end.address for end in self._ends)

    def door(self, number: int) -> Callable[[], End]:
        """Return what opens a door for one stream: as it is, or anew if an earlier stream broke off in it."""

        def opened() -> End:
            if not self._ends[number].empty:
                self._ends[number] = End(self.addresses[number], listens=True)
            return self._ends[number]

        return opened

    def close(self) -> None:
        """Stop listening; no stream may be open."""
        for end in self._ends:
            end.close()

    def __enter__(self) -> Streams:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def dialler(address: str) -> Callable[[], End]:
    """Return what opens a stream by dialling, again and again until the other side takes it."""
    return lambda: End(address, listens=False)


class _Stream:
    """One end of a stream.

    Parameters
    ----------
    peer : str
        The other side, for errors.
    opened : callable
        From `Streams.door`, or `dialler`.
    key : bytes
        What both sides call the stream; of `KEY_BYTES`.
    timeout : float
        Seconds in which something must move.
    seal : Seal, optional
        Without one, frames are in the clear. All streams of a sum are sealed, or none.
    """

    def __init__(self, peer: str, opened: Callable[[], End], key: bytes, timeout: float, seal: Seal | None) -> None:
        self.peer, self._key, self._timeout, self._seal = peer, key, timeout, seal
        self._overhead = seal.overhead if seal is not None else 0
        self._work = memoryview(b"")
        self._count = 0
        self._stopped = False
        self._refused = ""
        self._meeting = threading.Lock()
        self._end = opened()

    def stop(self) -> None:
        """Make whoever waits here get a PeerError soon."""
        self._stopped = True

    def close(self) -> None:
        """Close the stream; no thread may be in it."""
        if self._end.listens and self._end.empty:
            self._end.bound = None  # the next stream may have it
        else:
            self._end.close()

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _room(self, size: int) -> memoryview:
        if len(self._work) < size:
            self._work = memoryview(bytearray(size))
        return self._work[:size]

    def _word(self, number: int) -> Message:
        """Return one of the messages around the frames: which it is, and of which stream."""
        word = number.to_bytes(12, "big") + self._key
        message = Message.of(len(word) + self._overhead)
        if self._seal is None:
            message.body[:] = word
        else:
            self._seal.close(number, memoryview(word), message.body)
        return message

    def _is_word(self, number: int, message: Message) -> bool:
        if len(message.body) != 12 + KEY_BYTES + self._overhead:
            return False
        expected = self._word(number)  # a seal gives the same bytes for the same word
        same = hmac.compare_digest(expected.body, message.body)
        expected.free()
        return same

    def meet(self) -> None:
        """Wait until the two ends know each other; another thread may send meanwhile, and waits for that.

        Raises
        ------
        PeerError
            The peer did not come in time, or `stop` was called.
        """
        with self._meeting:
            if self._end.bound is None:
                self._meet()

    def _meet(self) -> None:
        until, greeted, awaits = time.monotonic() + self._timeout, 0, _HELLO if self._end.listens else _WELCOME
        while True:
            for pipe, (_, since) in list(self._end.pipes.items()):
                if not self._end.listens and pipe != greeted:
                    greeted = pipe if self._offered(_HELLO) else greeted
                elif time.monotonic() > since + _GREETING_SECONDS:
                    self._end.hang_up(pipe)  # so that another one can come
            where = "" if self._end.listens else f", and does it take connections at {self._end.address}"
            self._look(until, f"did not take part in a stream within {self._timeout:g} s: is it running{where}?")
            if not self._end.listens and greeted not in self._end.pipes:
                time.sleep(0.002)  # nothing comes before the hello is sent
                continue
            if (came := self._end.receive()) is None:
                continue
            message, pipe = came
            fits = self._is_word(awaits, message)
            message.free()
            if fits and pipe not in self._end.pipes:
                continue  # it dialled again meanwhile
            if fits:
                self._end.bound, self._end.empty = pipe, False
                if self._end.listens:
                    self._push(self._word(_WELCOME))
                return
            self._refused = "; somebody else, or a member of another sum, was turned away"
            self._end.hang_up(pipe)

    def _offered(self, number: int) -> bool:
        word = self._word(number)
        sent = self._end.send(word)
        if not sent:
            word.free()
        return sent

    def _look(self, until: float, late: str = "") -> None:
        """Raise when there is no use in waiting on."""
        if self._stopped:
            raise PeerError(f"the stream of {self.peer} was ended here")
        if self._gone:
            raise PeerError(f"{self.peer} went away before the sum was done")
        if time.monotonic() >= until:
            late = late or f"moved nothing of its stream for {self._timeout:g} s"
            raise PeerError(f"{self.peer} {late}{self._refused}")

    @property
    def _gone(self) -> bool:
        return self._end.bound is not None and self._end.bound not in self._end.pipes

    def _push(self, message: Message) -> None:
        until = time.monotonic() + self._timeout
        try:
            self._look(until)
            while not self._end.send(message):
                self._look(until)
        except BaseException:
            message.free()
            raise

    def _pull(self) -> Message:
        until = time.monotonic() + self._timeout
        while True:
            if (came := self._end.receive()) is not None:
                if came[1] == self._end.bound and not self._is_word(_HELLO, came[0]):
                    return came[0]
                came[0].free()  # of somebody who was turned away, or a hello that nng kept from an earlier attempt
            else:
                self._look(until)


class Incoming(_Stream):
    """The receiving end of a stream."""

    def receive(self, size: int) -> Message:
        """Receive the next frame, of so many bytes.

        Raises
        ------
        PeerError
            It did not come in time, the peer went away, or `stop` was called.
        RemoteProtocolError
            It is of another size, or its seal is broken.
        """
        self.meet()
        message = self._pull()
        try:
            if len(message.body) != size + self._overhead:
                raise RemoteProtocolError(
                    f"stream: expected {size + self._overhead} bytes from {self.peer}, got {len(message.body)}"
                )
            if self._seal is not None:
                message.frame = self._room(size)
                self._seal.open(self._count, message.body, message.frame)
        except RemoteProtocolError:
            message.free()
            raise
        self._count += 1
        return message

    def finish(self) -> None:
        """Say that the last frame is here, and wait a moment until the peer has heard it.

        Raises
        ------
        PeerError
            It went away before.
        """
        self._push(self._word(_DONE))
        until = time.monotonic() + min(self._timeout, _GREETING_SECONDS)
        while not self._gone and time.monotonic() < until and not self._stopped:
            time.sleep(0.001)
        self._end.empty = self._gone  # who hangs up has heard it


class Outgoing(_Stream):
    """The sending end of a stream."""

    def message(self, size: int) -> Message:
        """Return a new message for a frame of so many bytes."""
        message = Message.of(size + self._overhead)
        if self._seal is not None:
            message.frame = self._room(size)
        return message

    def send(self, message: Message) -> None:
        """Send a frame, in a message from here or from `Incoming.receive`; it is the caller's no more.

        Raises
        ------
        PeerError
            There was no room in time, the peer went away, or `stop` was called.
        """
        try:
            self.meet()
            if self._seal is not None:
                self._seal.close(self._count, message.frame, message.body)
        except BaseException:
            message.free()
            raise
        self._count += 1
        self._push(message)

    def finish(self) -> None:
        """Wait until the receiver has the last frame, and hang up.

        Raises
        ------
        PeerError
            It does not say so in time, or went away.
        RemoteProtocolError
            It says something else.
        """
        message = self._pull()
        done = self._is_word(_DONE, message)
        message.free()
        if not done:
            raise RemoteProtocolError(f"stream: expected {self.peer} to say that it is done, got something else")
        self._end.empty = True  # whoever has the last frame has all
        self._end.hang_up(self._end.bound or 0)
