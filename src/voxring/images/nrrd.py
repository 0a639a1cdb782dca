"""NRRD (.nrrd, or .nhdr with its voxels in another file), and 3D Slicer's segmentations (.seg.nrrd).

The header is read here: it is text, and pynrrd's reader drops letters outside ASCII, which names of segments have.
Format: https://teem.sourceforge.net/nrrd/format.html. NRRD lists its fastest axis first.
"""

import bz2
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from voxring.errors import ImageError
from voxring.images import payload, textheader
from voxring.images.image import Segment
from voxring.images.plan import Plan
from voxring.images.stored import Stored

_HEADER_LIMIT = 1 << 24
_DTYPES = {
    dtype: names.split(", ")
    for dtype, names in {
        "i1": "signed char, int8, int8_t",
        "u1": "uchar, unsigned char, uint8, uint8_t",
        "i2": "short, short int, signed short, signed short int, int16, int16_t",
        "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
        "i4": "int, signed int, int32, int32_t",
        "u4": "uint, unsigned int, uint32, uint32_t",
        "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
        "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
        "f4": "float",
        "f8": "double",
    }.items()
}
# What says where the voxels lie, word for word, and nothing about who lies there.
_GEOMETRY = (
    "dimension", "space", "space dimension", "sizes", "space directions", "kinds", "spacings", "thicknesses",
    "axis mins", "axis maxs", "centers", "units", "space units", "space origin", "measurement frame",
)  # fmt: skip
_BYTE_ORDERS = {"little": "<", "big": ">"}
# What turns the axes of an anatomical space into right, front, head.
_TO_RAS = {
    "right-anterior-superior": (1.0, 1.0, 1.0),
    "ras": (1.0, 1.0, 1.0),
    "left-anterior-superior": (-1.0, 1.0, 1.0),
    "las": (-1.0, 1.0, 1.0),
    "left-posterior-superior": (-1.0, -1.0, 1.0),
    "lps": (-1.0, -1.0, 1.0),
}


@dataclass(frozen=True, slots=True, eq=False)
class _Header:
    fields: dict[str, str]  # "field: value", names in lower case without blanks
    keys: dict[str, str]  # "key:=value"
    end: int  # where attached voxels begin


def read(path: Path) -> Stored:
    """Read a NRRD file."""
    with path.open("rb") as file:
        header = _header(path, file)
    sizes = textheader.integers(path, "sizes", _field(path, header, "sizes"))
    if textheader.integer(path, "dimension", _field(path, header, "dimension")) != len(sizes):
        raise ImageError(f"{path}: its dimension and its {len(sizes)} sizes differ: the header is damaged")
    segments = _segments(path, header, len(sizes) == 4)
    # Slicer puts overlapping segments in layers, along a list axis that comes first and so is the fastest.
    listed = len(sizes) == 4 and (segments or sizes[0] == 1) and header.fields.get("kinds", "").split()[:1] == ["list"]
    count = sizes[0] if listed else 1
    shape = payload.array_shape(path, sizes[1:] if listed else sizes)
    if count < 1 or any(not 0 <= segment.layer < count for segment in segments):
        raise ImageError(
            f"{path}: a segment stands in a layer outside the {count} of the file: save it again in Slicer"
        )
    voxels = _voxels(path, header, (*shape, count) if listed else shape)
    if not listed:
        return Stored((voxels,), _affine(path, header, listed, len(shape)), segments=segments)
    together = payload.whole(voxels)
    layers = tuple(together[..., layer] for layer in range(count))
    return Stored(layers, _affine(path, header, listed, len(shape)), segments=segments)


def plan_like(path: Path, dtype: np.dtype[np.generic], segments: Sequence[Segment]) -> Plan:
    """Plan a map on the grid of a file: its geometry word for word; named labels as 3D Slicer names them."""
    with path.open("rb") as file:
        header = _header(path, file)
    (named,) = (names[-1] for code, names in _DTYPES.items() if code == dtype.str[1:])
    lines = ["NRRD0005", f"type: {named}", "endian: little", "encoding: gzip"]
    for name in _GEOMETRY:
        value = header.fields.get(name.replace(" ", ""))
        if value is not None:
            lines.append(f"{name}: {value}")
    for number, segment in enumerate(segments):
        lines += [
            f"Segment{number}_ID:=Segment_{number + 1}",
            f"Segment{number}_Name:={' '.join(segment.name.split())}",
            f"Segment{number}_LabelValue:={segment.label}",
            f"Segment{number}_Layer:=0",
        ]
    start = "\n".join([*lines, "", ""]).encode()
    return Plan(start, dtype.newbyteorder("<"), "voxels")


def _header(path: Path, file: BinaryIO) -> _Header:
    magic = file.readline(16).rstrip()
    if not re.fullmatch(rb"NRRD000[1-5]", magic):
        raise ImageError(
            f"{path}: expected NRRD0001 to NRRD0005 on its first line, got something else: is it a NRRD file?"
        )
    fields: dict[str, str] = {}
    keys: dict[str, str] = {}
    while line := file.readline(_HEADER_LIMIT):
        text = line.decode("utf-8", "replace").rstrip()
        if not text:
            break
        if file.tell() > _HEADER_LIMIT:
            raise ImageError(f"{path}: expected a blank line after the header, found none: the header is damaged")
        if text.startswith("#"):
            continue
        name, colon, value = text.partition(":")
        if not colon:
            raise ImageError(f'{path}: expected "field: value" in the header, got "{text[:40]}": the header is damaged')
        if value.startswith("="):
            keys[name] = value[1:]
            continue
        name = name.replace(" ", "").lower()
        if name in fields:
            raise ImageError(f'{path}: the field "{name[:40]}" stands twice in the header: remove one')
        fields[name] = value.strip()
    return _Header(fields, keys, file.tell())


def _field(path: Path, header: _Header, name: str) -> str:
    if name not in header.fields:
        raise ImageError(f'{path}: expected a field "{name}" in the header, found none: the header is damaged')
    return header.fields[name]


def _dtype(path: Path, header: _Header) -> np.dtype[np.generic]:
    named = _field(path, header, "type")
    for code, names in _DTYPES.items():
        if named.lower() in names:
            if code.endswith("1"):
                return np.dtype(code)
            order = _field(path, header, "endian").lower()
            if order not in _BYTE_ORDERS:
                raise ImageError(f'{path}: expected endian little or big, got "{order[:40]}": the header is damaged')
            return np.dtype(_BYTE_ORDERS[order] + code)
    raise ImageError(f'{path}: expected integers or floats, got type "{named[:40]}": convert it to greyscale numbers')


def _voxels(path: Path, header: _Header, shape: tuple[int, ...]) -> payload.Mapped | payload.Packed:
    dtype = _dtype(path, header)
    encoding = _field(path, header, "encoding").lower()
    detached = header.fields.get("datafile")
    data = path if detached is None else textheader.data_file(path, detached)
    offset = header.end if detached is None else 0
    skip = textheader.integer(path, "byte skip", header.fields.get("byteskip", "0"))
    if textheader.integer(path, "line skip", header.fields.get("lineskip", "0")) != 0:
        raise ImageError(f"{path}: its voxels begin after skipped lines: save it again without a line skip")
    if encoding == "raw":
        if skip == -1:  # the voxels are the last bytes of the file
            skip = data.stat().st_size - offset - int(np.prod(shape, dtype=object)) * dtype.itemsize
        if skip < 0:
            raise ImageError(f"{path}: expected a byte skip within {data.name}: the file is truncated or damaged")
        return payload.Mapped(data, offset + skip, dtype, shape)
    if skip != 0:
        raise ImageError(f"{path}: expected no byte skip with {encoding[:40]}: save it again without")
    if encoding in ("gzip", "gz"):
        return payload.Packed(data, payload.gzip_stream, payload.DEFLATE, dtype, shape, offset=offset)
    if encoding in ("bzip2", "bz2"):
        return payload.Packed(data, bz2.BZ2File, payload.BZIP2, dtype, shape, offset=offset)
    raise ImageError(f'{path}: expected encoding raw, gzip or bzip2, got "{encoding[:40]}": save it again as gzip')


def _affine(path: Path, header: _Header, listed: bool, axes: int) -> NDArray[np.float64] | None:
    """RAS+ from an anatomical space; any other space states no position of the patient."""
    signs = _TO_RAS.get(header.fields.get("space", "").lower())
    directions = header.fields.get("spacedirections")
    if signs is None or directions is None:
        return None
    # "(1,0,0) (0,1,0) none": a vector per axis in the order of the sizes.
    vectors = re.findall(r"none|\([^()]*\)", directions)[1 if listed else 0 :][:axes]
    affine = np.eye(4)
    if len(vectors) != axes or "none" in vectors:
        raise ImageError(f'{path}: expected {axes} vectors in "space directions": the header is damaged')
    for axis, vector in enumerate(vectors):
        affine[:3, axis] = _vector(path, "space directions", vector)
    if axes == 2:
        affine[:3, 2] = np.cross(affine[:3, 0], affine[:3, 1])  # any third column: the plane index is 0
    affine[:3, 3] = _vector(path, "space origin", header.fields.get("spaceorigin", "(0,0,0)"))
    with np.errstate(invalid="ignore", over="ignore"):
        return np.diag([*signs, 1.0]) @ affine


def _vector(path: Path, field: str, text: str) -> list[float]:
    return textheader.floats(path, field, text.strip("()").replace(",", " "), 3)


def _segments(path: Path, header: _Header, layered: bool) -> tuple[Segment, ...]:
    numbers = {int(match[1]) for key in header.keys if (match := re.fullmatch(r"Segment([0-9]{1,9})_Name", key))}
    return tuple(_segment(path, header, f"Segment{number}_", number if layered else 0) for number in sorted(numbers))


def _segment(path: Path, header: _Header, prefix: str, usual_layer: int) -> Segment:
    # Slicer before 4.11 wrote each segment into a layer of its own, as 0 and 1, and named neither.
    label = textheader.integer(path, prefix + "LabelValue", header.keys.get(prefix + "LabelValue", "1"))
    layer = textheader.integer(path, prefix + "Layer", header.keys.get(prefix + "Layer", str(usual_layer)))
    return Segment(header.keys[prefix + "Name"], label, layer)
