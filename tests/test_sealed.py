"""Sealed links and listeners over real sockets on the loopback address."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pynng
import pytest

from voxring.errors import PeerError, RemoteProtocolError
from voxring.net import Ear, Link, Listener, Network, PrivateKey
from voxring.net.channel import Initiator, Responder
from voxring.net.keys import Keyring, fingerprint
from voxring.net.sealed import SealedAnswers
from wire import Tap

FRAME = 10_000
ANYWHERE = "tcp://127.0.0.1:0"
PRIVATE = {name: PrivateKey(bytes([i]) * 32) for i, name in enumerate(("researcher", "north", "south"), 1)}
PUBLIC = {name: key.public for name, key in PRIVATE.items()}
DIGEST = bytes(range(32))


def ring(name: str, key: PrivateKey | None = None, digest: bytes = DIGEST) -> Keyring:
    return Keyring(digest, name, key or PRIVATE[name], PUBLIC)


class Echo:
    """Answers with who asked and what; counts; may be slow."""

    def __init__(self, pause: float = 0.0) -> None:
        self.came: list[tuple[bytes, str | None]] = []
        self.pause = pause

    def __call__(self, frame: bytes, pipe: int, peer: str | None) -> bytes:
        self.came.append((frame, peer))
        time.sleep(self.pause)
        return f"{peer}:".encode() + frame


@contextmanager
def listening(answer: Callable, keyring: Keyring | None, address: str = ANYWHERE) -> Iterator[Ear]:
    with Network(keyring, "", insecure=True).listen(address, answer, lambda pipe: None, max_frame=FRAME) as ear:
        yield ear


def link(address: str, name: str = "researcher", keyring: Keyring | None = None, grace: float = 1.0):
    network = Network(keyring or ring(name), "", insecure=False)
    return closing(network.link("north", address, max_frame=FRAME, grace=grace))


def test_frames_up_to_the_limit_go_both_ways_with_the_name_of_who_asks() -> None:
    echo = Echo()
    with (
        listening(echo, ring("north")) as listener,
        link(listener.address) as one,
        link(listener.address, "south") as two,
    ):
        one.wait(5)
        assert one.ask(b"x" * (FRAME - 11), 5) == b"researcher:" + b"x" * (FRAME - 11)
        assert two.ask(b"", 5) == b"south:"
        assert one.ask(b"y", 5) == b"researcher:y"
    assert [peer for _, peer in echo.came] == ["researcher", "south", "researcher"]


def test_without_a_keyring_links_are_in_the_clear_and_nobody_is_known() -> None:
    with (
        listening(Echo(), None) as listener,
        closing(Network(None, "", insecure=True).link("north", listener.address, max_frame=FRAME, grace=1)) as clear,
    ):
        assert clear.ask(b"x", 5) == b"None:x"


def test_a_listener_started_anew_is_asked_again_over_a_new_channel() -> None:
    echo = Echo()
    with listening(echo, ring("north")) as listener, link(listener.address, grace=5) as asking:
        asking.ask(b"x", 5)
        listener.listener.close()
        with listening(echo, ring("north"), listener.address):
            assert asking.ask(b"y", 5) == b"researcher:y"
            assert asking.ask(b"z", 5) == b"researcher:z"


def test_a_peer_with_another_key_or_study_ends_the_link_at_once() -> None:
    start = time.monotonic()
    with listening(Echo(), ring("north", PRIVATE["south"])) as listener, link(listener.address) as asking:
        with pytest.raises(PeerError, match=fingerprint(PUBLIC["south"])):
            asking.ask(b"x", 30)
        with pytest.raises(PeerError, match=fingerprint(PUBLIC["north"])):
            asking.wait(30)
    with listening(Echo(), ring("north")) as listener:
        for keyring, error, words in (
            (ring("researcher", PrivateKey(bytes(32))), PeerError, "north refused: expected the key of a member"),
            (ring("researcher", digest=bytes(32)), RemoteProtocolError, "both need the same study file"),
        ):
            with link(listener.address, keyring=keyring) as asking, pytest.raises(error, match=words):
                asking.ask(b"x", 30)
    assert time.monotonic() - start < 10


def test_the_handshake_has_the_deadline_of_the_question() -> None:
    start = time.monotonic()
    with link("tcp://127.0.0.1:1") as asking, pytest.raises(PeerError, match=r"was not reached .* for 0\.3 s"):
        asking.ask(b"x", 0.3)
    silent = Listener(ANYWHERE, lambda frame, pipe: time.sleep(1) or b"", lambda pipe: None, max_frame=20_000)
    with silent as listener, link(listener.address) as asking, pytest.raises(PeerError, match=r"not answer for 0\.3 s"):
        asking.ask(b"x", 0.3)
    forgetful = Listener(
        ANYWHERE, lambda frame, pipe: Responder(ring("north")).receive(frame), lambda pipe: None, max_frame=20_000
    )
    with (
        forgetful as listener,
        link(listener.address) as asking,
        pytest.raises(PeerError, match="begun again and again"),
    ):
        asking.ask(b"x", 0.5)
    assert time.monotonic() - start < 5


def test_strangers_garbage_and_frames_in_the_clear_change_nothing() -> None:
    echo = Echo()
    with listening(echo, ring("north")) as listener, link(listener.address) as asking:
        asking.ask(b"x", 5)
        assert listener.refused() == ""
        with closing(Link("north", listener.address, max_frame=100_000, grace=1)) as stranger:
            for frame in (b"", b"garbage", b"VXR\1" + bytes(500), bytes(FRAME)):
                assert b"VXR" not in stranger.ask(frame, 5)
        assert "not of this study" in listener.refused()
        with pynng.Req0(dial=listener.address, send_timeout=1000, recv_timeout=300) as big:
            big.send(bytes(50_000))
            with pytest.raises(pynng.Timeout):
                big.recv()
        assert asking.ask(b"y", 5) == b"researcher:y"
    assert [frame for frame, _ in echo.came] == [b"x", b"y"]


def test_a_question_delivered_twice_at_once_is_answered_once_the_same_way() -> None:
    echo, responder, initiator = Echo(0.3), Responder(ring("north")), Initiator(ring("researcher"), "north")
    answers = SealedAnswers(responder, echo)
    question: bytes | None = initiator.hello()
    while question is not None:
        question = initiator.take(answers(question, 0))
    number, sealed = initiator.seal(b"x")
    with ThreadPoolExecutor(3) as pool:
        came = [*pool.map(lambda _: answers(sealed, 0), range(3))]
    assert len(set(came)) == 1
    assert initiator.open(number, came[0]) == b"researcher:x"
    assert len(echo.came) == 1


def test_several_questions_of_one_channel_are_answered_side_by_side() -> None:
    echo, responder, initiator = Echo(0.2), Responder(ring("north")), Initiator(ring("researcher"), "north")
    answers = SealedAnswers(responder, echo)
    question: bytes | None = initiator.hello()
    while question is not None:
        question = initiator.take(answers(question, 0))
    sealed = [initiator.seal(bytes([i])) for i in range(16)]
    start = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        came = [*pool.map(lambda one: answers(one[1], 0), sealed)]
    assert time.monotonic() - start < 1.6
    for (number, _), (i, answer) in zip(sealed, enumerate(came), strict=True):
        assert initiator.open(number, answer) == b"researcher:" + bytes([i])


def test_stopping_a_sealed_link_wakes_whoever_waits() -> None:
    with listening(Echo(1.0), ring("north")) as listener, link(listener.address) as asking:
        threading.Timer(0.3, asking.stop).start()
        with pytest.raises(PeerError, match="was ended here"):
            asking.ask(b"x", 30)


@pytest.mark.parametrize("place", [-1, -20, -40])
def test_a_byte_changed_on_the_way_ends_the_link_and_reaches_nobody(place: int) -> None:
    def change(part: bytes) -> bytes:
        changed = bytearray(part)
        if b"\0" * 6 not in part[:6] or len(part) > 40:
            changed[place] ^= 1
        return bytes(changed)

    echo = Echo()
    with listening(echo, ring("north")) as listener, closing(Tap(listener.address)) as tap, link(tap.address) as asking:
        asking.ask(b"x", 5)
        tap.change = change
        with pytest.raises((PeerError, RemoteProtocolError)):
            asking.ask(b"y" * 100, 3)
    assert [frame for frame, _ in echo.came] == [b"x"]
