"""The definitions, as loops over voxels with fractions. Imports nothing of voxring and shares no code with it.

Slow on purpose: every number is reached the way the paper writes it. Images are nested lists or arrays of 2 or 3 axes.
"""

from fractions import Fraction
from itertools import pairwise, product
from math import isqrt


def half_even(value):
    """Nearest integer, ties to the even one."""
    floor = value.numerator // value.denominator
    rest = value - floor
    if rest > Fraction(1, 2) or (rest == Fraction(1, 2) and floor % 2):
        floor += 1
    return floor


def half_even_root(value):
    """Square root of a fraction >= 0, to the nearest integer."""
    root = isqrt(value.numerator // value.denominator)
    return root if value < Fraction(2 * root + 1, 2) ** 2 else root + 1


def source_index(i, n, border):
    """Where along an axis of n voxels an index i beyond the border reads, or None for outside."""
    if 0 <= i < n:
        return i
    if border in ("clip", "constant"):
        return None
    if border == "nearest":
        return 0 if i < 0 else n - 1
    while not 0 <= i < n:
        if border == "reflect":  # d c b a | a b c d | d c b a
            i = -1 - i if i < 0 else 2 * n - 1 - i
        elif n == 1:
            i = 0
        else:  # mirror: d c b | a b c d | c b a
            i = -i if i < 0 else 2 * n - 2 - i
    return i


def window_values(x, shape, q, window, border, fill):
    """All values that the window at q holds; ``x`` maps an index to its integer."""
    axes = []
    for position, size, n in zip(q, window, shape, strict=True):
        first = position - size // 2
        axes.append([source_index(i, n, border) for i in range(first, first + size)])
    values = []
    for index in product(*axes):
        if None not in index:
            values.append(x[index])
        elif border == "constant":
            values.append(fill)
    return values


def indices(shape):
    return list(product(*(range(n) for n in shape)))


def standardise(image, shape, options, slope=1, intercept=0):
    """Every voxel as an integer x that stands for x / 2^p. ``options`` are the keys of the study's table."""
    p = options.get("fraction_bits", 16)
    method = options.get("method", "none")
    slope, intercept = Fraction(slope), Fraction(intercept)
    v = {q: int(image[q]) for q in indices(shape)}
    if method == "none":
        a, b = half_even(slope * 2**p), half_even(intercept * 2**p)
        return {q: a * v[q] + b for q in v}
    if method == "rescale":
        low, high = (Fraction(str(end)) for end in options["range"])
        return _lines(v, [((low - intercept) / slope, 0), ((high - intercept) / slope, 1)], p)
    foreground = _foreground(list(v.values()), options, slope, intercept)
    if method == "zscore":
        stored = [s for _, s in foreground]
        n = len(stored)
        centre = Fraction(sum(stored), n)
        variance = sum((s - centre) ** 2 for s in stored) / n
        a = half_even_root(Fraction(4**p) / variance) * (1 if slope > 0 else -1)
        b = half_even(-a * centre)
        return {q: a * v[q] + b for q in v}
    targets = [Fraction(str(target)) for target in options.get("landmarks", (0, 1))]
    return _lines(v, list(zip(_percentiles(foreground, options, slope), targets, strict=True)), p)


def _foreground(v, options, slope, intercept):
    """The foreground of stored integers, as (value, stored integer), rising by value."""
    wanted = options.get("foreground", "above-mean")
    value = [slope * one + intercept for one in v]
    mean = sum(value) / len(value)
    return sorted(
        (x, one)
        for x, one in zip(value, v, strict=True)
        if wanted == "all" or (wanted == "nonzero" and x != 0) or (wanted == "above-mean" and x > mean)
    )


def _percentiles(foreground, options, slope):
    """The stored integers at the percentiles of a foreground of (value, stored integer), rising by value."""
    found = []
    for percentile in options["percentiles"]:
        rank = max(1, -((-Fraction(str(percentile)) * len(foreground)) // 100))
        if slope > 0:
            found.append(Fraction(foreground[rank - 1][1]))
        else:  # ranks are taken among the stored integers
            rising = sorted(s for _, s in foreground)
            rank = max(1, -((-(100 - Fraction(str(percentile))) * len(foreground)) // 100))
            found.append(Fraction(rising[rank - 1]))
    return found


def standard_scale(images, options):
    """Where each percentile lies between the first and the last, as an integer over 2^p, on the mean over all images.

    ``images`` are (image,) or (image, slope, intercept).
    """
    p = options.get("fraction_bits", 16)
    rows = []
    for image, *scale in images:
        slope, intercept = map(Fraction, scale or (1, 0))
        v = [int(image[q]) for q in indices(tuple(len(axis) for axis in _axes(image)))]
        stored = _percentiles(_foreground(v, options, slope, intercept), options, slope)
        rows.append([half_even((one - stored[0]) * 2**p / (stored[-1] - stored[0])) for one in stored])
    return tuple(Fraction(sum(column), len(rows) * 2**p) for column in zip(*rows, strict=True))


def _lines(v, knots, p):
    """Straight lines between knots (stored, target), each through its left knot; constant outside."""
    knots = sorted(knots)
    if any(left[0] == right[0] for left, right in pairwise(knots)):
        raise ValueError("two knots at one stored value")
    x = {}
    for q, stored in v.items():
        inside = min(max(stored, -((-knots[0][0]) // 1)), knots[-1][0] // 1)
        j = max(i for i in range(len(knots) - 1) if knots[i][0] <= inside)
        (v0, x0), (v1, x1) = knots[j], knots[j + 1]
        a = half_even(Fraction((x1 - x0) * 2**p) / (v1 - v0))
        x[q] = a * int(inside) + half_even(x0 * 2**p - a * v0)
    return x


def algorithm_1(parties, classes, window, border, *, fill=0, options=None):
    """n, sum, μ, sdsum, σ² for each class, pooled over all images of all parties, lines 1 to 27.

    ``parties`` is a list of lists of (image, ground truth) or (image, ground truth, slope, intercept).
    """
    options = options or {}
    unit = 2 ** options.get("fraction_bits", 16)
    outside = half_even(Fraction(str(fill)) * unit)
    local_means = {name: [] for name in classes}
    intensities = {name: [] for name in classes}
    for images in parties:
        for image, ground_truth, *scale in images:
            shape = tuple(len(axis) for axis in _axes(image))
            sizes = (window,) * len(shape) if isinstance(window, int) else tuple(window)[-len(shape) :]
            x = standardise(image, shape, options, *scale)
            for q in indices(shape):
                for name, label in classes.items():
                    if int(ground_truth[q]) == label:
                        seen = window_values(x, shape, q, sizes, border, outside)
                        local_means[name].append(Fraction(sum(seen), len(seen) * unit))
                        intensities[name].append(Fraction(x[q], unit))
    answer = {}
    for name in classes:
        n = len(intensities[name])
        if n < 2:
            answer[name] = (n, sum(local_means[name], Fraction(0)), None, None, None)
            continue
        total = sum(local_means[name])
        mean = total / n
        sdsum = sum((value - mean) ** 2 for value in intensities[name])
        answer[name] = (n, total, mean, sdsum, sdsum / (n - 1))
    return answer


def _axes(image):
    while hasattr(image, "__len__") and not isinstance(image, (str, bytes)):
        yield image
        image = image[0]
