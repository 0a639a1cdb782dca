"""NIfTI-1 and NIfTI-2 in one file, .nii or .nii.gz.

The voxels are mapped (.nii) or inflated straight into their array (.nii.gz), as far as they are needed, and stay the
stored integers.
"""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxring.errors import ImageError
from voxring.images import payload
from voxring.images.image import Grid
from voxring.images.niftiheader import MILLIMETRES, affine_of, dtype_of, header_of, new_header, set_dtype
from voxring.images.plan import Plan
from voxring.images.stored import Stored

# By the header's own size, its first field: the magic and where it stands, and where voxels may begin.
_VERSIONS: dict[int, tuple[bytes, int, int]] = {
    348: (b"n+1\0", 344, 352),
    540: (b"n+2\0\r\n\x1a\n", 4, 544),
}
_LONGEST_HEADER = 540
_FEW = 4096  # bytes of a compressed file, of which one read or two hold the header
_GZIP_MAGIC = b"\x1f\x8b"


def read(path: Path) -> Stored:
    """Read a NIfTI file."""
    header, compressed = _opened(path)
    offset, (dtype, shape) = _offset(path, header), _layout(path, header)
    if not compressed:
        return _stored(path, header, payload.Mapped(path, offset, dtype, shape))
    voxels = payload.Packed(path, payload.gzip_stream, payload.DEFLATE, dtype, shape, header=offset)
    return _stored(path, header, voxels)


def plan_like(path: Path, dtype: np.dtype[np.generic]) -> Plan:
    """Plan a map on the grid of a file: its header with the geometry as it stands, and none of its texts."""
    header, compressed = _opened(path)
    return _plan(header, dtype, compressed)


def plan_on(grid: Grid, dtype: np.dtype[np.generic]) -> Plan:
    """Plan a compressed map on a grid with a place in the patient, for formats that hold no floats."""
    header = new_header()
    header["dim"][: len(grid.shape) + 1] = len(grid.shape), *grid.shape[::-1]
    header["xyzt_units"] = 2  # millimetres
    header["sform_code"] = 1  # in the scanner's coordinates
    header["srow_x"], header["srow_y"], header["srow_z"] = grid.affine[:3]  # type: ignore[index]  # as below
    # Readers that look at the spacings alone find them there.
    header["pixdim"][1:4] = np.linalg.norm(grid.affine[:3, :3], axis=0)  # type: ignore[index]  # the caller has looked
    return _plan(header, dtype, compressed=True)


def _plan(header: Any, dtype: np.dtype[np.generic], compressed: bool) -> Plan:
    stored = dtype.newbyteorder(header["dim"].dtype.byteorder)
    set_dtype(header, stored)
    header["vox_offset"] = _VERSIONS[int(header["sizeof_hdr"])][2]
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["cal_max"] = header["cal_min"] = 0  # the display range of the image
    header["intent_code"] = 0
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        if field in header.dtype.names:
            header[field] = b""
    start = header.tobytes() + bytes(4)  # no extensions follow
    return Plan(start, stored, "whole" if compressed else "none")


def _opened(path: Path) -> tuple[Any, bool]:
    """Return the header, and whether the file is compressed."""
    with path.open("rb") as file:
        start = file.read(_LONGEST_HEADER)
    compressed = start.startswith(_GZIP_MAGIC)
    if compressed != path.name.lower().endswith(".gz"):
        right = "compressed, name it .nii.gz" if compressed else "not compressed, name it .nii"
        raise ImageError(f"{path}: the file's ending and content differ: it is {right}")
    if compressed:
        with (
            path.open("rb") as file,
            payload.corruption(path),
            closing(payload.gzip_stream(file, _FEW)) as stream,
        ):
            start = payload.start_of(stream, _LONGEST_HEADER)
    return _header(path, start), compressed


def _header(path: Path, start: bytes) -> Any:
    for order in ("<", ">"):
        size = int(np.frombuffer(start[:4].ljust(4, b"\0"), order + "i4")[0])
        if size not in _VERSIONS:
            continue
        magic, at, _ = _VERSIONS[size]
        if len(start) < size:
            raise ImageError(f"{path}: expected a header of {size} bytes, got {len(start)}: the file is truncated")
        if start[at : at + len(magic)] != magic:
            raise ImageError(
                f"{path}: expected a NIfTI file that holds header and voxels, got something else (an ANALYZE file or "
                "a .hdr/.img pair?): convert it to .nii.gz"
            )
        return header_of(start, size, order)
    raise ImageError(f"{path}: expected a NIfTI header, got something else: check that the file is what it is named")


def _offset(path: Path, header: Any) -> int:
    offset, first = float(header["vox_offset"]), _VERSIONS[int(header["sizeof_hdr"])][2]
    if not (first <= offset < 2**62 and offset.is_integer()):
        raise ImageError(f"{path}: expected voxels at byte {first} or later, got {offset}: the header is damaged")
    return int(offset)


def _layout(path: Path, header: Any) -> tuple[np.dtype[np.generic], tuple[int, ...]]:
    axes = int(header["dim"][0])
    if not 1 <= axes <= 7:
        raise ImageError(f"{path}: expected 1 to 7 axes, got {axes}: the header is damaged")
    dtype = dtype_of(header)
    if dtype is None:
        raise ImageError(
            f"{path}: expected integers or floats, got data type {int(header['datatype'])}: convert it, or copy it "
            "again if the header is damaged"
        )
    shape = payload.array_shape(path, [int(size) for size in header["dim"][1 : axes + 1]])
    return payload.checked_dtype(path, dtype), shape


def _stored(path: Path, header: Any, voxels: payload.Mapped | payload.Packed) -> Stored:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):  # the standard's way to say that there is no scaling
        slope, intercept = 1.0, 0.0
    if not np.isfinite([slope, intercept]).all():
        raise ImageError(f"{path}: expected a finite slope and intercept, got {slope} and {intercept}: set them anew")
    return Stored((voxels,), _affine(path, header), slope, intercept)


def _affine(path: Path, header: Any) -> NDArray[np.float64] | None:
    """Prefer the sform; without a qform either, the file states no position."""
    scale = MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)
    with np.errstate(over="ignore", invalid="ignore"):  # judged below
        try:
            affine = affine_of(header)
        except ValueError as error:
            raise ImageError(f"{path}: the qform is no rotation ({error}): set the header's geometry anew") from error
        if affine is None:
            return None
        placed: NDArray[np.float64] = np.diag([scale, scale, scale, 1.0]) @ affine
    if not np.isfinite(placed).all():
        raise ImageError(f"{path}: expected finite positions, got NaN or infinity: set the header's geometry anew")
    return placed
