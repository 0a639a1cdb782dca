"""Sums in chunks within whole sessions: the same answers, sealed and in the clear, start-over, and what goes wrong."""

import re
from functools import partial

import pytest

from sessions import COIN, TOTALS, Network, a_study, ask
from voxring.errors import RemoteProtocolError
from voxring.ring.message import Message, decode
from voxring.session import bodies
from voxring.session import plan as plans
from voxring.study import Study
from voxring.totals import LocalTotals, pooled

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


def test_the_distance_of_a_port_is_read_strictly() -> None:
    for offset in (-65534, -1, 0, 1, 65534):
        assert bodies.read_door(bodies.write_door(offset)) == offset
    for body in (b"", b"\0\1", bodies.write_door(65535), bodies.write_door(-(2**40))):
        with pytest.raises(RemoteProtocolError):
            bodies.read_door(body)
