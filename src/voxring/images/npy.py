"""NumPy arrays, .npy. The axes are the array's own, (planes,) rows, columns, whichever lies fastest in the file.

The header is read here and not by `numpy.load`, which gives it to Python's parser: in CPython 3.11, two threads that
parse at once, one of which may be numba's compiler, can end in a SystemError.
"""

import re
from pathlib import Path

import numpy as np

from voxring.errors import ImageError
from voxring.images import payload
from voxring.images.stored import Stored

_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}  # of the header's length, by version
_MOST = 1 << 16  # bytes of a header; numpy writes 118 for an array of numbers
# numpy writes the keys in this order, others may not. A descr of several fields is no image's.
_ITEM = re.compile(
    r"""\s*["'](?:descr["']\s*:\s*["'](?P<descr>[<>=|]?[A-Za-z][\w\[\]]*)["']"""
    r"""|fortran_order["']\s*:\s*(?P<fortran>True|False)"""
    r"""|shape["']\s*:\s*\((?P<shape>[\dL,\s]*)\))\s*(?:,|$)"""
)


def read(path: Path) -> Stored:
    """Read a .npy file."""
    with path.open("rb") as file:
        start = file.read(len(_MAGIC) + 2)
        if not start.startswith(_MAGIC):
            raise ImageError(f"{path}: expected a NumPy array, got something else: write it with numpy.save")
        width = _LENGTH_BYTES.get(start[-2], 0)
        length = int.from_bytes(file.read(width), "little")
        header = file.read(min(length, _MOST))
    if not width or len(header) != length:
        raise _damaged(path)
    dtype, fortran, shape = _parsed(path, header.decode("latin-1").strip())
    array_shape = payload.array_shape(path, shape[::-1])
    offset = len(start) + width + length
    payload.checked_dtype(path, dtype)
    if fortran:
        planes = payload.Mapped(path, offset, dtype, shape[::-1])
        return Stored((planes.read(0, shape[-1])[0].T.reshape(array_shape),))
    return Stored((payload.Mapped(path, offset, dtype, array_shape),))


def _parsed(path: Path, header: str) -> tuple[np.dtype[np.generic], bool, tuple[int, ...]]:
    """What a header tells: the type, whether the first axis lies fastest, and the shape."""
    found: dict[str, str] = {}
    at, end = 1, len(header) - 1
    while at < end and (item := _ITEM.match(header, at, end)) and item.lastgroup:
        found[item.lastgroup] = item[item.lastgroup]
        at = item.end()
    if (header[:1], header[-1:], header[at:end].strip()) != ("{", "}", "") or len(found) != 3:
        raise _damaged(path)
    try:
        dtype = np.dtype(found["descr"])
        shape = tuple(int(size.strip().rstrip("L")) for size in found["shape"].split(",") if size.strip())
    except (TypeError, ValueError) as error:
        raise _damaged(path) from error
    return dtype, found["fortran"] == "True", shape


def _damaged(path: Path) -> ImageError:
    return ImageError(
        f"{path}: expected the header of a NumPy array of plain numbers, got something else: write one with numpy.save"
    )
