"""Long vectors over plain TCP: frames of known length, in order, in place, acknowledged, resumed after a break.

Theory of operation
-------------------
A stream carries numbered frames one way, from whoever has them to whoever wants them, and counts back. Both ends know
how long each frame is, so there is nothing but frames on the wire. The one that dials says which stream it means and
how many frames of it it has; the other one answers with how many it has. Then frames follow from there on. The
receiver acknowledges frames that it has dealt with, and the sender keeps the bytes of those that are not acknowledged
yet: at most ``window`` of them, then it waits. So a connection that breaks costs nothing but the time to dial again,
and a frame is dealt with once, whatever the network does. The end that listens is the same one that listens in nng's
sense: a hospital opens its door for others and the researcher has none, so the last stream of a ring is dialled by the
one that receives.

The messages of a session go through nng (`Link`, `Listener`). A vector does not: for a chunk of 256 KiB and one hop, a
plain socket takes 126 µs of processor time on two cores of the loopback address, nng's Push and Pull 264 µs, changed
in place, and its Req and Rep 390 µs. nng makes and clears a new buffer for each message and hands each piece of it
from thread to thread; here one thread receives, adds and sends in the same buffer.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from voxring.errors import PeerError, RemoteProtocolError
from voxring.net.link import LOOK, RECONNECT_MS

KEY_BYTES = 19
"""Bytes of the name of a stream."""

_HELLO = struct.Struct(f">4s{KEY_BYTES}sxQ")
_COUNT = struct.Struct(">Q")
_MAGIC = b"VXS\x01"
_TIMEVAL = struct.pack("@ll", 0, round(LOOK * 1e6))
_GREETING_SECONDS = 2.0
_DIAL_SECONDS = 2.0
_HOT = 4  # frames kept before counts are looked for: few, so that their buffers stay in a cache
_GREETINGS = 16  # connections that have not said yet what they want; more are closed

Connect = Callable[[int, Callable[[], None]], tuple[socket.socket, int]]
"""Opens a stream anew: gets how many frames are here, and what to call now and then, which raises when it is time to
give up; returns the socket and how many frames are there."""


class Seal(Protocol):
    """Hides and guards the frames of one stream."""

    overhead: int
    """Bytes by which a sealed frame is longer."""

    def close(self, number: int, frame: memoryview, into: memoryview) -> None:
        """Seal a frame; the same number must always come with the same frame."""

    def open(self, number: int, sealed: memoryview, into: memoryview) -> None:
        """Open what was sealed under that number, or raise RemoteProtocolError."""


class AesGcm:
    """AES-256-GCM under a key that is for one stream alone; the nonce is the number of the frame."""

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


class Streams:
    """Listens for streams, and hands each to the one that waits for it.

    Parameters
    ----------
    address : str
        ``tcp://HOST:PORT``; port 0 takes a free one, `address` then tells which.

    Raises
    ------
    PeerError
        The address cannot be listened at.
    """

    def __init__(self, address: str) -> None:
        host, port = _host_and_port(address)
        try:
            self._socket = socket.create_server((host, port))
        except OSError as error:
            raise PeerError(f"cannot listen at {address}: {error.strerror}: choose another port") from None
        self.address = f"{address.rpartition(':')[0]}:{self._socket.getsockname()[1]}"
        self._changed = threading.Condition()
        self._came: dict[bytes, tuple[socket.socket, int] | None] = {}
        self._greetings = threading.BoundedSemaphore(_GREETINGS)
        self._ending = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def expect(self, key: bytes) -> Connect:
        """Take connections for a stream from now on; return what waits for one. Others are closed."""
        with self._changed:
            self._came.setdefault(key, None)

        def connect(here: int, look: Callable[[], None]) -> tuple[socket.socket, int]:
            while True:
                look()
                with self._changed:
                    self._changed.wait_for(lambda: self._came[key], LOOK)
                    came, self._came[key] = self._came[key], None
                if came is not None:
                    with suppress(OSError):
                        came[0].sendall(_COUNT.pack(here))
                        return came
                    came[0].close()

        return connect

    def forget(self, key: bytes) -> None:
        """Take no more connections for a stream; nobody may wait for one."""
        with self._changed:
            came = self._came.pop(key, None)
        if came is not None:
            came[0].close()

    def _serve(self) -> None:
        while True:
            with suppress(OSError):
                connection, _ = self._socket.accept()
                if self._ending:
                    connection.close()
                    return
                if self._greetings.acquire(blocking=False):
                    threading.Thread(target=self._greet, args=(connection,), daemon=True).start()
                else:
                    connection.close()

    def _greet(self, connection: socket.socket) -> None:
        try:
            connection.settimeout(_GREETING_SECONDS)
            hello = connection.recv(_HELLO.size, socket.MSG_WAITALL)
            with self._changed:
                if len(hello) != _HELLO.size or hello[:4] != _MAGIC or _HELLO.unpack(hello)[1] not in self._came:
                    connection.close()
                    return
                _, key, there = _HELLO.unpack(hello)
                _prepare(connection)
                before, self._came[key] = self._came[key], (connection, there)
                if before is not None:
                    before[0].close()
                self._changed.notify_all()
        except OSError:
            connection.close()
        finally:
            self._greetings.release()

    def close(self) -> None:
        """Stop listening; streams that were handed out go on."""
        self._ending = True
        with suppress(OSError), socket.create_connection(self._socket.getsockname()[:2], 1):
            pass  # only wakes the thread
        self._thread.join(5)
        self._socket.close()
        with self._changed:
            for came in self._came.values():
                if came is not None:
                    came[0].close()

    def __enter__(self) -> Streams:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def dialler(address: str, key: bytes) -> Connect:
    """Return what opens a stream by dialling, again and again until the other side takes it."""

    def connect(here: int, look: Callable[[], None]) -> tuple[socket.socket, int]:
        pause = RECONNECT_MS[0] / 1000
        while True:
            look()
            with suppress(OSError):
                connection = socket.create_connection(_host_and_port(address), _DIAL_SECONDS)
                try:
                    there = _greeted(connection, _HELLO.pack(_MAGIC, key, here), look)
                except BaseException:
                    connection.close()
                    raise
                return connection, there
            time.sleep(pause)
            pause = min(2 * pause, RECONNECT_MS[1] / 1000)

    return connect


def _greeted(connection: socket.socket, hello: bytes, look: Callable[[], None]) -> int:
    """Say hello; return how many frames the other side has."""
    _prepare(connection)
    connection.sendall(hello)
    answer = b""
    while len(answer) < _COUNT.size:
        try:
            came = connection.recv(_COUNT.size - len(answer))
        except BlockingIOError:
            look()
            continue
        if not came:
            raise ConnectionResetError  # it does not expect the stream, or not yet
        answer += came
    return int(_COUNT.unpack(answer)[0])


class Patience(NamedTuple):
    """How long to wait, in seconds: for something to move, and for the other side to come back after it was there."""

    timeout: float
    grace: float


class _Stream:
    """A connection that comes back after it broke.

    Parameters
    ----------
    peer : str
        The other side, for errors.
    connect : Connect
        From `Streams.expect`, or `dialler`.
    window : int
        How many frames may wait to be acknowledged; both sides say the same.
    patience : Patience
    seal : Seal, optional
        Without one, frames are in the clear.
    """

    def __init__(self, peer: str, connect: Connect, window: int, patience: Patience, seal: Seal | None = None) -> None:
        self.peer, self._connect, self._window, self._patience = peer, connect, window, patience
        self._seal = seal
        self.meanwhile: Callable[[], None] = _nothing
        """Called now and then while this end waits for the other."""
        self._socket: socket.socket | None = None
        self._met = self._stopped = False
        self._until = 0.0

    def stop(self) -> None:
        """Make whoever waits here get a PeerError soon."""
        self._stopped = True

    def close(self) -> None:
        """Close the stream; no thread may be in it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, here: int) -> tuple[socket.socket, int]:
        """Connect anew; return the connection and how many frames the other side has."""
        patience = self._patience.grace if self._met else self._patience.timeout
        until = time.monotonic() + patience

        def look() -> None:
            if self._stopped:
                raise PeerError(f"the stream of {self.peer} was ended here")
            if time.monotonic() >= until and self._met:
                raise PeerError(f"{self.peer} went away and did not come back within {patience:g} s")
            if time.monotonic() >= until:
                raise PeerError(f"{self.peer} did not take part in a stream within {patience:g} s: is it running?")
            self.meanwhile()

        self._socket, there = self._connect(here, look)
        self._met = True
        return self._socket, there

    def _begin(self) -> None:
        self._until = time.monotonic() + self._patience.timeout

    def _look(self) -> None:
        """Raise when there is no use in waiting on; called when nothing moved for a moment."""
        if self._stopped:
            raise PeerError(f"the stream of {self.peer} was ended here")
        if time.monotonic() >= self._until:
            raise PeerError(f"{self.peer} moved nothing of its stream for {self._patience.timeout:g} s")
        self.meanwhile()


def _nothing() -> None:
    """Do nothing."""


class Incoming(_Stream):
    """The receiving end of a stream."""

    def __init__(self, peer: str, connect: Connect, window: int, patience: Patience, seal: Seal | None = None) -> None:
        super().__init__(peer, connect, window, patience, seal)
        self._sealed = bytearray()
        self._count = 0
        self._every = max(1, window // 4)

    def receive(self, frame: memoryview) -> None:
        """Receive the next frame.

        Raises
        ------
        PeerError
            It did not come in time, or `stop` was called.
        RemoteProtocolError
            The seal is broken.
        """
        if self._seal is None:
            self._fill(frame)
            return
        size = len(frame) + self._seal.overhead
        if len(self._sealed) < size:
            self._sealed = bytearray(size)
        sealed = memoryview(self._sealed)[:size]
        self._fill(sealed)
        self._seal.open(self._count, sealed, frame)

    def _fill(self, buffer: memoryview) -> None:
        self._begin()
        connection, filled = self._socket, 0
        while filled < len(buffer):
            if connection is None:
                connection, _ = self._open(self._count)
                filled = 0  # after a break the frame comes again
            try:
                got = connection.recv_into(buffer[filled:], 0, socket.MSG_WAITALL)
                if got == 0:
                    raise ConnectionResetError
                filled += got
                self._begin()
            except BlockingIOError:
                self._look()
            except OSError:
                self.close()
                connection = None

    def acknowledge(self, *, last: bool = False) -> None:
        """Say that the frame is dealt with, so that the sender may forget it; now and then, and after the last."""
        self._count += 1
        if self._socket is not None and (last or self._count % self._every == 0):
            try:
                self._socket.send(_COUNT.pack(self._count))
            except OSError:
                self.close()


class Outgoing(_Stream):
    """The sending end of a stream. It holds at most ``window`` frames."""

    def __init__(self, peer: str, connect: Connect, window: int, patience: Patience, seal: Seal | None = None) -> None:
        super().__init__(peer, connect, window, patience, seal)
        self._work = bytearray()
        self._next = bytearray()  # where the frame that is being written will be kept
        self._size = 0
        self._kept: deque[tuple[bytearray, int]] = deque()
        self._free: list[bytearray] = []
        self._acknowledged = self._sent = self._most = 0
        self._counts = b""

    def frame(self, size: int) -> memoryview:
        """Return where to write the next frame; wait while ``window`` frames are not acknowledged.

        Raises
        ------
        PeerError
            None was acknowledged in time, or `stop` was called.
        """
        self._begin()
        if len(self._kept) >= min(_HOT, self._window):
            self._hear(wait=False)
        while len(self._kept) >= self._window:
            self._transmit()
            self._hear(wait=True)
        self._size = size
        overhead = self._seal.overhead if self._seal is not None else 0
        buffer = self._free.pop() if self._free else bytearray()
        if len(buffer) < size + overhead:
            buffer = bytearray(size + overhead)
        self._next = buffer
        if self._seal is None:
            return memoryview(buffer)[:size]
        if len(self._work) < size:
            self._work = bytearray(size)
        return memoryview(self._work)[:size]

    def send(self) -> None:
        """Send the frame that was written.

        Raises
        ------
        PeerError
            Nothing moved in time, or `stop` was called.
        """
        size = self._size
        if self._seal is not None:
            size += self._seal.overhead
            number = self._acknowledged + len(self._kept)
            self._seal.close(number, memoryview(self._work)[: self._size], memoryview(self._next)[:size])
        self._kept.append((self._next, size))
        self._begin()
        self._transmit()

    def finish(self) -> None:
        """Wait until every frame is acknowledged.

        Raises
        ------
        PeerError
            As of `send`.
        """
        self._begin()
        while self._kept:
            self._transmit()
            self._hear(wait=True)

    def tend(self) -> None:
        """Look whether the connection broke, and send again what it lost; to be called while there is nothing to send.

        Raises
        ------
        PeerError
            As of `send`.
        """
        if self._kept:
            self._begin()
            self._hear(wait=False)
            self._transmit()

    def _transmit(self) -> None:
        """Send what has not been sent over this connection; make a new one if it broke."""
        while True:
            if self._socket is None:
                self._socket, there = self._open(0)
                self._counts = b""
                self._forget(there)
                self._sent = self._acknowledged
            at = self._sent - self._acknowledged
            if at == len(self._kept):
                return
            buffer, size = self._kept[at]
            if self._push(self._socket, memoryview(buffer)[:size]):
                self._sent += 1
                self._most = max(self._most, self._sent)

    def _push(self, connection: socket.socket, frame: memoryview) -> bool:
        """Send a frame; False if the connection broke."""
        pushed = 0
        while pushed < len(frame):
            try:
                pushed += connection.send(frame[pushed:])
                self._begin()
            except BlockingIOError:
                self._look()
            except OSError:
                self.close()
                return False
        return True

    def _hear(self, *, wait: bool) -> None:
        """Take the counts that came back."""
        if self._socket is None:
            return
        try:
            came = self._socket.recv(1024, 0 if wait else socket.MSG_DONTWAIT)
            if not came:
                raise ConnectionResetError
        except BlockingIOError:
            if wait:
                self._look()
            return
        except OSError:
            self.close()
            return
        self._begin()
        self._counts += came
        whole = len(self._counts) // _COUNT.size * _COUNT.size
        if whole:
            self._forget(_COUNT.unpack_from(self._counts, whole - _COUNT.size)[0])
            self._counts = self._counts[whole:]

    def _forget(self, count: int) -> None:
        if not self._acknowledged <= count <= self._most:
            raise RemoteProtocolError(f"stream: {self.peer} acknowledged frames that it was not sent")
        while self._acknowledged < count:
            self._free.append(self._kept.popleft()[0])
            self._acknowledged += 1


def _prepare(connection: socket.socket) -> None:
    """Small counts go at once; calls block, but no longer than a moment."""
    connection.setblocking(True)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return host.strip("[]"), int(port)
