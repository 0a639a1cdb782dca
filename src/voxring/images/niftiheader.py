"""The headers of NIfTI-1 and NIfTI-2: fields, types of voxels, and where the grid lies.

They are a few hundred bytes at fixed places. nibabel, against which the tests hold this, takes longer to import than a
whole image takes to be reduced, and more where it finds pydicom.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Header = Any  # a numpy record of FIELDS

FIELDS = {
    348: """sizeof_hdr i4, data_type S10, db_name S18, extents i4, session_error i2, regular S1, dim_info u1, dim 8i2,
        intent_p1 f4, intent_p2 f4, intent_p3 f4, intent_code i2, datatype i2, bitpix i2, slice_start i2, pixdim 8f4,
        vox_offset f4, scl_slope f4, scl_inter f4, slice_end i2, slice_code u1, xyzt_units u1, cal_max f4, cal_min f4,
        slice_duration f4, toffset f4, glmax i4, glmin i4, descrip S80, aux_file S24, qform_code i2, sform_code i2,
        quatern 3f4, qoffset 3f4, srow_x 4f4, srow_y 4f4, srow_z 4f4, intent_name S16, magic S4""",
    540: """sizeof_hdr i4, magic S8, datatype i2, bitpix i2, dim 8i8, intent_p1 f8, intent_p2 f8, intent_p3 f8,
        pixdim 8f8, vox_offset i8, scl_slope f8, scl_inter f8, cal_max f8, cal_min f8, slice_duration f8, toffset f8,
        slice_start i8, slice_end i8, descrip S80, aux_file S24, qform_code i4, sform_code i4, quatern 3f8,
        qoffset 3f8, srow_x 4f8, srow_y 4f8, srow_z 4f8, slice_code i4, xyzt_units i4, intent_code i4,
        intent_name S16, dim_info u1, unused_str S15""",
}
"""By the header's own size, its first field. Each is its version's layout, byte for byte."""

DTYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    32: "c8",
    64: "f8",
    128: "3u1",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
    1792: "c16",
    2304: "4u1",
}
"""By ``datatype``. Bits, and floats of 128 of them, have no type here."""

MILLIMETRES = {1: 1000.0, 2: 1.0, 3: 0.001}
"""By ``xyzt_units``: metres, millimetres, micrometres."""


def header_of(start: bytes, size: int, order: str) -> Header:
    """The header that the first ``size`` bytes of a file are, to be changed at will."""
    return np.frombuffer(start[:size], _layout(size, order)).copy()[0]


@lru_cache(maxsize=4)
def _layout(size: int, order: str) -> np.dtype[np.void]:
    fields = [field.split() for field in FIELDS[size].split(",")]
    return np.dtype([(name, order + kind) for name, kind in fields])


def new_header() -> Header:
    """A header of NIfTI-1 that says nothing of its voxels."""
    header = np.zeros(1, _layout(348, "="))[0]
    header["sizeof_hdr"], header["magic"] = 348, b"n+1"
    header["dim"], header["pixdim"] = 1, 1
    return header


def dtype_of(header: Header) -> np.dtype[np.generic] | None:
    """The type of the voxels, in the file's byte order; None where there is none."""
    name = DTYPES.get(int(header["datatype"]))
    return None if name is None else np.dtype(name).newbyteorder(header["dim"].dtype.byteorder)


def set_dtype(header: Header, dtype: np.dtype[np.generic]) -> None:
    """Say of which type the voxels are."""
    header["datatype"] = next(code for code, name in DTYPES.items() if name == dtype.str[1:])
    header["bitpix"] = 8 * dtype.itemsize


def affine_of(header: Header) -> NDArray[np.float64] | None:
    """From voxel to place, in the header's unit: the sform, or else the qform. None where the file states neither.

    Raises
    ------
    ValueError
        The qform is no rotation.
    """
    affine = np.eye(4)
    if header["sform_code"]:
        affine[:3] = header["srow_x"], header["srow_y"], header["srow_z"]
        return affine
    if not header["qform_code"]:
        return None
    spacing = header["pixdim"][1:4].copy()
    turned = header["pixdim"][0]
    if (spacing < 0).any() or turned not in (-1, 1):
        raise ValueError("pixdim: expected 1 or -1, then spacings above 0")
    spacing[2] *= turned
    b, c, d = header["quatern"].astype(np.longdouble)
    rest = 1 - (b * b + c * c + d * d)
    if abs(rest) < 3 * np.finfo(header["quatern"].dtype).eps:  # half a turn, of whatever sign rounding made it
        rest = np.longdouble(0)
    if not rest >= 0:
        raise ValueError("the quaternion is longer than 1")
    a = np.sqrt(rest)
    twice = 2 / (a * a + b * b + c * c + d * d)
    rotation = np.eye(3, dtype=np.longdouble) - twice * np.array(
        [
            [c * c + d * d, a * d - b * c, -a * c - b * d],
            [-a * d - b * c, b * b + d * d, a * b - c * d],
            [a * c - b * d, -a * b - c * d, b * b + c * c],
        ]
    )
    affine[:3, :3], affine[:3, 3] = rotation * spacing, header["qoffset"]
    return affine
