"""Where a class is: the image's blocks that hold none of it, some, or nothing else; and boxes made of them.

A class is a sum of boxes: what is reduced for each adds up. So a box without the class costs nothing, one that holds
nothing else needs no ground truth (`whole`), and only the rest takes the adjoint road. Which boxes pay is weighed by
what they cost: a box is cut in two, and each half again, where the best of the two halves costs less.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .bare import bare
from .boxes import Box6
from .jit import Array, Number, Shape, inlined, inner, jit
from .rows import fill
from .threads import in_threads

U = np.uint64

BLOCK = (4, 8, 32)
"""Planes, rows and columns of a block."""

SOME, ALL = 1, 2
"""What a block holds of the class; 0 for nothing."""

MOST = 1 << 16
"""Boxes that an image is cut into, at most."""

# Nanoseconds, as in `tiles`, of boxes of 1,000 to 500,000 voxels anywhere in a large image: a box, a row of it, 32
# places of a row. A row waits for memory, which is most of what a small box takes.
BOX = 1500.0
ROW = 85.0
PLACES = 11.0
WHOLE_ROW = 75.0
WHOLE_PLACES = 3.5

WORTH_A_CUT = 0.8
"""A box is not cut where what it must cost at the least, however it is cut, is so much of what it costs alone."""


@inner
def note(seen: Array, missed: Array, labels: Array, at: tuple[int, int, int, int], value: Number) -> None:
    """Note the columns of four rows in which ``value`` is, and those in which another label is."""
    p, q, r, s = U(at[0]), U(at[1]), U(at[2]), U(at[3])
    for i in range(U(seen.size)):
        a, b, c, d = labels[p + i] ^ value, labels[q + i] ^ value, labels[r + i] ^ value, labels[s + i] ^ value
        seen[i] |= np.uint8(a == 0) | np.uint8(b == 0) | np.uint8(c == 0) | np.uint8(d == 0)
        missed[i] |= a | b | c | d


@inner
def any_of(labels: Array, at: tuple[int, int, int, int], n: Number) -> bool:
    """Whether a label other than 0 is in the first ``n`` columns of four rows."""
    p, q, r, s = U(at[0]), U(at[1]), U(at[2]), U(at[3])
    found = np.uint8(0)
    for i in range(U(n)):
        found = np.uint8(found | labels[p + i] | labels[q + i] | labels[r + i] | labels[s + i])
    return bool(found != 0)


@jit
def look(labels: Array, value: Number, shape: Shape, first: int, found: Array, seen: Array, missed: Array) -> None:
    """found[g, r, b] = what block (first + g, r, b) holds of the class: 0, SOME or ALL. Must equal any and all over it.

    Row after row, since memory is the quickest from end to end. ``seen`` and ``missed`` are as long as a row.
    """
    labels, found, seen, missed = bare(labels), bare(found), bare(seen), bare(missed)
    planes, rows, columns = shape
    deep, tall, wide = BLOCK
    for g in range(found.shape[0]):
        for r in range(found.shape[1]):
            fill(seen, 0, columns)
            fill(missed, 0, columns)
            gap = False
            for z in range((first + g) * deep, min(planes, (first + g + 1) * deep)):
                first_row, last_row = z * rows + r * tall, z * rows + min(rows, (r + 1) * tall) - 1
                for row in range(first_row, last_row + 1, 4):  # what is noted twice is noted
                    at = (
                        row * columns,
                        min(row + 1, last_row) * columns,
                        min(row + 2, last_row) * columns,
                        min(row + 3, last_row) * columns,
                    )
                    if value != 0 and not any_of(labels, at, columns):  # most of an image, most of the time
                        gap = True
                    else:
                        note(seen, missed, labels, at, value)
            for b in range(found.shape[2]):
                some = other = np.uint8(0)
                for i in range(U(b * wide), U(min(columns, (b + 1) * wide))):
                    some |= seen[i]
                    other |= missed[i]
                found[g, r, b] = 0 if some == 0 else ALL if other == 0 and not gap else SOME


def blocks_of(labels: Array, value: np.uint8, shape: Shape, workers: int) -> Array:
    """For each block of an image what it holds of the class: 0, SOME or ALL. ``labels`` is flat."""
    found = np.empty([-(-length // size) for length, size in zip(shape, BLOCK, strict=True)], np.uint8)

    def run(first: int) -> None:
        seen, missed = np.empty(shape[2], np.uint8), np.empty(shape[2], np.uint8)
        look(labels, value, shape, first, found[first : first + step], seen, missed)

    step = -(-found.shape[0] // workers)
    in_threads(run, range(0, found.shape[0], step), workers)
    return found


class Boxes(NamedTuple):
    """What `cut_boxes` works in."""

    found: Array  # (n, 7): the boxes, as `Box6` in blocks, and what they hold, SOME or ALL
    used: Array  # how many they are
    lines: Array  # (3, blocks of the longest side): for each plane, row and column of blocks, how many hold the class


@inlined
def cost(box: Box6, all_of_it: bool, shape: Shape, window: Shape) -> float:
    """Nanoseconds of a box of blocks."""
    z0, z1, r0, r1, b0, b1 = box
    deep, tall, wide = BLOCK
    planes = min(z1 * deep, shape[0]) - z0 * deep + window[0] - 1
    rows = min(r1 * tall, shape[1]) - r0 * tall + window[1] - 1
    vectors = (min(b1 * wide, shape[2]) - b0 * wide + window[2] - 2) // BLOCK[2] + 1
    if all_of_it:
        return BOX + planes * rows * (WHOLE_ROW + WHOLE_PLACES * vectors)
    return BOX + planes * rows * (ROW + PLACES * vectors)


@inner
def trimmed(lines: Array, box: Box6) -> Box6:
    """The box without the planes, rows and columns at its ends that hold nothing; some do."""
    z0, z1, r0, r1, b0, b1 = box
    while lines[0, z0] == 0:
        z0 += 1
    while lines[0, z1 - 1] == 0:
        z1 -= 1
    while lines[1, r0] == 0:
        r0 += 1
    while lines[1, r1 - 1] == 0:
        r1 -= 1
    while lines[2, b0] == 0:
        b0 += 1
    while lines[2, b1 - 1] == 0:
        b1 -= 1
    return z0, z1, r0, r1, b0, b1


@inner
def where_to_cut(lines: Array, box: Box6) -> tuple[int, int]:
    """Axis and block: the middle of the widest gap without the class, else of the longest side."""
    best = longest = axis = at = 0
    for a in range(3):
        low, high = box[2 * a], box[2 * a + 1]
        if best == 0 and high - low > 1 and (high - low) * BLOCK[a] > longest:
            longest = (high - low) * BLOCK[a]
            axis, at = a, (low + high) // 2
        gap = 0
        for i in range(low, high):
            gap = gap + BLOCK[a] if lines[a, i] == 0 else 0
            if gap > best:
                best = gap
                axis, at = a, i + 1
    return axis, at


@jit
def cut_boxes(held: Array, box: Box6, shape: Shape, window: Shape, boxes: Boxes) -> float:
    """Add to ``boxes`` some that hold all of the class in a box of blocks, and return what they cost.

    It is the smallest box that holds it, or the best of the two halves of that, whichever costs less.
    """
    lines, used = boxes.lines, boxes.used
    z0, z1, r0, r1, b0, b1 = box
    for a in range(3):
        for i in range(box[2 * a], box[2 * a + 1]):
            lines[a, i] = 0
    full = some = 0
    for z in range(z0, z1):
        for r in range(r0, r1):
            here = 0
            for b in range(b0, b1):
                state = held[z, r, b]
                lines[2, b] += state != 0
                here += state != 0
                full += state == ALL
            lines[0, z] += here
            lines[1, r] += here
            some += here
    if some == 0:
        return 0.0
    z0, z1, r0, r1, b0, b1 = box = trimmed(lines, box)
    blocks = (z1 - z0) * (r1 - r0) * (b1 - b0)
    alone = cost(box, full == blocks, shape, window)
    before = used[0]
    least = ((some - full) * PLACES + full * WHOLE_PLACES) * (BLOCK[0] * BLOCK[1])
    if full < blocks > 1 and before < MOST - 2 and least < WORTH_A_CUT * alone:
        axis, at = where_to_cut(lines, box)
        if axis == 0:
            parts = (z0, at, r0, r1, b0, b1), (at, z1, r0, r1, b0, b1)
        elif axis == 1:
            parts = (z0, z1, r0, at, b0, b1), (z0, z1, at, r1, b0, b1)
        else:
            parts = (z0, z1, r0, r1, b0, at), (z0, z1, r0, r1, at, b1)
        both = cut_boxes(held, parts[0], shape, window, boxes) + cut_boxes(held, parts[1], shape, window, boxes)
        if both < alone:
            return both
    found = boxes.found[before]
    found[0], found[1], found[2], found[3], found[4], found[5] = box
    found[6] = ALL if full == blocks else SOME
    used[0] = before + 1
    return alone


def boxes_of(held: Array, shape: Shape, window: Shape) -> tuple[Array, Array]:
    """Boxes of voxels, z0, z1, y0, y1, x0, x1: those that hold some of the class, and those that hold nothing else."""
    most: int = min(MOST, int(np.count_nonzero(held)))
    longest: int = max(held.shape)
    boxes = Boxes(np.empty((most + 1, 7), np.int64), np.zeros(1, np.int64), np.empty((3, longest), np.int64))
    cut_boxes(held, (0, held.shape[0], 0, held.shape[1], 0, held.shape[2]), shape, window, boxes)
    found = boxes.found[: boxes.used[0]]
    sides = found[:, :6] * np.repeat(BLOCK, 2)
    sides[:, 1::2] = np.minimum(sides[:, 1::2], shape)
    return sides[found[:, 6] == SOME], sides[found[:, 6] == ALL]
