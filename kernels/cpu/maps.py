"""Maps over all voxels: window sums, local means and local variances, in one pass over the image.

A box of the image at a time, with the places its windows reach. Three running sums follow the window: over planes (a
tile: one number for each column of each row), over rows (one for each column), and along the row; beside them, for
variances, the same of the squares. Each step adds the layer that enters and takes off the one that leaves, so the work
does not depend on the window. A row of the tile moves on to the next plane just before the rows take it up, while it
is in the cache. A window of one plane needs no tile: its rows come from the image.

Borders are index maps (`axes.axis_map`); what is outside reads as the fill, or as 0 under ``clip``. Memory beyond the
result is what the boxes in hand need, whatever the size of the image.

Lanes. A sum over any part of a window, with weights that count how often a place is read, is at most |W| · max |v|,
and of squares |W| · max v²; over the planes and rows of a window, cz · cy · max |v|. Sums modulo 2^16, 2^32 or 2^64
are right whenever what they stand for fits: `lanes` takes uint16 for a row, or for whole windows, of unsigned bytes
while those are below 2^16, int32 while they are below 2^31, and else int64: the caller has checked that |W| · max |v|,
and for variances its square, are below 2^63.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from voxring.kernels.axes import axis_inside, axis_map

from .bare import LINE, bare, fence, prefetch, stream
from .boxes import evenly
from .jit import Array, Arrays, Number, Shape, inlined, inner, jit, merged
from .quotients import (
    DIVIDE,
    FUSED,
    MULTIPLY,
    Divisors,
    at_most,
    divisors,
    means_of,
    set_divisors,
    variances_of,
)
from .rows import copy, few_taps
from .running import BYTES, running
from .threads import in_threads

U = np.uint64
ONE = np.int64(1)

CELLS = 1 << 16
"""Cells of a tile: with its squares it stays near the L2 cache. Half and twice as many take the same time."""

WIDE = 1 << 13
"""Columns of a box, for its rows to stay in the L2 cache. A quarter takes a third longer: long rows suit memory."""

WIDE_TILE = 1 << 10
"""Columns of a box with a tile, which is then a good many rows tall."""

TALL = 1024
"""Rows of a box without a tile: a band of an image on disk that is in hand at a time."""

PART = 1 << 10
"""Columns of a row whose results are made at a time: they stay in the L1 cache."""

STREAMED = 1 << 24
"""Bytes of a map from which on its long rows are written round the caches: smaller ones are read again from there.
Short rows, and those of a tile, take as long either way: it is not for memory that they wait.
"""

FEW = 4
"""Sizes up to which a window is summed place by place: beyond, a running sum is faster."""

Box = tuple[int, int, int, int, int, int]
"""z0, z1, y0, y1, x0, x1: planes z0 … z1 − 1, rows y0 … y1 − 1, columns x0 … x1 − 1."""

Squared = Literal[True] | None
"""Whether a running sum is of squares. Like all that may be None here, it is known when a kernel is compiled, and what
it rules out is not: most of the time that a map takes at first was for the loops of other maps."""


class Wanted(NamedTuple):
    """What is asked for."""

    clip: bool  # divide by how many places are inside, not by |W|
    fill: int  # what is read outside
    most: int  # no quotient is larger than this
    largest: int  # no sum is
    small: bool  # |W| Σv² < 2^53


class Reads(NamedTuple):
    """What the windows of a box read."""

    z: Array  # how often the first window reads each plane, and, last, the outside
    y: Array  # the same of rows, from ``top`` on
    top: int  # the first row that any window reads
    last: int  # the last row that the first window reads
    left: int  # the first column, and how many
    wide: int
    edge: int  # where the first extended column stands in a row of sums, above 0: columns left of it may be read too


class Lane(NamedTuple):
    """The running sums of the values, or of their squares."""

    tile: Array  # over the planes of the window, for the columns and rows that the box reads
    row: Array  # over its rows too, at extended columns
    sums: Array  # and over its columns


@inner
def add(total: Array, to: Number, source: Array, at: Number, n: Number, weight: Number, squared: Squared) -> None:
    """total += weight · source, or its squares."""
    to, at = U(to), U(at)
    times = total.dtype.type(weight)
    if squared is None:
        for i in range(U(n)):
            total[to + i] += times * total.dtype.type(source[at + i])
    else:
        for i in range(U(n)):
            value = total.dtype.type(source[at + i])
            total[to + i] += times * (value * value)


@merged
def swap(total: Array, to: Number, source: Array, come: Number, go: Number, n: Number, squared: Squared) -> None:
    """total += what comes − what goes, or their squares."""
    to, come, go = U(to), U(come), U(go)
    if squared is None:
        for i in range(U(n)):
            total[to + i] += total.dtype.type(source[come + i]) - total.dtype.type(source[go + i])
    else:
        for i in range(U(n)):
            gain, loss = total.dtype.type(source[come + i]), total.dtype.type(source[go + i])
            total[to + i] += gain * gain - loss * loss


@inner
def put(total: Array, to: Number, n: Number, value: int) -> None:
    """total = value."""
    to = U(to)
    for i in range(U(n)):
        total[to + i] = value


@inner
def raise_by(total: Array, to: Number, n: Number, value: int) -> None:
    """total += value."""
    to = U(to)
    if value != 0:
        for i in range(U(n)):
            total[to + i] += value


@inner
def begin(
    total: Array,
    to: Number,
    source: Array,
    origin: int,
    stride: int,
    reads: Array,
    n: Number,
    outside: int,
    squared: Squared,
) -> None:
    """total = Σ over p of reads[p] · the layer at origin + p · stride, and reads[−1] times what is outside."""
    put(total, to, n, outside * reads[reads.size - 1])
    for p in range(reads.size - 1):
        if reads[p] > 0:
            add(total, to, source, origin + p * stride, n, reads[p], squared)


@merged
def move(
    total: Array,
    to: Number,
    source: Array,
    origin: int,
    stride: int,
    come: int,
    go: int,
    n: Number,
    outside: int,
    squared: Squared,
) -> None:
    """Move a running sum by one place: layer ``come`` enters, ``go`` leaves; below 0 stands for outside."""
    if come >= 0 and go >= 0:
        swap(total, to, source, origin + come * stride, origin + go * stride, n, squared)
    elif come >= 0:
        add(total, to, source, origin + come * stride, n, ONE, squared)
        raise_by(total, to, n, -outside)
    elif go >= 0:
        raise_by(total, to, n, outside)
        add(total, to, source, origin + go * stride, n, -ONE, squared)


@merged
def sums_of(out: Array, to: Number, sums: Array, at: Number, n: Number) -> None:
    """out = the n sums from ``at`` on."""
    to, at = U(to), U(at)
    for i in range(U(n)):
        out[to + i] = sums[at + i]


@merged
def ahead(target: Array, at: Number, n: Number) -> None:
    """Ask for the row that is written next while this one is computed."""
    if at + n <= target.size:
        for i in range(0, n, 64 // target.itemsize):
            prefetch(target, U(at + i))


@merged
def extend(row: Array, own: int, edge: int, x_map: Array, at: int, n: int, size: int, outside: int) -> None:
    """Fill the n places from ``edge`` on that are not columns of the image with what the border reads there.

    The image's column x stands at row[own + x]; the place i is the extended one at + i; n counts all of them.
    """
    columns = x_map.size - size + 1
    first, last = min(max(size // 2 - at, 0), n), max(min(columns + size // 2 - at, n), 0)
    for i in range(first):
        p = x_map[at + i]
        row[edge + i] = row[own + p] if p >= 0 else outside
    for i in range(last, n):
        p = x_map[at + i]
        row[edge + i] = row[own + p] if p >= 0 else outside


@merged
def windows_of(sums: Array, row: Array, at: Number, size: int, n: Number) -> None:
    """sums[i] = row[at + i] + … + row[at + i + size − 1] for i < n.

    At i = 0 the running sum comes from the window before, so row[at − 1], whatever it holds, goes in and out again;
    and it runs on to the end of a vector.
    """
    if size <= FEW:
        few_taps(sums, U(0), row, at, size, n)
    else:
        before = U(at - 1)
        total = sums.dtype.type(0)
        for i in range(U(size)):
            total += sums.dtype.type(row[before + i])
        lanes = U(BYTES // sums.itemsize)
        running(sums, U(0), row, U(at + size - 1), before, (U(n) + lanes - U(1)) // lanes, total)


@inlined
def sum_row(
    lane: Lane,
    image: Array,
    shape: Shape,
    window: Shape,
    maps: Arrays,
    box: Box,
    reads: Reads,
    z: int,
    y: int,
    done: int,
    outside: int,
    squared: Squared,
) -> int:
    """Sum the windows of row y of plane z into ``lane.sums``, after those of the rows and planes of the box before it.

    Rows of the tile before ``done`` have moved on to plane z; returns the same for the next row.
    """
    cz, cy, cx = window
    _, rows, columns = shape
    top, left, wide, edge = reads.top, reads.left, reads.wide, reads.edge
    own = edge + cx // 2 - box[4]
    row, to = lane.row, own + left
    come, go = maps[1][y + cy - 1], maps[1][y - 1 if y > 0 else 0]
    if cz == 1:
        origin = z * rows * columns + left
        if y == box[2]:
            begin(row, to, image, origin + top * columns, columns, reads.y, wide, outside, squared)
        else:
            move(row, to, image, origin, columns, come, go, wide, outside, squared)
    else:
        while done <= (reads.last if y == box[2] else come):
            cell, origin = (done - top) * wide, done * columns + left
            if z == box[0]:
                begin(lane.tile, cell, image, origin, rows * columns, reads.z, wide, outside, squared)
            else:
                enter, leave = maps[0][z + cz - 1], maps[0][z - 1]
                move(lane.tile, cell, image, origin, rows * columns, enter, leave, wide, outside, squared)
            done += 1
        if y == box[2]:
            begin(row, to, lane.tile, 0, wide, reads.y, wide, outside * cz, None)
        else:
            move(row, to, lane.tile, -top * wide, wide, come, go, wide, outside * cz, None)
    n = box[5] - box[4]
    extend(row, own, edge, maps[2], box[4], n + cx - 1, cx, outside * cz * cy)
    windows_of(lane.sums, row, edge, cx, n)
    return done


@jit
def fill_box(
    image: Array,
    shape: Shape,
    window: Shape,
    maps: Arrays,
    inside: Arrays,
    box: Box,
    wanted: Wanted,
    sums: Array | None,
    narrow: Array | None,
    wide: Array | None,
    line: Array,
    reads: Reads,
    values: Lane,
    squares: Lane | None,
    by: Divisors | None,
) -> None:
    """Fill one map in a box: at each voxel, what its window sums to in Python integers, or its quotient.

    The map is a flat array of the image's shape: ``sums`` of integers, ``narrow`` of float32 or ``wide`` of float64.
    If it is to be written round the caches, ``line`` has room for some of its numbers and a cache line, else for none.
    ``squares`` are None unless variances are wanted, and ``by`` for sums.
    """
    z0, z1, y0, y1, x0, x1 = box
    _, rows, columns = shape
    image = bare(image)
    maps = bare(maps[0]), bare(maps[1]), bare(maps[2])
    z_inside, y_inside, x_inside = bare(inside[0]), bare(inside[1]), bare(inside[2])
    reads = Reads(bare(reads.z), bare(reads.y), reads.top, reads.last, reads.left, reads.wide, reads.edge)
    values = Lane(bare(values.tile), bare(values.row), bare(values.sums))
    if squares is not None:
        second = Lane(bare(squares.tile), bare(squares.row), bare(squares.sums))
    if by is not None:
        divide = Divisors(bare(by.counts), bare(by.near), bare(by.rest), bare(by.near32), bare(by.rest32))
    if sums is not None:
        out = bare(sums)
    elif narrow is not None:
        out = bare(narrow)
    elif wide is not None:
        out = bare(wide)
    line = bare(line)
    streamed = line.size > 0
    n = x1 - x0
    part = line.size - LINE // out.itemsize if streamed else n
    start = held = 0
    over_before = -1
    multiply, divisor, road = False, 0, DIVIDE
    for z in range(z0, z1):
        done = done2 = reads.top
        for y in range(y0, y1):
            done = sum_row(values, image, shape, window, maps, box, reads, z, y, done, wanted.fill, None)
            if squares is not None:
                fill2 = wanted.fill * wanted.fill
                done2 = sum_row(second, image, shape, window, maps, box, reads, z, y, done2, fill2, True)
            at = (z * rows + y) * columns + x0
            if not streamed:
                ahead(out, at + columns, n)
            if by is not None:
                over = z_inside[z] * y_inside[y]
                if over != over_before:
                    over_before = over
                    multiply, divisor = set_divisors(divide, over, x_inside, x0, n, squares is not None, wanted.most)
                if wide is not None:
                    exact = wanted.small if squares is not None else wanted.largest <= 1 << 53
                    road = FUSED if divisor <= 1 << 50 and exact else DIVIDE
                elif squares is not None:
                    road = MULTIPLY if multiply and wanted.small else DIVIDE
                elif divisor <= 1 << 21 and (wanted.largest <= 1 << 24 or at_most(values.sums, n, 1 << 24)):
                    road = FUSED
                else:
                    road = MULTIPLY if multiply else DIVIDE
            for x in range(0, n, part):
                some = min(part, n - x)
                if streamed and start + held != at + x:
                    copy(out, start, line, 0, held)
                    start, held = at + x, 0
                target, to = (line, held) if streamed else (out, at + x)
                if sums is not None:
                    sums_of(target, to, values.sums, x, some)
                elif squares is not None:
                    variances_of(target, to, values.sums, second.sums, divide, x, some, road, wanted.small)
                elif narrow is not None:
                    means_of(target, to, values.sums, divide, divide.near32, divide.rest32, x, some, road)
                elif wide is not None:
                    means_of(target, to, values.sums, divide, divide.near, divide.rest, x, some, road)
                if streamed:
                    held += some
                    written = int(stream(out, U(start), line, U(held)))
                    start, held = start + written, held - written
                    copy(line, 0, line, written, held)
    if streamed:
        copy(out, start, line, 0, held)
        fence()


def cut(shape: Shape, window: Shape, workers: int) -> list[Box]:
    """Boxes in the order of the image's memory, and, for several workers, some for each.

    A cut has what the windows reach over it summed again, so boxes are not made much smaller than the window.
    """
    planes, rows, columns = shape
    cz, cy, cx = window
    wide = max(WIDE if cz == 1 else WIDE_TILE, 3 * cx)
    strips = evenly(0, columns, wide)
    tall = max(TALL, 3 * cy)
    if cz > 1:
        tall = max(CELLS // (strips[0][1] + cx - 1) - (cy - 1), 3 * cy, 16)
    deep = planes
    wanted = 4 * workers if workers > 1 else 1
    bands = -(-rows // tall)
    if bands * len(strips) < wanted:
        deep = min(planes, max(-(-planes * bands * len(strips) // wanted), 3 * cz if cz > 1 else 1))
        layers = -(-planes // deep)
        tall = min(tall, max(-(-rows * layers * len(strips) // wanted), 3 * cy))
    return [
        (z0, z1, y0, y1, x0, x1)
        for z0, z1 in evenly(0, planes, deep)
        for y0, y1 in evenly(0, rows, tall)
        for x0, x1 in strips
    ]


def lanes(dtype: np.dtype[np.integer], magnitude: int, fill: int, window: Shape, variances: bool) -> tuple[str, ...]:
    """The types of sums over rows and planes, of those over windows, and of squares: few, since each is compiled."""
    cz, cy, cx = window
    size = cz * cy * cx
    squares = "int32" if not variances or magnitude**2 * size < 2**31 else "int64"
    if dtype.itemsize > 2 or magnitude * size >= 2**31 or (dtype.itemsize == 1 and squares == "int64"):
        return "int64", "int64", "int64"
    if dtype == np.uint8 and fill >= 0 and magnitude * cz * cy < 2**16:
        return "uint16", "uint16" if magnitude * size < 2**16 else "int32", squares
    return "int32", "int32", squares


def reads_of(box: Box, maps: Arrays, window: Shape) -> Reads:
    """What the windows of a box read."""
    z0, _, y0, y1, x0, x1 = box
    cz, cy, cx = window
    rows, columns = maps[1][y0 : y1 + cy - 1], maps[2][x0 : x1 + cx - 1]
    top, left = int(rows[rows >= 0].min()), int(columns[columns >= 0].min())
    first = rows[:cy]
    return Reads(
        counted(maps[0][z0 : z0 + cz], 0),
        counted(first, top),
        top,
        int(first.max()),
        left,
        int(columns.max()) + 1 - left,
        max(0, x0 - cx // 2 - left) + 1,
    )


def counted(places: Array, first: int) -> Array:
    """How often each place from ``first`` on is read, and, last, the outside."""
    inside = places[places >= 0]
    return np.append(np.bincount(inside - first), places.size - inside.size).astype(np.int64)


def lane_for(kinds: tuple[str, str], box: Box, reads: Reads, window: Shape, tall: int) -> Lane:
    """Memory of a box for one of its running sums, with a vector to spare at the end of a row."""
    of_rows, of_windows = kinds
    n = box[5] - box[4]
    own = reads.edge + window[2] // 2 - box[4] + reads.left
    row = max(reads.edge + n + window[2] - 1, own + reads.wide) + BYTES
    cells = tall * reads.wide if window[0] > 1 else 0
    return Lane(np.empty(cells, of_rows), np.empty(row, of_rows), np.empty(n + BYTES, of_windows))


def fill_map(
    out: Array,
    image: Array,
    window: Shape,
    border: str,
    wanted: Wanted,
    magnitude: int,
    workers: int,
    *,
    variances: bool = False,
    divided: bool = True,
) -> None:
    """Fill ``out``; no value that is read, inside or outside, is larger than ``magnitude``.

    Floats that are not ``divided`` are sums over 1.
    """
    shape: Shape = image.shape
    z, y, x = (axis_map(length, size, border) for length, size in zip(shape, window, strict=True))
    maps = z, y, x
    if not divided:
        z, y, x = (np.ones(length, np.int64) for length in shape)
    elif wanted.clip:
        z, y, x = (axis_inside(length, size) for length, size in zip(shape, window, strict=True))
    else:
        z, y, x = (np.full(length, size) for length, size in zip(shape, window, strict=True))
    inside = z, y, x
    flat = image.reshape(-1)
    into = out.reshape(-1)
    sums = into if out.dtype.kind == "i" else None
    narrow = into if out.dtype == np.float32 else None
    wide = into if out.dtype == np.float64 else None
    large = out.nbytes >= STREAMED and window[0] == 1 and shape[2] >= PART and out.flags.aligned
    room = PART + LINE // out.itemsize if large else 0
    of_rows, of_windows, of_squares = lanes(image.dtype, magnitude, wanted.fill, window, variances)

    def run(box: Box) -> None:
        reads = reads_of(box, maps, window)
        rows = maps[1][box[2] : box[3] + window[1] - 1]
        tall = int(rows.max()) + 1 - reads.top
        fill_box(
            flat,
            shape,
            window,
            maps,
            inside,
            box,
            wanted,
            sums,
            narrow,
            wide,
            np.empty(room, out.dtype),
            reads,
            lane_for((of_rows, of_windows), box, reads, window, tall),
            lane_for((of_squares, of_squares), box, reads, window, tall) if variances else None,
            divisors(box[5] - box[4]) if sums is None else None,
        )

    in_threads(run, cut(shape, window, workers), workers)


def sums_into(out: Array, image: Array, window: Shape, border: str, fill: int, magnitude: int, workers: int) -> None:
    """Window sums, as integers or as floats: rounded to float64, and then to the type of ``out``."""
    most = magnitude * window[0] * window[1] * window[2]
    wanted = Wanted(border == "clip", fill if border == "constant" else 0, most, most, False)
    fill_map(out, image, window, border, wanted, magnitude, workers, divided=False)


def floats_into(
    out: Array,
    image: Array,
    window: Shape,
    border: str,
    fill: int,
    magnitude: int,
    workers: int,
    *,
    variances: bool = False,
) -> None:
    """Local means S / |W|, or local variances (|W| Σv² − S²) / |W|²: float64, then rounded to the type of ``out``."""
    size = window[0] * window[1] * window[2]
    wanted = Wanted(
        border == "clip",
        fill if border == "constant" else 0,
        magnitude**2 if variances else magnitude,
        magnitude * size,
        (magnitude * size) ** 2 < 2**53,
    )
    fill_map(out, image, window, border, wanted, magnitude, workers, variances=variances)
