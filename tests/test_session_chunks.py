"""Sums in chunks within whole sessions: the same answers, sealed and in the clear, start-over, and what goes wrong."""

import itertools
import json
import os
import random
import re
import secrets
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import pytest

from sessions import (
    ANYWHERE,
    COIN,
    PRIVATE,
    TOTALS,
    TRUTH,
    Network,
    a_sealed_study,
    a_study,
    ask,
    until,
    until_computing,
)
from test_session_sockets import Meeting, run_in_thread, spawn
from voxring.errors import (
    BoundError,
    LocalProtocolError,
    PeerError,
    ProtocolError,
    RemoteProtocolError,
    StudyError,
    VoxringError,
)
from voxring.net.address import beside
from voxring.net.relay import Relay
from voxring.net.streams import Dialler
from voxring.ring import chunks
from voxring.ring.chunks import ChunkedSum, ChunkMember
from voxring.ring.message import Message, decode, encode
from voxring.ring.views import describe
from voxring.session import Account, Heard, Ledger, bodies, chunked, run_party, run_researcher
from voxring.session import party as parties
from voxring.session import plan as plans
from voxring.session.account import NoAccount
from voxring.session.as_party import _Process
from voxring.session.party import Party
from voxring.study import Study
from voxring.totals import ClassTotals, LocalTotals, Statistics, pooled
from wire import KINDS as ANY_KIND
from wire import Proxy

read = partial(decode, limit=10**6)


@pytest.fixture(autouse=True)
def all_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "IN_CHUNKS", 0)


def truth(names: str, study: Study) -> dict:
    return pooled(sum((TOTALS[name] for name in names), LocalTotals()), study)


def until_step(network: Network, step: str) -> Network:
    while network.researcher.step != step:
        network.ask()
        network.deliver()
    return network


# In memory.


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize(("names", "collusion"), [("abc", 1), ("abc", 2), ("abcde", 4), ("abcdefgh", 7)])
def test_answers_are_the_same_to_the_bit_and_each_stream_has_its_own_key(
    names: str, collusion: int, sealed: bool
) -> None:
    study = a_study(names, collusion=collusion)
    network = Network(study, sealed=sealed)
    network.finish()
    assert network.researcher.answer == truth(names, study)
    assert all(party.heard().withheld == ("rare",) for party in network.parties.values())
    views = [network.researcher.view, *(party.heard().view for party in network.parties.values())]
    assert {(view.received, view.in_chunks) for view in views} == {((), ("voxels", "sum", "sdsum"))}
    assert "saw the chunks of voxels, sum, sdsum, uniform too and not kept; learned" in describe(views[1])
    kinds = {decode(frame, limit=10**6).kind for frame in network.seen}
    assert {"stream", "door"} <= kinds
    assert "share" not in kinds
    assert len(network.keys) == 3 * len(network.researcher.plan.rings) * (len(names) + 1)
    assert len(set(network.keys.values())) == (len(network.keys) if sealed else 1)
    assert {len(key) for key in network.keys.values()} == {32 if sealed else 0}


@pytest.mark.parametrize("asked", [0, 1, 3, 6, 9])
def test_a_session_that_failed_is_followed_by_one_with_fresh_keys(asked: int) -> None:
    network = Network(a_study("abcde", collusion=2), coins=dict.fromkeys("abcde", COIN), sealed=True)
    until_step(network, "voxels")
    while sum(len(party.streamed.keys) for party in network.parties.values() if party.streamed) < asked:
        network.ask()
        network.deliver()
    network.resend()
    assert network.researcher.may_start_over
    network.parties["b"].lose("it lost the next in a ring")
    network.finish()
    assert re.match("b (cannot go on|refused)", str(network.errors[0]))
    failed, old = network.researcher.session, list(network.seen)
    network.start_over()
    assert until(network, "b", "computing").streamed is None
    network.finish()
    assert network.researcher.answer == truth("abcde", network.study)
    streams = [message for message in map(read, network.seen) if message.kind == "stream"]
    first, second = ({m.body for m in streams if (m.session == failed) == is_first} for is_first in (True, False))
    assert not first & second
    for frame in old:  # what was under way in the failed session changes nothing now
        for party in network.parties.values():
            party.answer(frame)
    assert {party.state for party in network.parties.values()} == {"done"}


def test_a_stream_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    network = Network(a_study("abcd"), coins=dict.fromkeys("abcd", COIN), sealed=True)
    until_step(network, "voxels")
    (ring,), study_and_coin = network.researcher.plan.rings, network.parties["d"].plan.binding
    first, last = ring.members[1], ring.last
    fits = {"digest": study_and_coin, "sum": "voxels", "body": bytes(32)}

    def refused(party: str, **changes: object) -> str:
        before = network.parties[party].streamed.keys.copy()
        why = ask(network, "stream", party, **(fits | changes))
        assert network.parties[party].streamed.keys == before
        return why

    assert "expected a key where links are sealed" in refused(first, body=b"")
    assert "expected a key where links are sealed" in refused(first, body=bytes(31))
    other = Message(kind="stream", **fits | {"sum": "sum"}, session=bytes(16), sender="researcher", receiver=first)
    with pytest.raises(RemoteProtocolError, match="expected one of 'voxels', got one of 'sum'"):
        network.parties[first].streamed.answer(other)
    assert "different rings" in refused(first, digest=network.researcher.plan.digest)
    assert "came early or late" in refused(first, sum="sum")
    assert "expected a ring below 1, got 1" in refused(first, ring=1)
    assert "does not stand before" in refused(ring.members[2])  # the researcher is not next to it
    assert "does not stand before" in refused(first, sender=last)
    assert "another session" in refused(first, session=bytes(16))
    assert "expected a stream of chunks" in ask(network, "share", first, **fits)
    network.finish()
    assert network.researcher.answer == truth("abcd", network.study)


def test_in_the_clear_a_key_is_refused_and_a_short_vector_takes_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(a_study("abcd"), coins=dict.fromkeys("abcd", COIN))
    first = until_step(network, "voxels").researcher.plan.rings[0].members[1]
    fits = {"digest": network.parties["d"].plan.binding, "sum": "voxels"}
    assert "expected a key where" in ask(network, "stream", first, **fits, body=bytes(32))
    monkeypatch.setattr(plans, "IN_CHUNKS", 10**6)
    network = until_step(Network(a_study("abcd"), coins=dict.fromkeys("abcd", COIN)), "voxels")
    assert "expected a share in one message" in ask(network, "stream", first, **fits)


def test_a_door_that_nobody_asked_for_is_refused() -> None:
    network = until_step(Network(a_study("abcd"), coins=dict.fromkeys("abcd", COIN)), "voxels")
    party = network.parties["d"]
    door = Message(kind="door", digest=bytes(32), session=party.session, sender="a", receiver="d", sum="voxels")
    with pytest.raises(RemoteProtocolError, match="expected one that was asked for"):
        party.streamed.take(door)
    mine = network.researcher.streamed
    assert not mine.ready
    for sender, number in ((mine.agreed.rings[0].members[1], 0), (mine.agreed.rings[0].last, 1)):
        answer = msgspec.structs.replace(door, sender=sender, receiver="researcher", body=bodies.write_door(7))
        with pytest.raises(RemoteProtocolError, match="expected one that was asked for"):
            mine.take(msgspec.structs.replace(answer, sum="sdsum"))
        assert not mine.ready
        mine.take(answer)
        assert mine.doors[sender] == {number: 7}
    assert mine.ready


def test_the_distance_of_a_port_is_read_strictly() -> None:
    for offset in (-65534, -1, 0, 1, 65534):
        assert bodies.read_door(bodies.write_door(offset)) == offset
    for body in (b"", b"\0\1", bodies.write_door(65535), bodies.write_door(-(2**40))):
        with pytest.raises(RemoteProtocolError):
            bodies.read_door(body)


def test_the_researcher_goes_on_when_every_party_has_passed_on_all_chunks() -> None:
    network = until_step(Network(a_study(), coins=dict.fromkeys("abc", COIN)), "voxels")
    slow = network.parties["b"]
    with pytest.raises(LocalProtocolError, match="when every chunk has passed"):
        slow.carried()
    slow.carried = lambda: None  # chunks have passed, it has yet to notice
    while network.researcher.may_start_over:
        network.ask()
        network.deliver()
    network.finish()
    assert network.researcher.step == "voxels"  # though the total is there
    del slow.carried
    slow.carried()
    until_step(network, "releasing")
    assert not network.researcher.may_start_over
    network.finish()
    assert network.researcher.answer == TRUTH


def test_nothing_starts_over_once_the_total_of_a_slot_is_known() -> None:
    network = until_step(Network(a_study(collusion=2), coins=dict.fromkeys("abc", COIN)), "voxels")
    plan, master = network.researcher.streamed.plan, network.researcher.streamed.part
    for ring, around in enumerate(plan.agreed.rings):
        assert network.researcher.may_start_over
        frame = memoryview(bytearray(plan.frame_bytes(0)))
        master.fill(frame, ring, 0)
        for name in around.members[1:]:
            network.parties[name].streamed.part.receive(frame)
        assert not master.opened
        master.receive(frame)
    assert master.opened
    assert not network.researcher.may_start_over


def test_a_seal_is_bound_to_its_stream_beyond_its_key() -> None:
    network = until_step(Network(a_study(collusion=2), sealed=True), "voxels")
    streamed = network.researcher.streamed
    (first, second), key = streamed.agreed.rings, bytes(32)
    names = [(0, first.master, first.members[1]), (0, first.last, first.master), (1, second.master, second.members[1])]
    frame, seen = memoryview(bytes(100)), set()
    for ring, sender, receiver in names:
        streamed.keys[sender, receiver, ring] = key
        sealed = memoryview(bytearray(116))
        chunked.sealed_by(streamed)(sender, receiver, ring).close(0, frame, sealed)
        seen.add(bytes(sealed))
    assert len(seen) == 3


# Over sockets.


class Run:
    """A study over sockets, in the clear or sealed; streams may go through proxies."""

    def __init__(self, names: str = "abc", *, sealed: bool = False, timeout: float = 3, retries: int = 0) -> None:
        self.names, self.timeout, self.retries = names, timeout, retries
        self.study = a_sealed_study() if sealed else a_study(names)
        self.keys = PRIVATE if sealed else {}
        self.options: dict[str, dict] = {name: {} for name in names}
        self.relays: dict[str, str] = {}
        self.said: list[str] = []
        self.sums_in_frames: set[str] = set()

    def go(self) -> tuple[dict | VoxringError, dict[str, Heard | VoxringError], float]:
        """Return the answer, or how it ended, for all, and how long it took."""
        meeting, study = Meeting(self.names), {"study": self.study}
        with ThreadPoolExecutor(len(self.names)) as pool:
            parties = {
                name: run_in_thread(
                    meeting,
                    pool,
                    name,
                    **{"timeout": self.timeout, "key": self.keys.get(name)}
                    | study
                    | ({"relay": self.relays[name], "address": None} if self.relays else {})
                    | self.options[name],
                )
                for name in self.names
            }
            assert meeting.all_here.wait(20)
            start = time.monotonic()
            try:
                answer, view = run_researcher(
                    self.study,
                    peers=meeting.where,
                    timeout=self.timeout,
                    retries=self.retries,
                    insecure=True,
                    key=self.keys.get("researcher"),
                    relay=self.relays.get("researcher"),
                    notify=self.said.append,
                )
                self.sums_in_frames = {seen.sum for seen in view.received}
            except VoxringError as error:
                answer = error
            ended = {name: party.exception(timeout=20) or party.result() for name, party in parties.items()}
        return answer, ended, time.monotonic() - start


@pytest.mark.parametrize(("names", "sealed"), [("abcde", False), ("abc", True)])
def test_over_sockets_answers_are_the_same(names: str, sealed: bool) -> None:
    run = Run(names, sealed=sealed)
    answer, ended, _ = run.go()
    assert answer == truth(names, run.study)
    assert all(isinstance(one, Heard) and one.withheld == ("rare",) for one in ended.values())
    assert not run.sums_in_frames


class Way:
    """Dials streams through proxies; the one that is counted gets a fault."""

    def __init__(self, number: int, **fault: object) -> None:
        self._number, self._fault = number, fault
        self._dialled = 0
        self._lock = threading.Lock()
        self.proxies: list[Proxy] = []

    def __call__(self, address: str) -> Dialler:
        with self._lock:
            self._dialled += 1
            proxy = Proxy(address, **self._fault if self._dialled == self._number else {})
            self.proxies.append(proxy)
        return Dialler(proxy.address)


KINDS = ("cut", "flip", "drop", "repeat", "half-close", "refuse", "stall", "drip")
QUICK = (("cut", True), ("flip", False), ("stall", True))
OTHERS = [(kind, sealed) for kind in KINDS for sealed in (False, True) if (kind, sealed) not in QUICK]


@pytest.mark.parametrize(("kind", "sealed"), [*QUICK, *(pytest.param(*one, marks=pytest.mark.soak) for one in OTHERS)])
def test_a_fault_on_a_stream_ends_right_or_starts_over_or_is_named(
    monkeypatch: pytest.MonkeyPatch, kind: str, sealed: bool
) -> None:
    # 4 streams a sum: in the first sum something may start over, in the second nothing may.
    for number in (2, 6):
        way = Way(number, kind=kind, at=90)
        monkeypatch.setattr(chunked, "Dialler", way)
        run = Run(sealed=sealed, timeout=1, retries=1)
        answer, ended, took = run.go()
        assert took < 15
        assert any(proxy.struck.is_set() for proxy in way.proxies)
        for proxy in way.proxies:
            proxy.close()
        if isinstance(answer, VoxringError):
            assert isinstance(answer, (PeerError, ProtocolError))
            assert re.match(r"in the secure sum of (n|local means): .*\b[abc]\b", str(answer)), answer
            assert all(isinstance(one, (PeerError, ProtocolError)) for one in ended.values())
        else:
            assert answer == TRUTH
            assert all(isinstance(one, Heard) for one in ended.values())
        assert number < 6 or not any("starting over" in said for said in run.said)


@pytest.mark.soak
@pytest.mark.parametrize("batch", range(12))
def test_whatever_the_network_does_to_streams_all_end_right_or_with_an_error_in_time(
    monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """Streams between members, sealed and in the clear, and all that goes through a relay; 27 runs."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", (48, 48))
    draw, struck, ends = random.Random(batch), Counter(), Counter()  # noqa: S311
    for kind, way_of in itertools.product(ANY_KIND, (sealed_streams, streams_in_the_clear, streams_at_a_relay)):
        with ExitStack() as stack:
            run, proxies = way_of(monkeypatch, stack, draw, kind)
            answer, ended, took = run.go()
        assert took < 20
        struck[kind] += any(proxy.struck.is_set() for proxy in proxies)
        for one in ended.values():
            if isinstance(one, Heard):
                assert one.means == {name: of.mean for name, of in TRUTH.items() if isinstance(of, Statistics)}
            else:
                assert isinstance(one, (PeerError, ProtocolError)), one
        if isinstance(answer, VoxringError):
            assert re.match(r"(in the secure sum of|while) .*: .*\b([abc]|relay)\b", str(answer)), answer
        else:
            assert answer == TRUTH
        ends[kind, "right" if answer == TRUTH else "ended with an error"] += 1
    print(f"\nstruck {dict(struck)}; {dict(ends)}; 0 wrong, 0 hung")
    assert struck.total() > 13


def sealed_streams(
    monkeypatch: pytest.MonkeyPatch, stack: ExitStack, draw: random.Random, kind: str, *, sealed: bool = True
) -> tuple[Run, list[Proxy]]:
    answers = draw.random() < 0.3  # two words, against two and chunks
    way = Way(draw.randint(1, 12), kind=kind, at=draw.randrange(70 if answers else 240), answers=answers)
    monkeypatch.setattr(chunked, "Dialler", way)
    stack.callback(lambda: [proxy.close() for proxy in way.proxies])
    return Run(sealed=sealed, timeout=1, retries=1), way.proxies


def streams_at_a_relay(
    monkeypatch: pytest.MonkeyPatch, stack: ExitStack, draw: random.Random, kind: str
) -> tuple[Run, list[Proxy]]:
    relay, run = stack.enter_context(Relay(ANYWHERE)), Run(sealed=True, timeout=2, retries=1)
    fault = {"kind": kind, "at": draw.randrange(8000), "answers": draw.random() < 0.5}
    proxies = {name: Proxy(relay.address) for name in (*run.names, "researcher")}
    struck = draw.choice(list(proxies))
    proxies[struck].close()
    proxies[struck] = Proxy(relay.address, **fault)
    for proxy in proxies.values():
        stack.callback(proxy.close)
    run.relays = {name: proxy.address for name, proxy in proxies.items()}
    return run, list(proxies.values())


streams_in_the_clear = partial(sealed_streams, sealed=False)


def test_who_waits_for_a_stream_hears_that_the_session_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    way = Way(6, kind="stall", at=90)
    monkeypatch.setattr(chunked, "Dialler", way)
    run = Run(timeout=1)
    run.options = {name: {"timeout": 30} for name in run.names}
    answer, ended, took = run.go()
    assert isinstance(answer, PeerError)
    assert all("researcher" in str(one) for one in ended.values())
    assert took < 8
    for proxy in way.proxies:
        proxy.close()


def a_party_that_dies(pipe: Connection, name: str, deadly: int) -> None:
    """One party in a process of its own that sends itself a signal at its first chunk."""
    plans.IN_CHUNKS = 0
    receive = ChunkMember.receive

    def last(member: ChunkMember, frame: memoryview) -> tuple[int, int]:
        os.kill(os.getpid(), deadly)
        return receive(member, frame)

    ChunkMember.receive = last  # type: ignore[method-assign]

    def listening(address: str) -> dict[str, str]:
        pipe.send(address)
        return pipe.recv()

    totals = TOTALS[name]
    run_party(a_study(), name, lambda: totals, state=None, address=ANYWHERE, insecure=True, listening=listening)


@pytest.mark.parametrize("deadly", [signal.SIGKILL, signal.SIGSTOP])
def test_a_party_that_dies_or_hangs_between_chunks_ends_all_and_is_named(deadly: int) -> None:
    meeting = Meeting("abc")
    process, pipe = spawn(a_party_that_dies, "b", deadly)
    try:
        with ThreadPoolExecutor(2) as pool:
            others = [run_in_thread(meeting, pool, name, timeout=2) for name in "ac"]
            pipe.send(meeting.at("b")(pipe.recv()))
            start = time.monotonic()
            with pytest.raises(PeerError, match=r"^in the secure sum of n: .*\bb (went away|did not answer)"):
                run_researcher(a_study(), peers=meeting.where, timeout=2, insecure=True)
            assert all(isinstance(other.exception(timeout=5), PeerError) for other in others)
            assert time.monotonic() - start < 8
    finally:
        process.kill()
        process.join(5)


@pytest.mark.parametrize("classes", [150, pytest.param(9000, marks=pytest.mark.soak)])
def test_the_length_of_a_vector_alone_decides_whether_it_goes_in_chunks(
    monkeypatch: pytest.MonkeyPatch, classes: int
) -> None:
    monkeypatch.undo()
    if classes < 9000:
        monkeypatch.setattr(plans, "IN_CHUNKS", 30 * classes)
        monkeypatch.setattr(chunks, "CHUNK_BYTES", (100, 1000))
    run = Run()
    run.study = a_study(classes={f"c{number}": number for number in range(1, classes + 1)}, min_voxels=2)
    for seed, name in enumerate(run.names):
        mine = LocalTotals(dict.fromkeys(list(run.study.classes)[seed :: seed + 1], TOTALS[name]["lesion"]))
        run.options[name] = {"local_totals": lambda mine=mine: mine}
    answer, ended, _ = run.go()
    assert answer == pooled(
        sum((options["local_totals"]() for options in run.options.values()), LocalTotals()), run.study
    )
    assert all(isinstance(one, Heard) for one in ended.values())
    assert run.sums_in_frames == {"sum", "sdsum"}  # half as long
    plan = ChunkedSum(plans.Plan(run.study, COIN).voxels(bytes(16)))
    assert plan.count > 1


def test_a_number_that_changes_inside_a_party_is_found_by_the_checksum() -> None:
    for party, limb, slot in (("a", 0, 3), ("b", 1, 0), ("c", 0, -1)):
        network = until_step(Network(a_study()), "voxels")
        network.parties[party].streamed.part._shares._vector[limb, slot] ^= 1 << 5
        with pytest.raises(RemoteProtocolError, match="the total and its checksum do not fit"):
            network.finish()
        assert network.researcher.step == "voxels"


def test_numbers_beyond_their_bounds_never_leave_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    party = until_computing(Network(a_study(), coins=dict.fromkeys("abc", COIN)))
    monkeypatch.setattr(parties, "check_bounds", lambda totals, study: None)
    too_many = LocalTotals({"lesion": ClassTotals(10**7, 0, 0, 0, 3)})
    with pytest.raises(BoundError, match="nothing of this sum was sent"):
        party.supply(too_many)
    assert party.streamed is None


def test_the_ledger_has_what_was_given_in_chunks(tmp_path: Path) -> None:
    run = Run(sealed=True)
    for name in run.names:
        account = Account(Ledger(tmp_path / name, name), run.study)
        account.approve(run.study.digest, how="test")
        run.options[name] = {"ledger": account, "local_totals": partial(account.add_up, [TOTALS[name]])}
    answer, _, _ = run.go()
    assert answer == TRUTH
    for name in run.names:
        entries = [json.loads(entry.content) for entry in Ledger(tmp_path / name, name).verified()]
        assert entries[-1]["given"] == ["voxels", "sum", "sdsum"]
        sent = {kind for entry in entries for kind, *_ in entry.get("sent", ())}
        assert "door" in sent
        chunks = [one[1:4] for entry in entries for one in entry.get("sent", ()) if one[0] == "chunks"]
        assert [size for _, size, _ in chunks] == [32 + 16 * 7, 32 + 16 * 3, 32 + 24 * 3]
        assert len({(name, heads) for name, _, heads in chunks}) == 3
        assert {len(heads) for _, _, heads in chunks} == {64}
    early = Account(Ledger(tmp_path / "a", "a"), run.study)
    door = Message(kind="door", digest=bytes(32), session=bytes(range(16)), sender="a", receiver="b", sum="voxels")
    with pytest.raises(LocalProtocolError, match="admitted"):
        early.sends(encode(door))


def test_doors_are_the_ports_after_that_of_messages() -> None:
    assert beside("tcp://[::1]:7001", 2) == "tcp://[::1]:7003"
    with pytest.raises(StudyError, match="expected room for a port 3 further"):
        beside("tcp://127.0.0.1:65533", 3)
    party = Party(a_study(collusion=2), "a", secrets.token_bytes)
    process = _Process(party, None, 1.0, print, NoAccount())
    for _ in range(20):  # a port may be somebody else's
        own = f"tcp://127.0.0.1:{30_000 + secrets.randbelow(20_000)}"
        with suppress(PeerError), process.open_doors(own, own):
            assert party.doors == (1, 2, 3)
            assert process.streams.addresses[0] == beside(own, 1)
            break
    assert party.doors
