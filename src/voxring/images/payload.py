"""Voxels from the bytes of a file, held against what its header declares before any memory is taken."""

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import numpy as np
from isal import isal_zlib
from isal.isal_zlib import _GzipReader
from numpy.typing import NDArray

from voxring.errors import ImageError
from voxring.images.rectangles import Span
from voxring.images.room import empty
from voxring.images.source import Source, Watched, identify

# The most bytes that one compressed byte can become: deflate's longest match codes 258 bytes in 2 bits; a block of
# bzip2 holds 900,000 symbols, each run of 5 of which stands for up to 259 bytes, in some 40 bytes.
DEFLATE = 1_100
BZIP2 = 1_200_000
_SLACK = 65_536
_CHUNK = 1 << 20
_BUFFER = 1 << 18  # of a compressed file, at once
_SCRATCH = 1 << 18  # what is passed over stays in the cache
_CHEAP = 8  # an eighth of the volume is unpacked to see the checksum


class Stream(Protocol):
    """A stream of decompressed bytes."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the start of a buffer; 0 at the end of the stream."""

    def close(self) -> None:
        """Let go of what unpacking took, not of the file."""


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

    def close(self) -> None:
        """Nothing is held."""


def gzip_stream(file: BinaryIO, buffer: int = _BUFFER) -> Stream:
    """Decompress gzip from where an open file stands, which is read in pieces of ``buffer`` bytes.

    isal's reader unpacks into the memory it is given. Its ``IGzipFile``, which wraps it, goes through `gzip.GzipFile`,
    which makes bytes of every piece and copies them.
    """
    stream: Stream = _GzipReader(file, buffer)
    return stream


def start_of(stream: Stream, length: int) -> bytes:
    """Return the first bytes of a stream, fewer where it ends before."""
    start = memoryview(bytearray(length))
    filled = 0
    while filled < length and (count := stream.readinto(start[filled:])):
        filled += count
    return bytes(start[:filled])


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


class Mapped:
    """Uncompressed voxels in a file; `read` maps them, read-only."""

    def __init__(self, path: Path, offset: int, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
        declared = math.prod(shape) * dtype.itemsize
        self.path, self.offset, self.dtype, self.shape = path, offset, dtype, shape
        self.identity = identify(path)
        present = self.identity[1] - offset
        if declared > present:
            raise ImageError(
                f"{path}: expected {declared} bytes of voxels after the header, got {max(present, 0)}: "
                "the file is truncated or its header damaged, copy it again from its source"
            )

    def read(self, first: int, stop: int) -> tuple[NDArray[np.generic], Source]:
        """Return planes ``first`` to ``stop``, and where they stand."""
        shape, start, length = _part(self.shape, self.dtype, first, stop)
        start += self.offset
        try:
            voxels = np.memmap(self.path, dtype=self.dtype, mode="r", offset=start, shape=shape).view(np.ndarray)
        except (ValueError, OverflowError) as error:  # shorter by now, or beyond what this machine can address
            raise ImageError(f"{self.path}: cannot be mapped ({error}): copy it again from its source") from error
        return voxels, Source(self.path, self.identity, ((start, start + length),))

    @property
    def headers(self) -> tuple[Span, ...]:
        """All before the voxels."""
        return ((0, self.offset),)

    @property
    def block(self) -> tuple[int, int]:
        """Voxels are read one by one."""
        return 1, 1

    def read_block(self, rows: Span, columns: Span) -> tuple[NDArray[np.generic], Source]:
        """Return part of a 2D image, and where its rows stand."""
        voxels, source = self.read(*rows)
        return voxels[:, slice(*columns)], source


class Packed:
    """Compressed voxels in a file; `read` unpacks them straight into their array.

    Parameters
    ----------
    unpack : callable
        Makes the stream of an open file that stands at ``offset``.
    expansion : int
        The most bytes that a compressed byte can become.
    header : int
        How many bytes of the stream come before the voxels.
    """

    def __init__(
        self,
        path: Path,
        unpack: Callable[[BinaryIO], Stream],
        expansion: int,
        dtype: np.dtype[np.generic],
        shape: tuple[int, ...],
        *,
        offset: int = 0,
        header: int = 0,
    ) -> None:
        self.path, self.offset, self.dtype, self.shape = path, offset, dtype, shape
        self.identity = identify(path)
        self._unpack, self._header = unpack, header
        declared, packed = math.prod(shape) * dtype.itemsize, self.identity[1] - offset
        if declared > expansion * packed + _SLACK:
            raise ImageError(
                f"{path}: the header declares {declared} bytes of voxels, more than {packed} compressed bytes can "
                "hold: the file is truncated or its header damaged, copy it again from its source"
            )

    def read(self, first: int, stop: int) -> tuple[NDArray[np.generic], Source]:
        """Return planes ``first`` to ``stop``, and the part of the file that was unpacked for them.

        The checksum stands at the end of the stream. Where little of the volume comes after the planes it is read up
        to there, and an error if it does not fit; else damage that still unpacks is not seen.
        """
        shape, before, length = _part(self.shape, self.dtype, first, stop)
        declared = math.prod(self.shape) * self.dtype.itemsize
        voxels = empty(shape, self.dtype)
        buffer = memoryview(voxels.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        scratch = memoryview(bytearray(_SCRATCH))
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            watched = Watched(file)
            with corruption(self.path), closing(self._unpack(cast(BinaryIO, watched))) as stream:
                skipped = _pass_over(stream, self._header + before, scratch) - self._header
                filled = 0
                while filled < length and (count := stream.readinto(buffer[filled : filled + _CHUNK])):
                    filled += count
                present = skipped + filled
                if present == before + length and declared - present <= declared // _CHEAP:
                    present += _pass_over(stream, declared - present, scratch)
                    while present == declared and stream.readinto(scratch):  # on to the end
                        pass
            used = file.tell()
        if present < declared and (present < before + length or declared - present <= declared // _CHEAP):
            raise ImageError(
                f"{self.path}: expected {declared} bytes of voxels, got {max(present, 0)}: "
                "copy the file again from its source"
            )
        return voxels, Source(self.path, self.identity, ((self.offset, used),), watched.end())


def whole(voxels: NDArray[np.generic] | Mapped | Packed) -> NDArray[np.generic]:
    """Return all voxels, whatever they are in."""
    if isinstance(voxels, np.ndarray):
        return voxels
    return voxels.read(0, voxels.shape[0])[0]


def _part(
    shape: tuple[int, ...], dtype: np.dtype[np.generic], first: int, stop: int
) -> tuple[tuple[int, ...], int, int]:
    """Shape, start and length in bytes of the part from ``first`` to ``stop`` along the first axis."""
    step = math.prod(shape[1:]) * dtype.itemsize
    return (stop - first, *shape[1:]), first * step, (stop - first) * step


def _pass_over(stream: Stream, count: int, scratch: memoryview) -> int:
    """Unpack and drop so many bytes; return how many there were."""
    passed = 0
    while passed < count and (got := stream.readinto(scratch[: count - passed])):
        passed += got
    return passed


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
