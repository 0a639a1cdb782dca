"""PNG through Pillow: grey of 1 to 16 bits, and palettes, whose indices can be labels."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL.PngImagePlugin import PngImageFile

from voxring.errors import ImageError
from voxring.images import payload
from voxring.images.stored import Stored

_MAGIC = b"\x89PNG\r\n\x1a\n"
_GREY, _PALETTE = 0, 3
_COLOURS = {2: "RGB", 4: "grey with transparency", 6: "RGB with transparency"}


def read(path: Path) -> Stored:
    """Read a PNG file.

    RGB is refused: it has no one number a voxel, and Pillow cuts 16 bits a channel to 8.
    """
    with path.open("rb") as file:
        start = file.read(26)
    if not start.startswith(_MAGIC) or len(start) < 26:
        raise ImageError(f"{path}: expected a PNG file, got something else: check that the file is what it is named")
    columns, rows, bits, colour = struct.unpack(">IIBB", start[16:])
    if colour not in (_GREY, _PALETTE):
        raise ImageError(
            f"{path}: expected greyscale, got {_COLOURS.get(colour, 'an unknown colour type')}: "
            "save one channel as greyscale"
        )
    shape = payload.array_shape(path, (columns, rows))
    if columns * rows * bits // 8 > payload.DEFLATE * path.stat().st_size:
        raise ImageError(
            f"{path}: the header declares more pixels than the file can hold: copy it again from its source"
        )
    try:
        # Not Image.open, which would load every plug-in and refuse images of more than 179 million pixels.
        with PngImageFile(path) as image:
            if getattr(image, "is_animated", False):
                raise ImageError(f"{path}: expected one image, got an animation: save one file per image")
            pixels = np.array(image)
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error) as error:
        raise ImageError(f"{path}: the PNG is truncated or corrupt ({error}): copy it again from its source") from error
    if pixels.shape != shape:
        raise ImageError(f"{path}: expected pixels of shape {shape}, got {pixels.shape}: save it again as greyscale")
    if bits == 16:
        pixels = pixels.astype(np.uint16)  # Pillow before 12 hands out 32 bits
    elif colour == _GREY and bits in (2, 4):
        pixels = pixels // (255 // (2**bits - 1))  # Pillow spreads them over 0-255; this is exact
    return Stored((pixels,), palette=colour == _PALETTE)
