"""Additive statistics: what a study asks for beside n, sum and sdsum, where each number stands, and what follows.

Whatever is a sum over voxels goes round the ring as it is: sums of features and of their products, powers of the
intensity, histograms, co-occurrence counts, and the counts of an evaluation. `layout` says which integers these are, in
which order, and how large one party's may be; they are counted in `voxring.features` and `voxring.learn.evaluation`.
`derived` makes of the totals what is read: exact rationals first, and floats that are rounded once.

An integer of a feature f stands for f / unit, one of a product for it over unit², one of xᵏ over unitᵏ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import cycle
from math import isqrt, prod
from typing import Any

from voxring.errors import StudyError
from voxring.evaluate import BITS, Counts
from voxring.fixedpoint import square_root
from voxring.haralick import entropy, haralick
from voxring.study import AtWeights, Bins, Study
from voxring.study.bounds import feature_bound

QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
DIRECTIONS, PLANAR_DIRECTIONS = 13, 4
"""Of neighbours in a volume, each with its opposite; and within a plane."""


@dataclass(frozen=True, slots=True)
class Block:
    """Numbers of one kind that stand together; ``bound`` is the largest size of one party's."""

    name: str
    shape: tuple[int, ...]
    bound: int

    @property
    def size(self) -> int:
        """How many numbers."""
        return prod(self.shape)


def layout(study: Study) -> tuple[Block, ...]:
    """Return the blocks of additive integers that a study asks for, in their order; none if it asks for none.

    ``feature_sums`` are Σf of each feature; ``gram`` the upper triangle of Σ f fᵀ, row by row; ``powers`` Σx, Σx², …;
    ``histogram`` the voxels below the range, in each bin, and above; ``glcm`` the rows of the co-occurrence matrix;
    ``given`` how many voxels a model gave no class of the study, and each; ``probabilities`` for each class of the
    study the histogram of its probability, and ``promised`` the probabilities of each bin added up.

    At the weights of a step of a logistic regression it is what the step sums (`voxring.learn.logistic`), and no more:
    ``gradient``, a row for each score, and ``hessian``, for each two scores an upper triangle.

    Examples
    --------
    >>> study = Study.of(name="t", classes={"lesion": 1}, statistics={"moments": 4})
    >>> [(block.name, block.size) for block in layout(study)]
    [('powers', 4)]
    """
    asked, voxels = study.statistics, study.bounds.voxels_per_party
    count = len(study.feature)
    if isinstance(study, AtWeights):
        scores, size = len(study.weights), count + 1
        triangles = scores * (scores + 1) // 2, size * (size + 1) // 2
        steps = {"gradient": (scores, size), "hessian": triangles}
        return tuple(Block(name, shape, voxels * max(of_one_voxel(name, study))) for name, shape in steps.items())
    shapes: dict[str, tuple[int, ...]] = {}
    if asked.gram:
        shapes |= {"feature_sums": (count,), "gram": (count * (count + 1) // 2,)}
    if asked.moments:
        shapes["powers"] = (asked.moments,)
    if asked.histogram is not None:
        shapes["histogram"] = (asked.histogram.bins + 2,)
    if asked.glcm is not None:
        shapes["glcm"] = (asked.glcm.levels, asked.glcm.levels)
    if study.evaluate is not None:
        classes, bins = len(study.classes), study.evaluate.bins
        shapes |= {"given": (classes + 1,), "probabilities": (classes, bins), "promised": (classes, bins)}
    return tuple(Block(name, shape, voxels * max(of_one_voxel(name, study))) for name, shape in shapes.items())


def of_one_voxel(block: str, study: Study) -> list[int]:
    """How much one voxel adds to each number of a block at most; where numbers repeat, once.

    ``glcm`` has one for all numbers together, too: a voxel has so many neighbours, each pair counted both ways.
    """
    features = [feature_bound(feature, study) for feature in study.feature]
    if block == "feature_sums":
        return features
    if isinstance(study, AtWeights):
        sizes = [1, *features]
        if block == "gradient":
            return [one << STEP_BITS for one in sizes]
        # p(1 − p) and p p' are at most a quarter.
        return [one * other << STEP_BITS - 2 for i, one in enumerate(sizes) for other in sizes[i:]]
    if block == "gram":
        return [one * other for i, one in enumerate(features) for other in features[i:]]
    if block == "powers":
        return [study.intensity_bound**k for k in range(1, study.statistics.moments + 1)]
    return [{"glcm": 2 * DIRECTIONS, "promised": 1 << BITS}.get(block, 1)]


STEP = ("gradient", "hessian")
"""The blocks of a step of a logistic regression."""
STEP_BITS = 40
"""They are over 2^40, as probabilities are."""
EVALUATION = ("given", "probabilities", "promised")
"""The blocks that a model is needed for."""


def of_images(study: Study) -> tuple[Block, ...]:
    """Return those blocks of `layout` that follow from images and ground truth alone, without a model or weights."""
    return tuple(block for block in layout(study) if block.name not in (*EVALUATION, *STEP))


def slots(study: Study) -> int:
    """How many additive integers a study asks for, of each class."""
    return sum(block.size for block in layout(study))


def largest_bound(study: Study) -> int:
    """Largest size of any of one party's additive integers."""
    return max((block.bound for block in layout(study)), default=0)


def padded(values: Sequence[int], voxels: int, study: Study) -> tuple[int, ...]:
    """Return a class's integers: zeros where nobody has seen a voxel of it.

    Raises
    ------
    StudyError
        They are not as many as the study asks for: the totals are of another study.
    """
    expected = slots(study)
    if not values and not voxels:
        return (0,) * expected
    if len(values) != expected:
        raise StudyError(
            f"expected totals with {expected} additive statistics of each class, got {len(values)}: they were made for "
            "another study; compute them again"
        )
    return tuple(values)


def unpack(values: Sequence[int], study: Study) -> dict[str, tuple[int, ...]]:
    """Take a class's integers apart, by name of their block.

    Examples
    --------
    >>> study = Study.of(name="t", classes={"lesion": 1}, statistics={"moments": 2})
    >>> unpack((5, 13), study)
    {'powers': (5, 13)}
    """
    if len(values) != slots(study):
        raise ValueError(f"the study has {slots(study)} additive statistics, got {len(values)}")
    parts, start = {}, 0
    for block in layout(study):
        parts[block.name] = tuple(values[start : start + block.size])
        start += block.size
    return parts


def fault(values: Sequence[int], voxels: int, study: Study) -> str | None:
    """Name the block of a class's integers that no images with so many voxels of it can have, or None.

    Under differential privacy each number of a patient with many voxels is rounded by itself: then numbers are held
    against their bounds alone.

    Parameters
    ----------
    values : sequence of int
        Of one party, or of all together.
    voxels : int
        n of the class.
    """
    parts = unpack(values, study)
    for name, values_of in parts.items():
        most = of_one_voxel(name, study)
        signed = name in ("feature_sums", "gram", "powers", *STEP)
        for value, one in zip(values_of, cycle(most), strict=False):
            if not (-voxels * one if signed else 0) <= value <= voxels * one:
                return name
    if study.differential_privacy is not None:
        return "histogram" if sum(parts.get("histogram", ())) > voxels else None
    if "gram" in parts:
        sums, gram = parts["feature_sums"], _square(parts["gram"], len(parts["feature_sums"]))
        if any(value**2 > voxels * gram[i][i] for i, value in enumerate(sums)):  # Cauchy and Schwarz
            return "gram"
    if "powers" in parts:
        first, second, *others = parts["powers"]
        if first**2 > voxels * second or any(fourth * voxels < second**2 for fourth in others[1:]):
            return "powers"
    if "histogram" in parts and sum(parts["histogram"]) != voxels:
        return "histogram"
    if "glcm" in parts:
        rows = _rows(parts["glcm"])
        if sum(parts["glcm"]) > 2 * DIRECTIONS * voxels or rows != [list(column) for column in zip(*rows, strict=True)]:
            return "glcm"
    if study.evaluate is not None:
        if sum(parts["given"]) != voxels:
            return "given"
        bins, (low, high) = study.evaluate.bins, _grid(study.evaluate.bins)
        counts, promised = parts["probabilities"], parts["promised"]
        if any(sum(counts[start : start + bins]) != voxels for start in range(0, len(counts), bins)):
            return "probabilities"
        for place, (count, value) in enumerate(zip(counts, promised, strict=True)):
            if not count * low[place % bins] <= value <= count * high[place % bins]:
                return "promised"
    return None


def _grid(bins: int) -> tuple[list[int], list[int]]:
    """The least and the largest probability of each bin, in units of 2^-20."""
    starts = [-(-(place << BITS) // bins) for place in range(bins)]
    return starts, [*(start - 1 for start in starts[1:]), 1 << BITS]


Pair = list[str]


def derived(values: Sequence[int], voxels: int, study: Study) -> dict[str, object]:
    """Return what a class's integers say, as it stands in the result file (docs/statistics.md).

    Of noisy integers, what is made of counts is made of those that are not below 0, of a co-occurrence matrix together
    with its transpose; what no numbers can have is None.

    Parameters
    ----------
    values : sequence of int
        In the order of `layout`.
    voxels : int
        n of the class, at least 2.

    Examples
    --------
    >>> study = Study.of(name="t", classes={"lesion": 1}, statistics={"moments": 4})
    >>> x = [1, 2, 2, 5]
    >>> sums = [sum((v * study.unit) ** k for v in x) for k in (1, 2, 3, 4)]
    >>> moments = derived(sums, len(x), study)["moments"]
    >>> moments["mean"], moments["variance"], moments["powers"][1]
    (2.5, 2.25, ['34', '1'])
    """
    parts, asked, unit = unpack(values, study), study.statistics, study.unit
    noisy = study.differential_privacy is not None
    found: dict[str, object] = {}
    if "feature_sums" in parts:
        sums = [Fraction(value, unit) for value in parts["feature_sums"]]
        found["feature_sums"] = [_pair(value) for value in sums]
        found["feature_means"] = [float(value / voxels) for value in sums]
        gram = [[Fraction(g, unit**2) for g in row] for row in _square(parts["gram"], len(sums))]
        found["gram"] = [[_pair(value) for value in row] for row in gram]
        found["covariance"] = _covariance(sums, gram, voxels)
    first_order: dict[str, object] = {}
    if "powers" in parts:
        powers = [Fraction(value, unit**k) for k, value in enumerate(parts["powers"], 1)]
        found["moments"] = {**_moments(powers, voxels), "powers": [_pair(value) for value in powers]}
        first_order |= _of_powers(powers, voxels)
    if asked.histogram is not None:
        counts = [max(0, count) for count in parts["histogram"]]
        found["histogram"] = _histogram(parts["histogram"], counts, asked.histogram)
        first_order |= _of_histogram(counts, asked.histogram)
    if asked.glcm is not None:
        rows = _rows(parts["glcm"])
        pairs = _both_ways(rows) if noisy else rows
        found["glcm"] = {"levels": len(rows), "counts": rows, "haralick": haralick(pairs)}
    if first_order:
        found["first_order"] = first_order
    if asked_of := study.evaluate:
        found["evaluation"] = {
            "given": list(parts["given"]),
            "probabilities": _cut(parts["probabilities"], asked_of.bins),
            "promised": _cut(parts["promised"], asked_of.bins),
        }
    return found


def evaluation(released: Mapping[str, Sequence[int]], study: Study) -> Counts:
    """Return the evaluation that a study asks for, over the voxels of the released classes.

    Parameters
    ----------
    released : mapping of class name to sequence of int
        Each class's integers, in the order of `layout`. Voxels of other classes are counted nowhere.

    Raises
    ------
    StudyError
        The study asks for none.
    """
    if study.evaluate is None:
        raise StudyError("the study asks for no evaluation: write [evaluate] with the digest of a model")
    start = sum(block.size for block in of_images(study))
    rows = {name: values[start:] for name, values in released.items()}
    return Counts.of_classes(tuple(study.classes), rows, study.evaluate.bins)


def integers_of(found: Mapping[str, Any], study: Study) -> tuple[int, ...]:
    """Return the integers that `derived` was given, from its exact numbers.

    Raises
    ------
    KeyError, TypeError, ValueError, ZeroDivisionError
        A number is missing, or none that an image's integers can give.

    Examples
    --------
    >>> study = Study.of(name="t", classes={"lesion": 1}, statistics={"moments": 2})
    >>> integers_of(derived((5, 13), 3, study), study)
    (5, 13)
    """
    unit, integers = study.unit, list[int]()
    for block in layout(study):
        if block.name == "histogram":
            histogram = found["histogram"]
            numbers = [_integer(n) for n in (histogram["below"], *histogram["counts"], histogram["above"])]
        elif block.name == "glcm":
            numbers = [_integer(n) for row in found["glcm"]["counts"] for n in row]
        elif block.name == "given":
            numbers = [_integer(n) for n in found["evaluation"]["given"]]
        elif block.name in EVALUATION:
            numbers = [_integer(n) for row in found["evaluation"][block.name] for n in row]
        elif block.name == "powers":
            numbers = [_times(pair, unit**k) for k, pair in enumerate(found["moments"]["powers"], 1)]
        elif block.name == "gram":
            numbers = [_times(pair, unit**2) for i, row in enumerate(found["gram"]) for pair in row[i:]]
        else:
            numbers = [_times(pair, unit) for pair in found[block.name]]
        if len(numbers) != block.size:
            raise ValueError(f"{block.name} has {len(numbers)} numbers, not {block.size}")
        integers += numbers
    return tuple(integers)


def _integer(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError("a count is no integer")
    return value


def _times(pair: Pair, scale: int) -> int:
    numerator, denominator = pair
    value = Fraction(f"{numerator}/{denominator}") * scale
    if value.denominator != 1:
        raise ValueError(f"an exact number is not one over {scale}")
    return value.numerator


def _pair(value: Fraction) -> Pair:
    return [str(value.numerator), str(value.denominator)]


# Features.


def _square(triangle: Sequence[int], size: int) -> list[list[int]]:
    """The full symmetric matrix of an upper triangle that stands row by row."""
    full = [[0] * size for _ in range(size)]
    places = ((row, column) for row in range(size) for column in range(row, size))
    for (row, column), value in zip(places, triangle, strict=True):
        full[row][column] = full[column][row] = value
    return full


def _rows(cells: Sequence[int]) -> list[list[int]]:
    """A square matrix that stands row by row."""
    return _cut(cells, isqrt(len(cells)))


def _both_ways(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """A noisy co-occurrence matrix plus its transpose, which halves the noise; 0 where that is below."""
    levels = range(len(rows))
    return [[max(0, rows[i][j] + rows[j][i]) for j in levels] for i in levels]


def _cut(cells: Sequence[int], size: int) -> list[list[int]]:
    return [list(cells[start : start + size]) for start in range(0, len(cells), size)]


def _covariance(sums: Sequence[Fraction], gram: Sequence[Sequence[Fraction]], voxels: int) -> list[list[float]]:
    """(Σ f gᵀ − Σf Σg / n) / (n − 1)."""
    return [
        [float((gram[i][j] - sums[i] * sums[j] / voxels) / (voxels - 1)) for j in range(len(sums))]
        for i in range(len(sums))
    ]


# Moments.


def _central(powers: Sequence[Fraction], voxels: int) -> list[Fraction]:
    """Central moments of order 2 and up, about the mean, over n."""
    raw = [Fraction(1), *(power / voxels for power in powers)]
    mean = raw[1]
    second = raw[2] - mean**2
    central = [second]
    if len(raw) > 3:
        central.append(raw[3] - 3 * mean * raw[2] + 2 * mean**3)
    if len(raw) > 4:
        central.append(raw[4] - 4 * mean * raw[3] + 6 * mean**2 * raw[2] - 3 * mean**4)
    return central


def _moments(powers: Sequence[Fraction], voxels: int) -> dict[str, object]:
    """Mean, variance over n, and as far as the powers go skewness and excess kurtosis; None for one value alone."""
    second, *higher = _central(powers, voxels)
    found: dict[str, object] = {"mean": float(powers[0] / voxels), "variance": float(second)}
    if higher:
        found["skewness"] = None
        if second > 0:
            size = square_root(higher[0] ** 2 / second**3)
            found["skewness"] = -size if higher[0] < 0 else size
    if len(higher) > 1:
        found["kurtosis"] = float(higher[1] / second**2 - 3) if second > 0 else None
    return found


def _of_powers(powers: Sequence[Fraction], voxels: int) -> dict[str, object]:
    mean, second = powers[0] / voxels, powers[1] / voxels
    possible = second >= mean**2  # always, but for noise
    return {
        **_moments(powers, voxels),
        "energy": float(powers[1]),
        "root_mean_square": square_root(second) if second >= 0 else None,
        "coefficient_of_variation": square_root(second - mean**2) / float(mean) if mean and possible else None,
    }


# Histograms.


def _quantile(counts: Sequence[int], bins: Bins, q: Fraction) -> float | None:
    """Where q·n voxels lie below, as if those of a bin were spread evenly over it; None outside of the range.

    Of a bin, exactly: the least value v at which the count below v, linear within bins, reaches q·n. The true quantile
    (the value of rank ⌈q·n⌉) lies in the same bin.
    """
    wanted = q * sum(counts)
    places = bins.edges
    before = counts[0]
    if wanted <= before and before:
        return None
    for k, count in enumerate(counts[1:-1]):
        if count and wanted <= before + count:
            return float(places[k] + (places[k + 1] - places[k]) * max(wanted - before, Fraction(0)) / count)
        before += count
    return None


def _histogram(told: Sequence[int], counts: Sequence[int], bins: Bins) -> dict[str, object]:
    return {
        "edges": [float(edge) for edge in bins.edges],
        "below": told[0],
        "counts": list(told[1:-1]),
        "above": told[-1],
        "quantiles": {str(q): _quantile(counts, bins, Fraction(str(q))) for q in QUANTILES},
    }


def _of_histogram(counts: Sequence[int], bins: Bins) -> dict[str, object]:
    """First-order features of the discretised intensities: those below and above the range are two levels more."""
    total = sum(counts)
    quartile = {q: _quantile(counts, bins, Fraction(str(q))) for q in (0.1, 0.25, 0.5, 0.75, 0.9)}
    low, high = quartile[0.25], quartile[0.75]
    between = None if low is None or high is None else high - low
    middle = None if low is None or high is None else high + low
    places = [None, *map(float, bins.edges), None]
    ranges = [[places[k], places[k + 1]] for k in range(len(counts))]
    occupied = [k for k, count in enumerate(counts) if count] or [0]  # none of noise alone
    return {
        "entropy": entropy(counts) if total else None,
        "uniformity": float(Fraction(sum(count * count for count in counts), total * total)) if total else None,
        "median": quartile[0.5],
        "percentile_10": quartile[0.1],
        "percentile_90": quartile[0.9],
        "interquartile_range": between,
        "quartile_coefficient_of_dispersion": between / middle if between is not None and middle else None,
        "mode_bin": ranges[max(occupied, key=lambda k: (counts[k], -k))] if total else None,
        "minimum_bin": ranges[occupied[0]] if total else None,
        "maximum_bin": ranges[occupied[-1]] if total else None,
    }
