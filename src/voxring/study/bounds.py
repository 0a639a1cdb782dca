"""How large a feature's integers can be, whatever the image: what moduli and refusals follow from."""

from __future__ import annotations

from math import isqrt, prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from voxring.study.study import Study
    from voxring.study.tables import Feature


def feature_bound(feature: Feature, study: Study) -> int:
    """Largest size of a feature's integers, whatever the image (`voxring.features` defines them).

    A mean and a deviation are no larger than intensities can be, a variance than their square, a skewness of n voxels
    than √n, a contrast than 1. Each of three differences of a gradient is at most twice an intensity over twice a step,
    or over one step at an edge under ``clip``.
    """
    intensity = study.intensity_bound
    if feature.kind == "variance":
        return intensity**2 // study.unit + 1
    if feature.kind == "gradient":
        return isqrt((12 if study.window.border == "clip" else 3) * intensity**2) + 1
    if feature.kind == "skewness":
        sizes = feature.window if isinstance(feature.window, tuple) else (feature.window or 1,) * 3
        return (isqrt(prod(sizes)) + 1) * study.unit
    return study.unit if feature.kind == "contrast" else intensity
