"""The noise of one released number: how a party draws its share, how large shares are, and what they cost.

A number is the sum of what all parties have. Each party adds a share of noise to its own before the sum, so nobody
knows the whole noise. ``honest`` parties' shares together hide a change of the number by up to ``sensitivity`` as well
as is promised; further shares, and what anybody does with the sum, cannot undo that. Randomness is handed in.

Where a patient's voxels are spread over several ``numbers``, as over the bins of a histogram, the sensitivity is that
of all of them: the most by which they change, added up. Each has noise of its own, and what it costs is what all do.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import isqrt
from typing import TypeAlias

from voxring.privacy.samplers import Random, below, gaussian, laplace_share

TAIL_BITS = 128
"""A share is larger than its ``tail`` with a probability of at most 2^-128."""
LEAST_VARIANCE = 6
"""Of a party's discrete Gaussian: a sum of several is then as good as one, up to a ρ below 3e-25 for each of them."""
_FINENESS = 16  # steps of the grid in a sensitivity, for each unit of ε: the dither adds less than a hundredth of noise
_SPREAD = 4  # and for each of several numbers: that changes are whole steps adds less than a quarter


@dataclass(frozen=True)
class LaplaceNoise:
    """Discrete Laplace noise on a grid, dithered: ε-differential privacy.

    The noise of all honest parties is ``grid`` times a discrete Laplace variable, plus a uniform integer of
    −(grid − 1)/2 … (grid − 1)/2 of each. A grid keeps the sampler fast; the dither makes it exact, since a number plus
    the dither leaves a remainder that tells nothing, and a quotient that changes by at most ``steps``.
    """

    sensitivity: int
    honest: int
    epsilon: Fraction
    numbers: int = 1

    @property
    def grid(self) -> int:
        """An odd number, so that the dither is centred."""
        fine = -(-_FINENESS * self.epsilon.numerator // self.epsilon.denominator)
        return -(-self.sensitivity // max(1, fine, _SPREAD * (self.numbers - 1))) | 1

    @property
    def steps(self) -> int:
        """The sensitivity on the grid: each of the numbers that change may do so by a part of a step more."""
        return (self.sensitivity + min(self.numbers, self.sensitivity) * (self.grid - 1)) // self.grid

    @property
    def gamma(self) -> Fraction:
        """Two neighbouring numbers on the grid differ by a factor of exp(γ)."""
        return self.epsilon / self.steps

    @property
    def tail(self) -> int:
        # P(|difference of two shares| >= x) <= 2 exp(−γx), since a share is no larger than a geometric variable is; and
        # 90 > (TAIL_BITS + 1) ln 2.
        return self.grid * (90 * self.gamma.denominator // self.gamma.numerator + 2)

    def share(self, random: Random) -> int:
        """Draw one party's share."""
        dither = below(self.grid, random) - self.grid // 2
        return self.grid * laplace_share(self.gamma, self.honest, random) + dither


@dataclass(frozen=True)
class GaussianNoise:
    """Discrete Gaussian noise of a variance for each party: `rho`-zero-concentrated differential privacy."""

    sensitivity: int
    honest: int
    variance: int
    numbers: int = 1

    @classmethod
    def of_rho(cls, sensitivity: int, honest: int, rho: Fraction, numbers: int = 1) -> GaussianNoise:
        """Return the least noise that costs no more than ρ, but for what a sum of several costs more than one."""
        wanted = sensitivity**2 / (2 * honest * rho)
        return cls(sensitivity, honest, max(LEAST_VARIANCE, -(-wanted.numerator // wanted.denominator)), numbers)

    @property
    def rho(self) -> Fraction:
        """What releasing the number costs: Kairouz, Liu and Steinke (2021), Proposition 14, with d = 1.

        For one honest party that is Canonne, Kamath and Steinke (2020), Theorem 4. τ is 10 Σ exp(−2π²σ²k/(k+1)) over
        k = 1 … honest − 1, and each k/(k+1) at least 1/2. Of several numbers each costs its own: their squares add up
        to no more than that of the sensitivity.
        """
        size = Fraction(98696, 10000) * self.variance  # π² > 9.8696, e > 2.718
        powers = min(size.numerator // size.denominator, 1000)  # a larger τ is on the safe side
        tau = 10 * self.numbers * (self.honest - 1) * Fraction(1000, 2718) ** powers
        return Fraction(self.sensitivity**2, 2 * self.honest * self.variance) + tau

    @property
    def tail(self) -> int:
        # P(|x| >= T) <= 2 exp(−T² / 2σ²): discrete Gaussians are subgaussian; and 14² / 2 > (TAIL_BITS + 1) ln 2.
        return 14 * (isqrt(self.variance) + 1)

    def share(self, random: Random) -> int:
        """Draw one party's share."""
        return gaussian(self.variance, random)


Noise: TypeAlias = LaplaceNoise | GaussianNoise
