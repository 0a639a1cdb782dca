"""A TCP proxy that does to a connection, once, what networks and their boxes do."""

import random
import socket
import threading
import time
from contextlib import suppress

KINDS = ("cut", "stall", "flip", "repeat", "swap", "drop", "half-close", "drip", "refuse")


class Proxy:
    """Forwards connections to a target; at a byte of one direction of its traffic a fault happens, once.

    Kinds: ``cut`` closes both sides; ``stall`` swallows all that follows; ``flip`` changes a bit; ``repeat`` sends 64
    bytes again; ``swap`` exchanges two blocks of 32 bytes; ``drop`` leaves 8 bytes out; ``half-close`` ends one
    direction; ``drip`` sends 200 bytes one by one; ``refuse`` closes both sides and every connection for a second.
    """

    def __init__(self, target: str, kind: str = "", at: int = 0, *, answers: bool = False, seed: int = 0) -> None:
        self.turn_to(target)
        self._kind, self._at, self._answers = kind, at, answers
        self._random = random.Random(seed)  # noqa: S311
        self._seen = 0
        self._lock = threading.Lock()
        self._refuse_until = 0.0
        self.struck = threading.Event()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def turn_to(self, target: str) -> None:
        """Forward new connections to this address."""
        host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._target = host, int(port)

    def close(self) -> None:
        for one in (self._listener, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if time.monotonic() < self._refuse_until:
                near.close()
                continue
            try:
                far = socket.create_connection(self._target, 5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self._open += [near, far]
            for source, sink, answers in ((near, far, False), (far, near, True)):
                threading.Thread(target=self._pump, args=(source, sink, answers), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                if answers == self._answers and (place := self._strikes(len(piece))) is not None:
                    if not self._strike(source, sink, piece, place):
                        return
                else:
                    sink.sendall(piece)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _strikes(self, size: int) -> int | None:
        """Where in this piece the fault is, if it is there."""
        with self._lock:
            place = self._at - self._seen
            self._seen += size
            if not self._kind or self.struck.is_set() or not 0 <= place < size:
                return None
            self.struck.set()
            return place

    def _strike(self, source: socket.socket, sink: socket.socket, piece: bytes, place: int) -> bool:
        """Do it; False when the connection has ended."""
        before, after = piece[:place], piece[place:]
        if self._kind == "stall":
            sink.sendall(before)
            while source.recv(65536):
                pass
            return False
        if self._kind == "half-close":
            sink.sendall(before)
            sink.shutdown(socket.SHUT_WR)
            return False
        if self._kind in ("cut", "refuse"):
            if self._kind == "refuse":
                self._refuse_until = time.monotonic() + 1
            sink.sendall(before)
            for one in (source, sink):
                one.shutdown(socket.SHUT_RDWR)
            return False
        if self._kind == "drip":
            sink.sendall(before)
            for byte in after[:200]:
                sink.sendall(bytes([byte]))
                time.sleep(0.002)
            sink.sendall(after[200:])
            return True
        changed = {
            "flip": lambda: before + bytes([after[0] ^ 1 << self._random.randrange(8)]) + after[1:],
            "repeat": lambda: before + before[-64:] + after,
            "swap": lambda: before + after[32:64] + after[:32] + after[64:],
            "drop": lambda: before + after[8:],
        }[self._kind]()
        sink.sendall(changed)
        return True
