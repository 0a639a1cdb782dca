"""Streams over real sockets on the loopback address, whole sums over them, and what they do when something breaks."""

import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from random import Random

import numpy as np
import pytest

from voxring.errors import PeerError, RemoteProtocolError
from voxring.net.streams import KEY_BYTES, AesGcm, Incoming, Outgoing, Patience, Seal, Streams, dialler
from voxring.ring.chunks import ChunkedSum, ChunkMaster, ChunkMember
from voxring.ring.order import rings_of
from voxring.ring.protocol import SecureSum
from voxring.ring.residues import Limbs
from voxring.session.chunked import in_the_clear, lead, pass_on

ANYWHERE = "tcp://127.0.0.1:0"
KEY = b"k" * KEY_BYTES
QUICK = Patience(timeout=5, grace=2)
SECRET = bytes(range(32))


class Between:
    """Passes bytes on between a stream's two ends, and may cut, flip or hold them."""

    def __init__(self, address: str) -> None:
        self._to = ("127.0.0.1", int(address.rpartition(":")[2]))
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._socket.getsockname()[1]}"
        self.cuts: list[int] = []  # after so many bytes of a connection, that is closed; one for each connection
        self.flip: int | None = None  # the byte of the first connection to change
        self.connections = 0
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                came, _ = self._socket.accept()
                on = socket.create_connection(self._to)
            except OSError:
                return
            self._open += [came, on]
            cut = self.cuts.pop(0) if self.cuts else None
            flip = self.flip if self.connections == 0 else None
            self.connections += 1
            threading.Thread(target=self._pass, args=(came, on, cut, flip), daemon=True).start()
            threading.Thread(target=self._pass, args=(on, came, cut, None), daemon=True).start()

    def _pass(self, source: socket.socket, to: socket.socket, cut: int | None, flip: int | None) -> None:
        done = 0
        try:
            while piece := bytearray(source.recv(1000)):
                if flip is not None and done <= flip < done + len(piece):
                    piece[flip - done] ^= 1
                to.sendall(piece[: cut - done] if cut is not None else piece)
                done += len(piece)
                if cut is not None and done >= cut:
                    until = time.monotonic() + 0.2
                    source.settimeout(0.2)
                    while time.monotonic() < until and source.recv(10_000):
                        pass  # taken, and lost with the connection
                    break
        except OSError:
            pass
        shut(source, to)

    def close(self) -> None:
        self._socket.close()
        shut(*self._open)


def shut(*connections: socket.socket) -> None:
    for one in connections:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)  # wakes a thread that reads
        one.close()


@pytest.fixture
def streams() -> Iterator[Streams]:
    with Streams(ANYWHERE) as streams:
        yield streams


@pytest.fixture
def between(streams: Streams) -> Iterator[Between]:
    between = Between(streams.address)
    yield between
    between.close()


def send_all(outgoing: Outgoing, frames: list[bytes]) -> None:
    with outgoing:
        for frame in frames:
            outgoing.frame(len(frame))[:] = frame
            outgoing.send()
        outgoing.finish()


def receive_all(incoming: Incoming, sizes: list[int]) -> list[bytes]:
    came = []
    with incoming:
        for number, size in enumerate(sizes):
            frame = memoryview(bytearray(size))
            incoming.receive(frame)
            came.append(bytes(frame))
            incoming.acknowledge(last=number == len(sizes) - 1)
    return came


def carry(
    streams: Streams, address: str, frames: list[bytes], window: int = 4, seals: tuple = (None, None), *, back=False
) -> list[bytes]:
    """Send frames from the one who dials to the one who listens, or the other way."""
    listening, dialling = streams.expect(KEY), dialler(address, KEY)
    to, away = (dialling, listening) if back else (listening, dialling)
    incoming = Incoming("sender", to, window, QUICK, seals[1])
    outgoing = Outgoing("receiver", away, window, QUICK, seals[0])
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send_all, outgoing, frames)
        try:
            came = receive_all(incoming, [len(frame) for frame in frames])
        except Exception:
            outgoing.stop()
            raise
        sending.result()
    streams.forget(KEY)
    return came


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("window", [1, 2, 5, 50])
def test_frames_arrive_in_order_and_whole_at_any_window(
    streams: Streams, back: bool, sealed: bool, window: int
) -> None:
    draw = Random(window)  # noqa: S311
    frames = [draw.randbytes(draw.choice([1, 7, 1000, 70_000])) for _ in range(40)]
    seals = (AesGcm(SECRET), AesGcm(SECRET)) if sealed else (None, None)
    assert carry(streams, streams.address, frames, window, seals, back=back) == frames


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("sealed", [False, True])
def test_connections_that_break_anywhere_cost_no_frame(
    streams: Streams, between: Between, back: bool, sealed: bool
) -> None:
    draw = Random(1)  # noqa: S311
    frames = [draw.randbytes(draw.choice([1, 999, 5000, 20_000])) for _ in range(60)]
    between.cuts = [draw.choice([0, 5, 31, 33, 1000, 30_000, 60_000]) for _ in range(6)]
    seals = (AesGcm(SECRET), AesGcm(SECRET)) if sealed else (None, None)
    assert carry(streams, between.address, frames, 3, seals, back=back) == frames
    assert between.connections >= 3


def test_a_sender_holds_no_more_than_the_window(streams: Streams) -> None:
    outgoing = Outgoing("receiver", dialler(streams.address, KEY), 3, Patience(1.0, 0.5))
    listening = streams.expect(KEY)
    with ThreadPoolExecutor(1) as pool:
        took = pool.submit(listening, 0, lambda: None)
        with outgoing:
            for _ in range(3):
                outgoing.frame(100)
                outgoing.send()
            with pytest.raises(PeerError, match="receiver moved nothing of its stream for 1 s"):
                outgoing.frame(100)
            assert len(outgoing._kept) == 3
        took.result()[0].close()


def test_a_receiver_that_acknowledges_what_it_was_not_sent_is_found(streams: Streams) -> None:
    listening = streams.expect(KEY)
    for count in (1, 2**63):
        outgoing = Outgoing("receiver", dialler(streams.address, KEY), 3, QUICK)
        with ThreadPoolExecutor(1) as pool:
            took = pool.submit(listening, count, lambda: None)
            outgoing.frame(10)
            with pytest.raises(RemoteProtocolError, match="acknowledged frames that it was not sent"):
                outgoing.send()
            outgoing.close()
            took.result()[0].close()


# Seals.


def test_a_frame_changed_on_the_way_is_found_under_a_seal(streams: Streams, between: Between) -> None:
    between.flip = 5000
    with pytest.raises(RemoteProtocolError, match="changed on the way, or sealed with another key"):
        carry(streams, between.address, [bytes(1000)] * 10, 4, (AesGcm(SECRET), AesGcm(SECRET)))


def test_another_key_or_another_number_opens_nothing() -> None:
    frame, sealed, opened = memoryview(b"numbers!"), memoryview(bytearray(24)), memoryview(bytearray(8))
    AesGcm(SECRET).close(3, frame, sealed)
    AesGcm(SECRET).open(3, sealed, opened)
    assert opened == frame
    assert bytes(frame) not in bytes(sealed)
    for key, number in ((SECRET, 4), (bytes(32), 3)):
        with pytest.raises(RemoteProtocolError):
            AesGcm(key).open(number, sealed, opened)


# Those who do not come, go away, or say nothing.


def test_a_missing_a_leaving_and_a_silent_peer_are_told_apart(streams: Streams) -> None:
    listening, brief = streams.expect(KEY), Patience(0.4, 0.2)
    nobody = Incoming("st-mary", listening, 4, brief)
    with pytest.raises(PeerError, match=r"st-mary did not take part in a stream within 0\.4 s"):
        nobody.receive(memoryview(bytearray(1)))
    away = Outgoing("st-mary", dialler("tcp://127.0.0.1:1", KEY), 4, brief)
    away.frame(1)
    with pytest.raises(PeerError, match=r"st-mary did not take part in a stream within 0\.4 s"):
        away.send()
    incoming = Incoming("st-mary", listening, 4, brief)
    with ThreadPoolExecutor(1) as pool:
        dialled = pool.submit(dialler(streams.address, KEY), 0, lambda: None)
        with pytest.raises(PeerError, match=r"st-mary moved nothing of its stream for 0\.4 s"):
            incoming.receive(memoryview(bytearray(1)))
        dialled.result()[0].close()
    with pytest.raises(PeerError, match=r"st-mary went away and did not come back within 0\.2 s"):
        incoming.receive(memoryview(bytearray(1)))
    incoming.close()


def test_stopping_wakes_whoever_waits(streams: Streams) -> None:
    listening, patience = streams.expect(KEY), Patience(30, 30)
    for connect in (listening, dialler("tcp://127.0.0.1:1", KEY)):
        incoming = Incoming("st-mary", connect, 4, patience)
        threading.Timer(0.2, incoming.stop).start()
        start = time.monotonic()
        with pytest.raises(PeerError, match="the stream of st-mary was ended here"):
            incoming.receive(memoryview(bytearray(1)))
        assert time.monotonic() - start < 3


def test_strangers_change_nothing(streams: Streams) -> None:
    port = int(streams.address.rpartition(":")[2])
    hello = struct.pack(f">4s{KEY_BYTES}sxQ", b"VXS\x01", b"x" * KEY_BYTES, 0)
    strangers = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    for stranger, says in zip(
        strangers, [b"", b"GET / HTTP/1.1\r\n\r\n", hello, hello[:7], bytes(5000)] * 4, strict=True
    ):
        stranger.sendall(says)
    frames = [bytes([i]) * 1000 for i in range(20)]
    assert carry(streams, streams.address, frames) == frames
    strangers[2].settimeout(5)
    assert strangers[2].recv(1) == b""  # a stream that nobody expects is closed
    for stranger in strangers:
        stranger.close()


def test_an_address_in_use_is_a_peer_error(streams: Streams) -> None:
    with pytest.raises(PeerError, match="cannot listen at"):
        Streams(streams.address)


# Whole sums.


def a_plan(k: int, slots: int, *, chunk: int, collusion: int = 1, limbs: int = 1, bound: int = 2**40) -> ChunkedSum:
    rings = rings_of(bytes(32), [f"p{i}" for i in range(k)], collusion)
    return ChunkedSum(SecureSum(bytes(32), secrets.token_bytes(16), "sum", rings, Limbs(limbs, slots), bound), chunk)


def values_of(plan: ChunkedSum) -> dict[str, np.ndarray]:
    draw, slots = np.random.default_rng(1), plan.agreed.residues.slots
    names = plan.agreed.rings[0].members[1:]
    return {name: draw.integers(-(2**40), 2**40, slots) for name in names}


def gcm(sender: str, receiver: str, ring: int) -> Seal:
    return AesGcm(f"{sender} {receiver} {ring}".encode().ljust(32, b"."))


def sum_up(
    plan: ChunkedSum,
    values: Mapping[str, np.ndarray],
    *,
    seal_of: Callable = in_the_clear,
    between: Callable[[str, str], str] = lambda name, address: address,
    timeout: float = 10,
) -> ChunkMaster:
    """Run all members of a sum in threads; ``between`` may lead the way to a member over somebody else."""
    master = ChunkMaster(plan, secrets.token_bytes)
    doors = {name: Streams(ANYWHERE) for name in values}
    where = {name: between(name, door.address) for name, door in doors.items()}
    options = {"timeout": timeout, "seal_of": seal_of}

    def take_part(name: str) -> None:
        member = ChunkMember(plan, name, values[name], secrets.token_bytes)
        pass_on(plan, member, name, doors[name], where, **options)
        assert member.done

    try:
        with ThreadPoolExecutor(len(values)) as pool:
            parts = [pool.submit(take_part, name) for name in values]
            try:
                lead(plan, master, where, **options)
            finally:
                errors = [part.exception() for part in parts]
            assert errors == [None] * len(values)
    finally:
        for door in doors.values():
            assert not door._came  # nobody waits for more
            door.close()
    return master


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize(
    ("k", "collusion", "limbs", "slots", "chunk"),
    [(3, 1, 1, 100_003, 0), (3, 2, 2, 10_001, 1000), (5, 4, 1, 20_000, 999), (4, 1, 3, 1, 0), (9, 1, 1, 9000, 100)],
)
def test_a_vector_is_summed_over_sockets(
    k: int, collusion: int, limbs: int, slots: int, chunk: int, sealed: bool
) -> None:
    plan = a_plan(k, slots, chunk=chunk, collusion=collusion, limbs=limbs)
    values = values_of(plan)
    master = sum_up(plan, values, seal_of=gcm if sealed else in_the_clear)
    assert list(master.total) == sum(values.values()).tolist()


@pytest.mark.parametrize("sealed", [False, True])
def test_a_sum_survives_links_that_break(sealed: bool) -> None:
    plan = a_plan(3, 30_000, chunk=500)
    values, draw, proxies = values_of(plan), Random(2), []  # noqa: S311

    def between(name: str, address: str) -> str:
        proxies.append(Between(address))
        proxies[-1].cuts = [draw.randrange(100_000) for _ in range(4)]
        return proxies[-1].address

    master = sum_up(plan, values, between=between, seal_of=gcm if sealed else in_the_clear)
    assert (master.total == sum(values.values())).all()
    assert sum(proxy.connections for proxy in proxies) > 5
    for proxy in proxies:
        proxy.close()


def test_a_chunk_damaged_on_a_link_ends_the_sum_for_all_and_is_named() -> None:
    plan = a_plan(3, 30_000, chunk=500)
    proxies: list[Between] = []

    def between(name: str, address: str) -> str:
        if name != plan.agreed.rings[0].members[2]:
            return address
        proxies.append(Between(address))
        proxies[0].flip = 50_000
        return proxies[0].address

    start = time.monotonic()
    with pytest.raises((PeerError, RemoteProtocolError)):
        sum_up(plan, values_of(plan), between=between, timeout=2)
    assert time.monotonic() - start < 10
    proxies[0].close()


def test_members_of_different_sums_do_not_meet() -> None:
    plan, other = a_plan(3, 1000, chunk=100), a_plan(3, 1000, chunk=100)
    assert plan.identity != other.identity
    with Streams(ANYWHERE) as door:
        member = ChunkMember(other, "p0", np.zeros(1000, np.int64), secrets.token_bytes)
        addresses = dict.fromkeys(plan.agreed.rings[0].members, door.address)
        with ThreadPoolExecutor(1) as pool:
            took = pool.submit(pass_on, other, member, "p0", door, addresses, timeout=1)
            with pytest.raises(PeerError, match="did not take part"):
                lead(plan, ChunkMaster(plan, secrets.token_bytes), addresses, timeout=1)
            assert isinstance(took.exception(), PeerError)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_sums_over_links_that_break_at_random(seed: int) -> None:
    draw = Random(seed)  # noqa: S311
    k = draw.choice([3, 4, 5, 7])
    plan = a_plan(
        k,
        draw.randrange(1, 200_000),
        chunk=draw.randrange(1000, 40_000),
        collusion=draw.randrange(1, k),
        limbs=draw.randint(1, 4),
    )
    values, proxies = values_of(plan), []

    def between(name: str, address: str) -> str:
        proxies.append(Between(address))
        proxies[-1].cuts = [draw.randrange(10**6) for _ in range(5)]
        return proxies[-1].address

    master = sum_up(plan, values, between=between, seal_of=gcm if draw.random() < 0.5 else in_the_clear, timeout=30)
    assert list(master.total) == sum(values.values()).tolist()
    for proxy in proxies:
        proxy.close()
