"""A party as a process: its state machine behind a listener, its successors at the ends of links, and a clock."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

from voxring.errors import PeerError, RemoteProtocolError, StudyError, VoxringError
from voxring.net import Asking, Ear, Network, Presence, PrivateKey, Streams
from voxring.net.address import beside, port_of
from voxring.ring.order import RESEARCHER
from voxring.session.account import Account, NoAccount, check_party
from voxring.session.chunked import passing, ways_of
from voxring.session.coins import CoinFile
from voxring.session.party import ENDED, Heard, Party
from voxring.study import AtWeights, Study
from voxring.totals import LocalTotals

LONG_POLL = 0.5  # seconds that a poll without news is held back
TICK = 0.1  # seconds between looks at the clock
GRACE = 3.0  # seconds for a closed connection to come back
_NOT_ADMITTED = "its ledger does not allow this run beside an earlier one, or cannot be written"
COMPUTES = ("computing", "stepping")
"""States in which a party that has summed before reads its images again."""
LATER = 1.0  # seconds after the timeout, for streams: a peer that hangs is first missed, and named, by who asks it


def grace(timeout: float) -> float:
    """Seconds for a closed connection to come back, within any timeout."""
    return min(GRACE, timeout / 2)


def run_party(
    study: Study,
    name: str,
    local_totals: Callable[[], LocalTotals] | InTwoPasses,
    *,
    step: Callable[[AtWeights], LocalTotals] | None = None,
    state: str | Path | None,
    ledger: Account | None = None,
    address: str | None = None,
    peers: Mapping[str, str] | None = None,
    key: PrivateKey | None = None,
    keys: Mapping[str, str] | None = None,
    relay: str | None = None,
    timeout: float = 60.0,
    insecure: bool = False,
    notify: Callable[[str], None] = lambda what: None,
    hears: Callable[[str], None] = lambda peer: None,
    listening: Callable[[str], Mapping[str, str] | None] = lambda address: None,
) -> Heard:
    """Take part in a study as one party, from listening to the end.

    Parameters
    ----------
    study : Study
        With its parties.
    name : str
        Which of them this is.
    local_totals : callable or InTwoPasses
        Reads the images; runs in this thread when the researcher is there, while the listener answers heartbeats. A
        study whose landmarks are to be agreed takes two passes.
    step : callable, optional
        Reads the images again, at the weights of a step of the logistic regression; for a study that asks for one.
    state : path, or None
        Folder in which the party keeps the coin of the study (`voxring.session.coins`). None keeps it nowhere: the next
        run has new rings, which is for simulations alone.
    ledger : Account, optional
        The party's account of the study in its ledger: the study must be approved there, ``local_totals`` returns what
        its `Account.add_up` made, and a run that would tell the numbers of a few by its difference from an earlier one
        is refused. None keeps none, which is for simulations alone.
    address : str, optional
        Where to listen, instead of the study's address; ``tcp://HOST:0`` takes a free port.
    peers : mapping of name to address, optional
        Where parties are found, instead of the study's addresses.
    key : PrivateKey, optional
        This party's, for a study with keys: links are sealed.
    keys : mapping of name to public key, optional
        Instead of the study's, for simulations.
    relay : str, optional
        Instead of the study's: the party dials it and listens nowhere. An empty one means none.
    timeout : float
        Seconds without the researcher, or without an answer of the next party, after which the party ends.
    insecure : bool
        Links of a study without keys are in the clear; must be asked for.
    notify : callable
        Gets the phases in plain words, in this thread.
    hears : callable
        Gets the name of a member whenever one is heard, in any thread; must be quick.
    listening : callable
        Called once with the address bound; may return addresses that replace ``peers``.

    Raises
    ------
    StudyError
        The study has no such party, or no usable address; or the key is not this party's; or the coin or the ledger
        cannot be read or kept; or the ledger holds no approval of the study, or does not allow the run.
    PeerError
        The researcher or a next party was not there in time, went away, ended the session, or has another key.
    BoundError
        This party's totals leave the study's bounds; nothing was sent.
    ProtocolError
        The researcher's messages did not fit.
    """
    check_party(study, name)
    if study.agrees != isinstance(local_totals, InTwoPasses):
        raise StudyError("a study whose landmarks are to be agreed is computed in two passes, any other in one")
    if (study.logistic is not None) != (step is not None):
        raise StudyError("a study with a logistic regression takes what computes its steps, any other does not")
    account = ledger or NoAccount()
    account.check_approved()
    network = Network.of(study, name, key=key, keys=keys, relay=relay, insecure=insecure)
    if network.relay and address:
        raise StudyError(f"{name}: an address and a relay: over a relay no party listens: leave one of them out")
    own = network.address(name, address or _address_of(study, name))
    party = _party(study, name, state, sealed=network.ring is not None)
    process = _Process(party, network, timeout, notify, account)
    with (
        network.listen(own, process.answer, process.closed, max_frame=party.plan.largest_frame) as ear,
        process.open_doors(own, ear.address, relayed=bool(network.relay)),
    ):
        process.ear, process.hears = ear, hears
        notify(f"listening {'through the relay' if network.relay else 'at'} {ear.address}")
        peers = listening(ear.address) or peers or {}
        # Any of them may stand behind this party: the coin decides.
        where = {
            other: network.address(other, peers.get(other) or _address_of(study, other))
            for other in study.parties
            if other != name
        }
        return process.run(local_totals, step, where)


def _party(study: Study, name: str, state: str | Path | None, *, sealed: bool) -> Party:
    if state is None:
        return Party(study, name, secrets.token_bytes, sealed=sealed)
    file = CoinFile(state, study, name)
    kept = file.read()
    coin, used = (None, False) if kept is None else (kept.value, kept.used)
    return Party(study, name, secrets.token_bytes, coin=coin, used=used, keep=file.keep, use=file.use, sealed=sealed)


def _address_of(study: Study, name: str) -> str:
    return next((party.address for party in study.party if party.name == name), "")


@dataclass(frozen=True)
class InTwoPasses:
    """What a party computes in a study whose parties agree on landmarks: those of its images, then totals by the study
    that has the agreed ones.
    """

    landmarks: Callable[[], LocalTotals]
    totals: Callable[[Study], LocalTotals]


class _StartedOverError(Exception):
    """The researcher has started over."""


class _Process:
    """The listener's threads and the party's own meet here; ``changed`` guards the state machine."""

    def __init__(
        self, party: Party, network: Network, timeout: float, notify: Callable[[str], None], account: NoAccount
    ) -> None:
        self.party, self.network, self.timeout, self.notify, self.account = party, network, timeout, notify, account
        self.ear: Ear | None = None
        self.streams: Streams | None = None
        self.hears: Callable[[str], None] = lambda peer: None
        self.changed = threading.Condition()
        self.researcher = Presence(timeout, grace(timeout))
        self._gone: list[int] = []  # connections that closed; nng's thread only appends
        self._landmarks: LocalTotals | None = None
        self._totals: LocalTotals | None = None
        self._scale: tuple[Fraction, ...] = ()
        """The standard scale that the totals were computed by."""
        self._attempt = 0
        self._reason = ""
        """Why this party ends, should it end now."""

    # Called by the listener's threads.

    def answer(self, frame: bytes, pipe: int, peer: str | None) -> bytes:
        """Answer a frame of a member, known if there are keys; hold back the answer to a poll that waits for news."""
        until = time.monotonic() + LONG_POLL
        with self.changed:
            while (answer := self.party.answer(frame, peer, patient=time.monotonic() < until)) is None:
                self.researcher.heard(pipe, time.monotonic())
                self.changed.wait(max(0.0, until - time.monotonic()))
            if answer.sender is not None:
                self.hears(answer.sender)
            if answer.sender == RESEARCHER:
                self.researcher.heard(pipe, time.monotonic())
            answered = self._noted(frame, answer.frame)
            self.changed.notify_all()
            return answered

    def _noted(self, frame: bytes, answered: bytes) -> bytes:
        """Have an answer noted before it leaves; if that fails, the party has failed, and says so instead."""
        try:
            self.account.answered(self.party, answered)
        except VoxringError as error:
            self.party.fail("it cannot write its ledger")
            self.party.error = error
            return self.party.refusal(frame)
        return answered

    def closed(self, pipe: int) -> None:
        """Note that a connection closed, for `_look` to find."""
        self._gone.append(pipe)

    # Called by the party's own thread.

    @contextmanager
    def open_doors(self, own: str, bound: str, *, relayed: bool = False) -> Iterator[None]:
        """Listen for streams, if a sum may need them: at the ports after that for messages, or where that is free.

        Through a relay nobody listens: all doors are the relay's.
        """
        if relayed:
            self.party.doors = (0,) * (self.party.plan.ring_count + 1)
        if relayed or not self.party.plan.may_stream:
            yield
            return
        first = beside(own, 1) if port_of(own) else own
        with Streams(first, self.party.plan.ring_count) as self.streams:
            self.party.doors = tuple(port_of(door) - port_of(bound) for door in self.streams.addresses)
            yield

    def run(
        self,
        local_totals: Callable[[], LocalTotals] | InTwoPasses,
        step: Callable[[AtWeights], LocalTotals] | None,
        where: Mapping[str, str],
    ) -> Heard:
        """Go from waiting to done; ``where`` are the addresses of the other parties."""
        try:
            while not self._session(local_totals, step, where):
                self.notify("starting over")
            heard = self.party.heard()
        finally:
            # After an error this tells the researcher why; after success it lets the last answer get out.
            with self.changed:
                self.party.fail(self._reason)
                self.changed.notify_all()
            self._linger()
            with self.changed:
                self.account.ended(self.party)
        self.notify("done")
        return heard

    def _session(
        self,
        local_totals: Callable[[], LocalTotals] | InTwoPasses,
        step: Callable[[AtWeights], LocalTotals] | None,
        where: Mapping[str, str],
    ) -> bool:
        """Go from waiting to done; False when the researcher starts over."""
        self._attempt = self.party.attempt
        self._reason = "it was stopped"
        try:
            with ExitStack() as stack:
                self._wait_for_researcher()
                self._wait_for_coin()
                links = {name: self._link(name, where[name], stack) for name in self._successors()}
                for link in links.values():
                    with self._may_lose(link.peer):
                        link.wait(self.timeout)
                if isinstance(local_totals, InTwoPasses):
                    self._survey(local_totals.landmarks)
                    self._sum(links, where)
                    self._compute(partial(local_totals.totals, self._agreed()))
                else:
                    self._compute(local_totals)
                self._sum(links, where)
                while step is not None and self.party.state == "stepping":
                    self._step(step)
                    self._sum(links, where)
        except _StartedOverError:
            return False
        return True

    def _survey(self, landmarks: Callable[[], LocalTotals]) -> None:
        if self._landmarks is None:
            self.notify("finding the landmarks of its images")
            self._reason = "it stopped while finding its landmarks"
            self._landmarks = landmarks()
        self._bring(self._landmarks, self.account.admit_landmarks, self.party.supply_landmarks)

    def _agreed(self) -> Study:
        """Return the study with the standard scale; totals by another, of a session that failed, are dropped."""
        with self.changed:
            self._look()
            if self.party.scale != self._scale:
                self._scale, self._totals = self.party.scale, None
            agreed = self.party.agreed
            self.account.take_scale(agreed)
            return agreed

    def _sum(self, links: Mapping[str, Asking], where: Mapping[str, str]) -> None:
        """Take part in secure sums until the party computes again, or the session is done."""
        while self._next():
            if self.party.outbox:
                self._send(links)
            else:
                self._carry(where)

    def _compute(self, local_totals: Callable[[], LocalTotals]) -> None:
        if self._totals is None:
            self.notify("computing local totals")
            self._reason = "it stopped while computing its local totals"
            self._totals = local_totals()
        self._bring(self._totals, self.account.admit, lambda mine: self.party.supply(mine, self.account.skipped))

    def _bring(
        self, mine: LocalTotals, admit: Callable[[bytes, LocalTotals], None], supply: Callable[[LocalTotals], None]
    ) -> None:
        """Hand in what was computed, once the ledger admits it."""
        with self.changed:
            self._look()
            self._reason = _NOT_ADMITTED
            admit(self.party.session, mine)
            self._reason = "its numbers leave the study's bounds"
            supply(mine)
            self.changed.notify_all()
        self._reason = "it was stopped"

    def _step(self, step: Callable[[AtWeights], LocalTotals]) -> None:
        """Sum up this party's images at the weights that came: read again, since all their features are too many."""
        with self.changed:
            self._look()
            at = self.party.at
        if at is None:
            return
        self.notify(f"computing step {len(self.party.steps)} of the logistic regression")
        self._reason = "it stopped while computing a step of the logistic regression"
        totals = step(at)
        with self.changed:
            self._look()
            self._reason = "its images changed, or its numbers leave the study's bounds"
            self.party.supply_step(totals)
            self.changed.notify_all()
        self._reason = "it was stopped"

    def _wait_for_researcher(self) -> None:
        self.notify("waiting for the researcher")
        until = time.monotonic() + self.timeout
        with self.changed:
            while self.party.state == "waiting":
                self._look()
                if self._attempt == 0 and time.monotonic() > until:
                    remedy = (
                        ": agree on a time, let it through the firewall, or wait longer with --timeout; over a relay, "
                        "see that this machine's clock is right"
                    )
                    why = self._refused() + self._trouble() or remedy
                    raise PeerError(f"the researcher was not heard within {self.timeout:g} s{why}")
                self.changed.wait(TICK)

    def _wait_for_coin(self) -> None:
        with self.changed:
            while self.party.plan.coin is None:
                self._look()
                self.changed.wait(TICK)
            self._look()

    def _successors(self) -> list[str]:
        """Whom this party sends to, each once; the researcher asks for itself."""
        behind = [ring.successor(self.party.name) for ring in self.party.plan.rings]
        return [name for name in dict.fromkeys(behind) if name != RESEARCHER]

    @contextmanager
    def _may_lose(self, successor: str = "") -> Iterator[None]:
        """When a link or stream is lost, wait until the researcher starts over or ends the session."""
        try:
            yield
        except (PeerError, RemoteProtocolError) as error:
            self._reason = f"it lost {successor}, the next in a ring" if successor else str(error)
            until = time.monotonic() + self.timeout
            with self.changed:
                self._look()
                self.party.lose(self._reason)
                self.changed.notify_all()
                while self.party.state == "lost" and time.monotonic() < until:
                    self.changed.wait(TICK)
                    self._look()
            raise type(error)(str(error)) from None

    def _link(self, name: str, address: str, stack: ExitStack) -> Asking:
        largest = self.party.plan.largest_frame
        return stack.enter_context(
            closing(self.network.link(name, address, max_frame=largest, grace=grace(self.timeout)))
        )

    def _next(self) -> bool:
        """Wait until there is something to send; False when the session is done, or this party is to compute."""
        while True:
            with self.changed:
                if not self.party.news and not self._to_do and self.party.state not in (*ENDED, *COMPUTES):
                    self.changed.wait(TICK)
                self._look()
                news = list(self.party.news)
                self.party.news.clear()
                ready, done = self._to_do, self.party.state in ("done", *COMPUTES)
            for what in news:
                self.notify(what)
            if ready or done:
                return not done

    @property
    def _to_do(self) -> bool:
        """Whether there is something to send."""
        return bool(self.party.outbox) or (self.party.streamed is not None and self.party.streamed.ready)

    def _look(self) -> None:
        """Raise whatever ended the session."""
        self._note_closed()
        if self.party.attempt != self._attempt:
            raise _StartedOverError
        if self.party.error is not None:
            raise self.party.error
        missing = self.researcher.missing(time.monotonic())
        if missing is not None and self.party.state not in ENDED:
            raise PeerError(f"the researcher {missing}: the session has ended without a result{self._trouble()}")

    def _refused(self) -> str:
        reason = self.party.refused or (self.ear.refused() if self.ear else "")
        return reason and f"; last message refused: {reason}"

    def _trouble(self) -> str:
        trouble = self.ear.trouble() if self.ear else ""
        return trouble and f"; {trouble}"

    def _note_closed(self) -> None:
        while self._gone:
            self.researcher.closed(self._gone.pop(0), time.monotonic())

    def _send(self, links: Mapping[str, Asking]) -> None:
        with self.changed:
            self._look()
            successor, share = self.party.outbox[0]
            self.account.sends(share)
        with self._may_lose(successor):
            answer = links[successor].ask(share, self.timeout)
            self.hears(successor)
            with self.changed:
                self.party.delivered(answer)

    def _carry(self, where: Mapping[str, str]) -> None:
        """Pass a long vector on in chunks."""
        with self.changed:
            self._look()
            streamed = self.party.streamed
        if streamed is None:
            return
        plan, part = streamed.plan, streamed.part
        ways = ways_of(streamed, self.streams, where, self.network.relay, self.timeout + LATER)
        with (
            passing(plan, part, self.party.name, ways) as run,
            self._may_lose(),  # with the streams open: a neighbour that hangs up is taken for lost
        ):
            try:
                run(self._watch)
            finally:
                with self.changed:
                    for ring, (size, heads) in zip(plan.agreed.rings, part.passed, strict=True):
                        self.account.passed(ring.successor(self.party.name), size, heads)
            with self.changed:
                self._look()
                self.party.carried()
                self.changed.notify_all()

    def _watch(self) -> None:
        with self.changed:
            self._look()

    def _linger(self) -> None:
        """Wait, a short while, until the researcher has been told and hangs up: closing at once loses answers."""
        until = time.monotonic() + grace(self.timeout)
        with self.changed, suppress(KeyboardInterrupt):
            while time.monotonic() < until:
                self._note_closed()
                if not self.researcher.here or (self.party.state == "failed" and self.party.told):
                    break
                self.changed.wait(TICK / 5)
        time.sleep(TICK / 2)
