"""How often each stored integer occurs in an image of 8 or 16 bits."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .jit import Array, jit

MOST = 1 << 31
"""Values that are counted in 32 bits before they are added up: narrow tables stay in the L1 cache."""


@jit
def count_into(values: Array, tables: Array) -> None:
    """tables[:, v] += 1, in sum, for each of the unsigned ``values``; four tables, as one value after the other is
    often the same, and a count would wait for the one before it. Must equal a loop that counts in Python.
    """
    n = np.int64(values.size)
    whole = n - n % 4
    for i in range(0, whole, 4):
        tables[0, values[i]] += np.uint32(1)
        tables[1, values[i + 1]] += np.uint32(1)
        tables[2, values[i + 2]] += np.uint32(1)
        tables[3, values[i + 3]] += np.uint32(1)
    for i in range(whole, n):
        tables[0, values[i]] += np.uint32(1)


def histogram(parts: Iterable[Array], dtype: np.dtype[np.generic]) -> tuple[Array, Array]:
    """The distinct values of an image that comes in parts, rising, and how often each occurs, as int64."""
    bits = 8 * dtype.itemsize
    tables, counts, counted = np.zeros((4, 1 << bits), np.uint32), np.zeros(1 << bits, np.int64), 0
    for part in parts:
        flat = np.ascontiguousarray(part).reshape(-1).view(f"u{dtype.itemsize}")
        for start in range(0, flat.size, MOST):
            piece = flat[start : start + MOST]
            counted += piece.size
            if counted > MOST:
                counts += tables.sum(axis=0, dtype=np.uint32)
                tables[:] = 0
                counted = piece.size
            count_into(piece, tables)
    counts += tables.sum(axis=0, dtype=np.uint32)
    values = np.flatnonzero(counts)
    found = counts[values]
    if dtype.kind != "i":
        return values, found
    negative = np.searchsorted(values, 1 << (bits - 1))  # in two's complement, the upper half
    return (
        np.concatenate((values[negative:] - (1 << bits), values[:negative])),
        np.concatenate((found[negative:], found[:negative])),
    )
