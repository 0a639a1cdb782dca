"""Links and answers that only the two members can read: `voxring.net.channel` over whatever carries frames."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from voxring.errors import PeerError
from voxring.net.channel import Asked, ChannelLostError, Initiator, Responder

PAUSE = 0.1  # seconds before a handshake that the peer has forgotten is begun anew

Answer = Callable[[bytes, int, str | None], bytes]


class Asking(Protocol):
    """The asking end, sealed or not: see `voxring.net.link.Link`."""

    @property
    def peer(self) -> str:
        """Name of the peer."""

    def wait(self, timeout: float) -> None:
        """Wait until the peer takes connections."""

    def ask(self, frame: bytes, timeout: float) -> bytes:
        """Send a frame and return the answer."""

    def stop(self) -> None:
        """Make whoever waits in `ask` get a PeerError soon."""

    def close(self) -> None:
        """Close the link; no thread may be in `ask`."""


class SealedLink:
    """A link over which a channel is opened when it is first used, and again when the peer was started anew.

    One thread may use it at a time.
    """

    def __init__(self, link: Asking, initiator: Initiator) -> None:
        self._link, self._initiator = link, initiator

    @property
    def peer(self) -> str:
        """Name of the peer."""
        return self._link.peer

    def wait(self, timeout: float) -> None:
        """Wait until the peer is there and has proven who it is.

        Raises
        ------
        PeerError
            It is not there within ``timeout`` seconds, or is another.
        RemoteProtocolError
            It has another study.
        """
        until = time.monotonic() + timeout
        self._link.wait(timeout)
        while not self._initiator.is_open:
            self._open(until)

    def ask(self, frame: bytes, timeout: float) -> bytes:
        """Send a frame and return the answer.

        Raises
        ------
        PeerError
            As in `Link.ask`, or the peer is another, or refuses this member.
        RemoteProtocolError
            The peer has another study, or the answer was changed on the way.
        """
        until = time.monotonic() + timeout
        while True:
            if not self._initiator.is_open:
                self._open(until)
                continue
            number, question = self._initiator.seal(frame)
            try:
                return self._initiator.open(number, self._ask(question, until))
            except ChannelLostError:
                self._open(until)

    def _open(self, until: float) -> None:
        """Go once through the handshake; return without a channel when the peer lost it halfway."""
        try:
            question: bytes | None = self._initiator.hello()
            while question is not None:
                question = self._initiator.take(self._ask(question, until))
        except ChannelLostError:
            time.sleep(PAUSE)

    def _ask(self, frame: bytes, until: float) -> bytes:
        left = until - time.monotonic()
        if left <= 0:
            raise PeerError(f"{self.peer} did not answer in time: the handshake was begun again and again")
        return self._link.ask(frame, left)

    def stop(self) -> None:
        """Make whoever waits in `ask` get a PeerError soon."""
        self._link.stop()

    def close(self) -> None:
        """Close the link; no thread may be in `ask`."""
        self._link.close()


class SealedAnswers:
    """What a listener calls: opens each question, has it answered, seals the answer. For several threads."""

    def __init__(self, responder: Responder, answer: Answer) -> None:
        self._responder, self._answer = responder, answer
        self._changed = threading.Condition()

    @property
    def refused(self) -> str:
        """Why the last frame that did not fit was refused, in words, or nothing."""
        return self._responder.refused

    def __call__(self, frame: bytes, pipe: int) -> bytes:
        """Answer a frame."""
        with self._changed:
            while (asked := self._responder.receive(frame)) is None:
                self._changed.wait()  # another thread is answering the same question
        if not isinstance(asked, Asked):
            return asked
        answer = self._answer(asked.content, pipe, asked.peer)
        with self._changed:
            sealed = self._responder.seal(asked, answer)
            self._changed.notify_all()
        return sealed
