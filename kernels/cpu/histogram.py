"""How often each stored integer occurs in an image of 8 or 16 bits."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .jit import Array, jit

WORD = 8
"""Bytes."""

MOST = 1 << 31
"""Values that are counted in 32 bits before they are added up: narrow tables stay in the L1 cache."""


PAD = 272
"""Behind each table: one value's places in the four are then in different sets of the cache."""


@jit
def count_into(words: Array, tables: Array, bits: int) -> None:
    """tables[:, v] += 1, in sum, for each of the unsigned values v of 8 or 16 ``bits`` in ``words`` of 64; four tables,
    as one value after the other is often the same, and a count would wait for the one before it. Must equal a loop that
    counts in Python.
    """
    one = np.uint32(1)
    step = np.uint64(bits)
    most = (np.uint64(1) << step) - np.uint64(1)
    for i in range(words.size):
        word = words[i]
        tables[0, word & most] += one
        word >>= step
        tables[1, word & most] += one
        word >>= step
        tables[2, word & most] += one
        word >>= step
        tables[3, word & most] += one
        if bits == 8:
            word >>= step
            tables[0, word & most] += one
            word >>= step
            tables[1, word & most] += one
            word >>= step
            tables[2, word & most] += one
            word >>= step
            tables[3, word & most] += one


def histogram(parts: Iterable[Array], dtype: np.dtype[np.generic]) -> tuple[Array, Array]:
    """The distinct values of an image that comes in parts, rising, and how often each occurs, as int64."""
    size = dtype.itemsize
    tables, counts, counted = np.zeros((4, (1 << 8 * size) + PAD), np.uint32), np.zeros(1 << 8 * size, np.int64), 0
    for part in parts:
        flat = np.ascontiguousarray(part).reshape(-1).view(f"u{size}")
        for start in range(0, flat.size, MOST):
            piece = flat[start : start + MOST]
            counted += piece.size
            if counted > MOST:
                counts += _sum(tables)
                tables[:] = 0
                counted = piece.size
            head = min(-piece.ctypes.data % WORD // size, piece.size)  # up to where words are aligned
            stop = piece.size - (piece.size - head) % (WORD // size)
            for value in (*piece[:head], *piece[stop:]):
                tables[0, value] += 1
            count_into(piece[head:stop].view(np.uint64), tables, 8 * size)
    counts += _sum(tables)
    values = np.flatnonzero(counts)
    found = counts[values]
    if dtype.kind != "i":
        return values, found
    negative = np.searchsorted(values, 1 << (8 * size - 1))  # in two's complement, the upper half
    return (
        np.concatenate((values[negative:] - (1 << 8 * size), values[:negative])),
        np.concatenate((found[negative:], found[:negative])),
    )


def _sum(tables: Array) -> Array:
    counts: Array = tables[:, :-PAD].sum(axis=0, dtype=np.uint32)
    return counts
