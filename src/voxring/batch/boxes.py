"""Parts of an image that are reduced on their own: the labels in boxes, with what windows over them and pairs reach.

Each labelled voxel is in one box, and all that it depends on is at hand, so the sums over the boxes are the whole
image's integers. Of a pair of neighbours, the box that holds the first voxel counts it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from voxring.devices import Device
from voxring.engine import Scalings, part_totals, reach, widest
from voxring.images import Span
from voxring.study import Study
from voxring.totals import LocalTotals

Array = npt.NDArray[Any]
Box = tuple[Span, ...]
"""Start and stop along each axis of an image."""


class Reaches:
    """How far from a box of an image the voxels in it depend on others, for a study."""

    def __init__(self, shape: tuple[int, ...], study: Study) -> None:
        self._shape, self._window = shape, widest(study, len(shape))[-len(shape) :]
        self._distance = 0 if study.statistics.glcm is None else study.statistics.glcm.distance

    def pairs(self, box: Box) -> Box:
        """The box, and all with which its voxels make pairs as the first of the two: none lies before along axis 0."""
        far, (first, *others) = self._distance, zip(box, self._shape, strict=True)
        (start, stop), length = first
        beside = ((max(span[0] - far, 0), min(span[1] + far, along)) for span, along in others)
        return (start, min(stop + far, length)), *beside

    def windows(self, box: Box) -> Box:
        """All that windows over the box read, and those pairs."""
        read = (reach(*span, length, size) for span, length, size in zip(box, self._shape, self._window, strict=True))
        return tuple(
            (min(one[0], other[0]), max(one[1], other[1])) for one, other in zip(read, self.pairs(box), strict=True)
        )


def totals_in_boxes(
    image: Array,
    part: Box,
    truth: Array,
    around: Box,
    boxes: Iterable[Box],
    study: Study,
    scalings: Scalings,
    *,
    reaches: Reaches,
    slope: float | Fraction,
    intercept: float | Fraction,
    labels: Mapping[str, int],
    device: Device,
    threads: int | None,
) -> LocalTotals:
    """Reduce the labels in some boxes that do not overlap.

    Parameters
    ----------
    image : array
        The ``part`` of the image: all that windows over the labels in the boxes read, and their pairs.
    truth : array of integers
        The label map ``around`` the boxes, as far as pairs go.
    boxes : iterable of Box
        In the coordinates of the whole image, as ``part`` and ``around``.

    Other parameters and errors as for `voxring.engine.part_totals`. ``patients`` counts boxes: see `of_one_image`.
    """
    totals = LocalTotals()
    for box in boxes:
        inner = labelled(truth, around, box, labels.values())
        if inner is None:
            continue
        near, second = reaches.windows(inner), reaches.pairs(inner)
        totals += part_totals(
            _cut(image, part, near),
            _alone(truth, around, inner, near, labels.values()),
            study,
            scalings,
            slope=slope,
            intercept=intercept,
            labels=labels,
            neighbours=_alone(truth, around, second, near, labels.values()) if second != inner else None,
            device=device,
            threads=threads,
        )
    return totals


def of_one_image(totals: LocalTotals, study: Study) -> LocalTotals:
    """Have the boxes of an image count as one patient, in the classes that any of them has."""
    return LocalTotals({name: replace(totals[name], patients=int(totals[name].voxels > 0)) for name in study.classes})


def labelled(truth: Array, around: Box, within: Box, labels: Iterable[int]) -> Box | None:
    """The smallest box with all labels of one that lies in ``truth``, which is that of ``around``; None without any."""
    truth = _cut(truth, around, within)
    info = np.iinfo(np.uint8 if truth.dtype.kind == "b" else truth.dtype)
    present: Array = np.zeros(truth.shape, np.bool_)
    for label in labels:
        if info.min <= label <= info.max:
            present |= truth == label
    found = []
    for start, _ in within:
        places = np.flatnonzero(present.any(axis=tuple(range(1, present.ndim))))
        if places.size == 0:
            return None
        found.append((start + int(places[0]), start + int(places[-1]) + 1))
        present = np.any(present[places[0] : places[-1] + 1], axis=0)  # of the axes that follow
    return tuple(found)


def _cut(array: Array, around: Box, box: Box) -> Array:
    """A box of the image out of an array that is that of a larger one."""
    return array[tuple(slice(start - of, stop - of) for (start, stop), (of, _) in zip(box, around, strict=True))]


def _alone(truth: Array, around: Box, box: Box, part: Box, labels: Iterable[int]) -> Array:
    """The label map of a part of the image in which only a box of it, which lies in ``around`` too, has labels."""
    labels = set(labels)
    none = next(value for value in range(len(labels) + 1) if value not in labels)
    shape = [stop - start for start, stop in part]
    mine = np.full(shape, none, np.promote_types(truth.dtype, np.min_scalar_type(none)))
    _cut(mine, part, box)[...] = _cut(truth, around, box)
    return mine
