"""DICOM RTSTRUCT: regions as closed contours, filled on the grid of their image.

A voxel belongs to a region when its centre lies inside an odd number of the region's contours on its plane, so a
contour within another is a hole. Names are ROI Names, labels are ROI Numbers. Points and open contours enclose nothing.

Where a centre lies on a contour, it must not be decimals or the order of float sums that decide. So vertices are put on
a grid of 2^-14 voxel first, which takes away what decimals and the affine lose, far below what a contour means; from
there on all is integers. An edge covers the rows from its lower end to below its upper end, and a row is inside from a
crossing on: a region has its first edges and not its last, and two regions with an edge in common share no voxel.
"""

import numpy as np
from numpy.typing import NDArray

from voxring.errors import ImageError
from voxring.images.dicomfile import Dataset
from voxring.images.image import Grid
from voxring.images.layers import Layers, Plane, to_voxels
from voxring.images.stored import Stored

_BITS = 14
# Vertices within 2^16 voxels of the grid: products of two differences, and a sum of two of those, fit 64 bits.
_REACH = 1 << 16
_EDGES = 512  # at a time, so that a long contour takes little memory
_ON_PLANE = 0.05  # of a plane's distance
_CLOSED = {"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"}
_OPEN = {"POINT", "OPEN_PLANAR", "OPEN_NONPLANAR"}


def read(dataset: Dataset, grid: Grid) -> Stored:
    """Read an RTSTRUCT onto the grid of its image.

    Raises
    ------
    ImageError
        A contour lies on no plane of the grid, or the file is damaged.
    """
    path = dataset.path
    names = {roi.integer("ROINumber"): roi.text("ROIName") for roi in dataset.items("StructureSetROISequence")}
    if not names or len(names) != len(dataset.items("StructureSetROISequence")):
        raise ImageError(f"{path}: expected regions with numbers of their own, got others: export it again")
    regions: dict[int, list[Dataset]] = {}
    for region in dataset.items("ROIContourSequence"):
        number = region.integer("ReferencedROINumber")
        if number not in names or number in regions:
            raise ImageError(f"{path}: its contours and its list of regions disagree: the file is damaged")
        regions[number] = region.items("ContourSequence")
    layers = Layers(str(path), grid, names)
    inverse, shape = to_voxels(str(path), grid), (1, *grid.shape)[-3:]
    for number, name in names.items():
        called = name or f"ROI {number}"
        layers.add(called, number, _planes(f'{path}: ROI "{called}"', regions.get(number, []), inverse, shape))
    return layers.stored()


def _planes(where: str, contours: list[Dataset], inverse: NDArray[np.float64], shape: tuple[int, ...]) -> list[Plane]:
    """Fill the contours of a region; ``where`` begins messages."""
    by_plane: dict[tuple[int, int], list[NDArray[np.int64]]] = {}
    for contour in contours:
        kind = contour.text("ContourGeometricType")
        if kind in _OPEN:
            continue
        if kind not in _CLOSED:
            raise ImageError(f"{where}: expected closed planar contours, got {(kind or 'none')[:24]}: export it again")
        vertices = _vertices(where, contour, inverse)
        axis, plane = _plane(where, vertices, shape)
        others = [other for other in range(3) if other != axis]
        scaled = np.rint(vertices[:, others] * (1 << _BITS)).astype(np.int64)
        by_plane.setdefault((axis, plane), []).append(scaled)
    if len({axis for axis, _ in by_plane}) > 1:
        raise ImageError(f"{where}: its contours lie on planes of different directions: export it along one")
    planes: list[Plane] = []
    for (axis, plane), polygons in by_plane.items():
        columns, rows = (size for other, size in enumerate(shape[::-1]) if other != axis)
        place: list[int | slice] = [slice(None)] * 3
        place[2 - axis] = plane
        planes.append((tuple(place), fill(polygons, rows, columns)))
    return planes


def _vertices(where: str, contour: Dataset, inverse: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a contour's vertices as (column, row, plane) of the grid."""
    numbers = contour.floats("ContourData")
    if len(numbers) != 3 * contour.integer("NumberOfContourPoints"):
        raise ImageError(f"{where}: a contour has fewer or more points than it declares: the file is damaged")
    points = np.reshape(numbers, (-1, 3))
    x, y, z = -points[:, 0], -points[:, 1], points[:, 2]
    vertices = np.stack([row[0] * x + row[1] * y + row[2] * z + row[3] for row in inverse], axis=1)
    if not (np.abs(vertices) < _REACH).all():  # NaN too
        raise ImageError(f"{where}: a contour lies far outside the image: is it the image that was contoured?")
    return vertices


def _plane(where: str, vertices: NDArray[np.float64], shape: tuple[int, ...]) -> tuple[int, int]:
    """Find the plane of voxels that a contour lies on, as an axis (0 for columns) and an index along it."""
    for axis in (2, 1, 0):
        nearest = np.rint(vertices[0, axis])
        if np.abs(vertices[:, axis] - nearest).max() <= _ON_PLANE and 0 <= nearest < shape[2 - axis]:
            return axis, int(nearest)
    raise ImageError(
        f"{where}: a contour lies on no plane of the image's voxels: is it the image that was contoured? If so, export "
        "the contours on its planes"
    )


def fill(polygons: list[NDArray[np.int64]], rows: int, columns: int) -> NDArray[np.bool_]:
    """Mark the voxel centres inside an odd number of closed polygons.

    Parameters
    ----------
    polygons : list of (n, 2) int64 arrays
        Vertices (column, row) in units of 2^-14 voxel, less than 2^30 in size; the last joins the first.
    rows, columns : int
        Size of the mask. What lies outside is cut off.

    Returns
    -------
    (rows, columns) array of bool

    Examples
    --------
    >>> square = np.array([[1, 1], [3, 1], [3, 3], [1, 3]]) << 14
    >>> fill([square], 4, 5).astype(int)
    array([[0, 0, 0, 0, 0],
           [0, 1, 1, 0, 0],
           [0, 1, 1, 0, 0],
           [0, 0, 0, 0, 0]])
    """
    starts = np.concatenate(polygons)
    ends = np.concatenate([np.roll(polygon, -1, axis=0) for polygon in polygons])
    flips = np.zeros((rows, columns), np.bool_)
    for at in range(0, len(starts), _EDGES):
        row, column = _crossings(starts[at : at + _EDGES], ends[at : at + _EDGES], rows)
        inside = column < columns
        np.logical_xor.at(flips, (row[inside], np.maximum(column[inside], 0)), True)
    return np.logical_xor.accumulate(flips, axis=1)


def _crossings(
    starts: NDArray[np.int64], ends: NDArray[np.int64], rows: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each row of centres that an edge crosses, and the first centre at or past the crossing."""
    lower = np.where((starts[:, 1] < ends[:, 1])[:, None], starts, ends)
    upper = np.where((starts[:, 1] < ends[:, 1])[:, None], ends, starts)
    # The rows whose centres an edge crosses: from its lower end to below its upper one, within the mask.
    first = np.clip(-(-lower[:, 1] >> _BITS), 0, rows)
    past = np.clip(-(-upper[:, 1] >> _BITS), 0, rows)
    count = past - first
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    height = upper[edge, 1] - lower[edge, 1]
    run = (upper[edge, 0] - lower[edge, 0]) * ((row << _BITS) - lower[edge, 1])
    return row, -(-(lower[edge, 0] * height + run) // (height << _BITS))
