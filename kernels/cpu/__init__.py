"""The processor's backend: numba kernels, one thread each, run side by side over parts of the image.

Which road an image takes never shows in the result: all give the same integers. What the usual road does not need is
imported where it is used: it would be a tenth of what a command takes up to its first voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from voxring.kernels import Reduction
from voxring.kernels.axes import inside_counts
from voxring.kernels.checks import (
    SUMS,
    as_native,
    check_kind,
    check_labels,
    checked_image,
    checked_magnitude,
    checked_magnitude_of_sums,
    checked_magnitude_squared,
    checked_out,
    holdable,
    magnitude_of,
)

from .jit import Array, Shape
from .threads import thread_count
from .tiles import Plan, adjoint_pays, plan, reduce_class

__all__ = ["inside_counts", "mean_map", "reduce", "variance_map", "window_sums"]


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
    workers = thread_count(threads, image.size)
    the = route(image.shape, image.dtype, labels.shape, labels.dtype, tuple(classes), window, border, workers)
    image, labels = as_native(image), as_native(labels)
    if the.look and checked_magnitude(image, window) >= 1 << 47:
        raise OverflowError("image: squares are exact for |v| below 2^47; this image holds larger values")
    if image.size == 0 or not the.present:
        return [Reduction() for _ in classes]
    image = of_common_type(image)
    if the.adjoint is not None:
        answers = by_adjoint(image, labels, the.present, border, the.adjoint, workers)
    else:
        answers = by_stream(image, labels, the.present, window, border, workers)
    if len(the.present) == len(classes):
        return answers
    found = dict(zip(the.present, answers, strict=True))
    return [found.get(value, Reduction()) + Reduction() for value in classes]


class Route(NamedTuple):
    """How images of one kind are reduced."""

    present: tuple[int, ...]  # the classes that such labels can hold, each once
    look: bool  # whether the image's values must be looked at, because its type does not say that sums fit
    adjoint: Plan | None  # where that road pays


@lru_cache(maxsize=256)
def route(
    shape: Shape,
    dtype: np.dtype[Any],
    labels_shape: Shape,
    labels_dtype: np.dtype[Any],
    classes: tuple[int, ...],
    window: Shape,
    border: str,
    workers: int,
) -> Route:
    """The checks and choices that depend on nothing else, made once for the thousands of slices of an archive."""
    check_kind(shape, dtype, window, border)
    check_labels(shape, labels_shape, labels_dtype)
    present = holdable(classes, labels_dtype)
    look = dtype.itemsize == 8 or magnitude_of(dtype) * window[0] * window[1] * window[2] >= 2**63
    the = plan(shape, window, border, workers) if dtype.itemsize <= 2 and 0 not in shape else None
    pays = the is not None and adjoint_pays(the, len(present))
    return Route(present, look, the if pays else None)


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
        from .maps import floats_into

        workers = thread_count(threads, image.size)
        floats_into(out, of_common_type(image), window, border, fill, magnitude, workers)
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
    # below 2^53 the lanes of the squares are float64: worth a read where the type alone does not say so
    magnitude = checked_magnitude_squared(image, window, fill if border == "constant" else 0, look=2**53)
    out = checked_out(out, shape, dtype)
    if image.size > 0:
        from .maps import floats_into

        workers = thread_count(threads, image.size)
        floats_into(out, of_common_type(image), window, border, fill, magnitude, workers, variances=True)
    return out


RARE = {np.dtype(np.int8): np.int16, np.dtype(np.uint32): np.int64}
"""Types of images not worth kernels of their own, which take seconds to compile, and types that hold their values."""


def of_common_type(image: Array) -> Array:
    """The same numbers in a type that kernels are compiled for: a copy of an image of a rare one."""
    return image.astype(RARE.get(image.dtype, image.dtype), copy=False)


def by_adjoint(
    image: Array, labels: Array, classes: Sequence[int], border: str, the: Plan, workers: int
) -> list[Reduction]:
    """`reduce`, one class after the other. Labels of one byte are read as they are, others numbered first."""
    if labels.dtype.itemsize == 1:
        flat = labels.reshape(-1)
        if flat.dtype != np.uint8:
            flat = flat.view(np.uint8)
        return [reduce_class(image, flat, value % 256, border, the, workers) for value in classes]
    from .labels import class_numbers

    flat = class_numbers(labels, classes)
    return [reduce_class(image, flat, number + 1, border, the, workers) for number in range(len(classes))]


def by_stream(
    image: Array, labels: Array, classes: Sequence[int], window: Shape, border: str, workers: int
) -> list[Reduction]:
    """`reduce`, all classes at once."""
    from .labels import class_numbers
    from .moments import moments_of_classes
    from .streamed import groups_streamed

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
    out: Array | None = None,
    dtype: str = "int64",
    threads: int | None = None,
) -> Array:
    """S_q for every voxel q.

    Parameters
    ----------
    image, window, border, threads
        As for `reduce`.
    fill : int
        What ``constant`` reads outside. ``clip`` counts only what is inside.
    out : array of int64, int32, float64 or float32, of the image's shape, C-contiguous, optional
        Filled and returned.
    dtype : str
        Of the result, when ``out`` is not given: one of these. Floats are rounded from float64.

    Returns
    -------
    array
        Of the image's shape.

    Raises
    ------
    OverflowError
        A window sum of this image, or of ``fill``, could leave 63 bits, or 31 bits for int32.
    """
    image, shape = checked_image(image, window, border)
    out = checked_out(out, shape, dtype, SUMS)
    magnitude = checked_magnitude_of_sums(image, window, out.dtype, fill if border == "constant" else 0)
    if image.size > 0:
        from .maps import sums_into

        sums_into(out, of_common_type(image), window, border, fill, magnitude, thread_count(threads, image.size))
    return out
