"""A relay: members who can only dial out meet at it. It passes sealed frames on, and knows no key and no study.

What it still sees: the network addresses of those who connect; who asks whom, by mailboxes' names, which change every
day and tell nothing; how many messages there are, when, and how long. The chunks of a long vector go through mailboxes
of their own, whose names are new for each sum and known to its two ends alone. Somebody on the way to the relay sees
the same.

What a relay that does not do its work can do: hold messages back, lose them, mix them up, say that somebody is gone.
Then a session ends with an error. It cannot read a message, change one, send one of its own, or pass off an old one
for a new one: the two members at its ends would refuse it. A member of the study, and somebody who reads the traffic
to the relay, can take messages out of another's mailbox; that, too, ends a session and no more. Others can neither
take nor put, since they would have to guess 16 bytes.

What it holds is bounded (`voxring.net.exchange.Limits`, `CONNECTIONS`), and half of that for one network address, so
that a stranger at one address cannot take all of it. Many strangers at many addresses can, and then members are told
that the relay is full.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter, deque
from contextlib import suppress

import pynng

from voxring.net.exchange import Exchange, Limits
from voxring.net.listener import bound_port, cannot_listen, content_of
from voxring.net.mailbox import MAX_MESSAGE, Reply, write

CONNECTIONS = 512
"""Connections that are kept, in all; one network address gets half. nng holds a message of each."""
TICK = 0.05
"""Seconds between looks at who has waited long enough."""


class Relay:
    """Serves an address from a thread of its own.

    Parameters
    ----------
    address : str
        ``tcp://HOST:PORT``; port 0 takes a free one, `address` then tells which.
    limits : Limits, optional
        How much is held.
    connections : int
        How many are kept.

    Raises
    ------
    PeerError
        The address cannot be listened at.
    """

    def __init__(self, address: str, *, limits: Limits | None = None, connections: int = CONNECTIONS) -> None:
        self._exchange, self._most = Exchange(secrets.token_bytes, limits), connections
        self._hosts: dict[int, str] = {}  # of open connections; nng's threads write it
        self._hosts_lock = threading.Lock()
        self._gone: deque[int] = deque()  # connections that closed; nng's threads append
        self._ending = False
        # Raw: a reply is sent whenever it is there, by the header of its request; there is no context to wait in. nng
        # drops replies for which a connection that does not read has no room.
        self._socket = pynng.Rep0(
            opener=pynng.lib.nng_rep0_open_raw, recv_max_size=MAX_MESSAGE, recv_timeout=round(TICK * 1000)
        )
        self._socket.add_pre_pipe_connect_cb(self._came)
        self._socket.add_post_pipe_remove_cb(self._went)
        try:
            listener = self._socket.listen(address)
        except pynng.NNGException as error:
            self._socket.close()
            raise cannot_listen(address, error) from None
        self.address = f"{address.rpartition(':')[0]}:{bound_port(listener, address)}"
        self._thread = threading.Thread(target=self._run, name="voxring relay", daemon=True)
        self._thread.start()

    # In threads of nng, where coverage does not look.

    def _came(self, pipe: pynng.Pipe) -> None:  # pragma: no cover
        host = _host(pipe)
        with self._hosts_lock:
            of_host = Counter(self._hosts.values())[host]
            if len(self._hosts) >= self._most or 2 * of_host >= self._most:
                pipe.close()
                return
            self._hosts[pipe.id] = host

    def _went(self, pipe: pynng.Pipe) -> None:  # pragma: no cover
        with self._hosts_lock:
            self._hosts.pop(pipe.id, None)
        self._gone.append(pipe.id)

    # In the relay's own thread.

    def _run(self) -> None:
        looked = time.monotonic()
        while not self._ending:
            with suppress(pynng.Timeout):
                self._handle(self._socket.recv_msg())
            now = time.monotonic()
            if now - looked >= TICK:
                looked = now
                while self._gone:
                    self._exchange.closed(self._gone.popleft())
                self._exchange.tick(now)

    def _handle(self, request: pynng.Message) -> None:
        pipe = int(pynng.lib.nng_msg_get_pipe(request._nng_msg).id)
        with self._hosts_lock:
            host = self._hosts.get(pipe)
        if host is not None:  # else its connection has closed meanwhile
            header = _header(request)
            self._exchange.handle(
                content_of(request), pipe, host, time.monotonic(), lambda reply: self._send(header, reply)
            )

    def _send(self, header: bytes, reply: Reply) -> None:
        message = pynng.Message(write(reply))
        pynng.check_err(pynng.lib.nng_msg_header_append(message._nng_msg, header, len(header)))
        self._socket.send_msg(message)

    def close(self) -> None:
        """Stop, and close all connections."""
        self._ending = True
        self._thread.join()
        self._socket.close()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _header(request: pynng.Message) -> bytes:
    """Return what tells nng where the reply goes."""
    size = pynng.lib.nng_msg_header_len(request._nng_msg)
    return bytes(pynng.ffi.buffer(pynng.lib.nng_msg_header(request._nng_msg), size))


def _host(pipe: pynng.Pipe) -> str:
    """Return a connection's network address without its port."""
    return str(pipe.remote_address).rpartition(":")[0]
