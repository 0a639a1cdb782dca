"""What every backend refuses, with the same errors, before it computes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from voxring.kernels import BORDERS

Array = npt.NDArray[Any]
Shape = tuple[int, int, int]

IMAGE_TYPES = frozenset(map(np.dtype, ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64")))

WINDOWED = ("mean", "variance", "std", "contrast", "skewness")
"""The kinds of features that have a window."""


@cache
def limits(dtype: np.dtype[np.integer]) -> tuple[int, int]:
    """The least and the greatest value of an integer type. Kept: numpy takes a microsecond to tell."""
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def magnitude_of(dtype: np.dtype[Any]) -> int:
    """The largest |v| that a type holds."""
    least, largest = limits(dtype)
    return max(-least, largest)


def as_native(array: Array) -> Array:
    """The same numbers in this machine's byte order, bools as bytes, C-contiguous, aligned; copied only if need be."""
    if array.dtype.kind == "b":
        array = array.view(np.uint8)
    if array.dtype.isnative and array.flags.c_contiguous and array.flags.aligned:
        return array
    return np.require(array, array.dtype.newbyteorder("="), ("C_CONTIGUOUS", "ALIGNED"))


def check_kind(shape: tuple[int, ...], dtype: np.dtype[Any], window: Shape, border: str) -> None:
    """Refuse what the kernels do not take."""
    if border not in BORDERS:
        raise ValueError(f"border: expected one of {', '.join(BORDERS)}, got {border!r}")
    if len(shape) != 3:
        raise ValueError(f"image: expected (planes, rows, columns), got {len(shape)} axes")
    if dtype.newbyteorder("=") not in IMAGE_TYPES:
        raise TypeError(f"image: expected integers of 8 to 32 bits, or int64, got {dtype}")
    if len(window) != 3 or min(window) < 1:
        raise ValueError(f"window: expected three sizes of at least 1, got {window}")


def check_labels(shape: Shape, labels_shape: tuple[int, ...], labels_dtype: np.dtype[Any]) -> None:
    """Refuse a ground truth that is not one of the image."""
    if labels_shape != shape:
        raise ValueError(f"labels: expected the image's shape {shape}, got {labels_shape}")
    if labels_dtype.kind not in "iub":
        raise TypeError(f"labels: expected integers, got {labels_dtype}")


def holdable(classes: Sequence[int], labels_dtype: np.dtype[Any]) -> tuple[int, ...]:
    """The classes that such labels can hold, each once."""
    least, largest = limits(labels_dtype if labels_dtype.kind != "b" else np.dtype(np.uint8))
    return tuple(dict.fromkeys(value for value in classes if least <= value <= largest))


def checked_image(image: Array, window: Shape, border: str) -> tuple[Array, Shape]:
    """The image in native order, and its shape, when all arguments are ones that the kernels take."""
    check_kind(image.shape, image.dtype, window, border)
    image = as_native(image)
    return image, image.shape


def magnitude_in(image: Array, fill: int = 0) -> int:
    """The largest |v| of an image that has voxels, and of a fill: a read of all of it."""
    return max(-int(image.min()), int(image.max()), abs(fill))


def checked_magnitude(image: Array, window: Shape, fill: int = 0) -> int:
    """A bound on |v|, from the type or, if that is too wide, from the values, small enough for exact window sums."""
    size = prod(window)
    magnitude = max(magnitude_of(image.dtype), abs(fill))
    if (image.dtype.itemsize == 8 or magnitude * size >= 2**63) and image.size > 0:
        magnitude = magnitude_in(image, fill)
    if magnitude * size >= 2**63:
        raise OverflowError(
            f"window: {window[0]}×{window[1]}×{window[2]} = {size} voxels of up to {magnitude.bit_length()} bits "
            "could sum to more than 63 bits: use a smaller window"
        )
    return magnitude


def checked_magnitude_of_sums(image: Array, window: Shape, dtype: np.dtype[Any], fill: int = 0) -> int:
    """A bound on |v|, small enough for window sums in ``dtype``; the values are read where the type's is too wide."""
    magnitude = checked_magnitude(image, window, fill)
    size = prod(window)
    if dtype == np.int32 and magnitude * size >= 2**31 and image.size > 0:
        magnitude = magnitude_in(image, fill)
        if magnitude * size >= 2**31:
            raise OverflowError(
                f"window: {size} voxels of up to {magnitude.bit_length()} bits could sum to more than an int32 holds: "
                "take int64 sums"
            )
    return magnitude


def checked_magnitude_squared(image: Array, window: Shape, fill: int = 0, *, look: int = 2**63) -> int:
    """A bound on |v|, small enough for exact variances.

    The values are read where the type's bound lets |W|² v² reach ``look``.
    """
    magnitude = checked_magnitude(image, window, fill)
    size = prod(window)
    if (magnitude * size) ** 2 >= look and image.size > 0:
        magnitude = magnitude_in(image, fill)
    if (magnitude * size) ** 2 >= 2**63:
        raise OverflowError(
            f"window: variances over {size} voxels of up to {magnitude.bit_length()} bits could need more than 63 "
            "bits: use a smaller window"
        )
    return magnitude


FLOATS = ("float32", "float64")
"""What means and variances are."""

SUMS = ("int64", "int32", *FLOATS)
"""What window sums are."""


def checked_out(out: Array | None, shape: Shape, dtype: str, kinds: Sequence[str] = FLOATS) -> Array:
    """The array that a map goes into."""
    if out is None:
        out = np.empty(shape, dtype)
    if out.dtype.name not in kinds:
        raise TypeError(f"out: expected {' or '.join(kinds)}, got {out.dtype.name}")
    if out.shape != shape or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"out: expected a C-contiguous, writeable array of shape {shape}, got {out.shape}")
    return out


def check_width(window: Shape, kinds: Sequence[str], magnitude: int, a: int, b: int, unit: int) -> None:
    """Refuse features of a window that are wider than is exact (cpu/features.py says why).

    Raises
    ------
    OverflowError
        Says which feature, and how many bits there are.
    """
    size = window[0] * window[1] * window[2]
    largest = abs(a) * magnitude + abs(b)
    where = f"features over {size} voxels of up to {magnitude.bit_length()} bits"
    if size * largest >= 1 << 61:
        raise OverflowError(f"{where}: sums of standardised values could need more than 61 bits")
    if set(kinds) != {"mean"} and (size * magnitude**2 >= 1 << 63 or "skewness" in kinds) and magnitude >= 1 << 31:
        raise OverflowError(f"{where}: these are exact for values of at most 31 bits")
    if "variance" in kinds and largest**2 >= unit << 61:
        raise OverflowError(f"{where}: variances could need more than 61 bits")
    if "skewness" in kinds and size * magnitude >= 1 << 41:
        raise OverflowError(f"{where}: the skewness is exact for window sums of at most 41 bits")


def check_gradient_width(magnitude: int, a: int) -> None:
    """Refuse a gradient that is wider than is exact.

    Raises
    ------
    OverflowError
        Says how many bits there may be.
    """
    if magnitude >= 1 << 58 or abs(a) * magnitude >= 1 << 58:
        raise OverflowError("gradient: exact for values of at most 58 bits")
