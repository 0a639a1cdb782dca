"""Sums over the voxels of a class: products of features, powers, histograms and pairs of neighbours.

Widths. Products and powers go into 256-bit numbers (`wide`): exact for any int64 feature and |x| < 2^47, whatever the
number of voxels. Where products are small, as many as provably fit are summed in an int64 first. All counts are below
the number of voxels, pairs below 26 times it. Each must equal a loop in Python integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from .bare import bare
from .boxes import evenly
from .jit import Array, Number, Shape, inner, jit
from .threads import in_threads
from .wide import add_powers, add_product, integer_of

U = np.uint64
PIECE = 1024
"""Voxels whose features are multiplied together: they stay in the L2 cache."""

WORTH = 8
"""Products summed in one int64, at the least, for that to be faster than 256 bits each."""

PART = 1 << 16
"""Voxels of one task."""


@jit
def add_gram(values: Array, first: int, last: int, limits: Array, limbs: Array) -> None:
    """Add Σ f·g for each two rows of ``values``, the upper triangle row by row, to the 256-bit numbers of ``limbs``.

    Over the columns first … last − 1. limits[i, j]: so many products of rows i and j sum up in 63 bits.
    """
    rows = values.shape[0]
    values, limits, limbs = bare(values), bare(limits), bare(limbs)
    for start in range(first, last, PIECE):
        stop = min(start + PIECE, last)
        at = U(0)
        for i in range(rows):
            for j in range(i, rows):
                limit = limits[i, j]
                if limit >= WORTH:
                    for some in range(start, stop, limit):
                        total = np.int64(0)
                        for k in range(U(some), U(min(some + limit, stop))):
                            total += values[U(i), k] * values[U(j), k]
                        add_product(limbs, at, total, np.int64(1))
                else:
                    for k in range(U(start), U(stop)):
                        add_product(limbs, at, values[U(i), k], values[U(j), k])
                at += U(4)


@jit
def add_weighted(values: Array, weights: Array, rows: int, first: int, last: int, limbs: Array) -> None:
    """Add Σ w·f·g for each of the first rows of ``values`` and each from it on, as `add_gram` goes through them.

    w·f must fit an int64.
    """
    values, weights, limbs = bare(values), bare(weights), bare(limbs)
    for start in range(first, last, PIECE):
        stop = min(start + PIECE, last)
        at = U(0)
        for i in range(rows):
            for j in range(i, values.shape[0]):
                for k in range(U(start), U(stop)):
                    add_product(limbs, at, weights[k] * values[U(i), k], values[U(j), k])
                at += U(4)


@jit
def add_all_powers(x: Array, limbs: Array) -> None:
    """Add Σx, Σx², Σx³ and Σx⁴ to the four 256-bit numbers of ``limbs``."""
    x, limbs = bare(x), bare(limbs)
    for i in range(U(x.size)):
        add_powers(limbs, U(0), x[i])


@inner
def place_of(x: Number, starts: Array) -> Number:
    """How many of the ``starts``, which do not fall, are at most x."""
    low, high = 0, starts.size
    while low < high:
        middle = (low + high) // 2
        if starts[middle] <= x:
            low = middle + 1
        else:
            high = middle
    return low


@jit
def count_bins(x: Array, starts: Array, counts: Array) -> None:
    """counts[b] += 1 for the bin b of each x: 0 below the first start, the last above the last."""
    x, starts, counts = bare(x), bare(starts), bare(counts)
    for i in range(U(x.size)):
        counts[place_of(x[i], starts)] += 1


@jit
def find_levels(image: Array, numbers: Array, a: int, b: int, starts: Array, levels: Array) -> None:
    """levels = the bin of a · x + b, from 0, those beyond the ends in the first or last, where there is a class."""
    image, numbers, starts, levels = bare(image), bare(numbers), bare(starts), bare(levels)
    last = starts.size - 2
    for i in range(U(image.size)):
        if numbers[i] > 0:
            levels[i] = min(max(place_of(a * np.int64(image[i]) + b, starts) - 1, 0), last)


@jit
def count_pairs(
    levels: Array, numbers: Array, others: Array, shape: Shape, z0: int, z1: int, steps: Array, table: Array
) -> None:
    """table[class − 1, level, level of the neighbour] += 1 for each voxel of planes z0 … z1 − 1 and each step.

    The voxel has its class in ``numbers``, and its neighbour the same in ``others``.
    """
    planes, rows, columns = shape
    levels, numbers, others, steps, table = bare(levels), bare(numbers), bare(others), bare(steps), bare(table)
    for s in range(steps.shape[0]):
        dz, dy, dx = steps[s, 0], steps[s, 1], steps[s, 2]
        to = (dz * rows + dy) * columns + dx
        for z in range(max(z0, -dz), min(z1, planes - dz)):
            for y in range(max(0, -dy), min(rows, rows - dy)):
                at = (z * rows + y) * columns
                for x in range(max(0, -dx), min(columns, columns - dx)):
                    i, other = U(at + x), U(at + x + to)
                    number = numbers[i]
                    if number > 0 and others[other] == number:
                        table[number - 1, levels[i], levels[other]] += 1


def gram(values: Array, workers: int) -> list[int]:
    """Σ f·g for each two rows of int64 values: the upper triangle, row by row."""
    rows, n = values.shape
    largest = [max(-int(row.min()), int(row.max()), 1) for row in values] if n else [1] * rows
    limits = np.array([[min((2**63 - 1) // (f * g), 2**31) for g in largest] for f in largest])

    def run(part: tuple[int, int]) -> list[int]:
        limbs = np.zeros(2 * rows * (rows + 1), np.uint64)
        add_gram(values, part[0], part[1], limits, limbs)
        return [integer_of(limbs[at : at + 4]) for at in range(0, limbs.size, 4)]

    return added(in_threads(run, evenly(0, n, PART), workers))


def weighted_gram(values: Array, weights: Array, workers: int, *, rows: int) -> list[int]:
    """Σ w·f·g for each of the first rows f of int64 values and each g from it on; |w| <= 2^40 and |f| < 2^42."""
    count, n = values.shape
    sizes = sum(count - i for i in range(rows))
    widest = int(np.abs(weights).max(initial=0)) * int(np.abs(values[:rows]).max(initial=0))
    # The weights in two parts where their products would not fit: w = high · 2^20 + low.
    parts = [(weights, 0)] if widest < 1 << 63 else [(weights & ((1 << 20) - 1), 0), (weights >> 20, 20)]

    def run(part: tuple[int, int]) -> list[int]:
        found = [0] * sizes
        for some, shift in parts:
            limbs = np.zeros(4 * sizes, np.uint64)
            add_weighted(values, some, rows, part[0], part[1], limbs)
            found = [sum_ + (integer_of(limbs[4 * i : 4 * i + 4]) << shift) for i, sum_ in enumerate(found)]
        return found

    return added(in_threads(run, evenly(0, n, PART), workers)) if n else [0] * sizes


def powers(x: Array, workers: int) -> list[int]:
    """Σx, Σx², Σx³, Σx⁴ of int64 values below 2^47 in size."""

    def run(part: tuple[int, int]) -> list[int]:
        limbs = np.zeros(16, np.uint64)
        add_all_powers(x[part[0] : part[1]], limbs)
        return [integer_of(limbs[at : at + 4]) for at in range(0, 16, 4)]

    return added(in_threads(run, evenly(0, len(x), PART), workers))


def bin_counts(x: Array, starts: Sequence[int]) -> list[int]:
    """How many of the int64 values are below the first start, from each start to the next, and from the last on."""
    counts = np.zeros(len(starts) + 1, np.int64)
    count_bins(x, np.array(starts, np.int64), counts)
    return list(map(int, counts))


def directions(distance: int, *, planar: bool) -> list[Shape]:
    """One of each two opposite steps to the neighbours of a voxel: 13, or 4 within its plane."""
    every = product((0,) if planar else (-1, 0, 1), (-1, 0, 1), (-1, 0, 1))
    return [(distance * z, distance * y, distance * x) for z, y, x in every if (z, y, x) > (0, 0, 0)]


def pairs(
    image: Array,
    numbers: Array,
    others: Array,
    classes: int,
    a: int,
    b: int,
    starts: Sequence[int],
    steps: Sequence[Shape],
    workers: int,
) -> Array:
    """Co-occurrence counts (classes, levels, levels) of a · x + b, each pair both ways.

    Of a pair, the voxel before the step has its class in ``numbers``, the other the same in ``others``, which has all
    those of ``numbers``, and may have more. Both are flat.
    """
    levels = np.zeros(image.size, np.uint8)
    edges = np.array(starts, np.int64)
    parts = evenly(0, image.size, max(PART, -(-image.size // workers)))
    flat = image.reshape(-1)
    in_threads(
        lambda p: find_levels(flat[slice(*p)], others[slice(*p)], a, b, edges, levels[slice(*p)]), parts, workers
    )

    def run(part: tuple[int, int]) -> Array:
        table = np.zeros((classes, len(starts) - 1, len(starts) - 1), np.int64)
        count_pairs(levels, numbers, others, image.shape, *part, np.array(steps, np.int64), table)
        return table

    planes = evenly(0, len(image), -(-len(image) // workers))
    counted: Array = np.sum(in_threads(run, planes, workers), axis=0)
    return counted + counted.transpose(0, 2, 1)


def added(parts: Sequence[Sequence[int]]) -> list[int]:
    """The sums of the parts' numbers, one by one."""
    return [sum(numbers) for numbers in zip(*parts, strict=True)]
