"""How far noise may have moved what is read: deviations and intervals. For reading alone, so floats may be here.

The noise meant is that of all parties together, which is in the result; colluders, who know their own shares, see less.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from math import ceil, sinh, sqrt
from statistics import NormalDist

import numpy as np

from voxring.privacy.accounting import (
    COUNTED,
    QUANTITIES,
    asked,
    honest,
    noise_of,
    shared,
    value_range,
    within_range,
)
from voxring.privacy.noise import LaplaceNoise, Noise
from voxring.statistics import Block, layout
from voxring.study import Study

LEVEL = 0.95
"""How often an interval holds what it is for, at least, over the noise."""
_FINEST = 4096  # beyond so many steps of the grid the shape of the noise does not change


def deviation(noise: Noise, parties: int) -> float:
    """Standard deviation of the noise of so many parties together."""
    if isinstance(noise, LaplaceNoise):
        share = 1 / (2 * sinh(float(noise.gamma) / 2) ** 2) / noise.honest
        return noise.grid * sqrt(parties * (share + (1 - noise.grid**-2) / 12))
    return sqrt(parties * noise.variance)


def half_width(noise: Noise, parties: int, level: float = LEVEL) -> int:
    """Return a number that the size of the noise of so many parties is above with a probability of 1 − level at most.

    The laws are those of the shares, up to what floats round; dithers count with all that they can be.

    Examples
    --------
    >>> half_width(LaplaceNoise(sensitivity=1, honest=3, epsilon=Fraction(1, 10)), parties=3)
    30
    """
    if isinstance(noise, LaplaceNoise):
        finest = max(noise.gamma, Fraction(1, _FINEST))
        steps = _laplace_steps(finest, Fraction(parties, noise.honest), level) * (finest / noise.gamma)
        return ceil(noise.grid * steps) + parties * (noise.grid // 2)
    return ceil(NormalDist().inv_cdf((1 + level) / 2) * deviation(noise, parties)) + 1


@lru_cache(maxsize=64)
def _laplace_steps(gamma: Fraction, shape: Fraction, level: float) -> int:
    """Least x such that a difference of two negative binomial variables of that shape is above it in size as seldom."""
    width = 1 << ceil(80 * (1 + float(shape)) / float(gamma)).bit_length()
    q = np.exp(-float(gamma))
    turns = 2 * np.pi * np.arange(width // 2 + 1) / width
    law = np.fft.irfft(np.abs((1 - q) / (1 - q * np.exp(1j * turns))) ** (2 * float(shape)), width)
    inside = law[0] + 2 * np.cumsum(law[1 : width // 2])
    return 1 + int(np.searchsorted(inside, level))


def scale(study: Study, quantity: str, mean: Fraction = Fraction(0)) -> Fraction:
    """What 1 of a number's integers stands for."""
    if quantity == "sum":
        return Fraction(1, study.denominator)
    return Fraction(1, (mean.denominator * study.unit) ** 2) if quantity == "sdsum" else Fraction(1)


def deviations(study: Study, name: str, mean: Fraction = Fraction(0)) -> dict[str, float]:
    """Standard deviation of the noise in each number of a class; that of sdsum hardly depends on μ."""
    parties = len(study.party) or study.privacy.min_parties
    return {
        of: deviation(noise_of(study, of, name, mean), parties) * float(scale(study, of, mean)) for of in QUANTITIES
    }


def scales(study: Study, block: Block) -> list[Fraction]:
    """What 1 of each integer of a block stands for."""
    unit = Fraction(1, study.unit)
    if block.name == "powers":
        return [unit**order for order in range(1, block.size + 1)]
    return [{"feature_sums": unit, "gram": unit**2}.get(block.name, Fraction(1))] * block.size


def deviations_of_statistics(study: Study, name: str) -> dict[str, list[float]]:
    """Standard deviation of the noise in each additive statistic of a class, block by block; of counts one for all."""
    parties = len(study.party) or study.privacy.min_parties
    found = {}
    for block in layout(study):
        noises = zip(shared(study, block, name), scales(study, block), strict=True)
        off = [deviation(noise, parties) * float(unit) for noise, unit in noises]
        found[block.name] = off[:1] if block.name in COUNTED else off
    return found


def intervals(
    study: Study, name: str, voxels: int, total: Fraction
) -> tuple[tuple[int, int], tuple[Fraction, Fraction]]:
    """Say between which numbers n and mean of a class lie without noise, from the noisy n and sum.

    Each holds with a probability of at least `LEVEL`; that of the mean is made of one of n and one of the sum, each
    twice as sure.
    """
    parties = len(study.party) or study.privacy.min_parties
    low, high = (Fraction(end, study.unit) for end in value_range(study))

    def around(quantity: str, value: Fraction, level: float) -> tuple[Fraction, Fraction]:
        half = half_width(noise_of(study, quantity, name), parties, level) * scale(study, quantity)
        return value - half, value + half

    least, most = around("voxels", Fraction(voxels), LEVEL)
    fewest, largest = around("voxels", Fraction(voxels), (1 + LEVEL) / 2)
    if fewest > 0:
        ends = [end / n for end in around("sum", total, (1 + LEVEL) / 2) for n in (fewest, largest)]
        low, high = within_range(min(ends), study), within_range(max(ends), study)
    return (max(0, int(least)), int(most)), (low, high)


def noise_of_study(study: Study) -> dict[str, object]:
    """What a result says of its noise, as JSON types."""
    table = asked(study)
    return {
        "epsilon": table.epsilon,
        "delta": table.delta,
        "mechanism": table.mechanism,
        "unit": table.unit,
        "colluders": study.privacy.collusion,
        "honest": honest(study),
        "level": LEVEL,
        "told": "every number is noisy; intervals hold what it would be without noise, at this level",
    }


def noise_of_class(study: Study, name: str, voxels: int, total: Fraction) -> dict[str, object]:
    """What a result says of the noise in a class's numbers, as JSON types."""
    count, mean = intervals(study, name, voxels, total)
    return {
        "std": deviations(study, name, within_range(total / voxels, study)) | deviations_of_statistics(study, name),
        "voxels_interval": list(count),
        "mean_interval": [float(end) for end in mean],
    }
