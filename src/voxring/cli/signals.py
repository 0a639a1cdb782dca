"""How a command ends when it is told to: Ctrl-C and SIGTERM both unwind it, so that everything is closed and told."""

from __future__ import annotations

import signal
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM came: what holds for Ctrl-C holds for it."""


def catch_sigterm() -> None:
    """Have SIGTERM raise `Terminated` in the main thread, once: to end takes seconds, and must not be cut short."""
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def exit_code(stop: BaseException | None) -> int:
    """Return 143 for SIGTERM, 130 for Ctrl-C."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
