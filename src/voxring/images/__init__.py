"""One reader per format: a file becomes stored integers, slope and intercept, and geometry when the format has it.

A reader is one module with ``read(path) -> Stored`` and one line in ``_READERS``; DICOM's takes the grid too on which
its segments are to be placed, and those of slides what a colour stands for. It is imported on the first file of
its format, because the libraries behind some of them are slow to import. Whatever is wrong with a file is an
:class:`~voxring.errors.ImageError`; what a header declares is held against the bytes of the file before any memory
is taken for it.
"""

import importlib
import os
from pathlib import Path

from voxring.errors import ImageError
from voxring.images import rectangles
from voxring.images.image import Grid, GroundTruth, Image, Segment, check_same_grid
from voxring.images.rectangles import Rectangle, Span
from voxring.images.room import Room
from voxring.images.source import Identity, Source, hashing, identify, together
from voxring.images.stored import GroundTruthFile, ImageFile, Stored, as_image_file, readable
from voxring.study import Colour

__all__ = [
    "Grid",
    "GroundTruth",
    "GroundTruthFile",
    "Image",
    "ImageFile",
    "Rectangle",
    "Room",
    "Segment",
    "Source",
    "Span",
    "check_same_grid",
    "hashing",
    "identify",
    "known_ending",
    "open_ground_truth",
    "open_image",
    "read_ground_truth",
    "read_image",
    "rectangles",
    "together",
]

_READERS = {
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".nrrd": "nrrd",  # .seg.nrrd too
    ".nhdr": "nrrd",
    ".mha": "metaimage",
    ".mhd": "metaimage",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".ome.tif": "tiff",
    ".ome.tiff": "tiff",
    ".svs": "tiff",
    ".bif": "slide",
    ".mrxs": "slide",
    ".ndpi": "slide",
    ".scn": "slide",
    ".svslide": "slide",
    ".vms": "slide",
    ".png": "png",
    ".npy": "npy",
    ".dcm": "dicom",
}


def read_image(path: str | os.PathLike[str], colour: Colour | None = None) -> Image:
    """Read an image with its numbers as the file stores them.

    Parameters
    ----------
    path : str or path
        A file whose name ends in .nii, .nii.gz, .nrrd, .nhdr, .mha, .mhd, .tif, .tiff, .png, .npy or .dcm; a slide,
        .svs, .ndpi, .mrxs, .scn, .bif, .svslide or .vms, of which the finest level is taken; a DICOM file with another
        ending or none; or a folder with the DICOM files of one series.
    colour : {"luminance", "red", "green", "blue"}, optional
        The intensity of an RGB pixel of a TIFF or a slide; without it, RGB is refused.

    Returns
    -------
    Image
        ``voxels`` of shape (rows, cols) or (planes, rows, cols), read-only when they are mapped from the file.

    Raises
    ------
    ImageError
        The file is missing, truncated, corrupt, of another format, or holds something other than one greyscale
        image in 2D or 3D with integers of at most 32 bits or floats.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/ramp.npy", np.arange(6, dtype=np.int16).reshape(2, 3))
    ...     read_image(f"{folder}/ramp.npy").voxels
    array([[0, 1, 2],
           [3, 4, 5]], dtype=int16)
    """
    return open_image(path, colour).read()


def open_image(path: str | os.PathLike[str], colour: Colour | None = None) -> ImageFile:
    """Read the header of an image, so that no more of its voxels are read than are used.

    Parameters and errors as for :func:`read_image`.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/ramp.npy", np.arange(12, dtype=np.int16).reshape(3, 2, 2))
    ...     open_image(f"{folder}/ramp.npy").read(1, 2).voxels
    array([[[4, 5],
            [6, 7]]], dtype=int16)
    """
    return as_image_file(os.fspath(path), *_read(Path(path), None, colour))


def read_ground_truth(path: str | os.PathLike[str], grid: Grid | None = None) -> GroundTruth:
    """Read a ground truth as integer label maps.

    A slope and intercept are applied when they keep integers. Floats are accepted when every one is an integer, since
    many tools write label maps so. A palette image gives its indices.

    Parameters
    ----------
    path : str or path
        As for :func:`read_image`, or a DICOM SEG or RTSTRUCT.
    grid : Grid, optional
        The image's, for SEG and RTSTRUCT, which lie in the patient and are placed on it.

    Returns
    -------
    GroundTruth
        One layer, or as many as segments that overlap need.

    Raises
    ------
    ImageError
        As for :func:`read_image`, or a value is not an integer of at most 32 bits, or segments do not lie on the grid.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/mask.npy", np.array([[0.0, 1.0], [1.0, 2.0]]))
    ...     read_ground_truth(f"{folder}/mask.npy").layers[0]
    array([[0, 1],
           [1, 2]], dtype=uint8)
    """
    return open_ground_truth(path, grid).read()


def open_ground_truth(path: str | os.PathLike[str], grid: Grid | None = None) -> GroundTruthFile:
    """Read the header of a ground truth, so that a large one need not be held whole.

    Parameters and errors as for :func:`read_ground_truth`.
    """
    return GroundTruthFile(os.fspath(path), *_read(Path(path), grid, None))


def _read(path: Path, grid: Grid | None, colour: Colour | None) -> tuple[Stored, Identity]:
    with readable(path):
        if not path.exists():
            raise ImageError(f"{path}: expected an image file, found nothing there: check the path")
        if not path.is_file() and not path.is_dir():
            raise ImageError(f"{path}: expected an image file, found something else: name one file or a DICOM folder")
        identity = identify(path)
        if path.is_file() and identity[1] == 0:
            raise ImageError(f"{path}: expected an image, got an empty file: copy it again from its source")
        name = _reader(path)
        read = importlib.import_module(f"{__name__}.{name}").read
        options = {"dicom": (grid,), "tiff": (colour,), "slide": (colour,)}
        stored: Stored = read(path, *options.get(name, ()))
        return stored, identity


def known_ending(name: str) -> str | None:
    """Return the ending of a file's name if a reader knows it, as in .nii.gz; in lower case."""
    return max((known for known in _READERS if name.lower().endswith(known)), key=len, default=None)


def _reader(path: Path) -> str:
    """Choose by the ending; files from hospitals' archives often have none, or numbers."""
    if path.is_dir():
        return "dicom"
    ending = known_ending(path.name)
    if ending is not None:
        return _READERS[ending]
    with path.open("rb") as file:
        if file.read(132)[128:] == b"DICM":
            return "dicom"
    came = f"the ending {path.suffix}" if path.suffix else "no ending"
    raise ImageError(f"{path}: expected one of {', '.join(_READERS)}, got {came}: convert or rename the file")
