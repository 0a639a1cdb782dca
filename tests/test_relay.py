"""Relays: what one holds and passes on, what it sees, and studies that run through it."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import count
from typing import get_args

import msgspec
import pynng
import pytest

from sessions import PRIVATE, PUBLIC, TOTALS, TRUTH, a_sealed_study, a_study
from voxring.errors import PeerError, RemoteProtocolError, StudyError
from voxring.net import Listener, Network
from voxring.net.channel import Word
from voxring.net.exchange import ASK_SECONDS, OPEN_SECONDS, TAKE_SECONDS, Exchange, Limits
from voxring.net.mailbox import (
    DAY,
    MAX_FRAME,
    MAX_MESSAGE,
    SLACK,
    Absent,
    Answer,
    Ask,
    Full,
    Gone,
    Nothing,
    Question,
    Reply,
    Request,
    Take,
    Unreadable,
    name_of,
    tokens,
    write,
)
from voxring.net.relay import Relay
from voxring.net.relayed import RelayLink, RelayListener
from voxring.ring.chunks import ChunkMember
from voxring.ring.sheet import sheet
from voxring.session import plan as plans
from voxring.session import run_party, run_researcher
from voxring.session.streamed import Streamed
from voxring.study import Study
from wire import Tap

ANYWHERE = "tcp://127.0.0.1:0"
DIGEST = bytes(range(32))
TOKEN, OTHER = bytes(16), bytes(15) + b"\1"
NAME = name_of(TOKEN)


# Names.


def test_tokens_differ_by_study_member_and_day_and_names_do_not_tell_them() -> None:
    made = {
        token
        for digest in (DIGEST, bytes(32))
        for member in ("a", "b", "ab")
        for day in range(20_000, 20_030)
        for token in tokens(digest, member, day * DAY + DAY / 2)
    }
    assert len(made) == 2 * 3 * 30
    assert len({name_of(token) for token in made} | made) == 2 * len(made)


def test_round_midnight_two_days_are_open_so_that_clocks_may_differ() -> None:
    for day in (20_000, 20_001):
        for skew in (-SLACK, -SLACK / 2, 0, SLACK / 2, SLACK - 1):
            for at in range(0, DAY, 600):
                asker, taker = day * DAY + at, day * DAY + at + skew
                assert next(tokens(DIGEST, "a", asker)) in [*tokens(DIGEST, "a", taker)]
    assert len([*tokens(DIGEST, "a", 20_000 * DAY + DAY / 2)]) == 1


# The exchange, without I/O.


class Office:
    """An exchange, and who got which reply."""

    def __init__(self, **limits: int) -> None:
        numbers = count(1)
        self.exchange = Exchange(lambda size: next(numbers).to_bytes(size, "big"), Limits(**limits))
        self.now = 0.0

    def send(self, message: object, pipe: int, host: str = "h") -> list:
        replies: list = []
        self.exchange.handle(
            message if isinstance(message, bytes) else write(message), pipe, host, self.now, replies.append
        )
        return replies

    def take(self, pipe: int = 1, token: bytes = TOKEN, host: str = "h", **more: object) -> list:
        return self.send(Take((token,), **more), pipe, host)

    def ask(self, frame: bytes = b"?", pipe: int = 2, name: bytes = NAME, host: str = "h") -> list:
        return self.send(Ask(name, frame), pipe, host)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.exchange.tick(self.now)


def test_a_question_goes_to_the_taker_and_its_answer_to_who_asked() -> None:
    office = Office()
    taker = office.take()
    assert taker == []
    asker = office.ask(b"how far?")
    (question,) = taker
    assert question == Question(question.ticket, 2, b"how far?")
    assert asker == []
    office.take(ticket=question.ticket, answer=b"ready")
    assert asker == [Answer(asker[0].ticket, b"ready")]
    assert asker[0].ticket != question.ticket
    office.take(ticket=question.ticket, answer=b"again")
    assert len(asker) == 1


def test_questions_wait_in_order_and_the_rest_is_refused() -> None:
    office = Office(questions=3, content=10)
    office.take(last=True)
    asked = [office.ask(bytes([i])) for i in range(5)]
    assert asked == [[], [], [], [Full()], [Full()]]
    assert [office.take()[0].frame for _ in range(3)] == [b"\0", b"\1", b"\2"]
    assert office.ask(b"x" * 11) == [Full()]
    assert [office.ask(b"x" * 6), office.ask(b"x" * 6)] == [[], [Full()]]


def test_only_who_shows_the_token_takes_and_only_who_knows_the_name_puts() -> None:
    office = Office()
    office.take(last=True)
    office.ask(b"secret")
    assert office.take(pipe=9, token=NAME) == []  # the name, seen on the wire, opens another mailbox
    assert office.take(pipe=9, token=OTHER) == []
    assert office.ask(name=TOKEN) == [Absent()]
    assert office.ask(name=bytes(16)) == [Absent()]
    assert office.take()[0].frame == b"secret"


def test_an_answer_needs_the_mailbox_that_the_question_was_taken_from() -> None:
    office = Office()
    taker = office.take()
    asker = office.ask()
    office.take(pipe=9, token=OTHER, ticket=taker[0].ticket, answer=b"forged")
    assert asker == []
    office.take(ticket=taker[0].ticket, answer=b"true", last=True)
    assert [reply.frame for reply in asker] == [b"true"]
    queued = office.ask(pipe=3)
    for number in range(9):
        office.take(ticket=number.to_bytes(16, "big"), answer=b"before it was taken", last=True)
    assert queued == []


def test_who_waits_too_long_is_told_to_ask_again() -> None:
    office = Office()
    taker = office.take()
    office.pass_time(TAKE_SECONDS)
    assert taker == [Nothing()]
    asker = office.ask()
    office.pass_time(ASK_SECONDS / 2)
    assert asker == []
    office.pass_time(ASK_SECONDS / 2)
    assert asker == [Nothing()]
    assert office.take() == []  # the question went with who asked it
    office.pass_time(OPEN_SECONDS)
    office.pass_time(TAKE_SECONDS)
    assert office.ask() == [Absent()]


def test_a_mailbox_closes_with_its_connection_and_whom_it_knew_is_told() -> None:
    office = Office()
    assert office.ask() == [Absent()]
    office.take(last=True)
    asker = office.ask()
    office.exchange.closed(1)
    assert asker == [Nothing()]
    assert office.ask() == [Absent()]
    assert not office.exchange._asked
    assert not office.exchange._names


def test_the_taker_hears_of_askers_that_left() -> None:
    office = Office()
    taker = office.take()
    office.ask(pipe=2)
    office.ask(pipe=3)
    office.exchange.closed(2)
    office.exchange.closed(4)
    assert [type(reply) for reply in taker] == [Question]
    assert office.take() == [Gone(2)]
    (question,) = office.take()
    assert (question.asker, office.take()) == (3, [])


def test_a_mailbox_opened_anew_replaces_the_old_one() -> None:
    office = Office()
    old = office.take(pipe=1)
    asker = office.ask()
    new = office.take(pipe=5)
    assert asker == [Nothing()]
    office.ask(b"again")
    assert [reply.frame for reply in new] == [b"again"]
    assert [type(reply) for reply in old] == [Question]
    assert list(office.exchange._boxes) == [5]


def test_the_names_of_yesterday_go_when_they_are_not_shown_any_more() -> None:
    office = Office()
    office.send(Take((TOKEN, OTHER), last=True), 1)
    assert [office.ask(name=name_of(token)) for token in (TOKEN, OTHER)] == [[], []]
    office.take(token=OTHER, last=True)
    assert office.ask() == [Absent()]
    assert office.ask(name=name_of(OTHER)) == []


def test_one_network_address_gets_half_of_what_is_held() -> None:
    office = Office(mailboxes=4, waiting=8)
    boxes = [office.take(pipe=i, token=bytes([i]) * 16, host="stranger", last=True) for i in range(5)]
    assert [type(replies[0]) for replies in boxes] == [Nothing, Nothing, Full, Full, Full]
    waiting = [office.take(pipe=0, token=bytes(16), host="stranger") for _ in range(6)]
    assert waiting == [[], [], [], [], [Nothing()], [Nothing()]]  # at once
    assert office.take(pipe=9, token=OTHER, host="hospital") == []
    asker = office.ask(name=name_of(OTHER), pipe=10, host="other hospital")
    assert asker == []
    assert office.ask(name=name_of(OTHER), pipe=11, host="stranger") == [Full()]


def test_a_connection_that_does_not_read_is_sent_no_more_than_the_limit() -> None:
    office = Office(unread=10, questions=9)
    taker = office.take()
    asked = [office.ask(b"12345678"), office.ask(b"x" * 3, pipe=3)]
    assert office.take() == [Full()]  # three more would be eleven
    assert office.take(seen=bytes(16)) == [Full()]  # not what was sent
    (question,) = office.take(seen=taker[0].ticket)
    assert question.frame == b"xxx"
    for one, answer in ((taker[0], b"1234567890"), (question, b"")):
        office.take(ticket=one.ticket, answer=answer, seen=question.ticket, last=True)
    assert [type(replies[0]) for replies in asked] == [Answer, Answer]
    # Now of answers: the ticket of the question, which whoever answered knows, does not count for having read.
    for seen, got in ((taker[0].ticket, Full), (asked[0][0].ticket, Answer)):
        replies = office.send(Ask(NAME, b"", seen), 2)
        (again,) = office.take(seen=question.ticket)
        office.take(ticket=again.ticket, answer=b"1", seen=again.ticket, last=True)
        assert [type(reply) for reply in replies] == [got]
    office.exchange.closed(2)
    office.exchange.closed(1)
    assert list(office.exchange._unread) == [3]


def test_one_mailbox_remembers_a_bounded_number_of_askers() -> None:
    office = Office(askers=3, questions=100)
    office.take(last=True)
    assert [office.ask(pipe=i) for i in range(10, 15)] == [[], [], [], [Full()], [Full()]]
    assert office.ask(pipe=11) == []


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        b"garbage",
        msgspec.msgpack.encode([1, b"short", b""]),
        msgspec.msgpack.encode([2, [], None]),
        msgspec.msgpack.encode([2, [bytes(16)] * 3, None]),
        msgspec.msgpack.encode([3, b"an answer is no request"]),
        msgspec.msgpack.encode([1, bytes(16), b"", 5]),
    ],
)
def test_what_is_no_request_is_told_so(message: bytes) -> None:
    office = Office()
    assert office.send(message, 1) == [Unreadable()]
    assert not office.exchange._boxes


# Links and listeners.


@contextmanager
def echoing(relay: str, member: str = "north", clock: Callable = time.time) -> Iterator[list[int]]:
    gone: list[int] = []
    listener = RelayListener(member, relay, DIGEST, lambda frame, pipe: b"re:" + frame, gone.append, clock=clock)
    with closing(listener):
        yield gone


def link(relay: str, peer: str = "north", grace: float = 1.0, clock: Callable = time.time):
    return closing(RelayLink(peer, relay, DIGEST, grace=grace, clock=clock))


@pytest.fixture
def relay() -> Iterator[str]:
    with Relay(ANYWHERE) as relay:
        yield relay.address


def test_a_link_asks_through_a_relay_and_is_answered(relay: str) -> None:
    with echoing(relay) as gone, echoing(relay, "south"):
        with link(relay) as one, link(relay, "south") as two:
            one.wait(5)
            for i in range(20):
                assert one.ask(bytes([i]), 5) == b"re:" + bytes([i])
                assert two.ask(b"", 5) == b"re:"
            assert one.ask(bytes(MAX_FRAME), 5) == b"re:" + bytes(MAX_FRAME)
        until = time.monotonic() + 5
        while not gone and time.monotonic() < until:
            time.sleep(0.01)
        assert len(gone) == 1


def test_many_ask_one_at_the_same_time_and_each_gets_its_own_answer(relay: str) -> None:
    def ask(i: int) -> bool:
        with link(relay) as asking:
            return all(asking.ask(b"%d %d" % (i, j), 20) == b"re:%d %d" % (i, j) for j in range(20))

    with echoing(relay), ThreadPoolExecutor(12) as pool:
        assert all(pool.map(ask, range(12)))


def test_a_peer_that_comes_later_is_waited_for_and_one_that_leaves_is_missed(relay: str) -> None:
    with link(relay, grace=0.5) as asking, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(asking.ask, b"x", 10)
        time.sleep(0.5)
        with echoing(relay):
            assert answer.result(10) == b"re:x"
        start = time.monotonic()
        with pytest.raises(PeerError, match=r"north went away and did not come back within 0\.5 s"):
            asking.ask(b"y", 30)
        assert time.monotonic() - start < 5


def test_a_peer_that_comes_back_within_the_grace_is_asked_again(relay: str) -> None:
    with link(relay, grace=5) as asking:
        with echoing(relay):
            asking.ask(b"x", 5)
        with echoing(relay):
            assert asking.ask(b"y", 5) == b"re:y"


def test_a_missing_peer_a_missing_relay_and_something_else_are_told_apart(relay: str) -> None:
    with link(relay) as asking, pytest.raises(PeerError, match=r"north was not at the relay .* for 0\.3 s: .* clock"):
        asking.ask(b"x", 0.3)
    with link("tcp://127.0.0.1:1") as asking:
        with pytest.raises(PeerError, match=r"the relay was not reached at tcp://127\.0\.0\.1:1 for 0\.3 s"):
            asking.ask(b"x", 0.3)
        with pytest.raises(PeerError, match="the relay cannot be reached"):
            asking.wait(0.1)
    slow = RelayListener("north", relay, DIGEST, lambda frame, pipe: time.sleep(1) or b"", lambda pipe: None)
    with closing(slow), link(relay) as asking, pytest.raises(PeerError, match="did not answer"):
        asking.ask(b"x", 0.3)
    with Listener(ANYWHERE, lambda frame, pipe: b"hello", lambda pipe: None, max_frame=MAX_MESSAGE) as other:
        with (
            link(other.address) as asking,
            pytest.raises(RemoteProtocolError, match="expected a relay of this release"),
        ):
            asking.ask(b"x", 5)
        lost = RelayListener("north", other.address, DIGEST, lambda frame, pipe: b"", lambda pipe: None)
        with closing(lost):
            time.sleep(0.5)
            assert "expected a relay of this release" in lost.trouble
    for make in (
        lambda: RelayLink("n", "nonsense://x", DIGEST, grace=1),
        lambda: Relay("tcp://127.0.0.1:99999"),
    ):
        with pytest.raises(PeerError):
            make()
    with pytest.raises(PeerError, match="the relay cannot be reached"):
        RelayListener("n", "nonsense://x", DIGEST, lambda frame, pipe: b"", lambda pipe: None)


def test_a_listener_that_closes_hands_in_its_last_answer(relay: str) -> None:
    asked = threading.Event()

    def answer(frame: bytes, pipe: int) -> bytes:
        asked.set()
        time.sleep(0.3)
        return b"the last"

    listener = RelayListener("north", relay, DIGEST, answer, lambda pipe: None)
    with ThreadPoolExecutor(1) as pool, link(relay) as asking:
        last = pool.submit(asking.ask, b"x", 5)
        assert asked.wait(5)
        listener.close()
        assert last.result(5) == b"the last"


def test_stopping_a_link_wakes_whoever_waits_for_a_peer_or_an_answer(relay: str) -> None:
    slow = RelayListener("south", relay, DIGEST, lambda frame, pipe: time.sleep(1) or b"", lambda pipe: None)
    with closing(slow):
        for peer in ("north", "south"):
            with link(relay, peer) as asking:
                threading.Timer(0.3, asking.stop).start()
                with pytest.raises(PeerError, match=r"the link to (north|the relay|south) was ended here"):
                    asking.ask(b"x", 30)


def test_members_whose_clocks_differ_by_an_hour_meet_round_midnight_and_by_a_day_they_do_not(relay: str) -> None:
    midnight = 20_000 * DAY
    with echoing(relay, clock=lambda: midnight + 1800):
        with link(relay, clock=lambda: midnight - 1800) as asking:
            assert asking.ask(b"x", 5) == b"re:x"
        with (
            link(relay, clock=lambda: midnight - DAY - 1800) as asking,
            pytest.raises(PeerError, match="not at the relay"),
        ):
            asking.ask(b"x", 0.3)


def test_a_relay_that_is_started_again_is_found_again() -> None:
    first = Relay(ANYWHERE)
    with echoing(first.address), link(first.address, grace=10) as asking:
        asking.ask(b"x", 5)
        first.close()
        time.sleep(0.3)
        with Relay(first.address):
            assert asking.ask(b"y", 10) == b"re:y"


def test_a_relay_keeps_a_bounded_number_of_connections_and_half_for_one_address() -> None:
    with (
        Relay(ANYWHERE, connections=20) as relay,
        ExitStack() as stack,
        echoing(relay.address),
        link(relay.address) as asking,
    ):
        asking.ask(b"x", 5)
        for _ in range(30):
            stranger = stack.enter_context(pynng.Req0(send_timeout=100))
            stranger.dial(relay.address, block=False)
        until = time.monotonic() + 5
        while len(relay._hosts) < 10 and time.monotonic() < until:
            time.sleep(0.01)
        assert len(relay._hosts) == 10
        assert asking.ask(b"y", 5) == b"re:y"


# Studies.


def a_relayed_study(name: str = "t") -> Study:
    return Study.of(**msgspec.to_builtins(a_sealed_study()) | {"name": name})


def start(
    study: Study, relay: str, pool: ThreadPoolExecutor, timeout: float = 4, **options: Callable
) -> dict[str, Future]:
    return {
        name: pool.submit(
            run_party,
            study,
            name,
            partial(options.get("totals", TOTALS.__getitem__), name),
            state=None,
            key=PRIVATE[name],
            relay=relay,
            timeout=timeout,
        )
        for name in "abc"
    }


def test_a_study_runs_through_a_relay_and_nobody_listens(relay: str) -> None:
    study, said = Study.of(**msgspec.to_builtins(a_sealed_study()) | {"relay": relay}), []
    with ThreadPoolExecutor(3) as pool:
        parties = [
            pool.submit(
                run_party, study, n, lambda n=n: TOTALS[n], state=None, key=PRIVATE[n], timeout=4, notify=said.append
            )
            for n in "abc"
        ]
        answer, view = run_researcher(study, key=PRIVATE["researcher"], timeout=4)
        assert answer == TRUTH
        assert len(view.received) == 3
        assert all(party.result(timeout=5) for party in parties)
    assert said.count(f"listening through the relay {relay}") == 3


@pytest.fixture(params=["in frames", "in chunks"])
def long_or_short(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether sums go in chunks, through mailboxes of their own."""
    if request.param == "in chunks":
        monkeypatch.setattr(plans, "IN_CHUNKS", 0)
    return request.param == "in chunks"


@pytest.mark.usefixtures("long_or_short")
def test_two_studies_run_through_one_relay_at_once(relay: str) -> None:
    studies = [a_relayed_study("one"), a_relayed_study("two")]
    with ThreadPoolExecutor(8) as pool:
        parties = [party for study in studies for party in start(study, relay, pool, 8).values()]
        runs = [
            pool.submit(run_researcher, study, key=PRIVATE["researcher"], relay=relay, timeout=8) for study in studies
        ]
        assert [run.result(timeout=30)[0] for run in runs] == [TRUTH, TRUTH]
        assert all(party.result(timeout=10) for party in parties)


def test_a_relay_sees_no_plaintext_and_nothing_of_yesterday(
    monkeypatch: pytest.MonkeyPatch, long_or_short: bool
) -> None:
    study, runs, chunks = a_relayed_study(), [], list[bytes]()
    note_chunks(monkeypatch, chunks)
    for day in (20_000, 20_001):
        monkeypatch.setattr("voxring.session.as_party.Network.of", at_noon(day))
        with Relay(ANYWHERE) as relay, closing(Tap(relay.address)) as tap, ThreadPoolExecutor(3) as pool:
            parties = start(study, tap.address, pool)
            answer, _ = run_researcher(study, key=PRIVATE["researcher"], relay=tap.address, timeout=4)
            assert answer == TRUTH
            views = [party.result(timeout=10).view for party in parties.values()]
            seen = [bytes(kept[8:]) for kept in tap.seen]
        known = [b"VXR", b"lesion", b"liver", b"researcher", study.digest.encode(), bytes.fromhex(study.digest)[:8]]
        known += [key.encode() for key in PUBLIC.values()]
        for view in views:
            for received in view.received:
                width = (received.modulus.bit_length() + 7) // 8
                residues = [residue.to_bytes(width, "big") for residue in received.residues]
                known += [b"".join(residues), *(one for one in residues if width >= 6)]
        assert bool(chunks) == long_or_short
        known += [b"VXC", *(chunk[i : i + 8] for chunk in chunks for i in range(0, len(chunk) - 7, 8))]
        assert not [what for what in known if any(what in stream for stream in seen)]
        runs.append(seen)
        names = [name_of(token) for n in "abc" for token in tokens(study_digest(study), n, day * DAY + DAY / 2)]
        assert all(any(name in stream for stream in seen) for name in names)
        chunks.clear()
    # Lengths, numbers of connections and frames, and the shape of requests are in the clear, and shorter than this.
    one, two = ({stream[i : i + 32] for stream in run for i in range(len(stream) - 31)} for run in runs)
    assert not one & two


def note_chunks(monkeypatch: pytest.MonkeyPatch, chunks: list[bytes]) -> None:
    """Note every chunk that a member receives or sends, and the keys of streams."""
    receive, ask = ChunkMember.receive, Streamed._question

    def received(member: ChunkMember, frame: memoryview) -> object:
        chunks.append(bytes(frame))
        try:
            return receive(member, frame)
        finally:
            chunks.append(bytes(frame))

    def asked(streamed: Streamed, *stream: object) -> object:
        question = ask(streamed, *stream)
        chunks.extend(streamed.keys.values())
        return question

    monkeypatch.setattr(ChunkMember, "receive", received)
    monkeypatch.setattr(Streamed, "_question", asked)


def study_digest(study: Study) -> bytes:
    return bytes.fromhex(study.digest)


def at_noon(day: int) -> Callable:
    return partial(NETWORK_OF, clock=lambda: day * DAY + DAY / 2)


NETWORK_OF = Network.of


@pytest.mark.parametrize("first", [True, False])
def test_a_party_that_dies_between_chunks_is_named_or_started_over_without(
    monkeypatch: pytest.MonkeyPatch, relay: str, first: bool
) -> None:
    """In the first sum another session may follow; later the study ends, for all, and names the phase."""
    monkeypatch.setattr(plans, "IN_CHUNKS", 0)
    study, receive, died = a_relayed_study(), ChunkMember.receive, threading.Event()

    def dies(member: ChunkMember, frame: memoryview) -> object:
        if member._me == "b" and (first or member._plan.agreed.name == "sum") and not died.is_set():
            died.set()
            raise PeerError("the network of b is gone")
        return receive(member, frame)

    monkeypatch.setattr(ChunkMember, "receive", dies)
    with ThreadPoolExecutor(3) as pool:
        parties = start(study, relay, pool, 6)
        run = partial(run_researcher, study, key=PRIVATE["researcher"], relay=relay, timeout=6, retries=1)
        if first:
            assert run()[0] == TRUTH
            assert all(party.result(timeout=10) for party in parties.values())
            return
        with pytest.raises(PeerError, match="in the secure sum of local means: "):
            run()
        assert all(isinstance(party.exception(timeout=10), PeerError) for party in parties.values())


@pytest.mark.parametrize("when", ["computing", "waiting"])
def test_a_relay_that_dies_ends_everybody_with_a_clear_error(when: str) -> None:
    study, relay, computing = a_relayed_study(), Relay(ANYWHERE), threading.Semaphore(0)

    def totals(name: str):
        computing.release()
        time.sleep(1.5)
        return TOTALS[name]

    with ThreadPoolExecutor(4) as pool:
        timeout = 6 if when == "waiting" else 20  # one whose peers were there does not wait for it
        parties = start(study, relay.address, pool, timeout, totals=totals)
        run = None
        if when == "computing":
            run = pool.submit(run_researcher, study, key=PRIVATE["researcher"], relay=relay.address, timeout=timeout)
            for _ in parties:
                assert computing.acquire(timeout=10)
        else:
            time.sleep(1)
        start_of_end = time.monotonic()
        relay.close()
        if run is not None:
            assert "the relay went away and did not come back" in str(run.exception(timeout=15))
        for party in parties.values():
            error = party.exception(timeout=15)
            assert isinstance(error, PeerError)
            assert "relay" in str(error)
        assert time.monotonic() - start_of_end < 10


def test_a_flood_of_strangers_leaves_memory_bounded_and_a_study_alive() -> None:
    import resource

    study, stop = a_relayed_study(), threading.Event()
    limits = Limits(mailboxes=64, waiting=256)

    def flood(number: int) -> int:
        sent = 0
        with pynng.Req0(send_timeout=50, recv_timeout=50, resend_time=60_000) as stranger:
            stranger.dial(relay.address, block=False)
            frame = bytes(MAX_FRAME)
            while not stop.is_set():
                token = sent.to_bytes(8, "big") + number.to_bytes(8, "big")
                mine = sent % 3 == 0
                try:
                    stranger.send(write(Take((token,), last=mine) if mine else Ask(name_of(token), frame)))
                    sent += 1
                    stranger.recv()
                except pynng.NNGException:
                    continue
        return sent

    with Relay(ANYWHERE, limits=limits, connections=64) as relay, ThreadPoolExecutor(12) as pool:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        floods = [pool.submit(flood, i) for i in range(4)]
        time.sleep(1)
        parties = start(study, relay.address, pool, 20)
        run = pool.submit(run_researcher, study, key=PRIVATE["researcher"], relay=relay.address, timeout=20)
        try:
            assert run.result(timeout=60)[0] == TRUTH
            assert all(party.result(timeout=30) for party in parties.values())
        finally:
            stop.set()
        assert sum(one.result(timeout=10) for one in floods) > 100
        exchange = relay._exchange
        assert len(exchange._boxes) <= limits.mailboxes
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_the_disclosure_sheet_tells_all_that_carries_messages(relay: str) -> None:
    study = Study.of(**msgspec.to_builtins(a_sealed_study()) | {"relay": relay})
    rows = {}
    for one in (study, a_sealed_study()):
        (section,) = [section for section in sheet(one).sections if section.title == "What carries the messages"]
        rows[bool(one.relay)] = {row[0]: row for row in section.rows}
    assert set(rows[True]) - set(rows[False]) == {kind.__name__ for kind in (*get_args(Request), *get_args(Reply))}
    assert all(word in rows[False]["handshake"][3] for word in get_args(Word))
    assert {"chunk", "word of a stream", "question and answer"} < set(rows[False])


def test_only_sealed_studies_use_a_relay(relay: str) -> None:
    with pytest.raises(StudyError, match="a relay carries sealed frames alone, and the study has no keys"):
        run_researcher(a_study(), relay=relay, insecure=True)
    with pytest.raises(StudyError, match="the study has keys"):
        run_researcher(a_sealed_study(), relay=relay, insecure=True)
    with pytest.raises(StudyError, match="the relay: expected an address like"):
        run_researcher(a_sealed_study(), relay="relay.example:7", key=PRIVATE["researcher"])
    with pytest.raises(StudyError, match="over a relay no party listens"):
        run_party(a_sealed_study(), "a", dict, state=None, address=ANYWHERE, relay=relay, key=PRIVATE["a"])
    classes = {f"a class with a long name, number {i}": i for i in range(9000)}
    large = Study.of(**msgspec.to_builtins(a_sealed_study()) | {"classes": classes})
    with pytest.raises(
        StudyError, match=r"may have \d+ bytes, a relay carries 1052672: let the members connect directly"
    ):
        run_party(large, "a", dict, state=None, relay=relay, key=PRIVATE["a"])
    with pytest.raises(StudyError, match="a relay carries 1052672"):
        run_researcher(large, relay=relay, key=PRIVATE["researcher"])
    for table, error in (({"relay": relay}, "only sealed links"), ({"relay": "x"}, "relay: expected tcp://HOST:PORT")):
        with pytest.raises(StudyError, match=error):
            Study.of(**msgspec.to_builtins(a_study()) | table)
