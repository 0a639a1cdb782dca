"""The one step of a map in floating point: from a row of exact integers to means or variances.

Each result is what the definition says: the exact numerator N and denominator D, both below 2^53 or rounded to
float64, divided in float64, and that rounded to the map's type. For float32, multiplying by 1 / D gives the same at a
third of the time wherever D <= 2^25 and |N| < 2^53 are such that no quotient lies halfway between two float32:

- Let q = N / D, not 0. Either road reaches a float64 within 2^-51.9 |q| of q (two roundings, of 1 / D and of the
  product; a division has one). The float32 differs only if a halfway point m lies between that float64 and q, or on
  one of them. m = k 2^e with k odd, 2^24 < k < 2^25.
- If q is not m: N − D m is a multiple of 2^e, or of 1 for e >= 0, so |q − m| >= 2^e / D > |m| 2^-25 / D >= |m| 2^-50,
  which is farther than either road errs. (For e >= 0, |q − m| >= 1 / D, and |q| < 2^24 < |m| by what follows.)
- q = m needs N = D k 2^e. With D = 2^t D', D' odd, 2^(e + t) D' k is an integer only if e >= −t, and then
  |q| > 2^(24 − t). So it cannot be if all |q| <= most with most · 2^t <= 2^24. That is what `may_multiply` asks.

No float32 in between is subnormal: |q| >= 1 / D >= 2^-25.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .jit import Array, Number, inner, jit

U = np.uint64
LARGEST_DIVISOR = 1 << 25


class Divisors(NamedTuple):
    """What the sums of one row are divided by, for each column."""

    counts: Array  # |W_q|, as float64
    shares: Array  # 1 / |W_q|, or 1 / |W_q|² for variances


@jit
def may_multiply(divisor: int, most: int) -> bool:
    """Whether N · (1 / divisor) rounds to the same float32 as N / divisor, for every quotient of at most ``most``."""
    even = divisor & -divisor
    return divisor <= LARGEST_DIVISOR and most <= (1 << 24) and most * even <= (1 << 24)


@inner
def set_divisors(to: Divisors, over: int, inside: Array, at: Number, n: Number, squared: bool, most: int) -> bool:
    """Fill ``to`` for a row whose windows have ``over`` · inside[at + i] places; whether all `may_multiply`."""
    counts, shares = to
    at = U(at)
    all_may = True
    last, may = -1, False
    for i in range(U(n)):
        count = over * inside[at + i]
        divisor = count * count if squared else count
        if count != last:
            last, may = count, may_multiply(divisor, most)
        all_may = all_may and may
        counts[i] = np.float64(count)
        shares[i] = 1.0 / np.float64(divisor)
    return all_may


@inner
def means_of(out: Array, to: Number, sums: Array, by: Divisors, n: Number, multiply: bool, same: bool) -> None:
    """out = S / |W|, rounded to float64 and then to the type of ``out``. ``same``: by one |W| for all columns."""
    to = U(to)
    counts, shares = by
    if multiply and same:
        share = shares[0]
        for i in range(U(n)):
            out[to + i] = np.float64(sums[i]) * share
    elif multiply:
        for i in range(U(n)):
            out[to + i] = np.float64(sums[i]) * shares[i]
    else:
        for i in range(U(n)):
            out[to + i] = np.float64(sums[i]) / counts[i]


@inner
def variances_of(
    out: Array, to: Number, sums: Array, squares: Array, by: Divisors, n: Number, multiply: bool, small: bool
) -> None:
    """out = (|W| Q − S²) / |W|², the numerator exact.

    ``small`` says that |W| Q and S² are below 2^53: then float64 holds them, and their difference, exactly. Otherwise
    both are below 2^63. |W|² is below 2^53 wherever it matters: beyond, it is rounded once, as the definition does.
    """
    to = U(to)
    counts, shares = by
    if multiply and small:
        for i in range(U(n)):
            total = np.float64(sums[i])
            out[to + i] = (np.float64(squares[i]) * counts[i] - total * total) * shares[i]
    elif small:
        for i in range(U(n)):
            total = np.float64(sums[i])
            out[to + i] = (np.float64(squares[i]) * counts[i] - total * total) / (counts[i] * counts[i])
    else:
        for i in range(U(n)):
            whole = np.int64(sums[i])
            numerator = np.int64(counts[i]) * np.int64(squares[i]) - whole * whole
            out[to + i] = np.float64(numerator) / (counts[i] * counts[i])
