"""TIFF through tifffile: one page is 2D, several pages of one size are the planes of a volume."""

import lzma
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from tifffile import PHOTOMETRIC, TiffFile, TiffPage

from voxring.errors import ImageError
from voxring.images import payload
from voxring.images.stored import Stored

_GREY = (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE)
_PAGES_LIMIT = 1 << 20
# Classic TIFF and BigTIFF: where the first offset stands, and the formats of a count and an offset, the size of a tag.
_LAYOUTS = {42: (4, "H", "I", 12), 43: (8, "Q", "Q", 20)}
# What tifffile raises on damaged files; TiffFileError is a ValueError, a codec that is not installed another.
_DAMAGE = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, NotImplementedError, RuntimeError, EOFError,
    struct.error, zlib.error, lzma.LZMAError,
)  # fmt: skip


def read(path: Path) -> Stored:
    """Read a TIFF file."""
    count = _count_pages(path)
    try:
        with TiffFile(path) as tiff:
            # tifffile leaves out pages that it cannot parse, and only logs it.
            if len(tiff.pages) != count:
                raise ImageError(f"{path}: {count - len(tiff.pages)} of {count} pages are damaged: copy it again")
            pages = [page for page in tiff.pages if isinstance(page, TiffPage)]
            _check_axes(path, tiff, count)
            _check_pages(path, pages)
            planes = [page.asarray(maxworkers=1) for page in pages]
    except _DAMAGE as error:
        raise ImageError(
            f"{path}: the TIFF is damaged or its compression is not known ({error}): save it again uncompressed"
        ) from error
    if any(plane.shape != pages[0].shape for plane in planes):
        raise ImageError(f"{path}: a page holds fewer pixels than it declares: copy it again from its source")
    voxels = planes[0] if count == 1 else np.stack(planes)
    return Stored((voxels,), palette=pages[0].photometric == PHOTOMETRIC.PALETTE)


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
        if len(axes) != 1 or set(axes[0]) & set("CTS"):
            raise ImageError(
                f"{path}: expected the planes of one volume, got axes {' and '.join(axes)}: "
                "save one channel and one time per file"
            )


def _check_pages(path: Path, pages: list[TiffPage]) -> None:
    """Refuse what is not one greyscale volume, and pages that declare more than the file can hold."""
    first, size = pages[0], path.stat().st_size
    declared = 0
    for page in pages:
        if page.photometric not in (*_GREY, PHOTOMETRIC.PALETTE) or page.samplesperpixel != 1:
            raise ImageError(
                f"{path}: expected greyscale, got {page.samplesperpixel} samples a pixel: save one channel as greyscale"
            )
        if page.dtype is None:
            raise ImageError(f"{path}: expected integers or floats, got {page.bitspersample} bits a pixel: convert it")
        payload.checked_dtype(path, page.dtype)
        if len(page.shape) != 2 or 0 in page.shape:
            raise ImageError(f"{path}: expected pages of rows and columns, got shape {page.shape}: convert it")
        if (page.shape, page.dtype) != (first.shape, first.dtype):
            raise ImageError(
                f"{path}: expected pages of one size and type, got {first.shape} {first.dtype} and {page.shape} "
                f"{page.dtype}: leave out previews, or save one file per image"
            )
        # tifffile fills strips that are not there with zeros.
        if not page.is_contiguous and (
            len(page.dataoffsets) != math.prod(page.chunked) or len(page.databytecounts) != len(page.dataoffsets)
        ):
            raise ImageError(f"{path}: a page lacks some of its strips: the file is damaged, copy it again")
        ends = [offset + length for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if min(page.databytecounts) < 1 or max(ends) > size:
            raise ImageError(
                f"{path}: expected pixels up to byte {max(ends)}, got {size}: it is truncated, copy it again"
            )
        declared += page.nbytes if page.compression == 1 else page.nbytes // payload.DEFLATE
    if declared > size + payload.DEFLATE:
        raise ImageError(f"{path}: the pages declare more pixels than the file can hold: copy it again from its source")
