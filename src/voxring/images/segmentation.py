"""DICOM SEG: segments as frames of bits, placed on an image by where they lie, not by names of files.

A frame may be any of the image's planes, in any order and turned or mirrored as the image is; a segment need not have
all of them. Names are Segment Labels, labels are Segment Numbers.
"""

from itertools import product

import numpy as np
from numpy.typing import NDArray

from voxring.errors import ImageError
from voxring.images import dicompixels
from voxring.images.dicomfile import Dataset
from voxring.images.dicomframes import Frame, frame_of, groups
from voxring.images.dicompixels import Layout
from voxring.images.image import Grid
from voxring.images.layers import Layers, Plane, to_voxels
from voxring.images.stored import Stored

_TOLERANCE = 0.02  # of a voxel, twice what a slice of the image may be off
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


def read(dataset: Dataset, grid: Grid) -> Stored:
    """Read a SEG onto the grid of its image.

    Raises
    ------
    ImageError
        A frame lies on no plane of the grid, the segmentation is fractional, or the file is damaged.
    """
    path = dataset.path
    kind = dataset.text("SegmentationType")
    if kind not in ("BINARY", "FRACTIONAL"):
        raise ImageError(f"{path}: expected a binary segmentation, got {(kind or 'none')[:16]}: save it as BINARY")
    full = 1 if kind == "BINARY" else dataset.integer("MaximumFractionalValue")
    layout = Layout.of(dataset)
    if layout.allocated > 8 or (layout.allocated > 1 and kind == "BINARY"):
        raise ImageError(f"{path}: expected 1 bit a pixel, or 8 in fractions, got {layout.allocated}: save it again")
    segments = {item.integer("SegmentNumber"): item.text("SegmentLabel") for item in dataset.items("SegmentSequence")}
    if len(segments) != len(dataset.items("SegmentSequence")):
        raise ImageError(f"{path}: two segments have one number: number them anew")
    frames: dict[int, list[Frame]] = {number: [] for number in segments}
    for number, sources in enumerate(groups(dataset, layout)):
        named = [source for source in sources if "ReferencedSegmentNumber" in source]
        segment = named[0].integer("ReferencedSegmentNumber") if named else None
        if segment not in frames:
            raise ImageError(f"{path}: frame {number + 1} belongs to no segment of the file: it is damaged")
        frames[segment].append(frame_of(path, number, layout, sources))
    layers = Layers(str(path), grid, segments)
    inverse, shape = to_voxels(str(path), grid), (1, *grid.shape)[-3:]
    for label, name in segments.items():
        places = [_place(frame, inverse, shape) for frame in frames[label]]
        if len({repr(place) for place, _ in places}) != len(places):
            raise ImageError(f"{path}: segment {label} has two frames at one place: the file is damaged")
        planes: list[Plane] = [
            (place, mask.T if turned else mask)
            for (place, turned), frame in zip(places, frames[label], strict=True)
            for mask in [_mask(frame, full)]
        ]
        layers.add(name or f"segment {label}", label, planes)
    return layers.stored()


def _mask(frame: Frame, full: int) -> NDArray[np.bool_]:
    if frame.layout.allocated == 1:
        return dicompixels.bits(frame.path, frame.layout, frame.number).view(np.bool_)
    (plane,) = dicompixels.read([(frame.path, frame.number, frame.layout)])
    mask: NDArray[np.bool_] = plane == full
    if not (mask | (plane == 0)).all():
        raise ImageError(
            f"{frame.path}: {frame.name} holds fractions, expected voxels wholly inside or outside: choose a threshold "
            "and save it as BINARY"
        )
    return mask


def _place(frame: Frame, inverse: NDArray[np.float64], shape: tuple[int, ...]) -> tuple[tuple[int | slice, ...], bool]:
    """Find the index in (planes, rows, columns) that a frame covers, and whether its two axes are swapped there."""
    if frame.position is None or frame.orientation is None or frame.spacing is None:
        raise ImageError(f"{frame.path}: {frame.name} states no position: save the segmentation again with its image")
    sizes = frame.layout.columns, frame.layout.rows
    steps = [inverse[:3, :3] @ (_LPS_TO_RAS * step) for step in frame.steps]
    origin = inverse[:3] @ [*(_LPS_TO_RAS * [float(part) for part in frame.position]), 1.0]
    whole = [np.rint(step) for step in steps]
    corners = list(product(*((0, size - 1) for size in sizes)))
    exact = [origin + corner[0] * steps[0] + corner[1] * steps[1] for corner in corners]
    voxels = np.array([np.rint(origin) + corner[0] * whole[0] + corner[1] * whole[1] for corner in corners])
    fits = all(np.abs(step).sum() == 1 for step in whole) and np.abs(whole[0] * whole[1]).sum() == 0
    if not fits or np.abs(np.array(exact) - voxels).max() > _TOLERANCE:
        raise ImageError(
            f"{frame.path}: {frame.name} does not lie on a plane of the image's voxels: is it the image that was "
            "segmented? If so, resample the segmentation onto it"
        )
    if (voxels < 0).any() or (voxels >= shape[::-1]).any():
        raise ImageError(f"{frame.path}: {frame.name} reaches beyond the image: is it the image that was segmented?")
    index: list[int | slice] = [int(start) for start in np.rint(origin)]
    axes = []
    for step, size in zip(whole, sizes, strict=True):
        axis = int(np.abs(step).argmax())
        axes.append(axis)
        start = int(np.rint(origin)[axis])
        sign = int(step[axis])
        stop = start + sign * size
        index[axis] = slice(start, stop if stop >= 0 else None, sign)
    # A frame is (rows, columns); the slices above keep the order of the volume's axes, the last of which are columns.
    return tuple(index[::-1]), axes[0] > axes[1]
