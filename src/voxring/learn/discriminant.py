"""Scores of the classes, made from exact sums: the numbers that a classifier is once it is fitted.

For every class k, with x the features of a voxel and o_k a point near where its voxels lie,

    score_k(x) = constant_k + linear_k · (x − o_k) − ½ Σ_r (whiten_k,r · (x − o_k) − offset_k,r)²

and the class of the highest score is predicted, the first of equal ones. All that does not depend on x is computed in
rationals and rounded once to float64; each o_k is a float64 itself, so where it lies changes no result. Definitions
and what they agree with: docs/classifiers.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import inf, isfinite, log, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from voxring.errors import ModelError
from voxring.learn.exact import Factor, Matrix, SingularError, dot
from voxring.learn.moments import Moments, fraction_of

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Discriminant:
    """The rounded numbers of a classifier of K classes and F features.

    Attributes
    ----------
    centres : (K, F) float64
        The points o.
    linear : (K, F) float64
    constants : (K,) float64
    whiten : (K, F, F) float64, lower triangular, or (K, 0, F)
        Without rows for classifiers whose scores are linear.
    offsets : (K, F) or (K, 0) float64
    probabilistic : bool
        Whether the scores are log posteriors, up to what all classes have in common: then a softmax of them are the
        probabilities.
    """

    centres: Floats
    linear: Floats
    constants: Floats
    whiten: Floats
    offsets: Floats
    probabilistic: bool = True

    def scores(self, features: Floats) -> Floats:
        """Scores of (n, F) float64 features, as (n, K).

        Each is a chain of additions and multiplications in a fixed order, as in `voxring.kernels.cpu.classify`: the
        same bits on every machine, however many voxels are scored at a time.
        """
        columns = np.ascontiguousarray(np.asarray(features, dtype=np.float64).T)
        found = np.empty((columns.shape[1], len(self.constants)))
        for k in range(len(self.constants)):
            z = columns - self.centres[k][:, None]
            score = np.full(columns.shape[1], self.constants[k])
            for j in range(len(z)):
                if self.linear[k, j] != 0:
                    score += self.linear[k, j] * z[j]
            for r in range(self.whiten.shape[1]):
                row = np.full(columns.shape[1], -self.offsets[k, r])
                for j in range(r + 1):
                    if self.whiten[k, r, j] != 0:
                        row += self.whiten[k, r, j] * z[j]
                score -= 0.5 * (row * row)
            found[:, k] = score
        return found


def naive_bayes(moments: Moments, *, priors: Sequence[float] | None = None, smoothing: float = 1e-9) -> Discriminant:
    """Gaussian naive Bayes: features are independent within a class, each with a normal distribution of its own.

    Parameters
    ----------
    priors : sequence of float, optional
        Probabilities of the classes; their shares of the voxels when left out.
    smoothing : float
        This share of the largest variance of a feature over all classes together is added to every variance.

    Raises
    ------
    ModelError
        A variance is zero, or the priors are impossible.
    """
    added = Fraction(smoothing) * max(moments.pooled_covariance()[i][i] for i in range(len(moments.features)))
    covariances = []
    for k in range(len(moments.classes)):
        own = moments.covariance(k)
        covariances.append(
            tuple(
                tuple(value + added if i == j else Fraction() for j, value in enumerate(row))
                for i, row in enumerate(own)
            )
        )
    return _normal(moments, covariances, priors)


def quadratic(
    moments: Moments, *, priors: Sequence[float] | None = None, shrinkage: float | str | None = None
) -> Discriminant:
    """Quadratic discriminant analysis: each class has a normal distribution of its own.

    Parameters
    ----------
    shrinkage : float, "oas" or None
        As of `linear`, for each class's own covariance.

    Raises
    ------
    ModelError
        A covariance is singular, or a setting is impossible.
    """
    covariances = [shrunk(moments.covariance(k), n, shrinkage) for k, n in enumerate(moments.counts)]
    return _normal(moments, covariances, priors)


def logistic(moments: Moments, *, weights: Sequence[Sequence[Sequence[str]]]) -> Discriminant:
    """Logistic regression, whose weights its secure Newton steps ended with (`voxring.learn.logistic`).

    Parameters
    ----------
    weights : sequence
        For each score its intercept, and the coefficient of each feature's value, as pairs of decimal strings. Of two
        classes the second alone has a score.

    Raises
    ------
    ModelError
        They are not as many as classes and features need.
    """
    rows = [[fraction_of(pair) for pair in row] for row in weights]
    scores = len(moments.classes) if len(moments.classes) > 2 else 1
    if [len(row) for row in rows] != [len(moments.features) + 1] * scores:
        raise ModelError(
            f"logistic: expected {scores} times the weights of {len(moments.features)} features and an intercept, got "
            "others: give the result of a study with [logistic]"
        )
    return of_weights(rows, [float(value) for value in moments.pooled_mean()])


def of_weights(rows: Sequence[Sequence[Fraction]], centre: Sequence[float]) -> Discriminant:
    """Scores that are linear, of exact weights; one row is that of the second of two classes."""
    size = len(centre)
    rows = rows if len(rows) > 1 else [[Fraction()] * (size + 1), *rows]
    at = [Fraction(value) for value in centre]
    empty = np.zeros((len(rows), 0))
    return Discriminant(
        np.tile(np.array(centre, dtype=np.float64), (len(rows), 1)),
        np.array([[float(w) for w in row[1:]] for row in rows]).reshape(len(rows), size),
        np.array([float(row[0] + dot(row[1:], at)) for row in rows]),
        empty.reshape(len(rows), 0, size),
        empty,
    )


def linear(
    moments: Moments, *, priors: Sequence[float] | None = None, shrinkage: float | str | None = None
) -> Discriminant:
    """Linear discriminant analysis: normal distributions of one covariance, the mean of those within the classes.

    Parameters
    ----------
    shrinkage : float, "oas" or None
        Between 0 and 1: how far each class's covariance is drawn towards a multiple of the identity of the same trace.
        "oas" takes what Chen et al. (2010) derive from the sums. That of Ledoit and Wolf needs sums of fourth powers,
        which hospitals do not send. Covariances then weigh as the priors do; without it, as the classes' counts.

    Raises
    ------
    ModelError
        The covariance is singular, or a setting is impossible.
    """
    shares = [Fraction(n, moments.count) for n in moments.counts]
    given = _priors(moments, priors)
    own = [shrunk(moments.covariance(k), n, shrinkage) for k, n in enumerate(moments.counts)]
    within = _mixed(own, shares if shrinkage is None else given)
    factor = _factor(within, moments, "within the classes")
    centre = [_rounded(x) for x in moments.pooled_mean()]
    exact = [Fraction(x) for x in centre]
    rows, constants = [], []
    for k in range(len(moments.classes)):
        apart = [mean - x for mean, x in zip(moments.mean(k), exact, strict=True)]
        row = factor.solve(apart)
        rows.append([_rounded(x) for x in row])
        constants.append(_log(given[k]) - _rounded(dot(row, apart) / 2))
    return _linear(centre, rows, constants)


def ridge(moments: Moments, *, alpha: float = 1.0) -> Discriminant:
    """Ridge regression on targets of 1 for a class and −1 for the others; the highest is predicted.

    With two classes there is one regression, and the first class's score is 0. Scores are no probabilities.

    Parameters
    ----------
    alpha : float
        The weight of the squared coefficients. It depends on the features' units.

    Raises
    ------
    ModelError
        ``alpha`` is negative, or 0 where the features are linearly dependent.
    """
    if not (isfinite(alpha) and alpha >= 0):
        raise ModelError(f"alpha: expected a number of at least 0, got {alpha}")
    count = moments.count
    scatter = [
        [value * count + (Fraction(alpha) if i == j else 0) for j, value in enumerate(row)]
        for i, row in enumerate(moments.pooled_covariance())
    ]
    factor = _factor(scatter, moments, "over all classes", remedy="leave it out of the study, or raise alpha")
    mean = moments.pooled_mean()
    centre = [_rounded(x) for x in mean]
    rows, constants = [], []
    for k in range(len(moments.classes)):
        share = Fraction(moments.counts[k], count)
        # Σ (f − mean) (t − mean of t), with t = 1 in the class and −1 elsewhere
        towards = [2 * (s - share * count * m) for s, m in zip(moments.sums[k], mean, strict=True)]
        row = factor.solve(towards)
        rows.append([_rounded(x) for x in row])
        constants.append(
            _rounded(2 * share - 1 + dot(row, [Fraction(c) - m for c, m in zip(centre, mean, strict=True)]))
        )
    if len(rows) == 2:
        rows[0], constants[0] = [0.0] * len(mean), 0.0
    return _linear(centre, rows, constants, probabilistic=False)


def shrunk(covariance: Matrix, count: int, shrinkage: float | str | None) -> Matrix:
    """Draw a covariance towards a multiple of the identity of the same trace.

    Raises
    ------
    ModelError
        The shrinkage is neither "oas" nor a number from 0 to 1.
    """
    if shrinkage is None:
        return covariance
    size = len(covariance)
    middle = sum((covariance[i][i] for i in range(size)), Fraction()) / size
    if shrinkage == "oas":
        towards = Fraction(_rounded(_oas(covariance, count, middle)))
    elif not isinstance(shrinkage, str) and 0 <= shrinkage <= 1:
        towards = Fraction(shrinkage)
    else:
        raise ModelError(
            f'shrinkage: expected a number from 0 to 1, "oas" or none, got {shrinkage!r}: that of Ledoit and Wolf '
            "cannot be made from sums of products"
        )
    return tuple(
        tuple((1 - towards) * value + (towards * middle if i == j else 0) for j, value in enumerate(row))
        for i, row in enumerate(covariance)
    )


def _oas(covariance: Matrix, count: int, middle: Fraction) -> Fraction:
    size = len(covariance)
    if size == 1:
        return Fraction()
    squares = sum((value**2 for row in covariance for value in row), Fraction()) / size**2
    apart = (count + 1) * (squares - middle**2 / size)
    return min((squares + middle**2) / apart, Fraction(1)) if apart else Fraction(1)


def condition(covariance: Matrix) -> float:
    """Largest over least eigenvalue of the correlations: large where features say nearly the same.

    Infinite where a variance is 0. Of correlations, since the units of features change nothing where nothing shrinks.
    """
    spreads = [_rounded(covariance[i][i]) for i in range(len(covariance))]
    if min(spreads) <= 0:
        return inf
    correlations = np.array(
        [
            [_rounded(value) / sqrt(spreads[i]) / sqrt(spreads[j]) for j, value in enumerate(row)]
            for i, row in enumerate(covariance)
        ]
    )
    values = np.linalg.eigvalsh(correlations)
    return float(values[-1] / values[0]) if values[0] > 0 else inf


def within_classes(moments: Moments) -> Matrix:
    """The mean of the covariances within the classes, weighted by their counts."""
    shares = [Fraction(n, moments.count) for n in moments.counts]
    return _mixed([moments.covariance(k) for k in range(len(shares))], shares)


def _normal(moments: Moments, covariances: Sequence[Matrix], priors: Sequence[float] | None) -> Discriminant:
    """Log posteriors of normal distributions, each with a covariance of its own."""
    given = _priors(moments, priors)
    centres, whiten, offsets, constants = [], [], [], []
    for k, covariance in enumerate(covariances):
        factor = _factor(covariance, moments, f"in class {moments.classes[k]!r}")
        mean = moments.mean(k)
        centre = [_rounded(x) for x in mean]
        rest = factor.apply([m - Fraction(c) for m, c in zip(mean, centre, strict=True)])
        roots = [_root(pivot) for pivot in factor.pivots]
        size = len(mean)
        centres.append(centre)
        whiten.append(
            [
                [_rounded(x) / root for x in row] + [0.0] * (size - len(row))
                for row, root in zip(factor.rows, roots, strict=True)
            ]
        )
        offsets.append([_rounded(x) / root for x, root in zip(rest, roots, strict=True)])
        constants.append(_log(given[k]) - sum(_log(pivot) for pivot in factor.pivots) / 2)
    return Discriminant(
        np.array(centres), np.zeros((len(centres), size)), np.array(constants), np.array(whiten), np.array(offsets)
    )


def _linear(
    centre: list[float], rows: list[list[float]], constants: list[float], *, probabilistic: bool = True
) -> Discriminant:
    classes, size = len(rows), len(centre)
    return Discriminant(
        np.array([centre] * classes),
        np.array(rows),
        np.array(constants),
        np.zeros((classes, 0, size)),
        np.zeros((classes, 0)),
        probabilistic,
    )


def _priors(moments: Moments, priors: Sequence[float] | None) -> list[Fraction]:
    if len(moments.classes) < 2:
        raise ModelError(
            f"a classifier needs at least 2 classes, got {len(moments.classes)}: name another in the study, such as "
            "the tissue around it"
        )
    if priors is None:
        return [Fraction(n, moments.count) for n in moments.counts]
    given: list[Any] = list(priors)
    if len(given) != len(moments.classes) or not all(isfinite(p) and p > 0 for p in given):
        classes = ", ".join(moments.classes)
        raise ModelError(
            f"priors: expected a number above 0 for each of {classes}, got {given}: give as many, in order"
        )
    if abs(sum(given) - 1) > 1e-9:
        raise ModelError(f"priors: expected probabilities whose sum is 1, got {sum(given)}: divide them by that")
    return [Fraction(p) for p in given]


def _factor(
    matrix: Sequence[Sequence[Fraction]],
    moments: Moments,
    where: str,
    remedy: str = "leave it out of the study, or use shrinkage",
) -> Factor:
    try:
        return Factor.of(matrix)
    except SingularError as error:
        raise ModelError(
            f"feature {moments.features[error.at]!r} is constant, or follows from those before it, {where}: {remedy}"
        ) from None


def _mixed(matrices: Sequence[Matrix], weights: Sequence[Fraction]) -> Matrix:
    size = len(matrices[0])
    return tuple(
        tuple(sum((w * m[i][j] for w, m in zip(weights, matrices, strict=True)), Fraction()) for j in range(size))
        for i in range(size)
    )


def _rounded(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ModelError(
            "a number of the classifier does not fit float64: bring the features to another unit"
        ) from None


def _root(value: Fraction) -> float:
    root = sqrt(_rounded(value))
    if root == 0:
        raise ModelError("a variance does not fit float64: bring the features to another unit")
    return root


def _log(value: Fraction) -> float:
    """Of a positive rational however large or small: of its leading 64 bits, and their place."""
    shift = value.numerator.bit_length() - value.denominator.bit_length()
    return log(value / Fraction(2) ** shift) + shift * log(2)
