"""Links and listeners over real sockets on the loopback address."""

import threading
import time
from collections.abc import Iterator

import pynng
import pytest

from voxring.errors import PeerError, StudyError
from voxring.net import Link, Listener, Presence
from voxring.net.address import check_address

FRAME = 10_000
ANYWHERE = "tcp://127.0.0.1:0"


class Echo:
    """Answers with what came and counts; may be slow."""

    def __init__(self) -> None:
        self.came: list[bytes] = []
        self.gone: list[int] = []
        self.pause = 0.0

    def answer(self, frame: bytes, pipe: int) -> bytes:
        self.came.append(frame)
        time.sleep(self.pause)
        return b"re:" + frame

    def listen(self, address: str = ANYWHERE) -> Listener:
        return Listener(address, self.answer, self.gone.append, max_frame=FRAME)


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def listener(echo: Echo) -> Iterator[Listener]:
    with echo.listen() as listener:
        yield listener


def link_to(address: str, grace: float = 1.0) -> Link:
    return Link("st-mary", address, max_frame=FRAME, grace=grace)


def test_a_link_asks_and_is_answered(listener: Listener) -> None:
    assert not listener.address.endswith(":0")
    with link_to(listener.address) as link:
        link.wait(5)
        assert [link.ask(bytes([i]), 5) for i in range(5)] == [b"re:" + bytes([i]) for i in range(5)]


def test_a_link_waits_for_a_listener_that_comes_later(echo: Echo, listener: Listener) -> None:
    address = listener.address
    listener.close()
    with link_to(address) as link:
        later = threading.Timer(0.3, lambda: started.append(echo.listen(address)))
        started: list[Listener] = []
        later.start()
        assert link.ask(b"x", 5) == b"re:x"
        later.join()
        started[0].close()


def test_strangers_with_empty_garbage_and_oversized_frames_change_nothing(echo: Echo, listener: Listener) -> None:
    with link_to(listener.address) as link:
        assert link.ask(b"x", 5) == b"re:x"
        with pynng.Req0(dial=listener.address, send_timeout=1000, recv_timeout=300) as stranger:
            stranger.send(b"")
            assert stranger.recv() == b"re:"
            stranger.send(b"z" * (FRAME + 1))
            with pytest.raises(pynng.Timeout):
                stranger.recv()
        with pynng.Push0(dial=listener.address, send_timeout=200) as other, pytest.raises(pynng.Timeout):
            other.send(b"not a request")  # another of nng's protocols is not let in
        assert link.ask(b"y", 5) == b"re:y"
    assert FRAME + 1 not in map(len, echo.came)


def test_a_peer_that_goes_away_is_noticed_after_the_grace_not_the_timeout(echo: Echo, listener: Listener) -> None:
    echo.pause = 0.2
    with link_to(listener.address, grace=0.5) as link:
        link.ask(b"x", 5)
        start = time.monotonic()
        threading.Timer(0.05, listener.close).start()
        with pytest.raises(PeerError, match=r"st-mary went away and did not come back within 0\.5 s"):  # noqa: PT012
            while True:
                link.ask(b"x", 30)
        assert time.monotonic() - start < 3


def test_a_peer_that_comes_back_within_the_grace_is_asked_again(echo: Echo, listener: Listener) -> None:
    with link_to(listener.address, grace=5) as link:
        link.ask(b"x", 5)
        listener.close()
        with echo.listen(listener.address):
            assert link.ask(b"y", 5) == b"re:y"


def test_a_silent_or_missing_peer_is_told_apart(echo: Echo, listener: Listener) -> None:
    echo.pause = 0.5
    with link_to(listener.address) as link, pytest.raises(PeerError, match=r"did not answer for 0\.2 s"):
        link.ask(b"x", 0.2)
    with link_to("tcp://127.0.0.1:1") as link:
        with pytest.raises(PeerError, match="was not reached at tcp"):
            link.ask(b"x", 0.2)
        with pytest.raises(PeerError, match=r"cannot be reached at tcp.* within 0\.1 s"):
            link.wait(0.1)


def test_stopping_a_link_wakes_whoever_waits(echo: Echo, listener: Listener) -> None:
    echo.pause = 1
    with link_to(listener.address) as link:
        threading.Timer(0.2, link.stop).start()
        with pytest.raises(PeerError, match="the link to st-mary was ended here"):
            link.ask(b"x", 30)


def test_an_empty_answer_is_empty_bytes() -> None:
    nothing = Listener(ANYWHERE, lambda frame, pipe: b"", lambda pipe: None, max_frame=FRAME)
    with nothing as listener, link_to(listener.address) as link:
        assert link.ask(b"x", 5) == b""


def test_a_listener_tells_of_connections_that_closed_and_of_ports_in_use(echo: Echo, listener: Listener) -> None:
    with link_to(listener.address) as link:
        link.ask(b"x", 5)
    until = time.monotonic() + 5
    while not echo.gone and time.monotonic() < until:
        time.sleep(0.01)
    assert len(echo.gone) == 1
    with pytest.raises(PeerError, match="cannot listen at"):
        echo.listen(listener.address)


@pytest.mark.parametrize("address", ["tcp://no such host:1", "tcp://127.0.0.1:99999"])
def test_an_address_that_nng_cannot_use_is_a_peer_error(address: str, echo: Echo) -> None:
    with pytest.raises(PeerError):
        echo.listen(address)


@pytest.mark.parametrize(
    ("address", "insecure", "error"),
    [
        ("", True, "got none"),
        ("127.0.0.1:70", True, "expected an address like"),
        ("tcp://host", True, "expected an address like"),
        ("tcp://host:99999", True, "expected an address like"),
        ("ipc:///tmp/x", True, "expected an address like"),
        ("tls+tcp://host:7001", True, "asks for encrypted links, and the study has no keys: .* `voxring keys new`"),
        (
            "tcp://host:7001",
            False,
            "no keys, so its links are not encrypted: .* `voxring keys new`, or pass --insecure",
        ),
    ],
)
def test_addresses_that_cannot_be_used_are_refused_with_the_remedy(address: str, insecure: bool, error: str) -> None:
    with pytest.raises(StudyError, match=error):
        check_address("st-mary", address, sealed=False, insecure=insecure)


@pytest.mark.parametrize("insecure", [True, False])
def test_sealed_links_take_both_schemes_and_dial_plain_tcp(insecure: bool) -> None:
    for scheme in ("tcp", "tls+tcp", "TLS+tcp"):
        address = check_address("a", f"{scheme}://[::1]:7001", sealed=True, insecure=insecure)
        assert address == "tcp://[::1]:7001"
    with pytest.raises(StudyError, match="expected an address like"):
        check_address("a", "ipc:///tmp/x", sealed=True, insecure=insecure)


def test_presence_follows_one_connection() -> None:
    peer = Presence(timeout=10, grace=2)
    assert not peer.here
    assert peer.missing(100) is None  # nobody is missed who never came
    peer.heard(1, now=0)
    peer.closed(2, now=1)  # a stranger's
    assert peer.here
    assert peer.missing(9) is None
    assert peer.missing(11) == "was not heard for 10 s"
    peer.closed(1, now=1)
    assert peer.missing(2) is None
    peer.heard(1, now=1.5)  # an answer held back while the connection closed
    assert not peer.here
    peer.heard(3, now=2)  # back over another connection
    assert peer.missing(9) is None
    peer.closed(3, now=9)
    assert not peer.here
    assert peer.missing(11.5) == "went away and did not come back within 2 s"
