"""Algorithm 1 in session, in memory: the answer, and what the machines refuse."""

import random
import re
from collections.abc import Callable
from fractions import Fraction
from functools import partial

import msgspec
import pytest

from sessions import (
    BOUND,
    CLASSES,
    COIN,
    TOTALS,
    TRUTH,
    UNIT,
    Network,
    a_study,
    agreeing_network,
    ask,
    fitting_network,
    some_totals,
    until,
    until_computing,
)
from voxring.errors import BoundError, LocalProtocolError, PeerError, RemoteProtocolError
from voxring.ring.message import MESSAGES, Message, decode, encode
from voxring.ring.order import connectivity
from voxring.session import bodies
from voxring.session import plan as plans
from voxring.session.plan import Plan
from voxring.session.researcher import Researcher
from voxring.totals import ClassTotals, LocalTotals, Statistics, pooled


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


def test_the_disclosure_sheet_describes_every_message_of_real_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    read = partial(decode, limit=10**6)
    network = Network(a_study("abcd", collusion=2))
    network.finish()
    agreeing = agreeing_network()
    agreeing.finish()
    fitting = fitting_network()
    fitting.finish()
    chunks = Network(a_study())
    with monkeypatch.context() as patch:
        patch.setattr(plans, "IN_CHUNKS", 0)
        chunks.finish()
    unused = Network(a_study(), coins=dict.fromkeys("abc", COIN), used=set())
    unused.finish()
    failed = Network(a_study(), coins={"a": COIN})
    failed.finish()
    failed.parties["b"].answer(b"garbage")
    failed.start_over()
    failed.finish()
    seen = [*map(read, (*network.seen, *agreeing.seen, *fitting.seen, *chunks.seen, *unused.seen, *failed.seen))]
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


@pytest.mark.parametrize("how", ["lose", "fail"])
def test_totals_that_come_too_late_are_dropped_in_silence(how: str) -> None:
    party = until_computing(Network(a_study(), coins=dict.fromkeys("abc", COIN)))
    getattr(party, how)("it stopped")
    party.supply(TOTALS["a"])
    assert party.state == {"lose": "lost", "fail": "failed"}[how]


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


def test_the_images_that_a_party_left_out_are_counted_to_the_researcher_alone() -> None:
    network = Network(a_study())
    network.skipped = {"b": 3, "c": 0}
    network.finish()
    assert network.researcher.answer == TRUTH
    learned = network.researcher.view.learned
    assert {name: number for (what, name), number in learned.items() if what == "skipped"} == {"b": 3}
    told = [decode(frame, limit=10**6) for frame in network.seen]
    told = [message for message in told if message.kind == "status" and bodies.read_status(message.body).skipped]
    assert {(message.sender, message.receiver) for message in told} == {("b", "researcher")}
    assert [news for news in network.researcher.news if "left out" in news] == [
        "b left out 3 of its images, which cannot be used"
    ]
    for name in "ac":
        assert not any(what == "skipped" for what, _ in network.parties[name].heard().view.learned)


@pytest.mark.parametrize("skipped", [-1, 1 << 32, "x"])
def test_a_number_of_images_left_out_that_cannot_be_is_malformed(skipped: object) -> None:
    with pytest.raises(RemoteProtocolError, match="status: the body is malformed"):
        bodies.read_status(msgspec.msgpack.encode(["ready", "", b"", skipped]))


def test_images_left_out_are_told_once_while_others_still_compute() -> None:
    researcher = Network(a_study()).researcher
    researcher.step = "computing"
    status = Message(
        kind="status",
        digest=researcher.plan.digest,
        session=researcher.session,
        sender="b",
        receiver="researcher",
        body=bodies.write_status(bodies.Status("ready", skipped=2)),
    )
    for _ in range(3):  # heartbeats are answered with it, too
        researcher.take("b", encode(status))
    assert list(researcher.news) == ["b left out 2 of its images, which cannot be used"]
