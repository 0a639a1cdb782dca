"""Additive statistics and what follows from them, as loops over the definitions. Imports nothing of voxring."""

from fractions import Fraction
from itertools import product
from math import exp, log2, sqrt

import numpy as np


def additive(x, features, counts, study) -> tuple[int, ...]:
    """The integers of one class, in order: of its x, its features (a row each) and its pairs of levels."""
    asked = study.statistics
    found = [sum(map(int, f)) for f in features]
    found += [
        sum(int(a) * int(b) for a, b in zip(f, g, strict=True)) for i, f in enumerate(features) for g in features[i:]
    ]
    found += [sum(int(v) ** k for v in x) for k in range(1, asked.moments + 1)]
    if asked.histogram is not None:
        low, high = (Fraction(end) for end in asked.histogram.range)
        width = (high - low) / asked.histogram.bins
        bins = [0] * (asked.histogram.bins + 2)
        for v in x:
            value = Fraction(int(v), study.unit)
            if value < low:
                bins[0] += 1
            elif value > high:
                bins[-1] += 1
            else:
                bins[1 + min((value - low) // width, asked.histogram.bins - 1)] += 1
        found += bins
    return (*found, *(int(c) for row in counts for c in row))


def pairs(levels: np.ndarray, size: int, *, planar: bool) -> np.ndarray:
    """Co-occurrence by the definition: every voxel with every neighbour, both in the region."""
    counts = np.zeros((size, size), int)
    steps = [step for step in product((-1, 0, 1), repeat=3) if any(step) and not (planar and step[0])]
    for q, step in product(np.ndindex(levels.shape), steps):
        other = tuple(np.add(q, step))
        if all(0 <= k < n for k, n in zip(other, levels.shape, strict=True)) and levels[q] and levels[other]:
            counts[levels[q] - 1, levels[other] - 1] += 1
    return counts


def haralick(counts) -> dict[str, float]:
    """IBSI's formulas, term by term, over all pairs of levels."""
    size, total = len(counts), sum(map(sum, counts))
    p = {(i, j): Fraction(int(counts[i - 1][j - 1]), int(total)) for i, j in product(range(1, size + 1), repeat=2)}
    row = {i: sum(p[i, j] for j in range(1, size + 1)) for i in range(1, size + 1)}
    plus = {k: sum(v for (i, j), v in p.items() if i + j == k) for k in range(2, 2 * size + 1)}
    minus = {k: sum(v for (i, j), v in p.items() if abs(i - j) == k) for k in range(size)}

    def bits(of) -> float:
        return -sum(float(v) * log2(v) for v in of if v)

    mean = sum(i * v for i, v in row.items())
    variance = sum((i - mean) ** 2 * v for i, v in row.items())
    plus_mean, minus_mean = sum(k * v for k, v in plus.items()), sum(k * v for k, v in minus.items())
    hxy, hx = bits(p.values()), bits(row.values())
    hxy1 = -sum(float(v) * log2(row[i] * row[j]) for (i, j), v in p.items() if v)
    hxy2 = -sum(float(row[i] * row[j]) * log2(row[i] * row[j]) for i, j in p if row[i] * row[j])
    return {
        "joint_maximum": max(p.values()),
        "joint_average": mean,
        "joint_variance": variance,
        "joint_entropy": hxy,
        "difference_average": minus_mean,
        "difference_variance": sum((k - minus_mean) ** 2 * v for k, v in minus.items()),
        "difference_entropy": bits(minus.values()),
        "sum_average": plus_mean,
        "sum_variance": sum((k - plus_mean) ** 2 * v for k, v in plus.items()),
        "sum_entropy": bits(plus.values()),
        "angular_second_moment": sum(v * v for v in p.values()),
        "contrast": sum((i - j) ** 2 * v for (i, j), v in p.items()),
        "dissimilarity": sum(abs(i - j) * v for (i, j), v in p.items()),
        "inverse_difference": sum(v / (1 + abs(i - j)) for (i, j), v in p.items()),
        "normalised_inverse_difference": sum(v / (1 + Fraction(abs(i - j), size)) for (i, j), v in p.items()),
        "inverse_difference_moment": sum(v / (1 + (i - j) ** 2) for (i, j), v in p.items()),
        "normalised_inverse_difference_moment": sum(
            v / (1 + Fraction((i - j) ** 2, size**2)) for (i, j), v in p.items()
        ),
        "inverse_variance": 2 * sum(v / (i - j) ** 2 for (i, j), v in p.items() if j > i),
        "correlation": (sum(i * j * v for (i, j), v in p.items()) - mean**2) / variance,
        "autocorrelation": sum(i * j * v for (i, j), v in p.items()),
        "cluster_tendency": sum((i + j - 2 * mean) ** 2 * v for (i, j), v in p.items()),
        "cluster_shade": sum((i + j - 2 * mean) ** 3 * v for (i, j), v in p.items()),
        "cluster_prominence": sum((i + j - 2 * mean) ** 4 * v for (i, j), v in p.items()),
        "information_correlation_1": (hxy - hxy1) / hx,
        "information_correlation_2": sqrt(max(1 - exp(-2 * (hxy2 - hxy)), 0)),
    }


# The digital phantom of the image biomarker standardisation initiative; 0 where it has no voxel.
PHANTOM = np.array(
    [
        [[1, 4, 4, 1, 1], [1, 4, 6, 1, 1], [4, 1, 6, 4, 1], [4, 4, 6, 4, 1]],
        [[1, 4, 4, 1, 1], [1, 1, 6, 1, 1], [0, 1, 3, 1, 1], [4, 4, 6, 1, 1]],
        [[1, 4, 4, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 1, 1], [1, 1, 6, 1, 1]],
        [[1, 4, 4, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 6, 1, 1]],
    ]
)
