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
from voxring.kernels.axes import axis_inside

from .device import Job, answers, cupy, maps, name, reduce_many
from .plans import Array, Plan, Shape

__all__ = ["answers", "mean_map", "name", "reduce", "variance_map", "window_sums"]

IMAGE_TYPES = frozenset(map(np.dtype, ("int8", "uint8", "int16", "uint16", "int32", "uint32")))


def reduce(
    image: Array, labels: Array, classes: Sequence[int], window: Shape, border: str, *, threads: int | None = None
) -> list[Reduction]:
    """Reduce one image to the integers of each class, on the GPU; see `voxring.kernels.cpu.reduce`.

    ``threads`` is not used.

    Raises
    ------
    DeviceError
        No GPU answers, or the image has voxels of 64 bits.
    """
    present = tuple(dict.fromkeys(classes))
    (answers_of,) = reduce_many([Job(checked(image), labels, present, window, border)])
    found = dict(zip(present, answers_of, strict=True))
    return [found[value] + Reduction() for value in classes]


def window_sums(image: Array, window: Shape, border: str, *, fill: int = 0, threads: int | None = None) -> Array:
    """S_q for every voxel q, as int64; see `voxring.kernels.cpu.window_sums`."""
    out = np.empty(image.shape, np.int64)
    for plan, (sums,) in maps(checked(image), window, border, ("sums",)):
        put(out, plan, sums + outside(plan, image.shape, border, fill) if fill else sums)
    return out


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
    out = np.empty(image.shape, dtype) if out is None else out
    for plan, (sums,) in maps(checked(image), window, border, ("sums",)):
        total = sums + outside(plan, image.shape, border, fill) if fill else sums
        put(out, plan, (total / over(plan, image.shape, border)).astype(out.dtype))
    return out


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
    out = np.empty(image.shape, dtype) if out is None else out
    for plan, (sums, squares) in maps(checked(image), window, border, ("sums", "squares")):
        total = sums + outside(plan, image.shape, border, fill) if fill else sums
        square = squares + outside(plan, image.shape, border, fill * fill) if fill else squares
        count = over(plan, image.shape, border)
        put(out, plan, ((count * square - total * total) / (count * count)).astype(out.dtype))
    return out


def checked(image: Array) -> Array:
    """The image, if its voxels are of a type that the kernels take, in native order."""
    if image.dtype.newbyteorder("=") not in IMAGE_TYPES:
        raise DeviceError(f'the CUDA engine takes integers of 8 to 32 bits, got {image.dtype}: use device="cpu"')
    return image if image.dtype.isnative else image.astype(image.dtype.newbyteorder("="))


def inside(plan: Plan, shape: Shape) -> Any:
    """How many voxels of each window of a part lie inside, as an int64 array on the device."""
    z0, z1, y0, y1 = plan.box
    z, y, x = (axis_inside(length, size) for length, size in zip(shape, plan.window, strict=True))
    return cupy().asarray(z[z0:z1, None, None] * (y[y0:y1, None] * x))


def outside(plan: Plan, shape: Shape, border: str, fill: int) -> Any:
    """What the places outside add to each window sum of a part; nothing but under ``constant``."""
    return fill * (prod(plan.window) - inside(plan, shape)) if border == "constant" else 0


def over(plan: Plan, shape: Shape, border: str) -> Any:
    """What each window sum of a part is divided by."""
    return inside(plan, shape) if border == "clip" else prod(plan.window)


def put(out: Array, plan: Plan, made: Any) -> None:
    """Fetch a part of a map."""
    z0, z1, y0, y1 = plan.box
    out[z0:z1, y0:y1] = made.get()
