"""Maps of an image, written in its format and on its grid: labels as integers, probabilities as 32-bit floats.

The geometry is taken from the image's own header as it stands there, word for word or byte for byte, so that nothing
is lost in a conversion; of its texts nothing is, since they may name a patient. A DICOM series gets its labels as a
DICOM SEG, which names the patient and the study as the series does, and its probabilities as NIfTI. PNG and TIFF get
TIFF. A file appears under its name when it is whole, and takes the place of another only when told to.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from isal import igzip
from numpy.typing import NDArray

from voxring.errors import ImageError
from voxring.images import dicom, known_ending, metaimage, nifti, nrrd
from voxring.images.image import Grid, Segment
from voxring.images.plan import Plan

_DTYPES = ("u1", "u2", "f4")
_SUFFIXES = {".nii": ".nii", ".nii.gz": ".nii.gz", ".nrrd": ".nrrd", ".nhdr": ".nrrd", ".mha": ".mha", ".mhd": ".mha"}


class Planes(Protocol):
    """A map that is being written."""

    def write(self, planes: NDArray[Any], /) -> None:
        """Append planes, or the one image of a map in 2D."""


@contextmanager
def map_writer(
    stem: Path,
    image: Path,
    grid: Grid,
    dtype: str | type[np.generic] | np.dtype[np.generic],
    *,
    segments: Sequence[Segment] = (),
    force: bool = False,
) -> Iterator[Planes]:
    """Write a map on the grid of an image, plane after plane; it appears when the block ends without an error.

    Parameters
    ----------
    stem : path
        Of the file, without the ending: `map_path` says which it gets.
    image : path
        The image, whose format and geometry the map takes.
    grid : Grid
        Of the image, as its reader gave it.
    dtype : uint8, uint16 or float32
        Of the voxels. Integers are labels.
    segments : sequence of Segment
        What the labels are called, for formats that say so. A DICOM SEG needs them: label ``segments[i].label``
        becomes segment i + 1.
    force : bool
        Take the place of a file that is there.

    Raises
    ------
    ImageError
        There is a file and ``force`` is not set, the disk is full or may not be written to, or planes do not fit; or
        the map is a DICOM SEG, and highdicom is not installed or the series lacks what a SEG repeats.

    Examples
    --------
    >>> import tempfile
    >>> from voxring.images import read_image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     image = Path(folder, "ct.npy")
    ...     np.save(image, np.zeros((3, 2, 2), np.int16))
    ...     with map_writer(Path(folder, "ct_labels"), image, Grid((3, 2, 2)), "u1") as labels:
    ...         for plane in range(3):
    ...             labels.write(np.full((1, 2, 2), plane, np.uint8))
    ...     read_image(f"{folder}/ct_labels.npy").voxels[:, 0, 0]
    array([0, 1, 2], dtype=uint8)
    """
    checked = np.dtype(dtype)
    if checked.str[1:] not in _DTYPES:
        raise ImageError(f"{stem}: expected a map of uint8, uint16 or float32, got {checked}: convert it")
    out = map_path(stem, image, grid, checked, named=bool(segments))
    if out.exists() and not force:
        raise ImageError(f"{out}: there is a file already, and it is kept: write elsewhere, or use --force")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with ExitStack() as stack:
            counted = _Counted(out, _opened(stack, partial, out, image, grid, checked, segments), grid, checked)
            yield counted
            counted.check_whole()
        if out.exists() and not force:
            raise ImageError(f"{out}: a file came there meanwhile, and it is kept: write elsewhere, or use --force")
        partial.replace(out)
    except OSError as error:
        raise ImageError(
            f"{out}: cannot be written ({error.strerror or error}): check the disk and permissions"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def map_path(stem: Path, image: Path, grid: Grid, dtype: np.dtype[Any] | type[np.generic], *, named: bool) -> Path:
    """Return the name that a map gets, with the ending of its format."""
    return stem.with_name(stem.name + _ending(image, grid, np.dtype(dtype), named))


def _ending(image: Path, grid: Grid, dtype: np.dtype[Any], named: bool) -> str:
    ending = None if image.is_dir() else known_ending(image.name)
    if ending in (".png", ".tif", ".tiff"):
        return ".tif"
    if ending == ".npy":
        return ".npy"
    if ending is None or ending == ".dcm":
        if grid.affine is None:  # a radiograph: nothing says where it lies
            return ".tif"
        return ".nii.gz" if dtype.kind == "f" else ".dcm"
    if named and ending in (".nrrd", ".nhdr"):
        return ".seg.nrrd"
    return _SUFFIXES[ending]


def _opened(
    stack: ExitStack,
    partial: Path,
    out: Path,
    image: Path,
    grid: Grid,
    dtype: np.dtype[np.generic],
    segments: Sequence[Segment],
) -> Planes:
    if out.name.endswith(".tif"):
        return stack.enter_context(_Tiff.opened(partial, grid, dtype))
    if out.name.endswith(".dcm"):
        from voxring.images import dicomseg

        return stack.enter_context(dicomseg.opened(partial, image, dicom.ordered_frames(image), segments))
    return stack.enter_context(_Raw.opened(partial, _plan(image, grid, dtype, segments)))


def _plan(image: Path, grid: Grid, dtype: np.dtype[np.generic], segments: Sequence[Segment]) -> Plan:
    ending = "" if image.is_dir() else known_ending(image.name)
    if ending in (".nii", ".nii.gz"):
        return nifti.plan_like(image, dtype)
    if ending in (".nrrd", ".nhdr"):
        return nrrd.plan_like(image, dtype, segments)
    if ending in (".mha", ".mhd"):
        return metaimage.plan_like(image, dtype)
    if ending == ".npy":
        return _npy_plan(grid, dtype)
    return nifti.plan_on(grid, dtype)


def _npy_plan(grid: Grid, dtype: np.dtype[np.generic]) -> Plan:
    import io

    header = io.BytesIO()
    stored = dtype.newbyteorder("<")
    np.lib.format.write_array_header_1_0(header, {"descr": stored.str, "fortran_order": False, "shape": grid.shape})
    return Plan(header.getvalue(), stored, "none")


class _Counted:
    """Holds what is written against the grid, whatever the format."""

    def __init__(self, out: Path, inner: Planes, grid: Grid, dtype: np.dtype[np.generic]) -> None:
        self._out, self._inner, self._dtype = out, inner, dtype
        self._shape = (1, *grid.shape)[-3:]
        self._done = 0

    def write(self, planes: NDArray[Any]) -> None:
        """Append planes."""
        volume = planes.reshape(1, *planes.shape) if planes.ndim == 2 else planes
        if volume.dtype != self._dtype or volume.shape[1:] != self._shape[1:]:
            raise ImageError(
                f"{self._out}: expected planes of {self._shape[1:]}, {self._dtype}, got {volume.shape[1:]}, "
                f"{volume.dtype}"
            )
        self._done += len(volume)
        self._inner.write(np.ascontiguousarray(volume))

    def check_whole(self) -> None:
        """Refuse a map of more or fewer planes than the image has."""
        if self._done != self._shape[0]:
            raise ImageError(f"{self._out}: expected {self._shape[0]} planes, got {self._done}: it was not written")


class _Raw:
    """A header, then voxels; compressed or not."""

    def __init__(self, file: Any, dtype: np.dtype[np.generic]) -> None:
        self._file, self._dtype = file, dtype

    @classmethod
    @contextmanager
    def opened(cls, path: Path, plan: Plan) -> Iterator[_Raw]:
        with path.open("wb") as file:
            if plan.gzip == "none":
                file.write(plan.header)
                yield cls(file, plan.dtype)
                return
            if plan.gzip == "voxels":
                file.write(plan.header)
            # Neither the time nor the name of the file: the same map is the same bytes.
            with igzip.IGzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:  # type: ignore[no-untyped-call]
                if plan.gzip == "whole":
                    packed.write(plan.header)  # type: ignore[no-untyped-call]
                yield cls(packed, plan.dtype)

    def write(self, planes: NDArray[Any]) -> None:
        self._file.write(planes.astype(self._dtype, copy=False).reshape(-1).view(np.uint8))


class _Tiff:
    """A page for each plane."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    @classmethod
    @contextmanager
    def opened(cls, path: Path, grid: Grid, dtype: np.dtype[np.generic]) -> Iterator[_Tiff]:
        from tifffile import TiffWriter

        length = int(np.prod(grid.shape, dtype=object)) * dtype.itemsize
        with TiffWriter(path, bigtiff=length > 2**31) as writer:
            yield cls(writer)

    def write(self, planes: NDArray[Any]) -> None:
        for plane in planes:
            self._writer.write(plane, photometric="minisblack", metadata=None, compression="zlib")
