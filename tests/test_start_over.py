"""Sessions that fail: what is started over and what is not, and a network that loses, repeats, damages and forges."""

import os
from collections import Counter
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sessions import (
    COIN,
    OLD,
    TOTALS,
    TRUTH,
    Network,
    a_study,
    ask,
    until,
)
from voxring.ring.message import Message, decode, encode
from voxring.session import bodies
from voxring.session import plan as plans
from voxring.session.researcher import Researcher
from voxring.totals import LocalTotals, pooled

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
    network.start_over()
    network.finish()
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

    @initialize(coin=st.booleans(), rings=st.sampled_from([1, 2]), long=st.booleans())
    def begin(self, coin: bool, rings: int, long: bool) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(plans, "IN_CHUNKS", 0 if long else plans.IN_CHUNKS)
        self.network = Network(a_study(collusion=rings), coins=dict.fromkeys("abc", COIN) if coin else None)
        self.faulty = False
        FAULTS["runs"] += 1
        FAULTS["in chunks"] += long

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
        try:
            self.end()
        finally:
            self.patch.undo()

    def end(self) -> None:
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
