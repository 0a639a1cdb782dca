"""Voxels from the bytes of a file, held against what its header declares before any memory is taken."""

import gzip
import math
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from isal import igzip, isal_zlib
from numpy.typing import NDArray

from voxring.errors import ImageError

# The most bytes that one compressed byte can become: deflate's longest match codes 258 bytes in 2 bits; a block of
# bzip2 holds 900,000 symbols, each run of 5 of which stands for up to 259 bytes, in some 40 bytes.
DEFLATE = 1_100
BZIP2 = 1_200_000
_SLACK = 65_536
_CHUNK = 1 << 20


class Stream(Protocol):
    """A stream of decompressed bytes."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the start of a buffer; 0 at the end of the stream."""


class ZlibStream:
    """A bare zlib stream (no gzip header) as a :class:`Stream`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inflater = isal_zlib.decompressobj()

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the start of a buffer; 0 at the end of the stream, EOFError when the file ends before it."""
        while not self._inflater.eof:
            packed = self._inflater.unconsumed_tail or self._file.read(_CHUNK)
            piece = self._inflater.decompress(packed, min(len(buffer), _CHUNK))
            if piece:
                buffer[: len(piece)] = piece
                return len(piece)
            if not packed:
                raise EOFError("the compressed stream has no end")
        return 0


def gzip_stream(file: BinaryIO) -> gzip.GzipFile:
    """Decompress gzip from where an open file stands."""
    return igzip.IGzipFile(fileobj=file, mode="rb")  # type: ignore[no-untyped-call]


def array_shape(path: Path, sizes: Sequence[int]) -> tuple[int, ...]:
    """Turn sizes, fastest axis first, into the shape of a 2D or 3D array, or refuse.

    Axes of one voxel past the third are dropped. A third axis of one voxel stays: a volume of one plane.
    """
    listed = " x ".join(map(str, sizes))
    if any(size < 1 for size in sizes):
        raise ImageError(f"{path}: expected sizes of at least 1, got {listed}: the header is damaged")
    kept = list(sizes)
    while len(kept) > 3 and kept[-1] == 1:
        kept.pop()
    if len(kept) not in (2, 3):
        raise ImageError(
            f"{path}: expected 2 or 3 axes, got {len(kept)} ({listed}): split a series into one file per volume"
        )
    return tuple(reversed(kept))


def checked_dtype(path: Path, dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """Pass a dtype of plain numbers, refuse all others."""
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise ImageError(f"{path}: expected integers or floats, got {dtype}: convert it to one greyscale channel")
    return dtype


def mapped(path: Path, offset: int, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> NDArray[np.generic]:
    """Map uncompressed voxels from a file, read-only."""
    declared = math.prod(shape) * dtype.itemsize
    present = path.stat().st_size - offset
    if declared > present:
        raise ImageError(
            f"{path}: expected {declared} bytes of voxels after the header, got {max(present, 0)}: "
            "the file is truncated or its header damaged, copy it again from its source"
        )
    try:
        return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape).view(np.ndarray)
    except (ValueError, OverflowError) as error:  # shorter by now, or beyond what this machine can address
        raise ImageError(f"{path}: cannot be mapped ({error}): copy it again from its source") from error


def inflated(
    path: Path, stream: Stream, packed: int, expansion: int, dtype: np.dtype[np.generic], shape: tuple[int, ...]
) -> NDArray[np.generic]:
    """Decompress voxels into one array.

    ``packed`` is how many compressed bytes there are, ``expansion`` the most bytes that one of them can become.
    """
    declared = math.prod(shape) * dtype.itemsize
    if declared > expansion * packed + _SLACK:
        raise ImageError(
            f"{path}: the header declares {declared} bytes of voxels, more than {packed} compressed bytes can hold: "
            "the file is truncated or its header damaged, copy it again from its source"
        )
    voxels = np.empty(shape, dtype)
    buffer = memoryview(voxels.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    filled = 0
    with corruption(path):
        while filled < declared and (count := stream.readinto(buffer[filled:])):
            filled += count
        # On to the end, where the checksum stands.
        rest = memoryview(bytearray(_SLACK))
        while filled == declared and stream.readinto(rest):
            pass
    if filled < declared:
        raise ImageError(
            f"{path}: expected {declared} bytes of voxels, got {filled}: copy the file again from its source"
        )
    return voxels


class corruption:  # noqa: N801 - a context manager reads as a phrase
    """Turn what decompressors raise on damaged streams into an ImageError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, EOFError | OSError | isal_zlib.error):
            raise ImageError(
                f"{self._path}: the compressed voxels are truncated or corrupt ({error}): "
                "copy the file again from its source"
            ) from error
