"""Features and the sums over them, as loops over voxels with fractions. Imports nothing of voxring."""

from collections import Counter
from fractions import Fraction
from math import isqrt

from naive import half_even, indices, source_index, window_values


def half_even_root(value):
    """√value of a fraction >= 0 to the nearest integer, a half to the even one."""
    root = isqrt(value.numerator // value.denominator)
    middle = Fraction(2 * root + 1, 2) ** 2
    return root + 1 if value > middle or (value == middle and root % 2 == 1) else root


def windowed(kind, values, unit):
    times = Counter(values)
    n = len(values)

    def moment(order, about):
        return sum(count * (value - about) ** order for value, count in times.items()) / n

    mean = moment(1, Fraction(0))
    second = moment(2, mean)
    if kind == "mean":
        return half_even(mean)
    if kind == "variance":
        return half_even(second / unit)
    if kind == "std":
        return half_even_root(second)
    if second == 0:
        return 0
    if kind == "contrast":
        return half_even_root(unit**2 * second / (second + mean**2))
    third = moment(3, mean)
    size = half_even_root(unit**2 * third**2 / second**3)
    return size if third > 0 else -size


def gradient(x, shape, q, border, fill):
    total = Fraction(0)
    for axis, length in enumerate(shape):
        ends = []
        for step in (-1, 1):
            place = source_index(q[axis] + step, length, border)
            if place is None:
                ends.append((None, fill))
            else:
                ends.append((q[axis] + step, x[(*q[:axis], place, *q[axis + 1 :])]))
        (low, before), (high, after) = ends
        if border != "clip":
            total += Fraction(after - before, 2) ** 2
        elif low is not None or high is not None:
            after, before = (x[q] if place is None else value for place, value in reversed(ends))
            total += Fraction(after - before, 2 if None not in (low, high) else 1) ** 2
    return half_even_root(total)


def feature_map(kind, x, shape, window, border, fill, unit):
    """One feature at every voxel; ``x`` maps an index to its standardised integer."""
    made = {}
    for q in indices(shape):
        if kind == "intensity":
            made[q] = x[q]
        elif kind == "gradient":
            made[q] = gradient(x, shape, q, border, fill)
        else:
            made[q] = windowed(kind, window_values(x, shape, q, window, border, fill), unit)
    return made


def bin_of(value, low, high, count):
    """0 below the range, 1 … count, count + 1 above; the last bin holds its right edge."""
    if value < low:
        return 0
    if value > high:
        return count + 1
    return min(int((value - low) * count / (high - low)), count - 1) + 1


def cooccurrences(x, truth, label, shape, unit, levels, low, high, distance, *, planar=False):
    """Counts of pairs of levels, both ways; both voxels have the label."""
    counts = [[0] * levels for _ in range(levels)]
    axes = len(shape)
    for q in indices(shape):
        for number in range(3**axes):
            step = [number // 3**axis % 3 - 1 for axis in range(axes)]
            other = tuple(c + distance * s for c, s in zip(q, step, strict=True))
            if not any(step) or (planar and axes == 3 and step[0]) or not _within(other, shape):
                continue
            if truth[q] == label == truth[other]:
                i, j = (min(max(bin_of(Fraction(x[p], unit), low, high, levels), 1), levels) - 1 for p in (q, other))
                counts[i][j] += 1
    return [count for row in counts for count in row]


def _within(q, shape):
    return all(0 <= c < n for c, n in zip(q, shape, strict=True))


def statistics(maps, x, truth, label, shape, unit, *, gram=False, moments=0, histogram=None, glcm=None):
    """The additive integers of one class, in the order of the study's layout."""
    inside = [q for q in indices(shape) if truth[q] == label]
    answer = []
    if gram:
        answer += [sum(f[q] for q in inside) for f in maps]
        answer += [sum(f[q] * g[q] for q in inside) for i, f in enumerate(maps) for g in maps[i:]]
    answer += [sum(x[q] ** k for q in inside) for k in range(1, moments + 1)]
    if histogram is not None:
        count, low, high = histogram
        counts = [0] * (count + 2)
        for q in inside:
            counts[bin_of(Fraction(x[q], unit), low, high, count)] += 1
        answer += counts
    if glcm is not None:
        levels, low, high, distance, planar = glcm
        answer += cooccurrences(x, truth, label, shape, unit, levels, low, high, distance, planar=planar)
    return tuple(answer)
