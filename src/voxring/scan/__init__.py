"""A folder's images with their ground truths become a manifest.

Only headers are read. `tree` lists the files, and each way in which hospitals keep pairs has a module: `tables` (CSV
files with columns Image and Mask), `series` (DICOM), `bids`, and `pairs` (names and folders). Each takes its files out
of those that are left. Whatever finds no partner is listed with the reason. `patients` makes the names that tell a
manifest's patients apart and mean nothing to anybody else.
"""

from __future__ import annotations

import csv
import io
import os
from fnmatch import fnmatchcase
from pathlib import Path

from voxring.errors import StudyError
from voxring.scan import bids, pairs, series, tables
from voxring.scan.found import Found, LeftOut, Pair
from voxring.scan.patients import Pseudonyms
from voxring.scan.tree import files_below

__all__ = ["Found", "LeftOut", "Pair", "Pseudonyms", "manifest", "scan"]


def scan(folder: str | Path, *, image: str = "*", ground_truth: str = "*") -> Found:
    """Find images and their ground truths below a folder.

    Parameters
    ----------
    folder : path
        Where to look; links are followed, each folder once.
    image, ground_truth : str
        Take only those whose path below the folder matches this pattern (``*``, ``?``, ``[…]``; ``*`` crosses folders),
        where an image has several ground truths or the other way round.

    Returns
    -------
    Found
        Pairs and what was left out with the reason, both in the order of their paths.

    Raises
    ------
    StudyError
        The folder is none, or cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("a.nii", "a_seg.nii", "b.nii"):
    ...         Path(folder, name).touch()
    ...     found = scan(folder)
    ...     [(pair.image.name, pair.ground_truth.name) for pair in found.pairs], found.left_out[0].reason
    ([('a.nii', 'a_seg.nii')], 'no ground truth found for this image')
    """
    root = Path(folder)
    if not root.is_dir():
        raise StudyError(f"{root}: expected a folder to look for images in, found none: check the path")
    root = root.resolve()
    found = Found(root)
    files = files_below(root, found)

    def wanted(path: Path, pattern: str) -> bool:
        return pattern == "*" or fnmatchcase(found.name(path), pattern)

    for module in (tables, series, bids, pairs):
        files = module.take(files, found, lambda path: wanted(path, image), lambda path: wanted(path, ground_truth))
    found.arrange()
    return found


def manifest(found: Found, out: Path, pseudonyms: Pseudonyms) -> str:
    """Return the manifest of what was found as CSV, its paths relative to the folder of ``out``.

    Where no pair names a patient, the column is left out; where some do, the others count as one patient.
    """
    start = out.absolute().parent.resolve()
    named = any(pair.patient for pair in found.pairs)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["image", "ground_truth", "patient"][: 3 if named else 2])
    for pair in found.pairs:
        cells = [os.path.relpath(path, start) for path in (pair.image, pair.ground_truth)]
        rows.writerow([*cells, pseudonyms.of(pair.patient)] if named else cells)
    return text.getvalue()
