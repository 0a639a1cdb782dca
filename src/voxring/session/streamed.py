"""A secure sum in chunks within a session, without I/O: what a member must know of its streams before chunks go.

For each stream, whoever dials it asks the other: ``stream`` with a fresh key, answered with ``door``, where to dial.
That goes over the links that carry all messages, so with keys only the two ends know the key of a stream, and each
knows who the other is. Who dials is who asks over the link: the one before in the ring, and for the way back to the
researcher, who has no door, the researcher. ``stream`` goes round a ring from each to the next, as a share does.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from voxring.errors import RemoteProtocolError
from voxring.ring.chunks import ChunkedSum, ChunkMaster, ChunkMember
from voxring.ring.message import Message, encode
from voxring.ring.order import RESEARCHER
from voxring.ring.protocol import SecureSum
from voxring.ring.residues import Random
from voxring.session import bodies

KEY_BYTES = 32

Part = TypeVar("Part", ChunkMember, ChunkMaster)


class Streamed(Generic[Part]):
    """One sum in chunks at one member: its part, and the keys and doors of its streams.

    Parameters
    ----------
    plan : ChunkedSum
    me : str
    part : ChunkMember or ChunkMaster
    sealed : bool
        Whether streams have keys: if links are sealed.
    random : Random
        For the keys.
    """

    def __init__(self, plan: ChunkedSum, me: str, part: Part, *, sealed: bool, random: Random) -> None:
        self.plan, self.me, self.sealed, self._random = plan, me, sealed, random
        self.part: Part = part
        self.keys: dict[tuple[str, str, int], bytes] = {}
        """By sender, receiver and ring; empty keys in the clear."""
        self.doors: dict[str, dict[int, int]] = {}
        """By the one to dial and the number of the door: its port, less that of the one's messages."""
        self._asked: set[tuple[str, str, int]] = set()

    @property
    def agreed(self) -> SecureSum:
        """The sum."""
        return self.plan.agreed

    @property
    def ready(self) -> bool:
        """Whether every stream of this member has been asked for and answered."""
        return len(self.keys) == 2 * len(self.agreed.rings) and not self._asked

    def questions(self, ring: int) -> list[tuple[str, bytes]]:
        """Ask for the streams round a ring that this member dials: whom, and the frame."""
        around = self.agreed.rings[ring]
        streams = [(self.me, around.successor(self.me))] if around.successor(self.me) != RESEARCHER else []
        if self.me == RESEARCHER:
            streams.append((around.last, RESEARCHER))
        return [self._question(sender, receiver, ring) for sender, receiver in streams]

    def _question(self, sender: str, receiver: str, ring: int) -> tuple[str, bytes]:
        peer = receiver if sender == self.me else sender
        key = self._random(KEY_BYTES) if self.sealed else b""
        self.keys[sender, receiver, ring] = key
        self._asked.add((sender, receiver, ring))
        question = Message(
            kind="stream",
            digest=self.agreed.digest,
            session=self.agreed.session,
            sender=self.me,
            receiver=peer,
            sum=self.agreed.name,
            ring=ring,
            body=key,
        )
        return peer, encode(question)

    def answer(self, question: Message) -> int:
        """Take a question, of which sender and ring were checked; return the number of the door.

        Raises
        ------
        RemoteProtocolError
            It has a key and links are in the clear, or the other way round; or it is for another sum.
        """
        if question.sum != self.agreed.name:
            raise RemoteProtocolError(f"stream: expected one of {self.agreed.name!r}, got one of {question.sum!r}")
        if len(question.body) != (KEY_BYTES if self.sealed else 0):
            raise RemoteProtocolError("stream: expected a key where links are sealed and none where not, got another")
        ring = self.agreed.rings[question.ring]
        fetched = question.sender == ring.successor(self.me)
        sender, receiver = (self.me, question.sender) if fetched else (question.sender, self.me)
        self.keys[sender, receiver, question.ring] = question.body
        return len(self.agreed.rings) if fetched else question.ring

    def take(self, answer: Message) -> None:
        """Take the answer to a question.

        Raises
        ------
        RemoteProtocolError
            It is none to a question of this sum that is open.
        """
        stream = self.me, answer.sender, answer.ring
        if stream not in self._asked:
            stream = answer.sender, self.me, answer.ring
        if answer.sum != self.agreed.name or stream not in self._asked:
            raise RemoteProtocolError("door: expected one that was asked for, got another")
        door = len(self.agreed.rings) if stream[1] == self.me else answer.ring
        self.doors.setdefault(answer.sender, {})[door] = bodies.read_door(answer.body)
        self._asked.remove(stream)
