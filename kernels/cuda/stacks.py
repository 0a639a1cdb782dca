"""What is made of an image a part after the other: stacks of feature maps, and counts of pairs of neighbours.

The maps of a part are on the device together, so that what is classified or summed over them need not leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from voxring.errors import DeviceError

from . import device
from .classifying import Classifier, classify_plan
from .device import Lane, fetch, start
from .features import Asked, Scale, plans_of
from .pairing import Pairs, pairs_plan
from .plans import Array, Box, Plan, cut
from .summing import Sums, read_sums, sums_plan

T = TypeVar("T")

Finish = Callable[[Lane, Box, Any], T]
"""Told a lane, a box, and its features, in the order they were asked for, as one flat int64 array on the lane's device,
it does what else there is to do, and fetches what is wanted. Several may be under way at a time."""


def in_parts(
    planes: tuple[int, int],
    rows: int,
    columns: int,
    plans: Callable[[Box], list[Plan]],
    part: Callable[[list[Plan], Lane], T],
    *,
    fewer: str,
    more: int = 0,
) -> list[T]:
    """Have ``part`` carry the plans of some planes out, cut into boxes that fit the devices; what came of each.

    Parameters
    ----------
    fewer : str
        What there should be less of, where there is no memory.
    more : int
        Bytes of a voxel that ``part`` takes beside the plans.

    Raises
    ------
    DeviceError
        No GPU answers, or it has no memory for a row.
    """
    middle = sum(planes) // 2
    row = plans((middle, middle + 1, rows // 2, rows // 2 + 1))  # in the middle, most is read beside it
    most = min(device.memory(), max(device.MOST_BYTES, 2 * sum(plan.bytes for plan in row)))
    try:
        with device.failures_told():
            return device.on_lanes(partial(part, some) for some in cut((*planes, 0, rows), columns, plans, most, more))
    except MemoryError as error:
        raise DeviceError(f'{error}: free some, use fewer {fewer}, or device="cpu"') from None


def stacked(
    image: Array,
    asked: Sequence[Asked],
    border: str,
    scale: Scale,
    planes: tuple[int, int],
    finish: Finish[T],
    more: int = 0,
) -> list[T]:
    """Have the features of some planes made, and finished, part by part; what came of each part.

    Parameters
    ----------
    more : int
        Bytes of a voxel that ``finish`` takes beside the plans.

    Raises
    ------
    DeviceError
        No GPU answers, or it has no memory for a row.
    """
    rows, columns = image.shape[1:]

    def plans(box: Box) -> list[Plan]:
        return plans_of(image.shape, image.dtype, asked, border, scale, box)

    def part(some: list[Plan], lane: Lane) -> T:
        there: dict[str, Any] = {}
        for plan in some:
            there["stack"] = start(plan, lane, image, None, (), there).buffers["stack"]
        return finish(lane, some[0].box, there["stack"])

    return in_parts(planes, rows, columns, plans, part, fewer="features", more=more)


def feature_maps(
    image: Array, asked: Sequence[Asked], border: str, scale: Scale, planes: tuple[int, int]
) -> list[Array]:
    """The features of some planes, as int64 arrays."""
    first, stop = planes
    made = np.empty((len(asked), stop - first, *image.shape[1:]), np.int64)

    def finish(lane: Lane, box: Box, stack: Any) -> None:
        z0, z1, y0, y1 = box
        part = made[:, z0 - first : z1 - first, y0:y1]
        part[...] = fetch(lane, stack).reshape(part.shape)

    stacked(image, asked, border, scale, planes, finish)
    return list(made)


def classified(
    image: Array, asked: Sequence[Asked], border: str, scale: Scale, planes: tuple[int, int], of: Classifier
) -> tuple[Array, Array]:
    """Labels of some planes, and float32 probabilities (classes, planes, rows, columns); empty if not wanted."""
    first, stop = planes
    shape = stop - first, *image.shape[1:]
    labels = np.empty(shape if of.labels else 0, of.values.dtype)
    chances = np.empty((of.classes, *shape) if of.probabilities else 0, np.float32)

    def finish(lane: Lane, box: Box, stack: Any) -> None:
        z0, z1, y0, y1 = box
        voxels = (z1 - z0) * (y1 - y0) * image.shape[2]
        made = start(classify_plan(of, box, voxels), lane, image, None, (), {"stack": stack}).buffers
        at = np.s_[z0 - first : z1 - first, y0:y1]
        if of.labels:
            labels[at] = fetch(lane, made["labels"]).reshape(labels[at].shape)
        if of.probabilities:
            chances[:, *at] = fetch(lane, made["chances"]).reshape(chances[:, *at].shape)

    more = labels.itemsize * of.labels + chances.itemsize * of.classes * of.probabilities
    stacked(image, asked, border, scale, planes, finish, more)
    return labels, chances


def summed(
    image: Array,
    asked: Sequence[Asked],
    border: str,
    scale: Scale,
    planes: tuple[int, int],
    of: Sums,
    numbers: Array,
) -> tuple[list[list[int]], Array]:
    """Sums over the classes of some planes, and counts (classes, bins); ``numbers`` are the planes' class numbers."""
    first, _ = planes
    sums = [[0] * len(of.products) for _ in range(of.classes)]
    counts = np.zeros((of.classes, len(of.edges) + 1), np.int64)

    def finish(lane: Lane, box: Box, stack: Any) -> tuple[list[list[int]], Array]:
        z0, z1, y0, y1 = box
        plan = sums_plan(of, box, numbers[z0 - first : z1 - first, y0:y1])
        made = start(plan, lane, image, None, (), {"stack": stack}).buffers
        found = read_sums(of, fetch(lane, made["sums"])) if of.products else sums
        bins = fetch(lane, made["counts"]).astype(np.int64).reshape(counts.shape) if of.edges else counts
        return found, bins

    for found, bins in stacked(image, asked, border, scale, planes, finish, 1):
        sums = [[one + other for one, other in zip(*rows, strict=True)] for rows in zip(sums, found, strict=True)]
        counts = counts + bins
    return sums, counts


def counted_pairs(of: Pairs, image: Array, numbers: Array, others: Array) -> Array:
    """Pairs of neighbours, each counted one way: int64 (classes, levels, levels)."""
    _, rows, columns = image.shape
    counts = np.zeros((of.classes, of.levels, of.levels), np.int64)
    held = np.flatnonzero(numbers.any((1, 2)))
    if held.size == 0:
        return counts

    def plans(box: Box) -> list[Plan]:
        return [pairs_plan(of, image.dtype, numbers, others, box)]

    def part(some: list[Plan], lane: Lane) -> Array:
        found = fetch(lane, start(some[0], lane, image, None, ()).buffers["table"])
        return found.astype(np.int64).reshape(counts.shape)  # not the lane's memory

    for found in in_parts((int(held[0]), int(held[-1]) + 1), rows, columns, plans, part, fewer="levels"):
        counts += found
    return counts
