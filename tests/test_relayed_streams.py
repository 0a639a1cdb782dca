"""Streams through a relay: whole and in order, bounded, and what they do when relay or peer does not."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import count
from random import Random

import pytest

from voxring.errors import PeerError, RemoteProtocolError
from voxring.net import Listener, exchange, relayed_streams
from voxring.net.exchange import Exchange, Limits
from voxring.net.mailbox import MAX_FRAME, MAX_MESSAGE, Absent, Ask, Full, Gone, Question, Take, name_of, write
from voxring.net.relay import Relay
from voxring.net.relayed_streams import AHEAD, RelayIncoming, RelayOutgoing, Requests
from voxring.net.streams import AesGcm
from voxring.ring.chunks import CHUNK_BYTES, HEAD_BYTES, ChunkedSum, ChunkMember
from voxring.ring.order import rings_of
from voxring.ring.protocol import SecureSum
from voxring.ring.residues import Limbs
from voxring.session import chunked
from voxring.session.chunked import Relayed
from voxring.session.streamed import Streamed
from wire import Proxy, Tap

ANYWHERE = "tcp://127.0.0.1:0"
TOKEN, NAME, KEY = b"t" * 16, b"n" * 19, b"k" * 32


@pytest.fixture
def relay() -> Iterator[Relay]:
    with Relay(ANYWHERE) as relay:
        yield relay


def incoming(relay: str, timeout: float = 5, key: bytes = KEY) -> RelayIncoming:
    return RelayIncoming("sender", relay, TOKEN, NAME, timeout, AesGcm(key))


def outgoing(relay: str, timeout: float = 5, key: bytes = KEY) -> RelayOutgoing:
    return RelayOutgoing("receiver", relay, TOKEN, NAME, timeout, AesGcm(key))


def put(to: RelayOutgoing, frame: bytes) -> None:
    to.send(memoryview(frame))


def put_many(to: RelayOutgoing, number: int) -> None:
    for _ in range(number):
        put(to, b"y")
    to.finish()


def send_all(relay: str, frames: list[bytes], between: Callable = lambda number: None, timeout: float = 5) -> None:
    with closing(outgoing(relay, timeout)) as to:
        for number, frame in enumerate(frames):
            between(number)
            put(to, frame)
        to.finish()


def take(of: RelayIncoming, size: int) -> bytes:
    frame = bytearray(size)
    of.receive(memoryview(frame))
    return bytes(frame)


def take_all(relay: str, sizes: list[int], between: Callable = lambda number: None, timeout: float = 5) -> list[bytes]:
    came = []
    with closing(incoming(relay, timeout)) as of:
        for number, size in enumerate(sizes):
            between(number)
            came.append(take(of, size))
        of.finish()
    return came


def carry(relay: str, frames: list[bytes], *, sender: str = "", **between: Callable) -> list[bytes]:
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(send_all, sender or relay, frames, between.get("send", lambda number: None))
        came = take_all(relay, [len(frame) for frame in frames], between.get("take", lambda number: None))
        sent.result(10)
    return came


def some_frames(number: int) -> list[bytes]:
    draw = Random(number)  # noqa: S311
    return [draw.randbytes(draw.choice([1, 7, 1000, 70_000])) for _ in range(number)]


def test_frames_arrive_in_order_and_whole_and_nothing_stays_at_the_relay(relay: Relay) -> None:
    for _ in range(2):
        frames = [*some_frames(40), bytes(2**19 + 32)]
        assert carry(relay.address, frames) == frames
    books = relay._exchange
    until = time.monotonic() + 5
    while (books._waiting or books._boxes or books._hosts) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any((books._waiting, books._held, books._boxes, books._asked, books._unread, books._hosts))


def test_no_more_frames_are_under_way_than_the_receiver_has_room_for(relay: Relay) -> None:
    with closing(incoming(relay.address)) as of, closing(outgoing(relay.address, 0.5)) as to:
        size = 100_000
        for _ in range(AHEAD):
            put(to, bytes(size))
        with pytest.raises(PeerError, match=r"receiver did not take part in a stream through the relay within 0\.5 s"):
            put(to, bytes(size))
        assert relay._exchange._held.total() <= (AHEAD + 1) * (size + 100)
        take(of, size)
        put(to, bytes(size))  # there is room again
        with pytest.raises(PeerError, match=r"receiver moved nothing of its stream for 0\.5 s"):
            put(to, bytes(size))


def test_a_slow_receiver_is_waited_for_though_the_relay_gives_frames_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "ASK_SECONDS", 0.1)
    monkeypatch.setattr(exchange, "TAKE_SECONDS", 0.05)
    monkeypatch.setattr(exchange, "OPEN_SECONDS", 0.3)
    monkeypatch.setattr(relayed_streams, "GRACE", 0.2)
    frames = some_frames(12)
    with Relay(ANYWHERE) as relay:
        asked = count()
        ask = relay._exchange._ask
        monkeypatch.setattr(relay._exchange, "_ask", lambda *args: (next(asked), ask(*args)))
        slowly = {"take": lambda number: time.sleep(0.9 if number in (0, 5) else 0)}
        assert carry(relay.address, frames, **slowly) == frames
        assert next(asked) > 2 * len(frames)  # so many came again


@pytest.mark.parametrize("end", ["sender", "receiver"])
@pytest.mark.parametrize(("kind", "answers"), [("cut", False), ("cut", True), ("refuse", False)])
def test_a_lost_connection_to_the_relay_is_made_again(relay: Relay, end: str, kind: str, answers: bool) -> None:
    frames = [bytes([i]) * 20_000 for i in range(20)]
    at = 300 if answers == (end == "sender") else 100_000
    with closing(Proxy(relay.address, kind, at, answers=answers)) as proxy:
        receiver, sender = (relay.address, proxy.address)[:: 1 if end == "sender" else -1]
        assert carry(receiver, frames, sender=sender) == frames
        assert proxy.struck.is_set()


def test_what_a_new_connection_brought_before_the_loss_of_the_old_was_noticed_is_answered(relay: Relay) -> None:
    with closing(incoming(relay.address)) as of, closing(outgoing(relay.address)) as to:
        put(to, b"x")
        until = time.monotonic() + 5
        while 0 not in of._here and time.monotonic() < until:
            time.sleep(0.01)
        of._requests._lost.set()
        while of._requests._lost.is_set() and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.05)
        take(of, 1)
        start = time.monotonic()
        to.finish()
        assert time.monotonic() - start < exchange.ASK_SECONDS / 2  # not when the relay gave the frame back


def test_a_relay_that_is_started_again_goes_on(relay: Relay) -> None:
    first = Relay(ANYWHERE)
    others: list[Relay] = []

    def restart(number: int) -> None:
        if number == 10:
            first.close()
            time.sleep(0.2)
            others.append(Relay(first.address))

    frames = some_frames(20)
    try:
        assert carry(first.address, frames, take=restart) == frames
    finally:
        for other in others:
            other.close()


@pytest.mark.parametrize("end", ["sender", "receiver"])
def test_a_peer_that_leaves_is_named_in_time(relay: Relay, end: str) -> None:
    with closing(outgoing(relay.address, 30)) as to, closing(incoming(relay.address, 30)) as of:
        of._grace = to._grace = 0.3
        put(to, b"x")
        take(of, 1)
        until = time.monotonic() + 5
        while to._unused and time.monotonic() < until:
            time.sleep(0.01)
        start = time.monotonic()
        if end == "sender":
            to.close()
            with pytest.raises(PeerError, match="sender went away before the sum was done"):
                take(of, 1)
        else:
            of.close()
            with pytest.raises(PeerError, match="receiver went away before the sum was done"):
                put_many(to, AHEAD + 1)
        assert time.monotonic() - start < 5


def test_who_never_comes_is_named_and_stopping_wakes(relay: Relay) -> None:
    with closing(incoming(relay.address, 0.3)) as of, pytest.raises(PeerError, match="sender did not take part"):
        take(of, 1)
    for address in (relay.address, "tcp://127.0.0.1:1"):
        with closing(incoming(address, 30)) as of, closing(outgoing(address, 30)) as to:
            for end, wait in ((of, partial(of.receive, 1)), (to, to.finish)):
                if end is to:
                    put(to, b"x")
                threading.Timer(0.1, end.stop).start()
                with pytest.raises(PeerError, match="was ended here"):
                    wait()
    with pytest.raises(PeerError, match="the relay cannot be reached"):
        Requests("nonsense://x")


def test_the_sender_ends_when_the_last_frame_was_used_and_the_receiver_when_it_has_heard(relay: Relay) -> None:
    with closing(incoming(relay.address)) as of, closing(outgoing(relay.address)) as to, ThreadPoolExecutor(2) as pool:
        put(to, b"last")
        sent = pool.submit(to.finish)
        time.sleep(0.3)
        assert not sent.done()
        take(of, 4)
        start = time.monotonic()
        of.finish()
        sent.result(2)
        assert time.monotonic() - start < relayed_streams.GOODBYE_SECONDS


def test_a_sender_that_does_not_hang_up_is_waited_for_a_moment(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relayed_streams, "GOODBYE_SECONDS", 0.2)
    with closing(incoming(relay.address, 30)) as of, closing(outgoing(relay.address, 30)) as to:
        put(to, b"x")
        take(of, 1)
        start = time.monotonic()
        of.finish()
        assert time.monotonic() - start < 3


def test_a_full_relay_is_asked_again_a_little_later(relay: Relay) -> None:
    with closing(incoming(relay.address)) as of, closing(outgoing(relay.address)) as to:
        now, to._asked[1] = time.monotonic(), 0
        for end in (of, to):
            end._take(1, Full())
            assert end._later > now
        put(to, b"x")
        assert take(of, 1) == b"x"


def test_a_receiver_that_was_there_in_between_is_missed_from_then_on(relay: Relay) -> None:
    with closing(outgoing(relay.address)) as to:
        missed = []
        for seconds in (0, 0, 10):
            to._absent -= seconds  # as long ago
            to._asked[1] = 0
            to._take(1, Absent())
            missed.append(to._missed)
        assert missed[0] == missed[1] < missed[2]


class Numbered(AesGcm):
    """Notes the numbers that frames and words are sealed under, which are the nonces of GCM, each once."""

    def __init__(self) -> None:
        super().__init__(KEY)
        self.closed: dict[int, bytes] = {}

    def close(self, number: int, frame: memoryview, into: memoryview) -> None:
        assert self.closed.setdefault(number, bytes(frame)) == frame
        super().close(number, frame, into)


def test_no_number_seals_both_a_frame_and_what_answers_it(relay: Relay) -> None:
    sends, receives = Numbered(), Numbered()
    with (
        closing(RelayIncoming("sender", relay.address, TOKEN, NAME, 5, receives)) as of,
        closing(RelayOutgoing("receiver", relay.address, TOKEN, NAME, 5, sends)) as to,
        ThreadPoolExecutor(1) as pool,
    ):
        sent = pool.submit(put_many, to, 10)
        assert [take(of, 1) for _ in range(10)] == [b"y"] * 10
        of.finish()
        sent.result(5)
    frames = {number for number in sends.closed if number not in receives.closed}
    assert frames == {*range(10)}  # the sender makes the words, too, to compare them
    assert len(receives.closed) == 10


# Those who mean harm. A relay can do what a member of the stream can who lacks the key.


def stranger(relay: Relay) -> closing:
    return closing(Requests(relay.address))


def answered(requests: Requests, request: Ask | Take) -> object:
    requests.send(request)
    until = time.monotonic() + 5
    while time.monotonic() < until:
        if (came := requests.receive()) is not None:
            return came[1]
    raise AssertionError("no reply")


def test_a_forged_answer_does_not_count_as_delivered(relay: Relay) -> None:
    other = bytearray(len(NAME) + 16)
    AesGcm(KEY).close(5, memoryview(NAME), memoryview(other))  # a seal of this stream, not of this word
    for forged in (b"", bytes(35), bytes(other), None):
        with stranger(relay) as taker, closing(outgoing(relay.address)) as to:
            forged = to._word(1) if forged is None else forged  # noqa: PLW2901  (that for another frame)
            taker.send(Take((TOKEN,)))
            put(to, b"x")
            question = None
            until = time.monotonic() + 5
            while not isinstance(question, Question) and time.monotonic() < until:
                question = answered(taker, Take((TOKEN,), last=True)) if question else taker.receive()
                question = question[1] if isinstance(question, tuple) else question
            assert isinstance(question, Question)
            taker.send(Take((TOKEN,), question.ticket, forged))
            with pytest.raises(RemoteProtocolError, match="expected receiver to say that it has a frame"):
                to.finish()


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        (bytes(8) + bytes(17), "changed on the way, or sealed with another key"),
        (bytes(8), "expected 17 bytes from sender, got 0"),
        (b"", "expected 17 bytes from sender, got 0"),
        (bytes(7) + bytes([AHEAD]) + bytes(17), f"expected one of {AHEAD} frames from 0 on"),
    ],
)
def test_a_forged_frame_is_refused(relay: Relay, frame: bytes, error: str) -> None:
    with stranger(relay) as asker, closing(incoming(relay.address)) as of:
        until = time.monotonic() + 5
        while not relay._exchange._names and time.monotonic() < until:
            time.sleep(0.01)
        asker.send(Ask(name_of(TOKEN), frame))
        with pytest.raises(RemoteProtocolError, match=error):
            take(of, 1)


def test_frames_that_come_again_or_too_early_are_used_once_and_in_order(relay: Relay) -> None:
    """A relay may give any order of what it has; so may connections that are lost and made again."""
    sealed = {}
    for number in range(20):
        body = bytearray(1 + 16)
        AesGcm(KEY).close(number, memoryview(bytes([number])), memoryview(body))
        sealed[number] = number.to_bytes(8, "big") + body
    draw = Random(3)  # noqa: S311
    with stranger(relay) as asker, closing(incoming(relay.address)) as of:
        for number in range(20):
            for other in draw.sample(range(max(0, number - 3), min(20, number + AHEAD)), 3):
                asker.send(Ask(name_of(TOKEN), sealed[other]))
            while number not in of._here:
                asker.send(Ask(name_of(TOKEN), sealed[number]))
                asker.receive()
            assert take(of, 1) == bytes([number])


def test_something_else_at_the_address_is_told(relay: Relay) -> None:
    with Listener(ANYWHERE, lambda frame, pipe: b"hello", lambda pipe: None, max_frame=MAX_MESSAGE) as other:
        waits = partial(take, size=1), partial(put_many, number=1)
        for end, wait in zip((incoming(other.address), outgoing(other.address)), waits, strict=True):
            with closing(end), pytest.raises(RemoteProtocolError, match="expected a relay of this release"):
                wait(end)


def test_all_that_the_relay_sees_of_a_stream_is_random_but_for_numbers(relay: Relay) -> None:
    seen = []
    frame = b"a secret of 24 bytes, twice" * 2
    for _ in range(2):
        token, key = secrets.token_bytes(16), secrets.token_bytes(32)
        with closing(Tap(relay.address)) as tap:
            ends = [made("peer", tap.address, token, NAME, 5, AesGcm(key)) for made in (RelayIncoming, RelayOutgoing)]
            with closing(ends[0]) as of, closing(ends[1]) as to:
                for _ in range(10):
                    put(to, frame)
                    take(of, len(frame))
            seen.append(b"".join(tap.seen))
    for stream in seen:
        assert NAME not in stream
        assert frame[:8] not in stream
    # Lengths, numbers and the shape of requests are in the clear, and shorter than this.
    one, two = ({stream[i : i + 32] for i in range(len(stream) - 31)} for stream in seen)
    assert not one & two


# What the relay holds.


def test_one_network_address_gets_half_of_the_bytes_and_all_together_no_more_than_there_are() -> None:
    numbers = count(1)
    office = Exchange(lambda size: next(numbers).to_bytes(size, "big"), Limits(held=1000))

    def send(request: Ask | Take, pipe: int, host: str) -> list:
        replies: list = []
        office.handle(write(request), pipe, host, 0.0, replies.append)
        return replies

    tokens = [bytes([i]) * 16 for i in range(3)]
    for i, token in enumerate(tokens):
        send(Take((token,), last=True), i, f"hospital {i}")
    names = [name_of(token) for token in tokens]
    assert send(Ask(names[0], bytes(400)), 10, "stranger") == []
    assert [type(one).__name__ for one in send(Ask(names[1], bytes(101)), 11, "stranger")] == ["Full"]
    assert send(Ask(names[1], bytes(100)), 11, "stranger") == []
    assert send(Ask(names[1], bytes(450)), 12, "other") == []
    assert [type(one).__name__ for one in send(Ask(names[2], bytes(51)), 13, "third")] == ["Full"]
    (full,) = send(Take((tokens[1],)), 1, "hospital 1")
    assert type(full).__name__ == "Full"  # 100 more on their way would be too many
    office.closed(12)
    assert send(Take((tokens[1],)), 1, "hospital 1") == [Gone(12)]
    (question,) = send(Take((tokens[1],)), 1, "hospital 1")
    assert len(question.frame) == 100
    assert office._held == {"stranger": 400, "hospital 1": 100}
    send(Take((tokens[1],), seen=question.ticket, last=True), 1, "hospital 1")
    assert office._held == {"stranger": 400}


@pytest.mark.parametrize("seed", range(3))
def test_the_books_of_a_relay_are_what_it_holds(seed: int) -> None:
    draw, now, numbers = Random(seed), 0.0, count(1)  # noqa: S311
    office = Exchange(lambda size: next(numbers).to_bytes(size, "big"), Limits(held=4000, waiting=40, unread=900))
    tickets: list[bytes] = [bytes(16)]

    def note(reply: object) -> None:
        tickets.extend([reply.ticket] if hasattr(reply, "ticket") else [])

    for _ in range(3000):
        pipe = draw.randrange(12)
        token = bytes([draw.randrange(5)]) * 16
        seen = draw.choice([None, draw.choice(tickets[-8:])])
        act = draw.random()
        if act < 0.45:
            request = Ask(name_of(token), bytes(draw.randrange(300)), seen)
        else:
            request = Take((token,), draw.choice(tickets[-8:]), bytes(draw.randrange(300)), seen, draw.random() < 0.1)
        if act < 0.93:
            office.handle(write(request), pipe, f"host {pipe % 4}", now, note)
        elif act < 0.97:
            office.closed(pipe)
        else:
            now += draw.random()
            office.tick(now)
        takers = [one for box in office._boxes.values() for one in box.takers]
        waiting, held = {}, {}
        for one in [*office._asked.values(), *takers]:
            waiting[one.host] = waiting.get(one.host, 0) + 1
            held[one.host] = held.get(one.host, 0) + len(one.frame)
        for other, unread in office._unread.items():
            held[f"host {other % 4}"] = held.get(f"host {other % 4}", 0) + sum(unread.values())
        assert office._waiting == waiting
        assert office._held == {host: size for host, size in held.items() if size}
    for pipe in range(12):
        office.closed(pipe)
    assert not any((office._waiting, office._held, office._asked, office._boxes, office._unread))


def test_only_the_two_ends_find_the_mailbox_of_a_stream() -> None:
    """Its name follows from the stream's key, and from what the stream is for."""
    ring = rings_of(bytes(32), "abc", 1)
    plan = ChunkedSum(SecureSum(bytes(32), bytes(16), "sum", ring, Limbs(1, 10), 5))
    tokens = set()
    for key in (bytes(32), b"k" * 32):
        streamed = Streamed(plan, "a", ChunkMember(plan, "a", [0] * 10, secrets.token_bytes), sealed=True, random=bytes)
        for sender, receiver in (("a", "b"), ("b", "c")):
            streamed.keys[sender, receiver, 0] = key
            tokens.add(Relayed(streamed, "", 1)._of(sender, receiver, 0)[0])
    assert len(tokens) == 4
    assert {len(token) for token in tokens} == {16}


def test_what_a_relay_is_told_to_find_a_mailbox_is_no_part_of_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[bytes] = []
    monkeypatch.setattr(chunked, "AesGcm", keys.append)
    plan = ChunkedSum(SecureSum(bytes(32), bytes(16), "sum", rings_of(bytes(32), "abc", 1), Limbs(1, 10), 5))
    streamed = Streamed(plan, "a", ChunkMember(plan, "a", [0] * 10, secrets.token_bytes), sealed=True, random=bytes)
    streamed.keys["a", "b", 0] = KEY
    token, _, _ = Relayed(streamed, "", 1)._of("a", "b", 0)
    assert token not in keys[0] + KEY


def test_a_frame_has_room_for_the_longest_chunk() -> None:
    assert CHUNK_BYTES[1] + HEAD_BYTES + AesGcm.overhead + 8 <= MAX_FRAME
