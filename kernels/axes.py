"""One axis at a time: where a window reads, and how much of it lies inside.

A window at q covers q − c//2 … q − c//2 + c − 1. The *extended* axis runs over all places that any window touches:
its place e stands for the coordinate e − c//2, so that the window at q is e = q … q + c − 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

OUTSIDE = -1


def axis_map(length: int, size: int, border: str) -> Array:
    """For each of the length + size − 1 extended places, the coordinate that is read there, or OUTSIDE."""
    place = np.arange(length + size - 1, dtype=np.int64) - size // 2
    if border in {"clip", "constant"}:
        return np.where((place >= 0) & (place < length), place, OUTSIDE)
    if border == "nearest":
        return np.clip(place, 0, length - 1)
    if border == "reflect":  # d c b a | a b c d | d c b a
        place %= 2 * length
        return np.minimum(place, 2 * length - 1 - place)
    if border == "mirror":  # d c b | a b c d | c b a
        period = max(1, 2 * length - 2)
        place %= period
        return np.minimum(place, period - place)
    raise ValueError(f"border: expected reflect, mirror, nearest, constant or clip, got {border!r}")


def axis_inside(length: int, size: int) -> Array:
    """For each coordinate, how many of its window's places lie inside the axis."""
    first = np.arange(length, dtype=np.int64) - size // 2
    return np.minimum(first + size, length) - np.maximum(first, 0)


def axis_runs(length: int, size: int, border: str) -> tuple[Array, Array]:
    """Split an axis where the count inside changes.

    Returns
    -------
    starts : (runs + 1,) array
        Run r holds the coordinates starts[r] … starts[r + 1] − 1.
    inside : (runs,) array
        The count of each run. Borders that read everything back from inside have one run, of ``size``.
    """
    if border not in {"clip", "constant"}:
        return np.array([0, length], dtype=np.int64), np.array([size], dtype=np.int64)
    inside = axis_inside(length, size)
    starts = np.flatnonzero(np.diff(inside, prepend=-1))
    return np.append(starts, length).astype(np.int64), inside[starts]


def inside_counts(shape: tuple[int, int, int], window: tuple[int, int, int]) -> tuple[Array, Array, Array]:
    """Per axis and coordinate, how many of the window's places lie inside; their product is the count of `clip`.

    Returns
    -------
    tuple of three int64 arrays
        Of lengths ``shape``.
    """
    z, y, x = (axis_inside(length, size) for length, size in zip(shape, window, strict=True))
    return z, y, x
