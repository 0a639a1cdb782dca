"""Streams over nng on the loopback address, whole sums over them, and what they do when something goes wrong."""

import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from random import Random

import numpy as np
import pytest

from voxring.errors import PeerError, RemoteProtocolError
from voxring.net import streams as streams_module
from voxring.net.streams import _DONE as DONE
from voxring.net.streams import _HELLO as HELLO
from voxring.net.streams import _WELCOME as WELCOME
from voxring.net.streams import KEY_BYTES, AesGcm, Connection, Dialler, Incoming, Operation, Outgoing, Seal, Streams
from voxring.ring.chunks import ChunkedSum, ChunkMaster, ChunkMember
from voxring.ring.order import rings_of
from voxring.ring.protocol import SecureSum
from voxring.ring.residues import Limbs
from voxring.session.chunked import in_the_clear, lead, pass_on

ANYWHERE = "tcp://127.0.0.1:0"
FOUR = memoryview(b"four")
KEY = b"k" * KEY_BYTES
SECRET = bytes(range(32))


class Between:
    """Passes bytes on between a stream's two ends, and may cut, flip or hold them."""

    def __init__(self, address: str) -> None:
        self._to = ("127.0.0.1", int(address.rpartition(":")[2]))
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._socket.getsockname()[1]}"
        self.cut: int | None = None  # after so many bytes either way, the connection is closed
        self.flip: int | None = None  # the byte that the dialling end sends to change
        self.hold: int | None = None  # after so many bytes either way, nothing more passes
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                came, _ = self._socket.accept()
            except OSError:
                return
            try:
                on = socket.create_connection(self._to)
            except OSError:  # the door is closed, for now
                came.close()
                continue
            self._open += [came, on]
            threading.Thread(target=self._pass, args=(came, on, self.flip), daemon=True).start()
            threading.Thread(target=self._pass, args=(on, came, None), daemon=True).start()

    def _pass(self, source: socket.socket, to: socket.socket, flip: int | None) -> None:
        done = 0
        with suppress(OSError):
            while piece := bytearray(source.recv(1000)):
                if flip is not None and done <= flip < done + len(piece):
                    piece[flip - done] ^= 1
                done += len(piece)
                if self.hold is not None and done > self.hold:
                    return
                if self.cut is not None and done > self.cut:
                    break
                to.sendall(piece)
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
    between = Between(streams.addresses[0])
    yield between
    between.close()


def send_all(outgoing: Outgoing, frames: list[bytes]) -> None:
    with outgoing:
        for frame in frames:
            outgoing.send(memoryview(frame))
        outgoing.finish()


def receive(incoming: Incoming, size: int) -> bytes:
    frame = bytearray(size)
    incoming.receive(memoryview(frame))
    return bytes(frame)


def receive_all(incoming: Incoming, sizes: list[int]) -> list[bytes]:
    came = []
    with incoming:
        for size in sizes:
            came.append(receive(incoming, size))
        incoming.finish()
    return came


def carry(
    streams: Streams,
    address: str,
    frames: list[bytes],
    seals: tuple = (None, None),
    *,
    back: bool = False,
    timeout: float = 5,
    sizes: list[int] | None = None,
) -> list[bytes]:
    """Send frames from the one who dials to the one who listens, or the other way."""
    listening, dialling = streams.doors[0], Dialler(address)
    to, away = (dialling, listening) if back else (listening, dialling)
    incoming = Incoming("sender", to, KEY, timeout, seals[1])
    outgoing = Outgoing("receiver", away, KEY, timeout, seals[0])
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send_all, outgoing, frames)
        try:
            came = receive_all(incoming, sizes or [len(frame) for frame in frames])
        except Exception:
            outgoing.stop()
            raise
        sending.result()
    return came


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("sealed", [False, True])
def test_frames_arrive_in_order_and_whole_and_a_door_serves_again(streams: Streams, back: bool, sealed: bool) -> None:
    draw = Random(1)  # noqa: S311
    for _ in range(3):
        frames = [draw.randbytes(draw.choice([1, 7, 1000, 70_000])) for _ in range(40)]
        seals = (AesGcm(SECRET), AesGcm(SECRET)) if sealed else (None, None)
        assert carry(streams, streams.addresses[0], frames, seals, back=back) == frames


def pair(streams: Streams, timeout: float = 5, seals: tuple = (None, None)) -> tuple[Incoming, Outgoing]:
    """Return two ends that do not know each other yet, the sender the one who dials."""
    incoming = Incoming("sender", streams.doors[0], KEY, timeout, seals[1])
    return incoming, Outgoing("receiver", Dialler(streams.addresses[0]), KEY, timeout, seals[0])


def test_memory_is_bounded_while_the_receiver_takes_nothing(streams: Streams) -> None:
    incoming, outgoing = pair(streams, timeout=1)
    frame = memoryview(bytes(1 << 20))
    with incoming, outgoing, ThreadPoolExecutor(1) as pool:
        first = pool.submit(receive, incoming, len(frame))
        sent = []

        def send_on() -> None:
            while True:
                outgoing.send(frame)
                sent.append(frame)

        with pytest.raises(PeerError, match="receiver moved nothing of its stream for 1 s"):
            send_on()
        first.result()
    assert len(sent) <= 64  # MiB: what the buffers of the system hold, which grow


@pytest.mark.parametrize(("sent", "expected"), [(100, 99), (99, 100), (100, 0), (2**24, 100), (0, 1)])
@pytest.mark.parametrize("sealed", [False, True])
def test_a_frame_of_another_length_is_refused(streams: Streams, sent: int, expected: int, sealed: bool) -> None:
    seals, more = ((AesGcm(SECRET), AesGcm(SECRET)), 16) if sealed else ((None, None), 0)
    with pytest.raises(RemoteProtocolError, match=f"expected {expected + more} bytes from sender, got {sent + more}"):
        carry(streams, streams.addresses[0], [bytes(sent)], seals, sizes=[expected])


# Seals.


@pytest.mark.parametrize("flip", [300, 5000, 9000])
def test_a_frame_changed_on_the_way_is_found_under_a_seal(streams: Streams, between: Between, flip: int) -> None:
    between.flip = flip
    with pytest.raises(RemoteProtocolError, match="changed on the way, or sealed with another key"):
        carry(streams, between.address, [bytes(1000)] * 10, (AesGcm(SECRET), AesGcm(SECRET)))


def test_another_key_or_another_number_opens_nothing() -> None:
    frame, sealed, opened = memoryview(b"numbers!"), memoryview(bytearray(24)), memoryview(bytearray(8))
    AesGcm(SECRET).close(3, frame, sealed)
    AesGcm(SECRET).open(3, sealed, opened)
    assert opened == frame
    assert bytes(frame) not in bytes(sealed)
    for key, number in ((SECRET, 4), (bytes(32), 3)):
        with pytest.raises(RemoteProtocolError):
            AesGcm(key).open(number, sealed, opened)


class Numbered(AesGcm):
    """Notes which numbers frames are sealed and opened under, which are the nonces of GCM."""

    def __init__(self) -> None:
        super().__init__(SECRET)
        self.closed: dict[int, bytes] = {}
        self.opened: list[int] = []

    def close(self, number: int, frame: memoryview, into: memoryview) -> None:
        assert self.closed.setdefault(number, bytes(frame)) == frame  # never two frames under one nonce
        super().close(number, frame, into)

    def open(self, number: int, sealed: memoryview, into: memoryview) -> None:
        self.opened.append(number)
        super().open(number, sealed, into)


def test_each_frame_has_a_number_of_its_own_under_the_seal(streams: Streams) -> None:
    sends, receives = Numbered(), Numbered()
    frames = [bytes([i]) * 1000 for i in range(20)]
    assert carry(streams, streams.addresses[0], frames, (sends, receives)) == frames
    assert [number for number in sends.closed if number < 2**64] == receives.opened == [*range(20)]
    assert not set(receives.closed) & set(receives.opened)  # what goes back goes under other numbers


@pytest.mark.parametrize("back", [False, True])
def test_the_receiver_ends_when_the_sender_has_heard_that_it_is_done(streams: Streams, back: bool) -> None:
    listening, dialling = streams.doors[0], Dialler(streams.addresses[0])
    incoming = Incoming("sender", dialling if back else listening, KEY, 5, None)
    outgoing = Outgoing("receiver", listening if back else dialling, KEY, 5, None)
    with incoming, outgoing, ThreadPoolExecutor(1) as pool:
        received = pool.submit(receive_one, incoming)
        outgoing.send(FOUR)
        time.sleep(0.3)
        assert not received.done()
        outgoing.finish()
        received.result(1)


def receive_one(incoming: Incoming) -> None:
    receive(incoming, 4)
    incoming.finish()


@pytest.mark.parametrize("sealed", [False, True])
def test_whoever_says_something_else_than_that_it_is_done_is_refused(streams: Streams, sealed: bool) -> None:
    incoming, outgoing = pair(streams, seals=(AesGcm(SECRET), AesGcm(SECRET)) if sealed else (None, None))
    with incoming, outgoing, ThreadPoolExecutor(1) as pool:
        received = pool.submit(receive, incoming, 4)
        outgoing.send(FOUR)
        received.result(5)
        says(incoming._connection, incoming, WELCOME)
        with pytest.raises(RemoteProtocolError, match="expected receiver to say that it is done, got something else"):
            outgoing.finish()


def says(connection: Connection, end: Incoming | Outgoing, number: int) -> None:
    connection.send(end._word(number), time.monotonic() + 5)


def dialled(streams: Streams) -> socket.socket:
    """Connect to a door as whoever finds it may."""
    return socket.create_connection(("127.0.0.1", int(streams.addresses[0].rpartition(":")[2])))


def word(number: int) -> bytes:
    return (12 + KEY_BYTES).to_bytes(4, "big") + number.to_bytes(12, "big") + KEY


def test_what_waits_for_a_receiver_that_went_away_goes_to_nobody_else(streams: Streams) -> None:
    incoming = Incoming("sender", Dialler(streams.addresses[0]), KEY, 5, None)
    outgoing = Outgoing("receiver", streams.doors[0], KEY, 1, None)
    frame = memoryview(bytes(500_000))
    with outgoing, ThreadPoolExecutor(1) as pool:
        with incoming:
            received = pool.submit(receive, incoming, len(frame))
            outgoing.send(frame)
            received.result(5)
            with suppress(PeerError):
                while True:  # until there is no room
                    outgoing.send(frame)
        with pytest.raises(PeerError, match="receiver went away"):
            outgoing.send(frame)
        with dialled(streams) as stranger:
            stranger.settimeout(0.5)
            with pytest.raises(TimeoutError):
                stranger.recv(1)
    assert carry(streams, streams.addresses[0], [b"next"], back=True) == [b"next"]


@pytest.mark.parametrize("words", [[], [HELLO], [HELLO, WELCOME], [HELLO, DONE]])
def test_who_is_gone_when_the_door_is_opened_takes_nobodys_place(streams: Streams, words: list[int]) -> None:
    """As a peer that dialled, waited in vain and dialled again."""
    for _ in range(3):
        with dialled(streams) as early:
            early.sendall(b"".join(map(word, words)))
    assert carry(streams, streams.addresses[0], [b"true"]) == [b"true"]


@pytest.mark.parametrize("other", [AesGcm(bytes(32)), None])
def test_who_has_another_key_or_none_does_not_get_in(streams: Streams, other: Seal | None) -> None:
    with pytest.raises(PeerError, match="somebody else, or a member of another sum, was turned away"):
        carry(streams, streams.addresses[0], [bytes(100)], (other, AesGcm(SECRET)), timeout=1)


# Those who do not come, go away, or say nothing.


def test_a_peer_that_does_not_come_is_named(streams: Streams) -> None:
    absent = pytest.raises(PeerError, match=r"st-mary did not take part in a stream within 0\.4 s")
    with Incoming("st-mary", streams.doors[0], KEY, 0.4, None) as incoming, absent:
        receive(incoming, 1)
    absent = pytest.raises(PeerError, match=r"st-mary did not take part .* take connections at tcp://127\.0\.0\.1:1\?$")
    with Outgoing("st-mary", Dialler("tcp://127.0.0.1:1"), KEY, 0.4, None) as outgoing, absent:
        outgoing.send(FOUR)


@pytest.mark.parametrize("back", [False, True])
def test_a_peer_that_vanishes_or_stalls_is_named_in_time(streams: Streams, between: Between, back: bool) -> None:
    for fault, error in (("cut", "went away"), ("hold", "moved nothing of its stream for 1 s|went away")):
        between.cut, between.hold = (50_000, None) if fault == "cut" else (None, 50_000)
        start = time.monotonic()
        with pytest.raises(PeerError, match=f"sender ({error})"):
            carry(streams, between.address, [bytes(1000)] * 200, back=back, timeout=1)
        assert time.monotonic() - start < 5


def test_stopping_wakes_whoever_waits(streams: Streams) -> None:
    for way in (streams.doors[0], Dialler("tcp://127.0.0.1:1")):
        with Incoming("st-mary", way, KEY, 30, None) as incoming:
            threading.Timer(0.2, incoming.stop).start()
            check_stopped(partial(receive, incoming, 1))
    for waits in ("receives", "sends", "finishes"):
        incoming, outgoing = pair(streams, timeout=30)
        with incoming, outgoing, ThreadPoolExecutor(1) as pool:
            received = pool.submit(receive, incoming, 4)
            outgoing.send(FOUR)
            received.result(5)
            end = incoming if waits == "receives" else outgoing
            end.peer = "st-mary"
            threading.Timer(0.2, end.stop).start()
            check_stopped(
                {
                    "receives": partial(receive, incoming, 4),
                    "sends": partial(send_on, outgoing),
                    "finishes": outgoing.finish,
                }[waits]
            )
    incoming.stop()  # after it was closed


def test_who_was_stopped_before_it_waits_does_not_begin_to(streams: Streams) -> None:
    incoming, outgoing = pair(streams, timeout=30)
    with incoming, outgoing, ThreadPoolExecutor(1) as pool:
        received = pool.submit(receive, incoming, 4)
        outgoing.send(FOUR)
        received.result(5)
        incoming.peer = "st-mary"
        incoming.stop()
        check_stopped(partial(receive, incoming, 4))


def test_a_connection_that_comes_when_its_stream_was_stopped_is_not_waited_for(streams: Streams) -> None:
    """As when another stream of the sum fails while this one takes its connection."""

    class Stopping(Dialler):
        stop: Callable[[], None]

        def connect(self, operation: Operation, until: float) -> Connection | None:
            connection = super().connect(operation, until)
            self.stop()
            return connection

    way = Stopping(streams.addresses[0])
    with Incoming("st-mary", way, KEY, 30, None) as incoming:
        way.stop = incoming.stop
        start = time.monotonic()
        check_stopped(partial(receive, incoming, 1))
        assert time.monotonic() - start < 1  # not when nobody has said welcome


def test_a_receiver_that_never_says_that_it_is_done_is_named_in_time(streams: Streams) -> None:
    incoming, outgoing = pair(streams, timeout=0.5)
    with incoming, outgoing, ThreadPoolExecutor(1) as pool:
        received = pool.submit(receive, incoming, 4)
        outgoing.send(FOUR)
        received.result(5)
        with pytest.raises(PeerError, match=r"receiver moved nothing of its stream for 0\.5 s"):
            outgoing.finish()


def test_a_sender_that_does_not_hang_up_is_waited_for_a_moment(
    streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams_module, "_GREETING_SECONDS", 0.3)
    incoming, outgoing = pair(streams, timeout=30)
    with incoming, outgoing, ThreadPoolExecutor(1) as pool:
        received = pool.submit(receive_one, incoming)
        outgoing.send(FOUR)
        received.result(5)


def send_on(outgoing: Outgoing) -> None:
    while True:
        outgoing.send(memoryview(bytes(1 << 20)))


def check_stopped(waits: Callable[[], object]) -> None:
    start = time.monotonic()
    with pytest.raises(PeerError, match="the stream of st-mary was ended here"):
        waits()
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("says", [b"", b"hello", word(WELCOME), word(HELLO)[:-1] + b"x", b"\xff" * 100, bytes(1 << 20)])
def test_a_stranger_who_comes_first_changes_nothing(streams: Streams, back: bool, says: bytes) -> None:
    frames = [bytes([i]) * 1000 for i in range(20)]
    with dialled(streams) as stranger, suppress(ConnectionError):
        threading.Thread(target=lambda: suppressed(stranger.sendall, says), daemon=True).start()
        time.sleep(0.05)
        assert carry(streams, streams.addresses[0], frames, back=back) == frames
        assert stranger.recv(1) == b""


def test_strangers_who_say_nothing_do_not_take_the_time_of_the_peer_behind_them(streams: Streams) -> None:
    strangers = [dialled(streams) for _ in range(4)]
    try:
        assert carry(streams, streams.addresses[0], [b"frame"], timeout=4) == [b"frame"]
    finally:
        shut(*strangers)


def suppressed(work: Callable[[bytes], object], with_: bytes) -> None:
    with suppress(OSError):
        work(with_)


def test_a_stranger_who_comes_later_hears_nothing_and_is_turned_away(streams: Streams) -> None:
    incoming, outgoing = pair(streams)
    with incoming, outgoing, ThreadPoolExecutor(1) as pool:
        first = pool.submit(receive, incoming, 4)
        outgoing.send(FOUR)
        first.result()
        with dialled(streams) as stranger:
            stranger.sendall(word(HELLO) + word(DONE))
            outgoing.send(FOUR)
            assert receive(incoming, 4) == b"four"
            stranger.settimeout(0.2)
            with pytest.raises(TimeoutError):
                stranger.recv(1)


def test_an_address_in_use_is_a_peer_error(streams: Streams) -> None:
    with pytest.raises(PeerError, match="cannot listen at"):
        Streams(streams.addresses[0])


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
    between: Callable[[str, Sequence[str]], Sequence[str]] = lambda name, addresses: addresses,
    timeout: float = 10,
) -> ChunkMaster:
    """Run all members of a sum in threads; ``between`` may lead the way to a member over somebody else."""
    master = ChunkMaster(plan, secrets.token_bytes)
    doors = {name: Streams(ANYWHERE, len(plan.agreed.rings)) for name in values}
    where = {name: between(name, door.addresses) for name, door in doors.items()}
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


def test_a_link_that_breaks_ends_the_sum_for_all() -> None:
    check_fault("cut", PeerError)


def test_a_link_that_stalls_ends_the_sum_for_all() -> None:
    check_fault("hold", PeerError)


def test_a_chunk_damaged_on_a_link_ends_the_sum_for_all() -> None:
    check_fault("flip", (PeerError, RemoteProtocolError))


def test_no_more_chunks_are_under_way_than_the_window_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, under_way, most = a_plan(3, 4000, chunk=10), 0, 0
    fill, receive, take_part = ChunkMaster.fill, ChunkMaster.receive, ChunkMember.receive
    lock = threading.Lock()

    def filled(master: ChunkMaster, *args: object) -> None:
        nonlocal under_way, most
        fill(master, *args)
        with lock:
            under_way += 1
            most = max(most, under_way)

    def received(master: ChunkMaster, frame: memoryview) -> object:
        nonlocal under_way
        with lock:
            under_way -= 1
        return receive(master, frame)

    def slowly(member: ChunkMember, frame: memoryview) -> object:
        time.sleep(0.0005)
        return take_part(member, frame)

    monkeypatch.setattr(ChunkMaster, "fill", filled)
    monkeypatch.setattr(ChunkMaster, "receive", received)
    monkeypatch.setattr(ChunkMember, "receive", slowly)
    values = values_of(plan)
    assert list(sum_up(plan, values).total) == sum(values.values()).tolist()
    assert 1 < most <= plan.window == 8


def test_the_master_is_used_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of different rings meet in the same slots of the total."""
    inside = threading.Lock()

    def alone(work: Callable) -> Callable:
        def works(master: ChunkMaster, *args: object) -> object:
            assert inside.acquire(blocking=False)
            try:
                time.sleep(0.001)
                return work(master, *args)
            finally:
                inside.release()

        return works

    monkeypatch.setattr(ChunkMaster, "fill", alone(ChunkMaster.fill))
    monkeypatch.setattr(ChunkMaster, "receive", alone(ChunkMaster.receive))
    plan = a_plan(3, 400, chunk=10, collusion=2)
    values = values_of(plan)
    assert list(sum_up(plan, values).total) == sum(values.values()).tolist()


@pytest.mark.parametrize("peer", ["researcher", "p0", "p1", "p2"])
def test_nobody_ends_before_the_next_has_said_that_it_is_done(monkeypatch: pytest.MonkeyPatch, peer: str) -> None:
    finish = Incoming.finish

    def late(incoming: Incoming) -> None:
        time.sleep(0.3 if incoming.peer == peer else 0)
        finish(incoming)

    monkeypatch.setattr(Incoming, "finish", late)
    monkeypatch.setattr(streams_module, "_GREETING_SECONDS", 30)  # whoever does not hang up is waited for
    plan, start = a_plan(3, 100, chunk=50), time.monotonic()
    sum_up(plan, values_of(plan))
    assert time.monotonic() - start < 8  # not the 10 s of a wait in vain


def check_fault(fault: str, error: type | tuple) -> None:
    plan = a_plan(3, 30_000, chunk=500)
    proxies: list[Between] = []

    def between(name: str, addresses: Sequence[str]) -> Sequence[str]:
        if name != plan.agreed.rings[0].members[2]:
            return addresses
        proxies.extend(Between(address) for address in addresses)
        setattr(proxies[0], fault, 50_000)
        return [proxy.address for proxy in proxies]

    start = time.monotonic()
    with pytest.raises(error):
        sum_up(plan, values_of(plan), between=between, timeout=2)
    assert time.monotonic() - start < 10
    for proxy in proxies:
        proxy.close()


def test_members_of_different_sums_do_not_meet() -> None:
    plan, other = a_plan(3, 1000, chunk=100), a_plan(3, 1000, chunk=100)
    assert plan.identity != other.identity
    with Streams(ANYWHERE) as door:
        member = ChunkMember(other, "p0", np.zeros(1000, np.int64), secrets.token_bytes)
        addresses = dict.fromkeys(plan.agreed.rings[0].members, door.addresses)
        with ThreadPoolExecutor(1) as pool:
            took = pool.submit(pass_on, other, member, "p0", door, addresses, timeout=1)
            with pytest.raises(PeerError, match=r"did not take part|moved nothing|went away"):
                lead(plan, ChunkMaster(plan, secrets.token_bytes), addresses, timeout=1)
            assert isinstance(took.exception(), PeerError)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_any_sum_is_right(seed: int) -> None:
    draw = Random(seed)  # noqa: S311
    k = draw.choice([3, 4, 5, 7])
    plan = a_plan(
        k,
        draw.randrange(1, 200_000),
        chunk=draw.randrange(1000, 30_000),
        collusion=draw.randrange(1, k),
        limbs=draw.randint(1, 4),
    )
    values = values_of(plan)
    master = sum_up(plan, values, seal_of=gcm if draw.random() < 0.5 else in_the_clear, timeout=30)
    assert list(master.total) == sum(values.values()).tolist()
