"""The asking end: a link to one peer that dials until the peer is there, and knows when it is gone."""

from __future__ import annotations

import threading

import pynng

from voxring.errors import PeerError

RECONNECT_MS = (50, 500)  # first and longest pause between attempts to connect
RESEND_MS = 2000  # a request without an answer is sent again; the peer answers a repeat the same way


class Link:
    """Asks one peer, one question at a time.

    A peer that is not up yet is waited for. A peer that has answered once and whose connection then closes has
    ``grace`` seconds to come back; then the link is closed, which wakes whoever waits in `ask`.

    Parameters
    ----------
    peer, address : str
        Its name, for errors, and ``tcp://HOST:PORT``.
    max_frame : int
        Longer answers are dropped by nng before they take memory.
    grace : float
        Seconds.
    """

    def __init__(self, peer: str, address: str, *, max_frame: int, grace: float) -> None:
        self.peer, self.address, self._grace = peer, address, grace
        self._connected = threading.Event()
        self._lock = threading.Lock()
        self._answered = self._closed = self._lost = False
        self._leaving: threading.Timer | None = None
        self._socket = pynng.Req0(
            recv_max_size=max_frame,
            reconnect_time_min=RECONNECT_MS[0],
            reconnect_time_max=RECONNECT_MS[1],
            resend_time=RESEND_MS,
        )
        self._socket.add_post_pipe_connect_cb(self._came)
        self._socket.add_post_pipe_remove_cb(self._went)
        try:
            self._socket.dial(address, block=False)
        except pynng.NNGException as error:
            self._socket.close()
            raise PeerError(f"{peer} cannot be reached at {address}: {error}") from None

    def _came(self, _: pynng.Pipe) -> None:
        with self._lock:
            if self._leaving is not None:
                self._leaving.cancel()
                self._leaving = None
        self._connected.set()

    def _went(self, _: pynng.Pipe) -> None:
        self._connected.clear()
        with self._lock:
            if self._answered and not self._closed and self._leaving is None:
                self._leaving = threading.Timer(self._grace, self._give_up)
                self._leaving.daemon = True
                self._leaving.start()

    def _give_up(self) -> None:
        self._lost = True
        self._socket.close()

    def wait(self, timeout: float) -> None:
        """Wait until the peer takes connections.

        Raises
        ------
        PeerError
            It does not within ``timeout`` seconds.
        """
        if not self._connected.wait(timeout):
            raise PeerError(
                f"{self.peer} cannot be reached at {self.address} within {timeout:g} s: is it running, and the "
                "address right?"
            )

    def ask(self, frame: bytes, timeout: float) -> bytes:
        """Send a frame and return the answer.

        Raises
        ------
        PeerError
            No answer within ``timeout`` seconds, or the peer went away.
        """
        try:
            self._socket.send_timeout = self._socket.recv_timeout = max(1, round(timeout * 1000))
            self._socket.send(frame)
            answer = bytes(self._socket.recv())
        except pynng.Timeout:
            if self._connected.is_set():
                raise PeerError(f"{self.peer} did not answer for {timeout:g} s") from None
            raise PeerError(
                f"{self.peer} was not reached at {self.address} for {timeout:g} s: is it running, and is the "
                "address right?"
            ) from None
        except pynng.NNGException as error:
            if self._lost:
                raise PeerError(f"{self.peer} went away and did not come back within {self._grace:g} s") from None
            raise PeerError(f"the link to {self.peer} ended: {error}") from None
        except RuntimeError:  # how pynng reads an empty answer
            answer = b""
        self._answered = True
        return answer

    def close(self) -> None:
        """Close the link; whoever waits in `ask` gets a PeerError."""
        with self._lock:
            self._closed = True
            leaving = self._leaving
        if leaving is not None:  # nng panics if the process ends while a thread is still closing a socket
            leaving.cancel()
            leaving.join()
        self._socket.close()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
