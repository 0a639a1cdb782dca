"""Exact samplers of integer noise: integers in, integers out, randomness handed in; no float and no rounding anywhere.

Every probability is met exactly, given uniform random bytes. The building blocks are those of Canonne, Kamath and
Steinke, *The Discrete Gaussian for Differential Privacy* (2020), Algorithms 1 to 3: a coin that shows heads with
probability exp(−γ) for a rational γ, from coins of rational probability alone (von Neumann's way); from it a geometric
variable, and from that, by rejection, everything else.

`polya` is what they do not have: a *share* of a discrete Laplace variable. With r = 1 / parts,

    P(x) = (1 − q)^r · q^x · Π_{j=1…x} (j − 1 + r) / j,   q = exp(−γ)     (Pólya, or negative binomial)

and the sum of so many independent ones is geometric, the difference of two geometric ones discrete Laplace. Since each
factor of the product is a probability, and a rational one, a geometric x is accepted with just that product.

The time that a draw takes depends on what is drawn: see docs/differential-privacy.md.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import isqrt
from typing import TypeAlias

Random: TypeAlias = Callable[[int], bytes]
"""A source of that many uniform random bytes; `secrets.token_bytes` outside of tests."""


def below(count: int, random: Random) -> int:
    """Draw one of 0 … count − 1, each as likely, by rejection.

    Raises
    ------
    ValueError
        ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"expected at least one number to draw from, got {count}")
    bits = (count - 1).bit_length()
    while True:
        drawn = int.from_bytes(random((bits + 7) // 8), "big") >> (-bits % 8)
        if drawn < count:
            return drawn


def coin(numerator: int, denominator: int, random: Random) -> bool:
    """Show heads with probability numerator / denominator."""
    return below(denominator, random) < numerator


def exp_coin(numerator: int, denominator: int, random: Random) -> bool:
    """Show heads with probability exp(−numerator / denominator); Algorithm 1."""
    while numerator > denominator:
        if not exp_coin(1, 1, random):
            return False
        numerator -= denominator
    tosses = 1
    while coin(numerator, denominator * tosses, random):
        tosses += 1
    return tosses % 2 == 1


def geometric(gamma: Fraction, random: Random) -> int:
    """Draw x ≥ 0 with probability (1 − q)·q^x, q = exp(−γ); the first half of Algorithm 2."""
    top, bottom = gamma.numerator, gamma.denominator
    while True:
        low = below(bottom, random)
        if exp_coin(low, bottom, random):
            break
    high = 0
    while exp_coin(1, 1, random):
        high += 1
    return (low + bottom * high) // top


def laplace(gamma: Fraction, random: Random) -> int:
    """Draw x with probability (1 − q) / (1 + q) · q^|x|, q = exp(−γ): discrete Laplace; Algorithm 2."""
    while True:
        size, negative = geometric(gamma, random), coin(1, 2, random)
        if size or not negative:
            return -size if negative else size


def polya(gamma: Fraction, parts: int, random: Random) -> int:
    """Draw a share of a geometric variable: the sum of ``parts`` independent ones is `geometric`.

    With p = 1 − exp(−γ), a draw takes p^(1/parts − 1) geometric ones on average.
    """
    while True:
        drawn = geometric(gamma, random)
        if all(coin((j - 1) * parts + 1, j * parts, random) for j in range(1, drawn + 1)):
            return drawn


def laplace_share(gamma: Fraction, parts: int, random: Random) -> int:
    """Draw a share of a discrete Laplace variable: the sum of ``parts`` independent ones is `laplace`."""
    return polya(gamma, parts, random) - polya(gamma, parts, random)


def gaussian(variance: int, random: Random) -> int:
    """Draw x with a probability proportional to exp(−x² / 2σ²), σ² = variance: discrete Gaussian; Algorithm 3."""
    step = isqrt(variance) + 1
    while True:
        drawn = laplace(Fraction(1, step), random)
        if exp_coin((abs(drawn) * step - variance) ** 2, 2 * variance * step * step, random):
            return drawn
