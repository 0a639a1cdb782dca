"""The adjoint road: filter the ground truth instead of the image, then one dot product.

Σ_{q in G} S_q sums, over every window of the class, the voxels it reads. Counted the other way round it is

    Σ_e count(e) · v(e),    count(e) = how many q of the class have e in their window,

over all *extended* places e (see `axes`), v(e) being read through the border map. The counts are a box filter of a
0/1 mask, which needs no border rule and fits narrow lanes: uint8 while it cannot exceed 255, int16 up to 32767. They
never exceed |W|, whatever the border, because the image is extended and the counts are not folded.

A window at q covers e = q … q + c − 1, so count(e) sums the mask over q = e − c + 1 … e; e itself stands for the
coordinate e − c//2. The sum is over the q of a *part*, a box: a class may be cut into as many as one likes, whose sums
add up. The kernel walks down the planes of a part. It keeps one plane of sums over z, rolled from plane to plane, sums
a few rows of it at a time along x, and rolls the counts from row to row (see `dots`): nothing else is kept, and nothing
of the image is read that no window of the part reaches.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .bare import bare
from .boxes import Box6
from .dots import USUAL, Values, reduce_rows, steps_that_fit
from .jit import Array, Arrays, Number, Shape, inlined, jit
from .rows import add, fill, mark, roll_marked, window_row
from .vectors import LANES

U = np.uint64

HEIGHT = 1 << 14
"""Places of the rows that are done at a time: their sums stay in the L1 cache."""


class Lanes(NamedTuple):
    """The types that hold sums over z and x, at most cz · cx, and counts, at most |W|."""

    narrow: type[np.generic]
    wide: type[np.generic]


class Work(NamedTuple):
    """What all parts of an image share. Numba reads it as it is."""

    shape: Shape
    window: Shape
    maps: Arrays


class Scratch(NamedTuple):
    """Memory of a call. Rows of ``plane`` and ``across`` lie one stride after the other."""

    plane: Array  # the sums over z of all rows, or where z is one plane the marks of a few; left of each row are zeros
    across: Array  # sums over z and x: a row of zeros, then the last rows, round and round
    spare: Array
    counts: Array  # of one row
    none: Array  # labels of another class, for rows that are not the part's own
    own: Array  # the same, round a copy of the part's own labels in a row


class Memory(NamedTuple):
    """What a call works in, and its result."""

    scratch: Scratch
    result: Array


def strides(parts: Array, cx: int) -> Array:
    """For each part, from row to row: as many places as the windows of a row touch, in whole vectors."""
    return -(-(parts[:, 5] - parts[:, 4] + cx - 1) // LANES) * LANES


@inlined
def heights(rows: Number, width: Number, cy: int) -> Number:
    """How many of a part's ``rows`` are done at a time."""
    return max(1, min(rows, max(HEIGHT // width, cy)))


def memory(parts: Array, window: Shape, lanes: Lanes) -> Memory:
    """What `adjoint` works in, for such parts.

    It is made here since numba takes seconds to compile what makes an array.
    """
    cz, cy, cx = window
    stride = strides(parts, cx)
    rows = parts[:, 9] - parts[:, 8]
    height = np.maximum(1, np.minimum(rows, np.maximum(HEIGHT // (parts[:, 5] - parts[:, 4] + cx - 1), cy)))
    plane = int(np.max(((rows if cz > 1 else height) + cy) * stride))
    ring = int(np.max((height + cy + 2) * stride)) + 2 * cx
    wide = int(stride.max())
    scratch = Scratch(
        np.empty(plane + 2 * cx, np.uint8),
        np.empty(ring, lanes.narrow),
        np.empty(ring, lanes.narrow),
        np.empty(wide, lanes.wide),
        np.empty(wide, np.uint8),
        np.empty(wide, np.uint8),
    )
    return Memory(scratch, np.empty(6, np.int64))


@inlined
def roll_plane(
    sums: Array,
    low: int,
    stride: int,
    labels: Array,
    value: Number,
    work: Work,
    q: Box6,
    z: int,
    leaving: bool,
    y0: int,
    y1: int,
) -> None:
    """Let mask plane z of the part into the sums over z, and plane z − cz out if ``leaving``: rows y0 … y1 − 1.

    Sums are uint8 <= cz. Column x of row y is at sums[(y − low) · stride + cx − 1 + x − q_x0].
    """
    cz, _, cx = work.window
    q_z0, q_z1, _, _, q_x0, q_x1 = q
    _, rows, columns = work.shape
    come = (z * rows + y0) * columns + q_x0
    go = come - cz * rows * columns
    enter = q_z0 <= z < q_z1
    leave = leaving and q_z0 <= z - cz < q_z1
    to = (y0 - low) * stride + cx - 1
    roll_marked(sums, to, stride, labels, come, go, columns, value, (y1 - y0, q_x1 - q_x0), enter, leave)


@inlined
def mark_rows(
    strip: Array,
    stride: int,
    labels: Array,
    value: Number,
    work: Work,
    q: Box6,
    z: int,
    y0: int,
    y1: int,
) -> None:
    """`roll_plane` where a window is one plane: the marks of the rows y0 … y1 − 1 of plane z, each row of the strip
    anew. Column x of row y is at strip[(y − y0) · stride + cx − 1 + x − q_x0]. Rows outside the part are cleared.
    """
    _, _, q_y0, q_y1, q_x0, q_x1 = q
    _, rows, columns = work.shape
    cx = work.window[2]
    for y in range(y0, y1):
        to = (y - y0) * stride + cx - 1
        if q_y0 <= y < q_y1:
            mark(strip, to, labels, (z * rows + y) * columns + q_x0, value, q_x1 - q_x0)
        else:
            fill(strip, to, q_x1 - q_x0)


@inlined
def sum_along(
    source: Array, at: int, scratch: Scratch, stride: int, ring: int, first: int, stop: int, width: int, cx: int
) -> None:
    """Sums along x of the rows that begin at source[at], into rows first … stop − 1 of ``across``.

    Several rows in one go: what lies between them is garbage. A go writes up to cx − 1 places more, in a row that is no
    longer needed.
    """
    row = first
    while row < stop:
        slot = row % ring
        some = min(stop - row, ring - slot)
        n = (some - 1) * stride + width
        window_row(scratch.across, (1 + slot) * stride, source, at + (row - first) * stride, cx, n, scratch.spare)
        row += some


@jit
def adjoint(
    image: Array,
    labels: Array,
    how: Values,
    work: Work,
    parts: Array,
    scratch: Scratch,
    result: Array,
) -> None:
    """Set ``result`` to (voxels, Σ S, Σ v, Σ v²) of a class in some parts, v as `dots` reads it.

    Parameters
    ----------
    image : flat array of uint8 or int16
        uint16 comes as the int16 of the same bits.
    labels : flat array of uint8
    how : Values
        What the bits of the image stand for, and the class.
    parts : (n, 10) array
        Per part the voxels q whose windows are summed, z0, z1, y0, y1, x0, x1, and the extended places that are gone
        through, planes z0, z1 and rows y0, y1: all that the windows reach, or a piece of it. The places of all parts
        are at most 2^30.
    scratch, result : Memory
        Made by `memory`; fit for further calls with the same parts and window, one at a time. The last two numbers of
        ``result`` are the kernel's own.

    Notes
    -----
    |v| < 2^16 and counts <= |W| < 2^15, so 2^30 places sum to less than 2^62 in each result. Must equal the loop over
    every voxel of the class and every place of its window in Python integers.
    """
    image, labels, result, parts = bare(image), bare(labels), bare(result), bare(parts)
    plane, across, counts = bare(scratch.plane), bare(scratch.across), bare(scratch.counts)
    none, own = bare(scratch.none), bare(scratch.own)
    scratch = Scratch(plane, across, bare(scratch.spare), counts, none, own)
    z_map, y_map, x_map = work.maps
    maps = bare(z_map), bare(y_map), bare(x_map)
    work = Work(work.shape, work.window, maps)
    cz, cy, cx = work.window

    fill(none, 0, none.size)
    if how.value == 0:
        for i in range(U(none.size)):
            none[i] = 1
    fill(result, 0, 4)
    bound = 255 if image.itemsize == 1 else USUAL
    result[4], result[5] = bound, steps_that_fit(cz * cy * cx, bound)

    for part in range(U(parts.shape[0])):
        q = parts[part, 0], parts[part, 1], parts[part, 2], parts[part, 3], parts[part, 4], parts[part, 5]
        z0, z1, y0, y1 = parts[part, 6], parts[part, 7], parts[part, 8], parts[part, 9]
        width = q[5] - q[4] + cx - 1
        stride = -(-width // LANES) * LANES
        height = heights(y1 - y0, width, cy)
        ring = height + cy + 1
        low = y0 - cy + 1  # the q of the first row of ``plane``
        top, bottom = max(q[2], low), min(q[3], y1)
        fill(plane, 0, ((y1 - y0 if cz > 1 else height) + cy) * stride + 2 * cx)
        fill(across, 0, stride)
        for i in range(U(stride)):
            own[i] = none[i]

        for z in range(z0 - cz + 1 if cz > 1 else z0, z1):
            leaving = z > z0
            if z < z0:
                roll_plane(plane, low, stride, labels, how.value, work, q, z, leaving, top, bottom)
                continue
            for y in range(y0, y1, height):
                tall = min(height, y1 - y)
                # Rows of ``across`` are those of q; the first of them that places of row y take is y − cy + 1.
                goes_on = y > y0
                first = y - y0 + cy - 1 if goes_on else cy - 1
                new = y if goes_on else y - cy + 1
                done = first if goes_on else 0
                if cz == 1:
                    mark_rows(plane, stride, labels, how.value, work, q, z, new, y + tall)
                    source = 0
                else:
                    from_row, to_row = max(top, new), min(bottom, y + tall)
                    roll_plane(plane, low, stride, labels, how.value, work, q, z, leaving, from_row, to_row)
                    source = (new - low) * stride
                sum_along(plane, source, scratch, stride, ring, done, first + tall, width, cx)
                if not goes_on:
                    fill(counts, 0, width)
                    for row in range(cy - 1):
                        add(counts, 0, across, (1 + row) * stride, width)
                place = (z, y, y + tall, z1, y0, y1)
                # What is taken next is asked for meanwhile, or memory would be waited for between the stages.
                reduce_rows(image, labels, work, q, place, first, ring, stride, scratch, how, result)
