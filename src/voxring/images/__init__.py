"""One reader per format: a file becomes stored integers, slope and intercept, and geometry when the format has it.

A reader is one module with ``read(path) -> Stored`` and one line in ``_READERS``. It is imported on the first file of
its format, because the libraries behind some of them are slow to import. Whatever is wrong with a file is an
:class:`~voxring.errors.ImageError`; what a header declares is held against the bytes of the file before any memory
is taken for it.
"""

import importlib
import os
from collections.abc import Callable
from pathlib import Path

from voxring.errors import ImageError
from voxring.images.image import Grid, GroundTruth, Image, Segment
from voxring.images.room import Room
from voxring.images.source import Identity, Source, identify
from voxring.images.stored import ImageFile, Stored, as_ground_truth, as_image_file, readable

__all__ = [
    "Grid",
    "GroundTruth",
    "Image",
    "ImageFile",
    "Room",
    "Segment",
    "Source",
    "identify",
    "open_image",
    "read_ground_truth",
    "read_image",
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
    ".png": "png",
    ".npy": "npy",
}


def read_image(path: str | os.PathLike[str]) -> Image:
    """Read an image with its numbers as the file stores them.

    Parameters
    ----------
    path : str or path
        A file whose name ends in .nii, .nii.gz, .nrrd, .nhdr, .mha, .mhd, .tif, .tiff, .png or .npy.

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
    return open_image(path).read()


def open_image(path: str | os.PathLike[str]) -> ImageFile:
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
    return as_image_file(os.fspath(path), *_read(Path(path)))


def read_ground_truth(path: str | os.PathLike[str]) -> GroundTruth:
    """Read a ground truth as integer label maps.

    A slope and intercept are applied when they keep integers. Floats are accepted when every one is an integer, since
    many tools write label maps so. A palette image gives its indices.

    Parameters
    ----------
    path : str or path
        As for :func:`read_image`.

    Returns
    -------
    GroundTruth
        One layer, or one per layer of a .seg.nrrd whose segments overlap.

    Raises
    ------
    ImageError
        As for :func:`read_image`, or a value is not an integer of at most 32 bits.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/mask.npy", np.array([[0.0, 1.0], [1.0, 2.0]]))
    ...     read_ground_truth(f"{folder}/mask.npy").layers[0]
    array([[0, 1],
           [1, 2]], dtype=uint8)
    """
    with readable(Path(path)):
        return as_ground_truth(os.fspath(path), *_read(Path(path)))


def _read(path: Path) -> tuple[Stored, Identity]:
    name = path.name.lower()
    ending = max((known for known in _READERS if name.endswith(known)), key=len, default=None)
    if ending is None:
        came = f"the ending {path.suffix}" if path.suffix else "no ending"
        raise ImageError(f"{path}: expected one of {', '.join(_READERS)}, got {came}: convert or rename the file")
    with readable(path):
        if not path.exists():
            raise ImageError(f"{path}: expected an image file, found nothing there: check the path")
        if not path.is_file():
            came = "a folder" if path.is_dir() else "something else"
            raise ImageError(f"{path}: expected an image file, found {came}: name one file")
        identity = identify(path)
        if identity[1] == 0:
            raise ImageError(f"{path}: expected an image, got an empty file: copy it again from its source")
        read: Callable[[Path], Stored] = importlib.import_module(f"{__name__}.{_READERS[ending]}").read
        return read(path), identity
