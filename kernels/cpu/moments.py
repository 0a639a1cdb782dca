"""Σ v and Σ v² per class, for every integer type."""

from __future__ import annotations

import numpy as np

from .boxes import PART
from .jit import Array, Number, inner, jit
from .threads import in_threads

PIECE = 1 << 14
"""Voxels summed in one int64 before it is split into two halves of 32 bits."""

LOW_BITS = 24


@inner
def add_halves(halves: Array, value: Number) -> None:
    """halves += (value >> 32, value mod 2^32): int64 sums of these are exact for 2^31 additions, whatever the value."""
    halves[0] += value >> 32
    halves[1] += value & 0xFFFFFFFF


@jit
def class_moments(image: Array, numbers: Array, table: Array) -> None:
    """Per class: voxels, Σ v and Σ v² through v = high·2^24 + low with 0 <= low < 2^24.

    |v| < 2^47, so |high| <= 2^23: high² <= 2^46, |high·low| < 2^47, low² < 2^48. A piece of 2^14 voxels stays
    below 2^62 in each sum. ``table[k]`` holds pairs of halves: (0, voxels), Σ v, Σ high², Σ high·low, Σ low².
    Must equal a loop in Python integers over every voxel of the class.
    """
    x = 0
    while x < image.size:
        number = numbers[x]
        stop = x + 1
        while stop < image.size and numbers[stop] == number:
            stop += 1
        if number > 0:
            row = table[number - 1]
            row[0, 1] += stop - x
            for start in range(x, stop, PIECE):
                total = high_high = high_low = low_low = np.int64(0)
                for value in image[start : min(start + PIECE, stop)]:
                    v = np.int64(value)
                    high = v >> LOW_BITS
                    low = v & ((1 << LOW_BITS) - 1)
                    total += v
                    high_high += high * high
                    high_low += high * low
                    low_low += low * low
                add_halves(row[1], total)
                add_halves(row[2], high_high)
                add_halves(row[3], high_low)
                add_halves(row[4], low_low)
        x = stop


@jit
def class_moments_narrow(image: Array, numbers: Array, table: Array) -> None:
    """The same for images of 8 and 16 bits: v² < 2^32, and ``low`` is the whole of v, ``high`` nothing."""
    x = 0
    while x < image.size:
        number = numbers[x]
        stop = x + 1
        while stop < image.size and numbers[stop] == number:
            stop += 1
        if number > 0:
            row = table[number - 1]
            row[0, 1] += stop - x
            for start in range(x, stop, PIECE):
                total = squares = np.int64(0)
                for value in image[start : min(start + PIECE, stop)]:
                    v = np.int64(value)
                    total += v
                    squares += v * v
                add_halves(row[1], total)
                add_halves(row[4], squares)
        x = stop


def moments_of_classes(image: Array, numbers: Array, classes: int, workers: int) -> list[tuple[int, int, int]]:
    """(voxels, Σ v, Σ v²) of each class number 1 … ``classes``; image and numbers flat."""
    kernel = class_moments_narrow if image.dtype.itemsize <= 2 else class_moments
    step = max(1, min(PART, -(-image.size // workers)))

    def run(at: int) -> list[list[list[int]]]:
        table = np.zeros((classes, 5, 2), dtype=np.int64)
        kernel(image[at : at + step], numbers[at : at + step], table)
        answer: list[list[list[int]]] = table.tolist()
        return answer

    voxels, total, squares = [0] * classes, [0] * classes, [0] * classes
    for table in in_threads(run, range(0, image.size, step), workers):
        for k, row in enumerate(table):
            count, sum_v, high_high, high_low, low_low = ((high << 32) + low for high, low in row)
            voxels[k] += count
            total[k] += sum_v
            squares[k] += (high_high << 2 * LOW_BITS) + (high_low << LOW_BITS + 1) + low_low
    return list(zip(voxels, total, squares, strict=True))
