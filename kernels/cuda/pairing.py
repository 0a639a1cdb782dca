"""The plan of co-occurrence: pairs of neighbours, counted by their class and their grey levels."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from .features import of_voxels
from .plans import SHARED, Array, Box, Buffer, Launch, Plan, Shape, Staged

WARPS = 8
"""Of a block. Each goes along rows of its own."""

MOST_BLOCKS = 512
"""Beside each other, as many as a device keeps: more would have fewer voxels each, and as many cells to add up."""

MOST_PAIRS = 1 << 32
"""So many pairs in a block could be more than a cell of shared memory counts."""


class Pairs(NamedTuple):
    """What is counted of each of so many classes, at most 255, in the integers a · x + b of stored integers x."""

    classes: int
    a: int
    b: int
    edges: Sequence[int]  # between levels: the least integer of each but the first; they do not fall
    steps: Sequence[Shape]  # from the first voxel of a pair to the second; none goes back along the planes

    @property
    def levels(self) -> int:
        """How many levels there are, at most 256."""
        return len(self.edges) + 1


def pairs_plan(of: Pairs, dtype: np.dtype[Any], numbers: Array, others: Array, box: Box) -> Plan:
    """The plan over an image of a type, for the pairs whose first voxel lies in the box.

    ``numbers`` are the classes', from 1, or 0 for none, of the first voxel of a pair, ``others`` those of the second.
    """
    z0, z1, y0, y1 = box
    far_z, far_y = (max(abs(step[axis]) for step in of.steps) for axis in (0, 1))
    planes, rows = (z0, min(z1 + far_z, len(numbers))), (max(y0 - far_y, 0), min(y1 + far_y, numbers.shape[1]))
    columns = numbers.shape[2]
    staged = Staged(planes, rows, (False, False), 0, columns, np.arange(columns))
    voxels, cells = prod(staged.shape), of.classes * of.levels**2

    def there(array: Array) -> Buffer:
        return Buffer("uint8", voxels, np.ascontiguousarray(array[slice(*planes), slice(*rows)]).reshape(-1))

    edges, steps = np.array(of.edges, np.int64), np.array(of.steps, np.int32).reshape(-1)
    buffers = {
        "image": Buffer(f"uint{8 * dtype.itemsize}", voxels),
        "others": there(others),
        "edges": Buffer("int64", edges.size, edges),
        "steps": Buffer("int32", steps.size, steps),
        "coded": Buffer("uint16", voxels),
        "table": Buffer("uint64", cells, clear=True),
    }
    first = "others"
    if numbers is not others:
        first = "numbers"
        buffers["numbers"] = there(numbers)
    deep = min(z1 - z0, MOST_BLOCKS)
    beside = min(-(-(y1 - y0) // WARPS), -(-MOST_BLOCKS // deep))
    a_block = -(-(z1 - z0) // deep) * -(-(y1 - y0) // (beside * WARPS)) * WARPS * columns * len(of.steps)
    here = min(cells, SHARED // 4) if a_block < MOST_PAIRS else 0
    macros = (*of_voxels(dtype), ("WIDE", 1))
    block = 32 * WARPS, 1, 1
    blocks = min(MOST_BLOCKS, -(-voxels // block[0]))
    ends = np.int64(of.a), np.int64(of.b), np.uint64(voxels), np.int32(edges.size)
    shape = z1 - z0, y1 - y0, y0 - rows[0], planes[1] - planes[0], rows[1] - rows[0], columns
    numbered = map(np.int32, (*shape, len(of.steps), of.levels, here))
    launches = (
        Launch(
            "pairs.cu", "code_levels", macros, (blocks, 1, 1), block, 0, ("image", "others", "edges", "coded", *ends)
        ),
        Launch(
            *("pairs.cu", "count_pairs", macros, (beside, deep, 1), block, 4 * here),
            ("coded", first, "steps", "table", *numbered),
        ),
    )
    return Plan(box, dtype.name, (1, 1, 1), staged, columns, buffers, launches, np.array([1]), 0)
