"""A party's manifest becomes its LocalTotals: every image is read once, reduced and dropped."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from voxring.engine import Device, local_totals
from voxring.errors import ImageError, StudyError, VoxringError
from voxring.images import read_ground_truth, read_image
from voxring.study import Study
from voxring.totals import LocalTotals

_COLUMNS = ("image", "ground_truth", "patient")


@dataclass(frozen=True, slots=True)
class Row:
    """One image of a manifest. ``patient`` tells distinct patients apart and is used for nothing else."""

    line: int
    image: Path
    ground_truth: Path
    patient: str


def read_manifest(path: str | Path) -> tuple[Row, ...]:
    """Read and check a manifest: CSV with the header ``image,ground_truth,patient``.

    Paths are relative to the manifest. ``patient`` may be left out: every image then counts as a patient of its own.

    Raises
    ------
    StudyError
        The file, its header or a row is wrong; the message names the line.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.reader(file, strict=True))
    except FileNotFoundError:
        raise StudyError(f"{path}: no such manifest") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise StudyError(f"{path}: cannot be read as a CSV manifest: {error}") from None
    header = [cell.strip() for cell in lines[0]] if lines else []
    if not {"image", "ground_truth"} <= set(header) <= set(_COLUMNS) or len(set(header)) != len(header):
        raise StudyError(
            f"{path}: expected the header image,ground_truth[,patient], got {','.join(header) or 'nothing'}"
        )
    rows = tuple(_rows(path, header, lines))
    if not rows:
        raise StudyError(f"{path}: expected at least one row below the header, got none")
    return rows


def _rows(path: Path, header: list[str], lines: list[list[str]]) -> Iterator[Row]:
    seen: dict[tuple[Path, Path], int] = {}
    for number, cells in enumerate(lines[1:], 2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise StudyError(f"{path}: line {number}: expected {len(header)} cells, got {len(cells)}")
        row = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
        files = []
        for key in ("image", "ground_truth"):
            if not row[key]:
                raise StudyError(f"{path}: line {number}: {key}: expected a path, got an empty cell")
            file = path.parent / row[key]
            if not file.exists():
                raise StudyError(f"{path}: line {number}: {key}: no such file: {row[key]}")
            files.append(file)
        if "patient" in row and not row["patient"]:
            raise StudyError(
                f"{path}: line {number}: patient: expected a name, got an empty cell: leave the column out"
            )
        pair = (files[0].resolve(), files[1].resolve())
        if pair in seen:
            raise StudyError(f"{path}: line {number}: the same image and ground truth as in line {seen[pair]}")
        seen[pair] = number
        yield Row(number, files[0], files[1], row.get("patient", f"line {number}"))


def party_totals(
    manifest: str | Path,
    study: Study,
    *,
    device: Device = "cpu",
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LocalTotals:
    """Reduce all images of a party (Algorithm 1, lines 4-12).

    Parameters
    ----------
    manifest : path
        CSV with the header ``image,ground_truth,patient``; see `read_manifest`.
    study : Study
        What is computed.
    device, threads
        As in `local_totals`.
    progress : callable
        Called with (images done, images in all).

    Returns
    -------
    LocalTotals
        The sums over all images; ``patients`` counts the distinct patients that have voxels of the class.

    Raises
    ------
    StudyError
        The manifest is wrong.
    ImageError
        An image is; the message names manifest, line and file, and nothing is returned.
    """
    rows = read_manifest(manifest)
    totals = LocalTotals()
    patients: dict[str, set[str]] = defaultdict(set)
    for done, row in enumerate(rows):
        progress(done, len(rows))
        try:
            one = image_totals(row, study, device=device, threads=threads)
        except VoxringError as error:
            raise type(error)(f"{manifest}: line {row.line}: {error}") from error
        totals = totals + one
        for name, of_class in one.classes.items():
            if of_class.voxels:
                patients[name].add(row.patient)
    progress(len(rows), len(rows))
    return LocalTotals({name: replace(mine, patients=len(patients[name])) for name, mine in totals.classes.items()})


def image_totals(row: Row, study: Study, *, device: Device = "cpu", threads: int | None = None) -> LocalTotals:
    """Read one row's image and ground truth, check that they share a grid, and reduce them.

    Raises
    ------
    ImageError
        A file cannot be read, or the two lie on different grids.
    """
    image = read_image(row.image)
    ground_truth = read_ground_truth(row.ground_truth, image.grid)
    difference = image.grid.difference(ground_truth.grid)
    if difference is not None:
        raise ImageError(
            f"{row.ground_truth.name} does not lie on the grid of {row.image.name}: {difference}: "
            "resample the ground truth onto the image"
        )
    layers: dict[int, dict[str, int]] = defaultdict(dict)
    for name, label in study.classes.items():
        layer, value = ground_truth.find(label)
        layers[layer][name] = value
    totals = LocalTotals()
    for layer, labels in layers.items():
        try:
            totals = totals + local_totals(
                image.voxels,
                ground_truth.layers[layer],
                study,
                slope=image.slope,
                intercept=image.intercept,
                labels=labels,
                device=device,
                threads=threads,
            )
        except ImageError as error:
            raise ImageError(f"{row.image.name}: {error}") from error
    return totals
