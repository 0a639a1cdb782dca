"""Algorithm 1 among processes and threads over sockets on the loopback address, in the clear and sealed."""

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest

from sessions import (
    ANYWHERE,
    COIN,
    OLD,
    PRIVATE,
    PUBLIC,
    TOTALS,
    TRUTH,
    Network,
    a_sealed_study,
    a_study,
    until_computing,
)
from voxring.errors import BoundError, ImageError, PeerError, RemoteProtocolError, StudyError
from voxring.net import Link, PrivateKey
from voxring.net import Network as Reach
from voxring.net.keys import fingerprint
from voxring.ring.message import decode
from voxring.session import Heard, bodies, run_party, run_researcher
from voxring.session.coins import CoinFile
from voxring.session.plan import Plan
from voxring.session.researcher import Researcher
from voxring.study import Study
from voxring.totals import ClassTotals, LocalTotals, pooled
from wire import Tap

PATIENCE = 20.0  # seconds for a process to start where others are busy; a connection that closes is missed after 3


class Meeting:
    """Where parties of one test tell each other their addresses."""

    def __init__(self, names: str) -> None:
        self.where: dict[str, str] = {}
        self.all_here = threading.Event()
        self.names = names

    def at(self, name: str) -> Callable[[str], dict[str, str]]:
        def listening(address: str) -> dict[str, str]:
            self.where[name] = address
            if set(self.where) == set(self.names):
                self.all_here.set()
            assert self.all_here.wait(20)
            return dict(self.where)

        return listening


def run_in_thread(meeting: Meeting, pool: ThreadPoolExecutor, name: str, timeout: float = 4.0, **options):
    options = {"local_totals": lambda: TOTALS[name], "study": a_study(), **options}
    study, local_totals = options.pop("study"), options.pop("local_totals")
    return pool.submit(
        run_party,
        study,
        name,
        local_totals,
        **{"state": None, "address": ANYWHERE, "insecure": True} | options,
        timeout=timeout,
        listening=meeting.at(name),
    )


def party_process(pipe, name: str, die_at: str, hold_at: str) -> None:
    """One party in a process of its own, that may kill itself or hold on at a phase."""

    def listening(address: str) -> dict[str, str]:
        pipe.send(address)
        return pipe.recv()

    def notify(what: str) -> None:
        if what == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == hold_at:
            pipe.send("holding")
            time.sleep(0.5)

    try:
        outcome: object = run_party(
            a_study(),
            name,
            lambda: TOTALS[name],
            state=None,
            address=ANYWHERE,
            timeout=PATIENCE,
            insecure=True,
            listening=listening,
            notify=notify,
        )
    except PeerError as error:
        outcome = error
    pipe.send(outcome)


def researcher_process(pipe, peers: dict[str, str]) -> None:
    """The researcher in a process of its own."""
    try:
        pipe.send(run_researcher(a_study(), peers=peers, timeout=4, insecure=True))
    except PeerError as error:
        pipe.send(error)


def spawn(target: Callable, *args: object):
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *args), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def test_over_sockets_a_second_run_has_the_rings_of_the_first_and_a_lost_coin_is_named(tmp_path: Path) -> None:
    study = a_study("abcd", collusion=3)

    def run_once() -> tuple[dict, dict[str, list[str]]]:
        meeting, said = Meeting("abcd"), {name: [] for name in "abcd"}
        with ThreadPoolExecutor(4) as pool:
            parties = [
                run_in_thread(meeting, pool, name, study=study, state=tmp_path / name, notify=said[name].append)
                for name in "abcd"
            ]
            assert meeting.all_here.wait(10)
            try:
                answer, view = run_researcher(study, peers=meeting.where, timeout=4, insecure=True)
                assert len(view.received) == 6
            finally:
                for party in parties:
                    party.exception(timeout=10)
        return answer, said

    answer, said = run_once()
    assert answer == pooled(sum((TOTALS[name] for name in "abcd"), LocalTotals()), study)
    assert all("coin drawn" in phases for phases in said.values())
    coins = {CoinFile(tmp_path / name, study, name).read() for name in "abcd"}
    assert len(coins) == 1
    again, said = run_once()
    assert again == answer
    assert not any("coin drawn" in phases for phases in said.values())
    assert {CoinFile(tmp_path / name, study, name).read() for name in "abcd"} == coins
    CoinFile(tmp_path / "c", study, "c").path.unlink()
    with pytest.raises(PeerError, match=r"a, b, d keep [0-9a-f]{12}; c keeps none: copy it"):
        run_once()


def test_three_processes_and_the_researcher_equal_pooled() -> None:
    started = {name: spawn(party_process, name, "", "") for name in "abc"}
    where = {name: pipe.recv() for name, (_, pipe) in started.items()}
    for _, pipe in started.values():
        pipe.send(where)
    phases: list[str] = []
    answer, view = run_researcher(a_study(), peers=where, timeout=20, insecure=True, notify=phases.append)
    assert answer == TRUTH
    assert len(view.received) == 3
    assert phases[0] == "waiting for the parties"
    assert phases[-1] == "done"
    for process, pipe in started.values():
        heard = pipe.recv()
        assert isinstance(heard, Heard)
        assert heard.means == {name: TRUTH[name].mean for name in ("lesion", "liver")}
        process.join(5)
        assert process.exitcode == 0


FIRST, *OTHERS = "abc"


@pytest.mark.parametrize(
    "phase",
    [
        "waiting for the researcher",
        "computing local totals",
        "secure sum: voxels",
        "secure sum: sum",
        "μ received",
        "secure sum: sdsum",
    ],
)
def test_killing_a_party_ends_everybody_else_alike(phase: str) -> None:
    meeting = Meeting("abc")
    process, pipe = spawn(party_process, FIRST, phase, "")
    with ThreadPoolExecutor(2) as pool:
        others = [run_in_thread(meeting, pool, name) for name in OTHERS]
        pipe.send(meeting.at(FIRST)(pipe.recv()))
        start = time.monotonic()
        try:
            answer, _ = run_researcher(a_study(), peers=meeting.where, timeout=4, insecure=True)
        except PeerError as error:
            ended = str(error)
            assert all(isinstance(other.exception(timeout=5), PeerError) for other in others)
        else:
            ended = "with the answer"
            assert phase == "secure sum: sdsum"  # all that was missing then was its word that it knows
            assert answer == TRUTH
            assert all(isinstance(other.result(timeout=5), Heard) for other in others)
        took = time.monotonic() - start
    process.join(5)
    assert process.exitcode == -signal.SIGKILL
    assert re.search(rf"with the answer|(in|while) .*{FIRST}", ended)  # the phase and the party
    assert took < 8  # those never greeted wait the whole timeout of 4 s, then for the others
    print(f"killed at {phase!r}: all ended after {took:.1f} s: {ended}")


@pytest.mark.parametrize("phase", ["computing local totals", "secure sum: sum"])
def test_killing_the_researcher_ends_every_party(phase: str) -> None:
    meeting = Meeting("abc")
    process, pipe = spawn(party_process, FIRST, "", phase)
    with ThreadPoolExecutor(2) as pool:
        others = [run_in_thread(meeting, pool, name, timeout=PATIENCE) for name in OTHERS]
        pipe.send(meeting.at(FIRST)(pipe.recv()))
        researcher, _ = spawn(researcher_process, meeting.where)
        assert pipe.recv() == "holding"
        os.kill(researcher.pid, signal.SIGKILL)
        start = time.monotonic()
        for other in others:
            assert "researcher" in str(other.exception(timeout=8))
        assert isinstance(pipe.recv(), PeerError)
        assert time.monotonic() - start < 5
    process.join(5)


def test_parties_and_researcher_may_start_in_any_order_and_long_work_trips_no_timeout() -> None:
    meeting = Meeting("abc")

    def long_work() -> LocalTotals:
        time.sleep(2.5)
        return TOTALS["a"]

    with ThreadPoolExecutor(4) as pool:
        # Two timeouts long; the researcher dials addresses at which nobody listens yet.
        parties = [run_in_thread(meeting, pool, name, timeout=1.5) for name in "bc"]
        parties.append(run_in_thread(meeting, pool, "a", timeout=1.5, local_totals=long_work))
        assert meeting.all_here.wait(10)
        answer, _ = run_researcher(a_study(), peers=meeting.where, timeout=1.5, insecure=True)
        assert answer == TRUTH
        for party in parties:
            assert party.result(timeout=5).withheld == ("rare",)


def test_strangers_second_researchers_and_garbage_change_nothing() -> None:
    meeting = Meeting("abc")
    study, stop, greeted = a_study(), threading.Event(), threading.Semaphore(0)
    refused: list[str] = []

    def hold(name: str) -> LocalTotals:
        greeted.release()
        stop.wait(10)
        return TOTALS[name]

    def disturb() -> None:
        second = Researcher(study, os.urandom)
        for name, address in meeting.where.items():
            with Link(name, address, max_frame=10**6, grace=1) as link:
                for frame in (b"", b"garbage", *OLD[::40], second.request(name), second.heartbeat(name)):
                    reply = decode(link.ask(frame, 5), limit=10**6)
                    assert reply.kind == "refused"
                    refused.append(bodies.read_reason(reply.body))
            with Link(name, address, max_frame=10**6, grace=1) as link, pytest.raises(PeerError):
                link.ask(bytes(10**6), 0.3)  # above recv_max_size: dropped by nng
        with pytest.raises(PeerError, match="another session runs here"):
            run_researcher(study, peers=meeting.where, timeout=4, insecure=True)
        stop.set()

    with ThreadPoolExecutor(5) as pool:
        parties = [run_in_thread(meeting, pool, name, local_totals=partial(hold, name)) for name in "abc"]
        assert meeting.all_here.wait(10)
        run = pool.submit(run_researcher, study, peers=meeting.where, timeout=4, insecure=True)
        for _ in "abc":
            assert greeted.acquire(timeout=10)
        disturb()
        assert run.result(timeout=10)[0] == TRUTH
        assert all(isinstance(party.result(timeout=5), Heard) for party in parties)
    assert any("another session" in reason for reason in refused)


class TappedMeeting(Meeting):
    """A meeting at which somebody sits on every line."""

    def __init__(self, names: str) -> None:
        super().__init__(names)
        self.taps: list[Tap] = []

    def at(self, name: str) -> Callable[[str], dict[str, str]]:
        def listening(address: str) -> dict[str, str]:
            self.taps.append(Tap(address))
            return super(TappedMeeting, self).at(name)(self.taps[-1].address)

        return listening

    def seen(self) -> list[bytes]:
        """What went over each connection each way, without nng's greeting."""
        return [bytes(kept[8:]) for tap in self.taps for kept in tap.seen]


def run_sealed(meeting: Meeting, study: Study, researcher_key: PrivateKey = PRIVATE["researcher"], timeout: float = 4):
    with ThreadPoolExecutor(3) as pool:
        parties = {
            name: run_in_thread(meeting, pool, name, timeout, study=study, key=PRIVATE[name], insecure=False)
            for name in "abc"
        }
        assert meeting.all_here.wait(10)
        answer, view = run_researcher(study, peers=meeting.where, key=researcher_key, timeout=timeout)
        return answer, {name: party.result(timeout=10).view for name, party in parties.items()} | {"researcher": view}


def test_with_keys_the_answer_is_the_same_and_the_wire_shows_nothing_of_it() -> None:
    study, runs = a_sealed_study(), []
    for _ in range(2):
        meeting = TappedMeeting("abc")
        answer, views = run_sealed(meeting, study)
        assert answer == TRUTH
        seen = meeting.seen()
        assert sum(map(len, seen)) > 10_000
        for tap in meeting.taps:
            tap.close()
        known = [b"VXR", b"lesion", b"liver", b"researcher", study.digest.encode(), bytes.fromhex(study.digest)[:8]]
        for view in views.values():
            for received in view.received:
                width = (received.modulus.bit_length() + 7) // 8
                for order in ("big", "little"):
                    residues = [residue.to_bytes(width, order) for residue in received.residues]
                    known += [b"".join(residues), *(one for one in residues if width >= 6)]  # 3 bytes come by chance
        assert len(known) > 40
        assert not [what for what in known if any(what in stream for stream in seen)]
        runs.append(seen)
    # nng's 8 bytes of length and 4 of number before each frame; then all is random.
    one, two = ({stream[i : i + 16] for stream in run for i in range(len(stream) - 15)} for run in runs)
    assert not one & two


def test_a_party_refuses_a_message_whose_sender_is_not_the_member_that_asks() -> None:
    network = Network(a_study())
    hello = network.researcher.request("a")
    for peer in ("b", "c", "a"):
        answer = network.parties["a"].answer(hello, peer)
        assert answer is not None
        assert answer.sender is None
        assert f"a message of researcher came from {peer}" in bodies.read_reason(decode(answer.frame, limit=10**6).body)
    assert network.parties["a"].state == "waiting"
    answer = network.parties["a"].answer(hello, "researcher")
    assert answer is not None
    assert answer.sender == "researcher"


def test_a_member_cannot_stand_in_for_the_researcher_or_for_another_party() -> None:
    study, meeting = a_sealed_study(), Meeting("abc")
    with ThreadPoolExecutor(3) as pool:
        parties = [
            run_in_thread(meeting, pool, name, 2, study=study, key=PRIVATE[name], insecure=False) for name in "abc"
        ]
        assert meeting.all_here.wait(10)
        forged = Researcher(study, os.urandom)
        reach = Reach.of(study, "b", key=PRIVATE["b"], keys=None, relay=None, insecure=False)
        with closing(reach.link("a", meeting.where["a"], max_frame=10**6, grace=1)) as link:
            reply = decode(link.ask(forged.request("a"), 5), limit=10**6)
        assert bodies.read_reason(reply.body) == "a message of researcher came from b: each sends its own"
        for party in parties:
            assert "the researcher was not heard" in str(party.exception(timeout=10))


def test_a_researcher_with_another_key_is_refused_by_fingerprint_and_the_true_one_still_heard() -> None:
    study, meeting, stranger = a_sealed_study(), Meeting("abc"), PrivateKey(bytes(32))
    with ThreadPoolExecutor(3) as pool:
        parties = [run_in_thread(meeting, pool, name, study=study, key=PRIVATE[name], insecure=False) for name in "abc"]
        assert meeting.all_here.wait(10)
        with pytest.raises(PeerError, match="refused: expected the key of a member of the study") as error:
            # It has the study as it is, not as it would need it: so it must lie to its own software.
            run_researcher(study, peers=meeting.where, key=stranger, keys=PUBLIC | {"researcher": stranger.public})
        assert fingerprint(stranger.public) in str(error.value)
        assert fingerprint(PUBLIC["researcher"]) in str(error.value)
        answer, _ = run_researcher(study, peers=meeting.where, key=PRIVATE["researcher"], timeout=4)
        assert answer == TRUTH
        assert all(party.result(timeout=10) for party in parties)


def test_a_party_with_another_study_is_told_so_without_a_word_of_it_on_the_wire() -> None:
    ours, theirs, meeting = a_sealed_study(), a_sealed_study(c=PrivateKey(bytes(32)).public), Meeting("abc")
    with ThreadPoolExecutor(3) as pool:
        parties = [
            run_in_thread(meeting, pool, name, 1.5, study=theirs, key=PRIVATE[name], keys=PUBLIC, insecure=False)
            for name in "abc"
        ]
        assert meeting.all_here.wait(10)
        with pytest.raises(RemoteProtocolError, match=f"under study {ours.digest[:12]}, .* the same study file"):
            run_researcher(ours, peers=meeting.where, key=PRIVATE["researcher"], timeout=4)
        for party in parties:
            assert "last message refused: a frame that is not of this study" in str(party.exception(timeout=8))


@pytest.mark.parametrize("insecure", [True, False])
def test_a_study_with_keys_never_runs_in_the_clear(insecure: bool) -> None:
    study, peers = a_sealed_study(), dict.fromkeys("abc", ANYWHERE)
    with pytest.raises(StudyError, match=r"researcher: the study has keys, so links are sealed: .* --key FILE"):
        run_researcher(study, peers=peers, insecure=insecure)
    with pytest.raises(StudyError, match=r"a: the study has keys, so links are sealed"):
        run_party(study, "a", LocalTotals, state=None, address=ANYWHERE, insecure=insecure)
    with pytest.raises(StudyError, match="expected the private key of a"):
        run_party(study, "a", LocalTotals, state=None, address=ANYWHERE, key=PRIVATE["b"], insecure=insecure)
    with pytest.raises(StudyError, match="a key is given, the study has none"):
        run_researcher(a_study(), peers=peers, key=PRIVATE["researcher"], insecure=insecure)


def test_a_different_study_is_refused_naming_both_digests() -> None:
    meeting = Meeting("abc")
    theirs, ours = a_study(name="their study"), a_study()
    with ThreadPoolExecutor(3) as pool:
        parties = [run_in_thread(meeting, pool, name, timeout=1.5, study=theirs) for name in "abc"]
        assert meeting.all_here.wait(10)
        with pytest.raises(PeerError, match=f"has study {theirs.digest[:12]}, researcher has {ours.digest[:12]}"):
            run_researcher(ours, peers=meeting.where, timeout=4, insecure=True)
        for party in parties:
            error = str(party.exception(timeout=8))
            assert "was not heard within 1.5 s; last message refused" in error
            assert ours.digest[:12] in error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ImageError("liver-07.nii.gz: a value leaves the range"), "stopped while computing its local totals"),
        (ValueError("a bug"), "stopped while computing its local totals"),
        (None, "numbers leave the study's bounds"),
    ],
)
def test_a_party_that_fails_tells_the_researcher_why_but_no_value(error: Exception | None, told: str) -> None:
    meeting = Meeting("abc")

    def fail() -> LocalTotals:
        if error is not None:
            raise error
        return LocalTotals({"lesion": ClassTotals(voxels=10**6 + 1)})

    with ThreadPoolExecutor(3) as pool:
        bad = run_in_thread(meeting, pool, "a", local_totals=fail)
        others = [run_in_thread(meeting, pool, name) for name in "bc"]
        assert meeting.all_here.wait(10)
        with pytest.raises(PeerError, match=told) as heard:
            run_researcher(a_study(), peers=meeting.where, timeout=4, insecure=True)
        assert "liver-07" not in str(heard.value)
        assert isinstance(bad.exception(timeout=5), type(error) if error else BoundError)
        for other in others:
            heard_there = str(other.exception(timeout=5))
            assert "the researcher ended the session: while the parties were computing" in heard_there
            assert "a ended the session" in heard_there


def test_a_party_that_failed_stays_until_a_slow_researcher_has_heard_why(tmp_path: Path) -> None:
    meeting, researcher = Meeting("abc"), Researcher(a_study(), os.urandom)

    def fail() -> LocalTotals:
        raise ImageError("liver-07.nii.gz: a value leaves the range")

    last = Plan(a_study(), COIN).rings[0].last  # it has no successor to reach first
    CoinFile(tmp_path, a_study(), last).use(COIN)
    meeting.where = {name: ANYWHERE for name in "abc" if name != last}
    with ThreadPoolExecutor(1) as pool:
        party = run_in_thread(meeting, pool, last, local_totals=fail, state=tmp_path)
        assert meeting.all_here.wait(10)
        with Link(last, meeting.where[last], max_frame=10**6, grace=1) as link:
            researcher.take(last, link.ask(researcher.request(last), 5))
            time.sleep(0.7)
            with pytest.raises(PeerError, match="stopped while computing"):
                researcher.take(last, link.ask(researcher.heartbeat(last), 5))
        assert isinstance(party.exception(timeout=5), ImageError)


def test_what_is_missing_is_said_before_anything_starts() -> None:
    study = a_study()
    with pytest.raises(StudyError, match="none of them"):
        run_party(study, "z", LocalTotals, state=None, insecure=True)
    with pytest.raises(StudyError, match="a: expected an address"):
        run_party(study, "a", LocalTotals, state=None, insecure=True)
    with pytest.raises(StudyError, match="--insecure"):
        run_party(study, "a", LocalTotals, state=None, address=ANYWHERE)
    with pytest.raises(StudyError, match="expected an address"):
        run_researcher(study, insecure=True)
    with pytest.raises(StudyError, match="at least 3 parties"):
        run_researcher(Study.of(name="t", classes={"x": 1}), insecure=True)


def test_a_party_ends_when_nobody_comes_or_its_successor_is_not_there() -> None:
    with pytest.raises(PeerError, match=r"the researcher was not heard within 0\.3 s"):
        run_party(
            a_study(),
            "a",
            LocalTotals,
            state=None,
            address=ANYWHERE,
            peers=dict.fromkeys("abc", "tcp://127.0.0.1:1"),
            timeout=0.3,
            insecure=True,
        )
    with pytest.raises(PeerError, match="not reached"):
        run_researcher(a_study(), peers=dict.fromkeys("abc", "tcp://127.0.0.1:1"), timeout=0.3, insecure=True)


def test_a_poll_without_news_is_held_back_only_when_asked_to_be() -> None:
    network = Network(a_study(), coins=dict.fromkeys("abc", COIN))
    party = until_computing(network)
    until_ready = network.researcher._ask("poll", "a", b"computing")
    assert party.answer(until_ready, patient=True) is None
    assert party.answer(until_ready) is not None
    assert party.answer(network.researcher.heartbeat("a"), patient=True) is not None
