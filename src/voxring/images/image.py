"""What a reader hands on: an image or a ground truth, and the grid that both must share."""

import itertools
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from voxring.errors import ImageError
from voxring.images.source import Source

_TOLERANCE = 1e-3  # of a voxel
_AXES = ("columns", "rows", "planes")


# eq=False here and below: comparing arrays field by field has no truth value; Grid.difference is the comparison.
@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Where the voxels of an image lie.

    Parameters
    ----------
    shape : tuple of int
        (rows, cols) or (planes, rows, cols), as the array's.
    affine : (4, 4) float64 array or None
        Maps (column, row, plane, 1) indices to millimetres in RAS+ (towards the patient's right, front and head), as
        NIfTI. None when the file states no position.

    Examples
    --------
    >>> Grid((2, 3)).difference(Grid((2, 4)))
    'shape (2, 3) against (2, 4)'
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64] | None = None

    def difference(self, other: "Grid") -> str | None:
        """Say how another grid differs from this one.

        Two grids are the same when their shapes are equal and every corner of one lies within 1e-3 of a voxel, plus
        what a float32 header can lose, of the same corner of the other. A grid with no geometry matches any of equal
        shape.

        Parameters
        ----------
        other : Grid
            The grid to hold against this one.

        Returns
        -------
        str or None
            A phrase such as ``origin differs by 3.1 mm``, or None when the grids are the same.

        Examples
        --------
        >>> moved = np.eye(4)
        >>> moved[0, 3] = 3.1
        >>> Grid((2, 3), np.eye(4)).difference(Grid((2, 3), moved))
        'origin differs by 3.1 mm'
        """
        if self.shape != other.shape:
            return f"shape {self.shape} against {other.shape}"
        if self.affine is None or other.affine is None:
            return None
        with np.errstate(over="ignore", invalid="ignore"):  # absurd numbers differ, they do not warn
            return self._displacement(self.affine, other.affine)

    def _displacement(self, one: NDArray[np.float64], two: NDArray[np.float64]) -> str | None:
        lengths = self.shape[::-1]
        steps = one[:3, : len(lengths)], two[:3, : len(lengths)]
        spacings = [np.linalg.norm(step, axis=0) for step in steps]
        corners = np.array(list(itertools.product(*[(0, n - 1) for n in lengths])), dtype=np.float64).T
        places = [step @ corners + grid[:3, 3:] for step, grid in zip(steps, (one, two), strict=True)]
        tolerance = _TOLERANCE * min(spacing.min() for spacing in spacings)
        tolerance += 2 * np.finfo(np.float32).eps * max(np.abs(place).max() for place in places)
        apart = np.linalg.norm(places[0] - places[1], axis=0)
        if apart.max() <= tolerance:
            return None
        if apart[0] > tolerance:  # the first corner is voxel (0, 0, 0)
            return f"origin differs by {apart[0]:.3g} mm"
        for axis, length in enumerate(lengths):
            here, there = spacings[0][axis], spacings[1][axis]
            if abs(here - there) * (length - 1) > tolerance:
                return f"spacing along {_AXES[axis]} {here:.6g} mm against {there:.6g} mm"
        return f"directions differ: the far corner is off by {apart.max():.3g} mm"


def check_same_grid(image: str, grid: Grid, ground_truth: str, other: Grid) -> None:
    """Refuse a ground truth on another grid than its image; both go by the names of their files.

    Raises
    ------
    ImageError
        Says how the grids differ.
    """
    difference = grid.difference(other)
    if difference is not None:
        raise ImageError(
            f"{ground_truth} does not lie on the grid of {image}: {difference}: "
            "resample the ground truth onto the image"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """An image as its file stores it.

    Parameters
    ----------
    voxels : (rows, cols) or (planes, rows, cols) array
        Stored numbers: integers of 8, 16 or 32 bits, signed or not, or float32 or float64. C order, native bytes.
    slope, intercept : float or Fraction
        The value that a stored number v stands for is slope * v + intercept. Fractions where the file writes decimals.
    grid : Grid
        Shape and position of the whole image, where ``voxels`` are some of its planes.
    sources : tuple of Source
        The files that were read, and which parts of them.
    """

    voxels: NDArray[np.generic]
    slope: float | Fraction
    intercept: float | Fraction
    grid: Grid
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True)
class Segment:
    """A named segment: voxels equal to ``label`` in ``layers[layer]`` of its ground truth."""

    name: str
    label: int
    layer: int


@dataclass(frozen=True, slots=True, eq=False)
class GroundTruth:
    """Integer label maps on one grid.

    Parameters
    ----------
    layers : tuple of integer arrays
        Each (rows, cols) or (planes, rows, cols). One, but where segments overlap.
    segments : tuple of Segment
        The segments that the file names; empty where the format names none.
    grid : Grid
        Shape and position.
    source : str
        The file's name, for messages.
    sources : tuple of Source
        As for an `Image`.
    """

    layers: tuple[NDArray[np.integer], ...]
    segments: tuple[Segment, ...]
    grid: Grid
    source: str = "ground truth"
    sources: tuple[Source, ...] = ()

    def find(self, label: int | str) -> tuple[int, int]:
        """Find where a class stands.

        Parameters
        ----------
        label : int or str
            A label value, or the name of a segment.

        Returns
        -------
        tuple of int
            The layer, and the label value in it. A value that no voxel has is no error.

        Raises
        ------
        ImageError
            No segment has the name, several have it, or the value stands for different segments in several layers.

        Examples
        --------
        >>> layers = (np.zeros((2, 2), np.uint8), np.ones((2, 2), np.uint8))
        >>> truth = GroundTruth(layers, (Segment("liver", 1, 0), Segment("lesion", 1, 1)), Grid((2, 2)))
        >>> truth.find("lesion")
        (1, 1)
        """
        if isinstance(label, str):
            return self._named(label)
        standing = [segment for segment in self.segments if segment.label == label]
        layers = {segment.layer for segment in standing}
        if len(layers) > 1:
            names = ", ".join(f'"{segment.name}"' for segment in standing)
            raise ImageError(
                f"{self.source}: label {label} stands for several segments in different layers ({names}): "
                "name the segment instead of its label"
            )
        return (layers.pop() if layers else 0), label

    def _named(self, name: str) -> tuple[int, int]:
        if not self.segments:
            raise ImageError(f'{self.source}: asked for segment "{name}", but the file names none: use a label value')
        found = {(segment.layer, segment.label) for segment in self.segments if segment.name == name}
        if not found:
            known = ", ".join(f'"{segment.name}"' for segment in self.segments)
            raise ImageError(f'{self.source}: expected a segment "{name}", found {known}: use one of these names')
        if len(found) > 1:
            raise ImageError(f'{self.source}: {len(found)} segments are named "{name}": rename all but one')
        return found.pop()
