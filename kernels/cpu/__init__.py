"""The processor's backend: numba kernels, one thread each, run side by side over parts of the image.

Which road an image takes never shows in the result: all give the same integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from voxring.kernels import BORDERS, Reduction

from .axes import axis_inside
from .jit import Array, Arrays, Shape
from .labels import as_native, class_numbers
from .maps import floats_into, sums_into
from .moments import moments_of_classes
from .streamed import groups_streamed
from .threads import thread_count
from .tiles import Plan, adjoint_pays, plan, reduce_class

__all__ = ["inside_counts", "mean_map", "reduce", "variance_map", "window_sums"]

IMAGE_TYPES = frozenset(map(np.dtype, ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64")))


def inside_counts(shape: Shape, window: Shape) -> Arrays:
    """Per axis and coordinate, how many of the window's places lie inside; their product is the count of `clip`.

    Returns
    -------
    tuple of three int64 arrays
        Of lengths ``shape``.
    """
    z, y, x = (axis_inside(length, size) for length, size in zip(shape, window, strict=True))
    return z, y, x


def reduce(
    image: Array,
    labels: Array,
    classes: Sequence[int],
    window: Shape,
    border: str,
    *,
    threads: int | None = None,
) -> list[Reduction]:
    """Reduce one image to the integers of each class (see `Reduction`).

    Parameters
    ----------
    image : (planes, rows, columns) array of integers
        Stored intensities, of at most 32 bits, or of 64 with \\|v\\| < 2^47.
    labels : array of integers, same shape
        Ground truth.
    classes : sequence of int
        Label values. One that ``labels`` cannot hold is a class with no voxels.
    window : (int, int, int)
        Sizes along planes, rows and columns, each at least 1.
    border : str
        One of `BORDERS`.
    threads : int, optional
        By default NUMBA_NUM_THREADS, or as many as this process may run on. Never changes the result.

    Returns
    -------
    list of Reduction
        One per class, in order.

    Raises
    ------
    OverflowError
        A window sum of this image could leave 63 bits, or \\|v\\| reaches 2^47.
    """
    image, shape = checked_image(image, window, border)
    if labels.shape != image.shape:
        raise ValueError(f"labels: expected the image's shape {image.shape}, got {labels.shape}")
    labels = as_native(labels)
    magnitude = checked_magnitude(image, window)
    if image.dtype.itemsize == 8 and magnitude >= 1 << 47:
        raise OverflowError("image: squares are exact for |v| below 2^47; this image holds larger values")
    workers = thread_count(threads, image.size)
    least, largest = limits(labels.dtype)
    present = [value for value in dict.fromkeys(classes) if least <= value <= largest]
    if image.size == 0 or not present:
        return [Reduction() for _ in classes]
    the = plan(shape, window, border, workers) if image.dtype.itemsize <= 2 else None
    if the is not None and adjoint_pays(the, len(present)):
        answers = by_adjoint(image, labels, present, border, the, workers)
    else:
        answers = by_stream(image, labels, present, window, border, workers)
    if len(present) == len(classes):
        return answers
    found = dict(zip(present, answers, strict=True))
    return [found.get(value, Reduction()) + Reduction() for value in classes]


def mean_map(
    image: Array,
    window: Shape,
    border: str,
    *,
    fill: int = 0,
    out: Array | None = None,
    dtype: str = "float32",
    threads: int | None = None,
) -> Array:
    """The local mean S_q / |W_q| of every voxel: the exact S_q divided in float64, then rounded to ``dtype``.

    Parameters
    ----------
    image, window, border, fill, threads
        As for `window_sums`; ``clip`` divides by how many voxels are inside.
    out : float array of the image's shape, C-contiguous, optional
        Filled and returned.
    dtype : {"float32", "float64"}
        Of the result, when ``out`` is not given.

    Returns
    -------
    float array
        Of the image's shape.
    """
    image, shape = checked_image(image, window, border)
    magnitude = checked_magnitude(image, window, fill if border == "constant" else 0)
    out = checked_out(out, shape, dtype)
    if image.size > 0:
        floats_into(out, image, window, border, fill, magnitude, thread_count(threads, image.size))
    return out


def variance_map(
    image: Array,
    window: Shape,
    border: str,
    *,
    fill: int = 0,
    out: Array | None = None,
    dtype: str = "float32",
    threads: int | None = None,
) -> Array:
    """The local variance of every voxel, about its local mean and divided by |W_q|.

    Parameters and result as for `mean_map`.

    Raises
    ------
    OverflowError
        |W| Σv² of this image could leave 63 bits.
    """
    image, shape = checked_image(image, window, border)
    magnitude = checked_magnitude(image, window, fill if border == "constant" else 0)
    size = window[0] * window[1] * window[2]
    if (magnitude * size) ** 2 >= 2**53 and image.size > 0:  # the type's limits say too little, or exclude float64
        magnitude = max(-int(image.min()), int(image.max()), abs(fill) if border == "constant" else 0)
    if (magnitude * size) ** 2 >= 2**63:
        raise OverflowError(
            f"window: variances over {size} voxels of up to {magnitude.bit_length()} bits could need more than 63 "
            "bits: use a smaller window"
        )
    out = checked_out(out, shape, dtype)
    if image.size > 0:
        workers = thread_count(threads, image.size)
        floats_into(out, image, window, border, fill, magnitude, workers, variances=True)
    return out


def checked_out(out: Array | None, shape: Shape, dtype: str) -> Array:
    """The array that a map goes into."""
    if out is None:
        out = np.empty(shape, dtype)
    if out.dtype.name not in {"float32", "float64"}:
        raise TypeError(f"out: expected float32 or float64, got {out.dtype.name}")
    if out.shape != shape or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"out: expected a C-contiguous, writeable array of shape {shape}, got {out.shape}")
    return out


def by_adjoint(
    image: Array, labels: Array, classes: Sequence[int], border: str, the: Plan, workers: int
) -> list[Reduction]:
    """`reduce`, one class after the other. Labels of one byte are read as they are, others numbered first."""
    if labels.dtype.itemsize == 1:
        flat = labels.reshape(-1).view(np.uint8)
        values = [value % 256 for value in classes]
    else:
        flat = class_numbers(labels, classes)
        values = list(range(1, len(classes) + 1))
    return [reduce_class(image, flat, value, border, the, workers) for value in values]


def by_stream(
    image: Array, labels: Array, classes: Sequence[int], window: Shape, border: str, workers: int
) -> list[Reduction]:
    """`reduce`, all classes at once."""
    numbers = class_numbers(labels, classes)
    answers = groups_streamed(image, numbers, len(classes), window, border, workers)
    sums = moments_of_classes(image.reshape(-1), numbers, len(classes), workers)
    return [mine + Reduction(total, squares) for mine, (_, total, squares) in zip(answers, sums, strict=True)]


def window_sums(
    image: Array,
    window: Shape,
    border: str,
    *,
    fill: int = 0,
    threads: int | None = None,
) -> Array:
    """S_q for every voxel q.

    Parameters
    ----------
    image, window, border, threads
        As for `reduce`.
    fill : int
        What ``constant`` reads outside. ``clip`` counts only what is inside.

    Returns
    -------
    int64 array
        Of the image's shape.

    Raises
    ------
    OverflowError
        A window sum of this image, or of ``fill``, could leave 63 bits.
    """
    image, shape = checked_image(image, window, border)
    magnitude = checked_magnitude(image, window, fill if border == "constant" else 0)
    out = np.empty(shape, dtype=np.int64)
    if image.size > 0:
        sums_into(out, image, window, border, fill, magnitude, thread_count(threads, image.size))
    return out


@cache
def limits(dtype: np.dtype[np.integer]) -> tuple[int, int]:
    """The least and the greatest value of an integer type. Kept: numpy takes a microsecond to tell."""
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def checked_image(image: Array, window: Shape, border: str) -> tuple[Array, Shape]:
    """The image in native order, and its shape, when all arguments are ones that the kernels take."""
    if border not in BORDERS:
        raise ValueError(f"border: expected one of {', '.join(BORDERS)}, got {border!r}")
    if image.ndim != 3:
        raise ValueError(f"image: expected (planes, rows, columns), got {image.ndim} axes")
    if image.dtype.newbyteorder("=") not in IMAGE_TYPES:
        raise TypeError(f"image: expected integers of 8 to 32 bits, or int64, got {image.dtype}")
    if len(window) != 3 or min(window) < 1:
        raise ValueError(f"window: expected three sizes of at least 1, got {window}")
    image = as_native(image)
    return image, image.shape


def checked_magnitude(image: Array, window: Shape, fill: int = 0) -> int:
    """A bound on |v|, from the type or, if that is too wide, from the values, small enough for exact window sums."""
    least, largest = limits(image.dtype)
    size = window[0] * window[1] * window[2]
    magnitude = max(-least, largest, abs(fill))
    if (image.dtype.itemsize == 8 or magnitude * size >= 2**63) and image.size > 0:
        magnitude = max(-int(image.min()), int(image.max()), abs(fill))
    if magnitude * size >= 2**63:
        raise OverflowError(
            f"window: {window[0]}×{window[1]}×{window[2]} = {size} voxels of up to {magnitude.bit_length()} bits "
            "could sum to more than 63 bits: use a smaller window"
        )
    return magnitude
