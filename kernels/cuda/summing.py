"""The plan of sums over the classes of a stack of feature maps: products of maps, and counts of bins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .features import of_voxels
from .plans import Array, Box, Buffer, Launch, Plan, Staged

THREADS = 256
MOST_BLOCKS = 1024
"""Beside each other for one sum: more have fewer voxels each, and as many additions into the table."""


class Sums(NamedTuple):
    """What is summed over each of so many classes, at most 255."""

    classes: int
    products: Sequence[tuple[int, ...]]  # of maps, by their places: none, which counts voxels, up to four
    words: int  # of 64 bits that a sum has: three for products of two, four for more
    histogram: int  # the place of the map whose numbers are counted
    edges: Sequence[int]  # that do not fall; none if nothing is counted


def sums_plan(of: Sums, box: Box, numbers: Array) -> Plan:
    """The plan over ``stack``, which is there; ``numbers`` are the classes' of its voxels, from 1, or 0 for none."""
    voxels = numbers.size
    flat = np.ascontiguousarray(numbers, np.uint8).reshape(-1)
    blocks = min(MOST_BLOCKS, -(-voxels // THREADS))
    macros = (*of_voxels(np.dtype(np.uint8)), ("WIDE", 1), ("WORDS", of.words))
    buffers, launches = {"numbers": Buffer("uint8", voxels, flat)}, []
    if of.products:
        factors = np.full((len(of.products), 4), -1, np.int32)
        for row, places in zip(factors, of.products, strict=True):
            row[: len(places)] = places
        buffers["factors"] = Buffer("int32", factors.size, factors.reshape(-1))
        buffers["sums"] = Buffer("uint64", of.classes * len(factors) * 2 * of.words, clear=True)
        last = np.uint64(voxels), np.int32(len(factors))
        named = "stack", "numbers", "factors", "sums"
        grid = blocks, len(factors), 1
        launches.append(Launch("sums.cu", "sum_products", macros, grid, (THREADS, 1, 1), 0, (*named, *last)))
    if of.edges:
        edges = np.array(of.edges, np.int64)
        buffers["edges"] = Buffer("int64", len(edges), edges)
        buffers["counts"] = Buffer("uint64", of.classes * (len(edges) + 1), clear=True)
        first = np.uint64(of.histogram * voxels)
        arguments = ("stack", "numbers", "edges", "counts", first, np.uint64(voxels), np.int32(len(edges)))
        launches.append(Launch("sums.cu", "count_bins", macros, (blocks, 1, 1), (THREADS, 1, 1), 0, arguments))
    nothing = Staged((0, 0), (0, 0), (False, False), 0, 0, np.arange(0))
    return Plan(box, "uint8", (1, 1, 1), nothing, 0, buffers, tuple(launches), np.array([1]), 0)


def read_sums(of: Sums, halves: Array) -> list[list[int]]:
    """The sums of each class, in the order of the products."""
    modulus = 1 << 64 * of.words
    rows = halves.reshape(of.classes, len(of.products), 2 * of.words).tolist()
    joined = [[sum(half << 32 * k for k, half in enumerate(one)) % modulus for one in row] for row in rows]
    return [[number - modulus if number >> 64 * of.words - 1 else number for number in row] for row in joined]
