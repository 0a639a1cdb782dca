"""One secure sum of a long vector among processes: a thread for each ring carries chunks from stream to stream."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from voxring.net.streams import Incoming, Outgoing, Seal, Streams, dialler
from voxring.ring.chunks import ChunkedSum, ChunkMaster, ChunkMember

SealOf = Callable[[str, str, int], Seal | None]
"""From whom, to whom, round which ring: how to seal the frames; all streams of a sum, or none. Each stream of each sum
needs a key of its own, which its two ends alone know, and every call makes a new seal."""


def in_the_clear(sender: str, receiver: str, ring: int) -> None:
    """Seal nothing."""


def pass_on(
    plan: ChunkedSum,
    member: ChunkMember,
    me: str,
    streams: Streams,
    addresses: Mapping[str, Sequence[str]],
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
    addresses : mapping of name to addresses
        Where those of the other members do, `Streams.addresses` of each; the master listens nowhere.
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
    jobs, ends = list[Callable[[], None]](), list[Incoming | Outgoing]()
    try:
        for number, ring in enumerate(plan.agreed.rings):
            before, after = ring.predecessor(me), ring.successor(me)
            fetched = after == ring.master
            leaving = streams.door(len(plan.agreed.rings)) if fetched else dialler(addresses[after][number])
            arriving, seal = streams.door(number), seal_of(before, me, number)
            ends.append(incoming := Incoming(before, arriving, _key(plan, number, me), timeout, seal))
            seal = seal_of(me, after, number)
            ends.append(outgoing := Outgoing(after, leaving, _key(plan, number, after), timeout, seal))
            jobs.append(partial(_carry, plan, member, incoming, outgoing))
        _together(jobs, ends)
    finally:
        for end in ends:
            end.close()


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
    addresses: Mapping[str, Sequence[str]],
    *,
    timeout: float = 60.0,
    seal_of: SealOf = in_the_clear,
) -> None:
    """Start a sum as its master, and take what comes back; ``master.total`` is the sum then.

    Parameters and errors as of `pass_on`.
    """
    jobs, ends = list[Callable[[], None]](), list[Incoming | Outgoing]()
    one_at_a_time = threading.Lock()
    rings = plan.agreed.rings
    try:
        for number, ring in enumerate(rings):
            me, first, last = ring.master, ring.successor(ring.master), ring.last
            leaving, seal = dialler(addresses[first][number]), seal_of(me, first, number)
            ends.append(outgoing := Outgoing(first, leaving, _key(plan, number, first), timeout, seal))
            arriving, seal = dialler(addresses[last][len(rings)]), seal_of(last, me, number)
            ends.append(incoming := Incoming(last, arriving, _key(plan, number, me), timeout, seal))
            under_way = threading.Semaphore(plan.window)
            jobs.append(partial(_start, plan, master, number, outgoing, under_way))
            jobs.append(partial(_gather, plan, master, incoming, under_way, one_at_a_time))
        _together(jobs, ends)
    finally:
        for end in ends:
            end.close()


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


def _together(jobs: Sequence[Callable[[], None]], ends: Sequence[Incoming | Outgoing]) -> None:
    """Run jobs side by side, the first in this thread; when one fails, end the others and raise what it raised."""
    failed: list[BaseException] = []

    def run(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            failed.append(error)
            for end in ends:
                end.stop()

    with ThreadPoolExecutor(len(jobs), "chunks") as pool:
        for job in jobs[1:]:
            pool.submit(run, job)
        run(jobs[0])
    if failed:
        raise failed[0]


def _key(plan: ChunkedSum, ring: int, receiver: str) -> bytes:
    """The name of the stream round a ring to a receiver."""
    place = plan.agreed.rings[ring].members.index(receiver)
    return plan.identity + bytes([ring]) + place.to_bytes(2, "big")
