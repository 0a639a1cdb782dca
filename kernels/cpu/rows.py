"""Row primitives of the adjoint road: plain loops over parts of flat arrays that LLVM turns into vector code.

A part is an array and the place where it begins, never a slice: making a slice counts a reference, an atomic step
that costs as much as a hundred voxels. Places are made unsigned first: an index ``at + i`` of signed integers goes
through numba's wrap-around of negative ones, which stops the vectoriser.
"""

from __future__ import annotations

import numpy as np

from .bare import prefetch
from .jit import Array, Number, inlined, inner, jit

U = np.uint64

BYTES = U(192)
"""Flags summed in a byte: fewer than 256, and whole vectors."""


@inlined
def ask(array: Array, at: Number, n: Number) -> None:
    """Ask for a short stretch before it is read. Few rows in many places are waited for one after the other else."""
    line = 64 // array.itemsize
    for i in range(0, n, line):
        prefetch(array, np.uint64(at + i))


@inner
def mark(mask: Array, to: Number, labels: Array, at: Number, value: Number, n: Number) -> None:
    """mask = 1 where the label is ``value``, else 0."""
    to, at = U(to), U(at)
    for i in range(U(n)):
        mask[to + i] = labels[at + i] == value


@inner
def fill(target: Array, to: Number, n: Number) -> None:
    """target = 0."""
    to = U(to)
    for i in range(U(n)):
        target[to + i] = 0


@inner
def copy(target: Array, to: Number, source: Array, at: Number, n: Number) -> None:
    """target = source."""
    to, at = U(to), U(at)
    for i in range(U(n)):
        target[to + i] = source[at + i]


@inner
def add(total: Array, to: Number, row: Array, at: Number, n: Number) -> None:
    """total += row."""
    to, at = U(to), U(at)
    for i in range(U(n)):
        total[to + i] += row[at + i]


@inner
def roll_marked(
    total: Array,
    to: Number,
    stride: Number,
    labels: Array,
    come: Number,
    go: Number,
    columns: Number,
    value: Number,
    size: tuple[int, int],
    enter: bool,
    leave: bool,
) -> None:
    """total += 1 where the label that comes is ``value``, −1 where the one that goes is; each if told so.

    Of ``size`` rows and columns: in ``total`` a ``stride`` apart, in the labels ``columns``.
    """
    rows, n = size
    for _ in range(rows):
        t, p, q = U(to), U(come), U(go)
        if enter and leave:
            for i in range(U(n)):
                gain = np.uint8(labels[p + i] == value)
                total[t + i] = total[t + i] + gain - np.uint8(labels[q + i] == value)
        elif enter:
            for i in range(U(n)):
                total[t + i] += np.uint8(labels[p + i] == value)
        elif leave:
            for i in range(U(n)):
                total[t + i] -= np.uint8(labels[q + i] == value)
        to, come, go = to + stride, come + columns, go + columns


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
