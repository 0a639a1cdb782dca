"""Segments that may overlap, as few label maps: each segment stands whole in the first one where it covers nothing."""

from collections.abc import Iterable
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from voxring.errors import ImageError
from voxring.images.image import Grid, Segment
from voxring.images.stored import Stored, smallest_dtype

# Where a plane lies in a volume: an index into it, and the mask of what the segment covers there.
Plane = tuple[tuple[int | slice, ...], NDArray[np.bool_]]


def to_voxels(name: str, grid: Grid) -> NDArray[np.float64]:
    """Return the (3, 4) matrix from RAS+ to (column, row, plane), or refuse; ``name`` begins messages."""
    if grid.affine is None:
        raise ImageError(
            f"{name}: its segments are placed in the patient, and the image states no position: use an image format "
            "that does, such as the DICOM series itself"
        )
    inverse: NDArray[np.float64] = np.full((3, 4), np.nan)
    with suppress(np.linalg.LinAlgError):
        inverse[...] = np.linalg.inv(grid.affine)[:3]
    if not np.isfinite(inverse).all():
        raise ImageError(f"{name}: the image's voxels have no extent in space: correct its header")
    return inverse


class Layers:
    """Label maps on a grid, to which segments are added one by one."""

    def __init__(self, name: str, grid: Grid, labels: Iterable[int]) -> None:
        numbers = [0, *labels]
        if len(set(numbers)) != len(numbers):
            raise ImageError(f"{name}: expected segments with numbers of their own, other than 0: number them anew")
        self._grid = grid
        self._shape = (1, *grid.shape)[-3:]
        self._dtype = smallest_dtype(name, min(numbers), max(numbers))
        self._maps: list[NDArray[np.integer]] = [np.zeros(self._shape, self._dtype)]
        self._segments: list[Segment] = []

    def add(self, name: str, label: int, planes: list[Plane]) -> None:
        """Add a segment, whose planes do not share a voxel."""
        free = (
            number
            for number, layer in enumerate(self._maps)
            if not any(layer[place][mask].any() for place, mask in planes)
        )
        at = next(free, len(self._maps))
        if at == len(self._maps):
            self._maps.append(np.zeros(self._shape, self._dtype))
        for place, mask in planes:
            self._maps[at][place][mask] = label
        self._segments.append(Segment(name, label, at))

    def stored(self) -> Stored:
        """Return the maps as what a file holds."""
        maps = tuple(layer.reshape(self._grid.shape) for layer in self._maps)
        return Stored(maps, self._grid.affine, segments=tuple(self._segments))
