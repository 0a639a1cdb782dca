"""MetaImage, ITK's own format: .mha, or .mhd with its voxels in another file.

The header is read here, so that ITK need not be installed. Format: https://itk.org/Wiki/ITK/MetaIO/Documentation.
"""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from voxring.errors import ImageError
from voxring.images import payload, textheader
from voxring.images.plan import Plan
from voxring.images.stored import Stored

_LINE_LIMIT = 1 << 16
_LINES_LIMIT = 1 << 12
_DTYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",  # 4 bytes in a file, whatever the machine
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_GEOMETRY = (
    "NDims", "DimSize", "TransformMatrix", "Offset", "CenterOfRotation", "AnatomicalOrientation", "ElementSpacing",
)  # fmt: skip
# Names that MetaIO takes for one another.
_ALIASES = {
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
    "Position": "Offset",
    "Origin": "Offset",
    "Rotation": "TransformMatrix",
    "Orientation": "TransformMatrix",
    "ElementSize": "ElementSpacing",
}


def read(path: Path) -> Stored:
    """Read a MetaImage file."""
    with path.open("rb") as file:
        fields = _fields(path, file)
        end = file.tell()
    axes = textheader.integer(path, "NDims", _field(path, fields, "NDims"))
    sizes = textheader.integers(path, "DimSize", _field(path, fields, "DimSize"))
    if axes != len(sizes):
        raise ImageError(f"{path}: its NDims and its {len(sizes)} sizes differ: the header is damaged")
    channels = textheader.integer(path, "ElementNumberOfChannels", fields.get("ElementNumberOfChannels", "1"))
    if channels != 1:
        raise ImageError(f"{path}: expected one channel, got {channels}: convert it to one greyscale channel")
    if not _flag(path, fields, "BinaryData", "True"):
        raise ImageError(f"{path}: its voxels are written as text: save it again as binary")
    shape = payload.array_shape(path, sizes)
    return Stored((_voxels(path, fields, end, shape),), _affine(path, fields, axes))


def plan_like(path: Path, dtype: np.dtype[np.generic]) -> Plan:
    """Plan a map on the grid of a file: its geometry word for word."""
    with path.open("rb") as file:
        fields = _fields(path, file)
    named = next(name for name, code in _DTYPES.items() if code == dtype.str[1:])
    lines = ["ObjectType = Image", *(f"{name} = {fields[name]}" for name in _GEOMETRY if name in fields)]
    lines += ["BinaryData = True", "BinaryDataByteOrderMSB = False", "CompressedData = False"]
    lines += [f"ElementType = {named}", "ElementDataFile = LOCAL", ""]
    return Plan("\n".join(lines).encode(), dtype.newbyteorder("<"), "none")


def _fields(path: Path, file: BinaryIO) -> dict[str, str]:
    fields: dict[str, str] = {}
    while len(fields) < _LINES_LIMIT and (line := file.readline(_LINE_LIMIT)):
        name, equals, value = line.decode("utf-8", "replace").partition("=")
        name = name.strip()
        if not equals:
            break
        fields[_ALIASES.get(name, name)] = value.strip()
        if name == "ElementDataFile":  # always the last
            return fields
    raise ImageError(f"{path}: expected a header that ends in ElementDataFile, got something else: is it a MetaImage?")


def _field(path: Path, fields: dict[str, str], name: str) -> str:
    if name not in fields:
        raise ImageError(f"{path}: expected {name} in the header, found none: the header is damaged")
    return fields[name]


def _flag(path: Path, fields: dict[str, str], name: str, default: str) -> bool:
    value = fields.get(name, default)
    if value.lower() not in ("true", "false"):
        raise ImageError(f'{path}: expected True or False in {name}, got "{value[:40]}": the header is damaged')
    return value.lower() == "true"


def _voxels(path: Path, fields: dict[str, str], end: int, shape: tuple[int, ...]) -> payload.Mapped | payload.Packed:
    named = _field(path, fields, "ElementType")
    if named not in _DTYPES:
        raise ImageError(
            f'{path}: expected integers or floats, got ElementType "{named[:40]}": convert it to one greyscale channel'
        )
    dtype: np.dtype[np.generic] = np.dtype(_DTYPES[named])
    dtype = dtype.newbyteorder(">" if _flag(path, fields, "BinaryDataByteOrderMSB", "False") else "<")
    where = fields["ElementDataFile"]
    attached = where.upper() == "LOCAL"
    data = path if attached else textheader.data_file(path, where)
    compressed = _flag(path, fields, "CompressedData", "False")
    skip = textheader.integer(path, "HeaderSize", fields.get("HeaderSize", "0"))
    offset = end if attached else 0
    if skip == -1 and not compressed:  # the voxels are the last bytes of the file
        skip = data.stat().st_size - offset - int(np.prod(shape, dtype=object)) * dtype.itemsize
    if skip < 0:
        raise ImageError(f"{path}: expected a HeaderSize within {data.name}: the file is truncated or damaged")
    offset += skip
    if not compressed:
        return payload.Mapped(data, offset, dtype, shape)
    return payload.Packed(data, payload.ZlibStream, payload.DEFLATE, dtype, shape, offset=offset)


def _affine(path: Path, fields: dict[str, str], axes: int) -> NDArray[np.float64] | None:
    """RAS+ from the file's LPS; None when the header states no position."""
    if not {"Offset", "TransformMatrix", "ElementSpacing"} & fields.keys():
        return None
    identity = " ".join("1" if row == column else "0" for row in range(axes) for column in range(axes))
    matrix = textheader.floats(path, "TransformMatrix", fields.get("TransformMatrix", identity), axes * axes)
    spacing = textheader.floats(path, "ElementSpacing", fields.get("ElementSpacing", "1 " * axes), axes)
    offset = textheader.floats(path, "Offset", fields.get("Offset", "0 " * axes), axes)
    used = min(axes, 3)  # axes past the third have one voxel
    affine = np.eye(4)
    # A row of the file's matrix is the direction of an axis, so a column of the affine.
    directions = np.reshape(matrix, (axes, axes))[:used, :used].T
    with np.errstate(over="ignore"):
        affine[:used, :used] = directions * spacing[:used]
    affine[:used, 3] = offset[:used]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
