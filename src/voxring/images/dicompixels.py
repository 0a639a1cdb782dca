"""The pixels of DICOM files: uncompressed ones from the file's bytes, others through pydicom's decoders."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxring.errors import ImageError
from voxring.images import payload
from voxring.images.dicomfile import Dataset

_UNCOMPRESSED = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}
# Those that give back every bit, whoever decodes them.
_LOSSLESS = {
    "1.2.840.10008.1.2.5": "RLE",
    "1.2.840.10008.1.2.4.57": "JPEG Lossless",
    "1.2.840.10008.1.2.4.70": "JPEG Lossless",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.90": "JPEG 2000",
}
# The most bytes that one compressed byte may become here; empty planes are packed well.
_EXPANSION = 1 << 14
# pydicom's decoders raise what the libraries below them do.
_DAMAGE = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, NotImplementedError, RuntimeError, EOFError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layout:
    """How the pixels of a file are stored, and where."""

    rows: int
    columns: int
    allocated: int
    stored: int
    high: int
    signed: bool
    syntax: str
    big_endian: bool
    start: int
    length: int | None
    frames: int

    @classmethod
    def of(cls, dataset: Dataset) -> "Layout":
        """Read it from a header and hold it against the file.

        Raises
        ------
        ImageError
            The file holds other than greyscale integers, or less than it declares.
        """
        path = dataset.path
        if "PixelData" not in dataset:
            raise ImageError(
                f"{path}: expected an image, got {dataset.text('Modality') or 'no modality'} without integer pixels: "
                "name an image, or its segmentation as the ground truth"
            )
        samples = dataset.integer("SamplesPerPixel", 1)
        shown = dataset.text("PhotometricInterpretation") or "nothing"
        if samples != 1 or shown != "MONOCHROME2":
            raise ImageError(
                f"{path}: expected MONOCHROME2, got {shown[:16]}: write it as greyscale in which larger is brighter"
            )
        if dataset.items("ModalityLUTSequence"):
            raise ImageError(f"{path}: its numbers stand for values in a table: apply it and write the image anew")
        allocated = dataset.integer("BitsAllocated")
        stored = dataset.integer("BitsStored", allocated)
        high = dataset.integer("HighBit", stored - 1)
        rows, columns = dataset.integer("Rows"), dataset.integer("Columns")
        frames = dataset.integer("NumberOfFrames", 1)
        representation = dataset.integer("PixelRepresentation", 0)
        if allocated not in (1, 8, 16, 32) or (allocated == 1) != (dataset.text("Modality") == "SEG" and stored == 1):
            raise ImageError(f"{path}: expected 8, 16 or 32 bits allocated, got {allocated}: convert it")
        if not (0 < stored <= high + 1 <= allocated and representation in (0, 1) and frames > 0):
            raise ImageError(f"{path}: the bits or frames that its header declares make no sense: the file is damaged")
        payload.array_shape(path, (columns, rows))
        place = dataset.place("PixelData")
        big = dataset.form.order == ">"
        if big and allocated <= 8:
            raise ImageError(f"{path}: {allocated} bits in big endian may be swapped: write it as little endian")
        made = cls(
            rows, columns, allocated, stored, high, representation == 1, dataset.syntax, big,
            place.start, place.length, frames,
        )  # fmt: skip
        made._hold(path)
        return made

    @property
    def bytes(self) -> int:
        """What all frames take uncompressed; frames of 1 bit follow each other without padding."""
        return -(-self.rows * self.columns * self.frames * self.allocated // 8)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The numbers' type as the file has it."""
        return np.dtype(f"{'>' if self.big_endian else '<'}{'i' if self.signed else 'u'}{max(self.allocated, 8) // 8}")

    def difference(self, other: "Layout") -> str | None:
        """Say in which field another layout differs, None where pixels of both can stand in one array."""
        where = {"start", "length", "frames"}
        differing = (field.name for field in fields(self) if getattr(self, field.name) != getattr(other, field.name))
        return next((name for name in differing if name not in where), None)

    def _hold(self, path: Path) -> None:
        if self.syntax in _UNCOMPRESSED:
            if self.length not in (self.bytes, self.bytes + self.bytes % 2):
                came = "compressed ones" if self.length is None else self.length
                raise ImageError(
                    f"{path}: expected {self.bytes} bytes of pixels, got {came}: the header is damaged, copy it again"
                )
        elif self.syntax not in _LOSSLESS or self.length is not None:
            raise ImageError(
                f"{path}: expected pixels uncompressed or compressed without loss ({', '.join(_known())}), got "
                f"transfer syntax {self.syntax[:64]}: decompress it once, since decoders of it differ in the last bit"
            )
        elif self.bytes > _EXPANSION * path.stat().st_size:
            raise ImageError(f"{path}: the header declares more pixels than the file can hold: copy it again")


def _known() -> list[str]:
    return sorted(set(_LOSSLESS.values()))


def read(planes: Sequence[tuple[Path, int, Layout]]) -> NDArray[np.generic]:
    """Read planes, given as file, number of frame and layout, into (planes, rows, columns).

    A file whose frames stand in order is mapped, read-only.
    """
    file, _, layout = planes[0]
    if layout.syntax in _UNCOMPRESSED and layout.stored == layout.allocated:
        whole = [(file, number) for number in range(layout.frames)]
        if [(other, number) for other, number, _ in planes] == whole:
            return _mapped(file, layout)
    voxels = np.empty((len(planes), layout.rows, layout.columns), layout.dtype.newbyteorder("="))
    opened: tuple[Path, NDArray[np.generic]] | None = None
    for plane, (file, number, layout) in zip(voxels, planes, strict=True):
        if opened is None or opened[0] != file:
            opened = (file, _frames(file, layout))
        plane[...] = opened[1][number]
    layout = planes[0][2]
    if layout.stored < layout.allocated:
        # The bits above the high bit, and below the lowest, belong to others; the shift back extends the sign.
        np.left_shift(voxels, layout.allocated - 1 - layout.high, out=voxels)
        np.right_shift(voxels, layout.allocated - layout.stored, out=voxels)
    return voxels


def bits(path: Path, layout: Layout, number: int) -> NDArray[np.uint8]:
    """Read one frame of 1 bit a pixel as zeros and ones, the lowest bit of a byte first."""
    size = layout.rows * layout.columns
    first = size * number
    packed = np.memmap(path, np.uint8, "r", layout.start + first // 8, (-(-(first + size) // 8) - first // 8,))
    unpacked = np.unpackbits(packed, bitorder="little")[first % 8 : first % 8 + size]
    return unpacked.reshape(layout.rows, layout.columns)


def _frames(path: Path, layout: Layout) -> NDArray[np.generic]:
    if layout.syntax in _UNCOMPRESSED:
        return _mapped(path, layout)
    return _decoded(path, layout)


def _mapped(path: Path, layout: Layout) -> NDArray[np.generic]:
    shape = layout.frames, layout.rows, layout.columns
    voxels, _ = payload.Mapped(path, layout.start, layout.dtype, shape).read(0, layout.frames)
    return voxels


def _decoded(path: Path, layout: Layout) -> NDArray[np.generic]:
    try:
        from pydicom.pixels.decoders.base import get_decoder
        from pydicom.uid import UID
    except ModuleNotFoundError:
        raise _without(path, layout) from None
    syntax = UID(layout.syntax)
    decoder = get_decoder(syntax)
    if not decoder.is_available:
        raise _without(path, layout)
    header: dict[str, Any] = {
        "transfer_syntax_uid": syntax,
        "rows": layout.rows,
        "columns": layout.columns,
        "number_of_frames": layout.frames,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "pixel_representation": int(layout.signed),
        "bits_allocated": layout.allocated,
        "bits_stored": layout.stored,
        "pixel_keyword": "PixelData",
    }
    try:
        with path.open("rb") as file:
            file.seek(layout.start)
            packed = file.read()
        frames, _ = decoder.as_array(packed, raw=True, **header)
    except _DAMAGE as error:
        raise ImageError(
            f"{path}: its {_LOSSLESS[layout.syntax]} pixels cannot be decoded: the file is damaged, copy it again"
        ) from error
    shape = (layout.frames, layout.rows, layout.columns)
    if (frames.size, frames.shape[-2:]) != (math.prod(shape), shape[1:]) or frames.itemsize != layout.dtype.itemsize:
        raise ImageError(f"{path}: its compressed pixels are of another kind than its header says: copy it again")
    return frames.reshape(shape)


def _without(path: Path, layout: Layout) -> ImageError:
    return ImageError(
        f"{path}: its pixels are compressed ({_LOSSLESS[layout.syntax]}), which takes pydicom and GDCM: "
        "pip install 'voxring[dicom]'"
    )
