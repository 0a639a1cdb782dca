"""Whole-slide images through OpenSlide, from the formats of scanners that only it reads; their finest level."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from voxring.errors import ImageError
from voxring.images import colour as colours
from voxring.images.rectangles import Span
from voxring.images.source import Source, identify
from voxring.images.stored import Stored
from voxring.study import Colour

if TYPE_CHECKING:
    import openslide

_SIDE = 1024
_WHITE = "FFFFFF"


def read(path: Path, colour: Colour | None = None) -> Stored:
    """Read the header of a slide."""
    try:
        import openslide
    except ImportError as error:
        raise ImageError(
            f"{path}: OpenSlide, which reads this format, is missing: pip install 'voxring[slides]'"
        ) from error
    try:
        slide = openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        raise ImageError(
            f"{path}: expected a slide that OpenSlide reads, got something else or damage: {error}"
        ) from error
    level = Level(path, slide, colours.chosen(path, colour))
    return Stored((level,), sources=level.beside)


class Level:
    """The finest level of a slide."""

    def __init__(self, path: Path, slide: openslide.OpenSlide, colour: Colour) -> None:
        self.path, self.identity, self.offset = path, identify(path), 0
        self.shape: tuple[int, ...] = slide.dimensions[::-1]
        self.dtype: np.dtype[np.generic] = np.dtype(np.uint8)
        self.block = _SIDE, _SIDE
        self.headers = ((0, self.identity[1]),)
        self._slide, self._colour = slide, colour
        background = slide.properties.get("openslide.background-color", _WHITE)
        self._background = np.frombuffer(bytes.fromhex(background), np.uint8)
        folder = path.with_suffix("")  # where MIRAX keeps the pixels
        beside = sorted(folder.iterdir()) if folder.is_dir() else []
        self.beside = tuple(Source.whole(file, identify(file)) for file in beside if file.is_file())

    def read(self, first: int, stop: int) -> tuple[NDArray[np.generic], Source]:
        """Return rows ``first`` to ``stop``."""
        return self.read_block((first, stop), (0, self.shape[1]))

    def read_block(self, rows: Span, columns: Span) -> tuple[NDArray[np.generic], Source]:
        """Return a rectangle; the whole file counts as read, since OpenSlide does not say what it looks at."""
        pixels = np.empty((rows[1] - rows[0], columns[1] - columns[0]), self.dtype)
        for y in range(*rows, _SIDE):
            for x in range(*columns, _SIDE):
                part = self._region(x, y, min(_SIDE, columns[1] - x), min(_SIDE, rows[1] - y))
                pixels[y - rows[0] : y - rows[0] + part.shape[0], x - columns[0] : x - columns[0] + part.shape[1]] = (
                    part
                )
        return pixels, Source.whole(self.path, self.identity)

    def _region(self, x: int, y: int, wide: int, high: int) -> NDArray[np.unsignedinteger]:
        """Intensities; what the scanner left out, which is transparent, has the background's colour."""
        import openslide

        try:
            region = np.asarray(self._slide.read_region((x, y), 0, (wide, high)))
        except openslide.OpenSlideError as error:
            raise ImageError(f"{self.path}: OpenSlide cannot read its pixels ({error}): copy it again") from error
        seen = np.where(region[..., 3:] == 255, region[..., :3], self._background)
        return colours.intensities(seen, self._colour)
