"""The structure of a DICOM file (PS3.5 and PS3.10): elements, sequences and their items.

Read here, because a truncated file must never pass for a whole one, a warning must never quote a patient's data, and
a folder holds thousands of headers. Only the places of elements are kept until one is asked for by its name in TAGS;
no other is ever decoded, so that no message can hold it.
"""

import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from voxring.errors import ImageError

TAGS = {
    "TransferSyntaxUID": 0x0002_0010,
    "SpecificCharacterSet": 0x0008_0005,
    "SOPInstanceUID": 0x0008_0018,
    "Modality": 0x0008_0060,
    "ReferencedSeriesSequence": 0x0008_1115,
    "PatientID": 0x0010_0020,
    "StudyInstanceUID": 0x0020_000D,
    "SeriesInstanceUID": 0x0020_000E,
    "ImagePositionPatient": 0x0020_0032,
    "ImageOrientationPatient": 0x0020_0037,
    "PlanePositionSequence": 0x0020_9113,
    "PlaneOrientationSequence": 0x0020_9116,
    "SamplesPerPixel": 0x0028_0002,
    "PhotometricInterpretation": 0x0028_0004,
    "NumberOfFrames": 0x0028_0008,
    "Rows": 0x0028_0010,
    "Columns": 0x0028_0011,
    "PixelSpacing": 0x0028_0030,
    "BitsAllocated": 0x0028_0100,
    "BitsStored": 0x0028_0101,
    "HighBit": 0x0028_0102,
    "PixelRepresentation": 0x0028_0103,
    "RescaleIntercept": 0x0028_1052,
    "RescaleSlope": 0x0028_1053,
    "ModalityLUTSequence": 0x0028_3000,
    "PixelMeasuresSequence": 0x0028_9110,
    "PixelValueTransformationSequence": 0x0028_9145,
    "SegmentationType": 0x0062_0001,
    "SegmentSequence": 0x0062_0002,
    "SegmentNumber": 0x0062_0004,
    "SegmentLabel": 0x0062_0005,
    "SegmentIdentificationSequence": 0x0062_000A,
    "ReferencedSegmentNumber": 0x0062_000B,
    "MaximumFractionalValue": 0x0062_000E,
    "ReferencedFrameOfReferenceSequence": 0x3006_0010,
    "RTReferencedStudySequence": 0x3006_0012,
    "RTReferencedSeriesSequence": 0x3006_0014,
    "StructureSetROISequence": 0x3006_0020,
    "ROINumber": 0x3006_0022,
    "ROIName": 0x3006_0026,
    "ROIContourSequence": 0x3006_0039,
    "ContourSequence": 0x3006_0040,
    "ContourGeometricType": 0x3006_0042,
    "NumberOfContourPoints": 0x3006_0046,
    "ContourData": 0x3006_0050,
    "ReferencedROINumber": 0x3006_0084,
    "SharedFunctionalGroupsSequence": 0x5200_9229,
    "PerFrameFunctionalGroupsSequence": 0x5200_9230,
    "PixelData": 0x7FE0_0010,
}
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFE_E000, 0xFFFE_E00D, 0xFFFE_E0DD
_UNDEFINED = 0xFFFF_FFFF
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_INTEGERS = {b"US": "H", b"SS": "h", b"UL": "I", b"SL": "i"}
_DEPTH_LIMIT = 24
_DEFLATED = "1.2.840.10008.1.2.1.99"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_IMPLICIT = "1.2.840.10008.1.2"
# What Specific Character Set names (PS3.3 C.12.1.1.2), the last of several values, which has the widest repertoire.
_CHARACTER_SETS = {
    "": "ascii", "ISO_IR 6": "ascii", "ISO_IR 100": "latin-1", "ISO_IR 101": "iso8859-2", "ISO_IR 109": "iso8859-3",
    "ISO_IR 110": "iso8859-4", "ISO_IR 126": "iso8859-7", "ISO_IR 127": "iso8859-6", "ISO_IR 138": "iso8859-8",
    "ISO_IR 144": "iso8859-5", "ISO_IR 148": "iso8859-9", "ISO_IR 166": "tis-620", "ISO_IR 192": "utf-8",
    "ISO_IR 203": "iso8859-15", "ISO_IR 13": "shift_jis", "GB18030": "gb18030", "GBK": "gbk",
    "ISO 2022 IR 87": "iso2022_jp_2", "ISO 2022 IR 159": "iso2022_jp_2", "ISO 2022 IR 149": "iso2022_kr",
}  # fmt: skip
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")


@dataclass(frozen=True, slots=True)
class Form:
    """How elements are written: with their VR or without, and the order of bytes."""

    explicit: bool
    order: str


@dataclass(frozen=True, slots=True)
class Element:
    """Where a value stands; ``vr`` is empty where the file does not write it, ``length`` None when left open."""

    vr: bytes
    start: int
    length: int | None


def is_dicom(path: Path) -> bool:
    """Say whether a file has the prefix of PS3.10."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


class Dataset:
    """The elements of a file, or of an item of a sequence in it.

    ``data`` is the file's bytes; items share it.
    """

    def __init__(
        self, path: Path, data: mmap.mmap, elements: dict[int, Element], form: Form, syntax: str, charset: str = "ascii"
    ) -> None:
        self.path, self.data, self.form, self.syntax = path, data, form, syntax
        self._elements = elements
        self._charset = charset
        if TAGS["SpecificCharacterSet"] in elements:
            last = self._raw("SpecificCharacterSet").decode("ascii", "replace").split("\\")[-1].strip(" \0")
            self._charset = _CHARACTER_SETS.get(last, _CHARACTER_SETS.get(last.replace("ISO 2022 IR", "ISO_IR"), ""))

    @classmethod
    def read(cls, path: Path) -> "Dataset":
        """Read the structure of a file as far as its pixels; without pixels, to its end.

        Raises
        ------
        ImageError
            The file is no DICOM file, or its structure is broken or cut off.
        """
        with path.open("rb") as file:
            if file.read(132)[128:] != b"DICM":
                raise ImageError(
                    f"{path}: expected a DICOM file, got none (no DICM at byte 128): write it anew as PS3.10 asks, or "
                    "take it out of the folder"
                )
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        meta = Form(explicit=True, order="<")
        start = 132
        elements: dict[int, Element] = {}
        while data[start : start + 2] == b"\x02\x00":
            tag, element, start = _next(path, data, start, len(data), meta, 0)
            elements[tag] = element
        syntax = cls(path, data, elements, meta, "").text("TransferSyntaxUID")
        if syntax is None:
            raise ImageError(f"{path}: expected the transfer syntax in the header, found none: copy the file again")
        if syntax == _DEFLATED:
            raise ImageError(f"{path}: the whole file is deflated: write it as explicit VR little endian")
        form = Form(explicit=syntax != _IMPLICIT, order=">" if syntax == _BIG_ENDIAN else "<")
        elements, _ = _walk(path, data, start, len(data), form, 0, last=TAGS["PixelData"])
        return cls(path, data, elements, form, syntax)

    def __contains__(self, name: str) -> bool:
        return TAGS[name] in self._elements

    def place(self, name: str) -> Element:
        """Return where an element's value stands, or refuse."""
        if name not in self:
            raise ImageError(f"{self.path}: expected {name} in the header, found none: export the file again")
        return self._elements[TAGS[name]]

    def text(self, name: str) -> str | None:
        """Return a text, None when there is none or an empty one."""
        if name not in self:
            return None
        return self._raw(name).decode(self._charset or "ascii", "replace").strip(" \0") or None

    def integer(self, name: str, default: int | None = None) -> int:
        """Return one integer, written in binary or as text."""
        if default is not None and (name not in self or self._elements[TAGS[name]].length == 0):
            return default
        raw, vr = self._raw(name), self.place(name).vr
        if name in ("NumberOfFrames", "ROINumber", "ReferencedROINumber", "NumberOfContourPoints"):  # IS
            text = raw.decode("ascii", "replace").strip(" \0")
            if re.fullmatch(r"[+-]?\d{1,12}", text):
                return int(text)
        elif len(raw) == 2 and vr in (b"", b"US", b"SS"):
            return int(struct.unpack(self.form.order + _INTEGERS[vr or b"US"], raw)[0])
        raise ImageError(f"{self.path}: expected one integer in {name}, got something else: the header is damaged")

    def decimals(self, name: str, count: int) -> tuple[Fraction, ...]:
        """Return so many decimal strings, exactly as they are written."""
        texts = [text.strip(" \0") for text in self._raw(name).decode("ascii", "replace").split("\\")]
        if len(texts) != count or not all(len(text) <= 40 and _DECIMAL.fullmatch(text) for text in texts):
            raise ImageError(
                f"{self.path}: expected {count} decimal numbers in {name}, got something else: the header is damaged"
            )
        return tuple(map(Fraction, texts))

    def floats(self, name: str) -> list[float]:
        """Return decimal strings, rounded; for long lists."""
        texts = self._raw(name).decode("ascii", "replace").strip(" \0").split("\\")
        try:
            if "_" not in "".join(texts):
                return [float(text) for text in texts]
        except ValueError:
            pass
        raise ImageError(f"{self.path}: expected decimal numbers in {name}, got something else: the file is damaged")

    def items(self, name: str) -> list["Dataset"]:
        """Return the items of a sequence, none where there is no such sequence."""
        if name not in self:
            return []
        element = self._elements[TAGS[name]]
        # A sequence whose VR a writer did not know is written without VRs (PS3.5, 6.2.2).
        form = Form(explicit=False, order="<") if element.vr == b"UN" else self.form
        end = len(self.data) if element.length is None else element.start + element.length
        found = []
        for start, stop, _ in _items(self.path, self.data, element, end, form, 0):
            elements, _ = _walk(self.path, self.data, start, stop, form, 0)
            found.append(Dataset(self.path, self.data, elements, form, self.syntax, self._charset))
        return found

    def _raw(self, name: str) -> bytes:
        element = self.place(name)
        if element.length is None:
            raise ImageError(f"{self.path}: expected a value in {name}, got a sequence: the header is damaged")
        return self.data[element.start : element.start + element.length]


def _walk(
    path: Path,
    data: mmap.mmap,
    start: int,
    end: int,
    form: Form,
    depth: int,
    *,
    delimited: bool = False,
    last: int | None = None,
) -> tuple[dict[int, Element], int]:
    """Find elements up to ``end``, the delimiter of the item or the ``last`` tag; return them and where they stop."""
    elements: dict[int, Element] = {}
    at = start
    while at < end:
        tag, element, after = _next(path, data, at, end, form, depth)
        if tag == _ITEM_END and delimited:
            return elements, at
        if tag >> 16 == 0xFFFE or tag in elements:
            raise ImageError(
                f"{path}: its elements are out of order near byte {at}: the file is damaged, copy it again"
            )
        elements[tag] = element
        at = after
        if tag == last:
            break
    return elements, at


def _next(path: Path, data: mmap.mmap, at: int, end: int, form: Form, depth: int) -> tuple[int, Element, int]:
    """Read the head of an element; return its tag, its place, and where the next begins."""
    if at + 8 > end:
        raise _cut_off(path)
    group, number = struct.unpack_from(form.order + "HH", data, at)
    vr, start = b"", at + 8
    if not form.explicit or group == 0xFFFE:
        (length,) = struct.unpack_from(form.order + "I", data, at + 4)
    else:
        vr = data[at + 4 : at + 6]
        if not (vr.isalpha() and vr.isupper()):
            raise ImageError(f"{path}: expected the type of an element at byte {at + 4}, got none: the file is damaged")
        if vr in _LONG:
            start += 4
            if start > end:
                raise _cut_off(path)
            (length,) = struct.unpack_from(form.order + "I", data, at + 8)
        else:
            (length,) = struct.unpack_from(form.order + "H", data, at + 6)
    tag = group << 16 | number
    if length != _UNDEFINED:
        if start + length > end:
            raise _cut_off(path)
        return tag, Element(vr, start, length), start + length
    element = Element(vr, start, None)
    inside = Form(explicit=False, order="<") if vr == b"UN" else form
    after = start
    for _, _, after in _items(path, data, element, end, inside, depth + 1):  # noqa: B007 - used below
        pass
    return tag, element, after + 8  # the delimiter


def _items(
    path: Path, data: mmap.mmap, element: Element, end: int, form: Form, depth: int
) -> Iterator[tuple[int, int, int]]:
    """Yield where each item of a sequence, or fragment of pixels, begins and ends, and where what follows begins."""
    if depth > _DEPTH_LIMIT:
        raise ImageError(f"{path}: its sequences are nested more than {_DEPTH_LIMIT} deep: the file is damaged")
    at = element.start
    while element.length is None or at < end:
        if at + 8 > end:
            raise _cut_off(path)
        group, number, length = struct.unpack_from(form.order + "HHI", data, at)
        tag, at = group << 16 | number, at + 8
        if tag == _SEQUENCE_END and element.length is None:
            return
        if tag != _ITEM:
            raise ImageError(f"{path}: expected an item at byte {at - 8}, got none: the file is damaged, copy it again")
        start = at
        if length == _UNDEFINED:
            _, stop = _walk(path, data, start, end, form, depth + 1, delimited=True)
            at = stop + 8  # the delimiter; beyond the end where there is none
        else:
            stop = at = start + length
        if at > end:
            raise _cut_off(path)
        yield start, stop, at


def _cut_off(path: Path) -> ImageError:
    return ImageError(f"{path}: an element reaches beyond its end: the file is truncated or damaged, copy it again")
