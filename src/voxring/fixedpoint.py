"""Standardisation (Algorithm 1, line 1) as maps between integers, and the size of the modulus.

A standardised voxel is an integer x that stands for x / 2^p. Every method maps the stored integer v by x = a·v + b,
piece by piece, with integer a and b, so the kernels may sum v and apply a and b to the sums. Rounding, half to even,
happens where a and b are made. Float stops here, and starts again at `square_root`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from itertools import pairwise
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

# Standardised voxels are held in int64 with room for the kernels to sum a few thousand of them.
STANDARDISED_LIMIT = 2**47
# Fraction bits that a has beyond p where voxels are floats: there, x is rounded for every voxel anyway.
FLOAT_SHIFT = 24


@dataclass(frozen=True, slots=True)
class AffineMap:
    """x = (a·v + b) / 2^shift on each piece, rounded half to even where shift is not 0.

    Piece j holds the v from ``starts[j - 1]`` to ``starts[j] - 1``; the first and the last are open.

    Examples
    --------
    >>> AffineMap(a=(0, 16, 0), b=(0, 16000, 64000), starts=(-1000, 3001)).apply(np.array([-2000, 0, 9000]))
    array([    0, 16000, 64000])
    """

    a: tuple[int, ...]
    b: tuple[int, ...]
    starts: tuple[int, ...] = ()
    shift: int = 0

    def single(self, low: int, high: int) -> tuple[int, int] | None:
        """Return (a, b) if one piece, unrounded, holds all stored integers from low to high."""
        piece = bisect_right(self.starts, low)
        if self.shift or piece != bisect_right(self.starts, high):
            return None
        return self.a[piece], self.b[piece]

    def at(self, value: int) -> int:
        """Map one stored integer."""
        piece = bisect_right(self.starts, value)
        return round(Fraction(self.a[piece] * value + self.b[piece], 1 << self.shift))

    def ends(self, low: int, high: int) -> tuple[int, int]:
        """Return the least and the largest x that stored integers from low to high can be mapped to."""
        corners = {low, high}
        for start in self.starts:
            corners.update(v for v in (start - 1, start) if low <= v <= high)
        images = [self.at(v) for v in corners]
        return min(images), max(images)

    def apply(self, voxels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Map stored integers of any shape; the caller has checked `ends` against its limit.

        Raises
        ------
        OverflowError
            A product a·v + b of a piece leaves 63 bits.
        """
        v = voxels.astype(np.int64)
        if v.size == 0:
            return v
        low, high = int(v.min()), int(v.max())
        edges = (low, *self.starts, high + 1)
        x: npt.NDArray[np.int64] = np.empty_like(v)
        for piece, (a, b) in enumerate(zip(self.a, self.b, strict=True)):
            first, last = max(low, edges[piece]), min(high, edges[piece + 1] - 1)
            if first > last:
                continue
            if max(abs(a * first), abs(a * first + b), abs(a * last), abs(a * last + b)) >= 2**62:
                raise OverflowError("a standardised voxel needs more than 62 bits: use fewer fraction_bits")
            inside = slice(None) if first == low and last == high else (v >= first) & (v <= last)
            x[inside] = _round_shift(a * v[inside] + b, self.shift)
        return x


def _round_shift(x: npt.NDArray[np.int64], shift: int) -> npt.NDArray[np.int64]:
    """Divide by 2^shift, rounding half to even."""
    if shift == 0:
        return x
    floor = x >> shift
    rest = x & ((1 << shift) - 1)
    half = 1 << (shift - 1)
    floor[(rest > half) | ((rest == half) & ((floor & 1) == 1))] += 1
    return floor


def plain(slope: Fraction, intercept: Fraction, bits: int) -> AffineMap:
    """``none``: the value itself, slope·v + intercept."""
    return AffineMap((round(slope * 2**bits),), (round(intercept * 2**bits),))


def through(knots: Sequence[tuple[Fraction, Fraction]], bits: int, *, shift: int = 0) -> AffineMap:
    """Piecewise linear through knots (stored value, standardised value), constant beyond the first and the last.

    Each piece is anchored at the knot on its left, so two files that store the same intensities with other
    intercepts are mapped to the same integers. Stored values of the knots must rise.

    Raises
    ------
    ValueError
        The knots do not rise, or a slope rounds to 0: ``fraction_bits`` is too small for the range.
    """
    scale = 2 ** (bits + shift)
    a: list[int] = []
    b: list[int] = []
    starts: list[int] = []
    for (v0, x0), (v1, x1) in pairwise(knots):
        if v0 >= v1:
            raise ValueError("the stored values of the landmarks must rise")
        step = round((x1 - x0) / (v1 - v0) * scale)
        if step == 0 and x1 != x0:
            raise ValueError("the range is too wide for fraction_bits: one step of the image is below 2^-fraction_bits")
        a.append(step)
        b.append(round(x0 * scale - step * v0))
        starts.append(-((-v0.numerator) // v0.denominator))  # the first integer at or above the knot
    last = knots[-1][0].numerator // knots[-1][0].denominator
    below = a[0] * starts[0] + b[0]
    above = a[-1] * last + b[-1]
    return AffineMap((0, *a, 0), (below, *b, above), (*starts, last + 1), shift)


def zscore(count: int, total: int, squares: int, bits: int, *, shift: int = 0) -> AffineMap:
    """(v − mean) / standard deviation, from count, Σv and Σv² of the foreground (the deviation divides by count).

    Raises
    ------
    ValueError
        The foreground is empty or of one value.
    """
    spread = count * squares - total * total  # count² times the variance
    if count == 0 or spread == 0:
        raise ValueError("zscore needs a foreground of at least two different values")
    # a = 2^bits · count / sqrt(spread), rounded half to even: compare 2·root + 1 with the true double of it.
    target = Fraction((2 ** (bits + shift) * count) ** 2, spread)
    root = isqrt(target.numerator // target.denominator)
    middle = Fraction(2 * root + 1, 2) ** 2
    if target > middle or (target == middle and root % 2 == 1):
        root += 1
    if root == 0:
        raise ValueError("the deviation is too wide for fraction_bits: one step of the image is below 2^-fraction_bits")
    return AffineMap((root,), (round(Fraction(-root * total, count)),), shift=shift)


def grid(values: npt.NDArray[np.floating], bits: int) -> npt.NDArray[np.int64]:
    """Put finite floats on the grid 2^-bits, half to even: exact, since scaling by a power of two is.

    Raises
    ------
    OverflowError
        A value does not fit 47 bits on the grid.
    """
    scaled = np.rint(np.ldexp(values.astype(np.float64), bits))
    if scaled.size and not float(np.abs(scaled).max()) < STANDARDISED_LIMIT:
        raise OverflowError(f"a value does not fit 47 bits at {bits} fraction bits")
    return scaled.astype(np.int64)


def modulus(parties: int, bound: int) -> int:
    """Return N, in which a sum of values of size at most bound, one a party, cannot wrap: a power of 2^64.

    The paper's Section 4 asks that the sum lies in [0, N − 1]; centred residues hold −parties·bound … parties·bound.
    N is at least 2^64 times that range, which the checksum needs (`voxring.ring.checksum`), and whole 64-bit limbs make
    vectors fast.

    Examples
    --------
    >>> modulus(3, 10**10) == 2**128
    True
    """
    bits = (2 * parties * bound).bit_length() + 64
    return 1 << (-(-bits // 64) * 64)


def square_root(value: Fraction) -> float:
    """Square root of an exact fraction, correct to 50 digits before the one rounding to float."""
    context = Context(prec=60)
    quotient = context.divide(Decimal(value.numerator), Decimal(value.denominator))
    return float(context.sqrt(quotient))
