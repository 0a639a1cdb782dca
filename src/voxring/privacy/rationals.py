"""Logarithms of rationals, bounded from below and above by rationals: what accounting may round, and how.

Within a bound all is an integer over 2^128, and every division rounds to the side of the bound.
"""

from __future__ import annotations

from fractions import Fraction

_BITS = 128
_ONE = 1 << _BITS


def log_below(x: Fraction) -> Fraction:
    """Return a rational that is at most ln x, by less than 2^-100.

    Examples
    --------
    >>> float(log_below(Fraction(10)))
    2.302585092994046
    """
    return _log(x)[0]


def log_above(x: Fraction) -> Fraction:
    """Return a rational that is at least ln x, by less than 2^-100."""
    return _log(x)[1]


def _log(x: Fraction) -> tuple[Fraction, Fraction]:
    """ln x from both sides: x = m · 2^e with 1 ≤ m < 2."""
    if x <= 0:
        raise ValueError(f"expected a number above 0, got {x}")
    exponent = x.numerator.bit_length() - x.denominator.bit_length()
    if Fraction(2) ** exponent > x:
        exponent -= 1
    (low, high), (two_low, two_high) = _log_of_mantissa(x / Fraction(2) ** exponent), _log_of_mantissa(Fraction(2))
    if exponent < 0:
        two_low, two_high = two_high, two_low
    return Fraction(low + exponent * two_low, _ONE), Fraction(high + exponent * two_high, _ONE)


def _log_of_mantissa(m: Fraction) -> tuple[int, int]:
    """ln m for 1 ≤ m ≤ 2, over 2^128: 2 (z + z³/3 + z⁵/5 + …) with z = (m − 1) / (m + 1) ≤ 1/3."""
    z = (m - 1) / (m + 1)
    low = (z.numerator << _BITS) // z.denominator
    return 2 * _series(low, up=False), 2 * _series(low + 1, up=True)


def _series(z: int, *, up: bool) -> int:
    total, power, k = 0, z, 1
    while power > 1:
        total += -(-power // k) if up else power // k
        power = (power * z >> _BITS) + up
        power = (power * z >> _BITS) + up
        k += 2
    return total + 2 * up  # what is cut off is below 9/8 of the last power, which is 1 at most
