"""Algorithm 1 as the researcher, without I/O.

Theory of operation
-------------------
The researcher asks and the parties answer. `request` says what to ask a party next, or that there is nothing to ask
now; `take` gets its answer. Between questions `heartbeat` keeps the party from missing the researcher. Each step ends
when every party it needs has answered, so no message can be early anywhere:

    gathering   again to all, after a session that failed  -> greeting
    greeting    hello to all                    -> committing, or keeping or computing if all keep the same coin
    keeping     kept to all that never used it  -> surveying or computing
    committing  all commitments to all          -> opening
    opening     all openings to all             -> computing
    surveying   poll all until they are surveyed -> images, where the parties agree on landmarks; else left out
    images      ring; R learns how many         -> landmarks
    landmarks   ring; R learns their sums       -> scaling
    scaling     standard scale to all           -> computing
    computing   poll all until they are ready   -> voxels
    voxels      ring; R learns n and patients   -> releasing
    releasing   released classes and n to all   -> sum, or closing if there are none
    sum         ring; R learns sum              -> averaging
    averaging   μ to all                        -> sdsum
    sdsum       ring; R learns sdsum            -> closing, or statistics if the study asks for more
    statistics  ring; R learns what it asks for -> closing, or weighing if the study asks for a logistic regression
    weighing    weights of a step to all        -> stepping
    stepping    poll all until they are stepped -> step
    step        ring; R learns the step's sums  -> weighing, or closing when no step is left or needed
    closing     done to all that are there      -> done

In a ring step R sends a blinded share to the first party of each ring and polls the last until that hands over the
ring's end. For a long vector it asks first and last for a stream (`streamed`), and polls all until every chunk has
passed everywhere; `carried` gives it the total. R knows the rings when it knows the coin. If some parties keep a coin
and others another or none, a new one is drawn if none has used its own; else R ends the session, since the rings of a
study must not change (`voxring.session.coins`).

As long as R has not opened the first sum of classes, or in chunks any slot of it, nothing of them is known and a
session that failed may be followed by another, with fresh blinds and shares (`may_start_over`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from voxring.errors import LocalProtocolError, ModelError, PeerError, RemoteProtocolError, StudyError
from voxring.landmarks import SCALE, scale_of, too_few
from voxring.landmarks import fault as fault_of_landmarks
from voxring.learn.logistic import LOGISTIC, Newton, begin, fitted, goes_on, learned_of
from voxring.privacy import within_range
from voxring.ring.chunks import ChunkedSum, ChunkMaster
from voxring.ring.coin import coin_of, commitment
from voxring.ring.message import Kind, Message, decode, encode, step_name
from voxring.ring.order import RESEARCHER
from voxring.ring.protocol import Master, SecureSum
from voxring.ring.residues import Random
from voxring.ring.views import Number, Received, View
from voxring.session import bodies
from voxring.session.party import ENDED, TRANSITIONS
from voxring.session.plan import SESSION_BYTES, Plan
from voxring.session.streamed import Streamed
from voxring.statistics import fault, slots, unpack
from voxring.study import AtWeights, Study
from voxring.totals import Statistics, mean_of, sdsum_bound, withheld

# What all parties are told in a step, and the state that the ring's last party is in before a ring step.
BROADCAST: dict[str, Kind] = {
    "gathering": "again",
    "greeting": "hello",
    "keeping": "kept",
    "committing": "commitments",
    "opening": "openings",
    "scaling": "scale",
    "releasing": "released",
    "averaging": "means",
    "weighing": "weights",
    "closing": "done",
}
WAITS_FOR = {"surveying": "surveyed", "computing": "ready", "stepping": "stepped"}
"""Steps in which parties compute, and the state that they come to."""
BEFORE_RING = {
    "images": "surveyed",
    "landmarks": "numbered",
    "voxels": "ready",
    "sum": "released",
    "sdsum": "averaged",
    "statistics": "deviated",
    "step": "stepped",
}
NEXT = {
    "gathering": "greeting",
    "keeping": "computing",
    "committing": "opening",
    "opening": "computing",
    "surveying": "images",
    "images": "landmarks",
    "landmarks": "scaling",
    "scaling": "computing",
    "computing": "voxels",
    "voxels": "releasing",
    "releasing": "sum",
    "sum": "averaging",
    "averaging": "sdsum",
    "sdsum": "closing",
    "statistics": "closing",
    "weighing": "stepping",
    "stepping": "step",
    "step": "closing",
    "closing": "done",
}
PHASES = {
    "gathering": "while the parties were asked to start over",
    "greeting": "while the parties were greeted",
    "keeping": "while the parties were told that all keep the same coin",
    "committing": "while the coin was drawn",
    "opening": "while the coin was drawn",
    "surveying": "while the parties were finding their landmarks",
    "images": "in the secure sum of the number of images",
    "landmarks": "in the secure sum of landmarks",
    "scaling": "while the standard scale was sent",
    "computing": "while the parties were computing their totals",
    "voxels": "in the secure sum of n",
    "releasing": "while n was released",
    "sum": "in the secure sum of local means",
    "averaging": "while μ was sent",
    "sdsum": "in the secure sum of squared deviations",
    "statistics": "in the secure sum of additive statistics",
    "weighing": "while the weights of a step were sent",
    "stepping": "while the parties were computing a step of the logistic regression",
    "step": "in the secure sum of a step of the logistic regression",
    "closing": "while the session was closed",
    "done": "when the session was done",
}
"""Each step in words, for errors."""
BEFORE_CLASSES = ("images", "landmarks")
"""Sums that are opened before anything of a class is known."""


TOO_NOISY = "too few voxels for this epsilon: with noise, no mean and deviation of values of the study"


class Researcher:
    """One session of a study. Must be called by one thread at a time.

    ``failed`` are the sessions of this run that failed before this one; ``sealed`` is whether links are, so that
    streams have keys.
    """

    def __init__(self, study: Study, random: Random, failed: tuple[bytes, ...] = (), *, sealed: bool = False) -> None:
        self.plan, self._study, self._random, self._sealed = Plan(study), study, random, sealed
        self.session = random(SESSION_BYTES)
        self.failed = failed
        self.step = "gathering" if failed else "greeting"
        self._worth_while = True
        self.news: deque[str] = deque()
        self.standings: deque[tuple[str, str]] = deque()
        """What parties were heard to be at, in this order: who, and the state. The state may have passed meanwhile."""
        self._answered: set[str] = set()
        self._body = b"".join(failed)
        self._masters: dict[str, Master] = {}
        self._agreed: dict[str, SecureSum] = {}
        self._first_shares: dict[str, list[tuple[int, bytes]]] = {}
        self._taken: set[tuple[str, int]] = set()
        self.streamed: Streamed[ChunkMaster] | None = None
        """The sum that is going round in chunks, if one is."""
        self._total: Sequence[int] | None = None
        self._in_chunks: list[str] = []
        self._back: set[int] = set()
        self._coins: dict[str, bytes] = {}
        self._commitments: dict[str, bytes] = {}
        self._parts: dict[str, bytes] = {}
        self._withheld: dict[str, str] = {}
        self._found: dict[str, Statistics] = {}
        self._skipped: dict[str, int] = {}
        self._noisy = study.differential_privacy is not None
        self._learned: dict[tuple[str, str], Number] = {}
        self._images = self._patients = 0
        self.scale: tuple[Fraction, ...] = ()
        """The standard scale, once it was agreed."""
        self._counts: dict[str, int] = {}
        self._sums: dict[str, int] = {}
        self._means: dict[str, Fraction] = {}
        self._newton: Newton | None = None
        self._steps = 0
        """How many steps of the logistic regression have begun."""

    @property
    def may_start_over(self) -> bool:
        """Whether this session may be followed by another: nothing of a class has been opened, and it may help.

        Who does not come to be greeted, or to start over, is not waited for a second time.
        """
        opened = self.streamed is not None and self.streamed.part.opened
        return self._worth_while and not opened and self.step not in ("gathering", "greeting")

    @property
    def done(self) -> bool:
        """Whether the answer is there and every party knows."""
        return self.step == "done"

    @property
    def answer(self) -> dict[str, Statistics | str]:
        """Statistics of each class, or why it is withheld.

        Raises
        ------
        LocalProtocolError
            The session is not done.
        """
        if not self.done:
            raise LocalProtocolError(f"the answer is there when the session is done; this one is at {self.step!r}")
        return {name: self._found.get(name) or self._withheld[name] for name in self._study.classes}

    @property
    def view(self) -> View:
        """What the researcher has received and learned."""
        received = tuple(
            Received(name, ring, self._agreed[name].residues.modulus, tuple(residues), tuple(master.blinds[ring]))
            for name, master in self._masters.items()
            for ring, residues in master.received.items()
        )
        skipped: dict[tuple[str, str], Number] = {("skipped", name): n for name, n in self._skipped.items()}
        return View(RESEARCHER, received, self._learned | skipped, tuple(self._in_chunks))

    # What to ask.

    def request(self, party: str) -> bytes | None:
        """Return what to ask a party now, or None."""
        if self.step in BROADCAST:
            number = self._sum_name if self.step == "weighing" else ""
            return None if party in self._answered else self._ask(BROADCAST[self.step], party, self._body, number)
        if self.step in WAITS_FOR and party not in self._answered:
            return self._ask("poll", party, self.step.encode())
        if self.step in BEFORE_RING:
            for ring, share in self._first_shares.get(party, []):
                if (party, ring) not in self._taken:
                    return share
            if self.streamed is not None:
                return None if party in self._answered else self._ask("poll", party, BEFORE_RING[self.step].encode())
            if any(ring.last == party and number not in self._back for number, ring in enumerate(self.plan.rings)):
                return self._ask("poll", party, BEFORE_RING[self.step].encode())
        return None

    def lost(self, party: str) -> bool:
        """Say whether the session goes on without a party that is gone: at the end all that it misses is the end."""
        if self.step == "closing" and party not in self._answered:
            self.news.append(f"{party} was gone before it was told that the study is done")
            if self._all_answered(party):
                self._enter("done")
        return self.step in ("closing", "done")

    def heartbeat(self, party: str) -> bytes:
        """Return a poll that is answered at once."""
        return self._ask("poll", party, b"")

    def abort(self, party: str, reason: str) -> bytes:
        """Return the message that ends the session for a party; the reason must hold no value."""
        return self._ask("abort", party, bodies.write_reason(reason))

    @property
    def _sum_name(self) -> str:
        """The name of the sum of this step of the session, or of the one that its weights are for."""
        return step_name(self._steps) if self.step in ("weighing", "step") else self.step

    def _ask(self, kind: Kind, party: str, body: bytes, sum_name: str = "") -> bytes:
        return encode(
            Message(
                kind=kind,
                digest=self.plan.digest,
                session=self.session,
                sender=RESEARCHER,
                receiver=party,
                sum=sum_name,
                body=body,
            )
        )

    # What was answered.

    def take(self, party: str, frame: bytes) -> None:
        """Take a party's answer.

        Raises
        ------
        PeerError
            The party refused, or has ended.
        RemoteProtocolError
            The answer is malformed or not from this session.
        """
        try:
            self._take(party, decode(frame, limit=self.plan.largest_frame))
        except RemoteProtocolError as error:
            raise RemoteProtocolError(f"from {party}: {error}") from None

    def _take(self, party: str, answer: Message) -> None:
        if answer.kind == "refused":
            raise PeerError(f"{party} refused: {bodies.read_reason(answer.body)}")
        if (answer.digest, answer.session) != (self.plan.digest, self.session):
            raise RemoteProtocolError(f"{party} answered for another study or session")
        if (answer.sender, answer.receiver) != (party, RESEARCHER):
            raise RemoteProtocolError(f"expected an answer of {party}, got one of {answer.sender!r}")
        if answer.kind == "welcome":
            self._take_welcome(party, bodies.read_welcome(answer.body))
        elif answer.kind == "opening":
            self._take_opening(party, answer.body)
        elif answer.kind == "status":
            self._take_status(party, bodies.read_status(answer.body))
        elif answer.kind == "ok":
            self._take_ok(party, answer.body.decode("ascii", "replace"))
        elif answer.kind == "door":
            self._take_door(party, answer)
        else:
            raise RemoteProtocolError(f"{party} answered with a message {answer.kind!r}")

    def _take_welcome(self, party: str, welcome: bodies.Welcome) -> None:
        if self.step != "greeting":
            return  # the repeated answer to a question of an earlier step
        self.standings.append((party, "connected"))
        self._coins[party], self._commitments[party] = welcome.coin, welcome.commitment
        if not self._all_answered(party):
            return
        coin, used = self._coins[party], {name for name, mine in self._commitments.items() if not mine}
        if coin and len(set(self._coins.values())) == 1:
            self.plan = self.plan.with_coin(coin)
            self.news.append("the parties keep the coin of an earlier run")
            self._enter(self._first_work if len(used) == len(self._study.parties) else "keeping")
        elif not used:
            if any(self._coins.values()):
                self.news.append(
                    "not all parties kept the coin of an earlier run, which was never used: another is drawn"
                )
            self._enter("committing")
        else:
            self._worth_while = False
            raise PeerError(_different_coins({name: self._coins[name] for name in self._study.parties}))

    def _take_opening(self, party: str, part: bytes) -> None:
        if self.step != "committing":
            return
        if commitment(self.plan.digest, self.session, party, part) != self._commitments[party]:
            raise RemoteProtocolError(f"coin: {party} opened another part than it committed to: ask there why")
        self._parts[party] = part
        if self._all_answered(party):
            coin = coin_of(self.plan.digest, self.session, self._commitments, self._parts)
            self.plan = self.plan.with_coin(coin)
            self._enter("opening")

    def _take_ok(self, party: str, what: str) -> None:
        share, _, ring = what.rpartition(" ")
        if self.step in BEFORE_RING and share == f"share {self._sum_name}":
            self._taken |= {(party, number) for number, _ in self._first_shares.get(party, []) if str(number) == ring}
        number = f" {self._sum_name}" if self.step == "weighing" else ""
        if self.step not in BROADCAST or what != BROADCAST[self.step] + number:
            return  # the repeated answer to a question of an earlier step
        if self._all_answered(party):
            nothing_left = self.step == "releasing" and not self._counts
            following = self._first_work if self.step in ("keeping", "opening") else NEXT[self.step]
            self._enter("closing" if nothing_left else following)

    def _take_door(self, party: str, door: Message) -> None:
        if self.streamed is not None and door.sum == self._sum_name and (party, door.ring) not in self._taken:
            self.streamed.take(door)
            self._taken.add((party, door.ring))

    def _all_answered(self, party: str) -> bool:
        """Note that a party has done its part of the step; say whether all have."""
        self._answered.add(party)
        return len(self._answered) == len(self._study.parties)

    def _take_status(self, party: str, status: bodies.Status) -> None:
        if status.state == "lost":
            raise PeerError(f"{party} cannot go on: {bodies.read_reason(status.reason.encode())}")
        self._worth_while &= status.state not in ENDED
        self.standings.append((party, status.state))
        if status.state == "failed":
            raise PeerError(f"{party} ended the session: {bodies.read_reason(status.reason.encode())}")
        if status.state == "aborted":
            raise PeerError(f"{party} was told to end the session")
        if self.step == "computing" and status.state == "ready" and status.skipped and party not in self._skipped:
            self._skipped[party] = status.skipped
            self.news.append(f"{party} left out {status.skipped} of its images, which cannot be used")
        if status.state == WAITS_FOR.get(self.step) and self._all_answered(party):
            self._enter(NEXT[self.step])
        if (
            self.streamed is not None
            and status.state == TRANSITIONS[BEFORE_RING[self.step], self.plan.share_event(self.step, len(self._counts))]
        ):
            self._all_answered(party)
            self._finish_if_all_carried()
        if status.share:
            self._take_share(party, decode(status.share, limit=self.plan.largest_frame))

    def _take_share(self, party: str, share: Message) -> None:
        last = self.plan.rings[share.ring].last if share.ring < len(self.plan.rings) else "nobody"
        if party != last:
            raise RemoteProtocolError(f"{party} handed over a share, but {last} is last in the ring")
        if share.sum not in self._masters:
            raise RemoteProtocolError(f"{party} handed over a share of {share.sum!r} before it was asked for")
        master = self._masters[share.sum]
        master.receive(share)
        if share.sum == self._sum_name:
            self._back.add(share.ring)
            if master.state == "done":
                self._worth_while &= self.step in BEFORE_CLASSES
                self._finish(master.total)

    def carried(self, total: Sequence[int]) -> None:
        """Take the total of the sum that goes in chunks, after every chunk is back."""
        self._worth_while &= self.step in BEFORE_CLASSES
        self._in_chunks.append(self._sum_name)
        self._total = total
        self._finish_if_all_carried()

    def _finish_if_all_carried(self) -> None:
        """Go on when the total is there and every party has passed on all chunks, so that it takes what comes next."""
        if self._total is not None and len(self._answered) == len(self._study.parties):
            total, self._total, self.streamed = self._total, None, None
            self._finish(total)

    # Steps.

    def _enter(self, step: str) -> None:
        self.step, self._answered, self._body = step, set(), b""
        if step == "keeping":
            self._body = self.plan.known_coin
            self._answered = {name for name, mine in self._commitments.items() if not mine}  # knows it
        elif step == "committing":
            self._body = self._by_party(self._commitments)
        elif step == "opening":
            self._body = self._by_party(self._parts)
        elif step == "surveying":
            self.news.append("parties are finding the landmarks of their images")
        elif step == "images":
            self._open(self.plan.images(self.session))
        elif step == "landmarks":
            self._open(self.plan.landmarks(self.session))
        elif step == "scaling":
            self._body = bodies.write_scale(self.scale)
            self.news.append("standard scale sent")
        elif step == "computing":
            self.news.append("parties are computing their totals")
        elif step == "voxels":
            self._open(self.plan.voxels(self.session))
        elif step == "releasing":
            self._body = bodies.write_counts(self._counts)
        elif step == "sum":
            self._open(self.plan.sums(self.session, list(self._counts)))
        elif step == "averaging":
            self._body = bodies.write_means(self._means)
            self.news.append("μ sent")
        elif step == "sdsum":
            self._open(self.plan.sdsums(self.session, self._means))
        elif step == "statistics":
            self._open(self.plan.statistics(self.session, list(self._counts)))
        elif step == "weighing" and self._newton is not None:
            self._steps += 1
            self._body = bodies.write_weights(self._newton.rows)
            self.news.append(f"weights sent: {self._sum_name}")
        elif step == "step":
            self._open(self.plan.step(self.session, self._steps, self._at))
        elif step == "done":
            self.news.append("done")

    def _by_party(self, parts: Mapping[str, bytes]) -> bytes:
        return bodies.write_parts({name: parts[name] for name in self._study.parties})

    def _open(self, agreed: SecureSum) -> None:
        self._first_shares, self._taken, self._back = {}, set(), set()
        self.news.append(f"secure sum: {agreed.name}")
        if self.plan.in_chunks(agreed):
            plan = ChunkedSum(agreed)
            part = ChunkMaster(plan, self._random)
            self.streamed = Streamed(plan, RESEARCHER, part, sealed=self._sealed, random=self._random)
            for ring in range(len(agreed.rings)):
                for party, question in self.streamed.questions(ring):
                    self._first_shares.setdefault(party, []).append((ring, question))
            return
        master = Master(agreed, [0] * agreed.values, self._random)
        self._masters[agreed.name], self._agreed[agreed.name] = master, agreed
        for share in master.start():
            self._first_shares.setdefault(share.receiver, []).append((share.ring, encode(share)))

    def _finish(self, total: Sequence[int]) -> None:
        """A ring is back; lines 14 to 16 and 26."""
        if self.step == "images":
            self._finish_images(*total)
        elif self.step == "landmarks":
            self._finish_landmarks(total)
        elif self.step == "voxels":
            self._finish_voxels(total)
        elif self.step == "sum":
            self._finish_sum(total)
        elif self.step == "sdsum":
            self._finish_sdsum(total)
        elif self.step == "statistics":
            self._finish_statistics(total)
        else:
            self._finish_step(total)
        if self.step == "sdsum" and self.plan.more:
            self._enter("statistics")
        elif self._newton is not None and goes_on(self._newton, self._study):
            self._enter("weighing")
        else:
            self._learn_weights()
            self._enter(NEXT[self.step])

    @property
    def _first_work(self) -> str:
        """What the parties compute first."""
        return "surveying" if self._study.agrees else "computing"

    def _finish_images(self, images: int, patients: int) -> None:
        self._learned["images", SCALE], self._learned["patients", SCALE] = images, patients
        why = too_few(patients, self._study)
        if why is not None:
            self._worth_while = False
            raise PeerError(why)
        self._images, self._patients = images, patients

    def _finish_landmarks(self, total: Sequence[int]) -> None:
        if fault_of_landmarks(self._images, self._patients, total, self._study):
            self._worth_while = False
            raise RemoteProtocolError("landmarks that no images can have: numbers are inconsistent")
        self._learned["landmarks", SCALE] = tuple(total)
        try:
            self.scale = scale_of(self._images, total, self._study)
        except StudyError as error:
            self._worth_while = False
            raise PeerError(str(error)) from None

    def _finish_voxels(self, total: Sequence[int]) -> None:
        classes = list(self._study.classes)
        for name, voxels, patients in zip(classes, total[: len(classes)], total[len(classes) :], strict=True):
            if (voxels < 0 or patients < 0) and not self._noisy:
                raise RemoteProtocolError(f"class {name!r}: a count below 0: a party's numbers are inconsistent")
            self._learned["n", name], self._learned["patients", name] = voxels, patients
            reason = withheld(voxels, patients, self._study)
            if reason is None:
                self._counts[name] = voxels
            else:
                self._withheld[name] = reason

    def _finish_sum(self, total: Sequence[int]) -> None:
        most = self._study.intensity_bound * self._study.window.denominator
        for (name, voxels), value in zip(self._counts.items(), total, strict=True):
            if abs(value) > voxels * most and not self._noisy:
                raise RemoteProtocolError(f"class {name!r}: a sum that n voxels cannot have: numbers are inconsistent")
            self._sums[name] = value
            mean = mean_of(voxels, value, self._study)
            self._means[name] = within_range(mean, self._study) if self._noisy else mean
            self._learned["sum", name] = Fraction(value, self._study.denominator)

    def _finish_sdsum(self, total: Sequence[int]) -> None:
        for (name, mean), value in zip(self._means.items(), total, strict=True):
            voxels = self._counts[name]
            most = len(self._study.parties) * sdsum_bound(self._study, mean)
            if not 0 <= value <= most and not self._noisy:
                raise RemoteProtocolError(f"class {name!r}: an sdsum that cannot be: numbers are inconsistent")
            sdsum = Fraction(value, (mean.denominator * self._study.unit) ** 2)
            self._learned["sdsum", name] = sdsum
            found = Statistics(voxels, Fraction(self._sums[name], self._study.denominator), sdsum)
            if self._noisy and (found.mean != mean or sdsum < 0):
                self._withheld[name] = TOO_NOISY
            else:
                self._found[name] = found

    def _finish_statistics(self, total: Sequence[int]) -> None:
        size = slots(self._study)
        for number, (name, voxels) in enumerate(self._counts.items()):
            mine = tuple(map(int, total[number * size : (number + 1) * size]))
            block = None if self._noisy else fault(mine, voxels, self._study)
            if block is not None:
                raise RemoteProtocolError(
                    f"class {name!r}: {block} that n voxels cannot have: numbers are inconsistent"
                )
            if name in self._found:  # else noise has left nothing of the class
                self._found[name] = replace(self._found[name], additive=mine)
            for kind, values in unpack(mine, self._study).items():
                self._learned[kind, name] = values
        self._newton = begin(self._study, self._found)

    # The logistic regression.

    @property
    def _at(self) -> AtWeights:
        """What the parties sum at this step; its bounds do not depend on a standard scale."""
        return self._study.at(self._newton.rows if self._newton is not None else (), self._counts)

    def _finish_step(self, total: Sequence[int]) -> None:
        mine = tuple(map(int, total))
        block = fault(mine, sum(self._counts.values()), self._at)
        if block is not None or self._newton is None:
            raise RemoteProtocolError(f"{block} that n voxels cannot have: numbers are inconsistent")
        self._learned[self._sum_name, LOGISTIC] = mine
        try:
            self._newton = self._newton.update(mine)
        except ModelError:  # the other results stand
            self._newton = None

    def _learn_weights(self) -> None:
        """Note what the steps came to, once they are over."""
        if self._steps:
            self._learned |= learned_of(fitted(self._newton, self._steps))


def _different_coins(coins: Mapping[str, bytes]) -> str:
    """Say who keeps which coin; it is no secret among them, and its first digits tell one from another."""
    holders: dict[bytes, list[str]] = {}
    for name, coin in coins.items():
        holders.setdefault(coin, []).append(name)
    kept = [
        f"{', '.join(names)} keep{'s' * (len(names) == 1)} {coin.hex()[:12] or 'none'}"
        for coin, names in sorted(holders.items(), reverse=True)
    ]
    return (
        f"expected all parties to keep the same coin of this study, or none to have used one; {'; '.join(kept)}: copy "
        "it to those from a party that has it, or from a backup"
    )
