"""What somebody on the way between two processes sees, and may change."""

import socket
import threading
from collections.abc import Callable


class Tap:
    """Forwards TCP connections and keeps what goes through them, each way; may change a byte of it."""

    def __init__(self, to: str) -> None:
        self.host, port = to.removeprefix("tcp://").rsplit(":", 1)
        self.port = int(port)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self.server.getsockname()[1]}"
        self.seen: list[bytearray] = []
        self.change: Callable[[bytes], bytes] = bytes
        self._open = [self.server]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.server.accept()
                far = socket.create_connection((self.host, self.port))
            except OSError:
                return
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                kept = bytearray()
                self.seen.append(kept)
                threading.Thread(target=self._forward, args=(source, sink, kept), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
        try:
            while part := source.recv(1 << 16):
                kept += part
                sink.sendall(self.change(part))
        except OSError:
            pass
        finally:
            for end in (source, sink):
                end.close()

    def close(self) -> None:
        for end in self._open:
            end.close()
