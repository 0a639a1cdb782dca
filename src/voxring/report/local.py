"""The report of a hospital's own images, for that hospital alone: it shows patients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voxring.batch import read_manifest
from voxring.batch.manifest import Row
from voxring.errors import ImageError
from voxring.images import GroundTruth, Image, check_same_grid, read_ground_truth, read_image
from voxring.maps import local_mean
from voxring.report import svg
from voxring.report.markup import Html, facts, join, table, tag
from voxring.report.page import Section, page
from voxring.report.png import address
from voxring.study import Study

Array = npt.NDArray[Any]

ALARM = (
    "Patient data. This page must not leave this hospital.",
    "It shows images of patients, and numbers of single images. Nothing of it belongs into a study or a mail.",
)
COLOURS = ("#d55e00", "#0079bd", "#008f68", "#c4699a", "#a87700", "#7d6bd6", "#c0453b", "#5f7f86")
"""Of the classes, in turn; each can be told from a light page, a dark one and the next colour."""
_BINS = 48
_LARGEST = 512
"""So many rows and columns of a picture are shown, at most; of a larger one every second, or third, and so on."""

Notify = Callable[[str, str], None]


def local_report(
    study: Study, manifest: str | Path, *, most: int = 20, progress: Notify = lambda who, what: None
) -> str:
    """Return one HTML page about a hospital's own images: it must not leave the hospital.

    For each image: the plane with the most classes and ground truth, the local means there, a histogram of each class.

    Parameters
    ----------
    study : Study
        Its classes and window.
    manifest : path
        Of this hospital.
    most : int
        So many images at most, the first ones of the manifest.
    progress : callable
        Gets (which image, what) as they are done.

    Raises
    ------
    StudyError
        The manifest is wrong.
    """
    rows = read_manifest(manifest)
    first = rows[:most]
    sections, shown = [], 0
    for number, row in enumerate(first, 1):
        progress(f"image {number} of {len(first)}", "is read")
        content, usable = _image(row, study)
        shown += usable
        sections.append(Section(f"image-{number}", row.image.name, content))
    return page(
        kind="A hospital's own images, for the hospital alone",
        title=study.name,
        head=_head(study, len(rows), len(first), shown),
        sections=sections,
        foot=ALARM[0],
        alarm=ALARM,
        images=True,
    )


def _head(study: Study, rows: int, first: int, shown: int) -> Html:
    bad = f"; {first - shown:,} cannot be used, as said below" if first > shown else ""
    told: list[tuple[object, object]] = [
        ("images shown", f"{shown:,} of {rows:,}{bad}"),
        ("standardisation", f"{study.standardise.method}; not applied here"),
    ]
    digest = tag("p", tag("span", "study digest ", class_="unit"), tag("code", study.digest))
    legend = [tag("li", _swatch(number), name) for number, name in enumerate(study.classes)]
    return join([facts(told), digest, tag("ul", *legend, class_="legend", aria_label="Colours of the classes")])


def _swatch(number: int) -> Html:
    colour = COLOURS[number % len(COLOURS)]
    square = tag("rect", width=10, height=10, fill=colour)
    return tag("svg", square, viewBox="0 0 10 10", class_="swatch", aria_hidden="true")


def _image(row: Row, study: Study) -> tuple[Html, bool]:
    """What is shown of a row, and whether it can be used."""
    where = tag("p", f"line {row.line} of the manifest", class_="unit")
    try:
        image = read_image(row.image, study.colour)
        truth = read_ground_truth(row.ground_truth, image.grid)
        check_same_grid(row.image.name, image.grid, row.ground_truth.name, truth.grid)
        return join([where, *_shown(image, truth, study)]), True
    except ImageError as error:
        return join([where, tag("p", f"Not shown: {error}", class_="withheld")]), False


def _shown(image: Image, truth: GroundTruth, study: Study) -> Iterator[Html]:
    masks = _masks(truth, study)
    plane = fullest(masks)
    voxels = _volume(image.voxels)
    grey, means = voxels[plane], mean_plane(image, plane, study)
    within = "" if voxels.shape[0] == 1 else f"Plane {plane + 1} of {voxels.shape[0]}: "
    pictures = [
        (overlay(_grey(grey, image.slope), [mask[plane] for mask in masks]), f"{within}ground truth over the image."),
        (_grey(means, image.slope), f"{within}local means, over the window of the study."),
    ]
    yield tag(
        "div",
        *(
            tag("figure", tag("img", src=address(_thinned(pixels)), alt=said), tag("figcaption", said))
            for pixels, said in pictures
        ),
        class_="figures",
    )
    yield from _histograms(voxels, masks, list(study.classes), float(image.slope), float(image.intercept))


def _masks(truth: GroundTruth, study: Study) -> list[Array]:
    found = []
    for label in study.classes.values():
        layer, value = truth.find(label)
        found.append(_volume(truth.layers[layer]) == value)
    return found


def _volume(array: Array) -> Array:
    return array[np.newaxis] if array.ndim == 2 else array


def fullest(masks: Sequence[Array]) -> int:
    """Return the plane with the most classes, of these that with the most ground truth; without any, the middle one."""
    counts = np.array([mask.sum(axis=(1, 2)) for mask in masks])
    several = np.count_nonzero(counts, axis=0)
    if not several.any():
        return len(masks[0]) // 2
    return int(np.argmax(np.where(several == several.max(), counts.sum(axis=0), 0)))


def mean_plane(image: Image, plane: int, study: Study) -> Array:
    """Return the local means of one plane, of stored numbers, from the planes that its windows reach."""
    window = study.window
    fill = (window.fill - float(image.intercept)) / float(image.slope)
    if image.voxels.ndim == 2:
        return local_mean(image.voxels, window.size, window.border, fill=fill)
    reach = window.along(3)[0]
    first = max(plane - reach, 0)
    slab = np.ascontiguousarray(image.voxels[first : plane + reach + 1])
    means: Array = local_mean(slab, window.size, window.border, fill=fill)[plane - first]
    return means


def _grey(plane: Array, slope: Any) -> npt.NDArray[np.uint8]:
    """Grey levels from the 1st to the 99th percentile; bright is large."""
    values = plane.astype(np.float64) * float(slope)
    low, high = np.percentile(values, (1, 99))
    scaled = (values - low) * (255 / ((high - low) or 1))
    levels: npt.NDArray[np.uint8] = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return levels


def overlay(grey: npt.NDArray[np.uint8], masks: Sequence[Array]) -> npt.NDArray[np.uint8]:
    """Paint classes over grey, so that the image shows through."""
    painted = np.repeat(grey[..., np.newaxis], 3, axis=2).astype(np.float64)
    for number, mask in enumerate(masks):
        code = COLOURS[number % len(COLOURS)]
        colour = np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)])
        painted[mask] = painted[mask] * 0.5 + colour * 0.5
    return np.rint(painted).astype(np.uint8)


def _thinned(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    step = -(-max(pixels.shape[:2]) // _LARGEST)
    return np.ascontiguousarray(pixels[::step, ::step])


def _histograms(
    voxels: Array, masks: Sequence[Array], names: Sequence[str], slope: float, intercept: float
) -> Iterator[Html]:
    """Of each class that the image has, on bins that are the same for all."""
    inside = [voxels[mask].astype(np.float64) * slope + intercept for mask in masks]
    some = [values for values in inside if values.size]
    if not some:
        yield tag("p", "No voxel has a class of the study.")
        return
    low, high = np.percentile(np.concatenate(some), (0.5, 99.5))
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    rows: list[Sequence[object]] = []
    figures = []
    for number, (name, values) in enumerate(zip(names, inside, strict=True)):
        if not values.size:
            rows.append((join([_swatch(number), name]), "0", "", "", ""))
            continue
        numbers = (values.min(), values.mean(), values.max())
        rows.append((join([_swatch(number), name]), f"{values.size:,}", *(_short(value) for value in numbers)))
        counts = np.histogram(values, edges)[0].tolist()
        figures.append(
            tag(
                "figure",
                svg.histogram(edges.tolist(), counts, f"Histogram of {name} in this image"),
                tag("figcaption", _swatch(number), name),
            )
        )
    yield table(("class", "voxels", "least", "mean", "largest"), rows, label="Intensities of each class in this image")
    yield tag("div", *figures, class_="figures")


def _short(value: float) -> str:
    return f"{value:,.6g}".replace("-", "−")
