"""The asking end: a link to one peer that dials until the peer is there, and knows when it is gone."""

from __future__ import annotations

import select
import threading
import time

import pynng

from voxring.errors import PeerError

RECONNECT_MS = (50, 500)  # first and longest pause between attempts to connect
RESEND_MS = 2000  # a request without an answer is sent again; the peer answers a repeat the same way
LOOK = 0.1  # seconds between looks at whether the peer is gone


class Link:
    """Asks one peer, one question at a time.

    A peer that is not up yet is waited for. A peer that has answered once and whose connection then closes has
    ``grace`` seconds to come back.

    Nothing here closes the socket while another thread is inside nng, which can abort the process: `stop` sets a flag
    that `ask` looks at, and `close` is for the time after.

    Parameters
    ----------
    peer, address : str
        Its name, for errors, and ``tcp://HOST:PORT``.
    max_frame : int
        Longer answers are dropped by nng before they take memory.
    grace : float
        Seconds.

    Raises
    ------
    PeerError
        nng cannot use the address.
    """

    def __init__(self, peer: str, address: str, *, max_frame: int, grace: float) -> None:
        self.peer, self.address, self._grace = peer, address, grace
        self._connected = threading.Event()
        self._left = time.monotonic()
        self._answered = self._stopped = False
        self._socket = pynng.Req0(
            recv_max_size=max_frame,
            send_timeout=round(LOOK * 1000),
            reconnect_time_min=RECONNECT_MS[0],
            reconnect_time_max=RECONNECT_MS[1],
            resend_time=RESEND_MS,
        )
        self._arrived = select.poll()
        self._arrived.register(self._socket.recv_fd, select.POLLIN)
        self._socket.add_post_pipe_connect_cb(self._came)
        self._socket.add_post_pipe_remove_cb(self._went)
        try:
            self._socket.dial(address, block=False)
        except pynng.NNGException as error:
            self._socket.close()
            raise PeerError(f"{peer} cannot be reached at {address}: {error}") from None

    # Both run in a thread of nng, where coverage does not look.

    def _came(self, _: pynng.Pipe) -> None:  # pragma: no cover
        self._connected.set()

    def _went(self, _: pynng.Pipe) -> None:  # pragma: no cover
        self._left = time.monotonic()
        self._connected.clear()

    def wait(self, timeout: float) -> None:
        """Wait until the peer takes connections.

        Raises
        ------
        PeerError
            It does not within ``timeout`` seconds.
        """
        if not self._connected.wait(timeout):
            raise PeerError(
                f"{self.peer} cannot be reached at {self.address} within {timeout:g} s: is it running, and is the "
                "address right?"
            )

    def ask(self, frame: bytes, timeout: float) -> bytes:
        """Send a frame and return the answer.

        Raises
        ------
        PeerError
            No answer within ``timeout`` seconds, the peer went away, or `stop` was called.
        """
        until = time.monotonic() + timeout
        while not self._sent(frame):
            self._look(until, timeout)
        while (answer := self._answer(until)) is None:
            self._look(until, timeout)
        self._answered = True
        return answer

    def _sent(self, frame: bytes) -> bool:
        try:
            self._socket.send(frame)
        except pynng.Timeout:
            return False
        return True

    def _answer(self, until: float) -> bytes | None:
        # Not recv with a timeout: when that ends it would take the question back.
        pause = max(0.0, min(LOOK, until - time.monotonic()))
        if not self._arrived.poll(pause * 1000):
            return None
        try:
            return bytes(self._socket.recv(block=False))
        except pynng.TryAgain:
            return None
        except RuntimeError:  # how pynng reads an empty answer
            return b""

    def _look(self, until: float, timeout: float) -> None:
        """Raise when there is no use in waiting on."""
        now = time.monotonic()
        here = self._connected.is_set()
        if self._stopped:
            raise PeerError(f"the link to {self.peer} was ended here")
        if not here and self._answered and now - self._left > self._grace:
            raise PeerError(f"{self.peer} went away and did not come back within {self._grace:g} s")
        if now >= until and here:
            raise PeerError(f"{self.peer} did not answer for {round(timeout, 1):g} s")
        if now >= until:
            raise PeerError(
                f"{self.peer} was not reached at {self.address} for {round(timeout, 1):g} s: is it running, and is the "
                "address right?"
            )

    def stop(self) -> None:
        """Make whoever waits in `ask` get a PeerError soon."""
        self._stopped = True

    def close(self) -> None:
        """Close the link; no thread may be in `ask`."""
        self._socket.close()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
