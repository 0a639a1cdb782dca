"""One secure sum (Section 4) as two state machines that do no I/O.

Theory of operation
-------------------
A `SecureSum` is what all agree on beforehand: study and coin, session, which sum, rings, modulus and bound. A ring
starts at the master. A value is split into one uniform share per ring that add up to it mod N; with one ring the share
is the value.

    Master:  start() sends r + share round each ring, r a fresh uniform blind for each ring of each sum of each
             session; receive() takes r off what comes back; when every ring is back, `total` is the sum.
    Member:  receive() adds the member's share to what its predecessor sent and returns it for its successor.

Every message that comes in is held against what is expected before it is looked into; in this order: kind and sum,
study, session, receiver, ring, sender, and the residues. Whatever does not fit raises `RemoteProtocolError` and
changes nothing. Networks repeat messages: an exact repeat of one already handled gets the same answer and changes
nothing, another in its place is refused. Asking for a step that the state does not allow is `LocalProtocolError`: a
bug here, not there. Values are held against the bound when a machine is made, so a value that could wrap is never
sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from voxring.errors import LocalProtocolError, RemoteProtocolError
from voxring.ring.message import Message, SumName
from voxring.ring.order import Ring
from voxring.ring.residues import Bound, Limbs, Random, Residues, Values, within

# (state, event) -> state. What is not in the table does not happen.
MASTER = {
    ("idle", "start"): "waiting",
    ("waiting", "share"): "waiting",
    ("waiting", "last share"): "done",
}
MEMBER = {
    ("waiting", "share"): "waiting",
    ("waiting", "last share"): "done",
}


@dataclass(frozen=True)
class SecureSum:
    """What the master and the members of one sum agree on before it starts.

    ``digest`` stands for the study and its coin. ``bound`` is the largest size of one value of one of the parties, in
    all slots or in each; N must hold the sum of all of them.

    Raises
    ------
    LocalProtocolError
        The modulus is too small for the sum, or the rings differ in their members.
    """

    digest: bytes
    session: bytes
    name: SumName
    rings: tuple[Ring, ...]
    residues: Residues[Any]
    bound: Bound

    def __post_init__(self) -> None:
        if self.residues.modulus < 2 * self.parties * int(np.max(self.bound)) + 1:
            raise LocalProtocolError("the modulus is too small: the sum of all parties could wrap")
        if len({(ring.master, frozenset(ring.members)) for ring in self.rings}) != 1:
            raise LocalProtocolError("the rings of one sum need the same master and the same members")

    @property
    def parties(self) -> int:
        """How many members have values of their own."""
        return len(self.rings[0].members) - 1

    @property
    def values(self) -> int:
        """How many values each member hands in."""
        return self.residues.slots

    def lift(self, values: Values) -> Any:
        """Take a member's values to residues.

        Raises
        ------
        BoundError
            A value leaves the bound; the message does not tell it.
        """
        return self.residues.lift(values, self.bound)

    def lifted(self, values: Values) -> Any:
        """Do as `lift`; where values are held as residues are, return their own memory: it is not to be changed."""
        return self.residues.lifted(values, self.bound)

    def lower(self, vector: Any) -> list[int]:
        """Return the totals that residues stand for."""
        return self.residues.centred(vector)

    def totals(self, vector: Any) -> npt.NDArray[np.int64] | list[int]:
        """Do as `lower`, without a copy where residues have 64 bits.

        Raises
        ------
        RemoteProtocolError
            A total is larger than all bounds together allow: somebody's numbers are inconsistent.
        """
        total: npt.NDArray[np.int64] | list[int]
        if isinstance(self.residues, Limbs) and self.residues.limbs == 1:
            total = vector[0].view(np.int64)
        else:
            total = self.lower(vector)
        if not within(total, self.bound, self.parties):
            raise RemoteProtocolError(
                f"sum of {self.name!r}: a total that the bounds do not allow: a member's numbers are inconsistent"
            )
        return total

    def share(self, ring: int, sender: str, vector: Any) -> Message:
        """Return a vector as a message from a member to its successor."""
        return Message(
            kind="share",
            digest=self.digest,
            session=self.session,
            sender=sender,
            receiver=self.rings[ring].successor(sender),
            sum=self.name,
            ring=ring,
            body=self.residues.encode(vector),
        )

    def split(self, values: Sequence[int], random: Random) -> list[Any]:
        """Check values against the bound and split them into one share for each ring."""
        last = self.lift(values)
        shares = [self.residues.uniform(random) for _ in self.rings[1:]]
        for share in shares:
            self.residues.subtract(last, share)
        return [*shares, last]

    def open(self, message: Message, me: str) -> Any:
        """Check that a message is a share of this sum from my predecessor to me and return its vector."""
        self._same("a message of kind", "share", message.kind)
        self._same("the sum", self.name, message.sum)
        if message.digest != self.digest:
            raise RemoteProtocolError(
                f"share: expected study and rings {self.digest.hex()[:12]}, got {message.digest.hex()[:12]}: "
                "both sides need the same study file and the same coin"
            )
        if message.session != self.session:
            raise RemoteProtocolError("share: expected the running session, got another: an old or foreign message")
        self._same("the receiver", me, message.receiver)
        if message.ring >= len(self.rings):
            raise RemoteProtocolError(f"share: expected a ring below {len(self.rings)}, got {message.ring}")
        self._same("the sender", self.rings[message.ring].predecessor(me), message.sender)
        return self.residues.decode(message.body)

    def _same(self, what: str, expected: str, came: str) -> None:
        if came != expected:
            raise RemoteProtocolError(f"share: expected {what} {expected!r}, got {came!r}")


class Member:
    """A member other than the master: adds its share to what passes.

    Raises
    ------
    BoundError
        A value leaves the bound of the sum.
    """

    def __init__(self, agreed: SecureSum, me: str, values: Sequence[int], random: Random) -> None:
        self._agreed, self._me = agreed, me
        self._shares = agreed.split(values, random)
        self._handled: dict[int, tuple[Message, Message]] = {}
        self.state = "waiting"
        self._seen: dict[int, Any] = {}

    @property
    def received(self) -> dict[int, list[int]]:
        """Residues received, by ring: this member's view."""
        return {ring: self._agreed.residues.tolist(vector) for ring, vector in sorted(self._seen.items())}

    def receive(self, message: Message) -> Message:
        """Add this member's share; return the message for its successor.

        Raises
        ------
        RemoteProtocolError
            The message is none that this member waits for. Nothing changes.
        """
        vector = self._agreed.open(message, self._me)
        if message.ring in self._handled:
            known, answer = self._handled[message.ring]
            _expect_repeat(known, message)
            return answer
        self._seen[message.ring] = self._agreed.residues.copy(vector)
        answer = self._agreed.share(
            message.ring, self._me, self._agreed.residues.add(vector, self._shares[message.ring])
        )
        self._handled[message.ring] = message, answer
        last = len(self._handled) == len(self._agreed.rings)
        self.state = MEMBER[self.state, "last share" if last else "share"]
        return answer


class Master:
    """The member that starts the sum and learns it.

    Raises
    ------
    BoundError
        A value leaves the bound of the sum.
    """

    def __init__(self, agreed: SecureSum, values: Sequence[int], random: Random) -> None:
        self._agreed, self._me = agreed, agreed.rings[0].master
        self._shares = agreed.split(values, random)
        self._blinds = [agreed.residues.uniform(random) for _ in agreed.rings]
        self._handled: dict[int, tuple[Message, Any]] = {}
        self.state = "idle"
        self._seen: dict[int, Any] = {}

    @property
    def received(self) -> dict[int, list[int]]:
        """Residues received, by ring; with the blinds, this is the master's view."""
        return {ring: self._agreed.residues.tolist(vector) for ring, vector in sorted(self._seen.items())}

    @property
    def blinds(self) -> list[list[int]]:
        """The blinds r, by ring."""
        return [self._agreed.residues.tolist(blind) for blind in self._blinds]

    def start(self) -> tuple[Message, ...]:
        """Return the blinded first message of each ring.

        Raises
        ------
        LocalProtocolError
            The sum has been started.
        """
        if (self.state, "start") not in MASTER:
            raise LocalProtocolError(f"a sum is started once; this one is {self.state}")
        self.state = MASTER[self.state, "start"]
        residues = self._agreed.residues
        return tuple(
            self._agreed.share(ring, self._me, residues.add(residues.copy(blind), share))
            for ring, (blind, share) in enumerate(zip(self._blinds, self._shares, strict=True))
        )

    def receive(self, message: Message) -> None:
        """Take what came back round a ring.

        Raises
        ------
        RemoteProtocolError
            The message is none that the master waits for. Nothing changes.
        """
        vector = self._agreed.open(message, self._me)
        if message.ring in self._handled:
            _expect_repeat(self._handled[message.ring][0], message)
            return
        if self.state != "waiting":
            raise RemoteProtocolError("share: expected none before the master has sent its own")
        self._seen[message.ring] = self._agreed.residues.copy(vector)
        self._handled[message.ring] = message, self._agreed.residues.subtract(vector, self._blinds[message.ring])
        last = len(self._handled) == len(self._agreed.rings)
        self.state = MASTER[self.state, "last share" if last else "share"]

    @property
    def total(self) -> list[int]:
        """The sum of the values of all members.

        Raises
        ------
        LocalProtocolError
            Not every ring is back.
        RemoteProtocolError
            The total does not fit its checksum (`voxring.ring.checksum`).
        """
        if self.state != "done":
            raise LocalProtocolError(f"the total is known when every ring is back; the sum is {self.state}")
        (_, first), *rest = self._handled.values()
        total = self._agreed.residues.copy(first)
        for _, part in rest:
            self._agreed.residues.add(total, part)
        return self._agreed.lower(total)


def _expect_repeat(known: Message, message: Message) -> None:
    if message != known:
        raise RemoteProtocolError(f"share: ring {message.ring} has passed; a second, different message came for it")
