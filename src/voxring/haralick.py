"""What a grey-level co-occurrence matrix says of texture: Haralick's features as IBSI defines them.

The matrix C holds how often a pair of neighbours has levels i and j, 1 … L, each pair counted both ways, so C is
symmetric, and p = C / ΣC is a distribution of pairs. Joint features are of p and its margin; sum and difference ones of
the distributions of i + j and |i − j|. Entropies are in bits (log2). Numbers are exact rationals of the counts, rounded
once at the end, but for entropies, whose logarithms are floats.

Haralick's f1 … f13 are, in his order: angular second moment, contrast, correlation, joint variance, inverse difference
moment, sum average, sum variance, sum entropy, joint entropy, difference variance, difference entropy, and the two
information correlations. His f7 is written with the sum entropy where the sum average is meant, as in IBSI.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from math import exp, fsum, log2, sqrt


def entropy(counts: Iterable[int]) -> float:
    """Entropy in bits of the distribution that counts are proportional to; 0 where there are none.

    Examples
    --------
    >>> entropy([3, 3, 0, 3, 3])
    2.0
    """
    some = [count for count in counts if count]
    total = sum(some)
    return fsum(count / total * log2(total / count) for count in some)


def haralick(counts: Sequence[Sequence[int]]) -> dict[str, float | None]:
    """Return the texture features of a symmetric co-occurrence matrix; None where one is not defined.

    Nothing is defined of a matrix without a pair; correlation and the information correlations are not where every pair
    has the same two levels.

    Parameters
    ----------
    counts : sequence of L rows of L integers
        Symmetric.

    Examples
    --------
    >>> found = haralick([[2, 1], [1, 0]])
    >>> found["contrast"], found["joint_average"], found["inverse_difference"]
    (0.5, 1.25, 0.75)
    """
    levels = range(1, len(counts) + 1)
    margin: Counter[int] = Counter({i: sum(row) for i, row in zip(levels, counts, strict=True)})
    cells = [(i, j, c) for i, row in zip(levels, counts, strict=True) for j, c in zip(levels, row, strict=True) if c]
    total = margin.total()
    if not total:
        return dict.fromkeys(NAMES)
    plus: Counter[int] = Counter()
    minus: Counter[int] = Counter()
    for i, j, c in cells:
        plus[i + j] += c
        minus[abs(i - j)] += c

    def expected(of: Counter[int], value: Callable[[int], int | Fraction]) -> Fraction:
        return Fraction(sum(c * value(k) for k, c in of.items()), total)

    def central(of: Counter[int], order: int) -> Fraction:
        first = sum(c * k for k, c in of.items())  # total times the mean: integers to the end
        return Fraction(sum(c * (total * k - first) ** order for k, c in of.items()), total ** (order + 1))

    average, variance = expected(margin, lambda k: k), central(margin, 2)
    product = Fraction(sum(c * i * j for i, j, c in cells), total)
    joint, single = entropy(c for _, _, c in cells), entropy(margin.values())
    # p(i)·p(j), whatever it is weighted with, has twice the entropy of p(i), since C is symmetric.
    shared = 2 * single - joint
    size = len(counts)
    found: dict[str, Fraction | float | None] = {
        "joint_maximum": Fraction(max(c for _, _, c in cells), total),
        "joint_average": average,
        "joint_variance": variance,
        "joint_entropy": joint,
        "difference_average": expected(minus, lambda k: k),
        "difference_variance": central(minus, 2),
        "difference_entropy": entropy(minus.values()),
        "sum_average": expected(plus, lambda k: k),
        "sum_variance": central(plus, 2),
        "sum_entropy": entropy(plus.values()),
        "angular_second_moment": Fraction(sum(c * c for _, _, c in cells), total * total),
        "contrast": expected(minus, lambda k: k * k),
        "dissimilarity": expected(minus, lambda k: k),
        "inverse_difference": expected(minus, lambda k: Fraction(1, 1 + k)),
        "normalised_inverse_difference": expected(minus, lambda k: Fraction(size, size + k)),
        "inverse_difference_moment": expected(minus, lambda k: Fraction(1, 1 + k * k)),
        "normalised_inverse_difference_moment": expected(minus, lambda k: Fraction(size**2, size**2 + k * k)),
        "inverse_variance": expected(minus, lambda k: Fraction(1, k * k) if k else 0),
        "correlation": (product - average**2) / variance if variance else None,
        "autocorrelation": product,
        "cluster_tendency": central(plus, 2),
        "cluster_shade": central(plus, 3),
        "cluster_prominence": central(plus, 4),
        "information_correlation_1": -shared / single if single else None,
        "information_correlation_2": sqrt(1 - exp(-2 * max(shared, 0.0))) if single else None,
    }
    return {name: None if (value := found[name]) is None else float(value) for name in NAMES}


NAMES = (
    "joint_maximum",
    "joint_average",
    "joint_variance",
    "joint_entropy",
    "difference_average",
    "difference_variance",
    "difference_entropy",
    "sum_average",
    "sum_variance",
    "sum_entropy",
    "angular_second_moment",
    "contrast",
    "dissimilarity",
    "inverse_difference",
    "normalised_inverse_difference",
    "inverse_difference_moment",
    "normalised_inverse_difference_moment",
    "inverse_variance",
    "correlation",
    "autocorrelation",
    "cluster_tendency",
    "cluster_shade",
    "cluster_prominence",
    "information_correlation_1",
    "information_correlation_2",
)
"""IBSI's 25 features of co-occurrence, in its order."""
