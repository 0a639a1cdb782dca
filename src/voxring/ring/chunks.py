"""One secure sum of a long vector, chunk by chunk and in place; no I/O.

Theory of operation
-------------------
Slots do not touch each other, so any piece of a vector may go round on its own: a chunk is a secure sum of its slots
(`protocol`), with blinds and shares of its own. What differs from a short sum is that nothing of the vector's length is
held besides the vector itself. Blinds and shares are chunks of a `Keystream` and made when they are needed: the master
takes the blind of a chunk off the total when it makes it, so it need not be kept, or made again. And a chunk is a frame
of fixed length whose bytes are changed where they lie: what came in is checked, the share added, the head written, and
the same bytes are what goes to the successor.

    Master:  fill() takes r off the total and writes r + share of a chunk into a frame; receive() adds what came to it.
    Member:  receive() adds the share to what came.

A frame is a head of 32 bytes and the residues:

    0   "VXC", one byte of protocol version
    4   16 bytes that stand for study, coin, session, sum, modulus, slots and chunk length
    20  ring, one zero byte, place of the sender in the ring (2 bytes), number of the chunk (4 bytes)
    28  check: CRC-32 of the 28 bytes above, of the sums mod 2^64 of 8 equal pieces of the residues, and of what is left

The check finds accidents and nothing else, at a fiftieth of the cost of the hash that guards short messages and a third
of that of a CRC of all bytes. Chunks may come in any order. The answer to a chunk follows from its bytes alone, so a
repeat gets the same answer; another chunk in its place is refused and changes nothing. The values must not change until
the sum is done. Members may handle several rings at once in several threads; the master is used by one thread at a
time.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from isal.isal_zlib import crc32

from voxring.errors import LocalProtocolError, RemoteProtocolError
from voxring.ring.keystream import Keystream
from voxring.ring.message import VERSION
from voxring.ring.protocol import SecureSum
from voxring.ring.residues import Random, Residues, Values

CHUNK_BYTES = 256 * 1024, 1024 * 1024
"""Bytes of residues in a chunk, at least and at most: large enough that a frame's own cost, 0.2 ms of processor time a
hop, is small, small enough to stay in a cache. In between it is a 64th of the vector: on slow links k parties take as
long as one link does for the vector and k chunks."""
HEAD_BYTES = 32

_HEAD = struct.Struct(">4s16sBxHI")
_CHECK = struct.Struct(">I")
_PIECES = 8
_MAGIC = b"VXC" + bytes([VERSION])
_NOT_YET = -1


@dataclass(frozen=True)
class ChunkedSum:
    """What all agree on before a sum in chunks starts: the sum, and how many slots make a chunk.

    Examples
    --------
    >>> from voxring.ring.order import Ring
    >>> from voxring.ring.residues import Limbs
    >>> agreed = SecureSum(bytes(32), bytes(16), "sum", (Ring(("researcher", "a", "b", "c")),), Limbs(1, 70_000), 1000)
    >>> in_chunks = ChunkedSum(agreed)
    >>> in_chunks.count, in_chunks.slots(2)
    (3, slice(65536, 70000, None))
    """

    agreed: SecureSum
    chunk: int = 0
    """Slots of a chunk; 0 chooses by `CHUNK_BYTES`."""

    @cached_property
    def length(self) -> int:
        """Slots of every chunk but the last, which may be shorter."""
        least, most = (max(1, size // self.agreed.residues.width) for size in CHUNK_BYTES)
        return self.chunk or min(max(self.agreed.residues.slots // 64, least), most)

    @cached_property
    def count(self) -> int:
        """How many chunks there are."""
        return -(-self.agreed.residues.slots // self.length)

    @property
    def window(self) -> int:
        """Chunks on their way round a ring that keep all its links busy while each also waits for what it sent."""
        return 2 * len(self.agreed.rings[0].members)

    def slots(self, chunk: int) -> slice:
        """Which slots of the vector a chunk has."""
        return slice(chunk * self.length, min((chunk + 1) * self.length, self.agreed.residues.slots))

    def residues(self, chunk: int) -> Residues[Any]:
        """Return the arithmetic of a chunk's slots."""
        return self._last if chunk == self.count - 1 else self._whole

    @cached_property
    def _whole(self) -> Residues[Any]:
        return self.agreed.residues.of(self.length)

    @cached_property
    def _last(self) -> Residues[Any]:
        left = self.slots(self.count - 1)
        return self.agreed.residues.of(left.stop - left.start)

    def frame_bytes(self, chunk: int) -> int:
        """Bytes of the frame of a chunk."""
        residues = self.residues(chunk)
        return HEAD_BYTES + residues.slots * residues.width

    @cached_property
    def identity(self) -> bytes:
        """16 bytes that two members share only if they mean the same sum."""
        agreed = self.agreed
        numbers = f"{agreed.name} {agreed.residues.modulus} {agreed.residues.slots} {self.length}".encode()
        return hashlib.blake2b(
            agreed.digest + agreed.session + numbers, digest_size=16, person=b"voxring chunks"
        ).digest()

    def stamp(self, frame: memoryview, ring: int, sender: str, chunk: int) -> None:
        """Write the head of a frame whose residues stand there."""
        place = self.agreed.rings[ring].members.index(sender)
        _HEAD.pack_into(frame, 0, _MAGIC, self.identity, ring, place, chunk)
        _CHECK.pack_into(frame, _HEAD.size, _check(frame))

    def open(self, frame: memoryview, me: str) -> tuple[int, int]:
        """Check that a frame is a chunk of this sum from my predecessor to me; return its ring and number.

        Raises
        ------
        RemoteProtocolError
            It is none. What came is named by its place, never by its content.
        """
        if len(frame) < HEAD_BYTES or frame[:3] != _MAGIC[:3]:
            raise RemoteProtocolError("chunk: expected a chunk of voxring, got something else")
        magic, identity, ring, place, chunk = _HEAD.unpack_from(frame)
        if magic != _MAGIC:
            raise RemoteProtocolError(
                f"chunk: expected protocol version {VERSION}, got {magic[3]}: run one release of voxring everywhere"
            )
        if _CHECK.unpack_from(frame, _HEAD.size) != (_check(frame),):
            raise RemoteProtocolError("chunk: damaged on the way: its check does not match")
        if identity != self.identity:
            raise RemoteProtocolError(
                "chunk: expected one of the running sum, got one of another study, coin, session, sum or length: "
                "an old or foreign message, or a peer with other settings"
            )
        if ring >= len(self.agreed.rings):
            raise RemoteProtocolError(f"chunk: expected a ring below {len(self.agreed.rings)}, got {ring}")
        members = self.agreed.rings[ring].members
        if place != (members.index(me) - 1) % len(members):
            raise RemoteProtocolError(
                f"chunk: expected one from {self.agreed.rings[ring].predecessor(me)}, got another"
            )
        if chunk >= self.count:
            raise RemoteProtocolError(f"chunk: expected a number below {self.count}, got {chunk}")
        if len(frame) != self.frame_bytes(chunk):
            raise RemoteProtocolError(f"chunk: expected {self.frame_bytes(chunk)} bytes, got {len(frame)}")
        return ring, chunk


def _check(frame: memoryview) -> int:
    whole = HEAD_BYTES + (len(frame) - HEAD_BYTES) // (8 * _PIECES) * (8 * _PIECES)
    pieces = np.frombuffer(frame[HEAD_BYTES:whole], "<u8").reshape(_PIECES, -1)
    return crc32(frame[whole:], crc32(np.add.reduce(pieces, axis=1), crc32(frame[: _HEAD.size])))


class _Shares:
    """One member's shares of its vector, any chunk of any ring when it is asked for."""

    def __init__(self, plan: ChunkedSum, values: Values | None, random: Random) -> None:
        agreed = plan.agreed
        self._plan = plan
        self._vector = None if values is None else agreed.lifted(values)
        self._uniform = [Keystream(random) for _ in agreed.rings[1:]]

    def add_to(self, body: memoryview, ring: int, chunk: int) -> None:
        """Add the share of a chunk to the residues that stand in a body."""
        residues = self._plan.residues(chunk)
        if ring < len(self._uniform):
            residues.add_within(body, [residues.uniform(self._uniform[ring].chunk(chunk))])
            return
        # The last ring's shares make up the value.
        mine = [] if self._vector is None else [residues.part(self._vector, self._plan.slots(chunk))]
        others = [residues.uniform(stream.chunk(chunk)) for stream in self._uniform]
        residues.add_within(body, mine, others)


class _Came:
    """Which chunks have come, by the check of each."""

    def __init__(self, plan: ChunkedSum) -> None:
        self._checks = [[_NOT_YET] * plan.count for _ in plan.agreed.rings]

    @property
    def left(self) -> int:
        return sum(checks.count(_NOT_YET) for checks in self._checks)

    @property
    def any_whole(self) -> bool:
        """Whether some chunk has come round every ring."""
        return any(_NOT_YET not in checks for checks in zip(*self._checks, strict=True))

    def is_repeat(self, ring: int, chunk: int, check: int) -> bool:
        known = self._checks[ring][chunk]
        if known not in (check, _NOT_YET):
            raise RemoteProtocolError(f"chunk: {chunk} of ring {ring} has passed; a second, different one came for it")
        return known == check

    def note(self, ring: int, chunk: int, check: int) -> None:
        self._checks[ring][chunk] = check


class ChunkMember:
    """A member other than the master: adds its share to each chunk that passes.

    Raises
    ------
    BoundError
        A value leaves its bound; the whole vector is looked at before anything is sent.
    """

    def __init__(self, plan: ChunkedSum, me: str, values: Values, random: Random) -> None:
        self._plan, self._me = plan, me
        self._shares = _Shares(plan, values, random)
        self._came = _Came(plan)
        self._heads = [hashlib.sha256() for _ in plan.agreed.rings]
        self._bytes = [0 for _ in plan.agreed.rings]

    @property
    def done(self) -> bool:
        """Whether every chunk of every ring has passed."""
        return not self._came.left

    @property
    def passed(self) -> list[tuple[int, str]]:
        """For each ring the bytes that this member passed on, and the SHA-256 of their heads, which hold the checks."""
        return [(size, heads.hexdigest()) for size, heads in zip(self._bytes, self._heads, strict=True)]

    def receive(self, frame: memoryview) -> tuple[int, int]:
        """Turn a chunk of the predecessor into the one for the successor, in place; return its ring and number.

        Raises
        ------
        RemoteProtocolError
            The frame is none that this member waits for. Neither it nor anything else changes.
        """
        ring, chunk = self._plan.open(frame, self._me)
        (check,) = _CHECK.unpack_from(frame, _HEAD.size)
        again = self._came.is_repeat(ring, chunk, check)
        self._shares.add_to(frame[HEAD_BYTES:], ring, chunk)
        self._plan.stamp(frame, ring, self._me, chunk)
        self._came.note(ring, chunk, check)
        if not again:
            self._heads[ring].update(frame[:HEAD_BYTES])
            self._bytes[ring] += len(frame)
        return ring, chunk


class ChunkMaster:
    """The member that starts the sum and learns it; its own value is 0."""

    def __init__(self, plan: ChunkedSum, random: Random) -> None:
        residues, rings = plan.agreed.residues, plan.agreed.rings
        self._plan, self._me = plan, rings[0].master
        self._shares = _Shares(plan, None, random)
        self._blinds = [Keystream(random) for _ in rings]
        self._sent = np.zeros((len(rings), plan.count), np.bool_)
        self._came = _Came(plan)
        self._total = residues.zeros()

    def fill(self, frame: memoryview, ring: int, chunk: int) -> None:
        """Write the blinded first message of a chunk into a frame of its length."""
        residues, body = self._plan.residues(chunk), frame[HEAD_BYTES:]
        residues.fill(body, self._blinds[ring].chunk(chunk))
        if not self._sent[ring, chunk]:
            residues.subtract_at(self._total, self._plan.slots(chunk), body)
        self._shares.add_to(body, ring, chunk)
        self._plan.stamp(frame, ring, self._me, chunk)
        self._sent[ring, chunk] = True

    def receive(self, frame: memoryview) -> tuple[int, int]:
        """Take a chunk that came back round a ring; return its ring and number.

        Raises
        ------
        RemoteProtocolError
            The frame is none that the master waits for. Nothing changes.
        """
        ring, chunk = self._plan.open(frame, self._me)
        (check,) = _CHECK.unpack_from(frame, _HEAD.size)
        if not self._sent[ring, chunk]:
            raise RemoteProtocolError("chunk: expected none before the master has sent its own")
        if not self._came.is_repeat(ring, chunk, check):
            self._plan.residues(chunk).add_at(self._total, self._plan.slots(chunk), frame[HEAD_BYTES:])
            self._came.note(ring, chunk, check)
        return ring, chunk

    @property
    def opened(self) -> bool:
        """Whether the totals of some slots are known: those of a chunk that is back round every ring."""
        return self._came.any_whole

    @property
    def done(self) -> bool:
        """Whether every chunk of every ring is back."""
        return not self._came.left

    @property
    def residues(self) -> Any:
        """The sum as residues, in the form of the sum's `Residues`; complete when `done`."""
        return self._total

    @property
    def total(self) -> npt.NDArray[np.int64] | list[int]:
        """The sum of the values of all members; an array, without a copy, where residues have 64 bits.

        Raises
        ------
        LocalProtocolError
            Not every chunk is back.
        RemoteProtocolError
            A sum is larger than all bounds together allow, or does not fit its checksum.
        """
        if not self.done:
            raise LocalProtocolError(f"the total is known when every chunk is back; {self._came.left} are missing")
        return self._plan.agreed.totals(self._total)
