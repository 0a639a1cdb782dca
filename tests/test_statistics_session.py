"""Additive statistics in session, in the ledger and in the journal: the fourth sum, and what is refused."""

import pickle
import random
from dataclasses import replace
from functools import partial

import msgspec
import numpy as np
import pytest

from naive_statistics import additive
from sessions import TOTALS, Network, a_study, ask, until
from voxring.batch import Journal
from voxring.batch.contents import Recorded
from voxring.batch.journal import _totals, totals_digest
from voxring.batch.row import Answer
from voxring.errors import BoundError, RemoteProtocolError, StudyError
from voxring.ring.chunks import ChunkMember
from voxring.ring.message import decode
from voxring.ring.views import describe, simulate_master, simulate_member
from voxring.session import plan as plans
from voxring.session.account import Account
from voxring.session.differencing import brought, objection
from voxring.session.ledger import Ledger
from voxring.session.plan import Plan
from voxring.statistics import layout, slots
from voxring.study import Study
from voxring.totals import ClassTotals, LocalTotals, pooled

TABLES = {
    "feature": [{"kind": "intensity"}, {"kind": "mean", "window": 3}],
    "statistics": {
        "gram": True,
        "moments": 4,
        "histogram": {"bins": 4, "range": (-1.0, 1.0)},
        "glcm": {"levels": 3, "range": (-1.0, 1.0)},
    },
}


def asking(study: Study, tables=TABLES) -> Study:
    return Study.of(**msgspec.to_builtins(study) | tables)


def with_statistics(totals: LocalTotals, study: Study, seed: int) -> LocalTotals:
    """Totals whose additive statistics are those of some voxels."""
    rng = np.random.default_rng(seed)

    def of_class(one: ClassTotals) -> ClassTotals:
        if not one.voxels:
            return one
        x = rng.integers(-study.unit, study.unit, one.voxels)
        features = [x, rng.integers(-study.unit, study.unit, one.voxels)] if study.statistics.gram else []
        counts = rng.integers(0, 2, (3, 3))  # one voxel has 26 neighbours at most
        pairs = counts + counts.T if study.statistics.glcm is not None else []
        return replace(one, statistics=additive(x, features, pairs, study))

    return LocalTotals({name: of_class(one) for name, one in totals.classes.items()})


STUDY = asking(a_study())
MINE = {name: with_statistics(totals, STUDY, seed) for seed, (name, totals) in enumerate(TOTALS.items())}


def network_of(study: Study = STUDY, totals: dict[str, LocalTotals] = MINE) -> Network:
    return Network(study, totals)


# The fourth sum.


@pytest.mark.parametrize(("names", "collusion"), [("abc", 1), ("abcd", 2), ("abcde", 4)])
def test_the_rings_equal_pooled_to_the_last_statistic(names: str, collusion: int) -> None:
    study = asking(a_study(names, collusion=collusion))
    network = network_of(study)
    network.finish()
    assert network.errors == []
    truth = pooled(sum((MINE[name] for name in names), LocalTotals()), study)
    assert network.researcher.answer == truth
    for name in ("lesion", "liver"):
        columns = zip(*(MINE[party][name].statistics for party in names), strict=True)
        assert network.researcher.answer[name].additive == tuple(map(sum, columns))
    assert isinstance(truth["rare"], str)
    sums = ["voxels", "sum", "sdsum", "statistics"]
    rings = len(network.researcher.plan.rings)
    for party in network.parties.values():
        heard = party.heard()
        assert [seen.sum for seen in heard.view.received] == [name for name in sums for _ in range(rings)]
        assert {what for what, _ in heard.view.learned} == {"n", "μ"}


def test_the_researcher_learns_the_blocks_of_released_classes_and_no_others() -> None:
    network = network_of()
    network.finish()
    blocks = {block.name for block in layout(STUDY)}
    learned = network.researcher.view.learned
    assert {what for what, _ in learned} == {"n", "patients", "sum", "sdsum"} | blocks
    assert {name for what, name in learned if what in blocks} == {"lesion", "liver"}
    assert "13 numbers" not in describe(network.researcher.view)
    one = replace(network.researcher.view, learned={("powers", "x"): (1, 2), ("glcm", "x"): (3,)})
    assert describe(one).endswith("x: powers = 2 numbers, glcm = one number")


@pytest.mark.parametrize("in_chunks", [False, True])
def test_nothing_that_is_sent_depends_on_more_of_a_withheld_class_than_its_counts(
    monkeypatch: pytest.MonkeyPatch, in_chunks: bool
) -> None:
    if in_chunks:
        monkeypatch.setattr(plans, "IN_CHUNKS", 0)
    chunks: list[bytes] = []
    receive = ChunkMember.receive

    def received(member: ChunkMember, frame: memoryview) -> object:
        place = receive(member, frame)
        chunks.append(bytes(frame))
        return place

    monkeypatch.setattr(ChunkMember, "receive", received)

    def sent(name: str, seed: int) -> tuple[list[bytes], list[bytes]]:
        """All frames when one class has other sums and the same counts; all randomness is the same."""
        chunks.clear()
        other = random.Random(seed)  # noqa: S311
        totals = {}
        for party, mine in MINE.items():
            one, x = mine[name], [other.randrange(-1000, 1000) for _ in range(mine[name].voxels)]
            new = replace(one, sum=other.randrange(-1000, 1000), total=sum(x), squares=sum(v * v for v in x))
            totals[party] = with_statistics(LocalTotals(mine.classes | {name: new}), STUDY, seed)
            totals[party] = LocalTotals(mine.classes | {name: totals[party][name]})
        network = network_of(STUDY, totals)
        network.finish()
        assert network.researcher.done
        assert isinstance(network.researcher.answer["rare"], str)
        return list(network.seen), list(chunks)

    assert sent("rare", 1) == sent("rare", 2)
    assert sent("liver", 1) != sent("liver", 2)
    assert bool(chunks) == in_chunks


def test_a_study_that_asks_for_none_has_three_sums() -> None:
    network = Network(a_study())
    network.finish()
    assert {message.sum for message in map(partial(decode, limit=10**6), network.seen)} == {
        "",
        "voxels",
        "sum",
        "sdsum",
    }
    assert a_study().digest != STUDY.digest
    with_features = asking(a_study(), {"feature": TABLES["feature"]})
    assert Plan(with_features).more is False


def test_views_of_the_fourth_sum_are_those_of_the_simulators() -> None:
    study = asking(a_study("abcd", collusion=2))
    network = network_of(study)
    network.finish()
    plan = network.researcher.plan
    released = ["lesion", "liver"]
    agreed = plan.statistics(network.researcher.session, released)
    values = [plan.statistics_values(MINE[name], released) for name in "abcd"]
    total = agreed.with_checksum([sum(column) for column in zip(*values, strict=True)])
    draw = random.Random(3).randbytes  # noqa: S311
    master = simulate_master("statistics", agreed.residues, len(plan.rings), total, draw)
    member = simulate_member("statistics", agreed.residues, len(plan.rings), draw)

    def outline(received) -> list[tuple]:
        return [(one.sum, one.ring, one.modulus, len(one.residues), len(one.blind)) for one in received]

    def unblinded(received) -> list[int]:
        parts = [[r - b for r, b in zip(one.residues, one.blind, strict=True)] for one in received]
        return [sum(column) % agreed.residues.modulus for column in zip(*parts, strict=True)]

    seen = [one for one in network.researcher.view.received if one.sum == "statistics"]
    assert outline(seen) == outline(master)
    assert unblinded(seen) == unblinded(master)
    for party in network.parties.values():
        seen = [one for one in party.heard().view.received if one.sum == "statistics"]
        assert outline(seen) == outline(member)
    blinds = [blind for one in network.researcher.view.received for blind in one.blind]
    assert len(set(blinds)) == len(blinds)


def test_a_party_does_not_end_before_the_fourth_sum() -> None:
    network = network_of()
    party = until(network, "a", "deviated")
    assert "came early or late" in ask(network, "done", "a")
    assert party.state == "deviated"
    assert "nothing starts over from there" in ask(network, "again", "a", party.session, session=b"\5" * 16)
    network.finish()
    assert network.researcher.done


def test_nothing_starts_over_before_the_fourth_sum() -> None:
    network = network_of()
    party = until(network, "a", "deviated")
    party.lose("it lost the next in a ring")
    assert party.state == "failed"


def test_a_long_vector_fits_the_largest_frame() -> None:
    study = asking(a_study(), {"statistics": {"glcm": {"levels": 64, "range": (0.0, 1.0)}}})
    totals = {
        name: LocalTotals({of: replace(one, statistics=(0,) * 64**2) for of, one in mine.classes.items()})
        for name, mine in TOTALS.items()
    }
    network = network_of(study, totals)
    network.finish()
    assert network.researcher.done
    assert max(map(len, network.seen)) <= network.researcher.plan.largest_frame
    assert max(map(len, network.seen)) > 2 * 64**2 * 16


def test_no_statistic_goes_round_when_no_class_is_released() -> None:
    study = asking(a_study(min_patients=10))
    network = network_of(study)
    network.finish()
    assert network.researcher.done
    assert len(network.parties["a"].heard().view.received) == 1


@pytest.mark.parametrize(("in_chunks", "sums"), [(0, ("voxels", "sum", "sdsum", "statistics")), (200, ("statistics",))])
@pytest.mark.parametrize(("names", "collusion"), [("abc", 1), ("abcde", 4)])
def test_long_vectors_go_in_chunks_with_the_same_answer(
    names: str, collusion: int, in_chunks: int, sums: tuple[str, ...], monkeypatch
) -> None:
    monkeypatch.setattr(plans, "IN_CHUNKS", in_chunks)
    study = asking(a_study(names, collusion=collusion))
    network = Network(study, MINE, sealed=True)
    network.finish()
    assert network.errors == []
    assert network.researcher.answer == pooled(sum((MINE[name] for name in names), LocalTotals()), study)
    assert network.researcher.view.in_chunks == sums
    assert {party.heard().view.in_chunks for party in network.parties.values()} == {sums}
    width = 24  # of a residue of the longest vector
    assert network.researcher.plan.longest >= (2 * slots(study) + 1) * width > 200


# What is refused.


def changed(totals: LocalTotals, place: int, by: int) -> LocalTotals:
    values = list(totals["liver"].statistics)
    values[place] += by
    return LocalTotals({**totals.classes, "liver": replace(totals["liver"], statistics=tuple(values))})


@pytest.mark.parametrize("place", range(slots(STUDY)))
def test_a_number_beyond_its_own_bound_is_refused_before_anything_is_sent(place: int) -> None:
    network = network_of()
    party = until(network, "a", "computing")
    block = {i: b.name for i, b in enumerate(b for b in layout(STUDY) for _ in range(b.size))}[place]
    large = MINE["a"]["liver"].voxels * (2 * STUDY.unit) ** 4 + 1
    with pytest.raises(BoundError, match=f"class 'liver': {block} .* nothing was sent"):
        party.supply(changed(MINE["a"], place, large))
    assert not party.outbox


def test_totals_without_statistics_are_refused_before_anything_is_sent() -> None:
    network = network_of()
    party = until(network, "a", "computing")
    with pytest.raises(StudyError, match="compute them again"):
        party.supply(TOTALS["a"])


@pytest.mark.parametrize(
    ("place", "by", "block"),
    [(0, 10**15, "feature_sums"), (9, 1, "histogram"), (16, 1, "glcm"), (15, -(10**4), "glcm")],
)
def test_a_total_that_cannot_be_ends_the_session(place: int, by: int, block: str, monkeypatch) -> None:
    """A party that hands in other numbers than those it was held against."""
    network = network_of()
    honest = Plan.statistics_values

    def other(self, totals, released):
        values = honest(self, totals, released)
        if totals is MINE["b"]:
            values[place] += by
        return values

    monkeypatch.setattr(Plan, "statistics_values", other)
    network.finish()
    assert not network.researcher.done
    (error,) = network.errors
    assert isinstance(error, RemoteProtocolError)
    assert f"class 'lesion': {block} that n voxels cannot have" in str(error)


# Differencing.


def runs(*tables: dict, patients: int = 6) -> list[tuple[Study, list[LocalTotals]]]:
    """The same images under several studies."""
    found = []
    for one in tables:
        study = asking(a_study(min_patients=3), one)
        base = [TOTALS[name] for name in "abcdefgh"[:patients]]
        found.append((study, [with_statistics(totals, study, seed) for seed, totals in enumerate(base)]))
    return found


def judged(first, second) -> str:
    return objection(brought(*first, lambda *parts: str(parts)), brought(*second, lambda *parts: str(parts))) or ""


@pytest.mark.parametrize("block", [block.name for block in layout(STUDY)])
def test_a_patient_of_whom_one_block_alone_differs_is_noticed(block: str) -> None:
    """As where an image changed in its texture: n and the sums are what they were."""
    ((study, then),) = runs(TABLES)
    start = sum(b.size for b in layout(study)[: [b.name for b in layout(study)].index(block)])
    for count, refused in ((0, False), (1, True), (2, True), (3, False)):
        now = [changed(one, start, 1) for one in then[:count]] + then[count:]
        assert bool(judged((study, then), (study, now))) == refused
        assert not refused or "fewer than privacy.min_patients = 3" in judged((study, then), (study, now))


def test_blocks_are_held_against_those_of_studies_that_ask_the_same_of_them_alone() -> None:
    histogram, other_bins = ({"statistics": {"histogram": {"bins": b, "range": (-1.0, 1.0)}}} for b in (4, 5))
    narrow = histogram | {"window": {"size": 5}}
    (study, then), (_, finer), (other_window, same) = runs(histogram, other_bins, narrow)
    now = [changed(then[0], 0, 1), *then[1:]]
    assert not judged((study, then), (asking(study, other_bins), finer))
    assert not judged((study, then), (other_window, same))
    assert judged((study, then), (other_window, now))  # the histogram does not depend on the window
    assert not judged((study, then[:2]), (asking(study, other_bins), finer[:2]))
    # Without patients in common, the same block is the same question.
    then = [LocalTotals({"liver": one["liver"]}) for one in then]
    without = [LocalTotals({"liver": TOTALS[name]["liver"]}) for name in "abcdef"]
    assert len({one["liver"].voxels for one in then[:2]}) == 2
    assert judged((study, then[:1]), (other_window, then[1:2]))
    assert not judged((study, then[:1]), (asking(other_window, {"statistics": {}}), without[1:2]))
    assert not judged((study, then), (asking(study, {"statistics": {}}), without))


def test_an_earlier_entry_without_blocks_is_read(tmp_path) -> None:
    study = a_study()
    ledger = Ledger(tmp_path, "a")
    account = Account(ledger, study)
    account.add_up([TOTALS["a"], TOTALS["b"]])
    account.admit(bytes(16), TOTALS["a"] + TOTALS["b"])
    (entry,) = (one for one in ledger.entries() if one.kind == "brought")
    content = msgspec.json.decode(entry.content)
    assert content["brought"]["classes"]["liver"].pop("blocks") == {}
    assert msgspec.convert(
        content["brought"]["classes"]["liver"], type(brought(study, [], ledger.token).classes["liver"])
    )


# The journal.


def test_the_journal_keeps_statistics(tmp_path) -> None:
    image, truth = tmp_path / "image", tmp_path / "truth"
    for path in (image, truth):
        path.write_bytes(b"x")
    files = (Recorded("", (1, 1, 0, 0), True, ((0, 1),), "ff"),)
    totals = LocalTotals({"lesion": MINE["a"]["lesion"], "rare": ClassTotals()})
    with Journal(tmp_path, STUDY, "a") as journal:
        journal.add(Answer(totals, files, files))
        (line,) = journal._quick.values()
    with Journal(tmp_path, STUDY, "a") as journal:
        (again,) = journal._quick.values()
        assert again == line
    found = _totals(again)
    assert found["lesion"].statistics == totals["lesion"].statistics
    assert found["rare"].statistics == ()


def test_what_a_worker_answers_keeps_statistics() -> None:
    answer = Answer(MINE["a"])
    assert pickle.loads(pickle.dumps(answer)).totals["liver"].statistics == MINE["a"]["liver"].statistics  # noqa: S301


def test_a_journal_is_of_the_statistics_that_it_holds() -> None:
    plain, asked = a_study(), STUDY
    more = asking(plain, TABLES | {"statistics": {"gram": True}})
    assert len({totals_digest(study) for study in (plain, asked, more)}) == 3
    assert totals_digest(asking(plain, {"privacy": {"min_voxels": 99}})) == totals_digest(plain)
