"""The adjoint road: filter the ground truth instead of the image, then one dot product.

Σ_{q in G} S_q sums, over every window of the class, the voxels it reads. Counted the other way round it is

    Σ_e count(e) · v(e),    count(e) = how many q of the class have e in their window,

over all *extended* places e (see `axes`), v(e) being read through the border map. The counts are a box filter of a
0/1 mask, which needs no border rule and fits narrow lanes: uint8 while it cannot exceed 255, int16 up to 32767. They
never exceed |W|, whatever the border, because the image is extended and the counts are not folded.

A window at q covers e = q … q + c − 1, so count(e) sums the mask over q = e − c + 1 … e; e itself stands for the
coordinate e − c//2. The kernel walks down the planes. It keeps one plane of sums over z, rolled from plane to plane,
and makes the counts of a few rows at a time out of it: nothing else is kept, so rows and columns that no window of
the class reaches can be stepped over, and what they hold of the image is never read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .bare import bare, prefetch
from .boxes import Box
from .jit import Array, Arrays, Number, Shape, inlined, jit
from .rows import LANES, PIECE, Room, add, copy, fill, mark, next_row, reduce_stretch, roll_marked, window_row

ONES = np.ones(PIECE, np.int16)


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
    """Memory of a call."""

    plane: Array  # the sums over z of all rows
    near: Array  # per block, how many planes of the window hold the class
    line: Array  # whether a run of rows reaches a block column
    # For the counts of a few rows, and of those above them that their windows reach:
    strip: Array
    across: Array
    spare: Array
    counts: Array


class Memory(NamedTuple):
    """What a call works in, and its result."""

    scratch: Scratch
    room: Room
    result: Array


def memory(work: Work, tall: int, height: int, dtype: np.dtype[Any], lanes: Lanes) -> Memory:
    """What `adjoint` works in, for boxes of up to ``tall`` rows.

    It is made here since numba takes seconds to compile what makes an array.
    """
    _, cy, cx = work.window
    columns = work.shape[2]
    area = (height + cy + 1) * (columns + 2 * cx + LANES)
    scratch = Scratch(
        np.empty((tall + cy) * columns if work.window[0] > 1 else 0, np.uint8),
        np.empty(work.occupied.shape[1:], np.int32),
        np.empty(max(1, work.occupied.shape[2]), np.int32),
        np.zeros(area, np.uint8),  # what lies left and right of the image stays so
        np.empty(area, lanes.narrow),
        np.empty(area, lanes.narrow),
        np.empty(area, lanes.wide),
    )
    room = Room(
        np.empty(height * columns, lanes.wide),
        np.empty(height * columns, dtype),
        np.empty(height * columns, np.uint8),
        np.empty(PIECE, np.int16),
        ONES,
    )
    return Memory(scratch, room, np.empty(5, np.int64))


@inlined
def ask(array: Array, at: Number, n: Number) -> None:
    """Ask for a short stretch before it is read. Few rows in many places are waited for one after the other else."""
    line = 64 // array.itemsize
    for i in range(0, n, line):
        prefetch(array, np.uint64(at + i))


@inlined
def roll_plane(
    sums: Array, low: int, labels: Array, value: Number, work: Work, z: int, leaving: bool, y0: int, y1: int
) -> None:
    """Let mask plane z into the sums over z, and plane z − cz out if ``leaving``: rows y0 … y1 − 1, uint8 <= cz.

    Row y begins at sums[(y − low) · columns]. If blocks are known, only those that hold the class are read.
    """
    q_z0, q_z1, _, _, x0, x1 = work.voxels
    _, rows, columns = work.shape
    come = z * rows * columns
    go = come - work.window[0] * rows * columns
    enter = q_z0 <= z < q_z1
    leave = leaving and q_z0 <= z - work.window[0] < q_z1
    occupied = work.occupied
    if occupied.size == 0:
        together = y1 - y0 if x1 - x0 == columns else 1  # whole rows lie one behind the other
        for y in range(y0, y1, max(1, together)):
            at = y * columns + x0
            n = together * (x1 - x0)
            roll_marked(sums, at - low * columns, labels, come + at, go + at, value, n, enter, leave)
        return
    tall, wide = work.block
    for row in range(y0 // tall, (y1 - 1) // tall + 1):
        for b in range(x0 // wide, (x1 - 1) // wide + 1):
            comes = enter and occupied[z, row, b] != 0
            goes = leave and occupied[z - work.window[0], row, b] != 0
            if comes or goes:
                left, right = max(x0, b * wide), min(x1, (b + 1) * wide)
                for y in range(max(y0, row * tall), min(y1, (row + 1) * tall)):
                    if comes:
                        ask(labels, come + y * columns + left, right - left)
                    if goes:
                        ask(labels, go + y * columns + left, right - left)
                for y in range(max(y0, row * tall), min(y1, (row + 1) * tall)):
                    at = y * columns + left
                    n = right - left
                    roll_marked(sums, at - low * columns, labels, come + at, go + at, value, n, comes, goes)


@inlined
def lay_rows(
    strip: Array,
    stride: int,
    plane: Array,
    low: int,
    labels: Array,
    value: Number,
    work: Work,
    place: tuple[int, int, int, int, int],
) -> None:
    """Lay out the sums over z that windows at the places z, y0 … y1 − 1, x0 … x1 − 1 begin with.

    Row y − y0 of ``strip`` takes q = x0 − cx + 1 … x1 − 1 of row y: zeros outside ``work.voxels``.
    """
    z, y0, y1, x0, x1 = place
    _, _, q_y0, q_y1, q_x0, q_x1 = work.voxels
    _, rows, columns = work.shape
    start = x0 - work.window[2] + 1
    left, right = max(q_x0, start), min(q_x1, x1)
    dense = work.occupied.size == 0
    for y in range(y0, y1):
        to = (y - y0) * stride
        if not q_y0 <= y < q_y1:
            fill(strip, to, x1 - start)
            continue
        if not dense:  # else what lies left and right of the image is 0 from the beginning
            fill(strip, to, left - start)
            fill(strip, to + right - start, x1 - right)
        if work.window[0] == 1:
            mark(strip, to + left - start, labels, (z * rows + y) * columns + left, value, right - left)
        else:
            copy(strip, to + left - start, plane, (y - low) * columns + left, right - left)


@inlined
def count_rows(
    plane: Array,
    low: int,
    labels: Array,
    value: Number,
    work: Work,
    place: tuple[int, int, int, int, int],
    scratch: Scratch,
    above: int,
) -> int:
    """The counts of a few rows: sums over z along the rows, all in one go, then down.

    Sums over z and x hold at most cz · cx, counts at most |W|, which their lanes hold. What lies between the end of one
    row and the begin of the next is garbage. If these rows go on below the ``above`` rows of the last call, what they
    share is taken over; 0 says that they do not.

    Returns
    -------
    int
        The stride: row y of scratch.counts begins at y + 1 times this; row −1 is the one above.
    """
    _, cy, cx = work.window
    across, counts = scratch.across, scratch.counts
    z, y0, y1, x0, x1 = place
    width, height = x1 - x0, y1 - y0
    stride = (width + cx - 1 + LANES - 1) // LANES * LANES
    first = 1  # rows of ``across`` above this one are there; row y, at (y + cy) · stride, sums along row y0 + y
    if above > 0:
        copy(across, np.int64(0), across, above * stride, cy * stride)
        copy(counts, np.int64(0), counts, above * stride, width)
        first = cy
    new = y0 - cy + first
    lay_rows(scratch.strip, stride, plane, low, labels, value, work, (z, new, y1, x0, x1))
    window_row(across, first * stride, scratch.strip, np.int64(0), cx, (y1 - new - 1) * stride + width, scratch.spare)
    done = 0
    if above == 0:
        copy(counts, stride, across, stride, width)
        for y in range(2, cy + 1):
            add(counts, stride, across, y * stride, width)
        done = 1
    for y in range(done, height):
        next_row(counts, (y + 1) * stride, y * stride, across, (y + cy) * stride, y * stride, width)
    return stride


@inlined
def reduce_rows(
    image: Array,
    labels: Array,
    value: Number,
    unsigned: bool,
    work: Work,
    place: tuple[int, int, int, int, int],
    counts: Array,
    stride: int,
    room: Room,
    sums: Array,
) -> None:
    """Add to ``sums`` what the extended places z, y0 … y1 − 1, x0 … x1 − 1 of ``place`` hold.

    Rows that follow each other in the image are reduced where they lie. Others are packed first, with labels that are
    not ``value`` where the border reads a voxel a second time.
    """
    z, y0, y1, x0, x1 = place
    planes, rows, columns = work.shape
    cz, cy, cx = work.window
    z_map, y_map, x_map = work.maps
    most = cz * cy * cx
    own0 = min(max(x0, cx // 2), x1)  # the columns that the image has
    own1 = max(min(x1, cx // 2 + columns), own0)
    inner = own1 - own0
    n = (y1 - y0) * inner
    own_plane = 0 <= z - cz // 2 < planes
    for y in range(y0, y1):
        copy(room.counts, (y - y0) * inner, counts, (y - y0 + 1) * stride + own0 - x0, inner)
    start = z_map[z] * rows * columns + own0 - cx // 2
    if inner == columns and cy // 2 <= y0 and y1 <= rows + cy // 2:
        at = start + y_map[y0] * columns
        reduce_stretch(image, labels, at, room.counts, np.int64(0), n, own_plane, value, unsigned, most, room, sums)
    else:
        for y in range(y0, y1):
            at = start + y_map[y] * columns
            to = (y - y0) * inner
            copy(room.values, to, image, at, inner)
            if 0 <= y - cy // 2 < rows:
                copy(room.labels, to, labels, at, inner)
            else:
                for i in range(inner):
                    room.labels[to + i] = value + np.uint8(1)
        reduce_stretch(
            room.values,
            room.labels,
            np.int64(0),
            room.counts,
            np.int64(0),
            n,
            own_plane,
            value,
            unsigned,
            most,
            room,
            sums,
        )
    for y in range(y0, y1 if inner < x1 - x0 else y0):
        at = (z_map[z] * rows + y_map[y]) * columns
        row = (y - y0 + 1) * stride - x0
        for x in range(x0, own0):
            v = np.int64(image[at + x_map[x]])
            sums[1] += np.int64(counts[row + x]) * (v & 0xFFFF if unsigned else v)
        for x in range(own1, x1):
            v = np.int64(image[at + x_map[x]])
            sums[1] += np.int64(counts[row + x]) * (v & 0xFFFF if unsigned else v)


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
    value: Number,
    unsigned: bool,
    work: Work,
    box: Box,
    height: int,
    scratch: Scratch,
    room: Room,
    result: Array,
) -> None:
    """Set ``result`` to (voxels, Σ S, Σ v, Σ v²) of the class ``value`` in a box of extended places.

    Σ S is over the q in ``work.voxels``; the others over all voxels of the class whose own place is in the box.

    Parameters
    ----------
    image : flat array of uint8 or int16
        uint16 comes as the int16 of the same bits, with ``unsigned`` true.
    labels : flat array of uint8
    box : (int, int, int, int)
        z0, z1, y0, y1; of at most 2^30 places.
    height : int
        Rows done at a time.
    scratch, room, result : Memory
        Made by `memory`; fit for further calls with the same shape, window, ``height`` and ``occupied``, one at a time.
        The last number of ``result`` is the kernel's own.

    Notes
    -----
    |v| < 2^16 and counts <= |W| < 2^15, so 2^30 places sum to less than 2^62 in each result. Must equal the loop over
    every voxel of the class and every place of its window in Python integers.
    """
    image, labels, result = bare(image), bare(labels), bare(result)
    plane, near, line = bare(scratch.plane), bare(scratch.near), bare(scratch.line)
    fill(plane, np.int64(0), plane.size)
    for i in range(5):
        result[i] = 0
    for row in range(near.shape[0]):
        for b in range(near.shape[1]):
            near[row, b] = 0
    z_map, y_map, x_map = work.maps
    work = Work(
        work.shape,
        work.window,
        (bare(z_map), bare(y_map), bare(x_map)),
        work.voxels,
        bare(work.occupied),
        work.block,
    )
    scratch = Scratch(
        plane, near, line, bare(scratch.strip), bare(scratch.across), bare(scratch.spare), bare(scratch.counts)
    )
    room = Room(bare(room.counts), bare(room.values), bare(room.labels), bare(room.kept), bare(room.ones))
    cz, cy, cx = work.window
    _, _, q_y0, q_y1, q_x0, q_x1 = work.voxels
    planes = work.shape[0]
    dense = work.occupied.size == 0
    e_x0, e_x1 = q_x0, q_x1 + cx - 1
    tall_block, wide_block = work.block
    z0, z1, y0, y1 = box
    low = y0 - cy + 1  # the q of the first row of ``plane``
    top, bottom = max(q_y0, low), min(q_y1, y1)
    for z in range(z0 - cz + 1, z1):
        leaving = z > z0
        if cz > 1:
            roll_plane(plane, low, labels, value, work, z, leaving, top, bottom)
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
                place = (z, y, y + tall, x0, x1)
                if not dense:
                    a, b = max(0, x0 - cx // 2), min(work.shape[2], x1 - cx // 2)
                    for row in range(y, y + tall):
                        ask(image, (z_map[z] * work.shape[1] + y_map[row]) * work.shape[2] + a, b - a)
                above = height if dense and y > y0 else 0
                stride = count_rows(plane, low, labels, value, work, place, scratch, above)
                reduce_rows(image, labels, value, unsigned, work, place, scratch.counts, stride, room, result)
