"""What coalitions see: every input and all randomness of tiny rings, and the recorded views of real runs.

A proof by enumeration. Slots of a vector do not touch each other, so one run of the real state machines, with one slot
for each pair of inputs and randomness, goes through all pairs at once. A coalition's view is all it received, its own
blinds and shares, and the total where it is told that. Its distribution over the randomness is counted exactly, and
two inputs must give the same one if and only if the component rule of `voxring.ring.disclosure` says that the
coalition cannot tell them apart: "if" is privacy, "only if" is that the rule does not promise less than it could.
"""

import secrets
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations, product

import numpy as np
import pytest
from scipy.stats import chi2

from voxring.ring.disclosure import components
from voxring.ring.order import RESEARCHER, Ring, rings_of
from voxring.ring.protocol import Master, Member, SecureSum
from voxring.ring.residues import Integers
from voxring.ring.views import Received, View, simulate_coalition, simulate_master, simulate_member
from voxring.session import Heard, run_party, run_researcher
from voxring.session.plan import Plan
from voxring.study import Study
from voxring.totals import ClassTotals, LocalTotals, Statistics, pooled

# All inputs and all randomness.


class AnyValue(SecureSum):
    """A sum whose values are residues themselves, so N may be tiny and every residue is an input."""

    def __post_init__(self) -> None:
        pass


@dataclass
class Enumerated:
    """All runs: the first axis of every array is the input, the second the randomness."""

    rings: tuple[Ring, ...]
    modulus: int
    inputs: dict[str, np.ndarray]
    views: dict[str, list[np.ndarray]] = field(default_factory=dict)

    @property
    def total(self) -> np.ndarray:
        return sum(self.inputs.values()) % self.modulus


def digits(count: int, base: int) -> list[np.ndarray]:
    numbers = np.arange(base**count)
    return [numbers // base**place % base for place in range(count)]


def tiny_rings(members: int, count: int) -> tuple[Ring, ...]:
    """Rings of that many members: those of the package, or the only one where it refuses so few."""
    names = "abcdefg"[: members - 1]
    if members == 3:
        return (Ring((RESEARCHER, *names)),)
    rings = rings_of(bytes(32), names, 2 * count - 2 or 1)
    assert len(rings) == count
    return rings


def enumerate_runs(
    rings: tuple[Ring, ...],
    modulus: int,
    *,
    sum_of: Callable[..., SecureSum] = AnyValue,
    blind: Callable[[list[np.ndarray]], list[np.ndarray]] = lambda drawn: drawn,
) -> Enumerated:
    """Run every input with all randomness; ``blind`` may plant a fault into the blinds that were drawn."""
    parties, count = sorted(rings[0].members[1:]), len(rings)
    of_shares = (len(parties) + 1) * (count - 1)
    inputs, drawn = digits(len(parties), modulus), digits(of_shares + count, modulus)
    shape = (modulus ** len(parties), modulus ** (of_shares + count))
    every = shape[0] * shape[1]
    draws = [np.broadcast_to(one, shape).ravel() for one in (*blind(drawn[of_shares:]), *drawn[:of_shares])]
    blinds, shares = draws[:count], draws[count:]

    def source(vectors: Sequence[np.ndarray]) -> Callable[[int], bytes]:
        left = [vector.astype(np.uint8).tobytes() for vector in vectors]
        return lambda size: left.pop(0) if size else b""

    agreed = sum_of(bytes(32), bytes(16), "sum", rings, Integers(modulus, every), modulus)
    mine = {name: np.repeat(one, shape[1]) for name, one in zip(parties, inputs, strict=True)}
    own = {name: shares[i * (count - 1) : (i + 1) * (count - 1)] for i, name in enumerate([RESEARCHER, *parties])}
    master = Master(agreed, [0] * every, source([*own[RESEARCHER], *blinds]))
    members = {name: Member(agreed, name, mine[name].tolist(), source(own[name])) for name in parties}
    for message in master.start():
        while message.receiver != RESEARCHER:
            message = members[message.receiver].receive(message)  # noqa: PLW2901
        master.receive(message)
    found = Enumerated(rings, modulus, dict(zip(parties, inputs, strict=True)))
    assert [value % modulus for value in master.total] == np.repeat(found.total, shape[1]).tolist()
    for name, machine in {RESEARCHER: master, **members}.items():
        seen = [*machine.received.values(), *own[name], *(blinds if name == RESEARCHER else [])]
        found.views[name] = [np.asarray(one).reshape(shape) for one in seen]
    return found


def classes(keys: Sequence[object]) -> list[int]:
    """Number the different keys in the order in which they come."""
    numbers: dict[object, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def told_apart(found: Enumerated, coalition: Sequence[str], *, total_known: bool) -> list[int]:
    """For each input the class of its exact view distribution."""
    pieces = [piece for name in coalition for piece in found.views[name]]
    assert found.modulus ** len(pieces) < 2**63
    packed = np.zeros(found.views[RESEARCHER][0].shape, np.int64)
    for piece in pieces:
        packed = packed * found.modulus + piece
    packed.sort(axis=1)
    own = [found.inputs[name] for name in coalition if name != RESEARCHER]
    known = [*own, found.total] if total_known else own
    return classes([(packed[i].tobytes(), *(int(one[i]) for one in known)) for i in range(len(packed))])


def told_apart_by_the_rule(found: Enumerated, coalition: Sequence[str], *, total_known: bool) -> list[int]:
    """For each input the class of what `components` says that the coalition learns."""
    parts = [found.inputs[name] for name in coalition if name != RESEARCHER]
    for component in components(found.rings, coalition):
        if total_known or RESEARCHER not in component:
            parts.append(sum(found.inputs[name] for name in component - {RESEARCHER}) % found.modulus)
    columns = [np.broadcast_to(part, found.total.shape).tolist() for part in parts]
    return classes([tuple(column[i] for column in columns) for i in range(len(found.total))])


def breaches(found: Enumerated) -> list[tuple[str, ...]]:
    """Return every coalition whose views are not exactly as the component rule says."""
    members, wrong = found.rings[0].members, []
    for size in range(len(members)):
        for coalition in combinations(members, size):
            # The researcher learns the total; the others are told n and μ, but not sdsum.
            for known in (True,) if RESEARCHER in coalition else (True, False):
                real = told_apart(found, coalition, total_known=known)
                if real != told_apart_by_the_rule(found, coalition, total_known=known):
                    wrong.append(coalition)
    return wrong


@pytest.mark.parametrize(
    ("members", "count", "modulus"),
    [
        *((3, 1, n) for n in (2, 3, 5, 7)),
        *((4, 1, n) for n in (2, 3, 5)),
        *((4, 2, n) for n in (2, 3)),  # all edges; some are used twice
        *((5, 1, n) for n in (2, 3, 4)),
        (5, 2, 2),
        *((6, 1, n) for n in (2, 3)),
        (6, 2, 2),
        *(pytest.param(*case, marks=pytest.mark.soak) for case in [(4, 2, 4), (5, 2, 3), (6, 3, 2)]),
    ],
)
def test_every_coalition_learns_exactly_what_the_component_rule_says(members: int, count: int, modulus: int) -> None:
    assert breaches(enumerate_runs(tiny_rings(members, count), modulus)) == []


class Unsplit(AnyValue):
    """The whole value goes round the first ring."""

    def split(self, values, random):
        nothing = [self.residues.subtract(share, share) for share in super().split(values, random)[1:]]
        return [self.residues.lift(values, self.bound), *nothing]


@pytest.mark.parametrize(("members", "count"), [(3, 1), (4, 1), (4, 2), (5, 1), (5, 2)])
def test_enumeration_finds_a_blind_that_is_missing(members: int, count: int) -> None:
    none = enumerate_runs(tiny_rings(members, count), 2, blind=lambda drawn: [0 * one for one in drawn])
    assert breaches(none)


def test_enumeration_finds_a_blind_of_part_of_the_residues() -> None:
    assert breaches(enumerate_runs(tiny_rings(4, 1), 3, blind=lambda drawn: [one % 2 for one in drawn]))


@pytest.mark.parametrize("members", [4, 5])
def test_enumeration_finds_a_value_that_is_not_split(members: int) -> None:
    assert breaches(enumerate_runs(tiny_rings(members, 2), 2, sum_of=Unsplit))


def test_enumeration_finds_a_blind_used_for_two_sums() -> None:
    """Two sums of one session are two values in one view; with fresh blinds they are independent, else they differ."""
    rings = tiny_rings(4, 1)
    once = enumerate_runs(rings, 3)
    (received,) = once.views["b"]
    # Both sums of all inputs, seen by one member with fresh blinds and with the first blind again.
    pairs = [(first.tolist(), second.tolist()) for first in received for second in received]
    again = [Counter(zip(first, second, strict=True)) for first, second in pairs]
    assert len({frozenset(views.items()) for views in again}) > 1
    fresh = [Counter(product(first, second)) for first, second in pairs]
    assert len({frozenset(views.items()) for views in fresh}) == 1


# Simulators.


@pytest.mark.parametrize(("members", "count", "modulus"), [(3, 1, 3), (4, 1, 3), (4, 2, 2), (5, 1, 2), (6, 1, 2)])
def test_the_simulator_of_a_coalition_draws_its_exact_views(members: int, count: int, modulus: int) -> None:
    """For every input and all randomness, from the coalition's values and the components' sums alone."""
    rings = tiny_rings(members, count)
    found = enumerate_runs(rings, modulus)
    shape = found.views[RESEARCHER][0].shape
    every = shape[0] * shape[1]
    agreed = AnyValue(bytes(32), bytes(16), "sum", rings, Integers(modulus, every), modulus)
    drawn = [np.broadcast_to(one, shape) for one in digits(members * (count - 1) + count, modulus)]
    order = [RESEARCHER] * (2 * count - 1) + [name for name in rings[0].members[1:] for _ in rings[1:]]
    for size in range(1, members):
        for coalition in combinations(rings[0].members, size):
            sums = {}
            for part in components(rings, coalition):
                of_parties = sum((found.inputs[name] for name in part - {RESEARCHER}), 0 * found.total)
                sums[part] = np.repeat(of_parties % modulus, shape[1]).tolist()
            own = {name: np.repeat(found.inputs.get(name, 0 * found.total), shape[1]).tolist() for name in coalition}
            left = [one.astype(np.uint8).tobytes() for one in drawn]
            seen = simulate_coalition(agreed, own, sums, lambda size, left=left: left.pop(0))
            assert not left  # so every vector went to the member that `order` says
            made, real = [], []
            for name in coalition:
                made += [np.asarray(one.residues).reshape(shape) for one in seen[name]]
                made += [vector for vector, to in zip(drawn, order, strict=True) if to == name]
                real += found.views[name]
            assert (_counted(made, modulus) == _counted(real, modulus)).all()


def _counted(pieces: list[np.ndarray], modulus: int) -> np.ndarray:
    packed = np.zeros(pieces[0].shape, np.int64)
    for piece in pieces:
        packed = packed * modulus + piece
    return np.sort(packed, axis=1)


def test_the_simulators_of_one_role_are_those_of_a_coalition_of_one() -> None:
    rings, residues = tiny_rings(5, 2), Integers(13, 2)
    agreed = SecureSum(bytes(32), bytes(16), "sum", rings, residues, 1)
    (everybody_else,) = components(rings, {"a"})
    one = simulate_coalition(agreed, {"a": [1, 0]}, {everybody_else: [3, -3]}, secrets.token_bytes)
    assert _outline(one["a"]) == _outline(simulate_member("sum", residues, 2, secrets.token_bytes))
    (parties,) = components(rings, {RESEARCHER})
    one = simulate_coalition(agreed, {RESEARCHER: [0, 0]}, {parties: [4, -4]}, secrets.token_bytes)
    master = simulate_master("sum", residues, 2, [4, -4], secrets.token_bytes)
    assert _outline(one[RESEARCHER]) == _outline(master)
    assert _unblinded(one[RESEARCHER]) == _unblinded(master) == [4, 9]


def _outline(received: Sequence[Received]) -> list[tuple]:
    """All of what was received but the residues."""
    return [(one.sum, one.ring, one.modulus, len(one.residues), len(one.blind)) for one in received]


def _unblinded(received: Sequence[Received]) -> list[int]:
    parts = [[r - b for r, b in zip(one.residues, one.blind, strict=True)] for one in received]
    return [sum(column) % received[0].modulus for column in zip(*parts, strict=True)]


# Real runs, over sockets.

BUCKETS, FALSE_ALARM, RUNS = 16, 1e-9, 4
CLASSES = {f"c{i:02}": i for i in range(1, 41)}


def a_study(collusion: int) -> Study:
    return Study.of(
        name="views",
        classes=CLASSES,
        window={"size": 3},
        bounds={"voxels_per_party": 10**6, "intensity": 10**4},
        privacy={"collusion": collusion},
        party=[{"name": name} for name in "abcd"],
    )


def totals_of(seed: int) -> LocalTotals:
    return LocalTotals({n: ClassTotals(10 + i + seed, 1000 * i, 50 * i, 10**6 + i, 1) for n, i in CLASSES.items()})


TOTALS = {name: totals_of(seed) for seed, name in enumerate("abcd")}


def record(study: Study, state) -> tuple[dict[str, View], dict[str, Heard], dict[str, Statistics | str]]:
    where: dict[str, str] = {}
    all_here = threading.Barrier(len(study.parties) + 1)

    def at(name: str) -> Callable[[str], dict[str, str]]:
        def listening(address: str) -> dict[str, str]:
            where[name] = address
            all_here.wait(20)
            return where

        return listening

    options = {"address": "tcp://127.0.0.1:0", "timeout": 20, "insecure": True, "state": state}
    with ThreadPoolExecutor(len(study.parties)) as pool:
        parties = {
            name: pool.submit(run_party, study, name, lambda name=name: TOTALS[name], listening=at(name), **options)
            for name in study.parties
        }
        all_here.wait(20)
        answer, view = run_researcher(study, peers=where, timeout=20, insecure=True)
        heard = {name: party.result(20) for name, party in parties.items()}
    return {RESEARCHER: view, **{name: one.view for name, one in heard.items()}}, heard, answer


def statistics_of(runs: Sequence[dict[str, View]]) -> dict[tuple, float]:
    """χ² of everything that must be uniform: each message, the differences of two messages of a ring, what R sees
    without its blinds where there are several rings, and the difference of the same message in two runs."""
    found: dict[tuple, Counter] = {}

    def look(what: tuple, numbers: Sequence[int], n: int) -> None:
        found.setdefault(what, Counter()).update(number % n * BUCKETS // n for number in numbers)

    for views, next_views in zip(runs, [*runs[1:], None], strict=True):
        several = any(one.ring for one in views[RESEARCHER].received)
        for name, view in views.items():
            for i, one in enumerate(view.received):
                n = one.modulus
                look((name, one.ring), one.residues, n)
                if next_views is not None and next_views[name].received[i].modulus == n:
                    after = next_views[name].received[i].residues
                    look((name, one.ring, "next run"), np.subtract(after, one.residues, dtype=object).tolist(), n)
                if several and one.blind:
                    look((name, one.ring, "unblinded"), np.subtract(one.residues, one.blind, dtype=object).tolist(), n)
                for other in views if several else ():
                    if other != name:
                        theirs = views[other].received[i]
                        assert (theirs.sum, theirs.ring, theirs.modulus) == (one.sum, one.ring, n)
                        between = np.subtract(theirs.residues, one.residues, dtype=object).tolist()
                        look((name, other, one.ring), between, n)
    expected = {what: sum(counts.values()) / BUCKETS for what, counts in found.items()}
    return {
        what: sum((counts[b] - expected[what]) ** 2 / expected[what] for b in range(BUCKETS))
        for what, counts in found.items()
    }


def uneven(runs: Sequence[dict[str, View]]) -> list[tuple]:
    return [what for what, chi in statistics_of(runs).items() if chi > chi2.isf(FALSE_ALARM, BUCKETS - 1)]


@pytest.mark.parametrize("collusion", [1, 2])
def test_recorded_views_of_real_runs_are_those_of_the_simulators(collusion: int, tmp_path) -> None:
    study = a_study(collusion)
    truth = pooled(sum(TOTALS.values(), LocalTotals()), study)
    runs = []
    for _ in range(RUNS):
        views, heard, answer = record(study, tmp_path)
        runs.append(views)
        assert answer == truth
        means = {name: one.mean for name, one in truth.items() if isinstance(one, Statistics)}
        counts = {name: one.voxels for name, one in truth.items() if isinstance(one, Statistics)}
        for name, one in heard.items():
            assert one.means == means
            assert dict(one.view.learned) == {("n", n): c for n, c in counts.items()} | {
                ("μ", n): m for n, m in means.items()
            }
            assert set(views[name].learned) == {(what, n) for what in ("n", "μ") for n in means}
    assert uneven(runs) == []
    # All but the residues equals what the simulators draw from values and results alone.
    coin = bytes(32)
    plan = Plan(study, coin)
    session = bytes(16)
    agreed = [plan.voxels(session), plan.sums(session, list(means)), plan.sdsums(session, means)]
    values = [
        {name: plan.voxel_values(TOTALS[name]) for name in "abcd"},
        {name: plan.sum_values(TOTALS[name], list(means)) for name in "abcd"},
        {name: plan.sdsum_values(TOTALS[name], means) for name in "abcd"},
    ]
    totals = [[sum(column) for column in zip(*mine.values(), strict=True)] for mine in values]
    count = len(plan.rings)
    member = [seen for one in agreed for seen in simulate_member(one.name, one.residues, count, secrets.token_bytes)]
    master = [
        seen
        for one, total in zip(agreed, totals, strict=True)
        for seen in simulate_master(one.name, one.residues, count, one.with_checksum(total), secrets.token_bytes)
    ]
    for views in runs:
        for name, view in views.items():
            assert sorted(_outline(view.received)) == sorted(_outline(master if name == RESEARCHER else member))
        for name in ("voxels", "sum", "sdsum"):
            real = [one for one in views[RESEARCHER].received if one.sum == name]
            drawn = _unblinded([one for one in master if one.sum == name])
            assert _unblinded(real)[:-1] == drawn[:-1]  # the checksum's weights follow from the run's own coin and name
    simulated = []
    for _ in range(RUNS):
        pieces = [
            simulate_coalition(one, mine | {RESEARCHER: [0] * len(total)}, {}, secrets.token_bytes)
            for one, mine, total in zip(agreed, values, totals, strict=True)
        ]
        simulated.append(
            {name: View(name, tuple(seen for piece in pieces for seen in piece[name])) for name in pieces[0]}
        )
    assert statistics_of(simulated).keys() == statistics_of(runs).keys()
    assert uneven(simulated) == []


def test_statistics_find_a_blind_that_is_missing_in_real_runs(monkeypatch, tmp_path) -> None:
    honest = Master.__init__

    def unblinded(self, agreed, values, random):
        honest(self, agreed, values, random)
        self._blinds = [agreed.residues.zeros() for _ in self._blinds]

    monkeypatch.setattr(Master, "__init__", unblinded)
    assert ("a", 0) in uneven([record(a_study(1), tmp_path)[0] for _ in range(2)])


def test_statistics_find_a_blind_used_again_in_the_next_run(monkeypatch, tmp_path) -> None:
    drawn: dict[str, list] = {}
    honest = Master.__init__

    def again(self, agreed, values, random):
        honest(self, agreed, values, random)
        self._blinds = drawn.setdefault(agreed.name, [agreed.residues.copy(blind) for blind in self._blinds])

    monkeypatch.setattr(Master, "__init__", again)
    assert ("a", 0, "next run") in uneven([record(a_study(1), tmp_path)[0] for _ in range(3)])


def test_statistics_find_a_value_that_is_not_split_in_real_runs(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(SecureSum, "split", _whole)
    assert any(len(what) == 3 and what[2] == 0 for what in uneven([record(a_study(2), tmp_path)[0] for _ in range(2)]))


def _whole(self, values, random):
    return [self.lift(values), *(self.lift([0] * len(values)) for _ in self.rings[1:])]
