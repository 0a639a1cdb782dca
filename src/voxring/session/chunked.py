"""One secure sum of a long vector among processes: a thread for each ring carries chunks from stream to stream."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from voxring.errors import RemoteProtocolError, StudyError, VoxringError
from voxring.net.address import beside
from voxring.net.mailbox import NAME
from voxring.net.relayed_streams import RelayIncoming, RelayOutgoing
from voxring.net.streams import AesGcm, Dialler, Door, Incoming, Outgoing, Receiving, Seal, Sending, Streams
from voxring.ring.chunks import ChunkedSum, ChunkMaster, ChunkMember
from voxring.session.streamed import KEY_BYTES, Streamed

SealOf = Callable[[str, str, int], Seal | None]
"""From whom, to whom, round which ring: how to seal the frames; all streams of a sum, or none. Each stream of each sum
needs a key of its own, which its two ends alone know, and every call makes a new seal."""
Doors: TypeAlias = Mapping[str, Sequence[str] | Mapping[int, str]]
"""By name and number, the address of each door that is dialled: a member's `Streams.addresses` will do."""
Run: TypeAlias = Callable[[Callable[[], object]], None]
"""Carries all chunks; what it is given is called now and then meanwhile, and ends the sum by raising."""

_LOOK = 0.1  # seconds


def in_the_clear(sender: str, receiver: str, ring: int) -> None:
    """Seal nothing."""


def sealed_by(streamed: Streamed[ChunkMember] | Streamed[ChunkMaster]) -> SealOf:
    """Seal each stream with the key that its ends have for it, bound to what the stream is for."""
    if not streamed.sealed:
        return in_the_clear

    def seal(sender: str, receiver: str, ring: int) -> Seal:
        stream = b"voxring stream|" + name_of(streamed.plan, ring, receiver)
        return AesGcm(HKDF(SHA256(), KEY_BYTES, None, stream).derive(streamed.keys[sender, receiver, ring]))

    return seal


def doors_of(streamed: Streamed[ChunkMember] | Streamed[ChunkMaster], where: Mapping[str, str]) -> Doors:
    """Return where to dial, from where each member takes messages.

    Raises
    ------
    RemoteProtocolError
        A member named a port that there is not.
    """
    try:
        return {
            name: {door: beside(where[name], distance) for door, distance in doors.items()}
            for name, doors in streamed.doors.items()
        }
    except StudyError as error:
        raise RemoteProtocolError(f"door: {error}") from None


class Ways(Protocol):
    """How a member's streams are made."""

    def incoming(self, sender: str, receiver: str, ring: int) -> Receiving:
        """Return the end at which this member receives."""

    def outgoing(self, sender: str, receiver: str, ring: int) -> Sending:
        """Return the end at which this member sends."""


@dataclass(frozen=True)
class Direct:
    """Connections between the members. ``streams`` is where this one's arrive; the researcher has none, and dials."""

    plan: ChunkedSum
    streams: Streams | None
    doors: Doors
    timeout: float
    seal_of: SealOf

    def incoming(self, sender: str, receiver: str, ring: int) -> Receiving:
        """Return the end at which this member receives."""
        fetch = len(self.plan.agreed.rings)
        way = Dialler(self.doors[sender][fetch]) if self.streams is None else self.streams.doors[ring]
        name, seal = name_of(self.plan, ring, receiver), self.seal_of(sender, receiver, ring)
        return Incoming(sender, way, name, self.timeout, seal)

    def outgoing(self, sender: str, receiver: str, ring: int) -> Sending:
        """Return the end at which this member sends."""
        fetched = self.streams is not None and receiver == self.plan.agreed.rings[ring].master
        way: Door | Dialler
        if fetched and self.streams is not None:
            way = self.streams.doors[len(self.plan.agreed.rings)]
        else:
            way = Dialler(self.doors[receiver][ring])
        name, seal = name_of(self.plan, ring, receiver), self.seal_of(sender, receiver, ring)
        return Outgoing(receiver, way, name, self.timeout, seal)


@dataclass(frozen=True)
class Relayed:
    """Mailboxes at a relay; the key of a stream gives its mailbox, too, so that its two ends alone can find it."""

    streamed: Streamed[ChunkMember] | Streamed[ChunkMaster]
    relay: str
    timeout: float

    def incoming(self, sender: str, receiver: str, ring: int) -> Receiving:
        """Return the end at which this member receives."""
        token, name, seal = self._of(sender, receiver, ring)
        return RelayIncoming(sender, self.relay, token, name, self.timeout, seal)

    def outgoing(self, sender: str, receiver: str, ring: int) -> Sending:
        """Return the end at which this member sends."""
        token, name, seal = self._of(sender, receiver, ring)
        return RelayOutgoing(receiver, self.relay, token, name, self.timeout, seal)

    def _of(self, sender: str, receiver: str, ring: int) -> tuple[bytes, bytes, Seal]:
        key, name = self.streamed.keys[sender, receiver, ring], name_of(self.streamed.plan, ring, receiver)
        token = HKDF(SHA256(), NAME, None, b"voxring stream at a relay|" + name).derive(key)
        return token, name, AesGcm(HKDF(SHA256(), KEY_BYTES, None, b"voxring stream|" + name).derive(key))


def ways_of(
    streamed: Streamed[ChunkMember] | Streamed[ChunkMaster],
    streams: Streams | None,
    where: Mapping[str, str],
    relay: str,
    timeout: float,
) -> Ways:
    """Return how a member's streams are made in a session; ``where`` is where each member takes messages."""
    if relay:
        return Relayed(streamed, relay, timeout)
    return Direct(streamed.plan, streams, doors_of(streamed, where), timeout, sealed_by(streamed))


def nothing() -> None:
    """Look at nothing."""


def pass_on(
    plan: ChunkedSum,
    member: ChunkMember,
    me: str,
    streams: Streams,
    doors: Doors,
    *,
    timeout: float = 60.0,
    seal_of: SealOf = in_the_clear,
) -> None:
    """Take part in a sum as a member, until every chunk of every ring has passed.

    Parameters
    ----------
    plan, member : ChunkedSum, ChunkMember
    me : str
        This member's name.
    streams : Streams
        Where this member's streams arrive.
    doors : mapping of name to addresses
        Where those of the next in each ring do; the master listens nowhere.
    timeout : float
        Seconds in which something must move.
    seal_of : callable
        By default links are in the clear.

    Raises
    ------
    PeerError
        A neighbour was not there, went away, or moved nothing for too long.
    RemoteProtocolError
        What came did not fit.
    """
    with passing(plan, member, me, Direct(plan, streams, doors, timeout, seal_of)) as run:
        run(nothing)


@contextmanager
def passing(plan: ChunkedSum, member: ChunkMember, me: str, ways: Ways) -> Iterator[Run]:
    """Do as `pass_on` when what this gives is called; the streams stay open until the end, also after an error."""
    jobs, ends = list[Callable[[], None]](), list[Receiving | Sending]()
    with ExitStack() as stack:
        for number, ring in enumerate(plan.agreed.rings):
            incoming = stack.enter_context(closing(ways.incoming(ring.predecessor(me), me, number)))
            outgoing = stack.enter_context(closing(ways.outgoing(me, ring.successor(me), number)))
            ends += [incoming, outgoing]
            jobs.append(outgoing.meet)  # before the first chunk is here: else members would meet one after the other
            jobs.append(partial(_carry, plan, member, incoming, outgoing))
        yield partial(_together, jobs, ends)


def _frames(plan: ChunkedSum) -> Iterator[memoryview]:
    """Go through the chunks; for each, memory of the length of its frame, which is the same for all."""
    memory = memoryview(bytearray(plan.frame_bytes(0)))
    for chunk in range(plan.count):
        yield memory[: plan.frame_bytes(chunk)]


def _carry(plan: ChunkedSum, member: ChunkMember, incoming: Receiving, outgoing: Sending) -> None:
    for frame in _frames(plan):
        incoming.receive(frame)
        member.receive(frame)
        outgoing.send(frame)
    incoming.finish()
    outgoing.finish()


def lead(
    plan: ChunkedSum,
    master: ChunkMaster,
    doors: Doors,
    *,
    timeout: float = 60.0,
    seal_of: SealOf = in_the_clear,
) -> None:
    """Start a sum as its master, and take what comes back; ``master.total`` is the sum then.

    Parameters and errors as of `pass_on`.
    """
    with leading(plan, master, Direct(plan, None, doors, timeout, seal_of)) as run:
        run(nothing)


@contextmanager
def leading(plan: ChunkedSum, master: ChunkMaster, ways: Ways) -> Iterator[Run]:
    """Do as `lead` when what this gives is called; the streams stay open until the end, also after an error."""
    jobs, ends = list[Callable[[], None]](), list[Receiving | Sending]()
    one_at_a_time = threading.Lock()
    with ExitStack() as stack:
        for number, ring in enumerate(plan.agreed.rings):
            me, under_way = ring.master, threading.Semaphore(plan.window)
            outgoing = stack.enter_context(closing(ways.outgoing(me, ring.successor(me), number)))
            incoming = stack.enter_context(closing(ways.incoming(ring.last, me, number)))
            ends += [outgoing, incoming]
            jobs.append(partial(_start, plan, master, number, outgoing, under_way, one_at_a_time))
            jobs.append(partial(_gather, plan, master, incoming, under_way, one_at_a_time))
        yield partial(_together, jobs, ends)


def _start(
    plan: ChunkedSum,
    master: ChunkMaster,
    ring: int,
    outgoing: Sending,
    under_way: threading.Semaphore,
    one_at_a_time: threading.Lock,
) -> None:
    for chunk, frame in enumerate(_frames(plan)):
        under_way.acquire()
        with one_at_a_time:
            master.fill(frame, ring, chunk)
        outgoing.send(frame)
    outgoing.finish()


def _gather(
    plan: ChunkedSum,
    master: ChunkMaster,
    incoming: Receiving,
    under_way: threading.Semaphore,
    one_at_a_time: threading.Lock,
) -> None:
    try:
        for frame in _frames(plan):
            incoming.receive(frame)
            with one_at_a_time:
                master.receive(frame)
            under_way.release()
        incoming.finish()
    finally:
        under_way.release(plan.count)  # after an error, nobody waits for what does not come


def _together(
    jobs: Sequence[Callable[[], None]], ends: Sequence[Receiving | Sending], watch: Callable[[], object]
) -> None:
    """Run jobs side by side; when one fails, or ``watch``, end the others and raise what it raised."""
    failed: list[BaseException] = []

    def fail(error: BaseException) -> None:
        if isinstance(error, VoxringError):
            # Its frames hold memoryviews, and CPython 3.11 crashes when it finds those in a cycle of garbage.
            error.__traceback__ = error.__context__ = None
        failed.append(error)
        for end in ends:
            end.stop()

    def run(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            fail(error)

    with ThreadPoolExecutor(len(jobs), "chunks") as pool:
        running = [pool.submit(run, job) for job in jobs]
        try:
            while wait(running, _LOOK).not_done:
                watch()
        except BaseException as error:
            fail(error)
    if failed:
        raise failed[0]


def name_of(plan: ChunkedSum, ring: int, receiver: str) -> bytes:
    """Return the name of the stream round a ring to a receiver: of study, coin, session, sum, ring and direction."""
    place = plan.agreed.rings[ring].members.index(receiver)
    return plan.identity + bytes([ring]) + place.to_bytes(2, "big")
