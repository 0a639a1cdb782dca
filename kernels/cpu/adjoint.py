"""The adjoint road: filter the ground truth instead of the image, then one dot product.

Σ_{q in G} S_q sums, over every window of the class, the voxels it reads. Counted the other way round it is

    Σ_e count(e) · v(e),    count(e) = how many q of the class have e in their window,

over all *extended* places e (see `axes`), v(e) being read through the border map. The counts are a box filter of a
0/1 mask, which needs no border rule and fits narrow lanes: uint8 while it cannot exceed 255, int16 up to 32767. They
never exceed |W|, whatever the border, because the image is extended and the counts are not folded.

A window at q covers e = q … q + c − 1, so count(e) sums the mask over q = e − c + 1 … e; e itself stands for the
coordinate e − c//2. The kernel walks down the planes. It keeps one plane of sums over z, rolled from plane to plane,
sums a few rows of it at a time along x, and rolls the counts from row to row (see `dots`): nothing else is kept, so
rows and columns that no window of the class reaches can be stepped over, and what they hold of the image is never read.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .bare import bare
from .boxes import Box
from .dots import USUAL, Values, reduce_rows, steps_that_fit
from .jit import Array, Arrays, Number, Shape, inlined, jit
from .rows import add, ask, fill, mark, roll_marked, window_row
from .vectors import LANES

U = np.uint64

AHEAD = 8
"""So many rows of a dense image are asked for before they are read."""


class Lanes(NamedTuple):
    """The types that hold sums over z and x, at most cz · cx, and counts, at most |W|."""

    narrow: type[np.generic]
    wide: type[np.generic]


class Work(NamedTuple):
    """What one class of one image asks for. Numba reads it as it is."""

    shape: Shape
    window: Shape
    maps: Arrays
    voxels: tuple[int, int, int, int, int, int]  # the q whose windows are summed: z0, z1, y0, y1, x0, x1
    occupied: Array  # (planes, blocks of rows, blocks of columns): 0 where the class is not; empty if unknown
    block: tuple[int, int]  # rows and columns of such a block


class Scratch(NamedTuple):
    """Memory of a call. Rows of ``plane`` and ``across`` lie one stride after the other."""

    plane: Array  # the sums over z of all rows, or where z is one plane the marks of a few; left of each row are zeros
    near: Array  # per block, how many planes of the window hold the class
    line: Array  # whether a run of rows reaches a block column
    across: Array  # sums over z and x: a row of zeros, then the last rows, round and round
    spare: Array
    counts: Array  # of one row
    none: Array  # labels of another class, for rows that the border reads a second time


class Memory(NamedTuple):
    """What a call works in, and its result."""

    scratch: Scratch
    result: Array


def stride_for(columns: int, cx: int) -> int:
    """From row to row: as many places as the windows of a row touch, in whole vectors."""
    return -(-(columns + cx - 1) // LANES) * LANES


def memory(work: Work, tall: int, height: int, lanes: Lanes) -> Memory:
    """What `adjoint` works in, for boxes of up to ``tall`` rows.

    It is made here since numba takes seconds to compile what makes an array.
    """
    cz, cy, cx = work.window
    stride = stride_for(work.shape[2], cx)
    rows = cy + (tall if cz > 1 else height)
    ring = (height + cy + 2) * stride + 2 * cx
    scratch = Scratch(
        np.empty(rows * stride + 2 * cx, np.uint8),
        np.empty(work.occupied.shape[1:], np.int32),
        np.empty(max(1, work.occupied.shape[2]), np.int32),
        np.zeros(ring, lanes.narrow),
        np.empty(ring, lanes.narrow),
        np.empty(stride, lanes.wide),
        np.empty(stride, np.uint8),
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
    z: int,
    leaving: bool,
    y0: int,
    y1: int,
) -> None:
    """Let mask plane z into the sums over z, and plane z − cz out if ``leaving``: rows y0 … y1 − 1, uint8 <= cz.

    Column x of row y is at sums[(y − low) · stride + cx − 1 + x]. If blocks are known, only those that hold the class
    are read.
    """
    cz, _, cx = work.window
    q_z0, q_z1, _, _, x0, x1 = work.voxels
    _, rows, columns = work.shape
    come = z * rows * columns
    go = come - cz * rows * columns
    enter = q_z0 <= z < q_z1
    leave = leaving and q_z0 <= z - cz < q_z1
    occupied = work.occupied
    if occupied.size == 0:
        at = y0 * columns + x0
        to = (y0 - low) * stride + cx - 1 + x0
        size = y1 - y0, x1 - x0
        roll_marked(sums, to, stride, labels, come + at, go + at, columns, value, size, enter, leave)
        return
    tall, wide = work.block
    for row in range(y0 // tall, (y1 - 1) // tall + 1):
        for b in range(x0 // wide, (x1 - 1) // wide + 1):
            comes = enter and occupied[z, row, b] != 0
            goes = leave and occupied[z - cz, row, b] != 0
            if comes or goes:
                left, right = max(x0, b * wide), min(x1, (b + 1) * wide)
                for y in range(max(y0, row * tall), min(y1, (row + 1) * tall)):
                    if comes:
                        ask(labels, come + y * columns + left, right - left)
                    if goes:
                        ask(labels, go + y * columns + left, right - left)
                up, down = max(y0, row * tall), min(y1, (row + 1) * tall)
                at = up * columns + left
                to = (up - low) * stride + cx - 1 + left
                size = down - up, right - left
                roll_marked(sums, to, stride, labels, come + at, go + at, columns, value, size, comes, goes)


@inlined
def mark_rows(
    strip: Array, stride: int, labels: Array, value: Number, work: Work, place: tuple[int, int, int, int, int]
) -> None:
    """`roll_plane` where a window is one plane: the marks that windows at z, y0 … y1 − 1, x0 … x1 − 1 begin with.

    Column x of row y is at strip[(y − y0) · stride + cx − 1 + x]. What is outside ``work.voxels`` is 0: columns there
    are never marked, rows are cleared.
    """
    z, y0, y1, x0, x1 = place
    _, _, q_y0, q_y1, q_x0, q_x1 = work.voxels
    _, rows, columns = work.shape
    cx = work.window[2]
    left, right = max(q_x0, x0 - cx + 1), min(q_x1, x1)
    for y in range(y0, y1):
        to = (y - y0) * stride
        if q_y0 <= y < q_y1:
            mark(strip, to + cx - 1 + left, labels, (z * rows + y) * columns + left, value, right - left)
        else:
            fill(strip, to + x0, x1 - x0 + cx - 1)


@inlined
def sum_along(
    source: Array, at: int, scratch: Scratch, stride: int, ring: int, first: int, stop: int, x0: int, x1: int, cx: int
) -> None:
    """Sums along x of the rows that begin at source[at], into rows first … stop − 1 of ``across``, places x0 … x1 − 1.

    Several rows in one go where they take up most of the stride: what lies between them is garbage. A go writes up to
    cx − 1 places more, in a row that is no longer needed.
    """
    together = ring if 2 * (x1 - x0) > stride else 1
    row = first
    while row < stop:
        slot = row % ring
        some = min(stop - row, ring - slot, together)
        n = (some - 1) * stride + x1 - x0
        window_row(
            scratch.across, (1 + slot) * stride + x0, source, at + (row - first) * stride + x0, cx, n, scratch.spare
        )
        row += some


@inlined
def reached(near: Array, first: int, last: int, line: Array) -> bool:
    """line[b] = whether the class is in block column b of the block rows first … last; whether it is in any.

    ``near`` counts, per block, the planes of the window that hold the class.
    """
    for b in range(line.size):
        line[b] = 0
    for row in range(first, last + 1):
        for b in range(line.size):
            line[b] |= near[row, b]
    some = 0
    for b in range(line.size):
        some |= line[b]
    return some != 0


@inlined
def next_run(line: Array, begin: int, wide: int, cx: int) -> tuple[int, int]:
    """The next run of block columns from ``begin`` on whose windows touch: the first, and the one after the last.

    A block reaches cx − 1 places beyond its own; runs that would share places are one.
    """
    while begin < line.size and line[begin] == 0:
        begin += 1
    end = begin
    b = begin
    while b < line.size and (b - end) * wide < cx - 1 + (b == end):
        if line[b] != 0:
            end = b + 1
        b += 1
    return begin, end


@jit
def adjoint(
    image: Array,
    labels: Array,
    how: Values,
    work: Work,
    box: Box,
    height: int,
    scratch: Scratch,
    result: Array,
) -> None:
    """Set ``result`` to (voxels, Σ S, Σ v, Σ v²) of a class in a box of extended places, v as `dots` reads it.

    Σ S is over the q in ``work.voxels``; the others over all voxels of the class whose own place is in the box.

    Parameters
    ----------
    image : flat array of uint8 or int16
        uint16 comes as the int16 of the same bits.
    labels : flat array of uint8
    how : Values
        What the bits of the image stand for, and the class.
    box : (int, int, int, int)
        z0, z1, y0, y1; of at most 2^30 places.
    height : int
        Rows done at a time.
    scratch, result : Memory
        Made by `memory`; fit for further calls with the same shape, window, ``height`` and ``occupied``, one at a time.
        The last two numbers of ``result`` are the kernel's own.

    Notes
    -----
    |v| < 2^16 and counts <= |W| < 2^15, so 2^30 places sum to less than 2^62 in each result. Must equal the loop over
    every voxel of the class and every place of its window in Python integers.
    """
    image, labels, result = bare(image), bare(labels), bare(result)
    plane, near, line = bare(scratch.plane), bare(scratch.near), bare(scratch.line)
    across, counts, none = bare(scratch.across), bare(scratch.counts), bare(scratch.none)
    scratch = Scratch(plane, near, line, across, bare(scratch.spare), counts, none)
    z_map, y_map, x_map = work.maps
    maps = bare(z_map), bare(y_map), bare(x_map)
    work = Work(work.shape, work.window, maps, work.voxels, bare(work.occupied), work.block)
    cz, cy, cx = work.window
    _, _, q_y0, q_y1, q_x0, q_x1 = work.voxels
    planes = work.shape[0]
    dense = work.occupied.size == 0
    e_x0, e_x1 = q_x0, q_x1 + cx - 1
    tall_block, wide_block = work.block
    stride, ring = none.size, height + cy + 1
    z0, z1, y0, y1 = box
    low = y0 - cy + 1  # the q of the first row of ``plane``
    top, bottom = max(q_y0, low), min(q_y1, y1)

    fill(plane, 0, plane.size)
    fill(none, 0, none.size)
    if how.value == 0:
        for i in range(U(none.size)):
            none[i] = 1
    fill(result, 0, 4)
    bound = 255 if image.itemsize == 1 else USUAL
    result[4], result[5] = bound, steps_that_fit(cz * cy * cx, bound)
    for row in range(near.shape[0]):
        for b in range(near.shape[1]):
            near[row, b] = 0

    for z in range(z0 - cz + 1, z1):
        leaving = z > z0
        if cz > 1 and (z < z0 or not dense):
            roll_plane(plane, low, stride, labels, how.value, work, z, leaving, top, bottom)
        if not dense:
            for row in range(near.shape[0]):
                for b in range(near.shape[1]):
                    if 0 <= z < planes:
                        near[row, b] += work.occupied[z, row, b]
                    if leaving and 0 <= z - cz < planes:
                        near[row, b] -= work.occupied[z - cz, row, b]
        if z < z0:
            continue
        for y in range(y0, y1, height):
            tall = min(height, y1 - y)
            if not dense:
                last = min(near.shape[0] - 1, (y + tall - 1) // tall_block)
                if not reached(near, max(0, y - cy + 1) // tall_block, last, line):
                    continue
            begin = 0
            while begin < line.size:
                x0, x1 = e_x0, e_x1
                end = line.size
                if not dense:
                    begin, end = next_run(line, begin, wide_block, cx)
                    if begin == end:  # no run is left; places beyond the last block are those of the run before
                        break
                    x0, x1 = max(e_x0, begin * wide_block), min(e_x1, end * wide_block + cx - 1)
                begin = end
                if x0 >= x1:
                    continue
                if not dense:
                    a, b = max(0, x0 - cx // 2), min(work.shape[2], x1 - cx // 2)
                    for row in range(y, y + tall):
                        ask(image, (z_map[z] * work.shape[1] + y_map[row]) * work.shape[2] + a, b - a)

                # Rows of ``across`` are those of q; the first of them that places of row y take is y − cy + 1.
                goes_on = dense and y > y0
                first = y - y0 + cy - 1 if goes_on else cy - 1
                new = y if goes_on else y - cy + 1
                done = first if goes_on else 0
                if cz == 1:
                    mark_rows(plane, stride, labels, how.value, work, (z, new, y + tall, x0, x1))
                    source = 0
                else:
                    if dense:
                        from_row, to_row = max(top, new), min(bottom, y + tall)
                        roll_plane(plane, low, stride, labels, how.value, work, z, leaving, from_row, to_row)
                    source = (new - low) * stride
                sum_along(plane, source, scratch, stride, ring, done, first + tall, x0, x1, cx)
                if not goes_on:
                    fill(counts, x0, x1 - x0)
                    for row in range(cy - 1):
                        add(counts, x0, across, (1 + row) * stride + x0, x1 - x0)
                place = (z, y, y + tall, x0, x1)
                # What the next rows take is asked for meanwhile, or memory would be waited for between the stages.
                ahead = AHEAD * work.shape[2] if dense else 0
                coming = (z * work.shape[1] + y + tall) * work.shape[2]
                reduce_rows(
                    image,
                    labels,
                    work.window,
                    work.shape,
                    maps,
                    place,
                    first,
                    ring,
                    ahead,
                    coming,
                    across,
                    counts,
                    none,
                    how,
                    result,
                )
