"""The graphics processor's backend: the same integers as `voxring.kernels.cpu`, from CUDA kernels run by CuPy.

Importing it needs neither; calling it raises `DeviceError` where no GPU answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from voxring.errors import DeviceError
from voxring.kernels import Reduction
from voxring.kernels.axes import inside_counts
from voxring.kernels.checks import (
    SUMS,
    WINDOWED,
    as_native,
    check_gradient_width,
    check_kind,
    check_labels,
    check_width,
    checked_magnitude,
    checked_magnitude_of_sums,
    checked_magnitude_squared,
    checked_out,
    holdable,
)

from . import stacks
from .classifying import Classifier, check_room, has_room
from .device import Combine, answers, cupy, devices, fill_map, name, reduced
from .features import Asked, Scale
from .pairing import Pairs
from .plans import MOST_CLASSES, Array, Plan, Shape, What
from .summing import Sums

__all__ = [
    "MOST_CLASSES",
    "Asked",
    "Classifier",
    "Scale",
    "Sums",
    "answers",
    "classified",
    "feature_maps",
    "has_room",
    "inside_counts",
    "mean_map",
    "name",
    "pairs",
    "reduce",
    "summed",
    "variance_map",
    "window_sums",
]


def reduce(
    image: Array, labels: Array, classes: Sequence[int], window: Shape, border: str, *, threads: int | None = None
) -> list[Reduction]:
    """Reduce one image to the integers of each class, on the GPU; see `voxring.kernels.cpu.reduce`.

    ``threads`` is not used.

    Raises
    ------
    DeviceError
        No GPU answers, the image has voxels of 64 bits, or the GPU has no memory for a row of it.
    OverflowError
        A window sum of this image could leave 63 bits.
    """
    image = checked(image, window, border)
    check_labels(image.shape, labels.shape, labels.dtype)
    checked_magnitude(image, window)
    present = holdable(classes, labels.dtype)
    if image.size == 0 or not present:
        return [Reduction() for _ in classes]
    found = dict(zip(present, reduced(image, as_native(labels), present, window, border), strict=True))
    return [found.get(value, Reduction()) + Reduction() for value in classes]


def window_sums(
    image: Array,
    window: Shape,
    border: str,
    *,
    fill: int = 0,
    out: Array | None = None,
    dtype: str = "int64",
    threads: int | None = None,
) -> Array:
    """S_q for every voxel q; see `voxring.kernels.cpu.window_sums`."""
    image = checked(image, window, border)
    fill = fill if border == "constant" else 0
    out = checked_out(out, image.shape, dtype, SUMS)
    checked_magnitude_of_sums(image, window, out.dtype, fill)

    def combine(plan: Plan, made: list[Any]) -> Any:
        total = made[0] + fill * outside(plan, image.shape) if fill else made[0]
        if out.dtype.kind == "f":
            total = total.astype(np.float64)
        return total if out.dtype == total.dtype else total.astype(out.dtype)

    return into(out, image, window, border, ("sums",), combine)


def mean_map(
    image: Array,
    window: Shape,
    border: str,
    *,
    fill: int = 0,
    out: Array | None = None,
    dtype: str = "float32",
    threads: int | None = None,
) -> Array:
    """The local mean of every voxel, divided on the GPU in float64; see `voxring.kernels.cpu.mean_map`."""
    image = checked(image, window, border)
    fill = fill if border == "constant" else 0
    checked_magnitude(image, window, fill)
    out = checked_out(out, image.shape, dtype)

    def combine(plan: Plan, made: list[Any]) -> Any:
        (total,) = made
        if fill:
            total = total + fill * outside(plan, image.shape)
        return (total / over(plan, image.shape, border)).astype(out.dtype)

    return into(out, image, window, border, ("sums",), combine)


def variance_map(
    image: Array,
    window: Shape,
    border: str,
    *,
    fill: int = 0,
    out: Array | None = None,
    dtype: str = "float32",
    threads: int | None = None,
) -> Array:
    """The local variance of every voxel; see `voxring.kernels.cpu.variance_map`."""
    image = checked(image, window, border)
    fill = fill if border == "constant" else 0
    checked_magnitude_squared(image, window, fill)
    out = checked_out(out, image.shape, dtype)

    def combine(plan: Plan, made: list[Any]) -> Any:
        total, squares = made
        if fill:
            missing = outside(plan, image.shape)
            total, squares = total + fill * missing, squares + fill * fill * missing
        count = over(plan, image.shape, border)
        return ((count * squares - total * total) / (count * count)).astype(out.dtype)

    return into(out, image, window, border, ("sums", "squares"), combine)


def feature_maps(
    image: Array, asked: Sequence[Asked], border: str, scale: Scale, planes: tuple[int, int]
) -> list[Array]:
    """The feature maps of some planes, int64, in the order asked for; see `voxring.kernels.cpu.features`.

    Raises
    ------
    DeviceError
        No GPU answers, the image has voxels of 64 bits, or the GPU has no memory for a row of it.
    OverflowError
        The numbers could be wider than is exact.
    """
    devices()  # or says why not
    image = checked_stack(image, asked, border, scale)
    return stacks.feature_maps(image, asked, border, scale, planes)


def classified(
    image: Array, asked: Sequence[Asked], border: str, scale: Scale, planes: tuple[int, int], of: Classifier
) -> tuple[Array, Array]:
    """Labels and probabilities of some planes, the same bits as `voxring.kernels.cpu.classify` has; see `stacks`.

    Raises
    ------
    DeviceError
        As for `feature_maps`, or there are more features and classes than `has_room` allows.
    OverflowError
        As for `feature_maps`.
    """
    devices()  # or says why not
    check_room(of)
    image = checked_stack(image, asked, border, scale)
    return stacks.classified(image, asked, border, scale, planes, of)


def summed(
    image: Array,
    asked: Sequence[Asked],
    border: str,
    scale: Scale,
    planes: tuple[int, int],
    of: Sums,
    numbers: Array,
) -> tuple[list[list[int]], Array]:
    """Sums over the voxels of each class, and counts of bins: Python's integers, and int64; see `stacks`.

    Raises
    ------
    DeviceError, OverflowError
        As for `feature_maps`.
    """
    devices()  # or says why not
    image = checked_stack(image, asked, border, scale)
    return stacks.summed(image, asked, border, scale, planes, of, numbers)


def pairs(
    image: Array,
    numbers: Array,
    others: Array,
    classes: int,
    a: int,
    b: int,
    starts: Sequence[int],
    steps: Sequence[Shape],
) -> Array:
    """Co-occurrence counts (classes, levels, levels), each pair both ways; see `voxring.kernels.cpu.additive.pairs`.

    Parameters
    ----------
    numbers, others : uint8 arrays of the image's shape
        At most MOST_CLASSES classes'.

    Raises
    ------
    DeviceError
        As for `feature_maps`.
    """
    devices()  # or says why not
    image = checked(image, (1, 1, 1), "clip")
    counted = stacks.counted_pairs(Pairs(classes, a, b, starts[1:-1], steps), image, numbers, others)
    both: Array = counted + counted.transpose(0, 2, 1)
    return both


def checked_stack(image: Array, asked: Sequence[Asked], border: str, scale: Scale) -> Array:
    """The image in native order, when no feature is wider than is exact."""
    image = checked(image, (1, 1, 1), border)
    for window in dict.fromkeys(one.window for one in asked):
        kinds = [one.kind for one in asked if one.window == window and one.kind in WINDOWED]
        if kinds:
            check_width(window, kinds, scale.magnitude, scale.a, scale.b, 1 << scale.fraction_bits)
    if any(one.kind == "gradient" for one in asked):
        check_gradient_width(scale.magnitude, scale.a)
    return image


def checked(image: Array, window: Shape, border: str) -> Array:
    """The image in native order, when all arguments are ones that the kernels take."""
    check_kind(image.shape, image.dtype, window, border)
    if image.dtype.itemsize == 8:
        raise DeviceError(
            f"the CUDA engine takes integers of 8 to 32 bits, got {image.dtype}: take fewer fraction_bits, of floats, "
            'or device="cpu"'
        )
    return image if image.dtype.isnative else image.astype(image.dtype.newbyteorder("="))


def inside(plan: Plan, shape: Shape) -> Any:
    """How many voxels of each window of a part lie inside, as an int64 array on the device."""
    z0, z1, y0, y1 = plan.box
    z, y, x = map(cupy().asarray, inside_counts(shape, plan.window))
    return z[z0:z1].reshape(-1, 1, 1) * (y[y0:y1].reshape(-1, 1) * x)


def outside(plan: Plan, shape: Shape) -> Any:
    """How many places of each window of a part lie outside."""
    return prod(plan.window) - inside(plan, shape)


def over(plan: Plan, shape: Shape, border: str) -> Any:
    """What each window sum of a part is divided by."""
    return inside(plan, shape) if border == "clip" else prod(plan.window)


def into(out: Array, image: Array, window: Shape, border: str, what: Sequence[What], combine: Combine) -> Array:
    """Fill a map."""
    devices()  # or says why not, of an image without voxels too
    if image.size > 0:
        fill_map(image, window, border, what, combine, out)
    return out
