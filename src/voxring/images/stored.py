"""What every reader returns, and the rules that turn it into an Image or a GroundTruth, the same for all formats."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from voxring.errors import ImageError
from voxring.images.image import Grid, GroundTruth, Image, Segment
from voxring.images.rectangles import Span
from voxring.images.source import Identity, InBlocks, InFile, Source

_HEADER = 1 << 16  # a compressed header lies within these
_LABEL_DTYPES = (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """What a file holds, before its use is known.

    ``layers`` are arrays of the grid's shape with integers, booleans or floats of any width up to 64 bits and any byte
    order, or voxels in a file that are read later. ``palette`` says that the numbers are indices of colours.
    ``sources`` are the files behind layers that are arrays, all of the named file when left out; of voxels that are
    read later, the files beside those that they are read from.
    """

    layers: tuple[NDArray[np.generic] | InFile, ...]
    affine: NDArray[np.float64] | None = None
    slope: float | Fraction = 1.0
    intercept: float | Fraction = 0.0
    segments: tuple[Segment, ...] = ()
    palette: bool = False
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class ImageFile:
    """An image of which the header has been read, and voxels as far as the format has no other way.

    Parameters
    ----------
    name : str
        The file's, for messages.
    dtype : dtype
        Of the numbers in the file.
    slope, intercept : float or Fraction
        As for an `Image`.
    grid : Grid
        Shape and position.
    """

    name: str
    dtype: np.dtype[np.generic]
    slope: float | Fraction
    intercept: float | Fraction
    grid: Grid
    _voxels: NDArray[np.generic] | InFile
    _identity: Identity
    _sources: tuple[Source, ...]

    def read(self, first: int = 0, stop: int | None = None) -> Image:
        """Read the image, or planes ``first`` to ``stop`` of it, along the first axis.

        Raises
        ------
        ImageError
            The voxels are truncated or corrupt, or integers of more than 32 bits.
        """
        with readable(Path(self.name)):
            stop = self.grid.shape[0] if stop is None else stop
            path = Path(self.name)
            if isinstance(self._voxels, np.ndarray):
                voxels = self._voxels[first:stop]
                sources = self._sources or (Source.whole(path, self._identity),)
            elif first == stop:
                voxels = np.empty((0, *self.grid.shape[1:]), self.dtype)
                sources = _headers(path, self._identity, self._voxels)
            else:
                voxels, source = self._voxels.read(first, stop)
                sources = (*_headers(path, self._identity, self._voxels, source), *self._sources, source)
            voxels = _at_most_32_bits(self.name, voxels) if voxels.size else voxels
        return Image(voxels, self.slope, self.intercept, self.grid, sources)

    @property
    def block(self) -> tuple[int, int] | None:
        """Rows and columns that are unpacked at once; None where no part of the image can be read without the rest."""
        return _block(self._voxels)

    def read_block(self, rows: Span, columns: Span) -> Image:
        """Read part of an image that has a `block`; errors as for `read`."""
        path = Path(self.name)
        with readable(path):
            voxels, sources = _read_block(path, self._voxels, rows, columns, self._sources, self._identity)
            return Image(_at_most_32_bits(self.name, voxels), self.slope, self.intercept, self.grid, sources)


@dataclass(frozen=True, slots=True, eq=False)
class GroundTruthFile:
    """A ground truth of which the header has been read, and voxels as far as the format has no other way."""

    name: str
    _stored: Stored
    _identity: Identity

    @property
    def grid(self) -> Grid:
        """Shape and position."""
        return Grid(self._stored.layers[0].shape, self._stored.affine)

    def read(self) -> GroundTruth:
        """Read all of it; errors as for `voxring.read_ground_truth`."""
        with readable(Path(self.name)):
            return as_ground_truth(self.name, self._stored, self._identity)

    def find(self, label: int | str) -> int:
        """Return the label value of a class; errors as for `GroundTruth.find`."""
        return GroundTruth((), self._stored.segments, self.grid, self.name).find(label)[1]

    @property
    def block(self) -> tuple[int, int] | None:
        """As of an image; None too where there are several layers, or segments with names."""
        alone = len(self._stored.layers) == 1 and not self._stored.segments
        return _block(self._stored.layers[0]) if alone else None

    def read_block(self, rows: Span, columns: Span) -> tuple[NDArray[np.integer], tuple[Source, ...]]:
        """Read part of a label map that has a `block`, and say what was read for it."""
        path, stored = Path(self.name), self._stored
        with readable(path):
            voxels, sources = _read_block(path, stored.layers[0], rows, columns, stored.sources, self._identity)
            return _labels(self.name, voxels, stored.slope, stored.intercept), sources


def _block(voxels: NDArray[np.generic] | InFile) -> tuple[int, int] | None:
    if len(voxels.shape) != 2:
        return None
    if isinstance(voxels, np.ndarray):
        return 1, 1
    return voxels.block if isinstance(voxels, InBlocks) else None


def _read_block(
    path: Path,
    voxels: NDArray[np.generic] | InFile,
    rows: Span,
    columns: Span,
    sources: tuple[Source, ...],
    identity: Identity,
) -> tuple[NDArray[np.generic], tuple[Source, ...]]:
    if isinstance(voxels, np.ndarray):
        return voxels[slice(*rows), slice(*columns)], sources or (Source.whole(path, identity),)
    if not isinstance(voxels, InBlocks):
        raise ImageError(f"{path}: no part of it can be read without the rest: save it as a tiled TIFF")
    part, source = voxels.read_block(rows, columns)
    return part, (*_headers(path, identity, voxels), *sources, source)


def _headers(path: Path, identity: Identity, voxels: InFile, read: Source | None = None) -> tuple[Source, ...]:
    """The bytes that a reader took before it came to the voxels: none but what was ``read``, if that is all before."""
    if len(voxels.shape) == 2 and isinstance(voxels, InBlocks) and voxels.path == path:
        return (Source(path, identity, voxels.headers),)
    if voxels.path != path:
        return (Source.whole(path, identity),)
    if read is not None and read.ranges[0][0] == 0:
        return ()
    return (Source(path, identity, ((0, voxels.offset or min(_HEADER, identity[1])),)),)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what a system says of a file that cannot be read into an ImageError."""
    try:
        yield
    except OSError as error:
        raise ImageError(
            f"{path}: cannot be read ({error.strerror or error}): check the disk and permissions"
        ) from error
    except MemoryError as error:
        raise ImageError(f"{path}: does not fit in memory: use a machine with more, or crop the image") from error


def as_image_file(name: str, stored: Stored, identity: Identity) -> ImageFile:
    """Take what a file holds as an image; ImageError when it is a segmentation or a palette."""
    if len(stored.layers) != 1:
        raise ImageError(
            f"{name}: expected one image, got {len(stored.layers)} layers of segments: give it as a ground truth"
        )
    if stored.palette:
        raise ImageError(f"{name}: expected grey levels, got indices of a palette: save it as greyscale")
    voxels = stored.layers[0]
    grid = Grid(voxels.shape, stored.affine)
    return ImageFile(name, voxels.dtype, stored.slope, stored.intercept, grid, voxels, identity, stored.sources)


def as_ground_truth(name: str, stored: Stored, identity: Identity) -> GroundTruth:
    """Take what a file holds as label maps; ImageError when a value is not an integer of at most 32 bits."""
    sources = stored.sources or (Source.whole(Path(name), identity),)
    layers = []
    for voxels in stored.layers:
        if isinstance(voxels, np.ndarray):
            layer = voxels
        else:
            layer, source = voxels.read(0, voxels.shape[0])
            sources = (*_headers(Path(name), identity, voxels, source), source)
        layers.append(_labels(name, layer, stored.slope, stored.intercept))
    return GroundTruth(tuple(layers), stored.segments, Grid(layers[0].shape, stored.affine), name, sources)


def _at_most_32_bits(name: str, voxels: NDArray[np.generic]) -> NDArray[np.generic]:
    if voxels.dtype == np.bool_:
        return np.not_equal(_native(voxels).view(np.uint8), 0).astype(np.uint8)  # Pillow's True is 255
    if voxels.dtype.kind == "f":
        return _native(voxels, np.dtype(np.float32)) if voxels.dtype.itemsize == 2 else _native(voxels)
    if voxels.dtype.itemsize < 8:
        return _native(voxels)
    low, high = int(voxels.min()), int(voxels.max())
    for dtype in (np.int32, np.uint32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return _native(voxels, np.dtype(dtype))
    raise ImageError(f"{name}: expected integers that fit 32 bits, got larger ones: rescale or convert them")


def _labels(
    name: str, voxels: NDArray[np.generic], slope: float | Fraction, intercept: float | Fraction
) -> NDArray[np.integer]:
    numbers = _at_most_32_bits(name, voxels)
    integers: NDArray[np.integer]
    if numbers.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            low, high = float(numbers.min()), float(numbers.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ImageError(f"{name}: expected integer labels, got NaN or infinity: write the map as integers")
        integers = numbers.astype(smallest_dtype(name, math.floor(low), math.ceil(high)))
        if not np.array_equal(integers, numbers):
            raise ImageError(f"{name}: expected integer labels, got fractions: is this an image or a probability map?")
    else:
        integers = numbers  # type: ignore[assignment]
    if slope == 1 and intercept == 0:
        return integers
    a, b = Fraction(slope), Fraction(intercept)
    if not (a.denominator == b.denominator == 1 and max(abs(a), abs(b)) < 2**62):
        raise ImageError(
            f"{name}: expected integer labels, got a slope or intercept that makes fractions: write the map without"
        )
    ends = sorted(int(a * int(end) + b) for end in (integers.min(), integers.max()))
    # In int64 the product may wrap, but the sum is known to fit 32 bits, and arithmetic mod 2^64 gives just that sum.
    return (integers.astype(np.int64) * np.int64(int(a)) + np.int64(int(b))).astype(smallest_dtype(name, *ends))


def smallest_dtype(name: str, low: int, high: int) -> type[np.integer]:
    """Return the first of the label dtypes that holds low and high, or refuse."""
    for dtype in _LABEL_DTYPES:
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return dtype
    raise ImageError(f"{name}: expected integer labels that fit 32 bits, got larger ones: renumber the labels")


def _native(voxels: NDArray[np.generic], dtype: np.dtype[np.generic] | None = None) -> NDArray[np.generic]:
    """C order, native byte order, aligned; a copy only where the file has it otherwise."""
    array = np.ascontiguousarray(voxels, dtype=dtype or voxels.dtype.newbyteorder("="))
    return array if array.flags.aligned else array.copy()
