"""Boxes that hold nothing but one class: no ground truth, and weights instead of counts.

In a box of q that are all of the class, how many windows read a voxel p is a product: how many planes of windows read
its plane, and so for its row and its column. So

    Σ_{q in the box} S_q = Σ_p wz · wy · wx · v(p),

p over the image's own voxels: what the border reads again is in the weights. Most columns have the weight cx. There,
Σ v and Σ v² are summed LANES at a time, and for as many rows as have the same weight wz · wy.

A step adds two products to a sum of 32 bits. |v| <= 2^15, so 2^13 steps fit by far for Σ v, and one for Σ v². Of boxes
of 2^30 voxels Σ S is below 2^60.
"""

from __future__ import annotations

import numpy as np

from .bare import bare
from .dots import Values
from .jit import Array, Arrays, Number, Shape, inner, jit
from .rows import ask, fill
from .vectors import (
    LANES,
    add_signed,
    add_unsigned,
    as_wide_as,
    dot,
    flipped,
    from_lane,
    load,
    no_long_sums,
    no_sums,
    only,
    shorts_of,
    total,
)

U = np.uint64

STEPS = U(LANES << 13)

AHEAD = 8
"""So many rows are asked for before they are read."""


@inner
def weigh(weights: Array, places: Array, first: int, last: int, size: int) -> tuple[int, int]:
    """weights[p] = how often the windows at q = first … last − 1 along an axis read p. All that are not 0 lie between
    the two that are returned, the second excluded.
    """
    low = high = places[first]
    for e in range(first, last + size - 1):
        low, high = min(low, places[e]), max(high, places[e])
    fill(weights, low, high + 1 - low)
    for e in range(first, last + size - 1):
        weights[places[e]] += min(e, last - 1) - max(first, e - size + 1) + 1
    return low, high + 1


@inner
def equal_run(weights: Array, first: int, last: int, wanted: int) -> tuple[int, int]:
    """The longest run of weights that are ``wanted``, as its ends."""
    begin = end = first
    best = run = 0
    for p in range(first, last):
        run = run + 1 if weights[p] == wanted else 0
        if run > best:
            best = run
            begin, end = p + 1 - run, p + 1
    return begin, end


@inner
def weighted(
    image: Array,
    at: Number,
    weights: Array,
    first: int,
    last: int,
    q_x0: int,
    q_x1: int,
    own: bool,
    weight: Number,
    how: Values,
    sums: Array,
) -> None:
    """Add what the columns first … last − 1 of a row hold to ``sums``, one by one."""
    dots = firsts = seconds = np.int64(0)
    for p in range(U(first), U(last)):
        v = np.int64(np.int16(image[U(at) + p]) ^ how.flip)
        mine = v if own and U(q_x0) <= p < U(q_x1) else np.int64(0)
        dots += weights[p] * v
        firsts += mine
        seconds += mine * mine
    sums[1] += weight * dots
    sums[2] += firsts
    sums[3] += seconds


@jit
def whole(
    image: Array, how: Values, shape: Shape, window: Shape, maps: Arrays, parts: Array, weights: Arrays, sums: Array
) -> None:
    """Set ``sums`` to (voxels, Σ S, Σ v, Σ v²) of boxes that hold nothing but the class.

    Parameters
    ----------
    image : flat array of uint8 or int16
        uint16 comes as the int16 of the same bits, and with how.flip = −2^15.
    how : Values
        What the bits of the image stand for. how.value is 1, a number that the compiler does not know: where it does,
        it makes much longer code of the sum of 16-bit lanes than of their products with it.
    parts : (n, 6) array
        z0, z1, y0, y1, x0, x1 of each box; of at most 2^30 voxels in all.
    weights : three int64 arrays
        As long as the image's sides, to work in.

    Notes
    -----
    Must equal the loop over every voxel of the boxes and every place of its window in Python integers.
    """
    image, sums, parts = bare(image), bare(sums), bare(parts)
    z_map, y_map, x_map = bare(maps[0]), bare(maps[1]), bare(maps[2])
    wz, wy, wx = bare(weights[0]), bare(weights[1]), bare(weights[2])
    _, rows, columns = shape
    cz, cy, cx = window
    flip, one = shorts_of(how.flip), shorts_of(how.value)
    fill(sums, 0, 4)
    for part in range(U(parts.shape[0])):
        q_z0, q_z1, q_y0, q_y1 = parts[part, 0], parts[part, 1], parts[part, 2], parts[part, 3]
        q_x0, q_x1 = parts[part, 4], parts[part, 5]
        z0, z1 = weigh(wz, z_map, q_z0, q_z1, cz)
        y0, y1 = weigh(wy, y_map, q_y0, q_y1, cy)
        x0, x1 = weigh(wx, x_map, q_x0, q_x1, cx)
        begin, end = equal_run(wx, max(x0, q_x0), min(x1, q_x1), cx)
        n = end - begin
        if n < LANES:
            end, n = begin, 0
        full = U(n // LANES * LANES)
        sums[0] += (q_z1 - q_z0) * (q_y1 - q_y0) * (q_x1 - q_x0)
        first, second = no_long_sums(), no_long_sums()
        weight, own = np.int64(0), False
        for z in range(z0, z1):
            for y in range(y0, y1):
                mine = q_z0 <= z < q_z1 and q_y0 <= y < q_y1
                if wz[z] * wy[y] != weight or mine != own:
                    sum_v = total(first)
                    sums[1] += weight * cx * sum_v
                    if own:
                        sums[2] += sum_v
                        sums[3] += total(second)
                    first, second = no_long_sums(), no_long_sums()
                    weight, own = wz[z] * wy[y], mine
                at = (z * rows + y) * columns
                if x1 - x0 < columns and y + AHEAD < y1:
                    ask(image, at + AHEAD * columns + x0, x1 - x0)
                if x0 < begin:
                    weighted(image, at, wx, x0, begin, q_x0, q_x1, own, weight, how, sums)
                if end < x1:
                    weighted(image, at, wx, end, x1, q_x0, q_x1, own, weight, how, sums)
                place = U(at + begin)
                start: Number = U(0)
                while start < U(n):
                    stop: Number = min(start + STEPS, full)
                    some = no_sums()
                    for i in range(start, stop, U(LANES)):
                        v = flipped(as_wide_as(load(image, place + i), flip), flip)
                        some = dot(some, one, v)
                        second = add_unsigned(second, dot(no_sums(), v, v))
                    if stop == full:
                        if full < U(n):  # the last LANES places, of which some are done
                            last = U(n - LANES)
                            v = flipped(as_wide_as(load(image, place + last), flip), flip)
                            v = only(from_lane(full - last), v)
                            some = dot(some, one, v)
                            second = add_unsigned(second, dot(no_sums(), v, v))
                        stop = U(n)
                    first = add_signed(first, some)
                    start = stop
        sum_v = total(first)
        sums[1] += weight * cx * sum_v
        if own:
            sums[2] += sum_v
            sums[3] += total(second)
