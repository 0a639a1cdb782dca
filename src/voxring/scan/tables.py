"""CSV files that list pairs, with columns Image and Mask as pyradiomics takes them, and perhaps one for the patient."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path

from voxring.scan.found import Found, Pair

_PATIENT = ("patient", "patientid", "patientname", "subject", "subjectid")
_LONGEST = 1 << 26


def take(
    files: list[Path], found: Found, image: Callable[[Path], bool], ground_truth: Callable[[Path], bool]
) -> list[Path]:
    """Add the pairs that tables list; return the files that no table names."""
    named: set[Path] = set()
    seen: set[tuple[Path, Path]] = set()
    rest = [path for path in files if path.suffix.lower() != ".csv"]
    for table in (path for path in files if path.suffix.lower() == ".csv"):
        lines = _lines(table, found)
        columns = ["".join(cell.casefold().replace("_", "").split()) for cell in lines[0]] if lines else []
        if "image" not in columns or "mask" not in columns:
            continue
        who = next((name for name in _PATIENT if name in columns), None)
        for number, cells in enumerate(lines[1:], 2):
            row = dict(zip(columns, (cell.strip() for cell in cells), strict=False))
            if not any(row.values()):
                continue
            pair = _pair((table.parent, found.root), row)
            if pair is None:
                expected = "the paths of an image and a mask that exist, in quotes where they hold commas"
                found.leave(table, f"line {number}: expected {expected}")
                continue
            named |= {path.resolve() for path in pair}
            if not (image(pair[0]) and ground_truth(pair[1])):
                continue
            if pair in seen:
                found.leave(table, f"line {number}: the same image and mask as in an earlier line")
                continue
            seen.add(pair)
            found.pairs.append(Pair(*pair, row.get(who, "") if who else ""))
    if not named:
        return rest
    return [path for path in rest if path.resolve() not in named and not named & set(path.resolve().parents)]


def _pair(folders: Iterable[Path], row: dict[str, str]) -> tuple[Path, Path] | None:
    """Return what a row names, seen from the first folder that has both; written by Windows, perhaps."""
    cells = row.get("image", ""), row.get("mask", "")
    if not all(cells) or any("\0" in cell for cell in cells):
        return None
    for folder, (image, mask) in product(folders, (cells, tuple(cell.replace("\\", "/") for cell in cells))):
        pair = folder / image, folder / mask
        try:
            if all(path.exists() for path in pair):
                return pair
        except OSError:
            pass
    return None


def _lines(table: Path, found: Found) -> list[list[str]]:
    try:
        if table.stat().st_size > _LONGEST:
            return []
        with table.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            # Spreadsheets of some countries write semicolons.
            delimiter = max(",;\t", key=lambda one: len(next(csv.reader([first], delimiter=one), ())))
            return list(csv.reader(file, delimiter=delimiter))
    except (OSError, UnicodeDecodeError, csv.Error):
        found.leave(table, "cannot be read as a CSV file in UTF-8")
        return []
