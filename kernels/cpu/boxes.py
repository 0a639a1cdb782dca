"""Cutting an image into boxes of planes and rows, the pieces that one kernel call takes."""

from __future__ import annotations

from itertools import pairwise

from .jit import Shape

Range = tuple[int, int]
Box = tuple[int, int, int, int]
"""z0, z1, y0, y1: planes z0 … z1 − 1, rows y0 … y1 − 1, all columns."""

Box6 = tuple[int, int, int, int, int, int]
"""z0, z1, y0, y1, x0, x1."""

PART = 1 << 30
"""Most voxels of a box: what int64 sums over it are proven for."""


def evenly(start: int, stop: int, most: int) -> list[Range]:
    """Cut a range into pieces of nearly the same length, none longer than ``most``."""
    parts = max(1, -(-(stop - start) // most))
    return list(pairwise(start + (stop - start) * i // parts for i in range(parts + 1)))


def cut(planes: Range, rows: Range, columns: int, tall: int, window: Shape, workers: int) -> list[Box]:
    """Boxes of at most ``tall`` rows and PART voxels, and, for several workers, some for each.

    A cut between planes has the cz − 1 planes before it summed again, a cut between rows cy − 1 rows: pieces are not
    made much smaller than the window.
    """
    depth, height = planes[1] - planes[0], rows[1] - rows[0]
    tall = max(1, min(tall, height, PART // columns))
    deep = max(1, min(depth, PART // (tall * columns)))
    wanted = 4 * workers if workers > 1 else 1
    strips = -(-height // tall)
    if strips < wanted:
        deep = min(deep, max(-(-depth * strips // wanted), 3 * window[0]))
        strips_wanted = -(-wanted // -(-depth // deep))
        tall = min(tall, max(-(-height // strips_wanted), 3 * window[1]))
    return [(z0, z1, y0, y1) for z0, z1 in evenly(*planes, deep) for y0, y1 in evenly(*rows, tall)]
