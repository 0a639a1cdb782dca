"""The adjoint road: filter the ground truth instead of the image, then one dot product.

Σ_{q in G} S_q sums, over every window of the class, the voxels it reads. Counted the other way round it is

    Σ_e count(e) · v(e),    count(e) = how many q of the class have e in their window,

over all *extended* places e (see `axes`), v(e) being read through the border map. The counts are a box filter of a
0/1 mask, which needs no border rule and fits narrow lanes: uint8 while it cannot exceed 255, int16 up to 32767. They
never exceed |W|, whatever the border, because the image is extended and the counts are not folded. Voxels where the
count is 0 are not read: blocks that the class does not reach cost nothing.

A window at q covers e = q … q + c − 1, so count(e) sums the mask over q = e − c + 1 … e; e itself stands for the
coordinate e − c//2. A tile is a box of extended places; the kernel walks down its planes and keeps the counts of the
last cz mask planes in a ring.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .jit import Array, Arrays, jit
from .rows import LANES, PIECE, add_row, mark, next_row, reduce_stretch, roll, window_row


class Work(NamedTuple):
    """What one image asks for, the same for all of its tiles. Numba reads it as it is."""

    shape: tuple[int, int, int]
    window: tuple[int, int, int]
    maps: Arrays
    voxels: tuple[int, int, int, int, int, int]  # the q whose windows are summed: z0, z1, y0, y1, x0, x1
    occupied: Array  # (planes, blocks of rows, blocks of columns): 0 where the class is not
    block: tuple[int, int]  # rows and columns of such a block


@jit
def occupied(work: Work, z: int, y0: int, y1: int, x0: int, x1: int) -> bool:
    """Whether plane z may have voxels of the class in rows y0 … y1 − 1 and columns x0 … x1 − 1."""
    if y0 >= y1 or x0 >= x1:
        return False
    rows, columns = work.block
    for y in range(y0 // rows, (y1 - 1) // rows + 1):
        for x in range(x0 // columns, (x1 - 1) // columns + 1):
            if work.occupied[z, y, x] != 0:
                return True
    return False


@jit
def count_plane(
    mask: Array, height: int, width: int, cy: int, cx: int, sums: Array, out: Array, spare: Array
) -> None:
    """Box sums of a mask plane: down the rows of the tile, then along all of them in one go.

    ``sums`` (uint8) holds at most cy <= 255, ``out`` at most cy · cx, which the caller's lane holds. The places
    between the end of one row and the begin of the next hold garbage.
    """
    stride = sums.size // height
    first = sums[:stride]
    first[:] = 0
    for y in range(cy):
        add_row(first, mask[y * stride : (y + 1) * stride])
    for y in range(1, height):
        at = y * stride
        next_row(
            sums[at : at + stride],
            sums[at - stride : at],
            mask[at + (cy - 1) * stride : at + cy * stride],
            mask[at - stride : at],
        )
    window_row(out, sums, cx, (height - 1) * stride + width, spare)


@jit
def roll_tile(counts: Array, edges: Array, new: Array, old: Array, left: int) -> None:
    """counts += new − old. The columns that the image has go to packed rows, those beside it to ``edges``.

    ``left`` columns of the tile lie to the left of the image, edges.shape[1] on both sides of it.
    """
    height, beside = edges.shape
    stride = new.size // height
    inner = counts.size // height
    for y in range(height):
        at = y * stride + left
        roll(counts[y * inner : (y + 1) * inner], new[at : at + inner], old[at : at + inner])
        for x in range(beside):
            place = y * stride + (x if x < left else x + inner)
            edges[y, x] += np.int64(new[place]) - np.int64(old[place])


@jit
def reduce_tile(
    image: Array,
    labels: Array,
    value: int,
    unsigned: bool,
    work: Work,
    z: int,
    tile: Array,
    left: int,
    counts: Array,
    edges: Array,
    wanted: tuple[bool, bool],
    one: int,
    kept: Array,
    sums: Array,
) -> None:
    """Add to ``sums`` what one extended plane of the tile holds: Σ count(e) · v(e), and moments, if ``wanted``."""
    dots, moments = wanted
    planes, rows, columns = work.shape
    cz, cy, cx = work.window
    z_map, y_map, x_map = work.maps
    height, beside = edges.shape
    inner = counts.size // height
    x0 = tile[4]
    column = x0 + left - cx // 2  # of the image, where the packed rows begin
    own_plane = 0 <= z - cz // 2 < planes
    y = 0
    while y < height:
        row = y_map[tile[2] + y]
        own = 0 <= tile[2] + y - cy // 2 < rows
        stop = y + 1
        if own and inner == columns:  # rows that follow each other in the image are one stretch
            stop = min(height, rows + cy // 2 - tile[2])
        at = (z_map[z] * rows + row) * columns + column
        n = (stop - y) * inner
        with_moments = moments and own and own_plane
        if dots or with_moments:
            reduce_stretch(
                image[at : at + n],
                counts[y * inner : y * inner + n] if dots else counts[:0],
                labels[at : at + n] if with_moments else labels[:0],
                value,
                unsigned,
                cz * cy * cx,
                one,
                kept,
                sums,
            )
        y = stop
    if dots:
        for y in range(height):
            at = (z_map[z] * rows + y_map[tile[2] + y]) * columns
            for x in range(beside):
                v = np.int64(image[at + x_map[x0 + (x if x < left else x + inner)]])
                sums[1] += edges[y, x] * (v & 0xFFFF if unsigned else v)


@jit
def adjoint(
    image: Array,
    labels: Array,
    value: int,
    unsigned: bool,
    work: Work,
    tiles: Array,
    one: int,
    narrow: Array,
    wide: Array,
) -> tuple[int, int, int, int]:
    """(voxels, Σ S, Σ v, Σ v²) of the class ``value`` in the given tiles of extended places.

    Σ S is over the q in ``work.voxels``; the others over all voxels of the class whose own place is in the tiles.

    Parameters
    ----------
    image : flat array of uint8, int8 or int16
        uint16 comes as the int16 of the same bits, with ``unsigned`` true.
    labels : flat array of uint8
    tiles : (n, 6) array
        z0, z1, y0, y1, x0, x1 of each.
    narrow, wide : arrays
        Lend their types: the lanes of counts in a plane, at most cy · cx, and of counts, at most |W|.

    Notes
    -----
    |v| < 2^16 and counts <= |W| < 2^15, so 2^30 places sum to less than 2^62 in each result. Must equal the loop over
    every voxel of the class and every place of its window in Python integers.
    """
    cz, cy, cx = work.window
    q_z0, q_z1, q_y0, q_y1, q_x0, q_x1 = work.voxels
    planes, rows, columns = work.shape
    tallest = np.max(tiles[:, 3] - tiles[:, 2])
    widest = np.max(tiles[:, 5] - tiles[:, 4])
    stride = (widest + cx - 1 + LANES - 1) // LANES * LANES
    mask = np.empty((tallest + cy - 1) * stride, np.uint8)
    sums = np.empty(tallest * stride, np.uint8)
    spare = np.empty(tallest * stride, narrow.dtype)
    ring = np.empty((cz + 1) * tallest * stride, narrow.dtype)  # the planes of the window, and the one that leaves
    zeros = np.zeros(tallest * stride, narrow.dtype)
    packed = np.empty(tallest * widest, wide.dtype)
    beside = np.empty(tallest * widest, np.int64)
    live = np.empty(cz + 1, np.bool_)
    kept = np.empty(PIECE, np.int16)
    result = np.zeros(5, np.int64)
    for t in range(tiles.shape[0]):
        tile = tiles[t]
        z0, z1, y0, y1, x0, x1 = tile[0], tile[1], tile[2], tile[3], tile[4], tile[5]
        height = y1 - y0
        width = x1 - x0
        area = height * stride
        top, bottom = max(q_y0, y0 - cy + 1), min(q_y1, y1)  # the q whose windows reach this tile
        near, far = max(q_x0, x0 - cx + 1), min(q_x1, x1)
        row0, row1 = max(y0 - cy // 2, 0), min(y1 - cy // 2, rows)  # the tile's own part of the image
        column0 = min(max(x0 - cx // 2, 0), columns)
        column1 = max(min(x1 - cx // 2, columns), column0)
        inner = column1 - column0
        left = min(max(cx // 2 - x0, 0), width) if inner > 0 else width
        counts = packed[: height * inner]
        edges = beside[: height * (width - inner)].reshape(height, width - inner)
        mask[:] = 0
        counts[:] = 0
        edges[:] = 0
        live[:] = False
        alive = 0
        for step in range(z1 - z0 + cz - 1):
            z = z0 - cz + 1 + step
            new = step % (cz + 1)
            old = (step + 1) % (cz + 1)
            live[new] = q_z0 <= z < q_z1 and occupied(work, z, top, bottom, near, far)
            if live[new]:
                alive += 1
                for y in range(top, bottom):
                    at = (z * rows + y) * columns
                    to = (y - (y0 - cy + 1)) * stride - (x0 - cx + 1)
                    mark(labels[at + near : at + far], value, mask[to + near : to + far])
                count_plane(mask, height, width, cy, cx, sums[:area], ring[new * area : (new + 1) * area], spare)
            if live[old]:
                alive -= 1
            if live[new] or live[old]:
                entering = ring[new * area : (new + 1) * area] if live[new] else zeros[:area]
                leaving = ring[old * area : (old + 1) * area] if live[old] else zeros[:area]
                roll_tile(counts, edges, entering, leaving, left)
            if z < z0:
                continue
            plane = z - cz // 2
            some = 0 <= plane < planes and occupied(work, plane, row0, row1, column0, column1)
            if alive > 0 or some:
                wanted = (alive > 0, some)
                reduce_tile(
                    image, labels, value, unsigned, work, z, tile, left, counts, edges, wanted, one, kept, result
                )
    return result[0], result[1], result[2], result[3]
