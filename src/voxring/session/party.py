"""Algorithm 1 as one party, without I/O: frames in, frames out.

Theory of operation
-------------------
The party answers every frame that comes to its address (`answer`) and now and then has one for its successor in the
ring (`outbox`). Its own totals come in through `supply`, which holds them against the study's bounds first.

    waiting -- hello --> committed -- commitments of all --> opened -- openings of all --> computing
    computing -- own totals --> ready -- shares of "voxels" --> counted
    counted -- released (n) --> released -- shares of "sum" --> summed -- means (μ) --> averaged
    averaged -- shares of "sdsum" --> spread -- done --> done
    averaged -- shares of "sdsum" --> deviated -- shares of "statistics" --> spread, if the study asks for more

If the study asks for a logistic regression and two classes or more are released, this takes the place of "spread", step
by step; what a party sums then are its images at the weights that came (`voxring.learn.logistic`):

    deviated -- shares of "statistics" --> fitting -- weights --> stepping -- own sums --> stepped
    stepped -- shares of "step N" --> fitting -- done --> done

Where the parties agree on landmarks (`voxring.landmarks`), this comes before:

    opened -- openings of all --> surveying -- own landmarks --> surveyed -- shares of "images" --> numbered
    numbered -- shares of "landmarks" --> levelled -- scale --> computing

A party that keeps a coin which an earlier run used tells it instead of a commitment, and "hello" leads straight to
"computing"; it never takes part in drawing another for the same study. One that keeps a coin which was never used tells
it and commits, too: "hello" leads to "offered", and either "kept" says that all have this coin, or commitments come. A
new coin goes to ``keep`` before the party says that it has it, and to ``use`` before its first share or chunk leaves;
why that is enough stands in `voxring.session.coins`. When no class is released, "released" leads straight to "spread".
One share of each sum comes for each ring. The last party of a ring has no successor that listens: its share waits for
the researcher's next poll. Of a long vector no shares come but "stream"s, one for each ring, and chunks once every
stream has its key and its door (`streamed`); `carried` tells when all have passed.
A message that does not fit is answered with "refused" and changes nothing; a repeat of one already handled gets the
same answer again.

Until the party has taken "released", the researcher may start over with "again", which names the session that failed
and the one that follows: the party is "waiting" once more, with fresh shares to come, and keeps nothing of the failed
session. That holds, too, when a standard scale was agreed before: the session that follows sums the landmarks again, as
another run of the study would, and each party's ledger holds against it what it brought before. A party that lost the
next one in a ring is "lost" and waits for that, or for the end. From "released" on nothing starts over: something of
the classes is known, and other shares of the same numbers could tell more.

With keys a party knows who asks, and refuses a message that names another sender: the researcher is who the study
says. Without keys it cannot tell, and whoever says hello first, with the right study, is the researcher of this
session. The researcher relays commitments and openings. If it showed the parties different ones, their coins would
differ, and so would the ``digest`` of their shares, which neighbours compare.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

from voxring.errors import (
    BoundError,
    ImageError,
    LocalProtocolError,
    PeerError,
    RemoteProtocolError,
    StudyError,
    VoxringError,
)
from voxring.landmarks import SCALE, check_landmarks
from voxring.learn.logistic import LOGISTIC, fits, largest, step_totals, zero
from voxring.privacy import within_range
from voxring.ring.chunks import ChunkedSum, ChunkMember
from voxring.ring.coin import COIN_BYTES, coin_of, commitment
from voxring.ring.message import Kind, Message, decode, encode, step_name
from voxring.ring.noisy import Draw, NoisySum, shares_of_noise
from voxring.ring.order import RESEARCHER
from voxring.ring.protocol import Member, SecureSum
from voxring.ring.residues import Random
from voxring.ring.views import Number, Received, View
from voxring.session import bodies
from voxring.session.plan import SESSION_BYTES, Plan
from voxring.session.streamed import Streamed
from voxring.study import AtWeights, Study
from voxring.totals import LocalTotals, check_bounds, count_bound

NOBODY = bytes(SESSION_BYTES)
ENDED = ("done", "failed", "aborted")
FIRM = ("released", "summed", "averaged", "deviated", "spread", "fitting", "stepping", "stepped", *ENDED)
"""States from which nothing starts over."""

# (state, event) -> state.
TRANSITIONS = {
    ("waiting", "hello"): "committed",
    ("waiting", "hello again"): "computing",
    ("waiting", "hello again to agree"): "surveying",
    ("waiting", "hello unused"): "offered",
    ("offered", "kept"): "computing",
    ("offered", "kept to agree"): "surveying",
    ("offered", "commitments"): "opened",
    ("committed", "commitments"): "opened",
    ("opened", "openings"): "computing",
    ("opened", "openings to agree"): "surveying",
    ("surveying", "own landmarks"): "surveyed",
    ("surveyed", "share images"): "numbered",
    ("numbered", "share landmarks"): "levelled",
    ("levelled", "scale"): "computing",
    ("computing", "own totals"): "ready",
    ("ready", "share voxels"): "counted",
    ("counted", "released"): "released",
    ("counted", "released none"): "spread",
    ("released", "share sum"): "summed",
    ("summed", "means"): "averaged",
    ("averaged", "share sdsum"): "spread",
    ("averaged", "share sdsum of four"): "deviated",
    ("deviated", "share statistics"): "spread",
    ("spread", "done"): "done",
    ("deviated", "share statistics to fit"): "fitting",
    ("fitting", "weights"): "stepping",
    ("stepping", "own step"): "stepped",
    ("stepped", "share step"): "fitting",
    ("fitting", "done"): "done",
}


@dataclass(frozen=True)
class Heard:
    """What a party hears in the end: n and μ of the released classes, which are withheld, and its view.

    ``scale`` is the standard scale, if one was agreed.
    """

    counts: dict[str, int]
    means: dict[str, Fraction]
    withheld: tuple[str, ...]
    view: View
    scale: tuple[Fraction, ...] = ()


@dataclass(frozen=True)
class Answer:
    """The frame to send back, and whose request it answers; ``sender`` is None if it was refused."""

    frame: bytes
    sender: str | None


class Party:
    """One party of one session. `answer` and the rest must be called by one thread at a time.

    ``coin`` is what the party kept of an earlier run of the study, if there was one, and ``used`` whether a run has
    used it; ``keep`` gets a new one, ``use`` one that is used from now on, and both raise StudyError if they cannot
    keep it. ``sealed`` is whether links are, so that streams have keys. ``noise`` draws this party's shares of noise,
    for a study with differential privacy: anew in every session.
    """

    def __init__(
        self,
        study: Study,
        name: str,
        random: Random,
        *,
        coin: bytes | None = None,
        used: bool = True,
        keep: Callable[[bytes], None] = lambda coin: None,
        use: Callable[[bytes], None] = lambda coin: None,
        sealed: bool = False,
        noise: Draw = shares_of_noise,
    ) -> None:
        self._used = used and coin is not None
        self._unused = b"" if self._used or coin is None else coin
        """A coin that is kept, under which this party has sent nothing; it is not taken yet, and may be given up."""
        self.plan, self.name = Plan(study, coin if self._used else None), name
        self._noise = noise
        self._study, self._random, self._keep, self._use, self._sealed = study, random, keep, use, sealed
        self.doors: tuple[int, ...] = ()
        """Where streams are taken: the port of each door, less that of this party's messages."""
        self._part = b""
        self._commitments: dict[str, bytes] = {}
        self.state = "waiting"
        self.session = NOBODY
        self.error: VoxringError | None = None
        self.outbox: deque[tuple[str, bytes]] = deque()
        """Shares to send, in this order: to whom, and the frame."""
        self.news: deque[str] = deque()
        self.attempt = 0
        """How often the researcher has started over."""
        self.told = False
        """Whether the researcher has heard that this party failed."""
        self.refused = ""
        """Why the last message that did not fit was refused."""
        self._reason = ""
        self.scale: tuple[Fraction, ...] = ()
        """The standard scale, once it was agreed."""
        self._landmarks = LocalTotals()
        self._totals = LocalTotals()
        self._skipped = 0
        self._handled: dict[tuple[str, str, int, str], tuple[Message, bytes]] = {}
        self.streamed: Streamed[ChunkMember] | None = None
        """The sum that is going round in chunks, if one is."""
        self._in_chunks: list[str] = []
        self._members: dict[str, Member] = {}
        self._moduli: dict[str, int] = {}
        self._share = b""
        self._counts: dict[str, int] = {}
        self._means: dict[str, Fraction] = {}
        self.at: AtWeights | None = None
        """What is computed at the step of the logistic regression that runs; the weights are in it."""
        self.steps: list[bytes] = []
        """The weights of each step as they came."""

    @property
    def agreed(self) -> Study:
        """The study with the standard scale that was agreed."""
        return self._study.with_landmarks(self.scale)

    @property
    def counts(self) -> dict[str, int]:
        """n of each released class, once this party was told."""
        return dict(self._counts)

    @property
    def reason(self) -> str:
        """Why this party failed, as it tells the researcher."""
        return self._reason

    # Steps of this process.

    def supply_landmarks(self, landmarks: LocalTotals) -> None:
        """Hand in the landmarks of this party's images, where the study has parties agree on them.

        Raises
        ------
        BoundError
            They leave the study's bounds. Nothing was sent.
        LocalProtocolError
            They were handed in already, or it is not their turn.
        """
        if not self._takes("own landmarks"):
            return
        check_landmarks(landmarks, self._study)
        self._landmarks = landmarks
        self._join(self.plan.images(self.session), self.plan.image_values(landmarks))
        self._step("own landmarks")

    def supply(self, totals: LocalTotals, skipped: int = 0) -> None:
        """Hand in this party's totals, and how many images were left out of them, which the researcher is told.

        Raises
        ------
        BoundError
            They leave the study's bounds. Nothing was sent.
        LocalProtocolError
            They were handed in already, or the session has not begun.
        """
        if not self._takes("own totals"):
            return
        check_bounds(totals, self._study)
        # Under differential privacy how many images cannot be used is not told: it may be one patient's.
        self._totals, self._skipped = totals, 0 if self._study.differential_privacy else skipped
        self._join(self.plan.voxels(self.session), self.plan.voxel_values(totals))
        self._step("own totals")

    def supply_step(self, totals: LocalTotals) -> None:
        """Hand in what this party's images sum up to at the weights of `at`.

        Raises
        ------
        ImageError
            These are not the images whose totals were handed in. Nothing was sent.
        BoundError
            The sums leave the study's bounds. Nothing was sent.
        LocalProtocolError
            They were handed in already, or it is not their turn.
        """
        if not self._takes("own step") or self.at is None:
            return
        for name in self.at.classes:
            if replace(totals[name], statistics=()) != replace(self._totals[name], statistics=()):
                raise ImageError(
                    f"class {name!r} has other totals than before: images or ground truth changed while the study ran; "
                    "nothing of this step was sent: leave the files as they are until a study has ended"
                )
        check_bounds(totals, self.at)
        self._join(self.plan.step(self.session, len(self.steps), self.at), step_totals(totals, self.at))
        self._step("own step")

    def _takes(self, own: str) -> bool:
        """Whether this party's own numbers are taken now; once it has ended or is lost, they are dropped in silence."""
        if self.state in ENDED or self.state == "lost":
            return False
        if (self.state, own) not in TRANSITIONS:
            when = next(state for state, event in TRANSITIONS if event == own)
            raise LocalProtocolError(f"{own}: handed in once, while {when}; this party is {self.state}")
        return True

    def fail(self, reason: str) -> None:
        """End this party; the researcher is told the reason, which must hold no value."""
        if self.state not in ENDED:
            self.state, self._reason = "failed", reason
            self.outbox.clear()
            self._share = b""

    def lose(self, reason: str) -> None:
        """Stop until the researcher starts over or ends the session; the reason must hold no value."""
        if self.state in FIRM:
            self.fail(reason)
        else:
            self.state, self._reason = "lost", reason
            self.outbox.clear()
            self._share = b""

    def carried(self) -> None:
        """Note that every chunk of the sum that goes in chunks has passed.

        Raises
        ------
        LocalProtocolError
            There is none, or not every chunk has.
        """
        if self.streamed is None or not self.streamed.part.done:
            raise LocalProtocolError("a sum in chunks is carried when every chunk has passed")
        name, self.streamed = self.streamed.agreed.name, None
        self.news.append(f"secure sum: {name}")
        self._in_chunks.append(name)
        self._step(self.plan.share_event(name, len(self._counts)))

    def delivered(self, frame: bytes) -> None:
        """Take a successor's answer to the first frame of the outbox; one of a session that failed changes nothing.

        Raises
        ------
        PeerError
            The successor refused it.
        RemoteProtocolError
            The answer is none to what was sent.
        """
        answer = decode(frame, limit=self.plan.largest_frame)
        if not self.outbox or answer.session != self.session:
            return  # this party has failed or started over meanwhile
        successor, asked = self.outbox[0]
        if answer.kind == "refused":
            raise PeerError(f"{successor} refused this party's share: {bodies.read_reason(answer.body)}")
        opens = decode(asked, limit=len(asked)).kind == "stream"
        if (answer.kind, answer.sender) != ("door" if opens else "ok", successor):
            raise RemoteProtocolError(f"expected {successor}'s answer to a share, got another message")
        if opens and self.streamed is not None:
            self.streamed.take(answer)
        self.outbox.popleft()

    def heard(self) -> Heard:
        """What this party has heard.

        Raises
        ------
        LocalProtocolError
            The session is not done.
        """
        if self.state != "done":
            raise LocalProtocolError(f"the answer is there when the session is done; this party is {self.state}")
        received = tuple(
            Received(name, ring, self._moduli[name], tuple(residues))
            for name, member in self._members.items()
            for ring, residues in member.received.items()
        )
        learned: dict[tuple[str, str], Number] = {
            (f"landmark {number}", SCALE): landmark for number, landmark in enumerate(self.scale, 1)
        }
        for name, count in self._counts.items():
            learned["n", name] = count
            learned["μ", name] = self._means[name]
        for number, came in enumerate(self.steps, 1):
            learned[f"weights {number}", LOGISTIC] = tuple(one for row in bodies.read_weights(came) for one in row)
        withheld = tuple(name for name in self._study.classes if name not in self._counts)
        view = View(self.name, received, learned, tuple(self._in_chunks))
        return Heard(self._counts, self._means, withheld, view, self.scale)

    # Frames from outside.

    def answer(self, frame: bytes, peer: str | None = None, *, patient: bool = False) -> Answer | None:
        """Answer a frame; never raises, whatever came.

        ``peer`` is the member who proved to be the one that asks, if links are sealed. With ``patient``, None means: a
        poll that asks for news, and there is none yet.
        """
        sender = ""
        session = NOBODY
        try:
            message = decode(frame, limit=self.plan.largest_frame)
            sender, session = message.sender, message.session
            if peer not in (None, sender):
                raise RemoteProtocolError(f"a message of {sender} came from {peer}: each sends its own")
            self._check(message)
            reply = self._handle(message, patient)
        except RemoteProtocolError as error:
            self.refused = str(error)
            return Answer(self._reply("refused", sender, session, bodies.write_reason(str(error))), None)
        except (BoundError, StudyError) as error:
            bound = isinstance(error, BoundError)
            self.fail("its numbers leave the study's bounds" if bound else "it cannot keep the coin")
            self.error = error
            return Answer(self._reply("refused", sender, session, bodies.write_reason(self._reason)), sender)
        return None if reply is None else Answer(reply, sender)

    def refusal(self, frame: bytes) -> bytes:
        """Return what a party that has failed answers a message with instead: why it failed."""
        message = decode(frame, limit=self.plan.largest_frame)
        self.told = self.told or message.sender == RESEARCHER
        return self._reply("refused", message.sender, message.session, bodies.write_reason(self._reason))

    def _check(self, message: Message) -> None:
        if message.kind not in ("share", "stream") and message.digest != self.plan.digest:
            raise RemoteProtocolError(
                f"{self.name} has study {self.plan.digest.hex()[:12]}, {message.sender} has "
                f"{message.digest.hex()[:12]}: both need the same study file"
            )
        if message.receiver != self.name:
            raise RemoteProtocolError(
                f"this is {self.name}, the message is for {message.receiver}: check the addresses"
            )
        if message.kind in ("share", "stream"):
            self._check_share(message)
        elif message.sender != RESEARCHER:
            raise RemoteProtocolError(
                f"a message {message.kind!r} comes from the researcher, not from {message.sender}"
            )
        if message.kind == "hello" and self.session == NOBODY != message.session:
            return
        if message.kind == "again" and NOBODY != message.session != self.session:
            self._check_again(message)
            return
        if message.session != self.session or message.session == NOBODY:
            wanted = "no session runs here" if self.session == NOBODY else "another session runs here"
            raise RemoteProtocolError(f"{wanted}: the message {message.kind!r} is from an old or a second run")

    def _check_again(self, message: Message) -> None:
        failed = (message.body[i : i + SESSION_BYTES] for i in range(0, len(message.body), SESSION_BYTES))
        if self.session not in (NOBODY, *failed):
            raise RemoteProtocolError("again: another session runs here than the one that failed")
        if self.state in FIRM:
            raise RemoteProtocolError(f"again: {self.name} is {self.state!r}: nothing starts over from there")

    def _check_share(self, share: Message) -> None:
        if self.plan.coin is None or share.digest != self.plan.binding:
            raise RemoteProtocolError(
                f"{share.sender} and {self.name} have different rings: both need the same study file and the same "
                "coin; if somebody lost or changed its coin, copy it there from another party"
            )
        if share.ring >= len(self.plan.rings):
            raise RemoteProtocolError(f"share: expected a ring below {len(self.plan.rings)}, got {share.ring}")
        ring = self.plan.rings[share.ring]
        fetched = share.kind == "stream" and share.sender == RESEARCHER == ring.successor(self.name)
        if share.sender != ring.predecessor(self.name) and not fetched:
            raise RemoteProtocolError(f"{share.sender} does not stand before {self.name} in the ring")

    def _handle(self, message: Message, patient: bool) -> bytes | None:
        if message.kind == "poll":
            if patient and message.body.decode("ascii", "replace") == self.state:
                return None
            return self._status(message)
        if message.kind == "abort":
            if self.state not in ENDED:
                self.fail("ended by the researcher")
                self.state = "aborted"
                self.error = PeerError(f"the researcher ended the session: {bodies.read_reason(message.body)}")
            return self._ok(message)
        if message.kind == "again":
            if message.session != self.session:
                self._start_over(message.session)
            return self._ok(message)
        key = (message.kind, message.sum, message.ring, message.sender)
        if key in self._handled:
            known, reply = self._handled[key]
            if message != known:
                raise RemoteProtocolError(f"a second, different {message.kind!r} came in place of one already handled")
            return reply
        reply = self._first(message)
        self._handled[key] = message, reply
        return reply

    def _first(self, message: Message) -> bytes:
        """Handle a message of its kind for the first time."""
        shares = message.kind in ("share", "stream")
        event = self.plan.share_event(message.sum, len(self._counts)) if shares else message.kind
        if event == "share step" and message.sum != step_name(len(self.steps)):
            raise RemoteProtocolError(f"{message.sum!r} came early or late: expected {step_name(len(self.steps))!r}")
        if message.kind == "hello" and (self._used or self._unused):
            event = self.plan.begin_event("hello again") if self._used else "hello unused"
        elif message.kind in ("openings", "kept"):
            event = self.plan.begin_event(event)
        if (self.state, event) not in TRANSITIONS:
            raise RemoteProtocolError(f"{event!r} came early or late: {self.name} is {self.state!r}")
        if shares and not self._used:
            self._use(self.plan.known_coin)
            self._used = True
        if message.kind == "stream":
            return self._open_door(message)
        reply = self._ok(message)
        if message.kind == "hello":
            self.session = message.session
            reply = self._welcome(message)
        elif message.kind == "kept":
            self._take_unused(message.body)
        elif message.kind == "commitments":
            self._commitments = self._checked_commitments(message)
            reply = self._reply("opening", message.sender, self.session, self._part)
        elif message.kind == "openings":
            self._take_coin(bodies.read_parts(message.body, self._study.parties, "openings"))
        elif message.kind == "share":
            if self.streamed is not None:
                raise RemoteProtocolError("share: expected a stream of chunks, got a share of a long vector in one")
            member = self._members[message.sum]
            self._pass_on(member.receive(message))
            if member.state != "done":
                return reply
            self.news.append(f"secure sum: {message.sum}")
        elif message.kind in ("scale", "released", "means", "weights"):
            event = self._learn(message, event)
        self._step(event)
        return reply

    def _learn(self, message: Message, event: str) -> str:
        """Take what the researcher has learned for all, and join the sum that answers it; return what that is."""
        if message.kind == "scale":
            self.scale = self._checked_scale(bodies.read_scale(message.body))
            self.news.append("standard scale received")
        elif message.kind == "released":
            self._counts = self._checked_counts(bodies.read_counts(message.body))
            if not self._counts:
                event = "released none"
            else:
                released = list(self._counts)
                values = self.plan.sum_values(self._totals, released)
                self._join(self.plan.sums(self.session, released), values)
        elif message.kind == "means":
            self._means = self._checked_means(bodies.read_means(message.body))
            values = self.plan.sdsum_values(self._totals, self._means)
            self._join(self.plan.sdsums(self.session, self._means), values)
            self.news.append("μ received")
        elif message.kind == "weights":
            self.at = self._checked_weights(message)
            self.steps.append(message.body)
            self.news.append(f"weights received: {message.sum}")
        return event

    def _start_over(self, session: bytes) -> None:
        self.session, self.state, self._reason = session, "waiting", ""
        self.attempt += 1
        self._handled, self._members, self._moduli, self._in_chunks = {}, {}, {}, []
        self._commitments, self._share, self._counts, self.streamed, self.scale = {}, b"", {}, None, ()
        if not self._used and self.plan.coin is not None:
            self._unused, self.plan = self.plan.coin, Plan(self._study)
        self.outbox.clear()
        self.news.clear()

    # The coin.

    def _welcome(self, hello: Message) -> bytes:
        if self._used:
            welcome = bodies.Welcome(coin=self.plan.known_coin)
        else:
            self._part = self._random(COIN_BYTES)
            mine = commitment(self.plan.digest, self.session, self.name, self._part)
            welcome = bodies.Welcome(self._unused, mine)
        return self._reply("welcome", hello.sender, self.session, bodies.write_welcome(welcome))

    def _checked_commitments(self, message: Message) -> dict[str, bytes]:
        commitments = bodies.read_parts(message.body, self._study.parties, "commitments")
        if commitments[self.name] != commitment(self.plan.digest, self.session, self.name, self._part):
            raise RemoteProtocolError(f"commitments: expected the one of {self.name} as it was sent, got another")
        return commitments

    def _take_coin(self, parts: dict[str, bytes]) -> None:
        coin = coin_of(self.plan.digest, self.session, self._commitments, parts)
        self._keep(coin)
        self.plan = self.plan.with_coin(coin)
        again = " anew, since not all parties kept the one of an earlier run, which was never used"
        self.news.append("coin drawn" + (again if self._unused else ""))
        self._unused = b""

    def _take_unused(self, coin: bytes) -> None:
        if coin != self._unused:
            raise RemoteProtocolError(f"kept: expected the coin that {self.name} keeps, got another")
        self.plan, self._unused = self.plan.with_coin(coin), b""

    # Algorithm 1.

    def _pass_on(self, share: Message) -> None:
        if share.receiver == RESEARCHER:
            self._share = encode(share)  # the only one of this sum: nobody is last in two rings
        else:
            self.outbox.append((share.receiver, encode(share)))

    def _open_door(self, question: Message) -> bytes:
        if self.streamed is None or not self.doors:
            raise RemoteProtocolError("stream: expected a share in one message, got one that comes in chunks")
        door = self.streamed.answer(question)
        self.outbox.extend(self.streamed.questions(question.ring))
        return self._reply("door", question.sender, self.session, bodies.write_door(self.doors[door]), question)

    def _checked_scale(self, scale: tuple[Fraction, ...]) -> tuple[Fraction, ...]:
        """What this party can see for itself; the study with this scale could be made."""
        try:
            self._study.with_landmarks(scale)
        except StudyError:
            raise RemoteProtocolError("scale: expected rising landmarks, one for each percentile, got others") from None
        if scale[0] != 0 or scale[-1] != 1:
            raise RemoteProtocolError("scale: expected landmarks from 0 to 1, got others")
        return scale

    def _checked_counts(self, counts: dict[str, int]) -> dict[str, int]:
        """What this party can see for itself before it gives its sum away."""
        study = self._study
        if list(counts) != [name for name in study.classes if name in counts]:
            raise RemoteProtocolError("released: expected classes of the study in its order, got others")
        for name, count in counts.items():
            if count < study.privacy.min_voxels:
                raise RemoteProtocolError(
                    f"released: class {name!r} has fewer than privacy.min_voxels = {study.privacy.min_voxels} voxels"
                )
            others = (len(study.parties) - 1) * count_bound(study)
            if study.differential_privacy is not None:
                continue  # noise may take n anywhere
            if not 0 <= count - self._totals[name].voxels <= others:
                raise RemoteProtocolError(f"released: n of class {name!r} does not fit this party's own n")
        return counts

    def _checked_means(self, means: dict[str, Fraction]) -> dict[str, Fraction]:
        study = self._study
        if list(means) != list(self._counts):
            raise RemoteProtocolError("means: expected the released classes, got others")
        for name, mean in means.items():
            if abs(mean) * study.unit > study.intensity_bound:
                raise RemoteProtocolError(f"means: μ of class {name!r} leaves the public bounds of the study")
            if study.differential_privacy is not None and mean != within_range(mean, study):
                raise RemoteProtocolError(f"means: μ of class {name!r} is none that values of the study can have")
            if (study.denominator * self._counts[name]) % mean.denominator:
                raise RemoteProtocolError(f"means: μ of class {name!r} is no sum of the study's grid over n")
        return means

    def _checked_weights(self, message: Message) -> AtWeights:
        """What this party can see for itself: it is the next step, of those that were agreed, at weights in bounds."""
        study, number = self.agreed if self._study.agrees else self._study, len(self.steps) + 1
        if study.logistic is None or number > study.logistic.steps:
            raise RemoteProtocolError("weights: expected no more steps than logistic.steps, got another")
        if message.sum != step_name(number):
            raise RemoteProtocolError(f"weights: expected those of {step_name(number)!r}, got {message.sum!r}")
        rows, first = bodies.read_weights(message.body), zero(len(self._counts), len(study.feature))
        if [len(row) for row in rows] != [len(row) for row in first]:
            raise RemoteProtocolError("weights: expected a row for each score of the released classes, got others")
        if number == 1 and rows != first:
            raise RemoteProtocolError("weights: expected 0 at the first step, got others")
        if not all(fits(row, largest(study)) for row in rows):
            raise RemoteProtocolError("weights: expected scores within 62 bits for all values of the study, got larger")
        return study.at(rows, self._counts)

    def _join(self, agreed: SecureSum, values: list[int]) -> None:
        if isinstance(agreed, NoisySum):
            values = agreed.with_noise(values, self._random, self._noise)
        if self.plan.in_chunks(agreed):
            plan = ChunkedSum(agreed)
            part = ChunkMember(plan, self.name, values, self._random)
            self.streamed = Streamed(plan, self.name, part, sealed=self._sealed, random=self._random)
            return
        self._members[agreed.name] = Member(agreed, self.name, values, self._random)
        self._moduli[agreed.name] = agreed.residues.modulus

    def _step(self, event: str) -> None:
        self.state = TRANSITIONS[self.state, event]
        if self.state == "numbered":
            self._join(self.plan.landmarks(self.session), self.plan.landmark_values(self._landmarks))
        if self.state == "deviated":
            released = list(self._counts)
            values = self.plan.statistics_values(self._totals, released)
            self._join(self.plan.statistics(self.session, released), values)

    # Replies.

    def _status(self, message: Message) -> bytes:
        if self.state == "failed":
            self.told = True
        status = bodies.Status(self.state, self._reason[: bodies.REASON_LENGTH], self._share, self._skipped)
        return self._reply("status", message.sender, self.session, bodies.write_status(status))

    def _ok(self, message: Message) -> bytes:
        of = {"share": f" {message.sum} {message.ring}", "weights": f" {message.sum}"}
        what = message.kind + of.get(message.kind, "")
        return self._reply("ok", message.sender, self.session, what.encode())

    def _reply(self, kind: Kind, receiver: str, session: bytes, body: bytes, about: Message | None = None) -> bytes:
        return encode(
            Message(
                kind=kind,
                digest=self.plan.digest,
                session=session,
                sender=self.name,
                receiver=receiver,
                sum=about.sum if about else "",
                ring=about.ring if about else 0,
                body=body,
            )
        )
