"""The general road: window sums streamed through the image, for every type, border and window.

A summed-area table that is never stored. Three running sums follow the window: over planes (one number per voxel of a
tile of rows), over rows (one per column), and along the row. Each step adds the layer that enters and takes off the
one that leaves, so the work does not depend on the window. Borders are index maps (`axes.axis_map`): an extended
place says which voxel is read there, or that it is outside.

Window sums are computed modulo 2^32 or 2^64, in a lane that |v|·|W| provably fits for the largest |v|: each S_q, and
each sum over a part of its window, is itself whatever wrapped on the way.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from voxring.kernels import Reduction
from voxring.kernels.axes import axis_map, axis_runs

from .bare import bare
from .boxes import Box, Range, cut
from .jit import Array, Arrays, Shape, inner, jit
from .moments import add_halves
from .rows import window_row
from .threads import in_threads

TILE = 1 << 16
"""Voxels of one plane that a tile holds: its int64 sums stay in the L2 cache."""


@inner
def add(target: Array, source: Array, weight: int) -> None:
    """target += weight · source."""
    for i in range(target.size):
        target[i] += weight * np.int64(source[i])


@inner
def swap(target: Array, entering: Array, leaving: Array) -> None:
    """target += entering − leaving."""
    for i in range(target.size):
        target[i] += np.int64(entering[i]) - np.int64(leaving[i])


@inner
def start(target: Array, layers: Array, origin: int, stride: int, places: Array) -> None:
    """target = Σ over ``places`` of the layers read there. Layer p lies at origin + p · stride; p < 0 is outside.

    A layer read several times, by reflection, is added once with a weight: windows may be larger than the image.
    """
    target[:] = 0
    reads = np.zeros(places.max() + 1 if places.size > 0 else 0, np.int64)
    for p in places:
        if p >= 0:
            reads[p] += 1
    for p in range(reads.size):
        if reads[p] > 0:
            at = origin + p * stride
            add(target, layers[at : at + target.size], reads[p])


@inner
def step(target: Array, layers: Array, origin: int, stride: int, entering: int, leaving: int) -> None:
    """Move the running sum ``target`` by one place."""
    come = origin + entering * stride
    go = origin + leaving * stride
    if entering >= 0 and leaving >= 0:
        swap(target, layers[come : come + target.size], layers[go : go + target.size])
    elif entering >= 0:
        add(target, layers[come : come + target.size], 1)
    elif leaving >= 0:
        add(target, layers[go : go + target.size], -1)


@inner
def extend(row: Array, first: int, end: int, x_map: Array) -> None:
    """Fill the places beside the row's own columns, row[first:end], with what the border reads there."""
    for e in range(first):
        row[e] = row[first + x_map[e]] if x_map[e] >= 0 else 0
    for e in range(end, row.size):
        row[e] = row[first + x_map[e]] if x_map[e] >= 0 else 0


@inner
def collect(sums: Array, numbers: Array, starts: Array, limit: int, table: Array) -> None:
    """Add one row's window sums to its classes: table[k, r] += (voxels, Σ S in two halves), r the run of columns.

    A sum over at most ``limit`` voxels fits an int64 (limit · |v| · |W| < 2^63), and is then split into halves.
    """
    for r in range(starts.size - 1):
        x = starts[r]
        while x < starts[r + 1]:
            number = numbers[x]
            stop = x + 1
            while stop < starts[r + 1] and numbers[stop] == number:
                stop += 1
            if number > 0:
                entry = table[number - 1, r]
                entry[0] += stop - x
                for piece in range(x, stop, limit):
                    total = np.int64(0)
                    for value in sums[piece : min(piece + limit, stop)]:
                        total += value
                    add_halves(entry[1:], total)
            x = stop


class Room(NamedTuple):
    """Memory that a box needs, in the lane of the sums."""

    tile: Array  # sums over the planes of the window
    row: Array  # and over its rows, at extended columns
    sums: Array  # and over its columns
    spare: Array


@jit
def span(places: Array) -> tuple[int, int]:
    """The first and the last of the places that are inside."""
    first = last = -1
    for p in places:
        if p >= 0:
            first = p if first < 0 else min(first, p)
            last = max(last, p)
    return first, last


@jit
def stream(
    image: Array,
    shape: Shape,
    window: Shape,
    maps: Arrays,
    box: Box,
    numbers: Array,
    starts: Arrays,
    limit: int,
    table: Array,
    room: Room,
) -> None:
    """Window sums S of the planes z0 … z1 and rows y0 … y1 of ``box``, all columns.

    They go into ``table`` (runs of z, runs of y, classes, runs of x, 3) by class number. A box holds fewer than 2^31
    voxels (see add_halves).
    Must equal, for each voxel, the sum over its window in Python integers.
    """
    z0, z1, y0, y1 = box
    z_map, y_map, x_map = maps
    cz, cy, cx = window
    _, rows, columns = shape
    image, numbers, table = bare(image), bare(numbers), bare(table)
    tile, row, sums, spare = bare(room.tile), bare(room.row), bare(room.sums), bare(room.spare)
    top, bottom = span(y_map[y0 : y1 + cy - 1])
    plane_size = rows * columns
    tile = tile[: (bottom + 1 - top) * columns]
    row[:] = 0
    first = cx // 2
    own = row[first : first + columns]
    z_run = 0
    for z in range(z0, z1):
        if z == z0:
            start(tile, image, top * columns, plane_size, z_map[z : z + cz])
        else:
            step(tile, image, top * columns, plane_size, z_map[z + cz - 1], z_map[z - 1])
        while z >= starts[0][z_run + 1]:
            z_run += 1
        y_run = 0
        for y in range(y0, y1):
            if y == y0:
                start(own, tile, -top * columns, columns, y_map[y : y + cy])
            else:
                step(own, tile, -top * columns, columns, y_map[y + cy - 1], y_map[y - 1])
            extend(row, first, first + columns, x_map)
            window_row(sums, 0, row, 0, cx, columns, spare)
            at = (z * rows + y) * columns
            while y >= starts[1][y_run + 1]:
                y_run += 1
            collect(sums, numbers[at : at + columns], starts[2], limit, table[z_run, y_run])


def groups_streamed(
    image: Array,
    numbers: Array,
    classes: int,
    window: Shape,
    border: str,
    workers: int,
    *,
    planes: Range | None = None,
    rows: Range | None = None,
) -> list[Reduction]:
    """The groups of each class number 1 … ``classes`` (flat ``numbers``, 0 for none), without moments.

    Only of the voxels in ``planes`` and ``rows``, by default all. The caller has checked that window sums fit 63 bits.
    """
    shape: Shape = image.shape
    region = planes or (0, shape[0]), rows or (0, shape[1])
    maps, starts, inside = axes(shape, window, border)
    largest = largest_sum(image.dtype, window)
    limit = max(1, min(shape[2], (2**63 - 1) // largest))
    flat = image.reshape(-1)

    def run(box: Box) -> list[Reduction]:
        sizes = (len(inside[0]), len(inside[1]), classes, len(inside[2]), 3)
        table = np.zeros(sizes, dtype=np.int64)
        stream(
            flat,
            shape,
            window,
            maps,
            box,
            numbers,
            starts,
            limit,
            table,
            room_for(box, shape, window, maps[1], largest),
        )
        return drained(table, inside)

    answer = [Reduction() for _ in range(classes)]
    for some in in_threads(run, cut(*region, shape[2], TILE // shape[2], window, workers), workers):
        answer = [mine + more for mine, more in zip(answer, some, strict=True)]
    return answer


def largest_sum(dtype: np.dtype[np.integer], window: Shape) -> int:
    """|v| · |W| at most, from the type alone (|v| <= 2^47 for 64 bits)."""
    limits = np.iinfo(dtype)
    magnitude = 1 << 47 if dtype.itemsize == 8 else max(-int(limits.min), int(limits.max))
    return magnitude * window[0] * window[1] * window[2]


def room_for(box: Box, shape: Shape, window: Shape, y_map: Array, largest: int) -> Room:
    """Memory for a box, in the narrowest lane that holds sums up to ``largest``, or up to what the caller checked."""
    lane = np.int32 if largest < 2**31 else np.int64
    top, bottom = span(y_map[box[2] : box[3] + window[1] - 1])
    wide = shape[2] + window[2]
    return Room(
        np.empty((bottom + 1 - top) * shape[2], lane),
        np.empty(wide - 1, lane),
        np.empty(wide, lane),
        np.empty(wide, lane),
    )


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
