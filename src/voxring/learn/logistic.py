"""Logistic regression by Newton steps, each of which needs one sum over all voxels and nothing else of them.

The researcher sends weights; each party answers with the integers of `local_step`; their sum, which a secure sum may
make, goes to `Newton.update`, which says what weights to send next. Whatever the split of the voxels among parties,
the sums are the same integers, and with them every weight, bit for bit.

What is minimised is that of scikit-learn: C Σ −log p(class of the voxel) + ½ Σ (coefficients)², intercepts free. Two
classes have one score, that of the second; more have one each, and their softmax.

What each step reveals beyond the moments: the gradient and the Hessian, at weights that all members know. That is
`width` numbers more for each class and step. docs/classifiers.md says more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt

from voxring.errors import ModelError
from voxring.learn.discriminant import Discriminant
from voxring.learn.exact import dot

BITS = 40
"""Probabilities, and products of two, are rounded for each voxel to multiples of 2^-40, half to even."""

ONE = 1 << BITS

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Weights:
    """What R sends: public numbers.

    Attributes
    ----------
    units : tuple of int or Fraction
        Of each feature: its integer x stands for x / unit. Powers of two; a fraction where it is below 1.
    centre : tuple of int
        Taken off each feature's integers first: near their mean, so that scores lose no digits.
    rows : tuple of tuples of float
        For each score its intercept, and the coefficient of each feature's value.
    """

    units: tuple[int | Fraction, ...]
    centre: tuple[int, ...]
    rows: tuple[tuple[float, ...], ...]

    @classmethod
    def zero(cls, classes: int, units: Sequence[int | Fraction], centre: Sequence[int]) -> Weights:
        """Where Newton's method starts: every class has the same probability."""
        scores = 1 if classes == 2 else classes
        return cls(tuple(units), tuple(centre), ((0.0,) * (len(units) + 1),) * scores)

    @property
    def discriminant(self) -> Discriminant:
        """The same as scores of all classes, for `Discriminant.scores` and the kernel."""
        rows = np.array(self.rows if len(self.rows) > 1 else ((0.0,) * len(self.rows[0]), self.rows[0]))
        classes, features = rows.shape[0], rows.shape[1] - 1
        centre = np.array([float(c / unit) for c, unit in zip(self.centre, self.units, strict=True)])
        empty = np.zeros((classes, 0))
        return Discriminant(
            np.tile(centre, (classes, 1)),
            np.ascontiguousarray(rows[:, 1:]),
            np.ascontiguousarray(rows[:, 0]),
            empty.reshape(classes, 0, features),
            empty,
        )


def width(scores: int, features: int) -> int:
    """How many integers a step sums: a gradient, and the upper triangles of a Hessian."""
    size = features + 1
    return scores * size + scores * (scores + 1) // 2 * (size * (size + 1) // 2)


def local_step(features: Integers, places: npt.NDArray[np.integer[Any]], weights: Weights) -> tuple[int, ...]:
    """Sum one party's voxels at given weights. The answers of all parties add up elementwise.

    With x the centred integers of a voxel, preceded by a 1, and p its probabilities, rounded to multiples of 2^-40:
    Σ (p_m − [class is m]) x_i for every score m and every i; then Σ p_m ([m = l] − p_l) x_i x_j, for m <= l and i <= j.
    All over 2^40, and over the units of the features. The scores are IEEE additions and multiplications in a fixed
    order, the exponential is `voxring.kernels.cpu.classify.exponential`: the same integers on every machine.

    Parameters
    ----------
    features : (n, F) array of integers
        A row for each voxel, such as of `voxring.features.feature_maps`.
    places : (n,) array of integers
        The class of each voxel: its place, from 0.
    weights : Weights

    Returns
    -------
    tuple of int
        `width` of them.

    Examples
    --------
    >>> voxels, places = np.array([[1], [3]]), np.array([0, 1])
    >>> [value / 2**40 for value in local_step(voxels, places, Weights.zero(2, [1], [2]))]
    [0.0, -1.0, 0.5, 0.0, 0.5]
    """
    x = np.asarray(features, dtype=np.int64) - np.array(weights.centre, dtype=np.int64)
    chances = _probabilities(x, weights)
    own = [np.asarray(places) == m for m in range(chances.shape[1])]
    scores = list(range(chances.shape[1]))[-len(weights.rows) :]  # of two classes the second alone
    exact = np.concatenate([np.ones((len(x), 1), dtype=object), x.astype(object)], axis=1)
    found: list[int] = []
    for m in scores:
        found += list(_fixed(chances[:, m] - own[m]) @ exact)
    for m in scores:
        for k in scores[scores.index(m) :]:
            bend = _fixed(chances[:, m] * ((m == k) - chances[:, k]))
            for i in range(exact.shape[1]):
                found += list((bend * exact[:, i]) @ exact[:, i:])
    return tuple(int(value) for value in found)


@dataclass(frozen=True, slots=True)
class Newton:
    """Where the minimisation stands; R alone needs it. Frozen: `update` returns the next.

    A step that overshoots, which the gradient at its end tells, is halved: no sum but the gradient and the Hessian is
    ever asked for.

    Attributes
    ----------
    weights : Weights
        Where the next sums are to be taken, or, once ``done``, the answer.
    strength : float
        C, the inverse of the penalty.
    done : bool
    steps : int
        How many sums were used.
    """

    weights: Weights
    strength: float = 1.0
    done: bool = False
    steps: int = 0
    base: tuple[float, ...] = ()
    direction: tuple[float, ...] = ()
    slope: Fraction = Fraction()

    def update(self, sums: Sequence[int]) -> Newton:
        """Take the sums of all parties at ``weights``.

        Raises
        ------
        ModelError
            The Hessian is singular: a feature is constant, or the penalty far too weak.
        """
        gradient, hessian = self._derivatives(sums)
        here = tuple(value for row in self.weights.rows for value in row)
        if self.direction:
            slope = dot(gradient, [Fraction(d) for d in self.direction])
            if slope > -self.slope / 2:  # of before: it is negative
                return self._to(tuple((a + b) / 2 for a, b in zip(self.base, here, strict=True)))
        direction = _solve([[float(x) for x in row] for row in hessian], [-float(x) for x in gradient])
        end = tuple(a + b for a, b in zip(here, direction, strict=True))
        slope = dot(gradient, [Fraction(d) for d in direction])
        scale, size = 1 + max(map(abs, here)), max(map(abs, direction))
        before = max(map(abs, self.direction)) if self.direction else inf
        # The last steps shrink as squares do, until the rounding of probabilities is all that moves them.
        done = size <= 1e-9 * scale or (size <= 1e-5 * scale and size >= before / 2)
        return replace(self._to(end), base=here, direction=direction, slope=slope, done=done)

    def _to(self, point: tuple[float, ...]) -> Newton:
        size = len(self.weights.rows[0])
        rows = tuple(point[at : at + size] for at in range(0, len(point), size))
        return replace(self, weights=replace(self.weights, rows=rows), steps=self.steps + 1)

    def _derivatives(self, sums: Sequence[int]) -> tuple[list[Fraction], list[list[Fraction]]]:
        """The gradient and the Hessian of what is minimised, divided by C, over all weights in their order."""
        scores, size = len(self.weights.rows), len(self.weights.rows[0])
        if len(sums) != width(scores, size - 1):
            raise ModelError(f"logistic: expected {width(scores, size - 1)} sums, got {len(sums)}")
        penalty = 1 / Fraction(self.strength)
        units = (1, *self.weights.units)
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
        for m in range(scores):
            for i in range(1, size):
                gradient[m * size + i] += penalty * Fraction(self.weights.rows[m][i])
                hessian[m * size + i][m * size + i] += penalty
            # The same number added to all intercepts changes no probability: among several, their sum stays.
            for k in range(scores if scores > 1 else 0):
                hessian[m * size][k * size] += 1
        return gradient, hessian


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


def _fixed(values: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    return np.rint(np.ldexp(values, BITS)).astype(np.int64).astype(object)


def _probabilities(x: Integers, weights: Weights) -> npt.NDArray[np.float64]:
    from voxring.kernels.cpu.classify import exponential

    values = [x[:, i] * float(1 / Fraction(unit)) for i, unit in enumerate(weights.units)]
    scores = [np.zeros(len(x))] if len(weights.rows) == 1 else []
    for row in weights.rows:
        score = np.full(len(x), row[0])
        for weight, value in zip(row[1:], values, strict=True):
            score += weight * value
        scores.append(score)
    best = np.maximum.reduce(scores)
    parts = np.empty((len(scores), len(x)))
    total, room = np.zeros(len(x)), np.empty(len(x))
    for score, part in zip(scores, parts, strict=True):
        exponential(score - best, part, len(x), room)
        total += part
    return np.ascontiguousarray((parts / total).T)
