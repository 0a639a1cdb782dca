"""Differential privacy: samplers against their laws, mechanisms against their promise, sensitivities, accounting."""

import heapq
import math
import random
from collections import Counter
from fractions import Fraction
from functools import partial
from itertools import product
from statistics import NormalDist

import msgspec
import numpy as np
import pytest

from naive_statistics import additive, pairs
from voxring import Study, local_totals
from voxring.errors import StudyError
from voxring.privacy import (
    QUANTITIES,
    Budget,
    GaussianNoise,
    LaplaceNoise,
    accounting,
    cost,
    honest,
    noise_of,
    noises_of_statistics,
    part,
    released,
    samplers,
    sensitivities,
    sensitivity,
    shared,
    value_range,
)
from voxring.privacy.accounting import rho_of
from voxring.privacy.intervals import deviation, half_width, intervals
from voxring.privacy.rationals import log_above, log_below
from voxring.statistics import fault, feature_bound, layout, unpack
from voxring.totals import ClassTotals, LocalTotals, clipped

SEED = partial(random.Random, 20)


def a_study(names: str = "abcde", **tables: object) -> Study:
    """A study with differential privacy whose values are −3 … 3."""
    given = {
        "name": "t",
        "classes": {"lesion": 1, "liver": 2},
        "window": {"size": 3},
        "bounds": {"intensity": 3},
        "privacy": {"voxels_per_patient": {"lesion": 40, "liver": 90}, "collusion": 2},
        "differential_privacy": {"epsilon": 1.0},
        "party": [{"name": name} for name in names],
    }
    return Study.of(**given | tables)


GAUSSIAN = {"epsilon": 1.0, "delta": 1e-6, "mechanism": "gaussian"}


# Samplers. Every choice of theirs is one of `below`, so all paths can be gone along, with exact probabilities.


class _More(Exception):  # noqa: N818
    def __init__(self, *chances: Fraction) -> None:
        self.chances = chances


def law_of(
    sampler, monkeypatch, unknown: float, *, tossing: bool = False, most: int = 6000
) -> tuple[dict[int, Fraction], Fraction]:
    """The probability of each outcome along the likeliest paths, and that of all paths that were left.

    With ``tossing`` the coin of probability exp(−γ) is taken for what its own test shows it to be, to 53 bits.
    """

    def choice(script, *chances: Fraction) -> int:
        if 1 in chances:
            return chances.index(1)
        try:
            return next(script)
        except StopIteration:
            raise _More(*chances) from None

    def below(count: int, script) -> int:
        return choice(script, *[Fraction(1, count)] * count)

    def coin(top: int, bottom: int, script) -> bool:
        return choice(script, 1 - Fraction(top, bottom), Fraction(top, bottom)) == 1

    monkeypatch.setattr(samplers, "below", below)
    monkeypatch.setattr(samplers, "coin", coin)
    if tossing:
        monkeypatch.setattr(
            samplers, "exp_coin", lambda top, bottom, script: coin(*_ratio(math.exp(-top / bottom)), script)
        )
    found: dict[int, Fraction] = Counter()
    left, paths, number = Fraction(1), [(-1.0, 0, (), Fraction(1))], 0
    while left >= unknown and number < most:
        _, _, path, mass = heapq.heappop(paths)
        try:
            found[sampler(iter(path))] += mass
            left -= mass
        except _More as more:
            for taken, chance in enumerate(more.chances):
                number += 1
                if chance:
                    heapq.heappush(paths, (-float(mass * chance), number, (*path, taken), mass * chance))
    return found, left


def _ratio(value: float) -> tuple[int, int]:
    return value.as_integer_ratio()


def held(law: dict[int, Fraction], left: Fraction, probability, unknown: float) -> None:
    assert left < unknown
    for outcome, mass in law.items():
        assert float(mass) <= probability(outcome) * (1 + 1e-12) <= float(mass + left) * (1 + 1e-12)


@pytest.mark.parametrize(("top", "bottom"), [(0, 1), (1, 3), (1, 1), (5, 2)])
def test_exp_coin_shows_heads_as_often_as_its_definition_says(top: int, bottom: int, monkeypatch) -> None:
    law, left = law_of(lambda script: int(samplers.exp_coin(top, bottom, script)), monkeypatch, 1e-6)
    heads = math.exp(-top / bottom)
    held(law, left, lambda shown: heads if shown else 1 - heads, 1e-6)


def geometric(q: float):
    return lambda x: (1 - q) * q**x if x >= 0 else 0.0


def discrete_laplace(q: float):
    return lambda x: (1 - q) / (1 + q) * q ** abs(x)


def polya(q: float, parts: int):
    """Γ(x + r) / (x! Γ(r)) · (1 − q)^r · q^x, r = 1 / parts."""

    def probability(x: int) -> float:
        if x < 0:
            return 0.0
        size = math.lgamma(x + 1 / parts) - math.lgamma(1 / parts) - math.lgamma(x + 1)
        return math.exp(size + math.log(1 - q) / parts + x * math.log(q))

    return probability


def discrete_gaussian(variance: float):
    total = sum(math.exp(-x * x / (2 * variance)) for x in range(-1000, 1001))
    return lambda x: math.exp(-x * x / (2 * variance)) / total


@pytest.mark.parametrize(
    ("sampler", "probability", "unknown"),
    [
        (lambda r: samplers.geometric(Fraction(1), r), geometric(math.exp(-1)), 1e-4),
        (lambda r: samplers.geometric(Fraction(3, 2), r), geometric(math.exp(-1.5)), 1e-4),
        (lambda r: samplers.laplace(Fraction(1), r), discrete_laplace(math.exp(-1)), 2e-3),
        (lambda r: samplers.polya(Fraction(1), 2, r), polya(math.exp(-1), 2), 5e-3),
        (lambda r: samplers.polya(Fraction(1), 1, r), geometric(math.exp(-1)), 1e-3),
    ],
)
def test_laws_of_samplers_along_every_likely_path(sampler, probability, unknown: float, monkeypatch) -> None:
    law, left = law_of(sampler, monkeypatch, unknown, tossing=True)
    held(law, left, probability, unknown)
    assert len(law) > 3


@pytest.mark.parametrize("variance", [1, 6, 11])
def test_the_law_of_discrete_gaussians_given_that_of_discrete_laplaces(variance: int, monkeypatch) -> None:
    """P(x) is that of a Laplace variable times that of accepting it, over the sum of these: in one pass over x."""
    accepted = {}
    for x in range(-90, 91):
        asked: list[Fraction] = []
        chances: list[float] = []
        monkeypatch.setattr(samplers, "laplace", lambda gamma, script, x=x, asked=asked: asked.append(gamma) or x)

        def toss(top: int, bottom: int, script, chances=chances) -> bool:
            chances.append(math.exp(-top / bottom))
            return True

        monkeypatch.setattr(samplers, "exp_coin", toss)
        assert samplers.gaussian(variance, None) == x
        accepted[x] = discrete_laplace(math.exp(-float(asked[0])))(x) * chances[0]
    total = sum(accepted.values())
    for x, weight in accepted.items():
        assert weight / total == pytest.approx(discrete_gaussian(variance)(x), rel=1e-11)


def chi_square_fits(drawn: list[int], probability) -> None:
    """Fail if numbers drawn would deviate so from the law with a probability below 1e-9."""
    counts, size = Counter(drawn), len(drawn)
    low, high = min(drawn) - 50, max(drawn) + 50
    cells, expected, seen = [], 0.0, 0
    for x in range(low, high + 1):
        expected += size * probability(x)
        seen += counts[x]
        if expected >= 20:
            cells.append((seen, expected))
            expected, seen = 0.0, 0
    cells[-1] = cells[-1][0] + seen, cells[-1][1] + expected
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells)
    freedom = len(cells) - 1
    # Wilson and Hilferty: the cube root of χ² / freedom is nearly normal.
    normal = ((statistic / freedom) ** (1 / 3) - 1 + 2 / (9 * freedom)) / math.sqrt(2 / (9 * freedom))
    assert normal < NormalDist().inv_cdf(1 - 1e-9)


def summed_shares(gamma: Fraction, honest: int, r) -> int:
    return sum(samplers.laplace_share(gamma, honest, r) for _ in range(honest))


@pytest.mark.parametrize(
    ("sampler", "probability"),
    [
        (lambda r: samplers.below(11, r), lambda x: (0 <= x < 11) / 11),
        (lambda r: samplers.geometric(Fraction(2, 25), r), geometric(math.exp(-0.08))),
        (lambda r: samplers.laplace(Fraction(1, 12), r), discrete_laplace(math.exp(-1 / 12))),
        (lambda r: samplers.polya(Fraction(1, 8), 2, r), polya(math.exp(-1 / 8), 2)),
        (lambda r: samplers.gaussian(90, r), discrete_gaussian(90)),
        (partial(summed_shares, Fraction(1, 6), 1), discrete_laplace(math.exp(-1 / 6))),
        (partial(summed_shares, Fraction(1, 6), 4), discrete_laplace(math.exp(-1 / 6))),
    ],
)
def test_many_draws_fit_their_law(sampler, probability) -> None:
    source = SEED().randbytes
    chi_square_fits([sampler(source) for _ in range(4000)], probability)


def test_a_share_of_laplace_noise_is_a_laplace_share_on_the_grid_and_a_dither() -> None:
    noise, source = LaplaceNoise(5, 1, Fraction(1, 20)), SEED().randbytes
    assert (noise.grid, noise.steps) == (5, 1)
    steps = discrete_laplace(math.exp(-1 / 20))
    chi_square_fits([noise.share(source) for _ in range(4000)], lambda x: steps((x + 2) // 5) / 5)
    noise = LaplaceNoise(40, 1, Fraction(1, 2), numbers=3)
    assert (noise.grid, noise.steps) == (5, 10)  # 40 in steps of 5 are 8, and each of three numbers may do a part more
    steps = discrete_laplace(math.exp(-1 / 20))
    chi_square_fits([noise.share(source) for _ in range(4000)], lambda x: steps((x + 2) // 5) / 5)


@pytest.mark.parametrize("mechanism", [{"epsilon": 3.0}, GAUSSIAN])
def test_shares_of_the_honest_parties_in_a_histogram_add_up_to_noise_of_its_law(mechanism: dict) -> None:
    """Drawn as parties draw them, bin by bin: discrete Laplace of the part of ε, or nearly discrete Gaussian."""
    tables = {"statistics": {"histogram": {"bins": 30, "range": (-3.0, 3.0)}}, "classes": {"a": 1}}
    study = a_study(privacy={"voxels_per_patient": 1, "collusion": 2}, differential_privacy=mechanism, **tables)
    noises, source = noises_of_statistics(study, ["a"]), SEED().randbytes
    assert honest(study) == 3
    drawn = [noise.share(source) + noise.share(source) + noise.share(source) for _ in range(60) for noise in noises]
    if "delta" in mechanism:
        variance = 1 / (2 * float(rho_of(cost(study))) / 5)  # five parts: four numbers and the histogram
        assert 3 * noises[0].variance == pytest.approx(variance, abs=3)
        chi_square_fits(drawn, discrete_gaussian(3 * noises[0].variance))
    else:
        assert noises[0].grid == 1
        chi_square_fits(drawn, discrete_laplace(math.exp(-3.0 / 5)))


@pytest.mark.parametrize("honest", [1, 2, 3, 7])
def test_so_many_polya_shares_are_one_geometric_variable_exactly(honest: int) -> None:
    """In rationals: with q^x and (1 − q)^(1/honest) taken out, shares of weight w add up to weight 1 at every x."""
    weights = [Fraction(1)]
    for j in range(1, 40):
        weights.append(weights[-1] * Fraction((j - 1) * honest + 1, j * honest))
    together = [Fraction(1)] + [Fraction(0)] * 39
    for _ in range(honest):
        together = [sum(together[i] * weights[x - i] for i in range(x + 1)) for x in range(40)]
    assert together == [1] * 40


def test_samplers_refuse_what_is_none() -> None:
    with pytest.raises(ValueError, match="at least one number"):
        samplers.below(0, SEED().randbytes)


# The promise, from the laws themselves.


def dithered(value: int, noise: LaplaceNoise, q: Fraction, reach: int) -> dict[int, Fraction]:
    """The law of value + grid · discrete Laplace(q) + dither, for whole steps up to reach; exact."""
    law: dict[int, Fraction] = Counter()
    for z, dither in product(range(-reach, reach + 1), range(noise.grid)):
        mass = (1 - q) / (1 + q) * q ** abs(z) / noise.grid
        law[value + noise.grid * z + dither - noise.grid // 2] += mass
    return law


@pytest.mark.parametrize("change", [1, 2, 5, 6, 17, 100])
@pytest.mark.parametrize("epsilon", [Fraction(1, 50), Fraction(1, 3), Fraction(2)])
def test_laplace_noise_keeps_epsilon_for_every_change_within_the_sensitivity(change: int, epsilon: Fraction) -> None:
    noise = LaplaceNoise(change, 3, epsilon)
    assert noise.grid % 2 == 1
    assert noise.gamma * noise.steps == epsilon
    q, reach = Fraction(2, 3), 12  # any q serves: one step costs a factor of 1/q
    middle = range(-noise.grid * (reach - noise.steps - 1), noise.grid * (reach - noise.steps - 1))
    if not middle:
        reach = noise.steps + 3
        middle = range(-noise.grid, noise.grid)
    here = dithered(0, noise, q, reach)
    for other in {1, change // 2, change}:
        there = dithered(other, noise, q, reach)
        assert max(max(here[y] / there[y], there[y] / here[y]) for y in middle) <= q**-noise.steps


def law_of_shares(one, shares: int, width: int = 1 << 15) -> np.ndarray:
    """The law of a sum of shares, each symmetric, from that of one, on −width/2 … width/2 − 1, by a transform."""
    each = np.array([one(x if x < width // 2 else x - width) for x in range(width)])
    return np.fft.fftshift(np.fft.ifft(np.fft.fft(each) ** shares).real)


@pytest.mark.parametrize(("names", "collusion"), [("abc", 1), ("abcde", 1), ("abcde", 3), ("abcde", 4)])
def test_shares_that_colluders_do_not_know_keep_epsilon(names: str, collusion: int) -> None:
    """Of k shares t are subtracted by those who drew them: what is left must hide one patient."""
    privacy = {"voxels_per_patient": 40, "collusion": collusion}
    noise = noise_of(a_study(names, privacy=privacy), "patients", "lesion")
    assert isinstance(noise, LaplaceNoise)
    assert (noise.grid, noise.sensitivity) == (1, 1)
    q, width = math.exp(-float(noise.gamma)), 1 << 12
    turns = 2 * np.pi * np.arange(width) / width
    left = len(names) - collusion
    law = np.fft.ifft(np.abs((1 - q) / (1 - q * np.exp(1j * turns))) ** (2 * left / noise.honest)).real
    ratios = np.log(law[:60] / law[1:61])
    assert np.abs(ratios).max() <= float(part(a_study(names, privacy=privacy))) * (1 + 1e-6)


@pytest.mark.parametrize(("names", "collusion"), [("abc", 1), ("abcde", 1), ("abcde", 4)])
def test_gaussian_shares_that_colluders_do_not_know_keep_rho(names: str, collusion: int) -> None:
    """Rényi divergences of the law of what is left of the shares, at orders from 1 to 64, against α · ρ."""
    privacy = {"voxels_per_patient": 40, "collusion": collusion}
    study = a_study(names, privacy=privacy, differential_privacy=GAUSSIAN | {"epsilon": 20.0})
    for quantity in ("voxels", "patients"):
        noise = noise_of(study, quantity, "lesion")
        assert isinstance(noise, GaussianNoise)
        assert noise.rho <= part(study) * (1 + Fraction(1, 10**9))
        law = law_of_shares(discrete_gaussian(noise.variance), len(names) - collusion, 1 << 11)
        moved = np.roll(law, noise.sensitivity)
        some = (law > 1e-13) & (moved > 1e-13)
        for alpha in (1.01, 2, 5, 16):
            renyi = np.log(np.sum(law[some] ** alpha * moved[some] ** (1 - alpha))) / (alpha - 1)
            assert renyi <= alpha * float(part(study)) * (1 + 1e-6)


def test_a_sum_of_small_discrete_gaussians_is_no_worse_than_proposition_14_says() -> None:
    for variance, honest_parties in product((1, 2, 3), (2, 3, 6)):
        noise = GaussianNoise(1, honest_parties, variance)
        law = law_of_shares(discrete_gaussian(variance), honest_parties, 1 << 9)
        moved = np.roll(law, 1)
        some = (law > 1e-12) & (moved > 1e-12)
        for alpha in (1.5, 2, 8):
            renyi = np.log(np.sum(law[some] ** alpha * moved[some] ** (1 - alpha))) / (alpha - 1)
            assert renyi <= alpha * float(noise.rho)
        tau = noise.rho - Fraction(1, 2 * honest_parties * variance)
        several = GaussianNoise(1, honest_parties, variance, numbers=5)
        assert several.rho == noise.rho + 4 * tau > noise.rho  # each number has a sum of its own


def test_the_budget_is_what_all_numbers_spend_together() -> None:
    for classes, epsilon in product((1, 3), (0.1, 1.0, 7.0)):
        names = {f"c{i}": i for i in range(1, classes + 1)}
        tables = {"classes": names, "privacy": {"voxels_per_patient": 70}}
        study = a_study(differential_privacy={"epsilon": epsilon}, **tables)
        mean = Fraction(1, 7)
        each = [noise_of(study, quantity, name, mean) for quantity in QUANTITIES for name in names]
        assert sum(one.gamma * one.steps for one in each) == Fraction(repr(epsilon)) == cost(study).epsilon
        study = a_study(differential_privacy=GAUSSIAN | {"epsilon": epsilon}, **tables)
        each = [noise_of(study, quantity, name, mean) for quantity in QUANTITIES for name in names]
        assert sum(one.rho for one in each) <= rho_of(cost(study))


@pytest.mark.parametrize(("epsilon", "delta"), [(0.001, 1e-15), (100.0, 1e-3), (0.001, 1e-3), (100.0, 1e-15)])
def test_corners_of_what_a_study_may_ask_for_keep_their_budget(epsilon: float, delta: float) -> None:
    names = [f"p{i}" for i in range(60)]
    study = a_study(
        classes={f"c{i}": i for i in range(1, 101)},
        privacy={"voxels_per_patient": 1},
        party=[{"name": name} for name in names],
        differential_privacy={"epsilon": epsilon, "delta": delta, "mechanism": "gaussian"},
    )
    rho = sum(noise_of(study, quantity, "c1", Fraction(0)).rho for quantity in QUANTITIES)
    assert 100 * rho <= rho_of(cost(study))


ASKED = {
    "feature": [{"kind": "intensity"}, {"kind": "mean", "window": 3}, {"kind": "contrast", "window": 3}],
    "statistics": {
        "gram": True,
        "moments": 4,
        "histogram": {"bins": 5, "range": (-3.0, 3.0)},
        "glcm": {"levels": 3, "range": (-3.0, 3.0)},
    },
}


@pytest.mark.parametrize("mechanism", [{}, GAUSSIAN])
def test_the_budget_is_what_numbers_and_additive_statistics_spend_together(mechanism: dict) -> None:
    study = a_study(differential_privacy={"epsilon": 0.7} | mechanism, **ASKED)
    spent, names = [], list(study.classes)
    for name in names:
        spent += [[noise_of(study, quantity, name, Fraction(1, 7))] for quantity in QUANTITIES]
        for block in layout(study):
            each = shared(study, block, name)
            assert len(each) == block.size
            counted = block.name in ("histogram", "glcm")
            assert all(one.numbers == (block.size if counted else 1) for one in each)
            spent.append(each[:1] if counted else each)
    assert released(study) == (*QUANTITIES, "feature_sums", "gram", "powers", "histogram", "glcm")
    if mechanism:
        assert sum(one.rho for each in spent for one in each) <= rho_of(cost(study))
        assert all(sum(one.rho for one in each) > 0.98 * part(study) for each in spent)
    else:
        assert sum(one.gamma * one.steps for each in spent for one in each) == cost(study).epsilon
        assert {sum(one.gamma * one.steps for one in each) for each in spent} == {part(study)}
    flat = [noise for name in names for block in layout(study) for noise in shared(study, block, name)]
    assert noises_of_statistics(study, names) == tuple(flat)
    assert noises_of_statistics(Study.of(name="t", classes={"a": 1}, statistics={"moments": 2}), ["a"]) == ()


@pytest.mark.parametrize(("change", "numbers"), [(2, 2), (5, 2), (17, 3), (40, 3), (41, 2)])
def test_noise_of_several_numbers_keeps_epsilon_however_a_change_is_spread_over_them(change: int, numbers: int) -> None:
    """Numbers have noise of their own, so the worst factors of each multiply."""
    noise = LaplaceNoise(change, 3, Fraction(1, 100), numbers)
    assert noise.gamma * noise.steps == noise.epsilon
    q, reach = Fraction(2, 3), change // noise.grid + 4  # any q serves: one step costs a factor of 1/q
    here, worst = dithered(0, noise, q, reach), [Fraction(1)]
    for least in range(1, change + 1):
        there = dithered(least, noise, q, reach)
        middle = range(-noise.grid, noise.grid + least)
        worst.append(max(max(here[y] / there[y], there[y] / here[y]) for y in middle))
    for spread in product(range(change + 1), repeat=numbers - 1):
        if sum(spread) <= change:
            factor = math.prod(worst[one] for one in (*spread, change - sum(spread)))
            assert factor <= q**-noise.steps


def test_gaussian_noise_of_several_numbers_keeps_rho_however_a_change_is_spread_over_them() -> None:
    """Rényi divergences of numbers with noise of their own add up."""
    noise = GaussianNoise.of_rho(6, 3, Fraction(1, 5), numbers=3)
    law = law_of_shares(discrete_gaussian(noise.variance), 3, 1 << 9)
    for alpha in (1.5, 2, 8):
        costs = [0.0]
        for change in range(1, 7):
            moved = np.roll(law, change)
            some = (law > 1e-12) & (moved > 1e-12)
            costs.append(np.log(np.sum(law[some] ** alpha * moved[some] ** (1 - alpha))) / (alpha - 1))
        for spread in product(range(7), repeat=2):
            if sum(spread) <= 6:
                assert sum(costs[one] for one in (*spread, 6 - sum(spread))) <= alpha * 0.2 * (1 + 1e-6)


@pytest.mark.parametrize(("epsilon", "delta"), [("1", "1e-6"), ("0.1", "1e-6"), ("5", "1e-9"), ("0.001", "1e-15")])
def test_rho_is_the_largest_that_opendp_turns_into_epsilon_and_delta(epsilon: str, delta: str) -> None:
    prelude = pytest.importorskip("opendp.prelude")
    prelude.enable_features("contrib")
    rho = rho_of(Budget(Fraction(epsilon), Fraction(delta)))

    def opendp_epsilon(rho: float) -> float:
        space = prelude.atom_domain(T=int), prelude.absolute_distance(T=int)
        measured = prelude.m.make_gaussian(*space, scale=math.sqrt(1 / (2 * rho)))
        return prelude.c.make_zCDP_to_approxDP(measured).map(1).epsilon(float(delta))

    assert 0.999 * float(epsilon) < opendp_epsilon(float(rho)) <= float(epsilon) * (1 + 1e-9)


def test_rho_keeps_epsilon_and_delta_of_the_gaussian_curve() -> None:
    """A Gaussian mechanism of that ρ, by its exact curve (Balle and Wang 2018)."""
    normal = NormalDist().cdf
    for epsilon, delta in product((0.1, 1.0, 5.0), (1e-4, 1e-8)):
        shift = math.sqrt(2 * float(rho_of(Budget(Fraction(repr(epsilon)), Fraction(repr(delta))))))
        left = normal(shift / 2 - epsilon / shift) - math.exp(epsilon) * normal(-shift / 2 - epsilon / shift)
        assert 0.01 * delta < left <= delta


@pytest.mark.parametrize("x", [Fraction(1), Fraction(2), Fraction(3, 7), Fraction(10**9 + 7), Fraction(1, 3**50)])
def test_logarithms_lie_between_their_bounds(x: Fraction) -> None:
    assert log_below(x) <= log_above(x) < log_below(x) + Fraction(1, 2**100)
    assert float(log_below(x)) == pytest.approx(math.log(x), rel=1e-15)
    # e^(a + b) = e^a e^b, so the bounds of a product hold the sum of bounds.
    assert log_below(x) + log_below(1 / x) <= 0 <= log_above(x) + log_above(1 / x)


def test_logarithms_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        log_below(Fraction(0))


def test_a_share_leaves_its_tail_as_seldom_as_is_said() -> None:
    laplace_noise = LaplaceNoise(1, 1, Fraction(1, 9))
    assert 2 * math.exp(-float(laplace_noise.gamma) * (laplace_noise.tail - 1)) <= 2**-128
    gaussian_noise = GaussianNoise(1, 1, 77)
    assert 2 * math.exp(-(gaussian_noise.tail**2) / (2 * 77)) <= 2**-128


# Sensitivity.


def test_one_patient_reaches_the_sensitivity_of_n_and_sum_and_not_more() -> None:
    study = a_study(classes={"lesion": 1}, privacy={"voxels_per_patient": 3 * 4 * 5})
    image = np.full((3, 4, 5), -3, np.int16)
    mine = clipped(local_totals(image, np.ones(image.shape, np.uint8), study), study)["lesion"]
    assert mine.voxels == sensitivity(study, "voxels", "lesion") == 60
    assert -mine.sum == sensitivity(study, "sum", "lesion") == 60 * 3 * study.denominator
    assert mine.patients == sensitivity(study, "patients", "lesion") == 1
    for mean in (Fraction(3), Fraction(1, 3), Fraction(-3)):
        reached, most = mine.sdsum(mean, study.unit), sensitivity(study, "sdsum", "lesion", mean)
        assert reached <= most
        assert (reached > most * 0.999) == (mean == 3)


def test_values_that_cannot_be_negative_make_sdsum_less_sensitive() -> None:
    def of(method: dict[str, object]) -> int:
        tables = {"standardise": method, "bounds": {}, "classes": {"a": 1}, "privacy": {"voxels_per_patient": 10}}
        study = a_study(**tables)
        return Fraction(sensitivity(study, "sdsum", "a", Fraction(0)), study.unit**2)

    assert 40 <= of({"method": "rescale", "range": (0.0, 9.0)}) < 40.1  # 10 voxels of 0 … 2
    window = {"size": 3, "border": "constant", "fill": -1.0}
    study = a_study(standardise={"method": "rescale", "range": (0.0, 9.0)}, bounds={}, window=window)
    assert value_range(study) == (-study.unit, 2 * study.unit)
    assert 10 * 2**22 <= of({"method": "zscore"}) < 10 * 2**22 + 1  # of −2^10 … 2^10


def test_no_clipped_patient_changes_a_number_by_more_than_its_sensitivity() -> None:
    draw = random.Random(5)  # noqa: S311
    study = a_study()
    top = 3 * study.unit
    for _ in range(300):
        name, count = draw.choice(["lesion", "liver"]), draw.randrange(1, 300)
        x = draw.choice(
            [[top] * count, [-top] * count, [draw.randrange(-top, top + 1) for _ in range(count)], [7] * count]
        )
        total = sum(x) * study.window.denominator
        one = ClassTotals(count, total, sum(x), sum(v * v for v in x), 1, tuple(x[:2]))
        mine = clipped(LocalTotals({name: one}), study)[name]
        least = min(count, 40 if name == "lesion" else 90)
        assert mine.voxels == least
        mean = draw.choice([Fraction(3), Fraction(-3), Fraction(draw.randrange(-999, 999), 333)])
        changes = {"voxels": mine.voxels, "patients": 1, "sum": mine.sum, "sdsum": mine.sdsum(mean, study.unit)}
        for quantity, change in changes.items():
            assert abs(change) <= sensitivity(study, quantity, name, mean)
        if count <= least:
            assert mine == one
        else:
            assert [abs(a - Fraction(b * least, count)) < 1 for a, b in zip(mine.statistics, x[:2], strict=True)] == [
                True
            ] * len(mine.statistics)


def naive_patient(study: Study, rng: np.random.Generator, style: str) -> tuple[int, dict[str, tuple[int, ...]]]:
    """n and the additive statistics of one patient, by the definitions: a cube, its features at their ends or not."""
    size = int(rng.integers(1, 5))
    x = (
        np.full((size,) * 3, 3 * study.unit)
        if style == "ends"
        else rng.integers(-3 * study.unit, 3 * study.unit, (size,) * 3)
    )
    most = [feature_bound(feature, study) for feature in study.feature]
    features = [np.full(x.size, end) if style == "ends" else rng.integers(-end, end, x.size) for end in most]
    levels = np.full(x.shape, 2) if style == "ends" else rng.integers(0, 4, x.shape)
    counts = pairs(levels, 3, planar=study.statistics.glcm.planar)
    return x.size, additive(x.ravel(), features, counts, study)


@pytest.mark.parametrize("planar", [False, True])
def test_no_patient_changes_additive_statistics_by_more_than_their_sensitivity(planar: bool) -> None:
    tables = ASKED | {"statistics": ASKED["statistics"] | {"glcm": ASKED["statistics"]["glcm"] | {"planar": planar}}}
    study, rng = a_study(privacy={"voxels_per_patient": 27}, **tables), np.random.default_rng(3)
    reached = dict.fromkeys((block.name for block in layout(study)), 0.0)
    for number in range(40):
        voxels, statistics = naive_patient(study, rng, "ends" if number % 2 else "any")
        one = LocalTotals({"lesion": ClassTotals(voxels, patients=1, statistics=statistics)})
        mine = clipped(one, study)["lesion"]
        assert fault(mine.statistics, mine.voxels, study) is None
        for block in layout(study):
            changes = [abs(value) for value in unpack(mine.statistics, study)[block.name]]
            most = sensitivities(study, block, "lesion")
            together = [sum(changes)] if block.name in ("histogram", "glcm") else changes
            assert all(change <= bound for change, bound in zip(together, most, strict=True))
            reached[block.name] = max(reached[block.name], *(a / b for a, b in zip(together, most, strict=True)))
    assert reached.pop("glcm") > 0.4  # in a cube of 3 or 4 voxels most lie at a face
    assert reached == dict.fromkeys(reached, 1.0)


def test_without_differential_privacy_no_patient_is_clipped() -> None:
    study = Study.of(name="t", classes={"lesion": 1})
    patient = LocalTotals({"lesion": ClassTotals(10**6, 5, 5, 5, 1)})
    assert clipped(patient, study) is patient
    with pytest.raises(ValueError, match="no differential privacy"):
        cost(study)
    with pytest.raises(ValueError, match="depends on μ"):
        sensitivity(a_study(), "sdsum", "lesion")


def test_so_many_parties_are_honest_as_are_not_allowed_to_collude() -> None:
    assert honest(a_study("abcdefg", privacy={"voxels_per_patient": 9, "collusion": 3})) == 4
    assert honest(a_study(party=[], privacy={"voxels_per_patient": 9, "min_parties": 5})) == 4


# What is read.


@pytest.mark.parametrize("table", [{"epsilon": 6.0}, GAUSSIAN | {"epsilon": 6.0}])
def test_intervals_hold_the_true_number_as_often_as_they_say(table: dict) -> None:
    study = a_study(differential_privacy=table)
    noise, source = noise_of(study, "voxels", "lesion"), SEED().randbytes
    half = half_width(noise, 5)
    drawn = [sum(noise.share(source) for _ in range(5)) for _ in range(2000)]
    inside = sum(abs(one) <= half for one in drawn)
    assert 1860 <= inside <= 1990  # 95% and a little more; six deviations away from 95% below
    assert np.std(drawn) == pytest.approx(deviation(noise, 5), rel=0.12)


def test_the_interval_of_a_mean_follows_from_those_of_n_and_sum() -> None:
    study = a_study(differential_privacy={"epsilon": 100.0})
    (few, many), (low, high) = intervals(study, "lesion", 10_000, Fraction(5000))
    assert few < 10_000 < many
    assert low < Fraction(1, 2) < high
    assert high - low < Fraction(1, 10)
    assert intervals(study, "lesion", 2, Fraction(1))[1] == (-3, 3)  # n may be 0: any mean may be
    fine = LaplaceNoise(10**9, 3, Fraction(1, 10**6))
    assert half_width(fine, 3) == pytest.approx(3 * 10**15, rel=0.01)  # e^(−3) is 0.05


# Studies.


def test_a_study_without_the_table_is_the_same_as_ever() -> None:
    assert Study.of(name="l", classes={"a": 1}).digest == (
        "f5db4340babf3fd1830f3fe5726f14aa5b287a94cdddbaa1ed880dbda354c758"
    )
    assert a_study().digest != a_study(differential_privacy={"epsilon": 1.5}).digest


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"differential_privacy": {"epsilon": 0.0}}, "epsilon: expected 0.001 to 100, got 0.0: 1 is usual"),
        ({"differential_privacy": {"epsilon": float("nan")}}, "epsilon: expected 0.001 to 100"),
        ({"differential_privacy": {"epsilon": 1.0, "delta": 1e-6}}, 'mechanism "laplace" needs none'),
        ({"differential_privacy": {"epsilon": 1.0, "mechanism": "gaussian"}}, 'mechanism "gaussian" needs one'),
        ({"differential_privacy": GAUSSIAN | {"delta": 0.1}}, "got 0.1: write far less than one in all patients"),
        ({"differential_privacy": {"epsilon": 1.0, "unit": "voxel"}}, "unit"),
        ({"privacy": {}}, "voxels_per_patient: differential privacy needs it"),
        ({"privacy": {"voxels_per_patient": {"lesion": 5}}}, "a number for each of lesion, liver, got lesion: name"),
        (
            {"privacy": {"voxels_per_patient": 10**11}},
            "more voxels than bounds.voxels_per_party = 10000000000: lower it, or raise the bound",
        ),
        ({"differential_privacy": None}, "only differential privacy uses it"),
        ({"evaluate": {"model": "m.json", "digest": "0" * 64}}, "evaluate: differential privacy does not cover it"),
    ],
)
def test_studies_that_cannot_keep_what_they_promise_are_refused(tables: dict, said: str) -> None:
    with pytest.raises(StudyError, match=said):
        a_study(**tables)


def test_a_table_that_comes_later_is_refused_until_it_has_noise() -> None:
    """Whatever a study may ask for one day is not released without noise because nobody thought of it."""
    from voxring.study.faults import _NOISY_TABLES, _noise_faults
    from voxring.study.tables import Additive

    assert set(_NOISY_TABLES["study"]) <= {field.name for field in msgspec.structs.fields(Study)}
    Further = msgspec.defstruct("Further", [("texture", int, 0)], bases=(Additive,), frozen=True, kw_only=True)
    faults = _noise_faults(msgspec.structs.replace(a_study(), statistics=Further(moments=2, texture=1)))
    assert [key for key, _ in faults] == ["statistics.texture"]
    Later = msgspec.defstruct(
        "Later", [("more", dict, msgspec.field(default_factory=dict))], bases=(Study,), frozen=True, kw_only=True
    )
    tables = {field.name: getattr(a_study(), field.name) for field in msgspec.structs.fields(Study)}
    assert list(_noise_faults(Later(**tables))) == []
    assert [key for key, _ in _noise_faults(Later(**tables, more={"landmarks": 1}))] == ["more"]


def test_no_float_enters_samplers_and_accounting() -> None:
    study = a_study(differential_privacy=GAUSSIAN)
    for quantity, mechanism in product(QUANTITIES, (study, a_study())):
        noise = noise_of(mechanism, quantity, "lesion", Fraction(1, 3))
        kinds = {type(value) for value in (noise.share(SEED().randbytes), noise.tail, noise.sensitivity)}
        assert kinds == {int}
        exact = (noise.rho, noise.variance) if isinstance(noise, GaussianNoise) else (noise.gamma, noise.epsilon)
        assert all(isinstance(value, int | Fraction) for value in exact)
    assert isinstance(part(study), Fraction)
    assert isinstance(accounting.rho_of(cost(study)), Fraction)
