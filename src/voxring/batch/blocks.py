"""A large 2D image, such as a whole slide, is reduced block by block: it is never whole in memory.

A block of the ground truth is read at a time. Where it holds a class, the rectangle of the image is read that the
windows over its labels reach, and those labels alone are reduced in it; blocks without labels cost no pixel of the
image. Each labelled voxel is in one block, and what its window reads lies in the rectangle, so the sums over all
blocks are the whole image's integers. Where the standardisation depends on all voxels, they are first gone through
once. In hand is a block of ground truth, its rectangle of the image with a rim of the window's reach, and what the
kernels take for that: under 256 MiB for images of 8 and 16 bits, whatever their size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voxring.engine import Device, depends_on_all, local_totals, part_totals, reach
from voxring.errors import ImageError
from voxring.images import GroundTruthFile, ImageFile, Rectangle, Source, Span, rectangles, together
from voxring.standardise import Scaling, landmarks_in, scaling_of
from voxring.statistics import layout
from voxring.study import Study
from voxring.totals import LocalTotals

Array = npt.NDArray[Any]


def pays(image: ImageFile, ground_truth: GroundTruthFile) -> bool:
    """Whether the two are large, and can be read in blocks."""
    return image.block is not None and ground_truth.block is not None and prod(image.grid.shape) > rectangles.SIDE**2


def totals_in_blocks(
    image: ImageFile,
    ground_truth: GroundTruthFile,
    study: Study,
    *,
    device: Device = "cpu",
    threads: int | None = None,
) -> tuple[LocalTotals, tuple[Source, ...], tuple[Source, ...]]:
    """Reduce a 2D image, and say what was read of it and of its ground truth.

    Raises
    ------
    ImageError
        As for `voxring.local_totals` and `voxring.read_image`.
    """
    if study.agrees:
        return _landmarks(image, ground_truth, study)
    if layout(study):  # pairs of neighbours would be cut apart, and a map of features takes 8 bytes a pixel
        raise ImageError(
            f"{Path(image.name).name}: expected at most {rectangles.SIDE}² pixels in a study with additive statistics, "
            "which are computed of whole images: cut the image, or leave the statistics out"
        )
    labels = {name: ground_truth.find(label) for name, label in study.classes.items()}
    rows, columns = image.grid.shape
    _, *window = study.window.along(2)
    slope, intercept = image.slope, image.intercept
    everything = depends_on_all(image.dtype, Fraction(slope), Fraction(intercept), study)
    scaling: Scaling | None = None
    totals = LocalTotals()
    seen, truth_seen = _Seen(image.read(0, 0).sources), _Seen(())
    for block in rectangles.rectangles((rows, columns), image.block or (1, 1), ground_truth.block or (1, 1)):
        truth, sources = ground_truth.read_block(*block)
        truth_seen.add(sources)
        box = _labelled(truth, labels.values())
        if box is None:
            continue
        if everything and scaling is None:
            scaling = _scaling(image, study, seen)
        truth = truth[slice(*box[0]), slice(*box[1])]
        box = _moved(box[0], block[0][0]), _moved(box[1], block[1][0])
        part = reach(*box[0], rows, window[0]), reach(*box[1], columns, window[1])
        read = image.read_block(*part)
        seen.add(read.sources)
        mine = _alone(truth, box, part, labels.values())
        try:
            if scaling is None:
                totals += local_totals(
                    read.voxels,
                    mine,
                    study,
                    slope=slope,
                    intercept=intercept,
                    labels=labels,
                    device=device,
                    threads=threads,
                )
            else:
                totals += part_totals(
                    read.voxels,
                    mine,
                    study,
                    scaling,
                    slope=slope,
                    intercept=intercept,
                    labels=labels,
                    device=device,
                    threads=threads,
                )
        except ImageError as error:
            raise _named(image, error) from error
    one = {name: replace(totals[name], patients=int(totals[name].voxels > 0)) for name in study.classes}
    return LocalTotals(one), seen.sources, truth_seen.sources


def _landmarks(
    image: ImageFile, ground_truth: GroundTruthFile, study: Study
) -> tuple[LocalTotals, tuple[Source, ...], tuple[Source, ...]]:
    seen, truth_seen = _Seen(image.read(0, 0).sources), _Seen(())
    for label in study.classes.values():
        ground_truth.find(label)
    for block in rectangles.rectangles(image.grid.shape, image.block or (1, 1), ground_truth.block or (1, 1)):
        truth_seen.add(ground_truth.read_block(*block)[1])
    try:
        found = landmarks_in(_parts(image, seen), image.dtype, study, slope=image.slope, intercept=image.intercept)
    except ImageError as error:
        raise _named(image, error) from error
    return found, seen.sources, truth_seen.sources


class _Seen:
    """What was read of a file, put together now and then: a slide has hundreds of thousands of tiles."""

    def __init__(self, sources: tuple[Source, ...]) -> None:
        self.sources = sources

    def add(self, sources: tuple[Source, ...]) -> None:
        self.sources = together((*self.sources, *sources))


def _scaling(image: ImageFile, study: Study, seen: _Seen) -> Scaling:
    try:
        return scaling_of(_parts(image, seen), image.dtype, study, slope=image.slope, intercept=image.intercept)
    except ImageError as error:
        raise _named(image, error) from error


def _parts(image: ImageFile, seen: _Seen) -> Iterator[Array]:
    """All of an image, block by block."""
    for block in rectangles.rectangles(image.grid.shape, image.block or (1, 1)):
        read = image.read_block(*block)
        seen.add(read.sources)
        yield read.voxels


def _named(image: ImageFile, error: ImageError) -> ImageError:
    """What a reader says has the file's name, what the engine says has not."""
    return error if str(error).startswith(image.name) else ImageError(f"{Path(image.name).name}: {error}")


def _labelled(truth: Array, labels: Iterable[int]) -> Rectangle | None:
    """The rectangle with all labels, or None where there are none."""
    info = np.iinfo(truth.dtype)
    present = np.zeros(truth.shape, np.bool_)
    for label in labels:
        if info.min <= label <= info.max:
            present |= truth == label
    rows = np.flatnonzero(present.any(axis=1))
    if rows.size == 0:
        return None
    columns = np.flatnonzero(present.any(axis=0))
    return (int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1)


def _moved(span: Span, by: int) -> Span:
    return span[0] + by, span[1] + by


def _alone(truth: Array, box: Rectangle, part: Rectangle, labels: Iterable[int]) -> Array:
    """The label map of a part of the image in which only a box, whose labels are given, has any."""
    labels = set(labels)
    none = next(value for value in range(len(labels) + 1) if value not in labels)
    shape = [stop - start for start, stop in part]
    mine = np.full(shape, none, np.promote_types(truth.dtype, np.min_scalar_type(none)))
    (top, _), (left, _) = (_moved(span, -whole[0]) for span, whole in zip(box, part, strict=True))
    mine[top : top + truth.shape[0], left : left + truth.shape[1]] = truth
    return mine
