"""What differential privacy a study has: the sensitivity of every number, the split of the budget, and what is spent.

All in exact rationals, rounded to the side on which less is promised. The theorems stand in
docs/differential-privacy.md.

The unit is a patient of one party: studies whose images differ by one patient are told apart no better than (ε, δ)
allows. A patient adds to a class at most ``voxels_per_patient`` voxels (`voxring.totals.clipped`), each of a
standardised value within `value_range`. The budget is split evenly over what is released of each class: `QUANTITIES`,
and each block of additive statistics that the study asks for. ε is split for Laplace (basic composition), for Gaussian
the ρ of zero-concentrated differential privacy that (ε, δ) allows. The numbers of a block share its part: see `shared`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import cast

from voxring.privacy.noise import GaussianNoise, LaplaceNoise, Noise
from voxring.privacy.rationals import log_below
from voxring.statistics import PLANAR_DIRECTIONS, Block, layout, of_one_voxel
from voxring.study import DifferentialPrivacy, Study

QUANTITIES = ("voxels", "patients", "sum", "sdsum")
"""What is released of each class, with noise, whatever the study asks for. Beside it, additive statistics alone may
leave a party under differential privacy."""

COUNTED = ("histogram", "glcm")
"""Blocks of counts: a voxel is in few of their numbers, so a patient changes all of them together by no more than one
alone."""


@dataclass(frozen=True)
class Budget:
    """ε and δ, exactly as the study writes them down."""

    epsilon: Fraction
    delta: Fraction = Fraction(0)

    def __add__(self, other: Budget) -> Budget:
        """Basic composition: what two releases cost together."""
        return Budget(self.epsilon + other.epsilon, self.delta + other.delta)

    def __str__(self) -> str:
        return f"ε = {decimal(self.epsilon)}" + (f", δ = {decimal(self.delta)}" if self.delta else "")

    def covers(self, other: Budget) -> bool:
        """Whether the other is within this one."""
        return other.epsilon <= self.epsilon and other.delta <= self.delta


def decimal(value: Fraction) -> str:
    """Write a number of the study as it stands there; its decimals end.

    Examples
    --------
    >>> decimal(Fraction("0.1") * 3), decimal(Fraction("1e-06"))
    ('0.3', '1e-06')
    """
    return f"{float(value):.12g}"


def asked(study: Study) -> DifferentialPrivacy:
    """Return the study's table.

    Raises
    ------
    ValueError
        It has none.
    """
    if study.differential_privacy is None:
        raise ValueError("the study has no differential privacy")
    return study.differential_privacy


def cost(study: Study) -> Budget:
    """What one run of the study spends, of every patient."""
    table = asked(study)
    return Budget(Fraction(repr(table.epsilon)), Fraction(repr(table.delta)))


def cost_of_runs(study: Study) -> Budget:
    """What all runs that the study allows spend together."""
    once, runs = cost(study), asked(study).runs
    return Budget(once.epsilon * runs, once.delta * runs)


def honest(study: Study) -> int:
    """How many parties' shares must hide a patient: all but the colluders that the study allows for.

    A study without parties is taken to have the fewest.
    """
    return (len(study.party) or study.privacy.min_parties) - study.privacy.collusion


def voxels_of_patient(study: Study, name: str) -> int:
    """How many voxels of a class count of one patient, at most."""
    asked(study)
    most = study.privacy.voxels_per_patient
    return most[name] if isinstance(most, dict) else cast("int", most)  # the study is checked: it is there


def value_range(study: Study) -> tuple[int, int]:
    """The least and the largest standardised integer of any image, and of what lies outside of it.

    What is mapped to 0 … 1 is never below 0; how far rounding can take it above 1 is in the bound of intensities.
    """
    bound = study.intensity_bound
    return (min(0, study.fill) if study.standardise.method in ("rescale", "percentile") else -bound, bound)


def within_range(mean: Fraction, study: Study) -> Fraction:
    """Take a noisy mean to the nearest value that a mean can have."""
    low, high = value_range(study)
    return min(max(mean, Fraction(low, study.unit)), Fraction(high, study.unit))


def sensitivity(study: Study, quantity: str, name: str, mean: Fraction | None = None) -> int:
    """By how much one patient changes an integer of a class at most.

    Parameters
    ----------
    quantity : {"voxels", "patients", "sum", "sdsum"}
        As it is summed: over ``study.denominator`` for sum, over ``(mean.denominator · study.unit)²`` for sdsum.
    name : str
        Of the class.
    mean : Fraction, optional
        For sdsum alone: μ as all know it, within `value_range`.
    """
    most = voxels_of_patient(study, name)
    if quantity == "patients":
        return 1
    if quantity == "voxels":
        return most
    if quantity == "sum":
        return most * study.intensity_bound * study.window.denominator
    if mean is None:
        raise ValueError("the sensitivity of sdsum depends on μ")
    low, high = value_range(study)
    # Clipping rounds Σx and Σx² by less than 1 each: 1 + 2|μ| more.
    return (most * (high - low) ** 2 + 2 * study.intensity_bound + 1) * mean.denominator**2


@lru_cache(maxsize=64)
def rho_of(budget: Budget) -> Fraction:
    """Return a ρ for which ρ-zero-concentrated differential privacy implies (ε, δ).

    Any α > 1 gives one (Canonne, Kamath and Steinke 2020, Corollary 13 solved for ρ):

        ρ = (ε + (ln δ + ln(α − 1) + α ln(α / (α − 1))) / (α − 1)) / α − what is rounded away.

    The largest over a row of α is taken.

    Examples
    --------
    >>> float(rho_of(Budget(Fraction(1), Fraction(1, 10**6))))  # doctest: +ELLIPSIS
    0.02435...
    """
    log_delta = log_below(budget.delta)

    def at(less: Fraction) -> Fraction:
        """ρ of α = 1 + less."""
        alpha = 1 + less
        return (budget.epsilon + (log_delta + log_below(less) + alpha * log_below(alpha / less)) / less) / alpha

    best = max(at(Fraction(part, 16) * Fraction(2) ** power) for power in range(-6, 24) for part in range(16, 32))
    return Fraction((best.numerator << 96) // best.denominator, 1 << 96)


def released(study: Study) -> tuple[str, ...]:
    """What is released of each class, each with an equal part of the budget: numbers, and blocks of numbers.

    Examples
    --------
    >>> released(Study.of(name="t", classes={"a": 1}, statistics={"moments": 4}))
    ('voxels', 'patients', 'sum', 'sdsum', 'powers')
    """
    return (*QUANTITIES, *(block.name for block in layout(study)))


def part(study: Study) -> Fraction:
    """What each of `released` may spend: of ε for Laplace, of ρ for Gaussian."""
    numbers, budget = len(released(study)) * len(study.classes), cost(study)
    if asked(study).mechanism == "laplace":
        return budget.epsilon / numbers
    # A millionth is kept for what sums of several discrete Gaussians cost more than one.
    return rho_of(budget) * (1 - Fraction(1, 10**6)) / numbers


def noise_of(study: Study, quantity: str, name: str, mean: Fraction | None = None) -> Noise:
    """Return the noise of one number, as `sensitivity` takes it."""
    return _noise(study, sensitivity(study, quantity, name, mean), part(study))


def _noise(study: Study, change: int, spends: Fraction, numbers: int = 1) -> Noise:
    if asked(study).mechanism == "laplace":
        return LaplaceNoise(change, honest(study), spends, numbers)
    return GaussianNoise.of_rho(change, honest(study), spends, numbers)


def shared(study: Study, block: Block, name: str) -> tuple[Noise, ...]:
    """Return the noise of each number of a block of a class: together they spend one `part`.

    Of `COUNTED` blocks all numbers have the same, made for the most by which all of them change together. Of others a
    patient may change each number by the most there is at the same time, so each spends an equal share.
    """
    changes = sensitivities(study, block, name)
    if block.name in COUNTED:
        return (_noise(study, changes[0], part(study), block.size),) * block.size
    return tuple(_noise(study, change, part(study) / block.size) for change in changes)


def sensitivities(study: Study, block: Block, name: str) -> list[int]:
    """By how much one patient changes each number of a block at most; of a `COUNTED` one, all of them together."""
    most, each = voxels_of_patient(study, name), of_one_voxel(block.name, study)
    if block.name == "glcm" and study.statistics.glcm is not None and study.statistics.glcm.planar:
        each = [2 * PLANAR_DIRECTIONS]
    return [most * bound for bound in each]


def noises_of_statistics(study: Study, names: Sequence[str]) -> tuple[Noise, ...]:
    """Return the noise of each additive statistic, class by class in the order of `voxring.statistics.layout`."""
    if study.differential_privacy is None:
        return ()
    return tuple(noise for name in names for block in layout(study) for noise in shared(study, block, name))


def noises(
    study: Study, quantities: Sequence[str], names: Sequence[str], means: Mapping[str, Fraction] | None = None
) -> tuple[Noise, ...]:
    """Return the noise of each slot of a sum, quantity by quantity; none for a study without differential privacy."""
    if study.differential_privacy is None:
        return ()
    return tuple(
        noise_of(study, quantity, name, means[name] if means else None) for quantity in quantities for name in names
    )
