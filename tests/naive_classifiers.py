"""Classifiers from their definitions, as loops over fractions of all voxels. Imports nothing of voxring.

Scores are log posteriors up to what the classes have in common, or values of regressions; only logarithms are rounded.
"""

from fractions import Fraction
from math import factorial, log


def rational(table):
    return [[Fraction(value) for value in row] for row in table]


def mean(rows):
    return [sum(column) / Fraction(len(rows)) for column in zip(*rows, strict=True)]


def covariance(rows):
    """Divided by the number of rows."""
    middle, size = mean(rows), len(rows[0])
    return [
        [sum((r[i] - middle[i]) * (r[j] - middle[j]) for r in rows) / Fraction(len(rows)) for j in range(size)]
        for i in range(size)
    ]


def inverse_and_determinant(matrix):
    """Gauss and Jordan, with the first pivot that is not 0."""
    size = len(matrix)
    rows = [list(row) + [Fraction(int(i == j)) for j in range(size)] for i, row in enumerate(matrix)]
    determinant = Fraction(1)
    for k in range(size):
        at = next(i for i in range(k, size) if rows[i][k] != 0)
        if at != k:
            rows[k], rows[at], determinant = rows[at], rows[k], -determinant
        determinant *= rows[k][k]
        rows[k] = [x / rows[k][k] for x in rows[k]]
        for i in range(size):
            if i != k:
                rows[i] = [x - rows[i][k] * y for x, y in zip(rows[i], rows[k], strict=True)]
    return [row[size:] for row in rows], determinant


def form(inverse, vector):
    return sum(vector[i] * inverse[i][j] * vector[j] for i in range(len(vector)) for j in range(len(vector)))


def shrink(matrix, towards):
    size = len(matrix)
    middle = sum(matrix[i][i] for i in range(size)) / size
    return [
        [(1 - towards) * matrix[i][j] + (towards * middle if i == j else 0) for j in range(size)] for i in range(size)
    ]


def split(table, labels):
    names = sorted(set(labels))
    table = rational(table)
    return names, [[row for row, label in zip(table, labels, strict=True) if label == name] for name in names]


def normal_scores(parts, covariances, priors, voxels):
    made = [(mean(part), *inverse_and_determinant(c)) for part, c in zip(parts, covariances, strict=True)]
    return [
        [
            float(-form(inverse, [a - b for a, b in zip(x, middle, strict=True)]) / 2)
            - (log(determinant.numerator) - log(determinant.denominator)) / 2
            + log(prior)
            for (middle, inverse, determinant), prior in zip(made, priors, strict=True)
        ]
        for x in rational(voxels)
    ]


def shares(parts):
    return [Fraction(len(part), sum(map(len, parts))) for part in parts]


def qda(table, labels, voxels, *, priors=None, shrinkage=0):
    _, parts = split(table, labels)
    covariances = [shrink(covariance(part), Fraction(shrinkage)) for part in parts]
    return normal_scores(parts, covariances, priors or shares(parts), voxels)


def gnb(table, labels, voxels, *, priors=None, smoothing=1e-9):
    _, parts = split(table, labels)
    everything = covariance([row for part in parts for row in part])
    added = Fraction(smoothing) * max(everything[i][i] for i in range(len(everything)))
    covariances = [
        [[value + added if i == j else Fraction(0) for j, value in enumerate(row)] for i, row in enumerate(own)]
        for own in map(covariance, parts)
    ]
    return normal_scores(parts, covariances, priors or shares(parts), voxels)


def lda(table, labels, voxels, *, priors=None, shrinkage=None):
    _, parts = split(table, labels)
    weights = shares(parts) if shrinkage is None or priors is None else [Fraction(p) for p in priors]
    own = [shrink(covariance(part), Fraction(shrinkage or 0)) for part in parts]
    size = len(table[0])
    within = [[sum(w * c[i][j] for w, c in zip(weights, own, strict=True)) for j in range(size)] for i in range(size)]
    return normal_scores(parts, [within] * len(parts), priors or shares(parts), voxels)


def ridge(table, labels, voxels, *, alpha=1):
    """The normal equations of each class's targets, 1 and −1, with a free intercept."""
    names, _ = split(table, labels)
    rows = rational(table)
    middle, size = mean(rows), len(rows[0])
    centred = [[a - b for a, b in zip(row, middle, strict=True)] for row in rows]
    system = [
        [sum(r[i] * r[j] for r in centred) + (Fraction(alpha) if i == j else 0) for j in range(size)]
        for i in range(size)
    ]
    inverse, _ = inverse_and_determinant(system)
    found = []
    for name in names:
        targets = [Fraction(1 if label == name else -1) for label in labels]
        level = sum(targets) / len(targets)
        right = [sum(r[i] * (t - level) for r, t in zip(centred, targets, strict=True)) for i in range(size)]
        weights = [sum(a * b for a, b in zip(row, right, strict=True)) for row in inverse]
        found.append(
            [
                float(level + sum(w * (a - b) for w, a, b in zip(weights, x, middle, strict=True)))
                for x in rational(voxels)
            ]
        )
    return [list(row) for row in zip(*found, strict=True)]


def evaluation(names, actual, given, chances, bins):
    """Counts of an evaluation, for the voxels of each class: given none and each class; histograms; sums in 2^-20.

    ``actual`` and ``given`` are a name for each voxel, or None; ``chances`` of a class its probability of each voxel.
    """
    rows = {}
    for own in names:
        voxels = [i for i, name in enumerate(actual) if name == own]
        got = [sum(given[i] not in names for i in voxels), *(sum(given[i] == name for i in voxels) for name in names)]
        counts = {(name, b): 0 for name in names for b in range(bins)}
        sums = dict(counts)
        for name in names:
            for i in voxels:
                exact = Fraction(chances[name][i] if name in chances else 0) * 2**20
                floor, rest = exact.numerator // exact.denominator, exact - exact.numerator // exact.denominator
                q = floor + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and floor % 2 == 1))
                at = name, min(q * bins // 2**20, bins - 1)
                counts[at] += 1
                sums[at] += q
        rows[own] = [*got, *counts.values(), *sums.values()]
    return rows


def logistic_step(voxels, places, rows):
    """Gradient and Hessian of a logistic regression, with integers alone (docs/classifiers.md).

    ``rows``: for each score the intercept over 2^32 and the coefficients over 2^72. Probabilities are over 2^40.
    """
    one, size = 2**40, len(voxels[0]) + 1

    def half_up(value):
        return (2 * value.numerator + value.denominator) // (2 * value.denominator)

    def exponential(below):
        if below >= 28 << 32:
            return 0
        value = half_up(_e(Fraction(below >> 24, 2**8)) * one)
        for bits in (16, 8, 0):
            factor = half_up(_e(Fraction(below >> bits & 255, 2 ** (32 - bits))) * one)
            value = half_up(Fraction(value * factor, one))
        return value

    used = list(range(len(rows) if len(rows) > 1 else 2))[-len(rows) :]
    gradient = {(m, i): 0 for m in used for i in range(size)}
    hessian = {(m, k, i, j): 0 for m in used for k in used if m <= k for i in range(size) for j in range(i, size)}
    for voxel, place in zip(voxels, places, strict=True):
        x = [1, *voxel]
        scores = [
            row[0] + half_up(Fraction(sum(w * v for w, v in zip(row[1:], voxel, strict=True)), 2**40)) for row in rows
        ]
        scores = [0, *scores] if len(rows) == 1 else scores
        parts = [exponential(max(scores) - score) for score in scores]
        p = [half_up(Fraction(part * one, sum(parts))) for part in parts]
        for m, i in gradient:
            gradient[m, i] += (p[m] - one * (place == m)) * x[i]
        for m, k, i, j in hessian:
            bend = half_up(Fraction(p[m] * (one - p[m]), one)) if m == k else -half_up(Fraction(p[m] * p[k], one))
            hessian[m, k, i, j] += bend * x[i] * x[j]
    return [*gradient.values(), *hessian.values()]


def _e(value):
    """e^-value to some 60 digits."""
    whole, total, term = value.numerator // value.denominator, Fraction(1), Fraction(1)
    value -= whole
    for k in range(1, 45):
        term *= -value / k
        total += term
    e = sum((Fraction(1, factorial(k)) for k in range(45)), Fraction())
    return total / e**whole
