"""One secure sum of a long vector among processes: a thread for each ring carries chunks from stream to stream."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from voxring.net.link import LOOK
from voxring.net.streams import Incoming, Outgoing, Patience, Seal, Streams, dialler
from voxring.ring.chunks import ChunkedSum, ChunkMaster, ChunkMember
from voxring.session.as_party import grace

SealOf = Callable[[str, str, int], Seal | None]
"""From whom, to whom, round which ring: how to seal the frames. Each seal needs a key of its own in each sum."""


def in_the_clear(sender: str, receiver: str, ring: int) -> None:
    """Seal nothing."""


def pass_on(
    plan: ChunkedSum,
    member: ChunkMember,
    me: str,
    streams: Streams,
    addresses: Mapping[str, str],
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
    addresses : mapping of name to address
        Where those of the other members do; the master listens nowhere.
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
    keys, jobs, ends = list[bytes](), list[Callable[[], None]](), list[Incoming | Outgoing]()
    for number, ring in enumerate(plan.agreed.rings):
        before, after = ring.predecessor(me), ring.successor(me)
        keys.append(_key(plan, number, me))
        arriving = streams.expect(keys[-1])
        if after == ring.master:  # which fetches
            keys.append(_key(plan, number, after))
            leaving = streams.expect(keys[-1])
        else:
            leaving = dialler(addresses[after], _key(plan, number, after))
        patience = Patience(timeout, grace(timeout))
        incoming = Incoming(before, arriving, plan.window, patience, seal_of(before, me, number))
        outgoing = Outgoing(after, leaving, plan.window, patience, seal_of(me, after, number))
        incoming.meanwhile = outgoing.tend  # or what a broken connection lost would be missed by nobody but the master
        ends += [incoming, outgoing]
        jobs.append(partial(_carry, plan, member, incoming, outgoing))
    try:
        _together(jobs, ends)
    finally:
        for key in keys:
            streams.forget(key)


def _carry(plan: ChunkedSum, member: ChunkMember, incoming: Incoming, outgoing: Outgoing) -> None:
    for chunk in range(plan.count):
        frame = outgoing.frame(plan.frame_bytes(chunk))
        incoming.receive(frame)
        member.receive(frame)
        outgoing.send()
        incoming.acknowledge(last=chunk == plan.count - 1)
    outgoing.finish()


def lead(
    plan: ChunkedSum,
    master: ChunkMaster,
    addresses: Mapping[str, str],
    *,
    timeout: float = 60.0,
    seal_of: SealOf = in_the_clear,
) -> None:
    """Start a sum as its master, and take what comes back; ``master.total`` is the sum then.

    Parameters and errors as of `pass_on`.
    """
    jobs, ends = list[Callable[[], None]](), list[Incoming | Outgoing]()
    one_at_a_time = threading.Lock()
    for number, ring in enumerate(plan.agreed.rings):
        me, first, last = ring.master, ring.successor(ring.master), ring.last
        patience = Patience(timeout, grace(timeout))
        leaving = dialler(addresses[first], _key(plan, number, first))
        arriving = dialler(addresses[last], _key(plan, number, me))
        outgoing = Outgoing(first, leaving, plan.window, patience, seal_of(me, first, number))
        incoming = Incoming(last, arriving, plan.window, patience, seal_of(last, me, number))
        ends += [outgoing, incoming]
        under_way = threading.Semaphore(plan.window)
        jobs.append(partial(_start, plan, master, number, outgoing, under_way))
        jobs.append(partial(_gather, plan, master, incoming, under_way, one_at_a_time))
    _together(jobs, ends)


def _start(
    plan: ChunkedSum, master: ChunkMaster, ring: int, outgoing: Outgoing, under_way: threading.Semaphore
) -> None:
    for chunk in range(plan.count):
        while not under_way.acquire(timeout=LOOK):
            outgoing.tend()
        master.fill(outgoing.frame(plan.frame_bytes(chunk)), ring, chunk)
        outgoing.send()
    outgoing.finish()


def _gather(
    plan: ChunkedSum,
    master: ChunkMaster,
    incoming: Incoming,
    under_way: threading.Semaphore,
    one_at_a_time: threading.Lock,
) -> None:
    buffer = memoryview(bytearray(plan.frame_bytes(0)))
    try:
        for chunk in range(plan.count):
            frame = buffer[: plan.frame_bytes(chunk)]
            incoming.receive(frame)
            with one_at_a_time:
                master.receive(frame)
            incoming.acknowledge(last=chunk == plan.count - 1)
            under_way.release()
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

    try:
        with ThreadPoolExecutor(len(jobs), "chunks") as pool:
            for job in jobs[1:]:
                pool.submit(run, job)
            run(jobs[0])
    finally:
        for end in ends:
            end.close()
    if failed:
        raise failed[0]


def _key(plan: ChunkedSum, ring: int, receiver: str) -> bytes:
    """The name of the stream round a ring to a receiver."""
    place = plan.agreed.rings[ring].members.index(receiver)
    return plan.identity + bytes([ring]) + place.to_bytes(2, "big")
