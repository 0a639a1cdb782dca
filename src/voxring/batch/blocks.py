"""A large 2D image, such as a whole slide, is reduced block by block: it is never whole in memory.

A block of the ground truth is read at a time. Where it holds a class, the rectangle of the image is read that the
windows over its labels reach, and those labels alone are reduced in it (`voxring.batch.boxes`); blocks without labels
cost no pixel of the image. The ground truth is read as far past a block as the second voxel of a pair may lie. Where
the standardisation depends on all voxels, they are gone through first, those of more than 16 bits once for each look at
them (`voxring.standardise.scaling_of`).

In hand is a block of ground truth, its rectangle of the image with a rim of the window's reach, and what the kernels
take for that: under 256 MiB for images of 8 and 16 bits, whatever their size. Maps of features take 8 bytes a pixel
each, so studies with additive statistics have a block reduced piece by piece, in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt, prod
from pathlib import Path
from typing import Any

import numpy.typing as npt

from voxring.batch.boxes import Box, Reaches, labelled, of_one_image, totals_in_boxes
from voxring.devices import Device
from voxring.engine import Scalings, scalings_of
from voxring.errors import ImageError, StudyError
from voxring.features import SLAB
from voxring.images import GroundTruthFile, ImageFile, Rectangle, Source, Span, rectangles, together
from voxring.learn.evaluation import model_of
from voxring.standardise import landmarks_in
from voxring.statistics import layout
from voxring.study import Study
from voxring.totals import LocalTotals

Array = npt.NDArray[Any]


def pays(image: ImageFile, ground_truth: GroundTruthFile, side: int) -> bool:
    """Whether the two have more than ``side``² pixels, and can be read in blocks."""
    return image.block is not None and ground_truth.block is not None and prod(image.grid.shape) > side**2


def side_of(study: Study) -> int:
    """The rows and columns that a study reduces at once, or as many pixels."""
    if not layout(study):
        return rectangles.SIDE
    maps = len(study.feature) if study.evaluate is None else len((*study.feature, *model_of(study).study.feature))
    return min(rectangles.SIDE, isqrt(SLAB // (1 + maps)))


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
    labels = {name: ground_truth.find(label) for name, label in study.classes.items()}
    reaches = Reaches(image.grid.shape, study)
    scalings: Scalings | None = None
    totals = LocalTotals()
    seen, truth_seen = _Seen(image.read(0, 0).sources), _Seen(())
    for block in rectangles.rectangles(image.grid.shape, image.block or (1, 1), ground_truth.block or (1, 1)):
        around = _rectangle(reaches.pairs(block))
        truth, sources = ground_truth.read_block(*around)
        truth_seen.add(sources)
        box = labelled(truth, around, block, labels.values())
        if box is None:
            continue
        if scalings is None:
            scalings = _scalings(image, study, seen)
        part = _rectangle(reaches.windows(box))
        read = image.read_block(*part)
        seen.add(read.sources)
        try:
            totals += totals_in_boxes(
                read.voxels,
                part,
                truth,
                around,
                _pieces(_rectangle(box), study),
                study,
                scalings,
                reaches=reaches,
                slope=image.slope,
                intercept=image.intercept,
                labels=labels,
                device=device,
                threads=threads,
            )
        except ImageError as error:
            raise named(image, error) from error
    return of_one_image(totals, study), seen.sources, truth_seen.sources


def _rectangle(box: Box) -> Rectangle:
    rows, columns = box
    return rows, columns


def _pieces(box: Rectangle, study: Study) -> Iterator[Rectangle]:
    """Cut a box up where maps of features are made of it."""
    if not layout(study):
        yield box
        return
    (top, bottom), (left, right) = box
    for rows, columns in rectangles.rectangles((bottom - top, right - left), (1, 1), side=side_of(study)):
        yield _moved(rows, top), _moved(columns, left)


def _landmarks(
    image: ImageFile, ground_truth: GroundTruthFile, study: Study
) -> tuple[LocalTotals, tuple[Source, ...], tuple[Source, ...]]:
    seen, truth_seen = _Seen(image.read(0, 0).sources), _Seen(())
    for label in study.classes.values():
        ground_truth.find(label)
    for block in rectangles.rectangles(image.grid.shape, image.block or (1, 1), ground_truth.block or (1, 1)):
        truth_seen.add(ground_truth.read_block(*block)[1])
    try:
        found = landmarks_in(
            lambda: _parts(image, seen), image.dtype, study, slope=image.slope, intercept=image.intercept
        )
    except ImageError as error:
        raise named(image, error) from error
    return found, seen.sources, truth_seen.sources


class _Seen:
    """What was read of a file, put together now and then: a slide has hundreds of thousands of tiles."""

    def __init__(self, sources: tuple[Source, ...]) -> None:
        self.sources = sources

    def add(self, sources: tuple[Source, ...]) -> None:
        self.sources = together((*self.sources, *sources))


def _scalings(image: ImageFile, study: Study, seen: _Seen) -> Scalings:
    scale = {"slope": image.slope, "intercept": image.intercept}
    try:
        return scalings_of(lambda: _parts(image, seen), image.dtype, study, **scale)
    except ImageError as error:
        raise named(image, error) from error


def _parts(image: ImageFile, seen: _Seen) -> Iterator[Array]:
    """All of an image, block by block."""
    for block in rectangles.rectangles(image.grid.shape, image.block or (1, 1)):
        read = image.read_block(*block)
        seen.add(read.sources)
        yield read.voxels


def named(image: ImageFile, error: ImageError | StudyError) -> ImageError:
    """What a reader says has the file's name, what the engine says has not. No study fits an image that it refuses."""
    if isinstance(error, ImageError) and str(error).startswith(image.name):
        return error
    return ImageError(f"{Path(image.name).name}: {error}")


def _moved(span: Span, by: int) -> Span:
    return span[0] + by, span[1] + by
