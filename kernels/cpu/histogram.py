"""How often each stored integer occurs in an image of 8 or 16 bits."""

from __future__ import annotations

import numpy as np

from .jit import Array, jit


@jit
def count_into(values: Array, tables: Array) -> None:
    """tables[:, v] += 1, in sum, for each of the unsigned ``values``; four tables, as one value after the other is
    often the same, and a count would wait for the one before it. Must equal a loop that counts in Python.
    """
    n = np.int64(values.size)
    whole = n - n % 4
    for i in range(0, whole, 4):
        tables[0, values[i]] += 1
        tables[1, values[i + 1]] += 1
        tables[2, values[i + 2]] += 1
        tables[3, values[i + 3]] += 1
    for i in range(whole, n):
        tables[0, values[i]] += 1


def histogram(image: Array) -> Array:
    """Counts of the values from the least to the largest that the type can hold."""
    bits = 8 * image.dtype.itemsize
    tables = np.zeros((4, 1 << bits), np.int64)
    count_into(np.ascontiguousarray(image).reshape(-1).view(f"u{image.dtype.itemsize}"), tables)
    counts: Array = tables.sum(axis=0)
    return np.roll(counts, 1 << (bits - 1)) if image.dtype.kind == "i" else counts
