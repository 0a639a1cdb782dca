"""Algorithm 1 in session: over an in-memory network that loses, repeats, reorders, damages and forges, and for real."""

import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from voxring.errors import BoundError, ImageError, LocalProtocolError, PeerError, RemoteProtocolError, StudyError
from voxring.net import Link, PrivateKey
from voxring.net import Network as Reach
from voxring.net.keys import fingerprint
from voxring.ring.coin import coin_of, commitment
from voxring.ring.message import MESSAGES, Message, decode, encode
from voxring.ring.order import connectivity
from voxring.session import Heard, bodies, run_party, run_researcher, state_folder
from voxring.session.coins import CoinFile
from voxring.session.party import Party
from voxring.session.plan import Plan
from voxring.session.researcher import Researcher
from voxring.study import Study
from voxring.totals import ClassTotals, LocalTotals, Statistics, pooled
from wire import Tap

ANYWHERE = "tcp://127.0.0.1:0"
CLASSES = {"lesion": 1, "liver": 2, "rare": 3}
UNIT = 2**16


def a_study(names: str = "abc", *, name: str = "t", classes: dict[str, int] | None = None, **privacy: int) -> Study:
    return Study.of(
        name=name,
        classes=classes or CLASSES,
        window={"size": 3},
        standardise={"method": "rescale", "range": (-1000.0, 3000.0)},
        privacy={"min_voxels": 10, **privacy},
        bounds={"voxels_per_party": 10**6},
        party=[{"name": name} for name in names],
    )


def some_totals(seed: int) -> LocalTotals:
    """Totals such as images could have; class 'rare' is below min_voxels for any three parties."""
    draw = random.Random(seed)  # noqa: S311

    def of_class(count: int) -> ClassTotals:
        x = [draw.randrange(-UNIT, UNIT) for _ in range(count)]
        local_means = sum(draw.randrange(-UNIT * 27, UNIT * 27) for _ in range(count))
        return ClassTotals(count, local_means, sum(x), sum(value * value for value in x), min(count, 3))

    return LocalTotals(
        {"lesion": of_class(draw.randrange(20, 50)), "liver": of_class(draw.randrange(20, 50)), "rare": of_class(1)}
    )


COIN = bytes(31) + b"\7"
BOUND = Plan(a_study(), COIN).binding
TOTALS = {name: some_totals(seed) for seed, name in enumerate("abcdefgh")}
TRUTH = pooled(TOTALS["a"] + TOTALS["b"] + TOTALS["c"], a_study())


class Line:
    """One asker's line to one peer, like Req0: a question is repeated until answered, the last answer counts."""

    def __init__(self) -> None:
        self.question: bytes | None = None
        self.number = 0


class Network:
    """Researcher and parties in memory. What is under way is (asker, peer, number of question, frame, is answer)."""

    def __init__(
        self, study: Study, totals: dict[str, LocalTotals] = TOTALS, coins: dict[str, bytes] | None = None
    ) -> None:
        """``coins`` are what the parties keep of an earlier run, and what they keep of this."""
        self.draw = draw = random.Random(7).randbytes  # noqa: S311
        self.study = study
        self.researcher = Researcher(study, draw)
        self.coins = {} if coins is None else coins
        self.parties = {
            name: Party(study, name, draw, coin=self.coins.get(name), keep=partial(self.coins.__setitem__, name))
            for name in study.parties
        }
        self.totals = totals
        self.lines = {(asker, peer): Line() for asker in ("researcher", *study.parties) for peer in study.parties}
        self.under_way: list[tuple[str, str, int, bytes, bool]] = []
        self.seen: list[bytes] = []
        self.errors: list[Exception] = []

    def send(self, item: tuple[str, str, int, bytes, bool]) -> None:
        self.under_way.append(item)
        self.seen.append(item[3])

    def ask(self) -> None:
        """Whoever has something to ask and no question open asks it; parties that wait for their totals get them."""
        for name, party in self.parties.items():
            if party.state == "computing":
                party.supply(self.totals[name])
            question = self.researcher.request(name) if not self.researcher.done else None
            self._open("researcher", name, question)
            if party.outbox:
                self._open(name, *party.outbox[0])

    def _open(self, asker: str, peer: str, question: bytes | None) -> None:
        line = self.lines[asker, peer]
        if line.question is None and question is not None:
            line.question, line.number = question, line.number + 1
            self.send((asker, peer, line.number, question, False))

    def restart(self, name: str) -> None:
        """A party's process dies and another takes its place, which knows the coin that was kept."""
        keep = partial(self.coins.__setitem__, name)
        self.parties[name] = Party(self.study, name, self.draw, coin=self.coins.get(name), keep=keep)
        for peer in self.study.parties:
            self.lines[name, peer].question = None

    def resend(self) -> None:
        for (asker, peer), line in self.lines.items():
            if line.question is not None:
                self.send((asker, peer, line.number, line.question, False))

    def deliver(self, index: int = 0) -> None:
        asker, peer, number, frame, is_answer = self.under_way.pop(index)
        if not is_answer:
            answer = self.parties[peer].answer(frame)
            assert answer is not None
            self.send((asker, peer, number, answer.frame, True))
            return
        line = self.lines[asker, peer]
        if line.question is None or number != line.number:
            return
        line.question = None
        try:
            if asker == "researcher":
                self.researcher.take(peer, frame)
            else:
                self.parties[asker].delivered(frame)
        except (PeerError, RemoteProtocolError) as error:
            self.errors.append(error)
            if asker != "researcher":
                self.parties[asker].lose("it lost the next in a ring")

    def start_over(self) -> None:
        """What the researcher does after a session that failed; what is under way may still come."""
        self.researcher = Researcher(self.study, self.draw, (*self.researcher.failed, self.researcher.session))
        self.errors.clear()
        for line in self.lines.values():
            line.question = None

    def finish(self) -> None:
        """Deliver everything in order, repeating what was lost, until the researcher is done or an error ends it."""
        for _ in range(200):
            self.ask()
            if not self.under_way:
                self.resend()
            while self.under_way and not self.errors:
                self.deliver()
            if self.researcher.done or self.errors:
                return


def old_frames() -> list[bytes]:
    """Frames of an earlier session of the same study, and of another study, with other numbers."""
    frames: list[bytes] = []
    for study in (a_study(), a_study(name="another")):
        network = Network(study, {name: some_totals(seed) for seed, name in enumerate("abc", 50)})
        network.researcher.session = bytes(15) + b"\1"
        network.finish()
        assert network.researcher.done
        frames += network.seen
    return frames


OLD = old_frames()


@pytest.mark.parametrize(
    ("names", "collusion", "rings"),
    [("abc", 1, 1), ("abc", 2, 2), ("abcde", 1, 1), ("abcde", 4, 3), ("abcdefgh", 7, 4)],
)
def test_the_rings_equal_pooled_for_any_number_of_parties_and_colluders(names: str, collusion: int, rings: int) -> None:
    study = a_study(names, collusion=collusion)
    network = Network(study)
    network.finish()
    everything = sum((TOTALS[name] for name in names), LocalTotals())
    assert network.researcher.answer == pooled(everything, study)
    assert connectivity(network.researcher.plan.rings) > collusion
    assert len({party.plan.rings for party in network.parties.values()} | {network.researcher.plan.rings}) == 1
    assert isinstance(network.researcher.answer["rare"], str)
    for party in network.parties.values():
        heard = party.heard()
        assert heard.withheld == ("rare",)
        for name, mean in heard.means.items():
            statistics = network.researcher.answer[name]
            assert isinstance(statistics, Statistics)
            assert (statistics.mean, statistics.voxels) == (mean, heard.counts[name])
        assert [seen.sum for seen in heard.view.received] == [
            name for name in ("voxels", "sum", "sdsum") for _ in range(rings)
        ]
        assert {what for what, _ in heard.view.learned} == {"n", "μ"}
    assert {what for what, _ in network.researcher.view.learned} == {"n", "patients", "sum", "sdsum"}


# The coin.


def test_the_coin_is_drawn_once_and_every_later_run_has_the_same_rings() -> None:
    coins: dict[str, bytes] = {}
    first = Network(a_study("abcde"), coins=coins)
    first.finish()
    assert len(set(coins.values())) == 1
    assert len(coins) == 5
    kept = dict(coins)
    second = Network(a_study("abcde"), coins=coins)
    second.researcher = Researcher(a_study("abcde"), random.Random(8).randbytes)  # noqa: S311
    second.finish()
    assert second.researcher.done
    assert coins == kept
    assert second.researcher.plan.rings == first.researcher.plan.rings
    kinds = {decode(frame, limit=10**6).kind for frame in second.seen}
    assert not kinds & {"commitments", "opening", "openings"}
    assert "the parties keep the coin of an earlier run" in second.researcher.news


@pytest.mark.parametrize(
    ("coins", "who"),
    [
        ({"a": COIN, "b": COIN}, "a, b keep 000000000000; c keeps none"),
        ({"a": COIN, "b": COIN, "c": b"\1" * 32}, "c keeps 010101010101; a, b keep 000000000000"),
        ({"c": COIN}, "c keeps 000000000000; a, b keep none"),
    ],
)
def test_parties_that_keep_different_coins_are_named_with_the_remedy(coins: dict[str, bytes], who: str) -> None:
    network = Network(a_study(), coins=dict(coins))
    network.finish()
    (error,) = network.errors
    assert isinstance(error, PeerError)
    assert who in str(error)
    assert "copy it to those from a party that has it" in str(error)
    assert network.coins == coins
    assert not any(decode(frame, limit=10**6).kind == "share" for frame in network.seen)


def change_relayed(network: Network, kind: str, to: str, change: Callable[[dict], dict]) -> None:
    """Have the researcher tell one party other commitments or parts than it tells the rest."""
    honest = network.researcher.request

    def request(party: str) -> bytes | None:
        frame = honest(party)
        if frame is None or party != to or (message := decode(frame, limit=10**6)).kind != kind:
            return frame
        body = bodies.write_parts(change(bodies.read_parts(message.body, "abc", kind)))
        return encode(msgspec.structs.replace(message, body=body))

    network.researcher.request = request


def test_a_changed_opening_is_refused_and_named_and_no_coin_is_kept_for_it() -> None:
    network = Network(a_study())
    until(network, "b", "committed")
    network.parties["b"]._part = bytes(32)  # what it would rather have
    network.parties["b"]._checked_commitments = lambda message: bodies.read_parts(message.body, "abc", "")
    network.finish()
    assert "coin: b opened another part than it committed to" in str(network.errors[0])
    assert not network.coins


def test_a_party_refuses_an_opening_that_the_researcher_let_pass() -> None:
    network = Network(a_study())
    change_relayed(network, "openings", "a", lambda parts: parts | {"b": bytes(32)})
    network.finish()
    assert "a refused: coin: b opened another part than it committed to" in str(network.errors[0])
    assert network.parties["a"].state == "opened"
    assert "a" not in network.coins


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda parts: parts | {"a": bytes(32)}, "expected the one of a as it was sent"),
        (lambda parts: {"a": parts["a"]}, "expected 32 bytes of each party"),
        (lambda parts: parts | {"b": b"short"}, "expected 32 bytes of each party"),
        (lambda parts: {name: parts[name] for name in "cba"}, "expected 32 bytes of each party"),
    ],
)
def test_a_party_opens_only_when_it_holds_the_commitments_of_all(change: Callable, error: str) -> None:
    network = Network(a_study())
    change_relayed(network, "commitments", "a", change)
    network.finish()
    assert error in str(network.errors[0])
    assert network.parties["a"].state == "committed"
    kinds = [
        message.kind for message in (decode(frame, limit=10**6) for frame in network.seen) if message.sender == "a"
    ]
    assert "opening" not in kinds


def test_a_researcher_that_shows_parties_different_coins_is_found_by_their_neighbours() -> None:
    network = Network(a_study())
    other = bytes(32)

    def lie(parts: dict) -> dict:
        return parts | {"b": commitment(network.researcher.plan.digest, network.researcher.session, "b", other)}

    change_relayed(network, "commitments", "a", lie)
    change_relayed(network, "openings", "a", lambda parts: parts | {"b": other})
    network.finish()
    assert network.coins["a"] != network.coins["b"] == network.coins["c"]
    assert "have different rings: both need the same study file and the same coin" in str(network.errors[0])
    assert not network.researcher.done


def test_no_party_chooses_the_coin() -> None:
    """With all other parts fixed, each value of one honest part gives another coin."""
    session, digest = bytes(16), bytes(32)
    coins = set()
    for honest in range(256):
        parts = {"a": bytes(32), "b": honest.to_bytes(32, "big"), "c": bytes(32)}
        commitments = {name: commitment(digest, session, name, part) for name, part in parts.items()}
        assert len(set(commitments.values())) == 3  # equal parts of different parties do not show
        coins.add(coin_of(digest, session, commitments, parts))
    assert len(coins) == 256
    with pytest.raises(RemoteProtocolError, match="a part of each party"):
        coin_of(digest, session, commitments, {"a": parts["a"]})


def test_a_coin_that_cannot_be_kept_ends_the_session_before_any_sum() -> None:
    network = Network(a_study())

    def full(coin: bytes) -> None:
        raise StudyError("the disk is full")

    network.parties["b"]._keep = full
    network.finish()
    assert "b refused: it cannot keep the coin" in str(network.errors[0])
    assert isinstance(network.parties["b"].error, StudyError)


def test_the_coin_is_kept_for_its_owner_alone_and_never_changed(tmp_path: Path) -> None:
    file = CoinFile(tmp_path / "new" / "state", a_study(), "a")
    assert file.read() is None
    file.write(COIN)
    assert file.read() == COIN
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert file.path.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in file.path.parent.iterdir()] == [f"{a_study().digest}-a.json"]
    with pytest.raises(StudyError, match="another run has kept a coin"):
        file.write(bytes(32))
    assert file.read() == COIN
    assert CoinFile(tmp_path / "new" / "state", a_study(name="other"), "a").read() is None


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "expected the coin of a study, got something else: copy it from another party"),
        (b"\xff\xfe", "something else"),
        (b'{"digest": "00", "coin": "00"}', "something else"),
        (b'{"digest": "%s", "coin": "%s"}' % (b"0" * 64, b"0" * 64), "got that of 000000000000"),
    ],
)
def test_a_file_that_is_no_coin_of_the_study_is_refused(tmp_path: Path, content: bytes, error: str) -> None:
    file = CoinFile(tmp_path, a_study(), "a")
    assert file.read() is None
    file.path.write_bytes(content)
    with pytest.raises(StudyError, match=error):
        file.read()


def test_a_state_folder_that_cannot_be_used_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="no coin can be kept there"):
        run_party(a_study(), "a", LocalTotals, state=tmp_path / "file", address=ANYWHERE, insecure=True)
    file = CoinFile(tmp_path, a_study(), "a")
    file.path.mkdir(parents=True)
    with pytest.raises(StudyError, match="cannot be read"):
        file.read()
    with pytest.raises(StudyError, match="kept"):
        file.write(COIN)


def test_state_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert state_folder() == Path("/var/state/voxring")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert state_folder() == Path.home() / ".local" / "state" / "voxring"


def test_when_no_class_is_released_only_counts_go_round() -> None:
    study = a_study(min_patients=10)
    network = Network(study)
    network.finish()
    assert network.researcher.answer == pooled(TOTALS["a"] + TOTALS["b"] + TOTALS["c"], study)
    assert all(isinstance(reason, str) for reason in network.researcher.answer.values())
    heard = network.parties["a"].heard()
    assert heard.withheld == tuple(CLASSES)
    assert len(heard.view.received) == 1


def test_two_sessions_use_different_blinds() -> None:
    first, second = Network(a_study()), Network(a_study())
    second.researcher = Researcher(a_study(), random.Random(8).randbytes)  # noqa: S311
    first.finish()
    second.finish()
    views = [network.researcher.view.received for network in (first, second)]
    assert not {seen.blind for seen in views[0]} & {seen.blind for seen in views[1]}
    assert len({seen.blind for seen in views[0]}) == 3


# Starting over.

EARLY = ["committed", "opened", "computing", "ready", "counted"]
LATE = ["released", "summed", "averaged", "spread", "done"]


@pytest.mark.parametrize("keeps_coin", [False, True])
@pytest.mark.parametrize("state", EARLY)
def test_until_something_is_released_a_session_that_failed_is_followed_by_another(state: str, keeps_coin: bool) -> None:
    if keeps_coin and state in ("committed", "opened"):
        return  # there is no coin to draw
    network = Network(a_study("abcde", collusion=2), coins=dict.fromkeys("abcde", COIN) if keeps_coin else None)
    until(network, "b", state)
    while network.researcher.step == "greeting":  # b was quicker than the others
        network.ask()
        network.deliver()
    assert network.researcher.may_start_over
    failed, old = network.researcher.session, list(network.seen)
    if state in ("computing", "ready"):
        network.parties["b"].lose("it lost the next in a ring")
        network.finish()
        assert "b cannot go on: it lost the next in a ring" in str(network.errors[0])
    drawn = len(network.coins)
    network.start_over()
    network.finish()
    if 0 < drawn < 5:  # the researcher gave up in the moment when some had the coin and others had not
        assert "the same coin" in str(network.errors[0])
        assert not network.researcher.may_start_over
        return
    assert network.researcher.answer == pooled(sum((TOTALS[n] for n in "abcde"), LocalTotals()), network.study)
    assert {party.session for party in network.parties.values()} == {network.researcher.session} != {failed}
    assert all(party.heard().withheld == ("rare",) for party in network.parties.values())
    shares = [message for message in map(partial(decode, limit=10**6), network.seen) if message.kind == "share"]
    first, second = ({m.body for m in shares if (m.session == failed) == is_first} for is_first in (True, False))
    assert not first & second  # fresh blinds and shares
    for frame in old:  # what was under way in the failed session changes nothing now
        for party in network.parties.values():
            party.answer(frame)
    assert {party.state for party in network.parties.values()} == {"done"}


@pytest.mark.parametrize("state", LATE)
def test_from_the_first_release_on_nothing_starts_over(state: str) -> None:
    network = Network(a_study())
    party = until(network, "b", state)
    assert not network.researcher.may_start_over
    again = Researcher(network.study, network.draw, (network.researcher.session,)).request("b")
    assert again is not None
    reply = decode(party.answer(again).frame, limit=10**6)
    assert reply.kind == "refused"
    assert "nothing starts over from there" in bodies.read_reason(reply.body)
    assert party.state == state
    network.finish()
    assert network.researcher.answer == TRUTH


def test_who_does_not_come_is_waited_for_once() -> None:
    network = Network(a_study())
    assert network.researcher.step == "greeting"
    assert not network.researcher.may_start_over
    until(network, "a", "ready")
    assert network.researcher.may_start_over
    network.start_over()
    assert network.researcher.step == "gathering"
    assert not network.researcher.may_start_over


@pytest.mark.parametrize("kind", ["ok", "refused"])
def test_an_answer_from_the_session_that_failed_changes_nothing(kind: str) -> None:
    network = Network(a_study(), coins=dict.fromkeys("abc", COIN))
    failed = network.researcher.session
    until(network, "a", "ready")
    network.start_over()
    party = next(one for one in network.parties.values() if one.plan.rings[0].last != one.name)
    while not party.outbox:
        network.ask()
        network.deliver()
    waiting = list(party.outbox)
    old = Message(
        kind=kind,
        digest=party.plan.digest,
        session=failed,
        sender=waiting[0][0],
        receiver=party.name,
        body=b"share voxels 0",
    )
    party.delivered(encode(old))
    assert list(party.outbox) == waiting
    network.finish()
    assert network.researcher.answer == TRUTH


def test_a_party_that_was_started_again_is_taken_in_when_all_keep_the_coin() -> None:
    network = Network(a_study(), coins=dict.fromkeys("abc", COIN))
    until(network, "b", "counted")
    if not network.researcher.may_start_over:
        pytest.skip("b was last in the ring")  # not with this coin
    network.restart("b")
    network.start_over()
    network.finish()
    assert network.researcher.answer == TRUTH
    assert network.parties["b"].attempt == 1


@pytest.mark.parametrize("failed", [(), (bytes(16),), (b"x" * 16, b"y" * 16)])
def test_only_the_session_that_failed_can_be_started_over(failed: tuple[bytes, ...]) -> None:
    network = Network(a_study())
    party = until(network, "a", "ready")
    session = party.session
    reply = ask(network, "again", "a", b"".join(failed), session=b"n" * 16)
    assert "again: another session runs here than the one that failed" in reply
    assert (party.session, party.state, party.attempt) == (session, "ready", 0)
    ask(network, "again", "a", b"x" * 16 + session, session=b"n" * 16)
    assert (party.session, party.state, party.attempt) == (b"n" * 16, "waiting", 1)
    ask(network, "again", "a", b"x" * 16 + session, session=b"n" * 16)
    assert party.attempt == 1


def test_a_total_that_does_not_fit_its_checksum_ends_the_session_for_good() -> None:
    """The wrong total is known, so another run would tell what the error was."""
    network = Network(a_study())
    until(network, "c", "ready")
    network.parties["c"]._members["voxels"]._shares[0][0, 0] += np.uint64(1)
    network.finish()
    assert "the numbers of a party were changed" in str(network.errors[0])
    assert not network.researcher.may_start_over
    assert not network.researcher.view.learned


FAULTS: Counter[str] = Counter()


class FaultyNetwork(RuleBasedStateMachine):
    """Whatever the network does, and whoever is started again: the exact answer, or a named error. Never a wrong
    number, and never an end without either."""

    @initialize(coin=st.booleans(), rings=st.sampled_from([1, 2]))
    def begin(self, coin: bool, rings: int) -> None:
        self.network = Network(a_study(collusion=rings), coins=dict.fromkeys("abc", COIN) if coin else None)
        self.faulty = False
        FAULTS["runs"] += 1

    def note(self, kind: str, *, lasting: bool = True) -> None:
        FAULTS[kind] += 1
        self.faulty |= lasting

    @rule(picks=st.lists(st.integers(0, 10**6), max_size=12))
    def go_on_in_any_order(self, picks: list[int]) -> None:
        self.network.ask()
        for pick in picks:
            if self.network.under_way:
                self.network.deliver(pick % len(self.network.under_way))
                self.network.ask()

    @rule()
    def repeat_questions(self) -> None:
        self.network.resend()  # no fault: Req0 does it whenever it likes

    @precondition(lambda self: self.network.under_way)
    @rule(
        pick=st.integers(0, 10**6),
        kind=st.sampled_from(["lose", "repeat", "delay", "misroute", "damage", "cut", "replace"]),
        data=st.data(),
    )
    def fault(self, pick: int, kind: str, data: st.DataObject) -> None:
        items = self.network.under_way
        index = pick % len(items)
        asker, peer, number, frame, is_answer = items[index]
        self.note(kind, lasting=kind in ("damage", "cut", "replace"))
        if kind == "lose":
            items.pop(index)  # no lasting fault: the question is repeated
        elif kind == "repeat":
            items.insert(pick % (len(items) + 1), items[index])
        elif kind == "delay":
            items.append(items.pop(index))
        elif kind == "misroute":
            other = data.draw(st.sampled_from(sorted(self.network.parties)))
            if not is_answer:
                self.network.parties[other].answer(frame)
        elif frame:
            changed = bytearray(frame)
            if kind == "damage":
                changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
            elif kind == "cut":
                del changed[data.draw(st.integers(0, len(changed) - 1)) :]
            else:
                changed = bytearray(data.draw(st.binary(max_size=80)))
            items[index] = (asker, peer, number, bytes(changed), is_answer)

    @rule(peer=st.sampled_from("abc"), frame=st.one_of(st.sampled_from(OLD), st.binary(max_size=80)))
    def a_stranger_asks(self, peer: str, frame: bytes) -> None:
        if self.network.parties[peer].state != "waiting":  # whoever says hello first is the researcher
            self.note("stranger", lasting=False)
            self.network.parties[peer].answer(frame)

    @rule(pick=st.integers(0, 10**6), frame=st.sampled_from(OLD))
    def an_old_answer_comes(self, pick: int, frame: bytes) -> None:
        answers = [i for i, item in enumerate(self.network.under_way) if item[4]]
        if answers:
            self.note("old answer")
            index = answers[pick % len(answers)]
            self.network.under_way[index] = (*self.network.under_way[index][:3], frame, True)

    @rule(peer=st.sampled_from("abc"))
    def a_party_is_started_again(self, peer: str) -> None:
        self.note("restart")
        self.network.restart(peer)

    @rule(peer=st.sampled_from("abc"))
    def a_party_loses_the_next(self, peer: str) -> None:
        if self.network.parties[peer].state in ("computing", "ready", "counted", "summed", "spread"):
            self.note("link lost")
            self.network.parties[peer].lose("it lost the next in a ring")

    @precondition(lambda self: self.faulty and self.network.researcher.may_start_over)
    @rule()
    def the_researcher_starts_over(self) -> None:
        FAULTS["started over"] += 1
        self.network.start_over()

    @invariant()
    def nothing_is_wrong(self) -> None:
        if not hasattr(self, "network"):
            return
        assert self.faulty or not self.network.errors, self.network.errors
        if self.network.researcher.done:
            assert self.network.researcher.answer == TRUTH
        for party in self.network.parties.values():
            if party.state == "done":
                assert {n: TRUTH[n].mean for n in party.heard().means} == party.heard().means

    def teardown(self) -> None:
        if not hasattr(self, "network"):
            return
        for _ in range(3):
            self.network.finish()
            self.nothing_is_wrong()
            if self.network.researcher.done or not self.network.researcher.may_start_over:
                break
            self.network.start_over()
        FAULTS["done" if self.network.researcher.done else "ended with an error"] += 1
        assert self.network.researcher.done or self.network.errors
        assert self.faulty or self.network.researcher.done


TestFaultyNetwork = FaultyNetwork.TestCase
TestFaultyNetwork.settings = settings(
    max_examples=int(os.environ.get("VOXRING_SOAK", "100")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_the_disclosure_sheet_describes_every_message_of_real_traffic() -> None:
    read = partial(decode, limit=10**6)
    network = Network(a_study("abcd", collusion=2))
    network.finish()
    failed = Network(a_study(), coins={"a": COIN})
    failed.finish()
    failed.parties["b"].answer(b"garbage")
    failed.start_over()
    failed.finish()
    seen = [*map(read, (*network.seen, *failed.seen))]
    refusal = failed.parties["b"].answer(failed.researcher.heartbeat("a"))
    assert refusal is not None
    abort = failed.researcher.abort("b", "over")
    told = failed.parties["b"].answer(abort)
    assert told is not None
    seen += [*map(read, (refusal.frame, abort, told.frame))]
    assert {message.kind for message in seen} == set(MESSAGES)
    for message in seen:
        told_by = MESSAGES[message.kind]
        sender = "researcher" if message.sender == "researcher" else "party"
        receiver = "researcher" if message.receiver == "researcher" else "party"
        assert told_by.sender in (sender, "member")
        assert told_by.receiver in (receiver, "next in the ring", "researcher or member before")
    other = Network(a_study("abcd", collusion=2), {name: some_totals(seed) for seed, name in enumerate("abcd", 90)})
    other.finish()
    said, said_of_others = ({(m.kind, m.body) for m in map(read, n.seen)} for n in (network, other))
    for kind, body in said ^ said_of_others:
        assert not MESSAGES[kind].distribution.startswith("fixed by the study") or kind == "status", (kind, body)


# What a party refuses, and that it changes nothing.


def until(network: Network, name: str, state: str) -> Party:
    """Run a network until a party is in a state."""
    for _ in range(1000):
        if network.parties[name].state == state:
            return network.parties[name]
        network.ask()
        network.deliver()
    raise AssertionError(f"{name} never was {state}")


def ask(network: Network, kind: str, party: str, body: bytes = b"", **fields: object) -> str:
    """Ask a party something as the researcher; return why it was refused."""
    message = Message(
        kind=kind,
        digest=network.researcher.plan.digest,
        session=network.researcher.session,
        sender="researcher",
        receiver=party,
        body=body,
    )
    answer = network.parties[party].answer(encode(msgspec.structs.replace(message, **fields)))
    assert answer is not None
    reply = decode(answer.frame, limit=10**6)
    if reply.kind != "refused":
        return ""
    assert answer.sender is None
    return bodies.read_reason(reply.body)


@pytest.mark.parametrize(
    ("counts", "error"),
    [
        ({"lesion": 9}, "fewer than privacy.min_voxels = 10"),
        ({"lesion": 10}, "does not fit this party's own n"),
        ({"lesion": 10**7}, "does not fit this party's own n"),
        ({"spleen": 100}, "classes of the study in its order"),
        ({"liver": 100, "lesion": 100}, "classes of the study in its order"),
    ],
)
def test_a_party_refuses_n_before_it_gives_its_sum(counts: dict[str, int], error: str) -> None:
    network = Network(a_study())
    party = until(network, "a", "counted")
    assert error in ask(network, "released", "a", bodies.write_counts(counts))
    assert party.state == "counted"
    network.finish()
    assert network.researcher.answer == TRUTH


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda means: {**means, "lesion": Fraction(3)}, "leaves the public bounds"),
        (lambda means: {**means, "lesion": Fraction(1, 10**9 + 7)}, "no sum of the study's grid"),
        (lambda means: {"lesion": means["lesion"]}, "expected the released classes"),
    ],
)
def test_a_party_refuses_a_mean_that_cannot_be(change: Callable, error: str) -> None:
    network = Network(a_study())
    party = until(network, "b", "summed")
    until(network, "a", "averaged")
    assert error in ask(network, "means", "b", bodies.write_means(change(network.researcher._means)))
    assert party.state == "summed"
    network.finish()
    assert network.researcher.answer == TRUTH


@pytest.mark.parametrize(
    ("kind", "fields", "error"),
    [
        ("hello", {"digest": bytes(32)}, "a has study .* researcher has 000000000000: both need the same study file"),
        ("hello", {"session": b"x" * 16}, "another session runs here"),
        ("poll", {"receiver": "b"}, "this is a, the message is for b"),
        ("means", {}, "'means' came early or late: a is 'computing'"),
        ("done", {}, "'done' came early or late"),
        ("abort", {"sender": "b"}, "comes from the researcher, not from b"),
        ("share", {"sum": "sum"}, "researcher and a have different rings: .* the same coin"),
        ("share", {"digest": BOUND, "sender": "a", "sum": "sum"}, "does not stand before a in the ring"),
        ("share", {"digest": BOUND, "ring": 1, "sum": "sum"}, "expected a ring below 1, got 1"),
        ("commitments", {}, "'commitments' came early or late"),
        ("hello", {"body": b"x"}, "a second, different 'hello'"),
    ],
)
def test_a_party_refuses_what_is_foreign_early_or_doubled(kind: str, fields: dict, error: str) -> None:
    network = Network(a_study(), coins=dict.fromkeys("abc", COIN))
    party = until_computing(network)
    assert re.search(error, ask(network, kind, "a", **fields))
    assert party.state == "computing"
    network.finish()
    assert network.researcher.answer == TRUTH


def until_computing(network: Network) -> Party:
    party = network.parties["a"]
    answer = party.answer(network.researcher.request("a"))
    assert answer is not None
    assert party.state == "computing"
    return party


def test_a_party_without_a_session_refuses_all_but_hello() -> None:
    network = Network(a_study())
    assert "no session runs here" in ask(network, "poll", "a")
    assert "no session runs here" in ask(network, "hello", "a", session=bytes(16))
    assert network.parties["a"].state == "waiting"


def test_totals_beyond_the_bounds_are_refused_before_anything_is_sent() -> None:
    network = Network(a_study(), coins=dict.fromkeys("abc", COIN))
    party = until_computing(network)
    with pytest.raises(BoundError):
        party.supply(LocalTotals({"lesion": ClassTotals(voxels=10**6 + 1)}))
    with pytest.raises(BoundError, match="sum"):
        party.supply(LocalTotals({"lesion": ClassTotals(voxels=30, sum=10**6 * 2 * UNIT * 27 + 1)}))
    assert party.state == "computing"
    assert not party.outbox
    party.supply(TOTALS["a"])
    with pytest.raises(LocalProtocolError, match="handed in once"):
        party.supply(TOTALS["a"])
    with pytest.raises(LocalProtocolError, match="when the session is done"):
        party.heard()
    with pytest.raises(LocalProtocolError, match="when the session is done"):
        _ = network.researcher.answer


def test_an_sdsum_beyond_the_bounds_ends_the_party_before_it_is_sent() -> None:
    totals = dict(TOTALS, a=LocalTotals({"lesion": ClassTotals(30, 5, 5, -(10**40), 3)}))
    network = Network(a_study(), totals)
    network.finish()
    assert isinstance(network.parties["a"].error, BoundError)
    assert network.parties["a"].state == "failed"
    assert "a refused: its numbers leave the study's bounds" in str(network.errors[0])


@pytest.mark.parametrize(
    "totals",
    [
        ClassTotals(30, 10**10, 0, 0, 3),  # sum: larger than n voxels can have
        ClassTotals(-(10**5), 0, 0, 0, 3),
        ClassTotals(30, 5, 10**7, 0, 3),  # sdsum below 0
    ],
)
def test_the_researcher_refuses_totals_that_cannot_be(totals: ClassTotals) -> None:
    network = Network(a_study(), dict(TOTALS, a=LocalTotals({"lesion": totals, "liver": TOTALS["a"]["liver"]})))
    network.finish()
    assert not network.researcher.done
    assert network.errors


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"digest": bytes(32)}, "another study or session"),
        ({"sender": "b"}, "expected an answer of a"),
        ({"kind": "poll"}, "answered with a message 'poll'"),
        ({"kind": "status", "body": b"\xff"}, "status: the body is malformed"),
        ({"kind": "status", "body": bodies.write_status(bodies.Status("aborted"))}, "was told to end"),
        ({"kind": "status", "body": bodies.write_status(bodies.Status("ready", "", b"x"))}, "last in the ring|frame"),
    ],
)
def test_the_researcher_refuses_answers_that_do_not_fit(change: dict, error: str) -> None:
    network = Network(a_study())
    ok = Message(
        kind="ok",
        digest=network.researcher.plan.digest,
        session=network.researcher.session,
        sender="a",
        receiver="researcher",
        body=b"hello ",
    )
    with pytest.raises((PeerError, RemoteProtocolError), match=error):
        network.researcher.take("a", encode(msgspec.structs.replace(ok, **change)))
    network.finish()
    assert network.researcher.answer == TRUTH


def test_a_share_is_taken_from_the_last_party_and_for_a_sum_that_was_asked_for_only() -> None:
    network = Network(a_study())
    until(network, "a", "counted")
    researcher = network.researcher
    last = researcher.plan.rings[0].last
    others = [name for name in "abc" if name != last]
    for party, name, error in (
        (others[0], "voxels", "is last in the ring"),
        (last, "sdsum", "before it was asked for"),
    ):
        agreed = researcher.plan.voxels(researcher.session)
        share = agreed.share(0, last, agreed.lift([0] * 6))
        share = msgspec.structs.replace(share, sum=name)
        status = Message(
            kind="status",
            digest=researcher.plan.digest,
            session=researcher.session,
            sender=party,
            receiver="researcher",
            body=bodies.write_status(bodies.Status("counted", "", encode(share))),
        )
        with pytest.raises(RemoteProtocolError, match=error):
            researcher.take(party, encode(status))
    network.finish()
    assert researcher.answer == TRUTH


@pytest.mark.parametrize(
    ("read", "body"),
    [
        (bodies.read_counts, b"\xff"),
        (bodies.read_counts, msgspec.msgpack.encode([("a", b"\0\1")])),
        (bodies.read_counts, msgspec.msgpack.encode([("a", b"\1"), ("a", b"\1")])),
        (bodies.read_means, msgspec.msgpack.encode([("a", b"\2", b"\4")])),
        (bodies.read_means, msgspec.msgpack.encode([("a", b"\1", b"\0")])),
        (bodies.read_means, msgspec.msgpack.encode([("a", b"\1")])),
        (bodies.read_status, msgspec.msgpack.encode(["ready", 5])),
    ],
)
def test_malformed_bodies_are_refused(read: Callable, body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        read(body)


def test_reasons_are_cut_and_printable() -> None:
    assert bodies.read_reason(bodies.write_reason("a\nb\x1b" + "μ" * 1000)).startswith("a b μμ")
    assert len(bodies.read_reason(bodies.write_reason("μ" * 1000))) == 300


def test_integers_of_any_size_survive_the_way() -> None:
    means = {"a": Fraction(-(3**200), 2**300), "b": Fraction(0), "c": Fraction(127), "d": Fraction(-128)}
    assert bodies.read_means(bodies.write_means(means)) == means


def test_no_frame_of_a_run_is_larger_than_the_plan_says() -> None:
    classes = {f"class with a rather long name, number {i}": i for i in range(20)}
    study = a_study(classes=classes, name="large")
    totals = {
        party: LocalTotals(
            {name: ClassTotals(10**6, 10**6 * UNIT * 27 - i, i, 10**6 * UNIT**2, 10**6) for name in classes}
        )
        for i, party in enumerate("abc")
    }
    network = Network(study, totals)
    network.finish()
    assert network.researcher.done
    assert max(map(len, network.seen)) <= Plan(study).largest_frame


# For real: processes and threads over sockets on the loopback address.


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
            timeout=4,
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
        others = [run_in_thread(meeting, pool, name) for name in OTHERS]
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


# With keys.

PRIVATE = {name: PrivateKey(bytes([i]) * 32) for i, name in enumerate(("a", "b", "c", "researcher"), 1)}
PUBLIC = {name: key.public for name, key in PRIVATE.items()}


def a_sealed_study(**changed: str) -> Study:
    keys = PUBLIC | changed
    tables = msgspec.to_builtins(a_study()) | {
        "party": [{"name": name, "key": keys[name]} for name in "abc"],
        "researcher": {"key": keys["researcher"]},
    }
    return Study.of(**tables)


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
    CoinFile(tmp_path, a_study(), last).write(COIN)
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
