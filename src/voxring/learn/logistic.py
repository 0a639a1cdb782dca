"""Logistic regression by Newton steps, each of which needs one sum over all voxels and nothing else of them.

The researcher sends weights, which are integers; each party answers with the integers of `local_step`; their sum, which
a secure sum makes, goes to `Newton.update`, which says what weights to send next. No float enters on the way from
weights to sums: the exponential is a product of four integers of tables, each step of it rounded by integer arithmetic.
So the sums are the same integers on every machine, for any split of the voxels among parties, and with them every
weight.

What is minimised is that of scikit-learn: C Σ −log p(class of the voxel) + ½ Σ (coefficients)², intercepts free. Two
classes have one score, that of the second; more have one each, and their softmax.

What each step reveals beyond the moments: the gradient and the Hessian, at weights that all members know. That is
`width` numbers more for each step. docs/classifiers.md says more.

`step_totals` is a party's part of a step, `Newton` the researcher's, and `fit` does both in the open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from voxring.errors import ModelError
from voxring.learn.exact import dot
from voxring.statistics import STEP_BITS, padded, unpack
from voxring.study import AtWeights, Study
from voxring.study.bounds import feature_bound
from voxring.study.faults import FEATURE_BITS, MOST_FEATURES
from voxring.totals import LocalTotals, Statistics

BITS = STEP_BITS
"""Probabilities, and products of two, are multiples of 2^-40."""
ONE = 1 << BITS
SCORE_BITS = 32
"""Scores and intercepts are multiples of 2^-32."""
WEIGHT_BITS = 72
"""A coefficient W adds W · x / 2^72 to the score of a voxel whose feature has the integer x."""
LARGEST = 1 << 62
"""Scores and intercepts stay below it, coefficients below 2^16 times as much."""
WIDEST = 1 << FEATURE_BITS
"""Features' integers stay below it."""
SMALL_BITS = 60
"""Steps that change the score of a voxel by 2^-30, in the mean of squares weighted with p(1 − p), are the last."""
LOGISTIC = "logistic regression"
"""What a view calls what is learned of all classes together."""

_STEP = 8
"""Bits of a difference of scores that one table is for."""
_FAR = 28
"""Differences from here on have the probability 0: e^-28 is below 2^-40."""

Integers = npt.NDArray[np.int64]
Rows = tuple[tuple[int, ...], ...]
"""Weights, as R sends them: for each score its intercept over 2^32, and the coefficient of each feature over 2^72."""


def zero(classes: int, features: int) -> Rows:
    """Where Newton's method starts: every class has the same probability."""
    return ((0,) * (features + 1),) * (1 if classes == 2 else classes)


def width(scores: int, features: int) -> int:
    """How many integers a step sums: a gradient, and the upper triangles of a Hessian."""
    size = features + 1
    return scores * size + scores * (scores + 1) // 2 * (size * (size + 1) // 2)


def local_step(features: Integers, places: npt.NDArray[np.integer[Any]], rows: Rows, workers: int = 1) -> list[int]:
    """Sum one party's voxels at given weights. The answers of all parties add up elementwise.

    With x the integers of a voxel's features, preceded by a 1, and p its probabilities: Σ (p_m − [class is m]) x_i for
    every score m and every i; then Σ p_m ([m = l] − p_l) x_i x_j, for m <= l and i <= j. All over 2^40, and over the
    units of the features. Each of these is an integer for each voxel, as follows; the sums are exact.

    - score: the exact Σ W x, rounded to a multiple of 2^-32, half up;
    - d, how far it is below the largest of the voxel, and E(d), that of e^-d: the product of the table's numbers for
      d / 2^24 (at most 28 · 256), and for the three groups of 8 bits below, over 2^40, rounded half up after each;
    - p_m: E_m / Σ E, rounded to a multiple of 2^-40, half up;
    - p_m p_l, rounded likewise.

    Parameters
    ----------
    features : (n, F) array of integers
        A row for each voxel, such as of `voxring.features.feature_maps`; below 2^40 in size.
    places : (n,) array of integers
        The class of each voxel: its place, from 0.
    rows : Rows
        One for two classes, else one for each.
    workers : int
        Threads of this call. The sums do not depend on it.

    Raises
    ------
    ModelError
        A feature is as large as 2^40, there are more than 64, or scores leave what 62 bits hold.

    Examples
    --------
    >>> voxels, places = np.array([[-1], [1]]), np.array([0, 1])
    >>> [value / 2**40 for value in local_step(voxels, places, zero(2, 1))]
    [0.0, -1.0, 0.5, 0.0, 0.5]
    """
    return step_of(np.ascontiguousarray(np.asarray(features, dtype=np.int64).T), places, rows, workers)


def step_of(x: Integers, places: npt.NDArray[np.integer[Any]] | int, rows: Rows, workers: int) -> list[int]:
    """Do as `local_step`, of features by row; ``places`` may be one for all voxels."""
    from voxring.kernels.cpu.additive import weighted_gram

    values = np.concatenate([np.ones((1, x.shape[1]), np.int64), x])
    chances = probabilities(x, rows)
    used = range(len(chances))[-len(rows) :]  # of two classes the second alone
    found: list[int] = []
    for m in used:
        apart = chances[m] - ONE * (np.asarray(places) == m)
        found += weighted_gram(values, apart, workers, rows=1)
    for m in used:
        for k in used[used.index(m) :]:
            bend = _times(chances[m], ONE - chances[k]) if m == k else -_times(chances[m], chances[k])
            found += weighted_gram(values, bend, workers, rows=len(values))
    return found


def probabilities(x: Integers, rows: Rows) -> list[Integers]:
    """Of each class, for voxels whose features are the columns of x, over 2^40, as `local_step` defines them."""
    scores = [_score(x, row) for row in rows]
    if len(rows) == 1:
        scores.insert(0, np.zeros(x.shape[1], np.int64))
    best = np.maximum.reduce(scores)
    parts = [_exponential(best - score) for score in scores]
    total = np.add.reduce(parts)
    return [_quotient(part, total) for part in parts]


def _score(x: Integers, row: Sequence[int]) -> Integers:
    """Intercept + Σ W x over 2^40, half up: W is cut into digits of 16 bits, so that no product leaves 63."""
    intercept, *coefficients = row
    largest = [int(np.abs(one).max(initial=0)) for one in x]
    if len(x) > MOST_FEATURES or max(largest, default=0) >= WIDEST:
        raise ModelError("logistic: expected at most 64 features of integers below 2^40: use fewer fraction_bits")
    if not fits(row, largest):
        raise ModelError("logistic: with these weights scores leave the range of 62 bits: lower logistic.strength")
    digits = [np.zeros(x.shape[1], np.int64) for _ in range(5)]
    for w, one in zip(coefficients, x, strict=True):
        for k in range(5):
            digits[k] += (w >> 16 * k if k == 4 else (w >> 16 * k) & 0xFFFF) * one
    # ⌊(Σ digit_k 2^16k + 2^39) / 2^40⌋, carry by carry; what overflows on the way comes back.
    carried = (digits[1] + (digits[0] >> 16)) >> 16
    carried = (digits[2] + carried + (1 << 7)) >> 8
    scored: Integers = (digits[4] << 24) + (digits[3] << 8) + carried + intercept
    return scored


def fits(row: Sequence[int], largest: Sequence[int]) -> bool:
    """Whether weights of a score are small enough for all voxels whose features are no larger."""
    intercept, *coefficients = row
    reach = sum(abs(w) * one for w, one in zip(coefficients, largest, strict=True)) >> WEIGHT_BITS - SCORE_BITS
    return abs(intercept) + reach < LARGEST and all(abs(w) < LARGEST << 16 for w in coefficients)


@cache
def _tables() -> tuple[Integers, ...]:
    """e^-(k / 2^8), e^-(k / 2^16), e^-(k / 2^24) and e^-(k / 2^32) over 2^40, to the nearest: 28 · 256 and 3 · 256."""
    return tuple(
        np.array(powers(Fraction(1, 1 << _STEP * place), _FAR << _STEP if place == 1 else 1 << _STEP), np.int64)
        for place in range(1, 5)
    )


def powers(step: Fraction, count: int) -> list[int]:
    """e^(−k · step) over 2^40 for k below count, to the nearest: the series of e^-step, and products of 200 bits.

    Examples
    --------
    >>> powers(Fraction(1), 2)[1] == round(0.36787944117144233 * 2**40)
    True
    """
    bits = 200
    term, total, k = Fraction(1), Fraction(0), 0
    while abs(term) > Fraction(1, 1 << bits):
        total, k = total + term, k + 1
        term *= -step / k
    factor, value, found = round(total * (1 << bits)), 1 << bits, []
    for _ in range(count):
        found.append((value + (1 << bits - BITS - 1)) >> bits - BITS)
        value = value * factor >> bits
    return found


def _exponential(below: Integers) -> Integers:
    """e^-(below / 2^32) over 2^40; 0 from 28 on."""
    near = np.minimum(below, (_FAR << SCORE_BITS) - 1)
    first, *others = _tables()
    value = first[near >> 3 * _STEP]
    for place, table in enumerate(others, 1):
        value = _times(value, table[(near >> (3 - place) * _STEP) & 0xFF])
    return np.where(below < _FAR << SCORE_BITS, value, 0)


def _times(one: Integers, other: Integers) -> Integers:
    """one · other over 2^40, half up, of numbers from 0 to 2^40: the second in two halves of 20 bits."""
    half = BITS // 2
    high, low = other >> half, other & ((1 << half) - 1)
    product: Integers = (one * high + ((one * low + (1 << BITS - 1)) >> half)) >> half
    return product


def _quotient(part: Integers, total: Integers) -> Integers:
    """part / total over 2^40, half up, by long division; part <= total < 2^47."""
    found, rest = np.zeros_like(part), part
    for bits in (16, 16, 8):
        rest = rest << bits
        found, rest = (found << bits) + rest // total, rest % total
    return found + (2 * rest >= total)


@dataclass(frozen=True, slots=True)
class Newton:
    """Where the minimisation stands; R alone needs it. Frozen: `update` returns the next.

    A step that overshoots, which the gradient at its end tells, is halved: no sum but the gradient and the Hessian is
    ever asked for. R solves in float64, round a centre that it has of the moments; what it sends is rounded to the
    grid of weights, and what follows is exact again.

    Attributes
    ----------
    rows : Rows
        Where the next sums are to be taken, or, once ``done``, the answer.
    units : tuple of int or Fraction
        Of each feature: its integer x stands for x / unit. Powers of two; a fraction where it is below 1.
    centre : tuple of int
        Near the mean of each feature's integers: there, R's equations are well conditioned.
    voxels : int
        n, of all classes together.
    strength : float
        C, the inverse of the penalty.
    largest : tuple of int
        The largest size of each feature's integers.
    done : bool
        Whether the rows are the answer: the step that led to them was so small that the next would change nothing.
    steps : int
        How many sums were used.
    """

    rows: Rows
    units: tuple[int | Fraction, ...]
    centre: tuple[int, ...]
    voxels: int
    strength: float = 1.0
    largest: tuple[int, ...] = ()
    done: bool = False
    steps: int = 0
    base: tuple[Fraction, ...] = ()
    direction: tuple[float, ...] = ()
    slope: Fraction = Fraction()

    def update(self, sums: Sequence[int]) -> Newton:
        """Take the sums of all parties at ``rows``.

        Raises
        ------
        ModelError
            The Hessian is singular: a feature is constant, or the penalty far too weak. Or weights grow too large.
        """
        here = self._point()
        gradient, hessian = self._derivatives(sums, here)
        if self.direction:
            slope = dot(gradient, [Fraction(d) for d in self.direction])
            if slope > -self.slope / 2:  # of before: it is negative
                return self._to(tuple((a + b) / 2 for a, b in zip(self.base, here, strict=True)))
        direction = _solve([[float(x) for x in row] for row in hessian], [-float(x) for x in gradient])
        end = tuple(a + Fraction(b) for a, b in zip(here, direction, strict=True))
        slope = dot(gradient, [Fraction(d) for d in direction])
        # −slope is Σ p(1 − p) (change of score)², and the penalty's share: exact, and the same in any units. Steps
        # shrink as squares do: after this one, the next would move scores by less than their rounding.
        done = -slope * (1 << SMALL_BITS) <= self.voxels
        return replace(self._to(end), base=here, direction=direction, slope=slope, done=done)

    @property
    def weights(self) -> tuple[tuple[Fraction, ...], ...]:
        """For each score its intercept, and the coefficient of each feature's value."""
        return tuple(
            (
                Fraction(row[0], 1 << SCORE_BITS),
                *(Fraction(w) * unit / (1 << WEIGHT_BITS) for w, unit in zip(row[1:], self.units, strict=True)),
            )
            for row in self.rows
        )

    @property
    def _middle(self) -> list[Fraction]:
        return [Fraction(c) / unit for c, unit in zip(self.centre, self.units, strict=True)]

    def _point(self) -> tuple[Fraction, ...]:
        """The weights round the centre, in one row: intercepts are scores there."""
        return tuple(
            value
            for intercept, *coefficients in self.weights
            for value in (intercept + dot(coefficients, self._middle), *coefficients)
        )

    def _to(self, point: Sequence[Fraction]) -> Newton:
        size, rows = len(self.units) + 1, []
        for at in range(0, len(point), size):
            coefficients = point[at + 1 : at + size]
            scaled = [round(w / unit * (1 << WEIGHT_BITS)) for w, unit in zip(coefficients, self.units, strict=True)]
            intercept = point[at] - sum(
                (Fraction(w * c, 1 << WEIGHT_BITS) for w, c in zip(scaled, self.centre, strict=True)), Fraction()
            )
            rows.append((round(intercept * (1 << SCORE_BITS)), *scaled))
        if not all(fits(row, self.largest or (0,) * (size - 1)) for row in rows):
            raise ModelError("logistic: the weights grow without end: lower the strength, or leave a feature out")
        return replace(self, rows=tuple(rows), steps=self.steps + 1)

    def _derivatives(
        self, sums: Sequence[int], here: Sequence[Fraction]
    ) -> tuple[list[Fraction], list[list[Fraction]]]:
        """The gradient and the Hessian of what is minimised, divided by C, over all weights round the centre."""
        scores, size = len(self.rows), len(self.units) + 1
        if len(sums) != width(scores, size - 1):
            raise ModelError(f"logistic: expected {width(scores, size - 1)} sums, got {len(sums)}")
        penalty = 1 / Fraction(self.strength)
        units = (1, *self.units)
        given = iter(sums)
        gradient = [Fraction(next(given)) / (units[i] * ONE) for _ in range(scores) for i in range(size)]
        hessian = [[Fraction()] * (scores * size) for _ in range(scores * size)]
        for m in range(scores):
            for k in range(m, scores):
                for i in range(size):
                    for j in range(i, size):
                        value = Fraction(next(given)) / (units[i] * units[j] * ONE)
                        for a, b in ((m * size + i, k * size + j), (m * size + j, k * size + i)):
                            hessian[a][b] = hessian[b][a] = value
        middle = self._middle
        for m in range(scores):
            _centre(gradient, m * size, middle)
            _centre(hessian, m * size, middle)
        for row in hessian:
            for m in range(scores):
                _centre(row, m * size, middle)
        for m in range(scores):
            for i in range(1, size):
                gradient[m * size + i] += penalty * here[m * size + i]
                hessian[m * size + i][m * size + i] += penalty
            # The same number added to all intercepts changes no probability: among several, their sum stays.
            for k in range(scores if scores > 1 else 0):
                hessian[m * size][k * size] += 1
        return gradient, hessian


def _centre(numbers: list[Any], first: int, middle: Sequence[Fraction]) -> None:
    """Of sums over (1, x) make those over (1, x − middle), in place; of numbers, or of rows of them."""
    ones = numbers[first]
    for i, value in enumerate(middle, first + 1):
        if isinstance(ones, list):
            numbers[i] = [number - value * one for number, one in zip(numbers[i], ones, strict=True)]
        else:
            numbers[i] -= value * ones


def _solve(matrix: list[list[float]], right: list[float]) -> tuple[float, ...]:
    """Solve a positive definite system, by its L D Lᵀ factors in a fixed order: the same bits on every machine."""
    size = len(right)
    lower = [[0.0] * size for _ in range(size)]
    pivots: list[float] = []
    forward: list[float] = []
    for i in range(size):
        for j in range(i):
            lower[i][j] = (matrix[i][j] - _sum(lower[i][k] * pivots[k] * lower[j][k] for k in range(j))) / pivots[j]
        pivots.append(matrix[i][i] - _sum(lower[i][k] * lower[i][k] * pivots[k] for k in range(i)))
        if not pivots[i] > 0:
            raise ModelError("logistic: the Hessian is singular: a feature is constant, or C is too large")
        forward.append(right[i] - _sum(lower[i][k] * forward[k] for k in range(i)))
    found = [a / b for a, b in zip(forward, pivots, strict=True)]
    for i in reversed(range(size)):
        found[i] -= _sum(lower[k][i] * found[k] for k in range(i + 1, size))
    return tuple(found)


def _sum(values: Iterable[float]) -> float:
    """In order: since Python 3.12 its own ``sum`` of floats is another."""
    total = 0.0
    for value in values:
        total += value
    return total


# Over a study.


def largest(study: Study) -> tuple[int, ...]:
    """The largest size of each feature's integers, whatever the images."""
    return tuple(feature_bound(feature, study) for feature in study.feature)


def begin(study: Study, released: Mapping[str, Statistics]) -> Newton | None:
    """Return where R begins once it knows the moments; None where fewer than two classes are released."""
    if study.logistic is None or len(released) < 2:
        return None
    voxels = sum(one.voxels for one in released.values())
    sums = [unpack(one.additive, study)["feature_sums"] for one in released.values()]
    count = len(study.feature)
    return Newton(
        zero(len(released), count),
        (study.unit,) * count,
        tuple(round(Fraction(sum(column), voxels)) for column in zip(*sums, strict=True)),
        voxels,
        study.logistic.strength,
        largest(study),
    )


def step_totals(totals: LocalTotals, study: AtWeights) -> list[int]:
    """Add up the sums of a step over the classes."""
    mine = [padded(totals[name].statistics, totals[name].voxels, study) for name in study.classes]
    return [sum(column) for column in zip(*mine, strict=True)]


@dataclass(frozen=True, slots=True)
class Fitted:
    """What the steps came to.

    Attributes
    ----------
    rows : Rows
        The weights; none where nothing could be made.
    steps : int
        How many sums were used.
    converged : bool
        Whether the weights are the optimum.
    """

    rows: Rows
    steps: int
    converged: bool


def fit(study: Study, released: Mapping[str, Statistics], sums_at: Callable[[AtWeights], LocalTotals]) -> Fitted:
    """Take the steps in the open: what a session must equal to the bit.

    Parameters
    ----------
    study : Study
        With ``logistic``, and the landmarks, if the parties agreed on them.
    released : mapping of class name to Statistics
        Without those that are withheld.
    sums_at : callable
        Everybody's totals at a step.
    """
    newton, steps = begin(study, released), 0
    while newton is not None and goes_on(newton, study):
        at, steps = study.at(newton.rows, released), steps + 1
        try:
            newton = newton.update(step_totals(sums_at(at), at))
        except ModelError:
            newton = None
    return fitted(newton, steps)


def goes_on(newton: Newton, study: Study) -> bool:
    """Whether another step is to be taken."""
    return study.logistic is not None and not newton.done and newton.steps < study.logistic.steps


def fitted(newton: Newton | None, steps: int) -> Fitted:
    """Return what the steps came to."""
    return Fitted((), steps, False) if newton is None else Fitted(newton.rows, steps, newton.done)


def learned_of(done: Fitted) -> dict[tuple[str, str], int | tuple[int, ...]]:
    """What R learns at the end, as its view has it; `fitted_of` takes it out again."""
    weights = tuple(weight for row in done.rows for weight in row)
    return {
        ("steps", LOGISTIC): done.steps,
        ("converged", LOGISTIC): int(done.converged),
        ("weights", LOGISTIC): weights,
    }


def fitted_of(learned: Mapping[tuple[str, str], object], study: Study) -> Fitted | None:
    """Return what the steps came to, of a view of the researcher, or None where the study asks for none.

    Examples
    --------
    >>> tables = {"feature": [{"kind": "intensity"}], "statistics": {"gram": True}, "logistic": {}}
    >>> study = Study.of(name="t", classes={"a": 1, "b": 2}, bounds={"intensity": 9}, **tables)
    >>> done = Fitted(((1, 2),), 4, True)
    >>> fitted_of(learned_of(done), study) == done
    True
    """
    if study.logistic is None:
        return None
    steps, converged, weights = (learned.get((what, LOGISTIC)) for what in ("steps", "converged", "weights"))
    if not (isinstance(steps, int) and isinstance(converged, int) and isinstance(weights, tuple)):
        return Fitted((), 0, False)
    size = len(study.feature) + 1
    rows = tuple(weights[at : at + size] for at in range(0, len(weights), size))
    return Fitted(rows, steps, bool(converged))


def fitted_document(done: Fitted, study: Study) -> dict[str, object]:
    """Return what the result file says of the logistic regression, as JSON types."""
    told: dict[str, object] = {"steps": done.steps, "strength": study.logistic.strength if study.logistic else None}
    if not done.rows:
        few = "fewer than two classes are released, so there is nothing to tell apart"
        singular = "no weights fit: a feature is constant or follows from others, or strength is too large"
        return {"withheld": singular if done.steps else few, **told}
    weights = [
        [Fraction(row[0], 1 << SCORE_BITS), *(Fraction(w * study.unit, 1 << WEIGHT_BITS) for w in row[1:])]
        for row in done.rows
    ]
    return {
        "converged": done.converged,
        **told,
        "weights": [[[str(w.numerator), str(w.denominator)] for w in row] for row in weights],
        "weights_float": [[float(w) for w in row] for row in weights],
    }
