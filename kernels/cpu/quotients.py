"""The one step of a map in floating point: from a row of exact integers to means or variances.

Each result is what the definition says: the exact numerator N and denominator D, both below 2^53 or rounded to
float64, divided in float64, and that rounded to the map's type. Two roads give the same without a division. Let
q = N / D, not 0, and m a halfway point between two results of p bits, p = 24 for float32 and 53 for float64:
m = k 2^e with k odd, 2^p < k < 2^(p + 1). A road is right if q is no m, and if it errs by less than q is from any m.

**Fused**, where |N| <= 2^p and D <= 2^(p - 3): with y = 1 / D and z = 1 / D − y, both rounded to p bits, N y + N z by
a product and a fused one.

- q is no m: with D = 2^t D', D' odd, N = D m = D' k 2^(e + t) is an integer only if e >= −t, so |N| >= k > 2^p.
- N − D m is a multiple of 2^e, or of 1 for e >= 0, and not 0. So |q − m| >= 2^e / D > |m| 2^-(p + 1) / D >=
  |m| 2^-(2p - 2); for e >= 0, |q − m| >= 1 / D >= |q| 2^-(2p - 3), since |q| <= 2^p.
- What is rounded in the end is off by what z errs, 2^-p |z|, and by the rounding of N z: each at most
  1.01 · 2^-2p |q|, since |z| <= 1.01 · 2^-p / D. A division in float64 that is then rounded to float32 is off by
  2^-53 |q|, no more.

**Multiply**, for float32 where D <= 2^25 and |N| < 2^53: N · (1 / D) in float64, then rounded.

- It errs by 2^-51.9 |q| before the last rounding (two roundings, of 1 / D and of the product; a division has one).
- If q is no m: as above |q − m| > |m| 2^-25 / D >= |m| 2^-50, for |q| < 2^24 < |m| where e >= 0.
- q = m needs e >= −t, as above, and then |q| > 2^(24 − t). So it cannot be if all |q| <= most with
  most · 2^t <= 2^24. That is what `may_multiply` asks.

Nothing on the way is subnormal: |q| >= 1 / D, and z, where it is not 0, is a multiple of 2^-3p.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .jit import Array, Number, jit, merged
from .running import fused

U = np.uint64
LARGEST_DIVISOR = 1 << 25

DIVIDE, MULTIPLY, FUSED = 0, 1, 2


class Divisors(NamedTuple):
    """What the sums of one row are divided by, for each column: D is |W_q|, or for variances its square.

    Flat, since numba takes half a millisecond to hand a tuple within a tuple to a kernel.
    """

    counts: Array  # |W_q|, as float64
    near: Array  # 1 / D, as float64
    rest: Array  # what that lacks
    near32: Array  # both as float32
    rest32: Array


def divisors(n: int) -> Divisors:
    """Room for n columns."""
    return Divisors(*(np.empty(n, kind) for kind in (np.float64,) * 3 + (np.float32,) * 2))


@jit
def may_multiply(divisor: int, most: int) -> bool:
    """Whether N · (1 / divisor) rounds to the same float32 as N / divisor, for every quotient of at most ``most``."""
    even = divisor & -divisor
    return divisor <= LARGEST_DIVISOR and most <= (1 << 24) and most * even <= (1 << 24)


@merged
def set_divisors(
    to: Divisors, over: int, inside: Array, at: Number, n: Number, squared: bool, most: int
) -> tuple[bool, int]:
    """Fill ``to`` for a row whose windows have ``over`` · inside[at + i] places.

    Returns whether all `may_multiply`, and the largest divisor.
    """
    at = U(at)
    all_may = True
    largest = last = 0
    one = near = rest = 0.0
    near32 = rest32 = np.float32(0)
    for i in range(U(n)):
        count = over * inside[at + i]
        if count != last:
            last = count
            divisor = count * count if squared else count
            largest = max(largest, divisor)
            all_may = all_may and may_multiply(divisor, most)
            one, whole = np.float64(count), np.float64(divisor)
            near = 1.0 / whole
            rest = fused(-near, whole, 1.0) / whole
            near32 = np.float32(near)
            rest32 = np.float32(fused(-np.float64(near32), whole, 1.0) / whole)
        to.counts[i], to.near[i], to.rest[i], to.near32[i], to.rest32[i] = one, near, rest, near32, rest32
    return all_may, largest


@merged
def at_most(values: Array, n: Number, bound: int) -> bool:
    """Whether no |value| of a row is larger than ``bound``."""
    low = high = values[0]
    for i in range(U(n)):
        low, high = min(low, values[i]), max(high, values[i])
    return bool(low >= -bound and high <= bound)


@merged
def means_of(
    out: Array, to: Number, sums: Array, by: Divisors, near: Array, rest: Array, at: Number, n: Number, road: int
) -> None:
    """out = S / |W| of the n columns from ``at`` on, rounded to float64 and then to the type of ``out``: that of
    ``near`` and ``rest`` of ``by``.
    """
    to, at = U(to), U(at)
    kind = out.dtype.type
    if road == FUSED:
        for i in range(U(n)):
            total = kind(sums[at + i])
            out[to + i] = fused(total, near[at + i], total * rest[at + i])
    elif road == MULTIPLY:
        for i in range(U(n)):
            out[to + i] = np.float64(sums[at + i]) * by.near[at + i]
    else:
        for i in range(U(n)):
            out[to + i] = np.float64(sums[at + i]) / by.counts[at + i]


@merged
def variances_of(
    out: Array,
    to: Number,
    sums: Array,
    squares: Array,
    by: Divisors,
    at: Number,
    n: Number,
    road: int,
    small: bool,
) -> None:
    """out = (|W| Q − S²) / |W|² of the n columns from ``at`` on, the numerator exact.

    ``small`` says that |W| Q and S² are below 2^53: then float64 holds them, and their difference, exactly. Otherwise
    both are below 2^63, and the road is to divide. |W|² is below 2^53 wherever it matters: beyond, it is rounded once,
    as the definition does. To be fused, ``out`` must be float64.
    """
    to, at = U(to), U(at)
    counts = by.counts
    if road == MULTIPLY:
        for i in range(U(n)):
            total = np.float64(sums[at + i])
            out[to + i] = fused(np.float64(squares[at + i]), counts[at + i], -(total * total)) * by.near[at + i]
    elif road == FUSED:
        for i in range(U(n)):
            total = np.float64(sums[at + i])
            numerator = fused(np.float64(squares[at + i]), counts[at + i], -(total * total))
            out[to + i] = fused(numerator, by.near[at + i], numerator * by.rest[at + i])
    elif small:
        for i in range(U(n)):
            total = np.float64(sums[at + i])
            out[to + i] = fused(np.float64(squares[at + i]), counts[at + i], -(total * total)) / (
                counts[at + i] * counts[at + i]
            )
    else:
        for i in range(U(n)):
            whole = np.int64(sums[at + i])
            numerator = np.int64(counts[at + i]) * np.int64(squares[at + i]) - whole * whole
            out[to + i] = np.float64(numerator) / (counts[at + i] * counts[at + i])
