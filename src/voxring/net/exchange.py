"""What a relay does, without I/O and clock: mailboxes, who waits for what, and how much of it is held.

A mailbox is there as long as the connection that opened it and asks for questions; one opened anew replaces it. A
question waits in it, or goes to a taker who waits, and who asked waits for the answer that bears the question's
ticket. Every request gets one reply, sooner or later; the callable ``reply`` that comes with it is called once.

A long vector's stream is a mailbox like any other, and its frames are questions (`voxring.net.relayed_streams`).

A reply may lie in this machine's memory as long as its receiver does not read. So a connection is sent no more than
`Limits.unread` bytes beyond the question or answer whose ticket it showed last: tickets cannot be guessed, and what
goes over one connection is read in order.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from voxring.net.mailbox import (
    MAX_FRAME,
    NAME,
    Absent,
    Answer,
    Ask,
    Full,
    Gone,
    Nothing,
    Question,
    Reply,
    Take,
    Unreadable,
    name_of,
    read_request,
)

TAKE_SECONDS = 0.5
"""How long a taker waits for a question before it is told that there is none."""
ASK_SECONDS = 5.0
"""How long one who asks waits for the answer before it is told to ask again."""
OPEN_SECONDS = 10.0
"""How long a mailbox stays open from which nobody takes."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a relay holds. Of what is ``in all``, one network address gets half."""

    waiting: int = 2048
    """Requests that wait for their reply, in all."""
    mailboxes: int = 512
    """Open mailboxes, in all."""
    held: int = 256 * MAX_FRAME
    """Bytes of questions and answers, waiting or on their way, in all."""
    questions: int = 8
    """Questions in one mailbox."""
    content: int = 2 * MAX_FRAME
    """Bytes of the questions in one mailbox."""
    unread: int = 4 * MAX_FRAME
    """Bytes of questions and answers on their way to one connection."""
    askers: int = 64
    """Connections of those who ask that one mailbox remembers."""


@dataclass(slots=True)
class _Waiting:
    """Somebody who waits for a reply."""

    reply: Callable[[Reply], None]
    pipe: int
    host: str
    until: float
    box: _Mailbox
    frame: bytes = b""


@dataclass(slots=True)
class _Mailbox:
    pipe: int
    host: str
    seen: float
    names: set[bytes] = field(default_factory=set)
    questions: deque[bytes] = field(default_factory=deque)
    """Tickets."""
    takers: deque[_Waiting] = field(default_factory=deque)
    askers: dict[int, None] = field(default_factory=dict)
    gone: deque[int] = field(default_factory=deque)


class Exchange:
    """The mailboxes of one relay. Must be called by one thread at a time."""

    def __init__(self, random: Callable[[int], bytes], limits: Limits | None = None) -> None:
        self._random, self._limits = random, limits or Limits()
        self._boxes: dict[int, _Mailbox] = {}  # by the taker's connection
        self._names: dict[bytes, _Mailbox] = {}
        self._asked: dict[bytes, _Waiting] = {}  # by ticket
        self._unread: dict[int, dict[bytes, int]] = {}  # by connection: tickets and bytes, in the order sent
        self._hosts: dict[int, str] = {}  # of the connections that have something to read
        self._waiting: Counter[str] = Counter()  # requests, by network address
        self._held: Counter[str] = Counter()  # bytes, by network address

    def handle(self, message: bytes, pipe: int, host: str, now: float, reply: Callable[[Reply], None]) -> None:
        """Take a request that came over a connection from a network address; never raises, whatever came."""
        request = read_request(message)
        if request is not None and request.seen is not None:
            self._seen(pipe, request.seen)
        if isinstance(request, Ask):
            self._ask(request, _Waiting(reply, pipe, host, now + ASK_SECONDS, _NOBODY, request.frame))
        elif isinstance(request, Take):
            self._take(request, _Waiting(reply, pipe, host, now + TAKE_SECONDS, _NOBODY), now)
        else:
            reply(Unreadable())

    def closed(self, pipe: int) -> None:
        """Note that a connection closed: its mailbox closes, and those whom it asked are told."""
        _count(self._held, self._hosts.pop(pipe, ""), -sum(self._unread.pop(pipe, {}).values()))
        if pipe in self._boxes:
            self._close(self._boxes[pipe])
        for ticket in [ticket for ticket, one in self._asked.items() if one.pipe == pipe]:
            self._give_up(ticket)
        for box in self._boxes.values():
            if pipe in box.askers:
                del box.askers[pipe]
                box.gone.append(pipe)
                self._serve(box)

    def tick(self, now: float) -> None:
        """Reply to those who have waited long enough; close mailboxes that nobody uses."""
        for ticket in [ticket for ticket, one in self._asked.items() if one.until <= now]:
            self._give_up(ticket)
        for box in [*self._boxes.values()]:
            while box.takers and box.takers[0].until <= now:
                self._next_taker(box).reply(Nothing())
            if not box.takers and box.seen + OPEN_SECONDS <= now:
                self._close(box)

    def _ask(self, ask: Ask, one: _Waiting) -> None:
        box = self._names.get(ask.name)
        if box is None:
            one.reply(Absent())
            return
        held = sum(len(self._asked[ticket].frame) for ticket in box.questions)
        full = len(box.questions) >= self._limits.questions or held + len(ask.frame) > self._limits.content
        full = full or self._crowded(one.host) or not self._fits(one.host, len(ask.frame))
        if full or (one.pipe not in box.askers and len(box.askers) >= self._limits.askers):
            one.reply(Full())
            return
        ticket, one.box = self._random(NAME), box
        box.askers[one.pipe] = None
        self._asked[ticket] = one
        _count(self._waiting, one.host, 1)
        _count(self._held, one.host, len(one.frame))
        box.questions.append(ticket)
        self._serve(box)

    def _take(self, take: Take, one: _Waiting, now: float) -> None:
        box = self._boxes.get(one.pipe)
        if take.ticket is not None and box is not None:
            asked = self._asked.get(take.ticket)
            if asked is not None and asked.box is box and take.ticket not in box.questions:
                self._forget(take.ticket)
                ticket = self._random(NAME)  # another than the taker knows
                fits = self._owe(asked, ticket, len(take.answer))
                asked.reply(Answer(ticket, take.answer) if fits else Full())
        if box is None:
            of_host = sum(other.host == one.host for other in self._boxes.values())
            if len(self._boxes) >= self._limits.mailboxes or 2 * of_host >= self._limits.mailboxes:
                one.reply(Full())
                return
            box = self._boxes[one.pipe] = _Mailbox(one.pipe, one.host, now)
        self._name(box, {name_of(token) for token in take.tokens})
        box.seen, one.box = now, box
        nothing = not box.questions and not box.gone
        if take.last or (nothing and self._crowded(one.host)):
            one.reply(Nothing())
            return
        box.takers.append(one)
        _count(self._waiting, one.host, 1)
        self._serve(box)

    def _name(self, box: _Mailbox, names: set[bytes]) -> None:
        for name in box.names - names:
            del self._names[name]
        for name in names - box.names:
            older = self._names.get(name)
            if older is not None:
                older.names.remove(name)
                if not older.names:
                    self._close(older)
            self._names[name] = box
        box.names = names

    def _serve(self, box: _Mailbox) -> None:
        """Bring together those who take and what there is to take."""
        while box.takers and (box.gone or box.questions):
            taker = self._next_taker(box)
            if box.gone:
                taker.reply(Gone(box.gone.popleft()))
                continue
            ticket = box.questions[0]
            asked = self._asked[ticket]
            if not self._owe(taker, ticket, len(asked.frame)):
                taker.reply(Full())
                continue
            box.questions.popleft()
            frame, asked.frame = asked.frame, b""
            _count(self._held, asked.host, -len(frame))
            taker.reply(Question(ticket, asked.pipe, frame))

    def _next_taker(self, box: _Mailbox) -> _Waiting:
        taker = box.takers.popleft()
        _count(self._waiting, taker.host, -1)
        return taker

    def _owe(self, to: _Waiting, ticket: bytes, size: int) -> bool:
        """Note what is sent over a connection; False if it, or all together, have too much to read already."""
        unread = self._unread.setdefault(to.pipe, {})
        if sum(unread.values()) + size > self._limits.unread or not self._fits(to.host, size):
            return False
        unread[ticket] = size
        self._hosts[to.pipe] = to.host
        _count(self._held, to.host, size)
        return True

    def _seen(self, pipe: int, ticket: bytes) -> None:
        unread = self._unread.get(pipe, {})
        if ticket in unread:
            for one in list(unread):
                _count(self._held, self._hosts[pipe], -unread.pop(one))
                if one == ticket:
                    return

    def _forget(self, ticket: bytes) -> _Waiting:
        """Take out of the books a question that is answered, or given up."""
        one = self._asked.pop(ticket)
        _count(self._waiting, one.host, -1)
        _count(self._held, one.host, -len(one.frame))
        return one

    def _give_up(self, ticket: bytes) -> None:
        one = self._forget(ticket)
        if ticket in one.box.questions:
            one.box.questions.remove(ticket)
        one.reply(Nothing())

    def _close(self, box: _Mailbox) -> None:
        del self._boxes[box.pipe]
        for name in box.names:
            del self._names[name]
        while box.takers:
            self._next_taker(box).reply(Nothing())
        for ticket in [ticket for ticket, one in self._asked.items() if one.box is box]:
            self._give_up(ticket)

    def _crowded(self, host: str) -> bool:
        """Whether as many wait as may, in all or from one network address."""
        most = self._limits.waiting
        return self._waiting.total() >= most or 2 * self._waiting[host] >= most

    def _fits(self, host: str, size: int) -> bool:
        """Whether so many bytes more may be held, in all and for one network address."""
        most = self._limits.held
        return self._held.total() + size <= most and 2 * (self._held[host] + size) <= most


def _count(to: Counter[str], host: str, change: int) -> None:
    to[host] += change
    if not to[host]:
        del to[host]  # else every address that ever came would stay


_NOBODY = _Mailbox(-1, "", 0.0)
