"""One row of a manifest becomes LocalTotals: the pure task that runs here, in a worker process or on a cluster."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import version
from typing import TypedDict

import numpy as np

from voxring.batch import blocks, boxes
from voxring.batch.contents import Key, Recorded, record, watching
from voxring.batch.manifest import Row
from voxring.devices import Device, taken
from voxring.engine import depends_on_all, local_totals, part_totals, planes_needed, scalings_of, widest
from voxring.errors import DeviceError, ImageError, StudyError, VoxringError
from voxring.images import (
    GroundTruth,
    GroundTruthFile,
    Image,
    ImageFile,
    Room,
    Source,
    Span,
    check_same_grid,
    identify,
    open_ground_truth,
    open_image,
)
from voxring.standardise import local_landmarks
from voxring.statistics import layout
from voxring.study import Study
from voxring.totals import ClassTotals, LocalTotals

VERSION = version("voxring")


@dataclass(frozen=True, slots=True)
class Answer:
    """A row's totals, what they were made of, if a journal is to know, and the devices that made them."""

    totals: LocalTotals
    image: tuple[Recorded, ...] = ()
    ground_truth: tuple[Recorded, ...] = ()
    devices: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Task:
    """All that a worker needs to know, whatever the row. ``key`` is that of the journal, None when there is none."""

    study: Study
    device: Device
    threads: int | None
    key: Key | None
    version: str = VERSION


def answer(task: Task, row: Row, room: Room | None = None) -> Answer | VoxringError:
    """Reduce one row; what is wrong with it is returned, not raised, so that all pools carry it alike.

    ``room`` is the memory of the worker, which the next row will overwrite.
    """
    if task.version != VERSION:
        return DeviceError(f"a worker has voxring {VERSION}, this is {task.version}: install one version on both")
    try:
        place = room.used() if room is not None else nullcontext()
        with place, watching(task.key), taken() as devices:
            totals, image, truth = _reduce(row, task.study, task.device, task.threads)
        _check_unchanged((*image, *truth))
        if task.key is None:
            return Answer(totals, devices=frozenset(devices))
        recorded = record(row.image, image, task.key), record(row.ground_truth, truth, task.key)
        return Answer(totals, *recorded, frozenset(devices))
    except VoxringError as error:
        return type(error)(str(error))  # without its frames, which hold the volume
    except OSError as error:
        return ImageError(f"{row.image.name}: cannot be read ({error.strerror or error}): check the disk")


def image_totals(row: Row, study: Study, *, device: Device = "cpu", threads: int | None = None) -> LocalTotals:
    """Read one row's image and ground truth, check that they share a grid, and reduce them.

    The ground truth is read first, then the planes of the image that its windows reach, or the whole image where the
    standardisation needs it. Where no voxel has a class of the study, the image's header is all that is read of it.
    Large 2D images are read and reduced block by block (`voxring.batch.blocks`).

    Of a study whose parties have yet to agree on landmarks, those of the image are returned (`voxring.landmarks`). The
    ground truth is read all the same: a row that cannot be used is found in this pass.

    Raises
    ------
    ImageError
        A file cannot be read, the two lie on different grids, or those have axes that the study does not take.
    """
    return _reduce(row, study, device, threads)[0]


def _reduce(
    row: Row, study: Study, device: Device, threads: int | None
) -> tuple[LocalTotals, tuple[Source, ...], tuple[Source, ...]]:
    image, opened = open_row(row, study)
    if blocks.pays(image, opened, blocks.side_of(study)):
        return blocks.totals_in_blocks(image, opened, study, device=device, threads=threads)
    truth = opened.read()
    layers = _layers(truth, study)
    if study.evaluate is not None:
        _check_apart(row, truth, layers)
    truths = [(truth.layers[layer], labels.values()) for layer, labels in layers.items()]
    scale: _Scale = {"slope": image.slope, "intercept": image.intercept}
    try:
        if study.agrees:
            part = image.read()
            return local_landmarks(part.voxels, study, **scale), part.sources, truth.sources
        by_all = len(image.grid.shape) == 3 and depends_on_all(image.dtype, study, **scale)
        first, stop = planes_needed(truths, image.dtype, study, **scale, scaled=by_all)
        if by_all and first < stop:
            part = image.read()
            totals = _by_scaling(part, truth, layers, (first, stop), study, device, threads)
            return totals, part.sources, truth.sources
        totals, part = LocalTotals({name: ClassTotals() for name in study.classes}), image.read(first, stop)
        for layer, labels in layers.items() if first < stop else ():
            totals += local_totals(
                part.voxels,
                truth.layers[layer][first:stop],
                study,
                **scale,
                labels=labels,
                device=device,
                threads=threads,
            )
    except (ImageError, StudyError) as error:
        raise blocks.named(image, error) from error
    return totals, part.sources, truth.sources


def open_row(row: Row, study: Study) -> tuple[ImageFile, GroundTruthFile]:
    """Open a row's image and ground truth, and check that they share a grid, which has axes that the study takes.

    Raises
    ------
    ImageError
        Names the file.
    """
    image = open_image(row.image, study.colour)
    opened = open_ground_truth(row.ground_truth, image.grid)
    check_same_grid(row.image.name, image.grid, row.ground_truth.name, opened.grid)
    try:
        study.check_axes(len(image.grid.shape))
    except StudyError as error:
        raise blocks.named(image, error) from None
    return image, opened


def _by_scaling(
    part: Image,
    truth: GroundTruth,
    layers: Mapping[int, dict[str, int]],
    planes: Span,
    study: Study,
    device: Device,
    threads: int | None,
) -> LocalTotals:
    """Reduce a volume of which all voxels have a say; none are mapped but those that windows in some planes reach.

    Where one piece of the map holds all of it, these planes are reduced as they are stored. Else what is mapped takes
    more memory than what is stored, as integers of more than 16 bits and floats do, and it is done a slab at a time.
    """
    scale: _Scale = {"slope": part.slope, "intercept": part.intercept}
    image = part.voxels
    scalings = scalings_of(lambda: (image,), image.dtype, study, **scale)
    totals = LocalTotals()
    narrow = image.dtype.kind != "f" and image.dtype.itemsize <= 2
    as_stored = narrow and scalings.own is not None and scalings.own.single is not None and not layout(study)
    whole = tuple((0, length) for length in image.shape)
    reaches = boxes.Reaches(image.shape, study)
    for layer, labels in layers.items():
        if as_stored:
            totals += part_totals(
                image[slice(*planes)],
                truth.layers[layer][slice(*planes)],
                study,
                scalings,
                **scale,
                labels=labels,
                device=device,
                threads=threads,
            )
        else:
            totals += boxes.totals_in_boxes(
                image,
                whole,
                truth.layers[layer],
                whole,
                [(slab, *whole[1:]) for slab in _slabs(planes, image.shape[0], study)],
                study,
                scalings,
                reaches=reaches,
                **scale,
                labels=labels,
                device=device,
                threads=threads,
            )
    return boxes.of_one_image(totals, study)


def _slabs(planes: Span, count: int, study: Study) -> Iterator[Span]:
    """Cut planes into slabs of an eighth of a volume, or as many as windows read beside them anyway."""
    step = max(count // 8, widest(study, 3)[0])
    for first in range(*planes, step):
        yield first, min(first + step, planes[1])


class _Scale(TypedDict):
    slope: float | Fraction
    intercept: float | Fraction


def _layers(truth: GroundTruth, study: Study) -> dict[int, dict[str, int]]:
    """Which classes to look for in which layer of a ground truth."""
    layers: dict[int, dict[str, int]] = defaultdict(dict)
    for name, label in study.classes.items():
        layer, value = truth.find(label)
        layers[layer][name] = value
    return layers


def _check_apart(row: Row, truth: GroundTruth, layers: Mapping[int, Mapping[str, int]]) -> None:
    """Refuse classes that overlap: a model gives each voxel one class, and would be wrong there whatever it gave."""
    if len(layers) < 2:
        return
    held = sum(np.isin(truth.layers[layer], list(labels.values())).astype(np.uint8) for layer, labels in layers.items())
    if np.max(held) > 1:
        raise ImageError(
            f"{row.ground_truth.name}: classes overlap, and a voxel is given one class: evaluate with a ground truth "
            "without overlaps"
        )


def _check_unchanged(sources: tuple[Source, ...]) -> None:
    for source in sources:
        if identify(source.path) != source.identity:
            raise ImageError(f"{source.path.name}: it changed while it was read: run again when it is written")


def read_ahead(row: Row) -> None:
    """Have the system read a row's files while another row is computed.

    Not a thread that unpacks the next image: with a worker for each processor none would be idle to do it, and two
    volumes would lie in memory.
    """
    for path in (row.ground_truth, row.image):
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError:
            continue  # said when its turn comes
        try:
            for start in range(0, min(os.fstat(handle).st_size, _AHEAD), _STEP):
                os.posix_fadvise(handle, start, _STEP, os.POSIX_FADV_WILLNEED)
        except OSError:
            pass  # a file system without it
        finally:
            os.close(handle)


_STEP = 1 << 19  # more in one call is cut short
_AHEAD = 1 << 28
