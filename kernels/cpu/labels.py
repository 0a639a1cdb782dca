"""Label maps of any integer type, brought down to small class numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .jit import Array, jit

CHUNK = 1 << 15
"""Labels numbered at a time: they stay in the L1 cache while every class looks at them."""


@jit
def number_classes(labels: Array, values: Array, numbers: Array) -> None:
    """numbers[i] = 1 + the place of labels[i] in ``values``, or 0 where it is not there. Must equal a look-up."""
    for start in range(0, labels.size, CHUNK):
        some = labels[start : start + CHUNK]
        into = numbers[start : start + CHUNK]
        for i in range(some.size):
            into[i] = 0
        for k in range(values.size):
            value = values[k]
            for i in range(some.size):
                if some[i] == value:
                    into[i] = k + 1


def class_numbers(labels: Array, classes: Sequence[int]) -> Array:
    """A map of class numbers: 0 no class, k + 1 where the label is ``classes[k]`` (distinct). Flat, uint8 or uint16."""
    numbers = np.zeros(labels.size, dtype=np.uint8 if len(classes) < 256 else np.uint16)
    values = np.array(list(classes), dtype=labels.dtype)
    number_classes(labels.reshape(-1), values, numbers)
    return numbers
