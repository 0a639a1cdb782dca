"""PNG pictures inside a page."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
import numpy.typing as npt


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return a picture as a PNG file.

    Parameters
    ----------
    pixels : (rows, cols) or (rows, cols, 3) array of uint8
        Grey, or red, green and blue.

    Examples
    --------
    >>> png(np.zeros((2, 3), np.uint8))[:4]
    b'\\x89PNG'
    """
    rows, columns = pixels.shape[:2]
    colour = 0 if pixels.ndim == 2 else 2
    lines = pixels.reshape(rows, -1)
    # Each line begins with its filter: 2, the difference to the line above.
    above = np.vstack([np.zeros_like(lines[:1]), lines[:-1]])
    filtered = np.hstack([np.full((rows, 1), 2, np.uint8), lines - above])

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", columns, rows, 8, colour, 0, 0, 0)
    packed = zlib.compress(filtered.tobytes(), 6)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def address(pixels: npt.NDArray[np.uint8]) -> str:
    """Return the address of a picture that stands in the page itself."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"
