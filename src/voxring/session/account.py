"""What a party writes into its ledger about a study and a session, and what it refuses because of what stands there.

The entries of a ledger, by kind:

    opened      whose ledger it is; a hash that the salt must fit
    approval    the study's digest, what was shown of it, and how the operator agreed
    session     the researcher has said hello: session, study, digest, participants, protocol version
    budget      how much ε and δ this hospital may spend in all, from then on
    brought     what this party is about to bring, as hashes (`voxring.session.differencing`), before any share leaves;
                under differential privacy, what that spends; that of landmarks, where parties agree on them, comes
                before
    phase       n or μ of the released classes came, before the shares that answer them leave; n of each class; or the
                standard scale came, or the weights of a step of a logistic regression, of which a SHA-256 is kept
    end         how the session ended and why, and of which sums this party gave shares

`phase` and `end` list the messages sent since the entry before: kind, receiver, bytes, SHA-256 of the frame and how
often; and of the chunks that one receiver got in one sum, their bytes and the SHA-256 of their heads. All entries are
written while the party answers the researcher, which the parties do side by side, and none while a share goes round.

A run counts, when the next is judged, from `brought` on, unless its `end` says that no share was given. So does what
it spends: noise is drawn anew in every session, also when the researcher starts over or the same study runs again, and
each that gave a share is charged in full, however it ended.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import msgspec

from voxring.errors import LocalProtocolError, PeerError, RemoteProtocolError, StudyError
from voxring.privacy import Budget, cost
from voxring.ring.message import VERSION, decode
from voxring.session import bodies
from voxring.session.differencing import Brought, brought, brought_landmarks, objection
from voxring.session.ledger import Entry, Ledger, parties_with_ledger
from voxring.session.party import NOBODY, Party
from voxring.study import Study
from voxring.totals import LocalTotals

DIGITS = 12
"""So many digits of a study's digest, at least, stand for it where an operator types it."""

Sent = tuple[str, str, int, str, int]


class Approval(msgspec.Struct, frozen=True):
    """An operator agreed to a study; ``sheet`` is the SHA-256 of the disclosure sheet that was shown, if one was."""

    study: str
    digest: str
    participants: tuple[str, ...]
    how: str
    sheet: str = ""


class Begun(msgspec.Struct, frozen=True):
    """A session began."""

    session: str
    study: str
    digest: str
    participants: tuple[str, ...]
    protocol: int


class Spending(msgspec.Struct, frozen=True):
    """ε and δ, as fractions in lowest terms, such as "1/2"."""

    epsilon: str
    delta: str = "0"

    @classmethod
    def of(cls, budget: Budget) -> Spending:
        """Write a budget down."""
        return cls(str(budget.epsilon), str(budget.delta))

    @property
    def budget(self) -> Budget:
        """The budget that was written down."""
        return Budget(Fraction(self.epsilon), Fraction(self.delta))


class Bringing(msgspec.Struct, frozen=True):
    """What a party is about to bring; ``overruled`` are the objections to it, and ``reason`` why they were; ``skipped``
    is how many images were left out, which the researcher is told, but not under differential privacy; ``spends`` is
    there under differential privacy alone.
    """

    session: str
    brought: Brought
    overruled: tuple[str, ...] = ()
    reason: str = ""
    skipped: int = 0
    spends: Spending | msgspec.UnsetType = msgspec.UNSET


class Phase(msgspec.Struct, frozen=True):
    """The standard scale came, or the released classes' n, or then their μ, or the weights of a step.

    ``n`` is of all parties together; ``weights`` is the SHA-256 of the message's body.
    """

    session: str
    phase: str
    n: dict[str, int]
    sent: tuple[Sent, ...]
    weights: str | msgspec.UnsetType = msgspec.UNSET


class End(msgspec.Struct, frozen=True):
    """How a session ended: done, failed here, or aborted by the researcher."""

    session: str
    outcome: str
    reason: str
    given: tuple[str, ...]
    sent: tuple[Sent, ...]


class NoAccount:
    """Keeps no ledger: for simulations, in which every party is this machine's."""

    skipped = 0
    """Images that were left out since they cannot be used: told to the researcher."""

    def check_approved(self) -> None:
        """Let every study pass."""

    def admit_landmarks(self, session: bytes, landmarks: LocalTotals) -> None:
        """Let all landmarks pass."""

    def take_scale(self, agreed: Study) -> None:
        """Note nothing."""

    def admit(self, session: bytes, totals: LocalTotals) -> None:
        """Let all totals pass."""

    def sends(self, frame: bytes) -> None:
        """Note nothing."""

    def passed(self, receiver: str, size: int, heads: str) -> None:
        """Note nothing."""

    def answered(self, party: Party, frame: bytes) -> None:
        """Note nothing."""

    def ended(self, party: Party) -> None:
        """Note nothing."""


class Account(NoAccount):
    """A party's account of one study in its ledger. Must be called by one thread at a time.

    Parameters
    ----------
    ledger : Ledger
        This party's own.
    study : Study
        With its parties.
    command : str
        What approves the study, for the error if nobody has.
    allow_differencing : str
        Why a run may tell the numbers of a few by its difference from an earlier one; empty: it must not.
    """

    def __init__(self, ledger: Ledger, study: Study, *, command: str = "", allow_differencing: str = "") -> None:
        self.ledger, self._study, self._reason = ledger, study, allow_differencing.strip()
        self._command = command or f"voxring party approve STUDY --name {ledger.party}"
        self._agreed = study
        self._patients: tuple[LocalTotals, ...] = ()
        self._landmarks: tuple[LocalTotals, ...] = ()
        self._session = NOBODY
        self._state = ""
        self._steps = 0
        self._admitted = NOBODY
        self._admitted_landmarks = NOBODY
        self._given: list[str] = []
        self._sent: Counter[tuple[str, str, int, str]] = Counter()

    # Approval.

    def approve(self, digest: str, *, how: str, sheet: str = "") -> None:
        """Note that the operator agrees to the study.

        Parameters
        ----------
        digest : str
            What the operator holds to be the study's digest, at least its first 12 digits.
        how : str
            Where it was said.
        sheet : str
            The disclosure sheet as it was shown.

        Raises
        ------
        StudyError
            It is the digest of something else; or the party is none of the study's; or the ledger cannot be written.
        """
        check_party(self._study, self.ledger.party)
        given = digest.strip().lower()
        if len(given) < DIGITS or not self._study.digest.startswith(given):
            raise StudyError(
                f"expected the study's digest, or at least its first {DIGITS} digits, to approve it, got another: "
                "nothing was approved; the file may not be the one that you have read: see voxring study disclose"
            )
        shown = hashlib.sha256(sheet.encode()).hexdigest() if sheet else ""
        study = self._study
        self.ledger.append("approval", Approval(study.name, study.digest, study.parties, how, shown))

    def check_approved(self) -> None:
        """Refuse a study that nobody has approved here, or whose file has changed since, and a ledger that was changed.

        Raises
        ------
        StudyError
            Says how to approve it; or what is wrong with the ledger.
        """
        entries = self.ledger.verified() if self.ledger.exists else []
        approvals = [_content(entry, Approval) for entry in entries if entry.kind == "approval"]
        approved = any(approval.digest == self._study.digest for approval in approvals)
        if not approved:
            raise StudyError(
                f"{self.ledger.party} has not approved study {self._study.digest[:DIGITS]}; an approval is for a study "
                f"file as it was then. To read who would learn what, and approve it: {self._command}"
            )

    # What is brought.

    def add_up(self, patients: Iterable[LocalTotals], skipped: int = 0) -> LocalTotals:
        """Return the sum of all patients' totals, and keep what is needed to tell whether they may be brought.

        ``skipped`` is how many images were left out of them.
        """
        self._patients, self.skipped = tuple(patients), skipped
        return sum(self._patients, LocalTotals())

    def add_up_landmarks(self, patients: Iterable[LocalTotals]) -> LocalTotals:
        """Return the sum of all patients' landmarks, and keep what `add_up` keeps of totals."""
        self._landmarks = tuple(patients)
        return sum(self._landmarks, LocalTotals())

    def admit_landmarks(self, session: bytes, landmarks: LocalTotals) -> None:
        """Note which landmarks this party is about to bring; errors as of `admit`."""
        if landmarks != sum(self._landmarks, LocalTotals()):
            raise LocalProtocolError("the landmarks are not those that were added up for the ledger")
        self._admit(session, brought_landmarks(self._study, self._landmarks, self.ledger.token))
        self._admitted_landmarks = session

    def take_scale(self, agreed: Study) -> None:
        """Take the study with the standard scale, by which the totals that follow are computed."""
        self._agreed = agreed

    def admit(self, session: bytes, totals: LocalTotals) -> None:
        """Note what this party is about to bring to a session; must come before anything that depends on an image.

        Raises
        ------
        StudyError
            It would tell the numbers of a few by its difference from an earlier run; or it cannot be noted.
        LocalProtocolError
            The totals are not those that were added up here.
        """
        if totals != sum(self._patients, LocalTotals()):
            raise LocalProtocolError("the totals are not those that were added up for the ledger")
        mine = brought(self._agreed, self._patients, self.ledger.token)
        self._admit(session, msgspec.structs.replace(mine, digest=self._study.digest))
        self._admitted = session

    def _admit(self, session: bytes, mine: Brought) -> None:
        noisy = self._study.differential_privacy is not None

        def judge(entries: Sequence[Entry]) -> Bringing:
            self._check_budget(entries)
            # Noise hides one patient, also by a difference; and a refusal for that would tell of one.
            objections = [] if noisy else _objections(entries, mine)
            if objections and not self._reason:
                raise StudyError(
                    "the difference between this run and an earlier one would tell the numbers of a few. "
                    f"{objections[0]}. Run with the images and hospitals of then, or with many more or fewer; or, "
                    "where that does no harm, overrule it with --allow-differencing REASON, which the ledger keeps"
                )
            why = self._reason if objections else ""
            spends = Spending.of(cost(self._study)) if noisy else msgspec.UNSET
            return Bringing(session.hex(), mine, tuple(objections), why, self.skipped, spends)

        self.ledger.append_judged("brought", judge)

    # What is spent.

    def set_budget(self, budget: Budget) -> None:
        """Note how much this hospital may spend in all, with what is spent already; it holds until another is noted.

        Raises
        ------
        StudyError
            The ledger cannot be written.
        """
        entries = self.ledger.verified() if self.ledger.exists else []
        if budget_of(entries) != budget:
            self.ledger.append("budget", Spending.of(budget))

    def check_budget(self) -> None:
        """Refuse a study that would spend more than is left, before anybody computes for it.

        Raises
        ------
        StudyError
            The study's own runs are used up, or this hospital's budget is, or the study has no noise and there is one.
        """
        self._check_budget(self.ledger.verified() if self.ledger.exists else [])

    def _check_budget(self, entries: Sequence[Entry]) -> None:
        study, budget = self._study, budget_of(entries)
        if study.differential_privacy is None:
            if budget is not None:
                raise StudyError(
                    f"{self.ledger.party} has a budget for differential privacy, {budget}, and study "
                    f"{study.digest[:DIGITS]} releases exact numbers, which no budget covers: take part with a study "
                    "that has [differential_privacy], or with another state folder"
                )
            return
        runs, allowed = len(_charged(entries, study.digest)), study.differential_privacy.runs
        if runs >= allowed:
            raise StudyError(
                f"study {study.digest[:DIGITS]} may run {_times(allowed)} here (differential_privacy.runs), and shares "
                f"of {_times(runs)} are given: noise is drawn anew each time, and would average out. A study with more "
                "runs, or a larger epsilon, is another study, and must be approved"
            )
        together = spent(entries) + cost(study)
        if budget is not None and not budget.covers(together):
            raise StudyError(
                f"{self.ledger.party} may spend {budget}, and has spent {spent(entries)}; a run of study "
                f"{study.digest[:DIGITS]} spends {cost(study)}: raise the budget with --budget, if that is decided"
            )

    # What is sent and heard.

    def sends(self, frame: bytes) -> None:
        """Note a frame that is about to leave.

        Raises
        ------
        LocalProtocolError
            It holds or announces a share, and nothing was admitted to its session.
        """
        message = decode(frame, limit=len(frame))
        share = message if message.kind in ("share", "stream", "door") else None
        if message.kind == "status" and (handed_over := bodies.read_status(message.body).share):
            share = decode(handed_over, limit=len(handed_over))
        if share is not None:
            landmarks = share.sum in ("images", "landmarks")
            if share.session != (self._admitted_landmarks if landmarks else self._admitted):
                raise LocalProtocolError("a share is given after what it is made of was admitted")
            if share.sum not in self._given:
                self._given.append(share.sum)
        if message.kind == "refused":
            self._sent["refused", "", 0, ""] += 1  # whoever asks without end must not fill the disk
        else:
            self._sent[message.kind, message.receiver, len(frame), hashlib.sha256(frame).hexdigest()] += 1

    def passed(self, receiver: str, size: int, heads: str) -> None:
        """Note chunks that have left: how many bytes, and the SHA-256 of their heads."""
        self._sent["chunks", receiver, size, heads] += 1

    def answered(self, party: Party, frame: bytes) -> None:
        """Note an answer that is about to leave, and what the party has come to know.

        Raises
        ------
        StudyError
            It cannot be noted: the answer must not leave.
        """
        if party.session != self._session:
            self._begin(party)
        self.sends(frame)
        before, self._state = self._state, party.state
        if party.state != before and (party.state in ("released", "averaged") or (before, party.state) in _TOLD):
            phase = Phase(self._session.hex(), _PHASES[party.state], dict(party.counts), self._take_sent())
            self.ledger.append("phase", phase)
        if party.state == "stepping" and len(party.steps) > self._steps:
            self._steps = len(party.steps)
            weights = hashlib.sha256(party.steps[-1]).hexdigest()
            name = f"weights {self._steps}"
            self.ledger.append(
                "phase", Phase(self._session.hex(), name, dict(party.counts), self._take_sent(), weights)
            )

    def ended(self, party: Party) -> None:
        """Note how a session ended.

        Raises
        ------
        StudyError
            It cannot be noted.
        """
        # What others say holds no path; what went wrong here may, and the researcher was told less.
        others = isinstance(party.error, PeerError | RemoteProtocolError)
        self._end(party.state, str(party.error) if others else party.reason)

    def _end(self, outcome: str, reason: str) -> None:
        if self._session == NOBODY:
            return
        end = End(self._session.hex(), outcome, reason, tuple(self._given), self._take_sent())
        self.ledger.append("end", end)
        self._session = NOBODY

    def _begin(self, party: Party) -> None:
        self._end("failed", "another session began")
        study = self._study
        begun = Begun(party.session.hex(), study.name, study.digest, study.parties, VERSION)
        self.ledger.append("session", begun)
        self._session, self._given, self._steps = party.session, [], 0

    def _take_sent(self) -> tuple[Sent, ...]:
        sent = tuple((*message, times) for message, times in self._sent.items())
        self._sent.clear()
        return sent


_TOLD = (("counted", "spread"), ("levelled", "computing"))
_PHASES = {"computing": "standard scale", "released": "n", "averaged": "μ", "spread": "n"}


def check_party(study: Study, name: str) -> None:
    """Refuse a name that is none of the study's parties.

    Raises
    ------
    StudyError
        Says who they are.
    """
    if name not in study.parties:
        named = f"has the parties {', '.join(study.parties)}" if study.party else "names no parties yet"
        raise StudyError(f"the study {named}; {name!r} is none of them")


def party_of(study: Study, state: str | Path) -> str:
    """Return the one party of a study whose ledger is under a state folder.

    Raises
    ------
    StudyError
        There is none, or there are several.
    """
    here = [name for name in parties_with_ledger(state) if name in study.parties]
    if len(here) != 1:
        raise StudyError(f"{len(here)} parties of the study have a ledger here: say with --name which this is")
    return here[0]


def spent(entries: Sequence[Entry]) -> Budget:
    """What a party has spent by its ledger: the sum over all sessions of noisy studies in which it gave a share."""
    return sum((one.budget for one in _charged(entries)), Budget(Fraction(0)))


def budget_of(entries: Sequence[Entry]) -> Budget | None:
    """How much a party may spend by its ledger, or None where nobody has said it."""
    noted = [_content(entry, Spending) for entry in entries if entry.kind == "budget"]
    return noted[-1].budget if noted else None


def exact_runs(entries: Sequence[Entry]) -> int:
    """In how many sessions of studies without noise a party gave a share; no ε tells what those told."""
    return sum(one.spends is msgspec.UNSET for one in _given(entries))


def _charged(entries: Sequence[Entry], digest: str | None = None) -> list[Spending]:
    """What each session spent, of one study or of all."""
    of_all = [one for one in _given(entries) if digest in (None, one.brought.digest)]
    return [one.spends for one in of_all if one.spends is not msgspec.UNSET]


def _given(entries: Sequence[Entry]) -> list[Bringing]:
    """What was brought to sessions in which a share was given, or may have been."""
    without_share = _without_share(entries)
    brought_to = [_content(entry, Bringing) for entry in entries if entry.kind == "brought"]
    return [one for one in brought_to if one.session not in without_share]


def _without_share(entries: Sequence[Entry]) -> set[str]:
    ends = [_content(entry, End) for entry in entries if entry.kind == "end"]
    return {end.session for end in ends if not end.given}


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _objections(entries: Sequence[Entry], new: Brought) -> list[str]:
    """Say what speaks against a run, run by run."""
    without_share = _without_share(entries)
    found = []
    for entry in entries:
        if entry.kind != "brought":
            continue
        earlier = _content(entry, Bringing)
        if earlier.session in without_share:
            continue
        why = objection(earlier.brought, new)
        if why is not None:
            study = f"study {earlier.brought.study!r}, {earlier.brought.digest[:DIGITS]}"
            found.append(f"Entry {entry.sequence} of the ledger, {entry.time[:10]}, {study}: {why}")
    return found


Content = TypeVar("Content", Approval, Bringing, End, Spending)


def _content(entry: Entry, kind: type[Content]) -> Content:
    try:
        return msgspec.json.decode(entry.content, type=kind)
    except msgspec.MsgspecError:
        raise StudyError(
            f"entry {entry.sequence} of the ledger: expected the fields of {entry.kind!r}, got others: "
            "use the release of voxring that wrote it, or a later one"
        ) from None
