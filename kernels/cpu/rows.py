"""Row primitives of the adjoint road: plain loops over parts of flat arrays that LLVM turns into vector code.

A part is an array and the place where it begins, never a slice: making a slice counts a reference, an atomic step
that costs as much as a hundred voxels. Places are made unsigned first: an index ``at + i`` of signed integers goes
through numba's wrap-around of negative ones, which stops the vectoriser.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .jit import Array, Number, inner, jit

INT32 = 2**31 - 1
LANES = 32
FLIP = 1 << 15
U = np.uint64

BYTES = U(192)
"""Flags summed in a byte: fewer than 256, and whole vectors."""

PIECE = 4096
"""Voxels looked at more than once: they stay in the L1 cache."""

SHORTEST = 64
"""Products summed in one int32, at the least, for that to be faster than an int64 each."""


class Room(NamedTuple):
    """Memory for a few packed rows. ``ones`` and ``kept`` hold a PIECE."""

    counts: Array
    values: Array
    labels: Array
    kept: Array
    ones: Array


@inner
def mark(mask: Array, to: Number, labels: Array, at: Number, value: Number, n: Number) -> None:
    """mask = 1 where the label is ``value``, else 0."""
    to, at = U(to), U(at)
    for i in range(U(n)):
        mask[to + i] = labels[at + i] == value


@inner
def mark_any(mask: Array, labels: Array, at: Number, stride: Number, value: Number, n: Number) -> None:
    """mask = 1 where one of eight rows, ``stride`` apart, has the label ``value``, else 0: eight streams, one pass."""
    p = U(at)
    q, r, s, t = p + U(stride), p + U(2 * stride), p + U(3 * stride), p + U(4 * stride)
    u, v, w = p + U(5 * stride), p + U(6 * stride), p + U(7 * stride)
    value = np.uint8(value)
    for i in range(U(n)):
        low = (labels[p + i] == value) | (labels[q + i] == value) | (labels[r + i] == value) | (labels[s + i] == value)
        high = (labels[t + i] == value) | (labels[u + i] == value) | (labels[v + i] == value) | (labels[w + i] == value)
        mask[i] = low | high


@inner
def fill(target: Array, to: Number, n: Number) -> None:
    """target = 0."""
    to = U(to)
    for i in range(U(n)):
        target[to + i] = 0


@inner
def add(total: Array, to: Number, row: Array, at: Number, n: Number) -> None:
    """total += row."""
    to, at = U(to), U(at)
    for i in range(U(n)):
        total[to + i] += row[at + i]


@inner
def copy(target: Array, to: Number, source: Array, at: Number, n: Number) -> None:
    """target = source."""
    to, at = U(to), U(at)
    for i in range(U(n)):
        target[to + i] = source[at + i]


@inner
def roll_marked(
    total: Array,
    to: Number,
    labels: Array,
    come: Number,
    go: Number,
    value: Number,
    n: Number,
    enter: bool,
    leave: bool,
) -> None:
    """total += 1 where the label that comes is ``value``, −1 where the one that goes is; each if told so."""
    to, come, go = U(to), U(come), U(go)
    if enter and leave:
        for i in range(U(n)):
            gain = np.uint8(labels[come + i] == value)
            total[to + i] = total[to + i] + gain - np.uint8(labels[go + i] == value)
    elif enter:
        for i in range(U(n)):
            total[to + i] += np.uint8(labels[come + i] == value)
    elif leave:
        for i in range(U(n)):
            total[to + i] -= np.uint8(labels[go + i] == value)


@inner
def next_row(rows: Array, to: Number, previous: Number, source: Array, come: Number, go: Number, n: Number) -> None:
    """The row that begins at ``to`` = the one at ``previous``, which it does not overlap, + entering − leaving."""
    to, previous, come, go = U(to), U(previous), U(come), U(go)
    for i in range(U(n)):
        rows[to + i] = rows[previous + i] + source[come + i] - source[go + i]


@inner
def few_taps(target: Array, to: Number, source: Array, at: Number, size: int, n: Number) -> None:
    """target[to + i] = source[at + i] + … + source[at + i + size − 1], size 1 to 7, in one pass."""
    n, d, o = U(n), U(to), U(at)
    p, q, r, s, t, u = o + U(1), o + U(2), o + U(3), o + U(4), o + U(5), o + U(6)
    if size == 1:
        for i in range(n):
            target[d + i] = source[o + i]
    elif size == 2:
        for i in range(n):
            target[d + i] = source[o + i] + source[p + i]
    elif size == 3:
        for i in range(n):
            target[d + i] = source[o + i] + source[p + i] + source[q + i]
    elif size == 4:
        for i in range(n):
            target[d + i] = source[o + i] + source[p + i] + source[q + i] + source[r + i]
    elif size == 5:
        for i in range(n):
            target[d + i] = source[o + i] + source[p + i] + source[q + i] + source[r + i] + source[s + i]
    elif size == 6:
        for i in range(n):
            low = source[o + i] + source[p + i] + source[q + i]
            target[d + i] = low + source[r + i] + source[s + i] + source[t + i]
    else:
        for i in range(n):
            low = source[o + i] + source[p + i] + source[q + i]
            target[d + i] = low + source[r + i] + source[s + i] + source[t + i] + source[u + i]


@inner
def double(
    target: Array, to: Number, half: Array, begin: Number, size: int, source: Array, at: Number, odd: int, n: Number
) -> None:
    """Sums over 2·size + odd places, out of sums over ``size``."""
    to, near, far, last = U(to), U(begin), U(begin + size), U(at + 2 * size)
    if odd == 0:
        for i in range(U(n)):
            target[to + i] = half[near + i] + half[far + i]
    else:
        for i in range(U(n)):
            target[to + i] = half[near + i] + half[far + i] + source[last + i]


@jit
def window_row(target: Array, to: Number, source: Array, at: Number, size: int, n: Number, spare: Array) -> None:
    """target[to + i] = source[at + i] + … + source[at + i + size − 1] for i < n.

    The leading bits of ``size`` (up to 7) in one pass, then one doubling for each further bit: the work grows with
    log2(size). Sums over parts of a window are no larger than over all of it: the lane that holds those holds these.
    ``target`` and ``spare`` take n + size − 1 elements, from ``to`` and from 0 on.
    """
    to, at, none = U(to), U(at), U(0)
    bits = 0
    while size >> bits > 7:
        bits += 1
    done = size >> bits
    to_spare = bits % 2 == 1
    if to_spare:
        few_taps(spare, none, source, at, done, n + size - done)
    else:
        few_taps(target, to, source, at, done, n + size - done)
    while bits > 0:
        bits -= 1
        odd = (size >> bits) & 1
        half = done
        done = 2 * half + odd
        if to_spare:
            double(target, to, spare, none, half, source, at, odd, n + size - done)
        else:
            double(spare, none, target, to, half, source, at, odd, n + size - done)
        to_spare = not to_spare


@inner
def extremes(values: Array, at: Number, n: Number, unsigned: bool) -> tuple[Number, Number]:
    """The least and the greatest of n >= 1 values. With the top bit flipped, int16 orders uint16 right."""
    at = U(at)
    flip = np.int16(-FLIP if unsigned else 0)
    low = high = np.int16(np.int16(values[at]) ^ flip)
    for i in range(U(n)):
        value = np.int16(np.int16(values[at + i]) ^ flip)
        low = min(low, value)
        high = max(high, value)
    shift = np.int64(FLIP if unsigned else 0)
    return np.int64(low) + shift, np.int64(high) + shift


@inner
def count(labels: Array, at: Number, value: Number, n: Number) -> Number:
    """How many labels are ``value``. Counted in bytes, BYTES at a time."""
    at, n = U(at), U(n)
    total = np.int64(0)
    start = U(0)
    while start < n:
        part = np.uint8(0)
        for i in range(min(BYTES, n - start)):
            part = np.uint8(part + np.uint8(labels[at + start + i] == value))
        total += part
        start += BYTES
    return total


@inner
def dot_narrow(values: Array, at: Number, counts: Array, to: Number, n: Number, chunk: Number) -> Number:
    """Σ values · counts, where int32 holds the sum of any ``chunk`` products. Becomes vpmaddwd."""
    at, to, n, chunk = U(at), U(to), U(n), U(chunk)
    total = np.int64(0)
    start = U(0)
    while start < n:
        part = np.int32(0)
        a, b = at + start, to + start
        for i in range(min(chunk, n - start)):
            part = np.int32(part + np.int32(np.int16(values[a + i])) * np.int32(counts[b + i]))
        total += part
        start += chunk
    return total


@inner
def sum_and_squares(values: Array, ones: Array, n: Number, chunk: Number) -> tuple[Number, Number]:
    """(Σ v, Σ v²), where int32 holds the sum of any ``chunk`` squares. ``ones`` makes the first a vpmaddwd too."""
    n, chunk = U(n), U(chunk)
    first = second = np.int64(0)
    start = U(0)
    while start < n:
        some = square = np.int32(0)
        for i in range(min(chunk, n - start)):
            value = np.int32(values[start + i])
            some = np.int32(some + value * np.int32(ones[start + i]))
            square = np.int32(square + value * value)
        first += some
        second += square
        start += chunk
    return first, second


@inner
def dot_wide(values: Array, at: Number, counts: Array, to: Number, n: Number, unsigned: bool) -> Number:
    """Σ values · counts, each product in an int64 of its own. Signed ones are at most 2^30 and made in an int32."""
    at, to = U(at), U(to)
    total = np.int64(0)
    if unsigned:
        for i in range(U(n)):
            total += np.int64(np.int32(values[at + i]) & 0xFFFF) * np.int64(counts[to + i])
    else:
        for i in range(U(n)):
            total += np.int64(np.int32(np.int32(values[at + i]) * np.int32(counts[to + i])))
    return total


@inner
def products_that_fit(most: Number) -> Number:
    """How many products of at most ``most`` >= 1 an int32 holds, in whole vectors; 0 if too few to be worth while."""
    fitting = INT32 // most // LANES * LANES
    return fitting if fitting >= SHORTEST else 0


@inner
def moments(
    values: Array, at: Number, labels: Array, value: Number, n: Number, low: Number, high: Number, room: Room
) -> tuple[Number, Number, Number]:
    """(voxels, Σ v, Σ v²) of the n <= PIECE voxels whose label is ``value``; all lie between ``low`` and ``high``.

    Summed as v − middle, which is half as large as the range and fits an int16 even for uint16; middle is added back.
    """
    middle = (low + high + 1) >> 1
    shift = np.int16(middle)
    start = U(at)
    kept = room.kept
    some = np.int16(0)
    for i in range(U(n)):
        mine = np.int16(labels[start + i] == value)
        some = np.int16(some + mine)
        kept[i] = np.int16(np.int16(values[start + i]) - shift) & -mine  # no condition: it would stop AVX2
    voxels = np.int64(some)
    if voxels == 0:
        return voxels, np.int64(0), np.int64(0)
    widest = max(high - middle, middle - low, np.int64(1))
    chunk = products_that_fit(widest * widest)
    if chunk > 0:
        total, squares = sum_and_squares(kept, room.ones, n, chunk)
    else:
        total = dot_narrow(kept, 0, room.ones, 0, n, products_that_fit(widest))
        squares = dot_wide(kept, 0, kept, 0, n, False)
    return voxels, total + middle * voxels, squares + 2 * middle * total + middle * middle * voxels


@inner
def reduce_stretch(
    values: Array,
    labels: Array,
    at: Number,
    counts: Array,
    to: Number,
    n: Number,
    with_moments: bool,
    value: Number,
    unsigned: bool,
    most: int,
    room: Room,
    sums: Array,
) -> None:
    """Add to ``sums`` what a stretch of ``n`` voxels holds: voxels of the class, Σ counts · v, Σ v, Σ v².

    Only the second unless ``with_moments``. Counts go from 0 to ``most`` < 2^15 and |v| to 2^16.

    The range of the values, which says how many products fit an int32, is known only once they are read, and reading
    them is what takes time. So the number that fitted the voxels before these, kept in ``sums[4]``, is taken on trust
    and checked after: modulo 2^32 nothing breaks, and if it did not fit, the sum is made again.
    """
    for start in range(0, n, PIECE):
        part = min(PIECE, n - start)
        here, there = at + start, to + start
        trusted = sums[4]
        total = dot_narrow(values, here, counts, there, part, trusted) if trusted > 0 else np.int64(0)
        low, high = extremes(values, here, part, unsigned)
        bound = max(-low, high, np.int64(1))
        fitting = min(products_that_fit(bound * most), PIECE) if bound < 32768 else 0
        if fitting == 0:
            total = dot_wide(values, here, counts, there, part, unsigned)
        elif fitting < trusted or trusted == 0:
            total = dot_narrow(values, here, counts, there, part, fitting)
        sums[4] = min(fitting, trusted) if trusted > 0 else fitting
        sums[1] += total
        if with_moments:
            voxels, first, second = moments(values, here, labels, value, part, low, high, room)
            sums[0] += voxels
            sums[2] += first
            sums[3] += second
