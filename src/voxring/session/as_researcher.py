"""The researcher as a process: its state machine and one link to each party, each with a thread of its own."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field

from voxring.errors import PeerError, ProtocolError, RemoteProtocolError
from voxring.net import Asking, Network, PrivateKey
from voxring.ring.chunks import ChunkMaster
from voxring.ring.order import RESEARCHER, Ring
from voxring.ring.views import View
from voxring.session.as_party import LATER, TICK, grace
from voxring.session.chunked import leading, ways_of
from voxring.session.researcher import PHASES, Researcher
from voxring.session.streamed import Streamed
from voxring.study import Study
from voxring.totals import Statistics

ABORT_SECONDS = 1.0  # for telling a party that the session has ended; it may be gone itself


_STANDING = {
    "connected": "connected, takes part",
    "surveying": "finding its landmarks",
    "surveyed": "has its landmarks",
    "computing": "computing its totals",
    "ready": "has its totals",
    "stepping": "computing a step of the logistic regression",
    "stepped": "has its step",
}
"""What a party is heard to be at, where that is worth telling; the sums themselves are told as news."""


@dataclass
class Course:
    """How a run went, for reports: the rings, and how long each step of the session took, in seconds."""

    rings: tuple[Ring, ...] = ()
    steps: list[tuple[str, float]] = field(default_factory=list)


def run_researcher(
    study: Study,
    *,
    peers: Mapping[str, str] | None = None,
    key: PrivateKey | None = None,
    keys: Mapping[str, str] | None = None,
    relay: str | None = None,
    timeout: float = 60.0,
    insecure: bool = False,
    retries: int = 0,
    notify: Callable[[str], None] = lambda what: None,
    follow: Callable[[str, str], None] = lambda party, what: None,
    course: Course | None = None,
) -> tuple[dict[str, Statistics | str], View]:
    """Run a study as its researcher: greet the parties, start the secure sums, work out the answer.

    A session that fails before anything was opened, since a party vanished or a message was damaged, may be followed
    by another, in which all blinds and shares are fresh; a party that was started again is waited for.

    Parameters
    ----------
    study : Study
        With its parties.
    peers : mapping of name to address, optional
        Where parties are found, instead of the study's addresses.
    key : PrivateKey, optional
        The researcher's, for a study with keys: links are sealed.
    keys : mapping of name to public key, optional
        Instead of the study's, for simulations.
    relay : str, optional
        Instead of the study's: parties are reached through it. An empty one means none.
    timeout : float
        Seconds to wait for a party that does not answer.
    insecure : bool
        Links of a study without keys are in the clear; must be asked for.
    retries : int
        How many sessions may follow one that failed.
    notify : callable
        Gets the phases in plain words, in this thread.
    follow : callable
        Gets (party, what it is at) whenever that changes, in this thread.
    course : Course, optional
        Filled while the study runs; after a session that failed, with what the last one did.

    Returns
    -------
    answer : dict
        For each class its statistics, or why it is withheld; exactly what `voxring.totals.pooled` gives.
    view : View
        What this process received and learned.

    Raises
    ------
    StudyError
        The study has too few parties or no usable address, or the key is not the researcher's.
    PeerError
        A party was not there in time, went away, refused, ended the session, or has another key. All others were told.
    ProtocolError
        A party's answers did not fit.
    """
    network = Network.of(study, RESEARCHER, key=key, keys=keys, relay=relay, insecure=insecure)
    sealed = network.ring is not None
    machine = Researcher(study, secrets.token_bytes, sealed=sealed)
    addresses = {party.name: party.address for party in study.party} | dict(peers or {})
    where = {name: network.address(name, addresses[name]) for name in study.parties}
    while True:
        try:
            with ExitStack() as stack:
                links = []
                for name in study.parties:
                    link = network.link(name, where[name], max_frame=machine.plan.largest_frame, grace=grace(timeout))
                    links.append(stack.enter_context(closing(link)))
                process = _Process(machine, links, where, network.relay, timeout, notify, follow, last=not retries)
                try:
                    process.run()
                finally:
                    if course is not None:
                        course.rings, course.steps = process.rings, process.steps
        except (PeerError, RemoteProtocolError) as error:
            if not retries or not machine.may_start_over:
                raise
            notify(f"starting over, nothing was released yet: {error}")
            machine = Researcher(study, secrets.token_bytes, (*machine.failed, machine.session), sealed=sealed)
            retries -= 1
        else:
            return machine.answer, machine.view


class _Process:
    """One courier for each party meets the others here; ``changed`` guards the state machine."""

    def __init__(
        self,
        machine: Researcher,
        links: list[Asking],
        where: Mapping[str, str],
        relay: str,
        timeout: float,
        notify: Callable[[str], None],
        follow: Callable[[str, str], None],
        *,
        last: bool,
    ) -> None:
        self.machine, self.links, self.timeout, self.last = machine, links, timeout, last
        self.where, self.relay, self.notify, self.follow = where, relay, notify, follow
        self.steps: list[tuple[str, float]] = []
        self._step, self._since = machine.step, time.monotonic()
        self._told: dict[str, str] = {}
        self.changed = threading.Condition()
        self.heartbeat = min(1.0, timeout / 4)
        self.ended: str | None = None
        """Why the session has ended early, for the parties."""
        self.again = False
        """Whether another session follows, so that the parties are not told to end."""

    @property
    def rings(self) -> tuple[Ring, ...]:
        """The rings, if the coin was drawn."""
        return () if self.machine.plan.coin is None else self.machine.plan.rings

    def run(self) -> None:
        """Run until the machine is done.

        Raises
        ------
        VoxringError
            The first one that a courier met, with the phase in which it did; all parties were told, unless another
            session may follow.
        """
        self.notify("waiting for the parties")
        with ThreadPoolExecutor(len(self.links), "courier") as pool:
            couriers = [pool.submit(self._courier, link) for link in self.links]
            reason = "the researcher was stopped"
            try:
                self._watch(couriers)
            except (PeerError, ProtocolError) as error:
                reason = f"{PHASES[self.machine.step]}: {error}"
                self.again = not self.last and self.machine.may_start_over
                raise type(error)(reason) from None
            finally:
                if not self.machine.done:
                    self._end(reason, couriers)
        self._tell_news()

    def _watch(self, couriers: list[Future[None]]) -> None:
        while self._look(couriers, TICK):
            with self.changed:
                streamed = self.machine.streamed
                ready = streamed is not None and streamed.ready and not streamed.part.done
            if streamed is not None and ready:
                self._carry(streamed, couriers)

    def _look(self, couriers: list[Future[None]], patience: float) -> bool:
        """Raise what a courier met, if one did; return whether any is still at work."""
        finished, going = wait(couriers, timeout=patience, return_when=FIRST_EXCEPTION)
        self._tell_news()
        for courier in finished:
            courier.result()
        return bool(going)

    def _carry(self, streamed: Streamed[ChunkMaster], couriers: list[Future[None]]) -> None:
        """Send a long vector round in chunks."""
        ways = ways_of(streamed, None, self.where, self.relay, self.timeout + LATER)
        with leading(streamed.plan, streamed.part, ways) as run:
            run(lambda: self._look(couriers, 0))
        total = [int(number) for number in streamed.part.total]
        with self.changed:
            self.machine.carried(total)
            self.changed.notify_all()

    def _tell_news(self) -> None:
        with self.changed:
            news = list(self.machine.news)
            self.machine.news.clear()
            standings = list(self.machine.standings)
            self.machine.standings.clear()
        for party, state in standings:
            if self._told.get(party) != state and state in _STANDING:
                self.follow(party, _STANDING[state])
            self._told[party] = state
        for what in news:
            self.notify(what)

    def _end(self, reason: str, couriers: list[Future[None]]) -> None:
        """Have every courier tell its party, as far as the party listens; then cut what still waits."""
        with self.changed:
            self.ended = reason
            self.changed.notify_all()
        wait(couriers, timeout=2 * ABORT_SECONDS)
        for link in self.links:
            link.stop()

    def _courier(self, link: Asking) -> None:
        """Carry questions to one party and answers back."""
        try:
            while (question := self._question(link.peer)) is not None:
                answer = link.ask(question, self.timeout)
                with self.changed:
                    self.machine.take(link.peer, answer)
                    self._note_step()
                    self.changed.notify_all()
        except PeerError:
            with self.changed:
                goes_on = self.ended is not None or self.machine.lost(link.peer)
                self._note_step()
                self.changed.notify_all()
            if not goes_on:
                raise
        if self.ended is not None and not self.again:
            with suppress(PeerError):
                link.ask(self.machine.abort(link.peer, self.ended), ABORT_SECONDS)

    def _note_step(self) -> None:
        """Note how long a step took that has just ended."""
        if self.machine.step != self._step:
            now = time.monotonic()
            self.steps.append((self._step, now - self._since))
            self._step, self._since = self.machine.step, now

    @property
    def _over(self) -> bool:
        return self.machine.done or self.ended is not None

    def _question(self, party: str) -> bytes | None:
        """Wait until there is something to ask, or it is time for a heartbeat; None when all is over."""
        with self.changed:
            self.changed.wait_for(lambda: self._over or self.machine.request(party) is not None, self.heartbeat)
            if self._over:
                return None
            return self.machine.request(party) or self.machine.heartbeat(party)
