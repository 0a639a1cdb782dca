"""Made-up patients for demonstrations: a body with an organ and lesions in it, as a made-up scanner sees it.

Nothing here is a real image. What makes hospitals differ is put in on purpose: each scanner has its noise, its
sharpness and its contrast, and each patient a contrast of their own. Everything follows from names by SHAKE-256, so the
same patient is the same image everywhere.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

SHAPE = (10, 48, 48)
CLASSES = {"lesion": 1, "organ": 2, "fat": 3}
_LEVELS = (-900.0, 45.0, 110.0, -90.0)  # air, lesion, organ, fat: what CT numbers of them are like


@dataclass(frozen=True, slots=True)
class Scanner:
    """How a hospital's images differ: deviation of the noise, voxels it is smoothed over, factor of the contrast."""

    noise: float
    blur: int
    contrast: float


def patient(name: str, scanner: Scanner) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """Return the image and the ground truth of a made-up patient; voxels outside the body are of no class.

    Examples
    --------
    >>> image, truth = patient("north-1", Scanner(noise=20.0, blur=1, contrast=1.0))
    >>> image.shape == truth.shape == SHAPE, sorted(set(truth.ravel().tolist()))
    (True, [0, 1, 2, 3])
    """
    from scipy.ndimage import uniform_filter

    draws = _uniform(f"{name} form", (64,))
    truth = _form(draws)
    levels = np.array(_LEVELS)
    levels[1] = levels[2] + (levels[1] - levels[2]) * scanner.contrast
    levels[1:] += 60 * (draws[60:63] - 0.5)  # each patient's own
    image = levels[truth]
    grain = uniform_filter(_normal(f"{name} grain", SHAPE), 3) * 5
    image += grain * np.array([0.0, 22.0, 10.0, 16.0])[truth]
    image += scanner.noise * _normal(f"{name} noise", SHAPE)
    if scanner.blur > 1:
        image = uniform_filter(image, (1, scanner.blur, scanner.blur), mode="nearest")
    return np.rint(image).astype(np.int16), truth


def _form(draws: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    places = np.indices(SHAPE, dtype=np.float64)
    truth = np.zeros(SHAPE, np.uint8)
    truth[_ball(places, (4.5, 23.5, 23.5), (30, 20 + 2 * draws[0], 18 + 3 * draws[1]))] = CLASSES["fat"]
    centre = 4.5, 21 + 5 * draws[2], 21 + 5 * draws[3]
    organ = _ball(places, centre, (9 + 3 * draws[4], 12 + 3 * draws[5], 11 + 3 * draws[6]))
    truth[organ] = CLASSES["organ"]
    for at in range(10, 10 + 4 * (2 + int(3 * draws[7])), 4):
        shift = (draws[at : at + 3] - 0.5) * (6, 14, 13)
        radius = 2.0 + 2.5 * draws[at + 3]
        truth[organ & _ball(places, tuple(centre + shift), (radius * 0.8, radius, radius))] = CLASSES["lesion"]
    return truth


def _ball(places: npt.NDArray[np.float64], centre: Any, radii: Any) -> npt.NDArray[np.bool_]:
    inside: npt.NDArray[np.bool_] = (
        sum(((axis - at) / radius) ** 2 for axis, at, radius in zip(places, centre, radii, strict=True)) <= 1
    )
    return inside


def _uniform(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    count = int(np.prod(shape))
    drawn = np.frombuffer(hashlib.shake_256(name.encode()).digest(4 * count), "<u4")
    return (drawn / 2**32).reshape(shape)


def _normal(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Nearly: the sum of four uniform numbers, of deviation 1."""
    drawn: npt.NDArray[np.float64] = (_uniform(name, (4, *shape)).sum(0) - 2) * 3**0.5
    return drawn
