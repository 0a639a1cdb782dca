"""A link and a listener that go through a relay: the same to their callers as those of nng."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import pynng

from voxring.errors import PeerError, RemoteProtocolError
from voxring.net.link import RECONNECT_MS, Link
from voxring.net.mailbox import (
    MAX_MESSAGE,
    Absent,
    Answer,
    Ask,
    Gone,
    Nothing,
    Question,
    Reply,
    Take,
    name_of,
    read_reply,
    tokens,
    write,
)

log = logging.getLogger(__name__)

PAUSE = 0.1  # seconds before asking a relay again that could do nothing
SILENCE_MS = 2000  # a take is answered before; if not, the relay is gone or the way to it is
RESEND_MS = 60_000  # never, but after a new connection
THREADS = 4  # as in a listener

Clock = Callable[[], float]


class RelayLink:
    """Asks one peer through a relay, one question at a time.

    A peer that is not at the relay yet is waited for. One that has answered once and is not there any more has
    ``grace`` seconds to come back; so has the relay. The rest is as in `Link`.

    Parameters
    ----------
    peer : str
        Its name.
    relay : str
        ``tcp://HOST:PORT``.
    digest : bytes
        Of the study.
    grace : float
        Seconds.
    clock : callable
        Seconds since 1970, UTC.
    """

    def __init__(self, peer: str, relay: str, digest: bytes, *, grace: float, clock: Clock = time.time) -> None:
        self.peer, self._relay, self._digest, self._grace, self._clock = peer, relay, digest, grace, clock
        self._link = Link("the relay", relay, max_frame=MAX_MESSAGE, grace=grace)
        self._answered = self._stopped = False
        self._missed: float | None = None
        """Since when the peer is not at the relay."""
        self._seen: bytes | None = None

    def wait(self, timeout: float) -> None:
        """Wait until the relay takes connections.

        Raises
        ------
        PeerError
            It does not within ``timeout`` seconds.
        """
        self._link.wait(timeout)

    def ask(self, frame: bytes, timeout: float) -> bytes:
        """Send a frame and return the answer.

        Raises
        ------
        PeerError
            No answer within ``timeout`` seconds, the peer or the relay went away, or `stop` was called.
        RemoteProtocolError
            What answers at the address is no relay.
        """
        until = time.monotonic() + timeout
        while True:
            name = name_of(next(tokens(self._digest, self.peer, self._clock())))
            asked = write(Ask(name, frame, self._seen))
            reply = read_reply(self._link.ask(asked, max(PAUSE, until - time.monotonic())), self._relay)
            if isinstance(reply, Answer):
                self._answered, self._missed, self._seen = True, None, reply.ticket
                return reply.frame
            self._look(reply, until, timeout)
            if not isinstance(reply, Nothing):
                time.sleep(PAUSE)

    def _look(self, reply: Reply, until: float, timeout: float) -> None:
        """Raise when there is no use in asking again."""
        now = time.monotonic()
        self._missed = (self._missed or now) if isinstance(reply, Absent) else None
        if self._stopped:
            raise PeerError(f"the link to {self.peer} was ended here")
        if self._missed is not None and self._answered and now - self._missed > self._grace:
            raise PeerError(f"{self.peer} went away and did not come back within {self._grace:g} s")
        if now >= until and self._missed is not None:
            raise PeerError(
                f"{self.peer} was not at the relay {self._relay} for {round(timeout, 1):g} s: is it running, and are "
                "study and clock the same on both sides?"
            )
        if now >= until:
            raise PeerError(f"{self.peer} did not answer through the relay for {round(timeout, 1):g} s")

    def stop(self) -> None:
        """Make whoever waits in `ask` get a PeerError soon."""
        self._stopped = True
        self._link.stop()

    def close(self) -> None:
        """Close the link; no thread may be in `ask`."""
        self._link.close()


class RelayListener:
    """Takes questions out of a member's mailbox at a relay and answers them, from several threads, as `Listener` does.

    Parameters
    ----------
    member : str
        Whose mailbox.
    relay : str
        ``tcp://HOST:PORT``.
    digest : bytes
        Of the study.
    answer, closed : callable
        As in `Listener`; the numbers stand for connections to the relay, which tells when one closes.
    clock : callable
        Seconds since 1970, UTC.

    Raises
    ------
    PeerError
        nng cannot use the address.
    """

    def __init__(
        self,
        member: str,
        relay: str,
        digest: bytes,
        answer: Callable[[bytes, int], bytes],
        closed: Callable[[int], None],
        *,
        clock: Clock = time.time,
    ) -> None:
        self.address = relay
        self._member, self._digest, self._answer, self._closed, self._clock = member, digest, answer, closed, clock
        self._ending = False
        self._trouble = f"the relay was not reached at {relay}: is it running, and is the address right?"
        self._seen: bytes | None = None  # any that was read will do
        self._askers: set[int] = set()
        self._askers_lock = threading.Lock()
        self._socket = pynng.Req0(
            recv_max_size=MAX_MESSAGE,
            send_timeout=round(PAUSE * 1000),
            recv_timeout=SILENCE_MS,
            reconnect_time_min=RECONNECT_MS[0],
            reconnect_time_max=RECONNECT_MS[1],
            resend_time=RESEND_MS,
        )
        self._socket.add_post_pipe_remove_cb(self._went)
        try:
            self._socket.dial(relay, block=False)
        except pynng.NNGException as error:
            self._socket.close()
            raise PeerError(f"the relay cannot be reached at {relay}: {error}") from None
        self._threads = [
            threading.Thread(target=self._serve, args=(self._socket.new_context(),), daemon=True)
            for _ in range(THREADS)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def trouble(self) -> str:
        """What is wrong with the relay, in words, or nothing."""
        return self._trouble

    def _went(self, _: pynng.Pipe) -> None:
        # The relay is gone, and with it everybody who asked through it. In a thread of nng.
        self._trouble = f"the connection to the relay at {self.address} was lost"
        with self._askers_lock:
            askers, self._askers = self._askers, set()
        for asker in askers:
            self._closed(asker)

    def _serve(self, context: pynng.Context) -> None:
        ticket, answer = None, b""
        with context:
            while True:
                last = self._ending
                own = tuple(tokens(self._digest, self._member, self._clock()))
                take = Take(own, ticket, answer, self._seen, last)
                reply = self._take(context, take)
                if last:
                    return
                if reply is None:
                    continue  # with the same answer
                ticket, answer = None, b""
                if isinstance(reply, Question):
                    with self._askers_lock:
                        self._askers.add(reply.asker)
                    self._seen = reply.ticket
                    ticket, answer = reply.ticket, self._answer(reply.frame, reply.asker)
                elif isinstance(reply, Gone):
                    with self._askers_lock:
                        self._askers.discard(reply.asker)
                    self._closed(reply.asker)

    def _take(self, context: pynng.Context, take: Take) -> Reply | None:
        start = time.monotonic()
        try:
            context.send(write(take))
            reply = read_reply(context.recv(), self.address)
        except pynng.NNGException:  # most likely a timeout
            self._trouble = self._trouble or f"the relay at {self.address} did not answer"
            time.sleep(PAUSE)
            return None
        except RemoteProtocolError as error:
            self._trouble = str(error)
            time.sleep(PAUSE)
            return None
        full = not isinstance(reply, Question | Gone | Nothing)
        self._trouble = f"the relay at {self.address} is full: try later" if full else ""
        if (full or isinstance(reply, Nothing)) and not take.last and time.monotonic() - start < PAUSE:
            time.sleep(PAUSE)
        return reply

    def close(self) -> None:
        """Hand in the last answers and leave the relay."""
        # Threads first: nng can abort the process when a context is used while its socket closes.
        self._ending = True
        for thread in self._threads:
            thread.join()
        self._socket.close()
