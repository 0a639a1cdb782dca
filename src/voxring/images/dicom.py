"""DICOM: a folder that holds the slices of one series, or one file with one frame or many.

Stored numbers stay as they are, padding values too; bits outside Bits Stored are dropped, as PS3.5 (8.1.1) gives them
to others. Slope and intercept are the exact decimals of the header. Planes rise along the normal of rows and columns,
whatever the files are called. A tilted gantry gives an affine with a shear: the windows follow the stored planes, as
they do for any file that was made from the series without resampling.

Refused: MONOCHROME1, whose numbers may run against those of other files; lossy compression, which decoders do not
agree on to the last bit; and whatever would make one volume of what is none.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from voxring.errors import ImageError
from voxring.images import dicompixels, rtstruct, segmentation
from voxring.images.dicomfile import Dataset, is_dicom
from voxring.images.dicomframes import Frame, frames_of
from voxring.images.image import Grid
from voxring.images.source import Source, identify
from voxring.images.stored import Stored

# How far a slice may lie from where equal steps would put it, in parts of the least spacing: headers round.
_TOLERANCE = 1e-2
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# What a folder may hold beside a series' slices; endings of a DICOM file's name.
_NO_IMAGES = {"SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "SR", "PR", "KO", "REG", "FID", "DOC"}
_ENDINGS = {"", ".dcm", ".dicom", ".dic", ".ima", ".img"}


def read(path: Path, grid: Grid | None = None) -> Stored:
    """Read an image; or segments, which need the grid of the image that they belong to."""
    if path.is_dir():
        return _series(path, grid)
    dataset = Dataset.read(path)
    place = {"SEG": segmentation.read, "RTSTRUCT": rtstruct.read}.get(dataset.text("Modality") or "")
    if place is None:
        return _stored(path, frames_of(dataset))
    if grid is None:
        raise ImageError(
            f"{path}: expected an image, got segments ({dataset.text('Modality')}): give it as a ground truth, with "
            "its image's grid (read_ground_truth(path, grid=image.grid))"
        )
    return place(dataset, grid)


def slices(folder: Path) -> list[Path]:
    """List the DICOM files of a folder, by name.

    Raises
    ------
    ImageError
        The folder holds folders, or a file that is named as DICOM files are and is none.
    """
    found = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.name.upper() == "DICOMDIR":
            continue
        if entry.is_dir():
            raise ImageError(f"{folder}: expected the files of one series, found a folder in it: name the inner folder")
        ending = entry.suffix.lower()
        if is_dicom(entry):
            found.append(entry)
        elif ending in _ENDINGS or ending[1:].isdigit():
            raise ImageError(f"{entry}: expected a DICOM file, got none: copy it again, or take it out of the folder")
    return found


def _series(folder: Path, grid: Grid | None) -> Stored:
    identity = identify(folder)
    paths = slices(folder)
    if not paths:
        raise ImageError(f"{folder}: expected the DICOM files of one series, found none in this folder")
    sources = (Source(folder, identity, ()), *(Source.whole(path, identify(path)) for path in paths))
    if len(paths) == 1:
        return replace(read(paths[0], grid), sources=sources)
    return replace(_stored(folder, _frames(folder, paths)), sources=sources)


def ordered_frames(path: Path) -> list[Frame]:
    """Return the frames behind the planes of an image, in their order."""
    frames = _frames(path, slices(path)) if path.is_dir() else frames_of(Dataset.read(path))
    return _arranged(path, frames)[0] if len(frames) > 1 else frames


def _frames(folder: Path, paths: list[Path]) -> list[Frame]:
    frames: list[Frame] = []
    series: set[str | None] = set()
    for path in paths:
        dataset = Dataset.read(path)
        if dataset.text("Modality") in _NO_IMAGES:
            continue
        series.add(dataset.text("SeriesInstanceUID"))
        if len(series) == 1:  # what follows would be refused anyway
            frames += frames_of(dataset)
    if len(series) != 1:
        came = f"{len(series)} series" if series else "segments or reports alone"
        raise ImageError(f"{folder}: expected one series of slices, found {came}: give each series a folder of its own")
    return frames


def _stored(path: Path, frames: list[Frame]) -> Stored:
    """Make one image of frames that agree."""
    first = frames[0]
    for frame in frames[1:]:
        difference = first.layout.difference(frame.layout)
        if difference is None and (first.slope, first.intercept) != (frame.slope, frame.intercept):
            difference = "slope or intercept"
        if difference is not None:
            raise ImageError(
                f"{path}: {frame.name} differs from {first.name} in {difference}: expected slices of one kind, so "
                "take it out, or convert the series to one volume"
            )
    if len(frames) > 1:
        frames, affine = _arranged(path, frames)
    elif first.position is None or first.orientation is None or first.spacing is None:
        affine = None
    else:
        affine = _affine(path, first, None)
    planes = dicompixels.read([(frame.path, frame.number, frame.layout) for frame in frames])
    return Stored((planes if len(frames) > 1 else planes[0],), affine, first.slope, first.intercept)


def _arranged(path: Path, frames: list[Frame]) -> tuple[list[Frame], NDArray[np.float64]]:
    """Sort frames along their normal and make sure that they fill a grid; return them and its affine."""
    for frame in frames:
        if frame.position is None or frame.orientation is None or frame.spacing is None:
            raise ImageError(
                f"{path}: {frame.name} states no position, orientation or pixel spacing: images that are no slices of "
                "a volume stand in the manifest one by one"
            )
    first = frames[0].steps
    tolerance = _TOLERANCE * min(math.hypot(*step) for step in first)
    size = frames[0].layout.columns - 1, frames[0].layout.rows - 1
    for frame in frames[1:]:
        for one_step, two_step, steps in zip(first, frame.steps, size, strict=True):
            if math.dist(one_step, two_step) * steps > tolerance:
                raise ImageError(
                    f"{path}: {frame.name} differs from {frames[0].name} in orientation or pixel spacing: take it out "
                    "(a localizer?), or give each stack a folder of its own"
                )
    normal = _cross(*first)
    length = math.hypot(*normal) or 1.0
    heights = [_dot(normal, frame.position or ()) / length for frame in frames]
    ordered = [frames[at] for at in sorted(range(len(frames)), key=heights.__getitem__)]
    gaps = [two - one for one, two in pairwise(sorted(heights))]
    usual = sorted(gaps)[(len(gaps) - 1) // 2]
    for gap, (one, two) in zip(gaps, pairwise(ordered), strict=True):
        if gap <= tolerance:
            raise ImageError(
                f"{path}: {one.name} and {two.name} lie at the same place: expected one volume, so keep one of "
                "several times, echoes or copies in a folder"
            )
    tolerance = min(tolerance, _TOLERANCE * usual)
    start, end = ordered[0].position or (), ordered[-1].position or ()
    step = tuple((b - a) / (len(ordered) - 1) for a, b in zip(start, end, strict=True))
    for number, frame in enumerate(ordered):
        expected = [a + number * b for a, b in zip(start, step, strict=True)]
        if math.dist(map(float, expected), map(float, frame.position or ())) > tolerance:
            widest = max(range(len(gaps)), key=lambda at: abs(gaps[at] - usual))
            if abs(gaps[widest] - usual) > tolerance:
                raise ImageError(
                    f"{path}: between {ordered[widest].name} and {ordered[widest + 1].name} lie {gaps[widest]:.6g} mm, "
                    f"between others {usual:.6g} mm: expected equal steps, so a slice is missing or one too many"
                )
            raise ImageError(
                f"{path}: {frame.name} lies beside the line of the others: expected one stack of slices, so give each "
                "a folder of its own"
            )
    return ordered, _affine(path, ordered[0], tuple(map(float, step)))


def _affine(path: Path, frame: Frame, step: tuple[float, ...] | None) -> NDArray[np.float64]:
    """RAS+ from the place of the first plane and the step to the next; without one, a third column of any length."""
    along_columns, along_rows = frame.steps
    lengths = math.hypot(*along_columns), math.hypot(*along_rows)
    spacing = sorted(map(float, frame.spacing or ()))
    cosine = _dot(along_columns, along_rows) / (lengths[0] * lengths[1] or 1.0)
    if (
        spacing[0] <= 0
        or abs(cosine) > 1e-3
        or max(abs(length / one - 1) for length, one in zip(sorted(lengths), spacing, strict=True)) > 1e-3
    ):
        raise ImageError(
            f"{path}: {frame.name}: expected a positive pixel spacing and two unit directions at right angles, got "
            "others: the header is damaged"
        )
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 3] = along_columns, along_rows, [float(a) for a in frame.position or ()]
    affine[:3, 2] = _cross(along_columns, along_rows) if step is None else step
    return _LPS_TO_RAS @ affine


def _cross(a: Sequence[float], b: Sequence[float]) -> tuple[float, ...]:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def _dot(a: Sequence[float], b: Sequence[float | Fraction]) -> float:
    return sum(one * float(two) for one, two in zip(a, b, strict=True))
