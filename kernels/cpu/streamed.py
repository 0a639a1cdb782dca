"""The general road: window sums streamed through the image, for every type, border and window.

A summed-area table that is never stored. Three running sums follow the window: over planes (one number per voxel of a
tile of rows), over rows (one per column), and along the row. Each step adds the layer that enters and takes off the
one that leaves, so the work does not depend on the window. Borders are index maps (`axes.axis_map`): an extended
place says which voxel is read there, or that it is outside.

Window sums are int64 and computed modulo 2^64. The caller has checked that |v|·|W| < 2^63 for the largest |v|, so each
S_q, and each sum over a part of its window, is itself whatever wrapped on the way.
"""

from __future__ import annotations

import numpy as np

from .jit import Array, Arrays, jit
from .moments import add_halves


@jit
def add(target: Array, source: Array, weight: int) -> None:
    """target += weight · source."""
    for i in range(target.size):
        target[i] += weight * np.int64(source[i])


@jit
def swap(target: Array, entering: Array, leaving: Array) -> None:
    """target += entering − leaving."""
    for i in range(target.size):
        target[i] += np.int64(entering[i]) - np.int64(leaving[i])


@jit
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


@jit
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


@jit
def extend(row: Array, first: int, end: int, x_map: Array) -> None:
    """Fill the places beside the row's own columns, row[first:end], with what the border reads there."""
    for e in range(first):
        row[e] = row[first + x_map[e]] if x_map[e] >= 0 else 0
    for e in range(end, row.size):
        row[e] = row[first + x_map[e]] if x_map[e] >= 0 else 0


@jit
def slide(sums: Array, row: Array) -> None:
    """sums[x] = row[x] + … + row[x + c − 1], c = row.size − sums.size + 1."""
    size = row.size - sums.size + 1
    running = np.int64(0)
    for e in range(size):
        running += row[e]
    sums[0] = running
    entering = row[size:]
    for x in range(1, sums.size):
        sums[x] = entering[x - 1] - row[x - 1]
    for x in range(1, sums.size):
        running += sums[x]
        sums[x] = running


@jit
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


@jit
def stream(
    image: Array,
    shape: tuple[int, int, int],
    window: tuple[int, int, int],
    maps: Arrays,
    box: tuple[int, int, int, int],
    out: Array,
    numbers: Array,
    starts: Arrays,
    limit: int,
    table: Array,
) -> None:
    """Window sums S of the planes z0 … z1 and rows y0 … y1 of ``box``, all columns.

    They go to ``out`` (flat, the image's shape) unless it is empty, and into ``table`` (runs of z, runs of y, classes,
    runs of x, 3) by class number unless ``numbers`` is empty. A box holds fewer than 2^31 voxels (see add_halves).
    Must equal, for each voxel, the sum over its window in Python integers.
    """
    z0, z1, y0, y1 = box
    z_map, y_map, x_map = maps
    cz, cy, cx = window
    _, rows, columns = shape
    places = y_map[y0 : y1 + cy - 1]
    top = bottom = -1  # the image rows that the box reads
    for p in places:
        if p >= 0:
            top = p if top < 0 else min(top, p)
            bottom = max(bottom, p)
    plane_size = rows * columns
    tile = np.empty((bottom + 1 - top) * columns, np.int64)  # sums over the planes of the window
    row = np.zeros(columns + cx - 1, np.int64)  # and over its rows, at extended columns
    first = cx // 2
    own = row[first : first + columns]
    sums = np.empty(columns, np.int64)
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
            slide(sums, row)
            at = (z * rows + y) * columns
            if out.size > 0:
                out[at : at + columns] = sums
            if numbers.size > 0:
                while y >= starts[1][y_run + 1]:
                    y_run += 1
                collect(sums, numbers[at : at + columns], starts[2], limit, table[z_run, y_run])
