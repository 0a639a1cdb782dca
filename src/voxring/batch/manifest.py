"""A party's manifest: which images it has, with which ground truth, of which patient."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from voxring.errors import StudyError

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
        raise StudyError(f"{path}: no such manifest: check the path, or make one with `voxring scan`") from None
    except UnicodeDecodeError:
        raise StudyError(
            f"{path}: expected a manifest in UTF-8, got another encoding: save it as CSV in UTF-8"
        ) from None
    except OSError as error:
        raise StudyError(f"{path}: no manifest can be read there: {error.strerror}: name the CSV file itself") from None
    except csv.Error as error:
        raise StudyError(f"{path}: cannot be read as a CSV manifest: {error}: see that its quotes close") from None
    header = [cell.strip() for cell in lines[0]] if lines else []
    if not {"image", "ground_truth"} <= set(header) <= set(_COLUMNS) or len(set(header)) != len(header):
        raise StudyError(
            f"{path}: expected the header image,ground_truth[,patient], got {','.join(header) or 'nothing'}: name the "
            "columns so, with commas between them"
        )
    rows = tuple(_rows(path, header, lines))
    if not rows:
        raise StudyError(f"{path}: expected at least one row below the header, got none: list the images")
    return rows


def _rows(path: Path, header: list[str], lines: list[list[str]]) -> Iterator[Row]:
    seen: dict[tuple[Path, Path], int] = {}
    for number, cells in enumerate(lines[1:], 2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise StudyError(
                f"{path}: line {number}: expected {len(header)} cells, got {len(cells)}: put a path that has a comma "
                "in double quotes"
            )
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
        if pair[0] == pair[1]:
            raise StudyError(f"{path}: line {number}: image and ground_truth are one file: name the label map")
        if pair in seen:
            raise StudyError(f"{path}: line {number}: the same image and ground truth as in line {seen[pair]}")
        seen[pair] = number
        yield Row(number, files[0], files[1], row.get("patient", f"line {number}"))
