"""Scores, labels and probabilities of voxels, from the integers of their feature maps.

For each class k, with x the features of a voxel as float64 and z_j = x_j − centres_kj,

    score_k = constants_k + Σ_j linear_kj z_j − ½ Σ_r (−offsets_kr + Σ_(j ≤ r) whiten_krj z_j)²

added up in this order, j and r rising, from IEEE additions and multiplications alone, without fused ones: the scores
are the same bits on every machine, and as numpy has them in `voxring.learn.discriminant`, whatever the cut into
threads and slabs. The label is that of the highest score, the first of equal ones. Probabilities are a softmax, whose
exponential is written out below for the same reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .boxes import Range, evenly
from .features import real
from .jit import Array, Number, jit
from .threads import in_threads, thread_count

U = np.uint64

STEP = 512
"""Voxels scored together: a row of each feature stays in the L1 cache."""

BLOCK = 1 << 13
"""Voxels made float64 together: they stay in the L2 cache."""

TASK = 1 << 18
"""Voxels that a thread takes at a time."""

LOWEST = -708.0
"""The exponential of less is called 0; of this, it is still a normal number."""

SHIFT = 1.5 * 2.0**52
ONE_BITS = 1023 << 52  # of 1.0
REVERSE_LOG2 = 1.4426950408889634
LOG2_HIGH = 0.693147180369123816490  # its last 32 bits are 0: times a whole number below 2^20, it is exact
LOG2_LOW = 1.90821492927058770002e-10


class Weights(NamedTuple):
    """The numbers of a classifier of K classes and F features, float64 and C-contiguous."""

    centres: Array  # (K, F)
    linear: Array  # (K, F)
    constants: Array  # (K,)
    whiten: Array  # (K, F, F), lower triangular; (K, 0, F) where scores are linear
    offsets: Array  # (K, F) or (K, 0)


@jit
def exponential(values: Array, out: Array, n: Number, room: Array) -> None:
    """out = exp(values) for values <= 0: 2^k exp(r) with |r| <= log(2) / 2, by Taylor's series to r^13.

    k comes as the last bits of k + 1.5 · 2^52, which is rounded half to even, and becomes the exponent of 2^k by a
    shift: no number is converted, for which vectors have no instruction. ``room`` holds n float64. None of the three
    may be another, or the loops are no vector code.
    """
    bits = room.view(np.int64)
    for i in range(U(n)):
        value = values[i]
        t = max(value, LOWEST)
        shifted = t * REVERSE_LOG2 + SHIFT
        room[i] = shifted
        k = shifted - SHIFT
        r = (t - k * LOG2_HIGH) - k * LOG2_LOW
        e = 1.0 / 6227020800.0
        e = e * r + 1.0 / 479001600.0
        e = e * r + 1.0 / 39916800.0
        e = e * r + 1.0 / 3628800.0
        e = e * r + 1.0 / 362880.0
        e = e * r + 1.0 / 40320.0
        e = e * r + 1.0 / 5040.0
        e = e * r + 1.0 / 720.0
        e = e * r + 1.0 / 120.0
        e = e * r + 1.0 / 24.0
        e = e * r + 1.0 / 6.0
        e = e * r + 0.5
        e = e * r + 1.0
        e = e * r + 1.0
        out[i] = e if value >= LOWEST else 0.0
    for i in range(U(n)):
        bits[i] = (bits[i] << 52) + ONE_BITS
    for i in range(U(n)):
        out[i] *= room[i]


@jit
def classify_block(
    columns: Array, n: int, scale: float, weights: Weights, values: Array, labels: Array, chances: Array, at: int
) -> None:
    """Fill labels[at : at + n] and chances[:, at : at + n] from columns of integers, one a feature, over 1 / scale.

    Either may be empty.
    """
    centres, linear, constants, whiten, offsets = weights
    features, classes = columns.shape[0], constants.size
    z = np.empty((features, STEP))
    row, best, total = np.empty(STEP), np.empty(STEP), np.empty(STEP)
    scores, powers = np.empty((classes, STEP)), np.empty((classes, STEP))
    place = np.empty(STEP, np.int64)
    for start in range(0, n, STEP):
        width, first, to = U(min(STEP, n - start)), U(start), U(at + start)
        for k in range(classes):
            score = scores[k]
            for j in range(features):
                centre = centres[k, j]
                if k == 0 or centre != centres[k - 1, j]:
                    for i in range(width):
                        z[j, i] = columns[j, first + i] * scale - centre
            for i in range(width):
                score[i] = constants[k]
            for j in range(features):
                weight = linear[k, j]
                if weight != 0:
                    for i in range(width):
                        score[i] += weight * z[j, i]
            for r in range(whiten.shape[1]):
                offset = -offsets[k, r]
                for i in range(width):
                    row[i] = offset
                for j in range(r + 1):
                    weight = whiten[k, r, j]
                    if weight != 0:
                        for i in range(width):
                            row[i] += weight * z[j, i]
                for i in range(width):
                    score[i] -= 0.5 * (row[i] * row[i])
        for i in range(width):
            best[i] = scores[0, i]
            place[i] = 0
        for k in range(1, classes):
            score = scores[k]
            for i in range(width):
                higher = score[i] > best[i]
                place[i] = k if higher else place[i]
                best[i] = score[i] if higher else best[i]
        if labels.size:
            for i in range(width):
                labels[to + i] = values[place[i]]
        if chances.size:
            for i in range(width):
                total[i] = 0.0
            for k in range(classes):
                score, power = scores[k], powers[k]
                for i in range(width):
                    score[i] -= best[i]
                exponential(score, power, width, row)
                for i in range(width):
                    total[i] += power[i]
            for i in range(width):
                total[i] = 1.0 / total[i]
            for k in range(classes):
                power, chance = powers[k], chances[k]
                for i in range(width):
                    chance[to + i] = power[i] * total[i]


@jit
def floats(out: Array, integers: Array, n: int) -> None:
    """out = the first n integers, each rounded once, as numpy has it at twice the time."""
    for i in range(U(n)):
        out[i] = real(integers[i])


def room_for(size: int, values: Array, *, labels: bool, probabilities: bool) -> tuple[Array, Array]:
    """Return flat arrays for `classify_part` to fill: labels, and float32 probabilities, a row for each class.

    What is not asked for is empty.
    """
    chances = np.empty((len(values), size if probabilities else 0), np.float32)
    return np.empty(size if labels else 0, values.dtype), chances


def classify_into(
    into: tuple[Array, Array],
    at: int,
    maps: Sequence[Array],
    unit: int,
    weights: Weights,
    values: Array,
    workers: int,
) -> None:
    """Classify the voxels of flat maps; the first of them is voxel ``at`` of what is filled."""
    size = maps[0].size

    def work(part: Range) -> None:
        columns = np.empty((len(maps), min(BLOCK, part[1] - part[0])))
        for first in range(*part, BLOCK):
            n = min(BLOCK, part[1] - first)
            for column, one in zip(columns, maps, strict=True):
                if one.dtype == np.int64:
                    floats(column, one[first:], n)
                else:
                    np.copyto(column[:n], one[first : first + n], casting="same_kind")
            classify_block(columns, n, 1.0 / unit, weights, values, *into, at + first)

    tasks = evenly(0, size, min(TASK, max(BLOCK, -(-size // (4 * workers))))) if size else []
    if tasks:
        in_threads(work, tasks, workers)


def classify(
    maps: Sequence[Array],
    unit: int,
    weights: Weights,
    values: Array,
    *,
    labels: bool = True,
    probabilities: bool = True,
    threads: int | None = None,
) -> tuple[Array | None, Array | None]:
    """Return the label map and the probability maps of an image, or None for what is not asked for.

    Parameters
    ----------
    maps : sequence of integer arrays of one shape
        The features, over ``unit``, a power of two.
    values : (K,) array
        The label of each class; the label map has its type.

    Returns
    -------
    labels : array of the maps' shape
    probabilities : float32 array (K, *shape)
    """
    flat = [np.ascontiguousarray(one).reshape(-1) for one in maps]
    size, shape = flat[0].size, maps[0].shape
    into = room_for(size, values, labels=labels, probabilities=probabilities)
    classify_into(into, 0, flat, unit, weights, values, thread_count(threads, size))
    return (
        into[0].reshape(shape) if labels else None,
        into[1].reshape(len(values), *shape) if probabilities else None,
    )
