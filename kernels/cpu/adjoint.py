"""The adjoint road: filter the ground truth instead of the image, then one dot product.

Σ_{q in G} S_q sums, over every window of the class, the voxels it reads. Counted the other way round it is

    Σ_e count(e) · v(e),    count(e) = how many q of the class have e in their window,

over all *extended* places e (see `axes`), v(e) being read through the border map. The counts are a box filter of a
0/1 mask, which needs no border rule and fits narrow lanes: uint8 while it cannot exceed 255, int16 up to 32767. They
never exceed |W|, whatever the border, because the image is extended and the counts are not folded. Voxels where the
count is 0 are not read: blocks that the class does not reach cost nothing.

A window at q covers e = q … q + c − 1, so count(e) sums the mask over q = e − c + 1 … e.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .jit import Array, Arrays, jit
from .rows import INT32, add_row, dot, load, mark, masked_moments, next_row, roll, window_row

LANES = 32
"""Rows of a tile begin at multiples of this."""

FLIP = 32768
"""uint16 comes as the int16 of the same bits. A tile with values from 2^15 on is shifted down by this much."""


class Work(NamedTuple):
    """What one image asks for, the same for all of its tiles. Numba reads it as it is."""

    shape: tuple[int, int, int]
    window: tuple[int, int, int]
    maps: Arrays
    voxels: tuple[int, int, int, int, int, int]  # the q that count: z0, z1, y0, y1, x0, x1
    occupied: Array  # (planes, blocks of rows, blocks of columns): whether the class is there
    block: tuple[int, int]  # rows and columns of such a block


@jit
def reached(work: Work, z: int, y0: int, y1: int, x0: int, x1: int) -> bool:
    """Whether plane z has voxels of the class, to a block, in rows y0 … y1 − 1 and columns x0 … x1 − 1."""
    if z < work.voxels[0] or z >= work.voxels[1]:
        return False
    rows, columns = work.block
    for y in range(y0 // rows, (y1 - 1) // rows + 1):
        for x in range(x0 // columns, (x1 - 1) // columns + 1):
            if work.occupied[z, y, x] != 0:
                return True
    return False


@jit
def load_tile(image: Array, work: Work, plane: int, tile: Array, stride: int, values: Array) -> tuple[int, int]:
    """Copy a tile of one image plane, read through the border, into int16 rows; the least and greatest value."""
    y0, y1, x0, x1 = tile[2], tile[3], tile[4], tile[5]
    _, rows, columns = work.shape
    _, y_map, x_map = work.maps
    first = work.window[2] // 2  # the place of column 0
    own0 = min(max(x0, first), x1)
    own1 = max(min(x1, first + columns), own0)
    low = high = np.int16(0)
    for y in range(y0, y1):
        at = (plane * rows + y_map[y]) * columns
        row = values[(y - y0) * stride : (y - y0) * stride + x1 - x0]
        low, high = load(row[own0 - x0 : own1 - x0], image[at + own0 - first : at + own1 - first], low, high)
        for x in range(x0, own0):
            row[x - x0] = image[at + x_map[x]]
        for x in range(own1, x1):
            row[x - x0] = image[at + x_map[x]]
    for y in range(y1 - y0):  # what the border reads may lie outside the tile's own columns
        for x in range(own0 - x0):
            low = min(low, values[y * stride + x])
            high = max(high, values[y * stride + x])
        for x in range(own1 - x0, x1 - x0):
            low = min(low, values[y * stride + x])
            high = max(high, values[y * stride + x])
    return low, high


@jit
def count_plane(
    mask: Array, size: tuple[int, int, int], window: tuple[int, int], sums: Array, out: Array, spare: Array
) -> None:
    """Box sums of a mask plane: rows first, rolling down the tile, then along the flat tile.

    ``sums`` (uint8) holds at most cy <= 255, ``out`` at most cy · cx, which the caller's lane holds.
    """
    height, width, stride = size
    cy, cx = window
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
def adjoint(
    image: Array, labels: Array, value: int, unsigned: bool, work: Work, tiles: Array, narrow: Array, wide: Array
) -> tuple[int, int, int, int]:
    """(voxels, Σ S, Σ v, Σ v²) of the class ``value`` in the given tiles of extended places.

    ``tiles[t]`` = (z0, z1, y0, y1, x0, x1). ``narrow`` and ``wide`` lend their types: the lanes of counts in a plane,
    and of counts. |v| < 2^16 and counts <= |W| < 2^15, so 2^30 places sum to less than 2^61 in each result. Must equal
    the loop over every voxel of the class, over every place of its window, in Python integers.
    """
    cz, cy, cx = work.window
    before_z = cz // 2
    after_y = cy - 1 - cy // 2
    after_x = cx - 1 - cx // 2
    size = cz * cy * cx
    q_z0, q_z1, q_y0, q_y1, q_x0, q_x1 = work.voxels
    _, rows, columns = work.shape
    height = width = 0
    for t in range(tiles.shape[0]):
        height = max(height, tiles[t, 3] - tiles[t, 2])
        width = max(width, tiles[t, 5] - tiles[t, 4])
    stride = (width + cx - 1 + LANES - 1) // LANES * LANES
    area = height * stride
    mask_area = (height + cy - 1) * stride
    masks = np.empty((before_z + 1) * mask_area, np.uint8)  # the last planes: moments wait for their image plane
    sums = np.empty(area, np.uint8)
    spare = np.empty(area, narrow.dtype)
    planes = np.empty((cz + 2) * area, narrow.dtype)  # the window's planes, the one that leaves, and zeros
    zeros = planes[(cz + 1) * area :]
    zeros[:] = 0
    counts = np.empty(area, wide.dtype)
    values = np.empty(area, np.int16)
    marked = np.empty(stride, np.uint8)
    live = np.empty(cz + 1, np.bool_)
    voxels = total = moment = squares = np.int64(0)
    for t in range(tiles.shape[0]):
        tile = tiles[t]
        z0, z1, y0, y1, x0, x1 = tile[0], tile[1], tile[2], tile[3], tile[4], tile[5]
        height = y1 - y0
        width = x1 - x0
        n = (height - 1) * stride + width
        # the voxels whose windows reach this tile
        top, bottom = max(q_y0, y0 - cy + 1), min(q_y1, y1)
        left, right = max(q_x0, x0 - cx + 1), min(q_x1, x1)
        if top >= bottom or left >= right:
            continue
        masks[:] = 0
        values[:] = 0
        counts[:] = 0
        live[:] = False
        alive = 0
        for step in range(z1 - z0 + cz - 1):
            z = z0 - cz + 1 + step
            new = step % (cz + 1)
            old = (step + 1) % (cz + 1)
            mask = masks[step % (before_z + 1) * mask_area :][:mask_area]
            live[new] = reached(work, z, top, bottom, left, right)
            if live[new]:
                alive += 1
                for y in range(top, bottom):
                    at = (z * rows + y) * columns
                    to = (y - (y0 - cy + 1)) * stride - (x0 - cx + 1)
                    mark(labels[at + left : at + right], value, mask[to + left : to + right])
                count_plane(mask, (height, width, stride), (cy, cx), sums, planes[new * area : (new + 1) * area], spare)
            if live[old]:
                alive -= 1
            if live[new] or live[old]:
                entering = planes[new * area : new * area + n] if live[new] else zeros[:n]
                leaving = planes[old * area : old * area + n] if live[old] else zeros[:n]
                roll(counts, entering, leaving)
            if z < z0 or alive == 0:
                continue
            low, high = load_tile(image, work, work.maps[0][z], tile, stride, values)
            shift = 0
            if unsigned and low < 0:
                shift = FLIP
                low, high = -FLIP, FLIP - 1
                for y in range(height):
                    for x in range(width):
                        values[y * stride + x] ^= np.int16(-FLIP)
                        total += FLIP * np.int64(counts[y * stride + x])
            bound = max(-np.int64(low), np.int64(high), 1)
            total += dot(values, counts, n, INT32 // (bound * size))
            here = step - before_z
            if live[here % (cz + 1)]:
                mask = masks[here % (before_z + 1) * mask_area :][:mask_area][after_y * stride + after_x :]
                inside = np.int64(0)
                for y0_ in range(0, height, 255):  # a column of up to 255 rows counts in a byte
                    marked[:] = 0
                    for y in range(y0_, min(y0_ + 255, height)):
                        add_row(marked, mask[y * stride : y * stride + width])
                    for x in range(width):
                        inside += marked[x]
                first, second = masked_moments(values, mask, n, INT32 // (bound * bound))
                voxels += inside
                moment += first + shift * inside
                squares += second + 2 * shift * first + np.int64(shift) * shift * inside
    return voxels, total, moment, squares
