"""The answering end: one address, a few threads, each frame answered at once or within a second."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

import pynng

from voxring.errors import PeerError

log = logging.getLogger(__name__)

LOOK_MS = 50  # between looks at whether the listener is to end
THREADS = 4  # one may hold a long poll of the researcher, one its predecessor's share; the rest answer strangers


class Listener:
    """Listens at an address and answers every frame with ``answer(frame, pipe)``, from several threads.

    Parameters
    ----------
    address : str
        ``tcp://HOST:PORT``; port 0 takes a free one, `address` then tells which.
    answer : callable
        Gets the bytes that came and a number for the connection; returns the bytes to send back. Must not raise.
    closed : callable
        Called with that number when a connection closes, from a thread of nng: must be quick and not call back.
    max_frame : int
        Longer frames are dropped by nng before they take memory, and their connection is closed.

    Raises
    ------
    PeerError
        The address cannot be listened at.
    """

    def __init__(
        self, address: str, answer: Callable[[bytes, int], bytes], closed: Callable[[int], None], *, max_frame: int
    ) -> None:
        self._answer = answer
        self._ending = False
        self._socket = pynng.Rep0(recv_max_size=max_frame, recv_timeout=LOOK_MS, send_timeout=1000)
        self._socket.add_post_pipe_remove_cb(lambda pipe: closed(pipe.id))
        try:
            listener = self._socket.listen(address)
        except pynng.NNGException as error:
            self._socket.close()
            raise cannot_listen(address, error) from None
        self.address = f"{address.rpartition(':')[0]}:{bound_port(listener, address)}"
        contexts = [self._socket.new_context() for _ in range(THREADS)]
        self._threads = [threading.Thread(target=self._serve, args=(context,), daemon=True) for context in contexts]
        for thread in self._threads:
            thread.start()

    def _serve(self, context: pynng.Context) -> None:
        with context:
            while not self._ending:
                try:
                    message = context.recv_msg()
                except pynng.Timeout:
                    continue
                pipe = message.pipe.id if message.pipe is not None else 0
                answer = self._answer(content_of(message), pipe)
                try:
                    context.send(answer)
                except pynng.NNGException as error:
                    # The one who asked is gone or reads nothing; it will ask again or be missed.
                    log.debug("an answer of %d bytes was not sent: %s", len(answer), error)

    def close(self) -> None:
        """Stop listening. Answers not yet on the wire may be lost."""
        # Threads first: nng can abort the process when a context is used while its socket closes.
        self._ending = True
        for thread in self._threads:
            thread.join()
        self._socket.close()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def cannot_listen(address: str, error: pynng.NNGException) -> PeerError:
    """Return the error for an address that cannot be listened at, with what to do about it."""
    if isinstance(error, pynng.AddressInUse):
        remedy = "choose another port or end what uses it"
    else:
        remedy = "expected an address of this machine, or 0.0.0.0 for all of them, and a port that you may use"
    return PeerError(f"cannot listen at {address}: {error}: {remedy}")


def content_of(message: pynng.Message) -> bytes:
    """Return the bytes of a message."""
    try:
        return bytes(message.bytes)
    except RuntimeError:  # how pynng reads an empty message
        return b""


def bound_port(listener: pynng.Listener, address: str) -> int:
    """Return the port, which the system gave if it was 0; pynng has no name for this option yet."""
    port = urlsplit(address).port or 0
    if port == 0:
        bound = pynng.ffi.new("int *")
        pynng.lib.nng_listener_get_int(listener.listener, b"tcp-bound-port", bound)
        port = int(bound[0])
    return port
