"""The processor's backend: numba kernels, one thread each, run side by side over parts of the image.

Which road an image takes never shows in the result: all give the same integers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from voxring.kernels import BORDERS, Reduction

from .axes import axis_inside, axis_map, axis_runs
from .jit import Array, Arrays
from .labels import as_native, class_numbers
from .moments import moments_of_part
from .streamed import stream

__all__ = ["inside_counts", "reduce", "window_sums"]

IMAGE_TYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64")
PART = 1 << 30
"""Most voxels that one kernel call takes: sums kept in two halves of 32 bits are exact up to 2^31."""

TILE = 1 << 16
"""Voxels of one plane that a streamed tile holds: its int64 sums stay in the L2 cache."""

SMALL = 1 << 16
"""Images of fewer voxels are not worth a thread."""

Task = TypeVar("Task")
Result = TypeVar("Result")
Shape = tuple[int, int, int]


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
    image, _ = checked_image(image, window, border)
    if labels.shape != image.shape:
        raise ValueError(f"labels: expected the image's shape {image.shape}, got {labels.shape}")
    labels = as_native(labels)
    magnitude = checked_magnitude(image, window)
    if image.dtype.itemsize == 8 and magnitude >= 1 << 47:
        raise OverflowError("image: squares are exact for |v| below 2^47; this image holds larger values")
    present = [value for value in dict.fromkeys(classes) if fits(value, labels.dtype)]
    found = dict.fromkeys(classes, Reduction())
    if image.size > 0 and present:
        found |= dict(zip(present, streamed(image, labels, present, window, border, magnitude, threads), strict=True))
    return [found[value] + Reduction() for value in classes]


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
    checked_magnitude(image, window, fill if border == "constant" else 0)
    out = np.empty(image.shape, dtype=np.int64)
    if image.size == 0:
        return out
    maps, starts, _ = axes(shape, window, border)
    none = np.zeros((0, 0, 0, 0, 3), dtype=np.int64)
    numbers = np.zeros(0, dtype=np.uint8)
    flat = image.reshape(-1)

    def run(box: tuple[int, int, int, int]) -> None:
        stream(flat, shape, window, maps, box, out.reshape(-1), numbers, starts, 1, none)

    workers = thread_count(threads, image.size)
    for _ in in_threads(run, boxes(shape, window, workers), workers):
        pass
    if border == "constant" and fill != 0:
        z, y, x = inside_counts(shape, window)
        size = window[0] * window[1] * window[2]
        for plane, count in enumerate(z):
            out[plane] += fill * (size - count * y[:, None] * x)
    return out


def streamed(
    image: Array,
    labels: Array,
    classes: Sequence[int],
    window: Shape,
    border: str,
    magnitude: int,
    threads: int | None,
) -> list[Reduction]:
    """`reduce` by the general road."""
    shape: Shape = image.shape
    maps, starts, inside = axes(shape, window, border)
    limit = min(shape[2], (2**63 - 1) // max(1, magnitude * window[0] * window[1] * window[2]))
    numbers = class_numbers(labels, classes)
    flat = image.reshape(-1)
    nowhere = np.zeros(0, dtype=np.int64)

    def run(box: tuple[int, int, int, int]) -> list[Reduction]:
        table = np.zeros((len(inside[0]), len(inside[1]), len(classes), len(inside[2]), 3), dtype=np.int64)
        stream(flat, shape, window, maps, box, nowhere, numbers, starts, limit, table)
        return drained(table, inside)

    def run_moments(part: slice) -> list[Reduction]:
        sums = moments_of_part(flat[part], numbers[part], len(classes))
        return [Reduction(total, squares) for _, total, squares in sums]

    workers = thread_count(threads, image.size)
    step = min(PART, -(-image.size // workers))
    parts = [slice(at, at + step) for at in range(0, image.size, step)]
    answer = [Reduction() for _ in classes]
    for some in in_threads(run, boxes(shape, window, workers), workers):
        answer = [mine + more for mine, more in zip(answer, some, strict=True)]
    for some in in_threads(run_moments, parts, workers):
        answer = [mine + more for mine, more in zip(answer, some, strict=True)]
    return answer


def drained(table: Array, inside: Arrays) -> list[Reduction]:
    """The groups that a streamed table holds, as Python integers."""
    answer = [Reduction() for _ in range(table.shape[2])]
    for z, y, k, x in zip(*(at.tolist() for at in np.nonzero(table[..., 0])), strict=True):
        voxels, high, low = table[z, y, k, x].tolist()
        count = int(inside[0][z]) * int(inside[1][y]) * int(inside[2][x])
        before = answer[k].groups.get(count, (0, 0))
        answer[k].groups[count] = (before[0] + voxels, before[1] + (high << 32) + low)
    return answer


def axes(shape: Shape, window: Shape, border: str) -> tuple[Arrays, Arrays, Arrays]:
    """Index maps, starts of runs and counts of runs of the three axes."""
    map_z, map_y, map_x = (axis_map(length, size, border) for length, size in zip(shape, window, strict=True))
    runs = (axis_runs(length, size, border) for length, size in zip(shape, window, strict=True))
    (starts_z, count_z), (starts_y, count_y), (starts_x, count_x) = runs
    return (map_z, map_y, map_x), (starts_z, starts_y, starts_x), (count_z, count_y, count_x)


def boxes(shape: Shape, window: Shape, workers: int) -> list[tuple[int, int, int, int]]:
    """Cut planes and rows into boxes (z0, z1, y0, y1): tiles that fit the cache, and enough of them."""
    planes, rows, columns = shape
    tall = max(window[1], TILE // columns, 1)
    tall = -(-rows // -(-rows // tall))
    deep = max(1, min(planes, PART // max(1, tall * columns)))
    if -(-rows // tall) < workers:
        deep = min(deep, max(window[0], -(-planes // workers)))
        if deep >= planes:
            tall = max(1, min(tall, max(window[1], -(-rows // workers))))
    return [
        (z, min(z + deep, planes), y, min(y + tall, rows)) for z in range(0, planes, deep) for y in range(0, rows, tall)
    ]


def in_threads(work: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """The results of ``work`` on each task, in order. Kernels drop the GIL, so threads run side by side."""
    if workers == 1:
        yield from map(work, tasks)
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(work, tasks)


def thread_count(threads: int | None, voxels: int) -> int:
    """How many threads to use: as asked, or NUMBA_NUM_THREADS, or as many as this process may run on."""
    if threads is not None and threads < 1:
        raise ValueError(f"threads: expected at least 1, got {threads}")
    if voxels < SMALL:
        return 1
    if threads is None:
        setting = os.environ.get("NUMBA_NUM_THREADS", "")
        threads = int(setting) if setting else len(os.sched_getaffinity(0))
    return threads


def fits(value: int, dtype: np.dtype[np.integer]) -> bool:
    """Whether a label map of this type can hold the value."""
    limits = np.iinfo(dtype)
    return int(limits.min) <= value <= int(limits.max)


def checked_image(image: Array, window: Shape, border: str) -> tuple[Array, Shape]:
    """The image in native order, and its shape, when all arguments are ones that the kernels take."""
    if border not in BORDERS:
        raise ValueError(f"border: expected one of {', '.join(BORDERS)}, got {border!r}")
    if image.ndim != 3:
        raise ValueError(f"image: expected (planes, rows, columns), got {image.ndim} axes")
    if image.dtype.name not in IMAGE_TYPES:
        raise TypeError(f"image: expected one of {', '.join(IMAGE_TYPES)}, got {image.dtype.name}")
    if len(window) != 3 or min(window) < 1:
        raise ValueError(f"window: expected three sizes of at least 1, got {window}")
    image = as_native(image)
    return image, image.shape


def checked_magnitude(image: Array, window: Shape, fill: int = 0) -> int:
    """A bound on |v|, from the type or, if that is too wide, from the values, small enough for exact window sums."""
    limits = np.iinfo(image.dtype)
    size = window[0] * window[1] * window[2]
    magnitude = max(-int(limits.min), int(limits.max), abs(fill))
    if (image.dtype.itemsize == 8 or magnitude * size >= 2**63) and image.size > 0:
        magnitude = max(-int(image.min()), int(image.max()), abs(fill))
    if magnitude * size >= 2**63:
        raise OverflowError(
            f"window: {window[0]}×{window[1]}×{window[2]} = {size} voxels of up to {magnitude.bit_length()} bits "
            "could sum to more than 63 bits: use a smaller window"
        )
    return magnitude
