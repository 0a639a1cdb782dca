"""A model on new images: label maps and probability maps, slab by slab; and how they meet a ground truth."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt

from voxring.devices import Device
from voxring.engine import reach, scaled, scalings_of
from voxring.errors import ImageError, StudyError
from voxring.evaluate import BINS, Counts
from voxring.images import (
    GroundTruth,
    ImageFile,
    Segment,
    Span,
    check_same_grid,
    known_ending,
    open_image,
    read_ground_truth,
)

if TYPE_CHECKING:
    from voxring.features import FeatureStack
    from voxring.learn import Model

Array = npt.NDArray[Any]
SLAB = 1 << 21
"""Voxels that are classified together, unless a plane alone has more."""


@dataclass(frozen=True, slots=True, eq=False)
class Slab:
    """Planes ``first`` to ``stop`` of an image, or rows of one in 2D, classified.

    ``labels`` are label values; ``probabilities`` have a map for each class of the model, or none at all.
    """

    first: int
    stop: int
    labels: Array
    probabilities: Array


def slabs(
    image: ImageFile,
    model: Model,
    *,
    probabilities: bool,
    device: Device = "cpu",
    threads: int | None = None,
    voxels: int = SLAB,
) -> Iterator[Slab]:
    """Classify an image, some planes at a time, or some rows in 2D; the maps do not depend on how many.

    Parameters
    ----------
    image : ImageFile
        Of `voxring.images.open_image`.
    model : Model
        Its study says how the image is standardised and which features it has.
    probabilities : bool
        Whether to compute those.
    device : {"cpu", "cuda", "auto"}
        Where to compute; every device gives the same maps. "auto" is the CPU for integers beyond 32 bits, and for more
        features and classes than a GPU has room for.
    threads : int, optional
        Threads of this call. The maps do not depend on it.
    voxels : int
        Most voxels of a slab, but that it has a plane at least, or a row.

    Raises
    ------
    ImageError
        The image cannot be read, or a value leaves the range that the study declares.
    StudyError
        The model is of images with other axes.
    ModelError
        Probabilities are asked for and the classifier has none.
    DeviceError
        ``device="cuda"`` and no GPU answers, or has no room; or the standardised integers have more than 32 bits.
    """
    name, of_one = Path(image.name).name, prod(image.grid.shape[1:])
    step, length = max(1, voxels // of_one), image.grid.shape[0]
    spans = [(first, min(first + step, length)) for first in range(0, length, step)]
    how: _How = {"slope": image.slope, "intercept": image.intercept, "device": device, "threads": threads}
    cut = _bands if len(image.grid.shape) == 2 else _runs
    try:
        for (first, stop), (stack, planes, inside) in zip(
            spans, cut(image.read().voxels, model, spans, how), strict=True
        ):
            labels, chances = model.classify_planes(stack, planes, probabilities=probabilities)
            labels = labels[inside]
            chances = chances[:, inside] if probabilities else np.empty((0, *labels.shape), np.float32)
            yield Slab(first, stop, labels, chances)
    except (ImageError, StudyError) as error:
        raise error if name in str(error) else type(error)(f"{name}: {error}") from error


class _How(TypedDict):
    slope: float | Fraction
    intercept: float | Fraction
    device: Device
    threads: int | None


_Part = tuple["FeatureStack", Span, slice]
"""A stack, planes of it, and which of their planes, or rows in 2D, are wanted."""


def _runs(image: Array, model: Model, spans: Sequence[Span], how: _How) -> Iterator[_Part]:
    """Runs of planes of a volume, which is standardised once."""
    stack = model.stack(image, **how)
    return ((stack, span, slice(None)) for span in spans)


def _bands(image: Array, model: Model, spans: Sequence[Span], how: _How) -> Iterator[_Part]:
    """Bands of rows of an image in 2D, each standardised with all that windows over it read."""
    study, scale = model.study, (how["slope"], how["intercept"])
    scaling, _ = scalings_of(lambda: (image,), image.dtype, study, slope=scale[0], intercept=scale[1])
    size = max(3 if feature.kind == "gradient" else feature.along(2)[1] for feature in study.feature)
    for first, stop in spans:
        start, end = reach(first, stop, len(image), size)
        band = image[start:end]
        stack = model.stack(band, **how, scaled=scaled(band, *scale, study, scaling))
        yield stack, (0, 1), slice(first - start, stop - start)


def classify_image(
    path: str | Path,
    model: Model,
    out: str | Path,
    *,
    probabilities: bool = False,
    device: Device = "cpu",
    threads: int | None = None,
    force: bool = False,
) -> list[Path]:
    """Classify an image and write its maps in its format and geometry.

    Parameters
    ----------
    path : path
        An image, or a folder with a DICOM series.
    model : Model
        A classifier.
    out : path
        A folder. The label map is called as the image with ``_labels`` after its name, the probability map of a class
        ``_p`` with its label value and name.
    probabilities : bool
        Also write a map of each class's probability.
    device : {"cpu", "cuda", "auto"}
        Where to compute, as for `slabs`.
    threads : int, optional
        Threads of this call.
    force : bool
        Take the place of files that are there.

    Returns
    -------
    list of Path
        What was written; the label map first.

    Raises
    ------
    ImageError, StudyError, ModelError, DeviceError
        As for `slabs`, or a map cannot be written. Then none of the maps appears, unless what failed was to give the
        last of them their names.
    """
    from voxring.images.writing import map_path, map_writer

    path, out = Path(path), Path(out)
    image = open_image(path, model.study.colour)
    stem = out / image_stem(path)
    segments = [Segment(name, value, 0) for name, value in zip(model.classes, model.values, strict=True)]
    dtype = np.dtype(np.uint8 if max(model.values) < 256 else np.uint16)
    float32 = np.dtype(np.float32)
    chances = [stem.with_name(stem.name + _map_name(segment)) for segment in segments] if probabilities else []
    label_stem = stem.with_name(f"{stem.name}_labels")
    with ExitStack() as stack:
        outs = [stack.enter_context(map_writer(one, path, image.grid, float32, force=force)) for one in chances]
        labels = stack.enter_context(map_writer(label_stem, path, image.grid, dtype, segments=segments, force=force))
        for slab in _pages(slabs(image, model, probabilities=probabilities, device=device, threads=threads)):
            labels.write(slab.labels)
            for number, one in enumerate(outs):
                one.write(slab.probabilities[number])
    return [
        map_path(label_stem, path, image.grid, dtype, named=True),
        *(map_path(one, path, image.grid, float32, named=False) for one in chances),
    ]


def _pages(made: Iterator[Slab]) -> Iterator[Slab]:
    """Put bands of rows together again, since formats take a page at once; slabs of planes pass."""
    bands = []
    for slab in made:
        if slab.labels.ndim == 3:
            yield slab
        else:
            bands.append(slab)
    if bands:
        labels = np.concatenate([band.labels for band in bands])
        yield Slab(0, len(labels), labels, np.concatenate([band.probabilities for band in bands], axis=1))


def image_stem(path: Path) -> str:
    """Return an image's name without the ending of its format.

    Examples
    --------
    >>> image_stem(Path("scans/ct.01.nii.gz"))
    'ct.01'
    """
    ending = "" if path.is_dir() else known_ending(path.name) or ""
    return path.name[: len(path.name) - len(ending)]


def evaluate_image(
    path: str | Path,
    ground_truth: str | Path,
    model: Model,
    *,
    classes: Mapping[str, int | str] | None = None,
    device: Device = "cpu",
    threads: int | None = None,
    bins: int = BINS,
) -> Counts:
    """Classify an image and count how it meets its ground truth, for all classes of the model's study.

    A class that the model was not trained on, since it was withheld, is never given: its voxels count as missed.

    Parameters
    ----------
    path, ground_truth : path
        An image and its ground truth, on one grid.
    model : Model
        A classifier.
    classes : mapping of class name to label value or segment name, optional
        How this ground truth marks the classes of the model's study, when not as that study does.
    device : {"cpu", "cuda", "auto"}
        Where to compute, as for `slabs`.
    threads : int, optional
        Threads of this call.
    bins : int
        Of probability.

    Raises
    ------
    ImageError
        As for `slabs`; the two lie on different grids; or classes overlap.
    StudyError
        ``classes`` lacks a class of the model's study.
    ModelError
        The classifier has no probabilities.
    """
    image = open_image(path, model.study.colour)
    truth = read_ground_truth(ground_truth, image.grid)
    check_same_grid(Path(path).name, image.grid, Path(ground_truth).name, truth.grid)
    names = class_names(model)
    indices = _indices(truth, names, model.study.classes if classes is None else classes)
    of_value = np.zeros(max(model.values) + 1, np.intp)
    of_value[list(model.values)] = range(1, len(model.values) + 1)
    counts = Counts.none(names, bins)
    for slab in slabs(image, model, probabilities=True, device=device, threads=threads):
        here = indices[slab.first : slab.stop]
        never = np.zeros(here.shape, np.float32)
        chances = dict(zip(model.classes, slab.probabilities, strict=True))
        counts += Counts.of(names, here, of_value[slab.labels], [chances.get(name, never) for name in names], bins)
    return counts


def class_names(model: Model) -> tuple[str, ...]:
    """The classes of a model's study: first those that it was trained on, in its order."""
    return (*model.classes, *(name for name in model.study.classes if name not in model.classes))


def _indices(truth: GroundTruth, names: Sequence[str], classes: Mapping[str, int | str]) -> Array:
    """Index of each voxel's class among the names, from 1; 0 for none."""
    indices = np.zeros(truth.grid.shape, np.uint8 if len(names) < 256 else np.uint16)
    for index, name in enumerate(names, 1):
        if name not in classes:
            raise StudyError(f"the study has no class {name!r}, the model's has: name it in the study's classes")
        layer, label = truth.find(classes[name])
        mask = truth.layers[layer] == label
        if indices[mask].any():
            raise ImageError(
                f"{Path(truth.source).name}: class {name!r} overlaps another, and a voxel is given one class: "
                "evaluate with a ground truth without overlaps"
            )
        indices[mask] = index
    return indices


def _map_name(segment: Segment) -> str:
    name = re.sub(r"[^\w.-]+", "-", segment.name).strip("-.")
    return f"_p{segment.label}_{name}" if name else f"_p{segment.label}"
