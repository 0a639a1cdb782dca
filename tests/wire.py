"""What somebody on the way between two processes sees, may change, and may break."""

import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

KINDS = ("cut", "stall", "flip", "repeat", "swap", "drop", "half-close", "drip", "refuse")


class Tap:
    """Forwards TCP connections and keeps what goes through them, each way; may change a byte of it."""

    def __init__(self, to: str) -> None:
        self.turn_to(to)
        self.seen: list[bytearray] = []
        self.change: Callable[[bytes], bytes] = bytes
        self.refuse_until = 0.0
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open = [self._server]
        self.address = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def turn_to(self, address: str) -> None:
        """Forward new connections to this address."""
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        self._to = host, int(port)

    def close(self) -> None:
        for end in self._open:
            hang_up(end)
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            try:
                if time.monotonic() < self.refuse_until:
                    raise ConnectionRefusedError
                far = socket.create_connection(self._to, 5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self._open += [near, far]
            for source, sink, answers in ((near, far, False), (far, near, True)):
                threading.Thread(target=self._forward, args=(source, sink, answers), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        kept = bytearray()
        self.seen.append(kept)
        with suppress(OSError):
            while part := source.recv(65536):
                kept += part
                if not self._pass(source, sink, part, answers):
                    return
        hang_up(source)
        hang_up(sink)

    def _pass(self, source: socket.socket, sink: socket.socket, part: bytes, answers: bool) -> bool:
        """Pass on a part; False when this direction of the connection has ended."""
        sink.sendall(self.change(part))
        return True


class Proxy(Tap):
    """Does to a connection, once, what networks and their boxes do, at a byte of one direction of its traffic.

    Kinds: ``cut`` closes both sides; ``stall`` swallows all that follows; ``flip`` changes a bit; ``repeat`` sends 64
    bytes again; ``swap`` exchanges two blocks of 32 bytes; ``drop`` leaves 8 bytes out; ``half-close`` ends one
    direction; ``drip`` sends 200 bytes one by one; ``refuse`` closes both sides and every connection for a second.
    """

    def __init__(self, to: str, kind: str = "", at: int = 0, *, answers: bool = False, seed: int = 0) -> None:
        self._kind, self._at, self._answers = kind, at, answers
        self._random = random.Random(seed)  # noqa: S311
        self._passed = 0
        self._lock = threading.Lock()
        self.struck = threading.Event()
        super().__init__(to)

    def _pass(self, source: socket.socket, sink: socket.socket, part: bytes, answers: bool) -> bool:
        place = self._place(len(part)) if answers == self._answers else None
        if place is None:
            return super()._pass(source, sink, part, answers)
        return self._strike(source, sink, part[:place], part[place:])

    def _place(self, size: int) -> int | None:
        """Where in this part the fault is, if it is there."""
        with self._lock:
            place = self._at - self._passed
            self._passed += size
            if not self._kind or self.struck.is_set() or not 0 <= place < size:
                return None
            self.struck.set()
            return place

    def _strike(self, source: socket.socket, sink: socket.socket, before: bytes, after: bytes) -> bool:
        changed = {
            "flip": lambda: bytes([after[0] ^ 1 << self._random.randrange(8)]) + after[1:],
            "repeat": lambda: before[-64:] + after,
            "swap": lambda: after[32:64] + after[:32] + after[64:],
            "drop": lambda: after[8:],
        }
        if self._kind in changed:
            sink.sendall(before + changed[self._kind]())
            return True
        sink.sendall(before)
        if self._kind == "drip":
            for byte in after[:200]:
                sink.sendall(bytes([byte]))
                time.sleep(0.002)
            sink.sendall(after[200:])
            return True
        if self._kind == "stall":
            while source.recv(65536):
                pass
        elif self._kind == "half-close":
            sink.shutdown(socket.SHUT_WR)
        else:
            if self._kind == "refuse":
                self.refuse_until = time.monotonic() + 1
            hang_up(source)
            hang_up(sink)
        return False


def hang_up(end: socket.socket) -> None:
    """Tell both directions of a connection that nothing more comes."""
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
