"""A party's status on 127.0.0.1: ``/``, a page; ``/status.json``; ``/metrics``, for Prometheus. Read-only.

It tells what `voxring.cli.progress.Progress.snapshot` tells, so no value, patient, file name or path; whoever has an
account on this machine can read it. A page of another site that has its own name point to 127.0.0.1 (DNS rebinding)
cannot: the browser then sends that name as Host, and only this machine's own names are answered. Requests are served
one after the other, each within `REQUEST_SECONDS`: somebody slow holds up the page, never the party.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import TracebackType
from typing import Any

import click
import msgspec

HOST = "127.0.0.1"
REQUEST_SECONDS = 2.0
LOOK_SECONDS = 0.1
"""Between looks at whether the server is to end."""
Snapshot = Callable[[], dict[str, Any]]


class StatusServer:
    """Serves what ``snapshot`` returns, from a thread of its own; a context manager.

    Parameters
    ----------
    port : int
        0 takes a free one; `url` then tells which.
    snapshot : callable
        `voxring.cli.progress.Progress.snapshot` of the party.

    Raises
    ------
    click.BadParameter
        The port is in use.
    """

    def __init__(self, port: int, snapshot: Snapshot) -> None:
        try:
            self._server = _Server((HOST, port), _Handler)
        except OSError as error:
            raise click.BadParameter(f"cannot listen at {HOST}:{port}: {error.strerror}: choose another port") from None
        self._server.snapshot = snapshot
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(LOOK_SECONDS,), name="voxring status", daemon=True
        )

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self._server.server_port}/"

    def __enter__(self) -> StatusServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(HTTPServer):
    snapshot: Snapshot
    allow_reuse_address = True

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve a request, and hang up when its time is over: who sends a byte now and then would stay for ever."""
        over = threading.Timer(REQUEST_SECONDS, _hang_up, (request,))
        over.daemon = True
        over.start()
        try:
            super().finish_request(request, client_address)
        finally:
            over.cancel()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of somebody who hung up; a fault of ours shows as an empty answer, and the party goes on."""


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        """Answer a request of this machine's own."""
        port = self.server.server_port
        if self.headers.get_all("Host", []) not in ([f"{HOST}:{port}"], [f"localhost:{port}"]):
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", f"ask for {HOST}:{port}\n")
            return
        write = _PAGES.get(self.path)
        if write is None:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", f"here are {', '.join(_PAGES)}\n")
            return
        kind, content = write(self.server.snapshot())
        self._answer(HTTPStatus.OK, kind, content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is no GET, or no HTTP, in a line."""
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED if code == 501 else HTTPStatus(code), "text/plain", "refused\n")

    def _answer(self, status: HTTPStatus, kind: str, content: str) -> None:
        body = content.encode()
        self.send_response_only(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Log nothing."""


def _json(now: dict[str, Any]) -> tuple[str, str]:
    return "application/json", msgspec.json.encode(now).decode() + "\n"


def _page(now: dict[str, Any]) -> tuple[str, str]:
    from voxring.cli.progress import clock_time

    images = now["images"]
    heard = ", ".join(f"{peer} {seconds:.0f} s ago" for peer, seconds in now["heard"].items()) or "nobody yet"
    rows = {
        "phase": now["phase"],
        "images": f"{images['done']} of {images['total']}" + (f", {images['bad']} bad" if images["bad"] else ""),
        "rate": "" if now["rate"] is None else f"{60 * now['rate']:.1f} images a minute",
        "time left": "" if now["left"] is None else clock_time(now["left"]),
        "heard": heard,
        "running for": clock_time(now["seconds"]),
    }
    table = "".join(f"<tr><th scope=row>{what}</th><td>{escape(text)}</td></tr>\n" for what, text in rows.items())
    return "text/html", (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta http-equiv="refresh" content="2">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>voxring: {escape(now['party'])}</title>\n"
        "<style>body { font: 16px/1.5 system-ui, sans-serif; margin: 2em } th { text-align: left; padding-right: 2em }"
        f"</style>\n</head>\n<body>\n<h1>{escape(now['party'])}</h1>\n<table>\n{table}</table>\n</body>\n</html>\n"
    )


def _metrics(now: dict[str, Any]) -> tuple[str, str]:
    """Write Prometheus' text format, version 0.0.4."""
    gauges: list[tuple[str, str, list[tuple[str, float | None]]]] = [
        ("voxring_phase", "The phase that the party is in.", [(f'{{phase="{_label(now["phase"])}"}}', 1)]),
        ("voxring_images", "Images of the manifest.", [("", now["images"]["total"])]),
        ("voxring_images_done", "Images that are done.", [("", now["images"]["done"])]),
        ("voxring_images_bad", "Images that cannot be used.", [("", now["images"]["bad"])]),
        ("voxring_images_per_second", "Images done a second, of late.", [("", now["rate"])]),
        ("voxring_left_seconds", "Seconds until all images are done.", [("", now["left"])]),
        ("voxring_up_seconds", "Seconds since the party began.", [("", now["seconds"])]),
        (
            "voxring_heard_seconds",
            "Seconds since a peer was heard.",
            [(f'{{peer="{_label(peer)}"}}', seconds) for peer, seconds in now["heard"].items()],
        ),
    ]
    lines = []
    for name, told, samples in gauges:
        known = [(label, number) for label, number in samples if number is not None]
        if known:
            lines += [f"# HELP {name} {told}", f"# TYPE {name} gauge"]
            lines += [f"{name}{label} {number:g}" for label, number in known]
    return "text/plain; version=0.0.4", "\n".join(lines) + "\n"


def _label(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


_PAGES: dict[str, Callable[[dict[str, Any]], tuple[str, str]]] = {
    "/": _page,
    "/status.json": _json,
    "/metrics": _metrics,
}
