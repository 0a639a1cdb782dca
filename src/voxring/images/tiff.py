"""TIFF through tifffile: one page is 2D, several pages of one size are the planes of a volume.

A page followed by smaller copies of itself is a pyramid, of which it alone is read: the pages after it are marked as
reduced images, or the file is Aperio's, which marks none. One page alone is read by its tiles or strips, as far as they
are needed, so that a slide of many gigabytes is never held whole.
"""

import lzma
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tifffile import PHOTOMETRIC, TiffFile, TiffPage

from voxring.errors import ImageError
from voxring.images import colour as colours
from voxring.images import payload
from voxring.images.rectangles import Span
from voxring.images.room import empty
from voxring.images.source import Source, identify, together
from voxring.images.stored import Stored
from voxring.study import Colour

_WITHOUT_CODECS = (1, 8, 32773, 32946, 34925)  # uncompressed, deflate, PackBits, LZMA
_JPEG = (6, 7)
_APERIO_YCBC = 33003  # JPEG 2000 whose pixels are not made RGB again
_GREY = (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE)
_PAGES_LIMIT = 1 << 20
# Classic TIFF and BigTIFF: where the first offset stands, and the formats of a count and an offset, the size of a tag.
_LAYOUTS = {42: (4, "H", "I", 12), 43: (8, "Q", "Q", 20)}
# What tifffile raises on damaged files; TiffFileError is a ValueError, a codec that is not installed another.
_DAMAGE = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, NotImplementedError, RuntimeError, EOFError,
    struct.error, zlib.error, lzma.LZMAError,
)  # fmt: skip


def read(path: Path, colour: Colour | None = None) -> Stored:
    """Read a TIFF file."""
    count = _count_pages(path)
    with damage(path), TiffFile(path) as tiff:
        # tifffile leaves out pages that it cannot parse, and only logs it.
        if len(tiff.pages) != count:
            raise ImageError(f"{path}: {count - len(tiff.pages)} of {count} pages are damaged: copy it again")
        pages = [page for page in tiff.pages if isinstance(page, TiffPage)]
        palette = pages[0].photometric == PHOTOMETRIC.PALETTE
        if count == 1 or _is_pyramid(path, tiff, pages):
            if tiff.is_ome:
                _check_axes(path, tiff, count)
            _check_page(path, pages[0], colour)
            return Stored((_page(path, tiff, pages, colour),), palette=palette)
        _check_axes(path, tiff, count)
        _check_pages(path, pages)
        planes = [page.asarray(maxworkers=1) for page in pages]
    if any(plane.shape != pages[0].shape for plane in planes):
        raise ImageError(f"{path}: a page holds fewer pixels than it declares: copy it again from its source")
    return Stored((np.stack(planes),), palette=palette)


class damage:  # noqa: N801 - a context manager reads as a phrase
    """Turn what tifffile raises on damaged files into an ImageError."""

    def __init__(self, path: Path, compression: int = 1) -> None:
        self._path, self._compression = path, compression

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, _DAMAGE):
            remedy = "save it again uncompressed"
            if self._compression not in _WITHOUT_CODECS:
                remedy += ", or have its compression known: pip install 'voxring[slides]'"
            raise ImageError(
                f"{self._path}: the TIFF is damaged or its compression is not known ({error}): {remedy}"
            ) from error


class Page:
    """The pixels of one page; `read_block` unpacks the tiles or strips that it needs."""

    def __init__(self, path: Path, page: TiffPage, colour: Colour | None, headers: list[Span]) -> None:
        rows, columns = page.shape[:2]
        self.path, self.identity, self.offset = path, identify(path), 0
        self.dtype: np.dtype[np.generic] = np.dtype(page.dtype)
        self.shape: tuple[int, ...] = (rows, columns)
        self.block = (page.tilelength, page.tilewidth) if page.is_tiled else (min(page.rowsperstrip, rows), columns)
        self._colour = colour
        self.headers = together([Source(path, self.identity, tuple(headers))])[0].ranges
        self._decode, self._compression = page.decode, page.compression
        self._tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
        self._offsets, self._lengths = page.dataoffsets, page.databytecounts

    def read(self, first: int, stop: int) -> tuple[NDArray[np.generic], Source]:
        """Return rows ``first`` to ``stop``."""
        pixels = empty((stop - first, self.shape[1]), self.dtype)
        return pixels, self._fill(pixels, (first, stop), (0, self.shape[1]))

    def read_block(self, rows: Span, columns: Span) -> tuple[NDArray[np.generic], Source]:
        """Return a rectangle, and the tiles that it comes from."""
        pixels = np.empty((rows[1] - rows[0], columns[1] - columns[0]), self.dtype)
        return pixels, self._fill(pixels, rows, columns)

    def _fill(self, pixels: NDArray[np.generic], rows: Span, columns: Span) -> Source:
        (high, wide), used = self.block, list[Span]()
        across = -(-self.shape[1] // wide)
        with self.path.open("rb") as file:
            for row in range(rows[0] // high, -(-rows[1] // high)):
                for column in range(columns[0] // wide, -(-columns[1] // wide)):
                    index = row * across + column
                    start, length = self._offsets[index], self._lengths[index]
                    file.seek(start)
                    tile = self._unpacked(file.read(length), index)
                    used.append((start, start + length))
                    top, left = row * high, column * wide
                    y0, y1 = max(top, rows[0]), min(top + high, rows[1])
                    x0, x1 = max(left, columns[0]), min(left + wide, columns[1])
                    part = tile[y0 - top : y1 - top, x0 - left : x1 - left]
                    pixels[y0 - rows[0] : y1 - rows[0], x0 - columns[0] : x1 - columns[0]] = part
        return Source(self.path, self.identity, tuple(used))

    def _unpacked(self, data: bytes, index: int) -> NDArray[np.generic]:
        """A tile or strip, which may reach past the image or end with it."""
        with damage(self.path, self._compression):
            tile, *_ = self._decode(data, index, **self._tables)
            if tile is None or tile.dtype != self.dtype:
                raise ImageError(f"{self.path}: a tile is not of the type that the file declares: copy it again")
            pixels = tile[0] if self._colour else tile[0, :, :, 0]
        return colours.intensities(pixels, self._colour) if self._colour else pixels


def _page(path: Path, tiff: TiffFile, pages: list[TiffPage], colour: Colour | None) -> Page | payload.Mapped:
    page, dtype = pages[0], np.dtype(pages[0].dtype)
    grey = page.samplesperpixel == 1
    if page.is_final and grey and dtype.kind != "b":
        return payload.Mapped(path, page.dataoffsets[0], dtype.newbyteorder(tiff.byteorder), page.shape)
    headers = (
        [(0, 16)]
        + [(tag.valueoffset, tag.valueoffset + tag.valuebytecount) for one in pages for tag in one.tags.values()]
        + [(one.offset, one.offset + 20 * len(one.tags) + 8) for one in pages]
    )
    return Page(path, page, None if grey else colours.chosen(path, colour), headers)


def _is_pyramid(path: Path, tiff: TiffFile, pages: list[TiffPage]) -> bool:
    """Tell the levels of one image from the planes of a volume."""
    first, others = pages[0], pages[1:]
    if tiff.is_imagej or first.is_reduced or not (tiff.is_svs or all(page.is_reduced for page in others)):
        return False
    for page in others:
        if page.imagelength > first.imagelength or page.imagewidth > first.imagewidth:
            raise ImageError(
                f"{path}: expected the finest level of a pyramid first, got {first.shape} before {page.shape}: "
                "save the finest level alone"
            )
    return True


def _count_pages(path: Path) -> int:
    """Follow the chain of pages to its end; a chain that breaks off is a truncated file."""
    with path.open("rb") as file:
        start = file.read(4)
        order = {b"II": "<", b"MM": ">"}.get(start[:2], "")
        version = struct.unpack(f"{order}H", start[2:])[0] if order and len(start) == 4 else 0
        if version not in _LAYOUTS:
            raise ImageError(f"{path}: expected a TIFF file, got something else: check that it is what it is named")
        at, count_format, offset_format, tag_size = _LAYOUTS[version]
        seen: set[int] = set()
        try:
            while True:
                file.seek(at)
                (page,) = struct.unpack(order + offset_format, file.read(struct.calcsize(order + offset_format)))
                if page == 0:
                    break
                if page in seen or len(seen) == _PAGES_LIMIT:
                    raise ImageError(f"{path}: its chain of pages has no end: the file is damaged, copy it again")
                seen.add(page)
                file.seek(page)
                (tags,) = struct.unpack(order + count_format, file.read(struct.calcsize(order + count_format)))
                at = file.tell() + tags * tag_size
        except (struct.error, OverflowError, ValueError) as error:
            raise ImageError(
                f"{path}: page {len(seen) + 1} lies beyond the end: it is truncated, copy it again"
            ) from error
    if not seen:
        raise ImageError(f"{path}: expected at least one page, got none: the file is damaged, copy it again")
    return len(seen)


def _check_axes(path: Path, tiff: TiffFile, count: int) -> None:
    """Refuse the stacks of microscopes whose pages are channels or times, not planes."""
    metadata = tiff.imagej_metadata or {}
    if metadata.get("images", count) != count:
        raise ImageError(f"{path}: ImageJ wrote more planes than pages: save it from ImageJ as OME-TIFF or NIfTI")
    if tiff.is_imagej or tiff.is_ome:
        axes = [series.axes for series in tiff.series]
        if len(axes) != 1 or set(axes[0]) & set("CT"):
            raise ImageError(
                f"{path}: expected the planes of one volume, got axes {' and '.join(axes)}: "
                "save one channel and one time per file"
            )


def _check_page(path: Path, page: TiffPage, colour: Colour | None) -> None:
    """Refuse what is no 2D image of a kind that is known, and what the file cannot hold."""
    if page.samplesperpixel == 1:
        _check_pixels(path, page)
    else:
        rgb = page.photometric == PHOTOMETRIC.RGB or (
            page.photometric == PHOTOMETRIC.YCBCR and page.compression in _JPEG
        )
        if not rgb or page.samplesperpixel != 3 or page.planarconfig != 1 or len(page.shape) != 3:
            raise ImageError(
                f"{path}: expected greyscale, or red, green and blue of a pixel side by side, got "
                f"{page.samplesperpixel} samples a pixel: save one channel as greyscale"
            )
        if page.dtype not in (np.uint8, np.uint16) or page.compression == _APERIO_YCBC:
            raise ImageError(
                f"{path}: expected RGB of 8 or 16 bits, got {page.dtype}, compression {page.compression}: convert it"
            )
        colours.chosen(path, colour)
    _check_place(path, page)
    high, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    tile = min(high, page.imagelength) * min(wide, page.imagewidth) * page.samplesperpixel * page.bitspersample // 8
    if page.compression != 1 and tile // payload.DEFLATE > max(page.databytecounts) + payload.DEFLATE:
        raise ImageError(f"{path}: a tile declares more pixels than it can hold: copy it again from its source")


def _check_pages(path: Path, pages: list[TiffPage]) -> None:
    """Refuse what is not one greyscale volume, and pages that declare more than the file can hold."""
    first, size = pages[0], path.stat().st_size
    declared = 0
    for page in pages:
        if page.samplesperpixel != 1:
            raise ImageError(
                f"{path}: expected greyscale, got {page.samplesperpixel} samples a pixel: save one channel as greyscale"
            )
        _check_pixels(path, page)
        if (page.shape, page.dtype) != (first.shape, first.dtype):
            raise ImageError(
                f"{path}: expected pages of one size and type, got {first.shape} {first.dtype} and {page.shape} "
                f"{page.dtype}: leave out previews, or save one file per image"
            )
        _check_place(path, page)
        declared += page.nbytes if page.compression == 1 else page.nbytes // payload.DEFLATE
    if declared > size + payload.DEFLATE:
        raise ImageError(f"{path}: the pages declare more pixels than the file can hold: copy it again from its source")


def _check_pixels(path: Path, page: TiffPage) -> None:
    if page.photometric not in (*_GREY, PHOTOMETRIC.PALETTE):
        raise ImageError(f"{path}: expected greyscale, got {page.photometric}: save one channel as greyscale")
    if page.dtype is None:
        raise ImageError(f"{path}: expected integers or floats, got {page.bitspersample} bits a pixel: convert it")
    payload.checked_dtype(path, page.dtype)
    if len(page.shape) != 2 or 0 in page.shape:
        raise ImageError(f"{path}: expected pages of rows and columns, got shape {page.shape}: convert it")


def _check_place(path: Path, page: TiffPage) -> None:
    """Refuse tiles and strips that are not there; tifffile fills them with zeros."""
    if not page.is_contiguous and (
        len(page.dataoffsets) != math.prod(page.chunked) or len(page.databytecounts) != len(page.dataoffsets)
    ):
        raise ImageError(f"{path}: a page lacks some of its strips: the file is damaged, copy it again")
    end = max(offset + length for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True))
    if min(page.databytecounts) < 1 or end > path.stat().st_size:
        raise ImageError(
            f"{path}: expected pixels up to byte {end}, got {path.stat().st_size}: it is truncated, copy it again"
        )
