"""How a colour becomes an intensity, where the study says so: in integers, the same on every machine."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from voxring.errors import ImageError
from voxring.study import Colour

_CHANNELS: tuple[Colour, ...] = ("red", "green", "blue")
_ROWS = 256  # at a time, as sums take four bytes a voxel


def chosen(path: Path, colour: Colour | None) -> Colour:
    """Pass what the study says; refuse colours where it says nothing."""
    if colour is None:
        raise ImageError(
            f"{path}: expected greyscale, got RGB: have the study say how a colour becomes an intensity, "
            '[standardise] colour = "luminance", "red", "green" or "blue", or save one channel as greyscale'
        )
    return colour


def intensities(pixels: NDArray[np.unsignedinteger], colour: Colour) -> NDArray[np.unsignedinteger]:
    """Return intensities of (rows, columns, 3) RGB pixels of 8 or 16 bits, in the same bits.

    The luminance is (299 R + 587 G + 114 B) / 1000, the weights of Rec. 601, rounded half up.

    Examples
    --------
    >>> intensities(np.array([[[255, 255, 255], [255, 0, 0], [0, 0, 10]]], np.uint8), "luminance")
    array([[255,  76,   1]], dtype=uint8)
    """
    if colour != "luminance":
        return np.ascontiguousarray(pixels[..., _CHANNELS.index(colour)])
    made = np.empty(pixels.shape[:2], pixels.dtype)
    for row in range(0, made.shape[0], _ROWS):
        red, green, blue = (pixels[row : row + _ROWS, :, channel].astype(np.uint32) for channel in range(3))
        made[row : row + _ROWS] = (299 * red + 587 * green + 114 * blue + 500) // 1000
    return made
