"""The last stage of the adjoint road: counts rolled down by a row, multiplied with the image, and the moments.

All in one pass, LANES places at a time: nothing but the row of counts is written. Values are 16 bits: v as it is, or,
for a uint16 image with values of 2^15 and more, v − 2^15, which is v with its top bit flipped. (Σ counts = |W| · n
says what that took off.)

Products are added up in sums of 32 bits, two a step and sum. With counts <= most and |v| <= bound, ``steps_that_fit``
of them hold, then they are added to sums of 64 bits: 2 · steps · most · bound < 2^31, and 2 · steps · bound² < 2^32,
as squares are not negative. One step always does: most < 2^15 and |v| <= 2^15. How large the values are is known once
they are read, and reading them is what takes time. So a bound that held for the rows before is taken on trust and
checked after; a row that breaks it is summed again, one place at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .boxes import Box6
from .jit import Array, Number, inlined, inner
from .rows import ask, copy
from .vectors import (
    LANES,
    Vector,
    add_signed,
    add_unsigned,
    any_beyond,
    as_wide_as,
    bytes_of,
    chosen,
    dot,
    flipped,
    from_lane,
    greatest,
    least,
    load,
    minus,
    no_bytes,
    no_long_sums,
    no_shorts,
    no_sums,
    only,
    plus,
    same,
    shorts_of,
    store,
    total,
)

U = np.uint64

USUAL = 8191
"""A bound that costs nothing: 32 steps, a row of 1024 voxels, with windows of up to 4,000 voxels. The range of a CT."""


AHEAD = 8
"""So many rows of the image are asked for before they are read."""


class Values(NamedTuple):
    """What the 16 bits of an image stand for."""

    flip: Number  # int16: what is exclusive-ored
    bits: Number  # int64: and then anded; 0xFFFF for a uint16 image that is not flipped, else all
    value: Number  # uint8: the label of the class


@inlined
def steps_that_fit(most: Number, bound: Number) -> Number:
    """How many steps the 32 bits hold (see above), and at most 255, for what is counted in bytes."""
    return max(np.int64(1), min((2**31 - 1) // (2 * most * bound), (2**32 - 1) // (2 * bound * bound), 255))


@inlined
def one_step(
    image: Array,
    at: Number,
    count: Vector,
    mine: Vector,
    flip: Vector,
    sums: tuple[Vector, Vector, Vector, Vector, Vector, Vector],
) -> tuple[Vector, Vector, Vector, Vector, Vector, Vector]:
    """Add to ``sums`` what LANES places hold, of which ``mine`` are 1 and the others 0.

    Those are how many are mine, Σ counts · v, Σ v and Σ v² of mine, and the least and the greatest v.
    """
    voxels, dots, first, second, low, high = sums
    voxels = plus(voxels, mine)
    v = flipped(as_wide_as(load(image, at), flip), flip)
    mine = as_wide_as(mine, v)
    dots = dot(dots, as_wide_as(count, v), v)
    first = dot(first, mine, v)
    second = dot(second, chosen(v, mine), v)
    return voxels, dots, first, second, least(low, v), greatest(high, v)


@inlined
def change(across: Array, new: Number, old: Number, like: Vector) -> Vector:
    """What counts change by from a row to the next, in lanes like others."""
    return minus(as_wide_as(load(across, new), like), as_wide_as(load(across, old), like))


@inner
def one_by_one(
    image: Array,
    at: Number,
    labels: Array,
    there: Number,
    counts: Array,
    to: Number,
    n: Number,
    how: Values,
    sums: Array,
) -> Number:
    """Add what ``n`` places hold to ``sums``, whatever the values are. The largest |v|."""
    largest = voxels = dots = first = second = np.int64(0)
    for i in range(U(n)):
        v = np.int64(np.int16(image[U(at) + i]) ^ how.flip) & how.bits
        mine = np.int64(labels[U(there) + i] == how.value)
        voxels += mine
        dots += np.int64(counts[U(to) + i]) * v
        first += mine * v
        second += mine * v * v
        largest = max(largest, abs(v))
    sums[0] += voxels
    sums[1] += dots
    sums[2] += first
    sums[3] += second
    return largest


@inlined
def beside(
    image: Array,
    at: Number,
    x_map: Array,
    origin: Number,
    counts: Array,
    across: Array,
    new: Number,
    old: Number,
    begin: Number,
    end: Number,
    how: Values,
) -> Number:
    """Roll the counts of the places begin … end − 1 that lie beside the image. Σ counts · v of them.

    They are extended places from ``origin`` on.
    """
    dots = np.int64(0)
    for e in range(U(begin), U(end)):
        count = np.int64(counts[e]) + np.int64(across[U(new) + e]) - np.int64(across[U(old) + e])
        counts[e] = count
        dots += count * (np.int64(np.int16(image[U(at + x_map[U(origin) + e])]) ^ how.flip) & how.bits)
    return dots


@inner
def reduce_rows(
    image: Array,
    labels: Array,
    work: Any,
    q: Box6,
    place: tuple[int, int, int, int, int, int],
    first_row: int,
    ring: int,
    stride: int,
    scratch: Any,
    how: Values,
    sums: Array,
) -> None:
    """Add to ``sums`` what the extended places z, y0 … y1 − 1 of a part hold: voxels of the class, Σ counts · v, Σ v
    and Σ v². Then ``sums`` holds the bound that the values keep so far, and the steps that fit it.

    ``place`` is z, y0, y1, and the end of the part's planes, begin and end of its rows. Row y0 is row ``first_row`` of
    ``across``; ``counts`` are those of the row above, and then of the last row. A place that is not one of the part's
    own voxels, or that the border reads a second time, counts for Σ counts · v alone: ``none`` and ``own`` stand in
    for the labels.
    """
    z, y0, y1, end_z, begin_y, end_y = place
    _, rows, columns = work.shape
    cz, cy, cx = work.window
    z_map, y_map, x_map = work.maps
    across, counts, none, mine = scratch.across, scratch.counts, scratch.none, scratch.own
    most = cz * cy * cx
    q_z0, q_z1, q_y0, q_y1, q_x0, q_x1 = q
    width = q_x1 - q_x0 + cx - 1
    shift = q_x0 - cx // 2  # place e of a row reads column e + shift of the image
    own0 = min(max(0, -shift), width)  # the places that the image has
    own1 = max(min(width, columns - shift), own0)
    n = own1 - own0
    whole = U(n // LANES * LANES)
    own_plane = q_z0 <= z - cz // 2 < q_z1
    narrow = q_x1 - q_x0 < columns
    flip, wanted, one, low, high = shorts_of(how.flip), bytes_of(how.value), shorts_of(1), no_shorts(), no_shorts()
    voxels, dots, firsts, seconds = no_sums(), no_long_sums(), no_long_sums(), no_long_sums()
    aside = np.int64(0)
    for y in range(y0, y1):
        row = first_row + y - y0
        new = (1 + row % ring) * stride
        old = (1 + (row - cy) % ring) * stride if row >= cy else 0
        at = (z_map[z] * rows + y_map[y]) * columns
        begin = at + own0 + shift
        whose, there = labels, begin
        if not (own_plane and q_y0 <= y - cy // 2 < q_y1):
            whose, there = none, 0
        elif narrow:
            copy(mine, cx // 2, labels, at + q_x0, q_x1 - q_x0)
            whose, there = mine, own0
        aside += beside(image, at, x_map, q_x0, counts, across, new, old, 0, own0, how)
        aside += beside(image, at, x_map, q_x0, counts, across, new, old, own1, width, how)
        if n < LANES:
            for e in range(U(own0), U(own1)):
                counts[e] = np.int64(counts[e]) + np.int64(across[U(new) + e]) - np.int64(across[U(old) + e])
            one_by_one(image, begin, whose, there, counts, own0, n, how, sums)
            continue
        after, plane = y + AHEAD, z
        if after >= end_y:
            after, plane = after - end_y + begin_y, z + 1
        if plane < end_z and after < end_y:
            ask(image, (z_map[plane] * rows + y_map[after]) * columns + own0 + shift, n)
        after, plane = y + y1 - y0, z
        if after >= end_y:
            after, plane = after - end_y + begin_y, z + 1
        if q_z0 <= plane < q_z1 and q_y0 <= after < q_y1:
            ask(labels, (plane * rows + after) * columns + q_x0, q_x1 - q_x0)
        a, b, c, p, r = U(begin), U(there), U(own0), U(new + own0), U(old + own0)
        before = voxels, dots, firsts, seconds
        stretch = U(sums[5] * LANES)
        start: Number = U(0)
        while start < U(n):
            stop: Number = min(start + stretch, whole)
            some = no_bytes(), no_sums(), no_sums(), no_sums(), low, high
            for i in range(start, stop, U(LANES)):
                count = load(counts, c + i)
                count = plus(count, change(across, p + i, r + i, count))
                store(counts, c + i, count)
                some = one_step(image, a + i, count, same(load(whose, b + i), wanted), flip, some)
            if stop == whole and stop - start < stretch:
                if whole < U(n):  # the last LANES places, of which some are done
                    last = U(n - LANES)
                    new_ones = from_lane(whole - last)
                    count = load(counts, c + last)
                    count = plus(count, only(new_ones, change(across, p + last, r + last, count)))
                    store(counts, c + last, count)
                    found = only(new_ones, same(load(whose, b + last), wanted))
                    some = one_step(image, a + last, only(new_ones, count), found, flip, some)
                stop = U(n)
            found, dotted, first, second, low, high = some
            voxels = dot(voxels, as_wide_as(found, one), one)
            dots, firsts, seconds = add_signed(dots, dotted), add_signed(firsts, first), add_unsigned(seconds, second)
            start = stop
        bound = sums[4]
        below = -bound if how.bits == -1 else np.int64(0)  # of a uint16 image, values of 2^15 and more look negative
        if any_beyond(low, high, shorts_of(below), shorts_of(min(bound, 2**15 - 1))):
            voxels, dots, firsts, seconds = before
            low, high = no_shorts(), no_shorts()
            largest = one_by_one(image, begin, whose, there, counts, own0, n, how, sums)
            if largest <= 2**15:
                while bound < largest:
                    bound = min(2 * bound, 2**15)
                sums[4], sums[5] = bound, steps_that_fit(most, bound)
    sums[0] += total(voxels)
    sums[1] += total(dots) + aside
    sums[2] += total(firsts)
    sums[3] += total(seconds)
