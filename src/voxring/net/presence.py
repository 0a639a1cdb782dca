"""Is the one that asks us still there? Time is an argument, so this is tested without waiting."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Presence:
    """Follows one peer that sends requests to our listener.

    ``timeout`` is how long it may be silent, ``grace`` how long it may be away after its connection closed.

    Examples
    --------
    >>> researcher = Presence(timeout=60, grace=3)
    >>> researcher.heard(pipe=7, now=0.0)
    >>> researcher.closed(pipe=7, now=1.0)
    >>> researcher.missing(now=2.0), researcher.missing(now=5.0)
    (None, 'went away and did not come back within 3 s')
    """

    timeout: float
    grace: float
    _pipe: int | None = field(default=None, init=False)
    _lost: int | None = field(default=None, init=False)
    _heard: float | None = field(default=None, init=False)
    _closed: float | None = field(default=None, init=False)

    def heard(self, pipe: int, now: float) -> None:
        """A valid request came over this connection; one that was closed meanwhile proves nothing."""
        if pipe == self._lost:
            return
        self._pipe, self._heard, self._closed = pipe, now, None

    def closed(self, pipe: int, now: float) -> None:
        """A connection closed; it may be a stranger's."""
        if pipe == self._pipe:
            self._closed, self._lost = now, pipe

    @property
    def here(self) -> bool:
        """Whether its connection is open as far as we know."""
        return self._heard is not None and self._closed is None

    def missing(self, now: float) -> str | None:
        """Return in words why the peer counts as gone, or None."""
        if self._closed is not None and now - self._closed > self.grace:
            return f"went away and did not come back within {self.grace:g} s"
        if self._heard is not None and now - self._heard > self.timeout:
            return f"was not heard for {self.timeout:g} s"
        return None
