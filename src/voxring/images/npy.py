"""NumPy arrays, .npy. The axes are the array's own, (planes,) rows, columns, whichever lies fastest in the file."""

import tokenize
from pathlib import Path

import numpy as np

from voxring.errors import ImageError
from voxring.images import payload
from voxring.images.stored import Stored

_MAGIC = b"\x93NUMPY"


def read(path: Path) -> Stored:
    """Read a .npy file."""
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ImageError(f"{path}: expected a NumPy array, got something else: write it with numpy.save")
    try:
        # Mapped, so nothing is allocated; numpy checks the declared size against the file.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OverflowError, TypeError, EOFError, SyntaxError, tokenize.TokenError) as error:
        raise ImageError(f"{path}: expected a whole NumPy array without objects: {error}: save it again") from error
    payload.checked_dtype(path, array.dtype)
    payload.array_shape(path, array.shape[::-1])
    return Stored((array,))
