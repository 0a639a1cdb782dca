"""Long vectors through a relay: each frame of a stream is a question to a mailbox that is for that stream alone.

Theory of operation
-------------------
The two ends of a stream share a token that nobody else knows. The receiver opens the mailbox of that token, the sender
puts its frames in. A frame is sealed under its number, which goes before it in 8 bytes, and is answered when the
receiver has used it up, with a sealed word that names the frame. So what a sender counts as delivered was delivered,
whatever the relay says.

No more than `AHEAD` frames are without an answer, and the receiver asks for no more than that: memory is bounded at
both ends and at the relay, and a receiver that is slow makes its sender wait. Whoever lost the connection asks again:
a frame that comes twice is used once, one that comes early waits for those before it. A relay that loses frames, holds
them back or mixes them up ends the sum with an error and changes no number.

A thread at each end keeps asking and taking, also while its owner is busy with another stream; else a mailbox would
close, or a frame that the relay gave back would be missed.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections import deque
from collections.abc import Callable

import pynng

from voxring.errors import PeerError, RemoteProtocolError
from voxring.net.link import RECONNECT_MS
from voxring.net.mailbox import (
    MAX_MESSAGE,
    Absent,
    Answer,
    Ask,
    Full,
    Gone,
    Nothing,
    Question,
    Reply,
    Request,
    Take,
    name_of,
    read_reply,
    write,
)
from voxring.net.streams import Seal

AHEAD = 4
"""Frames of a stream that are on their way or wait to be used."""
PAUSE = 0.1
"""Seconds before a relay is asked again that could do nothing."""
GRACE = 3.0
"""Seconds for a member to come back to the relay; less if the timeout is short."""
GOODBYE_SECONDS = 5.0
"""Seconds that a receiver waits for its sender to hang up, which means that it has heard."""
LOOK = 0.02
"""Seconds between looks at what is to be asked again."""

_NUMBER = 8
_USED = 1 << 91  # plus the number of a frame: the number of the word that answers it; no frame has it
_ID = 0x80000000


class Requests:
    """Many requests at once to a relay, over one connection, which comes back when it is lost.

    One thread may send while another receives.
    """

    def __init__(self, relay: str) -> None:
        self._relay, self._next = relay, 0
        self._lost = threading.Event()
        # Raw: replies are matched with requests here, and nng asks nothing again by itself.
        self._socket = pynng.Req0(
            opener=pynng.lib.nng_req0_open_raw,
            recv_max_size=MAX_MESSAGE,
            recv_timeout=round(LOOK * 1000),
            send_buffer_size=2 * AHEAD,
            reconnect_time_min=RECONNECT_MS[0],
            reconnect_time_max=RECONNECT_MS[1],
        )
        self._socket.add_post_pipe_remove_cb(self._went)
        try:
            self._socket.dial(relay, block=False)
        except pynng.NNGException as error:
            self._socket.close()
            raise PeerError(f"the relay cannot be reached at {relay}: {error}") from None

    def _went(self, _: pynng.Pipe) -> None:  # pragma: no cover  (in a thread of nng)
        self._lost.set()

    def lost(self) -> bool:
        """Whether the connection was lost since this was last asked: what was sent before may not be answered."""
        lost = self._lost.is_set()
        self._lost.clear()
        return lost

    def send(self, request: Request) -> int | None:
        """Send a request and return its number, or None if there is no room, or no connection, at the moment."""
        self._next = (self._next + 1) % _ID
        message = pynng.Message(write(request))
        pynng.check_err(pynng.lib.nng_msg_header_append_u32(message._nng_msg, _ID | self._next))
        try:
            self._socket.send_msg(message, block=False)
        except pynng.TryAgain:
            return None
        return self._next

    def receive(self) -> tuple[int, Reply] | None:
        """Wait a moment for a reply; return the number of its request with it.

        Raises
        ------
        RemoteProtocolError
            What answers is no relay.
        """
        try:
            message = self._socket.recv_msg()
        except pynng.Timeout:
            return None
        head = pynng.ffi.buffer(pynng.lib.nng_msg_header(message._nng_msg), 4)
        return int.from_bytes(head, "big") & ~_ID, read_reply(bytes(message.bytes), self._relay)

    def close(self) -> None:
        """Close the connection; no thread may be in it."""
        self._socket.close()


class _RelayStream:
    """One end of a stream through a relay.

    Parameters
    ----------
    peer : str
        The other side, for errors.
    relay : str
        ``tcp://HOST:PORT``.
    token : bytes
        Of the stream's mailbox.
    name : bytes
        What both sides call the stream.
    timeout : float
        Seconds in which something must move.
    seal : Seal
        Made of a key that is for this stream alone.
    """

    def __init__(self, peer: str, relay: str, token: bytes, name: bytes, timeout: float, seal: Seal) -> None:
        self.peer, self._token, self._name, self._timeout, self._seal = peer, token, name, timeout, seal
        self._grace = min(GRACE, timeout / 2)
        self._count = 0
        self._moved = False
        """Whether anything has come from the peer."""
        self._missed: float | None = None
        """Since when the peer is not at the relay."""
        self._seen: bytes | None = None
        self._later = 0.0
        self._ending = self._stopped = self._closed = False
        self._failed: PeerError | RemoteProtocolError | None = None
        self._changed = threading.Condition()
        self._requests = Requests(relay)
        self._thread = threading.Thread(target=self._run, name="voxring relayed stream", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Make whoever waits here get a PeerError soon."""
        self._stopped = True
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Hang up; no thread may be in the stream."""
        if not self._closed:
            self._closed = self._ending = True
            self._thread.join()
            self._requests.close()

    def _run(self) -> None:
        try:
            while not self._ending:
                with self._changed:
                    if self._requests.lost():
                        self._forget()
                    self._catch_up()
                came = self._requests.receive()
                if came is not None:
                    with self._changed:
                        self._take(*came)
                        self._changed.notify_all()
        except (PeerError, RemoteProtocolError) as error:
            with self._changed:
                self._failed = error
                self._changed.notify_all()

    def _forget(self) -> None:
        """Count what was asked as not asked."""
        raise NotImplementedError

    def _catch_up(self) -> None:
        """Ask what is to be asked and is not yet."""
        raise NotImplementedError

    def _take(self, number: int, reply: Reply) -> None:
        """Take the reply to a request."""
        raise NotImplementedError

    def _wait(self, ready: Callable[[], bool], until: float) -> None:
        """Wait for something under the lock, or raise when there is no use in it."""
        while not ready():
            now = time.monotonic()
            if self._failed is not None:
                raise type(self._failed)(str(self._failed))
            if self._stopped:
                raise PeerError(f"the stream of {self.peer} was ended here")
            if self._moved and self._missed is not None and now - self._missed > self._grace:
                raise PeerError(f"{self.peer} went away before the sum was done")
            if now >= until and self._moved:
                raise PeerError(f"{self.peer} moved nothing of its stream for {self._timeout:g} s")
            if now >= until:
                raise PeerError(
                    f"{self.peer} did not take part in a stream through the relay within {self._timeout:g} s: is it "
                    "running?"
                )
            self._changed.wait(min(LOOK, until - now))

    def _word(self, number: int) -> bytes:
        """Return what says that a frame was used."""
        sealed = bytearray(len(self._name) + self._seal.overhead)
        self._seal.close(_USED + number, memoryview(self._name), memoryview(sealed))
        return bytes(sealed)


class RelayOutgoing(_RelayStream):
    """The sending end of a stream through a relay."""

    def __init__(self, peer: str, relay: str, token: bytes, name: bytes, timeout: float, seal: Seal) -> None:
        self._mailbox = name_of(token)
        self._unused: dict[int, bytes] = {}
        """Sealed frames that the receiver has not said to have used, by number."""
        self._asked: dict[int, int] = {}
        """Which of them a request was for."""
        self._absent = 0.0
        super().__init__(peer, relay, token, name, timeout, seal)

    def meet(self) -> None:
        """Do nothing: a mailbox takes frames whether the other end is there or not."""

    def send(self, frame: memoryview) -> None:
        """Send a frame; its memory is the caller's again when this returns.

        Raises
        ------
        PeerError
            There was no room in time, the peer went away, or `stop` was called.
        RemoteProtocolError
            The peer, or the relay, said what does not fit.
        """
        sealed = bytearray(_NUMBER + len(frame) + self._seal.overhead)
        sealed[:_NUMBER] = self._count.to_bytes(_NUMBER, "big")
        self._seal.close(self._count, frame, memoryview(sealed)[_NUMBER:])
        with self._changed:
            self._wait(lambda: len(self._unused) < AHEAD, time.monotonic() + self._timeout)
            self._unused[self._count] = bytes(sealed)
            self._count += 1
            self._catch_up()

    def finish(self) -> None:
        """Wait until the receiver has used the last frame, and hang up.

        Raises
        ------
        PeerError, RemoteProtocolError
            As of `send`.
        """
        with self._changed:
            while self._unused:
                left = len(self._unused)
                self._wait(lambda left=left: len(self._unused) < left, time.monotonic() + self._timeout)  # type: ignore[misc]
        self.close()

    def _forget(self) -> None:
        self._asked.clear()

    def _catch_up(self) -> None:
        if time.monotonic() < self._later:
            return
        waiting = set(self._asked.values())
        for number, frame in self._unused.items():
            if number not in waiting:
                request = self._requests.send(Ask(self._mailbox, frame, self._seen))
                if request is None:
                    return
                self._asked[request] = number

    def _take(self, number: int, reply: Reply) -> None:
        frame = self._asked.pop(number, None)
        if frame is None:
            return  # of a connection that was lost
        if isinstance(reply, Answer):
            self._seen = reply.ticket
            if not hmac.compare_digest(reply.frame, self._word(frame)):
                raise RemoteProtocolError(
                    f"stream: expected {self.peer} to say that it has a frame, got something else"
                )
            self._unused.pop(frame)
            self._moved, self._missed = True, None
        elif isinstance(reply, Absent):
            now = time.monotonic()
            if self._missed is None or now > self._absent + 10 * PAUSE:  # it was there in between
                self._missed = now
            self._absent, self._later = now, now + PAUSE
        elif isinstance(reply, Full):
            self._later = time.monotonic() + PAUSE
        elif not isinstance(reply, Nothing):
            raise RemoteProtocolError("stream: expected a relay's reply to a question, got another")


class RelayIncoming(_RelayStream):
    """The receiving end of a stream through a relay."""

    def __init__(self, peer: str, relay: str, token: bytes, name: bytes, timeout: float, seal: Seal) -> None:
        self._here: dict[int, bytes] = {}
        """Sealed frames that wait to be used, by number."""
        self._tickets: dict[int, bytes] = {}
        """The ticket of the question in which each came last: those before were given up."""
        self._due: deque[Take] = deque()
        """Answers that are not sent yet."""
        self._asked: set[int] = set()
        self._asker: int | None = None
        super().__init__(peer, relay, token, name, timeout, seal)

    def receive(self, frame: memoryview) -> None:
        """Receive the next frame, as long as the memory it goes to.

        Raises
        ------
        PeerError
            It did not come in time, the peer went away, or `stop` was called.
        RemoteProtocolError
            It is of another length, or its seal is broken.
        """
        with self._changed:
            self._wait(lambda: self._count in self._here, time.monotonic() + self._timeout)
            sealed, expected = memoryview(self._here[self._count])[_NUMBER:], len(frame) + self._seal.overhead
        if len(sealed) != expected:
            raise RemoteProtocolError(f"stream: expected {expected} bytes from {self.peer}, got {len(sealed)}")
        self._seal.open(self._count, sealed, frame)
        with self._changed:
            del self._here[self._count]
            if self._count in self._tickets:
                self._answer(self._tickets.pop(self._count), self._count)
            self._count += 1
            self._catch_up()

    def finish(self) -> None:
        """Wait a moment until the peer has heard that the last frame was used."""
        until = time.monotonic() + min(self._timeout, GOODBYE_SECONDS)
        with self._changed:
            while self._missed is None and self._failed is None and not self._stopped and time.monotonic() < until:
                self._changed.wait(LOOK)
        self.close()

    def _answer(self, ticket: bytes, number: int) -> None:
        self._due.append(Take((self._token,), ticket, self._word(number), self._seen))

    def _forget(self) -> None:
        # Tickets stay: the next connection may have brought some already, and to the relay older ones mean nothing.
        self._asked.clear()

    def _catch_up(self) -> None:
        if time.monotonic() < self._later:
            return
        # One more than there is room for, so that the mailbox stays open: all it can bring is what came before.
        while self._due or len(self._asked) < max(1, AHEAD - len(self._here)):
            request = self._requests.send(self._due[0] if self._due else Take((self._token,), seen=self._seen))
            if request is None:
                return
            if self._due:
                self._due.popleft()
            self._asked.add(request)

    def _take(self, number: int, reply: Reply) -> None:
        self._asked.discard(number)
        if isinstance(reply, Question):
            self._seen = reply.ticket
            self._asker, self._moved, self._missed = reply.asker, True, None
            self._take_frame(reply)
        elif isinstance(reply, Gone):
            if reply.asker == self._asker:
                self._missed = time.monotonic()
        elif isinstance(reply, Full):
            self._later = time.monotonic() + PAUSE
        elif not isinstance(reply, Nothing):
            raise RemoteProtocolError("stream: expected a relay's reply to one who takes, got another")

    def _take_frame(self, question: Question) -> None:
        number = int.from_bytes(question.frame[:_NUMBER], "big")
        if number < self._count:
            self._answer(question.ticket, number)  # it was used, and the answer got lost
        elif number < self._count + AHEAD:
            self._here.setdefault(number, question.frame)
            self._tickets[number] = question.ticket
        else:
            raise RemoteProtocolError(
                f"stream: expected one of {AHEAD} frames from {self._count} on from {self.peer}, got another"
            )
