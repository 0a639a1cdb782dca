"""Long vectors over nng: frames one way between two members.

Theory of operation
-------------------
A stream is one connection, a byte stream of nng's. One end listens, the other dials: the receiver listens, except that
the researcher, who has no door, dials the one that it receives from. Three words say which stream it means: the one who
dialled says hello, is welcomed, and says that it is there; each word is sealed, if frames are. Who says anything else,
or nothing for two seconds, is closed, and the next one is taken; who does not even say hello is closed sooner, since
the peer may wait behind. Once the two ends know each other, nobody else is taken until the stream has ended. Frames
follow in order; after the last, the receiver says so, and the sender hangs up.

Words and frames go with their length before them, in 4 bytes. Both ends know every length, and the bytes go between the
system and memory that the caller has for them: whatever a stranger says, it takes no memory. Nothing waits here either:
who sends waits until the system has taken the frame, and that takes no more than its buffers hold while the receiver is
slow. These are not nng's sockets, since those take memory for each message, clear it, and hand it through a queue and
three threads: that alone is twice the work of a plain socket, and this a quarter more.

A stream whose connection is gone has ended, with an error that names the peer; nothing is sent twice.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import urlsplit

import pynng
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from voxring.errors import PeerError, RemoteProtocolError
from voxring.net.link import RECONNECT_MS
from voxring.net.listener import cannot_listen

KEY_BYTES = 19
"""Bytes of the name of a stream."""

_HELLO, _WELCOME, _HERE, _DONE = range(1 << 90, (1 << 90) + 4)  # numbers that no frame has
_HELLO_SECONDS = 0.5  # it is said at once: whoever connects and is silent takes no more of the peer's time
_GREETING_SECONDS = 2.0
_LENGTH = 4
_AT_ONCE = b"tcp-nodelay", True  # else the system keeps a short word back for 40 ms
_PAUSE = RECONNECT_MS[0] / 1000
_LOOK = 0.5  # seconds
_TIMED_OUT, _CANCELLED = 5, 20  # NNG_ETIMEDOUT, NNG_ECANCELED


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

    def receive(self, frame: memoryview) -> None:
        """Receive the next frame, as long as the memory it goes to."""

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

    def send(self, frame: memoryview) -> None:
        """Send a frame; its memory is the caller's again when this returns."""

    def finish(self) -> None:
        """Wait until the receiver has the last frame, and hang up."""

    def stop(self) -> None:
        """Make whoever waits here get a PeerError soon."""

    def close(self) -> None:
        """Close the stream; no thread may be in it."""


class _EndedError(Exception):
    """Nothing moved: time is up, or the connection is gone."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.late = code == _TIMED_OUT


class Operation:
    """What nng is asked to do, one thing after the other, each waited for."""

    def __init__(self) -> None:
        made = pynng.ffi.new("nng_aio **")
        pynng.check_err(pynng.lib.nng_aio_alloc(made, pynng.ffi.NULL, pynng.ffi.NULL))
        self._aio = made[0]
        self._parts = pynng.ffi.new("nng_iov[2]")

    def run(self, begin: Callable[[Any, Any], None], what: Any, until: float) -> int:
        """Have nng do something with ``what``, until some time; return its code of how that ended."""
        left = round((until - time.monotonic()) * 1000)
        if left <= 0:
            return _TIMED_OUT
        pynng.lib.nng_aio_set_timeout(self._aio, left)
        begin(what, self._aio)
        pynng.lib.nng_aio_wait(self._aio)
        return int(pynng.lib.nng_aio_result(self._aio))

    def connect(self, begin: Callable[[Any, Any], None], what: Any, until: float) -> Connection | None:
        """Have nng make a connection; return it, or None if there is none."""
        if self.run(begin, what, until):
            return None
        return Connection(pynng.ffi.cast("nng_stream *", pynng.lib.nng_aio_get_output(self._aio, 0)))

    def move(self, begin: Callable[[Any, Any], None], stream: Any, pieces: list[memoryview], until: float) -> int:
        """Have nng move the first bytes of two pieces, or one; return how many.

        Raises
        ------
        _EndedError
            The connection is gone, or time is up.
        """
        held = [pynng.ffi.from_buffer(piece) for piece in pieces]
        for part, piece in zip(self._parts, held, strict=False):
            part.iov_buf, part.iov_len = piece, len(piece)
        pynng.lib.nng_aio_set_iov(self._aio, len(held), self._parts)
        if code := self.run(begin, stream, until):
            raise _EndedError(code)
        return int(pynng.lib.nng_aio_count(self._aio))

    def cancel(self) -> None:
        """End what is waited for now."""
        pynng.lib.nng_aio_cancel(self._aio)

    def close(self) -> None:
        """Forget it; nobody may wait for it. What it was done with must still be there: nng may be cancelling it."""
        pynng.lib.nng_aio_free(self._aio)


class Connection:
    """A byte stream of nng's, for one thread at a time. What is sent goes with its length before it."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._operation = stream, Operation()
        self._stopped = False

    def send(self, content: memoryview, until: float) -> None:
        """Send some bytes; raises as `Operation.move`."""
        left = [memoryview(len(content).to_bytes(_LENGTH, "big")), content]
        while left:
            left = _after(left, self._move(pynng.lib.nng_stream_send, left, until))

    def receive(self, into: memoryview, until: float) -> int:
        """Receive as many bytes as there is room for; if another number was sent, return that, and receive no more.

        Raises as `Operation.move`.
        """
        length, said = memoryview(bytearray(_LENGTH)), len(into)
        left = [length, into]
        while left and said == len(into):
            left = _after(left, self._move(pynng.lib.nng_stream_recv, left, until))
            if len(left) < 2:
                said = int.from_bytes(length, "big")
        return said

    def _move(self, begin: Callable[[Any, Any], None], left: list[memoryview], until: float) -> int:
        while not self._stopped:
            try:
                return self._operation.move(begin, self._stream, left, min(until, time.monotonic() + _LOOK))
            except _EndedError as ended:
                if not ended.late or time.monotonic() >= until:
                    raise
        raise _EndedError(_CANCELLED)

    def stop(self) -> None:
        """End what is waited for, now or later. The peer must not notice: it would blame this end."""
        self._stopped = True
        self._operation.cancel()  # unless it is only about to begin

    def shut(self) -> None:
        """Hang up."""
        pynng.lib.nng_stream_close(self._stream)

    def close(self) -> None:
        """Shut it and forget it; nobody may wait for it."""
        self._operation.close()
        pynng.lib.nng_stream_free(self._stream)


def _after(pieces: list[memoryview], moved: int) -> list[memoryview]:
    """Return what is left of pieces after so many bytes."""
    first, *others = pieces
    if moved < len(first):
        return [first[moved:], *others]
    return _after(others, moved - len(first)) if others else []


class Door:
    """Where a member takes connections, one after the other; they wait in the system until they are taken.

    Raises
    ------
    PeerError
        The address cannot be listened at.
    """

    listens = True

    def __init__(self, address: str) -> None:
        made, port = pynng.ffi.new("nng_stream_listener **"), pynng.ffi.new("int *")
        try:
            pynng.check_err(pynng.lib.nng_stream_listener_alloc(made, address.encode()))
            self._listener = made[0]
            try:
                pynng.check_err(pynng.lib.nng_stream_listener_set_bool(self._listener, *_AT_ONCE))
                pynng.check_err(pynng.lib.nng_stream_listener_listen(self._listener))
                pynng.check_err(pynng.lib.nng_stream_listener_get_int(self._listener, b"tcp-bound-port", port))
            except pynng.NNGException:
                self.close()
                raise
        except pynng.NNGException as error:
            raise cannot_listen(address, error) from None
        self.address = f"{address.rpartition(':')[0]}:{port[0]}"

    def connect(self, operation: Operation, until: float) -> Connection | None:
        """Take a connection; None if there is none."""
        return operation.connect(pynng.lib.nng_stream_listener_accept, self._listener, until)

    def leave(self) -> None:
        """Do nothing: the next stream may come."""

    def close(self) -> None:
        """Take no more."""
        pynng.lib.nng_stream_listener_free(self._listener)


class Dialler:
    """The way of one stream to another member's door.

    Raises
    ------
    PeerError
        The address cannot be dialled.
    """

    listens = False

    def __init__(self, address: str) -> None:
        self.address = address
        made = pynng.ffi.new("nng_stream_dialer **")
        try:
            pynng.check_err(pynng.lib.nng_stream_dialer_alloc(made, address.encode()))
        except pynng.NNGException as error:
            raise PeerError(f"cannot dial {address}: {error}: choose another address") from None
        self._dialer = made[0]
        pynng.check_err(pynng.lib.nng_stream_dialer_set_bool(self._dialer, *_AT_ONCE))

    def connect(self, operation: Operation, until: float) -> Connection | None:
        """Dial once; None if nobody takes it."""
        return operation.connect(pynng.lib.nng_stream_dialer_dial, self._dialer, until)

    def leave(self) -> None:
        """Forget it: its stream has ended."""
        pynng.lib.nng_stream_dialer_free(self._dialer)


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
        self.doors: list[Door] = []
        try:
            for door in range(rings + 1):
                self.doors.append(Door(f"{host}:{port and port + door}"))
        except PeerError:
            self.close()
            raise
        self.addresses = tuple(door.address for door in self.doors)

    def close(self) -> None:
        """Stop listening; no stream may be open."""
        for door in self.doors:
            door.close()

    def __enter__(self) -> Streams:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Stream:
    """One end of a stream.

    Parameters
    ----------
    peer : str
        The other side, for errors.
    way : Door or Dialler
        How it gets its connection.
    key : bytes
        What both sides call the stream; of `KEY_BYTES`.
    timeout : float
        Seconds in which something must move.
    seal : Seal, optional
        Without one, frames are in the clear. All streams of a sum are sealed, or none.
    """

    def __init__(self, peer: str, way: Door | Dialler, key: bytes, timeout: float, seal: Seal | None) -> None:
        self.peer, self._way, self._key, self._timeout, self._seal = peer, way, key, timeout, seal
        self._overhead = seal.overhead if seal is not None else 0
        self._work = memoryview(b"")
        self._count = 0
        self._stopped = self._closed = False
        self._refused = ""
        self._meeting, self._ending = threading.Lock(), threading.Lock()
        self._operation = Operation()
        self._connection: Connection | None = None

    def stop(self) -> None:
        """Make whoever waits here get a PeerError soon."""
        with self._ending:
            self._stopped = True
            if not self._closed:
                self._operation.cancel()
                if self._connection is not None:
                    self._connection.stop()

    def close(self) -> None:
        """Close the stream; no thread may be in it."""
        with self._ending:
            self._closed = True
            if self._connection is not None:
                self._connection.close()
            self._operation.close()
            self._way.leave()

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _room(self, size: int) -> memoryview:
        if len(self._work) < size:
            self._work = memoryview(bytearray(size))
        return self._work[:size]

    def _word(self, number: int) -> memoryview:
        """Return what goes before or after the frames: which word it is, and of which stream."""
        word = memoryview(number.to_bytes(12, "big") + self._key)
        if self._seal is None:
            return word
        sealed = memoryview(bytearray(len(word) + self._overhead))
        self._seal.close(number, word, sealed)
        return sealed

    def _hears(self, connection: Connection, number: int, until: float) -> bool:
        """Whether the next word is this one."""
        expected = self._word(number)  # a seal gives the same bytes for the same word
        came = memoryview(bytearray(len(expected)))
        return connection.receive(came, until) == len(came) and hmac.compare_digest(came, expected)

    def meet(self) -> None:
        """Wait until the two ends know each other; another thread may send meanwhile, and waits for that.

        Raises
        ------
        PeerError
            The peer did not come in time, or `stop` was called.
        """
        self._met()

    def _met(self) -> Connection:
        with self._meeting:
            until = time.monotonic() + self._timeout
            while self._connection is None:
                self._look(until)
                soon = min(until, time.monotonic() + _GREETING_SECONDS)
                connection = self._way.connect(self._operation, soon)
                if connection is None:
                    time.sleep(_PAUSE)
                    continue
                with self._ending:
                    self._connection = connection
                    if self._stopped:
                        connection.stop()
                if not self._greets(connection, until):
                    with self._ending:
                        self._connection = None
                        connection.close()
            return self._connection

    def _greets(self, connection: Connection, until: float) -> bool:
        """Whether who is at the other end of a connection is the peer, and still there."""
        try:
            for number in (_HELLO, _WELCOME, _HERE):
                soon = min(until, time.monotonic() + (_HELLO_SECONDS if number == _HELLO else _GREETING_SECONDS))
                if self._way.listens == (number == _WELCOME):
                    connection.send(self._word(number), soon)
                elif not self._hears(connection, number, soon):
                    self._refused = "; somebody else, or a member of another sum, was turned away"
                    return False
        except _EndedError:
            return False
        return True

    def _look(self, until: float) -> None:
        """Raise when there is no use in waiting for the peer any longer."""
        if self._stopped:
            raise self._stop_error()
        if time.monotonic() >= until:
            where = "" if self._way.listens else f", and does it take connections at {self._way.address}"
            raise PeerError(
                f"{self.peer} did not take part in a stream within {self._timeout:g} s: is it running{where}?"
                f"{self._refused}"
            )

    def _stop_error(self) -> PeerError:
        return PeerError(f"the stream of {self.peer} was ended here")

    def _error(self, ended: _EndedError) -> PeerError:
        if self._stopped:
            return self._stop_error()
        if ended.late:
            return PeerError(f"{self.peer} moved nothing of its stream for {self._timeout:g} s")
        return PeerError(f"{self.peer} went away before the sum was done")


class Incoming(_Stream):
    """The receiving end of a stream."""

    def receive(self, frame: memoryview) -> None:
        """Receive the next frame, as long as the memory it goes to.

        Raises
        ------
        PeerError
            It did not come in time, the peer went away, or `stop` was called.
        RemoteProtocolError
            It is of another length, or its seal is broken.
        """
        connection = self._met()
        came = frame if self._seal is None else self._room(len(frame) + self._overhead)
        try:
            said = connection.receive(came, time.monotonic() + self._timeout)
        except _EndedError as ended:
            raise self._error(ended) from None
        if said != len(came):
            raise RemoteProtocolError(f"stream: expected {len(came)} bytes from {self.peer}, got {said}")
        if self._seal is not None:
            self._seal.open(self._count, came, frame)
        self._count += 1

    def finish(self) -> None:
        """Say that the last frame is here, and wait a moment until the peer has heard it.

        Raises
        ------
        PeerError
            It went away before.
        """
        connection, until = self._met(), time.monotonic() + self._timeout
        try:
            connection.send(self._word(_DONE), until)
        except _EndedError as ended:
            raise self._error(ended) from None
        with suppress(_EndedError):  # who hangs up has heard it
            connection.receive(memoryview(bytearray(1)), min(until, time.monotonic() + _GREETING_SECONDS))


class Outgoing(_Stream):
    """The sending end of a stream."""

    def send(self, frame: memoryview) -> None:
        """Send a frame; its memory is the caller's again when this returns.

        Raises
        ------
        PeerError
            There was no room in time, the peer went away, or `stop` was called.
        """
        connection = self._met()
        if self._seal is not None:
            frame, clear = self._room(len(frame) + self._overhead), frame
            self._seal.close(self._count, clear, frame)
        self._count += 1
        try:
            connection.send(frame, time.monotonic() + self._timeout)
        except _EndedError as ended:
            raise self._error(ended) from None

    def finish(self) -> None:
        """Wait until the receiver has the last frame, and hang up.

        Raises
        ------
        PeerError
            It does not say so in time, or went away.
        RemoteProtocolError
            It says something else.
        """
        connection = self._met()
        try:
            done = self._hears(connection, _DONE, time.monotonic() + self._timeout)
        except _EndedError as ended:
            raise self._error(ended) from None
        if not done:
            raise RemoteProtocolError(f"stream: expected {self.peer} to say that it is done, got something else")
        connection.shut()
