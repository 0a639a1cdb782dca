"""Row primitives of the adjoint road: plain loops over flat arrays that LLVM turns into vector code.

Each takes views that begin at 0 and end where the work ends. An index ``offset + i`` of signed integers would go
through numba's wrap-around of negative indices, which stops the vectoriser.
"""

from __future__ import annotations

import numpy as np

from .jit import Array, jit

INT32 = 2**31 - 1
LANES = 32
PIECE = 4096
"""Voxels looked at twice, once for their range: they stay in the L1 cache."""

SHORTEST = 64
"""Products summed in one int32, at the least, for that to be faster than an int64 each."""


@jit
def mark(labels: Array, value: int, mask: Array) -> None:
    """mask = 1 where the label is ``value``, else 0."""
    for i in range(labels.size):
        mask[i] = labels[i] == value


@jit
def add_row(total: Array, row: Array) -> None:
    """total += row."""
    for i in range(row.size):
        total[i] += row[i]


@jit
def next_row(target: Array, previous: Array, entering: Array, leaving: Array) -> None:
    """target = previous + entering − leaving."""
    for i in range(previous.size):
        target[i] = previous[i] + entering[i] - leaving[i]


@jit
def roll(total: Array, entering: Array, leaving: Array) -> None:
    """total += entering − leaving."""
    for i in range(entering.size):
        total[i] = total[i] + entering[i] - leaving[i]


@jit
def few_taps(target: Array, source: Array, size: int) -> None:
    """target[i] = source[i] + … + source[i + size − 1], size 1 to 7, in one pass."""
    n = target.size
    if size == 1:
        for i in range(n):
            target[i] = source[i]
        return
    s1 = source[1:]
    if size == 2:
        for i in range(n):
            target[i] = source[i] + s1[i]
        return
    s2 = source[2:]
    if size == 3:
        for i in range(n):
            target[i] = source[i] + s1[i] + s2[i]
        return
    s3 = source[3:]
    if size == 4:
        for i in range(n):
            target[i] = source[i] + s1[i] + s2[i] + s3[i]
        return
    s4 = source[4:]
    if size == 5:
        for i in range(n):
            target[i] = source[i] + s1[i] + s2[i] + s3[i] + s4[i]
        return
    s5 = source[5:]
    if size == 6:
        for i in range(n):
            target[i] = source[i] + s1[i] + s2[i] + s3[i] + s4[i] + s5[i]
        return
    s6 = source[6:]
    for i in range(n):
        target[i] = source[i] + s1[i] + s2[i] + s3[i] + s4[i] + s5[i] + s6[i]


@jit
def double(target: Array, half: Array, size: int, source: Array) -> None:
    """Sums over 2·size places out of sums over size, and over one more if ``source`` is not empty."""
    far = half[size:]
    if source.size == 0:
        for i in range(target.size):
            target[i] = half[i] + far[i]
    else:
        last = source[2 * size :]
        for i in range(target.size):
            target[i] = half[i] + far[i] + last[i]


@jit
def window_row(target: Array, source: Array, size: int, n: int, spare: Array) -> None:
    """target[i] = source[i] + … + source[i + size − 1] for i < n.

    The leading bits of ``size`` (up to 7) in one pass, then one doubling for each further bit: the work grows with
    log2(size). Sums over parts of a window are no larger than over all of it: the lane that holds those holds these.
    ``target`` and ``spare`` take n + size elements.
    """
    bits = 0
    while size >> bits > 7:
        bits += 1
    done = size >> bits
    if bits % 2 == 1:
        target, spare = spare, target
    few_taps(target[: n + size - done], source, done)
    while bits > 0:
        bits -= 1
        target, spare = spare, target
        odd = (size >> bits) & 1
        more = source if odd else source[:0]
        step = done
        done = 2 * step + odd
        double(target[: n + size - done], spare, step, more)


@jit
def largest(values: Array, unsigned: bool) -> int:
    """The largest |v|, or -1 if ``unsigned`` values have their top bit set, which int16 shows as a sign."""
    low = high = np.int16(0)
    for i in range(values.size):
        value = np.int16(values[i])
        low = min(low, value)
        high = max(high, value)
    if unsigned and low < 0:
        return -1
    return max(-np.int64(low), np.int64(high), 1)


@jit
def dot_narrow(values: Array, counts: Array, chunk: int) -> int:
    """Σ values · counts, where int32 holds the sum of any ``chunk`` products. Becomes vpmaddwd."""
    total = np.int64(0)
    for start in range(0, values.size, chunk):
        some = values[start : min(start + chunk, values.size)]
        times = counts[start : start + some.size]
        part = np.int32(0)
        for i in range(some.size):
            part = np.int32(part + np.int32(np.int16(some[i])) * np.int32(times[i]))
        total += part
    return total


@jit
def dot_wide(values: Array, counts: Array, unsigned: bool) -> int:
    """Σ values · counts, each product in an int64 of its own. Signed ones are at most 2^30 and made in an int32."""
    total = np.int64(0)
    if unsigned:
        for i in range(values.size):
            total += np.int64(np.int32(values[i]) & 0xFFFF) * np.int64(counts[i])
    else:
        for i in range(values.size):
            total += np.int64(np.int32(np.int32(values[i]) * np.int32(counts[i])))
    return total


@jit
def dot(values: Array, counts: Array, unsigned: bool, most: int, chunk: int) -> tuple[int, int, int]:
    """Σ values · counts, counts from 0 to ``most`` < 2^15; also the largest |v|, and how many products fit an int32.

    The range of the values is known only once they are read, and reading them is what takes time. So ``chunk``, the
    number that fitted the voxels before these, is taken on trust and checked after: modulo 2^32 nothing breaks, and
    if it did not fit, the sum is made again.
    """
    if chunk >= SHORTEST:
        total = dot_narrow(values, counts, chunk)
        bound = largest(values, unsigned)
    else:
        bound = largest(values, unsigned)
        total = np.int64(0)
    fitting = 0 if bound < 0 else INT32 // (bound * most) // LANES * LANES
    if fitting < chunk or chunk < SHORTEST:
        if fitting < SHORTEST:
            total = dot_wide(values, counts, unsigned)
        else:
            total = dot_narrow(values, counts, fitting)
    return total, bound, fitting


@jit
def moments(
    values: Array, labels: Array, value: int, unsigned: bool, bound: int, one: int, kept: Array
) -> tuple[int, int, int]:
    """(voxels, Σ v, Σ v²) where the label is ``value``. ``bound`` as `largest` gives it; ``kept`` lends room.

    int32 holds the sum of ``chunk`` squares; where that is too few, each goes into an int64 of its own. ``one`` is 1,
    and hidden from the compiler, so that Σ v, too, becomes vpmaddwd.
    """
    n = values.size
    voxels = np.int32(0)
    for i in range(n):
        kept[i] = np.int16(values[i]) if labels[i] == value else np.int16(0)
        voxels = np.int32(voxels + np.int32(labels[i] == value))
    total = squares = np.int64(0)
    chunk = 0 if bound < 0 else INT32 // (bound * bound) // LANES * LANES
    if chunk < SHORTEST:
        for i in range(n):
            whole = np.int64(np.int32(kept[i]) & 0xFFFF) if bound < 0 else np.int64(kept[i])
            total += whole
            squares += whole * whole
        return voxels, total, squares
    for start in range(0, n, chunk):
        some = kept[start : min(start + chunk, n)]
        part = part_squares = np.int32(0)
        for i in range(some.size):
            part = np.int32(part + np.int32(some[i]) * np.int32(one))
            part_squares = np.int32(part_squares + np.int32(some[i]) * np.int32(some[i]))
        total += part
        squares += part_squares
    return voxels, total, squares


@jit
def reduce_stretch(
    values: Array,
    counts: Array,
    labels: Array,
    value: int,
    unsigned: bool,
    most: int,
    one: int,
    kept: Array,
    sums: Array,
) -> None:
    """Add to ``sums`` what a stretch of voxels holds: voxels of the class, Σ counts · v, Σ v, Σ v².

    Without the first if ``counts`` is empty, without the others if ``labels`` is. ``sums[4]`` remembers, from one
    stretch to the next, how many products fit an int32.
    """
    for start in range(0, values.size, PIECE):
        some = values[start : min(start + PIECE, values.size)]
        if counts.size > 0:
            total, bound, sums[4] = dot(some, counts[start : start + some.size], unsigned, most, sums[4])
            sums[1] += total
        else:
            bound = largest(some, unsigned)
        if labels.size > 0:
            voxels, first, second = moments(
                some, labels[start : start + some.size], value, unsigned, bound, one, kept
            )
            sums[0] += voxels
            sums[2] += first
            sums[3] += second
