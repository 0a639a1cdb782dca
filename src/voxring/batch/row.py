"""One row of a manifest becomes LocalTotals: the pure task that runs here, in a worker process or on a cluster."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import version
from typing import TypedDict

import numpy as np

from voxring.batch import blocks
from voxring.batch.contents import Key, Recorded, record
from voxring.batch.manifest import Row
from voxring.engine import Device, local_totals, part_totals, planes_needed, scalings_of
from voxring.errors import DeviceError, ImageError, VoxringError
from voxring.images import GroundTruth, Image, Room, Source, check_same_grid, identify, open_ground_truth, open_image
from voxring.standardise import OF_ALL_VOXELS, local_landmarks
from voxring.study import Study
from voxring.totals import ClassTotals, LocalTotals

VERSION = version("voxring")


@dataclass(frozen=True, slots=True)
class Answer:
    """A row's totals, and what they were made of, if a journal is to know."""

    totals: LocalTotals
    image: tuple[Recorded, ...] = ()
    ground_truth: tuple[Recorded, ...] = ()


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
        with room.used() if room is not None else nullcontext():
            totals, image, truth = _reduce(row, task.study, task.device, task.threads)
        _check_unchanged((*image, *truth))
        if task.key is None:
            return Answer(totals)
        return Answer(totals, record(row.image, image, task.key), record(row.ground_truth, truth, task.key))
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
        A file cannot be read, or the two lie on different grids.
    """
    return _reduce(row, study, device, threads)[0]


def _reduce(
    row: Row, study: Study, device: Device, threads: int | None
) -> tuple[LocalTotals, tuple[Source, ...], tuple[Source, ...]]:
    image = open_image(row.image, study.colour)
    opened = open_ground_truth(row.ground_truth, image.grid)
    check_same_grid(row.image.name, image.grid, row.ground_truth.name, opened.grid)
    if blocks.pays(image, opened, blocks.side_of(study)):
        return blocks.totals_in_blocks(image, opened, study, device=device, threads=threads)
    truth = opened.read()
    layers = _layers(truth, study)
    if study.evaluate is not None:
        _check_apart(row, truth, layers)
    truths = [(truth.layers[layer], labels.values()) for layer, labels in layers.items()]
    if study.agrees:
        part = image.read()
        try:
            totals = local_landmarks(part.voxels, study, slope=image.slope, intercept=image.intercept)
        except ImageError as error:
            raise ImageError(f"{row.image.name}: {error}") from error
        return totals, part.sources, truth.sources
    first, stop = planes_needed(truths, image.dtype, study, slope=image.slope, intercept=image.intercept)
    part = image.read(first, stop)
    if first < stop and study.standardise.method in OF_ALL_VOXELS and part.voxels.ndim == 3:
        return _by_scaling(row, part, truth, layers, study, device, threads), part.sources, truth.sources
    totals = LocalTotals({name: ClassTotals() for name in study.classes})
    if first < stop:
        for layer, labels in layers.items():
            try:
                totals = totals + local_totals(
                    part.voxels,
                    truth.layers[layer][first:stop],
                    study,
                    slope=image.slope,
                    intercept=image.intercept,
                    labels=labels,
                    device=device,
                    threads=threads,
                )
            except ImageError as error:
                raise ImageError(f"{row.image.name}: {error}") from error
    return totals, part.sources, truth.sources


def _by_scaling(
    row: Row,
    part: Image,
    truth: GroundTruth,
    layers: Mapping[int, dict[str, int]],
    study: Study,
    device: Device,
    threads: int | None,
) -> LocalTotals:
    """Reduce a volume whose scaling takes all voxels: then no others are mapped but those that windows reach."""
    scale: _Scale = {"slope": part.slope, "intercept": part.intercept}
    totals = LocalTotals({name: ClassTotals() for name in study.classes})
    try:
        scalings = scalings_of(lambda: (part.voxels,), part.voxels.dtype, study, **scale)
        truths = [(truth.layers[layer], labels.values()) for layer, labels in layers.items()]
        near, far = planes_needed(truths, part.voxels.dtype, study, **scale, scaled=True)
        for layer, labels in layers.items():
            totals += part_totals(
                part.voxels[near:far],
                truth.layers[layer][near:far],
                study,
                scalings,
                **scale,
                labels=labels,
                device=device,
                threads=threads,
            )
    except ImageError as error:
        raise ImageError(f"{row.image.name}: {error}") from error
    return totals


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
