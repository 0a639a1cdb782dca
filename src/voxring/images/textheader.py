"""What the two text headers, NRRD's and MetaImage's, have in common: numbers, and voxels in a file of their own."""

import math
from pathlib import Path

from voxring.errors import ImageError


def integers(path: Path, field: str, text: str) -> list[int]:
    """Parse integers parted by blanks, or refuse."""
    try:
        return [int(token) for token in text.split()]
    except ValueError as error:
        raise ImageError(f'{path}: expected integers in "{field}", got "{text[:40]}": the header is damaged') from error


def integer(path: Path, field: str, text: str) -> int:
    """Parse one integer, or refuse."""
    numbers = integers(path, field, text)
    if len(numbers) != 1:
        raise ImageError(f'{path}: expected one integer in "{field}", got {len(numbers)}: the header is damaged')
    return numbers[0]


def floats(path: Path, field: str, text: str, count: int) -> list[float]:
    """Parse so many finite numbers parted by blanks, or refuse."""
    try:
        numbers = [float(token) for token in text.split()]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ImageError(
            f'{path}: expected {count} finite numbers in "{field}", got "{text[:80]}": the header is damaged'
        )
    return numbers


def data_file(path: Path, named: str) -> Path:
    """Find the file of voxels that a header names, relative to the header."""
    if "\0" in named or "%" in named or named.split()[:1] == ["LIST"]:
        raise ImageError(f"{path}: its voxels lie in several files ({named[:80]!r}): write the volume into one file")
    data = path.parent / named
    if not data.is_file():
        raise ImageError(
            f"{path}: expected its voxels in {named[:80]!r} beside it, found no such file: copy both files"
        )
    return data
