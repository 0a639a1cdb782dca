"""Differential privacy: noise in shares, how much of it, what it costs. docs/differential-privacy.md has the proofs.

`samplers` draw exactly, `noise` is that of one number, `accounting` says which number has which, `intervals` is for
reading results. Nothing here does I/O; randomness is an argument.
"""

from voxring.privacy.accounting import (
    COUNTED,
    QUANTITIES,
    Budget,
    asked,
    cost,
    cost_of_runs,
    decimal,
    honest,
    noise_of,
    noises,
    noises_of_statistics,
    part,
    released,
    sensitivities,
    sensitivity,
    shared,
    value_range,
    voxels_of_patient,
    within_range,
)
from voxring.privacy.noise import TAIL_BITS, GaussianNoise, LaplaceNoise, Noise
from voxring.privacy.samplers import Random

__all__ = [
    "COUNTED",
    "QUANTITIES",
    "TAIL_BITS",
    "Budget",
    "GaussianNoise",
    "LaplaceNoise",
    "Noise",
    "Random",
    "asked",
    "cost",
    "cost_of_runs",
    "decimal",
    "honest",
    "noise_of",
    "noises",
    "noises_of_statistics",
    "part",
    "released",
    "sensitivities",
    "sensitivity",
    "shared",
    "value_range",
    "voxels_of_patient",
    "within_range",
]
