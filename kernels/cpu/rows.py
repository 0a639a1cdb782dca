"""Row primitives of the adjoint road: plain loops over flat arrays that LLVM turns into vector code.

Each takes views that begin at 0 and end where the work ends. An index ``offset + i`` of signed integers would go
through numba's wrap-around of negative indices, which stops the vectoriser.
"""

from __future__ import annotations

import numpy as np

from .jit import Array, jit

INT32 = 2**31 - 1
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
def load(target: Array, source: Array, low: int, high: int) -> tuple[int, int]:
    """target = source; the least and the greatest value so far."""
    least = np.int16(low)
    greatest = np.int16(high)
    for i in range(source.size):
        value = np.int16(source[i])
        target[i] = value
        least = min(least, value)
        greatest = max(greatest, value)
    return least, greatest


@jit
def dot(values: Array, counts: Array, n: int, chunk: int) -> int:
    """Σ values · counts over n places; values int16, counts uint8 or int16.

    A product is at most 2^15 · 2^15 = 2^30 and fits an int32. The caller promises that ``chunk`` of them do too (this
    becomes vpmaddwd); if that is too few to be worth while, each goes into an int64.
    """
    total = np.int64(0)
    if chunk < SHORTEST:
        for i in range(n):
            total += np.int64(np.int32(np.int32(values[i]) * np.int32(counts[i])))
        return total
    for start in range(0, n, chunk):
        some = values[start : min(start + chunk, n)]
        times = counts[start : min(start + chunk, n)]
        part = np.int32(0)
        for i in range(some.size):
            part = np.int32(part + np.int32(some[i]) * np.int32(times[i]))
        total += part
    return total


@jit
def masked_moments(values: Array, mask: Array, n: int, chunk: int) -> tuple[int, int]:
    """(Σ v, Σ v²) over the n places where the mask is 1; int32 partial sums of ``chunk`` squares, as in `dot`."""
    total = np.int64(0)
    squares = np.int64(0)
    if chunk < SHORTEST:
        for i in range(n):
            value = np.int16(values[i] & -np.int16(mask[i]))
            total += value
            squares += np.int64(np.int32(np.int32(value) * np.int32(value)))
        return total, squares
    for start in range(0, n, chunk):
        some = values[start : min(start + chunk, n)]
        kept = mask[start : min(start + chunk, n)]
        part = np.int32(0)
        part_squares = np.int32(0)
        for i in range(some.size):
            value = np.int16(some[i] & -np.int16(kept[i]))
            part = np.int32(part + np.int32(value))
            part_squares = np.int32(part_squares + np.int32(value) * np.int32(value))
        total += part
        squares += part_squares
    return total, squares
