"""How far a run is: a live table on a terminal, a JSON line for each step elsewhere, and a snapshot for a status page.

Lines and snapshots hold no value, no patient, no file's name and no path, since they end in logs: of a row that cannot
be used, its line in the manifest and the kind of error. Why it cannot be used is for the terminal.

The table is rich's, which redraws itself, fits the width and restores the terminal also after an error; it is imported
(0.2 s) on a terminal alone.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

import click
import msgspec

from voxring.errors import VoxringError

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

RECENT = 32
"""Images from which the rate is taken."""
LINE_SECONDS = 1.0
"""At most one line on images in this time, and one for the last."""


@dataclass(slots=True)
class Standing:
    """How far one member is. Its methods are called by one thread, its fields read by others at any time.

    Examples
    --------
    >>> seconds = iter([0.0, 5.0, 6.0, 7.0])
    >>> north = Standing(clock=lambda: next(seconds))
    >>> for done in (0, 10, 11, 12):  # ten of them were in the journal
    ...     north.images(done, 16)
    >>> north.rate, north.left
    (1.0, 4.0)
    """

    clock: Callable[[], float] = time.monotonic
    words: str = ""
    phase: str = ""
    done: int = 0
    total: int = 0
    bad: int = 0
    heard: dict[str, float] = field(default_factory=dict)
    _recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=RECENT))

    def images(self, done: int, total: int) -> None:
        """Note how many images are done; a jump is what was known before, and says nothing about the rate."""
        if done != self.done + 1:
            self._recent.clear()
        self.done, self.total = done, total
        self._recent.append((self.clock(), done))

    @property
    def rate(self) -> float | None:
        """Images a second, of late."""
        recent = tuple(self._recent)
        if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
            return None
        return (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0])

    @property
    def left(self) -> float | None:
        """Seconds until all images are done, if it goes on like that."""
        rate = self.rate
        return (self.total - self.done) / rate if rate else None


class Progress:
    """Who is doing what. Safe to call from any thread.

    ``as_json`` are lines for programs where there is no terminal; else they are for people.
    """

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet, self.as_json = quiet, as_json
        self.start = time.monotonic()
        self.standings: dict[str, Standing] = {}
        self.live: Live | None = None
        self._said = -LINE_SECONDS

    def __enter__(self) -> Progress:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(stderr=True), refresh_per_second=8, get_renderable=self._table)
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def __call__(self, who: str, what: str) -> None:
        """Say what somebody does, in words that may go into a log."""
        self._of(who).words = what
        self._line(who, what, {"says": what})

    def phase(self, who: str, what: str) -> None:
        """Say in which phase of the session somebody is."""
        self._of(who).phase = what
        self(who, what)

    def images(self, who: str, done: int, total: int) -> None:
        """Say how many images are done."""
        standing, now = self._of(who), time.monotonic()
        if done == 0:
            standing.bad = 0  # where the images are gone through twice, a row is bad twice
        computed = done == standing.done + 1
        standing.images(done, total)
        if computed and done < total and now - self._said < LINE_SECONDS:
            return
        self._said = now
        rate, left = standing.rate, standing.left
        figures = {"rate": rate and round(rate, 3), "left": left and round(left)}
        self._line(who, f"image {done} of {total}", {"done": done, "total": total, **figures})

    def bad_row(self, who: str, line: int, error: VoxringError) -> None:
        """Say which row cannot be used; why is for the terminal alone."""
        standing = self._of(who)
        standing.bad += 1
        if self.live is not None:
            standing.words = f"line {line} cannot be used: {error}"
        kind = type(error).__name__
        self._line(who, f"line {line} cannot be used ({kind})", {"line": line, "bad": kind})

    def hears(self, who: str, peer: str) -> None:
        """Note that a peer was heard."""
        self._of(who).heard[peer] = time.monotonic()

    def snapshot(self, who: str) -> dict[str, object]:
        """Return how far somebody is, for a status page."""
        standing, now = self._of(who), time.monotonic()
        return {
            "party": who,
            "phase": standing.phase,
            "seconds": round(now - self.start, 1),
            "images": {"done": standing.done, "total": standing.total, "bad": standing.bad},
            "rate": standing.rate,
            "left": standing.left,
            "heard": {peer: round(now - when, 1) for peer, when in sorted(standing.heard.items())},
        }

    def _of(self, who: str) -> Standing:
        return self.standings.setdefault(who, Standing())

    def _line(self, who: str, text: str, fields: dict[str, object]) -> None:
        if self.live is not None or self.quiet:
            return
        seconds = time.monotonic() - self.start
        if self.as_json:
            line = msgspec.json.encode({"seconds": round(seconds, 1), "who": who, **fields}).decode()
        else:
            line = f"{seconds:6.1f} s  {who}: {text}"
        click.echo(line, err=True)

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        now = time.monotonic()
        for who, one in list(self.standings.items()):
            cells = [Text(who, "bold"), Text(one.words)]
            if one.total:
                rate, left = one.rate, one.left
                bad = f", {one.bad} bad" if one.bad else ""
                pace = "" if rate is None else f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min"
                until = "" if left is None or one.done == one.total else f"{clock_time(left)} left"
                cells += [Text(f"{one.done}/{one.total} images{bad}"), Text(pace), Text(until)]
            if one.heard:
                late = [f"{peer} ({now - when:.0f} s)" if now - when > 5 else peer for peer, when in one.heard.items()]
                cells.append(Text(f"heard: {', '.join(late)}"))
            table.add_row(*cells)
        return table


def clock_time(seconds: float) -> str:
    """Write seconds as a clock does.

    Examples
    --------
    >>> clock_time(59.9), clock_time(3600 + 62)
    ('1:00', '1:01:02')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
