"""One secure sum of a long vector among processes: a thread for each ring carries chunks from stream to stream."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import TypeAlias

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from voxring.errors import RemoteProtocolError, StudyError
from voxring.net.address import beside
from voxring.net.streams import AesGcm, Incoming, Outgoing, Seal, Streams, dialler
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
    with passing(plan, member, me, streams, doors, timeout=timeout, seal_of=seal_of) as run:
        run(nothing)


@contextmanager
def passing(
    plan: ChunkedSum,
    member: ChunkMember,
    me: str,
    streams: Streams,
    doors: Doors,
    *,
    timeout: float,
    seal_of: SealOf,
) -> Iterator[Run]:
    """Do as `pass_on` when what this gives is called; the streams stay open until the end, also after an error."""
    jobs, ends = list[Callable[[], None]](), list[Incoming | Outgoing]()
    with ExitStack() as stack:
        for number, ring in enumerate(plan.agreed.rings):
            before, after = ring.predecessor(me), ring.successor(me)
            fetched = after == ring.master
            leaving = streams.door(len(plan.agreed.rings)) if fetched else dialler(doors[after][number])
            arriving, seal = streams.door(number), seal_of(before, me, number)
            incoming = Incoming(before, arriving, name_of(plan, number, me), timeout, seal)
            ends.append(stack.enter_context(closing(incoming)))
            seal = seal_of(me, after, number)
            outgoing = Outgoing(after, leaving, name_of(plan, number, after), timeout, seal)
            ends.append(stack.enter_context(closing(outgoing)))
            jobs.append(partial(_carry, plan, member, incoming, outgoing))
        yield partial(_together, jobs, ends)


def _carry(plan: ChunkedSum, member: ChunkMember, incoming: Incoming, outgoing: Outgoing) -> None:
    for chunk in range(plan.count):
        message = incoming.receive(plan.frame_bytes(chunk))
        try:
            member.receive(message.frame)
        except BaseException:
            message.free()
            raise
        outgoing.send(message)
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
    with leading(plan, master, doors, timeout=timeout, seal_of=seal_of) as run:
        run(nothing)


@contextmanager
def leading(plan: ChunkedSum, master: ChunkMaster, doors: Doors, *, timeout: float, seal_of: SealOf) -> Iterator[Run]:
    """Do as `lead` when what this gives is called; the streams stay open until the end, also after an error."""
    jobs, ends = list[Callable[[], None]](), list[Incoming | Outgoing]()
    one_at_a_time = threading.Lock()
    rings = plan.agreed.rings
    with ExitStack() as stack:
        for number, ring in enumerate(rings):
            me, first, last = ring.master, ring.successor(ring.master), ring.last
            leaving, seal = dialler(doors[first][number]), seal_of(me, first, number)
            outgoing = Outgoing(first, leaving, name_of(plan, number, first), timeout, seal)
            ends.append(stack.enter_context(closing(outgoing)))
            arriving, seal = dialler(doors[last][len(rings)]), seal_of(last, me, number)
            incoming = Incoming(last, arriving, name_of(plan, number, me), timeout, seal)
            ends.append(stack.enter_context(closing(incoming)))
            under_way = threading.Semaphore(plan.window)
            jobs.append(partial(_start, plan, master, number, outgoing, under_way))
            jobs.append(partial(_gather, plan, master, incoming, under_way, one_at_a_time))
        yield partial(_together, jobs, ends)


def _start(
    plan: ChunkedSum, master: ChunkMaster, ring: int, outgoing: Outgoing, under_way: threading.Semaphore
) -> None:
    for chunk in range(plan.count):
        under_way.acquire()
        message = outgoing.message(plan.frame_bytes(chunk))
        master.fill(message.frame, ring, chunk)
        outgoing.send(message)
    outgoing.finish()


def _gather(
    plan: ChunkedSum,
    master: ChunkMaster,
    incoming: Incoming,
    under_way: threading.Semaphore,
    one_at_a_time: threading.Lock,
) -> None:
    try:
        for chunk in range(plan.count):
            message = incoming.receive(plan.frame_bytes(chunk))
            try:
                with one_at_a_time:
                    master.receive(message.frame)
            finally:
                message.free()
            under_way.release()
        incoming.finish()
    finally:
        under_way.release(plan.count)  # after an error, nobody waits for what does not come


def _together(
    jobs: Sequence[Callable[[], None]], ends: Sequence[Incoming | Outgoing], watch: Callable[[], object]
) -> None:
    """Run jobs side by side; when one fails, or ``watch``, end the others and raise what it raised."""
    failed: list[BaseException] = []

    def fail(error: BaseException) -> None:
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
