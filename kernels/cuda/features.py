"""Plans of feature maps: sums of powers by the kernels of windows, then each feature by one of features.cu.

A part of an image takes a plan for each window, and one each for the gradient and the intensity, which want nothing
laid out beside the image. What a plan makes stands in its buffers by the name of the feature: int64 (planes, rows,
columns) of its box.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from voxring.kernels.axes import axis_inside, axis_map

from .plans import Box, Buffer, Launch, Plan, Shape, Staged, What, axis_of, floor_shift, plan_for, up

THREADS = 128
MOST_LINES = 65535
"""Blocks along the second and the third axis of a grid."""

PLAIN = ("gradient", "intensity")
"""The kinds of features that have no window."""

POWERS: tuple[What, ...] = ("sums", "squares", "cubes", "squares_high", "cubes_high")


class Scale(NamedTuple):
    """What makes features of stored integers x: a · x + b are standardised, over 2^fraction_bits."""

    a: int
    b: int
    fraction_bits: int
    fill: int  # what `constant` reads outside, a stored integer; else 0
    magnitude: int  # no x that is read, inside or outside, is larger in size


class Asked(NamedTuple):
    """A feature; of the gradient and the intensity, the window is of one voxel."""

    kind: str
    window: Shape


def plans_of(
    shape: Shape, dtype: np.dtype[Any], asked: Sequence[Asked], border: str, scale: Scale, box: Box
) -> list[Plan]:
    """The plans that make the features of a box: one for each window, and each of those without."""
    kinds: dict[Shape, list[str]] = {}
    for one in dict.fromkeys(one for one in asked if one.kind not in PLAIN):
        kinds.setdefault(one.window, []).append(one.kind)
    windowed = [window_plan(shape, dtype, window, border, some, scale, box) for window, some in kinds.items()]
    others = dict.fromkeys(one.kind for one in asked if one.kind in PLAIN)
    return windowed + [plain_plan(shape, dtype, border, kind, scale, box) for kind in others]


def makes(plan: Plan, one: Asked) -> bool:
    """Whether a plan is the one that makes a feature."""
    return one.kind in plan.buffers and plan.window == one.window


def window_plan(
    shape: Shape, dtype: np.dtype[Any], window: Shape, border: str, kinds: Sequence[str], scale: Scale, box: Box
) -> Plan:
    """The plan of features of one window, which `checks.check_width` has let through."""
    size, most = prod(window), scale.magnitude
    spreads, skewness = set(kinds) != {"mean"}, "skewness" in kinds
    shift = floor_shift(size)
    shifts = [shift if size * most**k >= 1 << 63 else 0 for k in (2, 3)]
    wanted = True, spreads, skewness, spreads and shifts[0] > 0, skewness and shifts[1] > 0
    parts = {
        what: plan_for(shape, dtype, window, border, what, box=box)
        for what, is_wanted in zip(POWERS, wanted, strict=True)
        if is_wanted
    }
    first = parts["sums"]
    result = "map" if "map" in first.buffers else "there"
    dense = result == "there"
    buffers, launches = {"nothing": Buffer("int64" if dense else "uint64", 1)}, list[Launch]()
    for what, part in parts.items():
        buffers |= {what if name == result else name: buffer for name, buffer in part.buffers.items()}
        for launch in part.launches:
            arguments = tuple(what if argument == result else argument for argument in launch.arguments)
            launches.append(launch._replace(arguments=arguments))
    numbers = [scale.a, scale.b, scale.fraction_bits, size, int(border == "clip"), first.bias]
    numbers += [scale.fill**k for k in (1, 2, 3)] + [scale.fill**k >> shift for k in (2, 3)] + shifts
    lengths = zip(shape, window, strict=True)
    z, y, x = (axis_inside(n, c) if border in {"clip", "constant"} else np.full(n, c) for n, c in lengths)
    inside = np.concatenate([x, y[box[2] : box[3]], z[box[0] : box[1]]]).astype(np.int32)
    buffers |= {"inside": Buffer("int32", len(inside), inside), "scale": words(numbers)}
    macros = (
        *of_voxels(dtype),
        ("WIDE", int(buffers["sums"].dtype != "uint32")),
        ("DENSE", int(dense)),
        ("SPREAD", 1 if size * (abs(scale.a) * most + abs(scale.b)) < 1 << 31 else 2),
        ("THIRD", 1 if size * most < 1 << 20 else 2),
    )
    maps = tuple(what if what in parts else "nothing" for what in POWERS)
    pitch = shape[2] if dense else first.label_pitch
    for kind in kinds:
        launches.append(pointwise(kind, macros, box, shape[2], (*maps, "inside", "scale", kind), (pitch,)))
    return first._replace(buffers=buffers | made(kinds, box, shape[2]), launches=tuple(launches), bias=0)


def plain_plan(shape: Shape, dtype: np.dtype[Any], border: str, kind: str, scale: Scale, box: Box) -> Plan:
    """The plan of the gradient or the intensity, which `checks.check_gradient` has let through."""
    z0, z1, y0, y1 = box
    window = (3, 3, 3) if kind == "gradient" else (1, 1, 1)
    z, y = axis_of(shape[0], window[0], border, z0, z1), axis_of(shape[1], window[1], border, y0, y1)
    staged = Staged((z.first, z.stop), (y.first, y.stop), (False, False), 0, up(shape[2], 8), np.arange(shape[2]))
    places = {"x_at": axis_map(shape[2], window[2], border), "y_at": y.places, "z_at": z.places}
    buffers = {
        "image": Buffer(f"uint{8 * dtype.itemsize}", prod(staged.shape)),
        "scale": words([scale.a, scale.b, scale.fraction_bits, prod(window), int(border == "clip"), 0, scale.fill]),
    }
    if kind == "gradient":
        buffers |= {name: Buffer("int32", len(at), at.astype(np.int32)) for name, at in places.items()}
    macros = (*of_voxels(dtype), ("WIDE", 1), ("DENSE", 0), ("SPREAD", 1), ("THIRD", 1))
    arguments = ("image", *(places if kind == "gradient" else ()), "scale", kind)
    numbers = staged.pitch, staged.shape[1], z0 - z.first, y0 - y.first
    launch = pointwise(kind, macros, box, shape[2], arguments, numbers)
    every = buffers | made([kind], box, shape[2])
    return Plan(box, dtype.name, (1, 1, 1), staged, shape[2], every, (launch,), np.array([1]), 0)


def pointwise(
    kind: str,
    macros: tuple[tuple[str, int], ...],
    box: Box,
    columns: int,
    arguments: tuple[str, ...],
    numbers: tuple[int, ...],
) -> Launch:
    """A feature by a kernel of features.cu over a box: a thread a voxel."""
    z0, z1, y0, y1 = box
    grid = -(-columns // THREADS), min(y1 - y0, MOST_LINES), min(z1 - z0, MOST_LINES)
    every: tuple[str | np.generic, ...] = (*arguments, *map(np.int32, (z1 - z0, y1 - y0, columns, *numbers)))
    return Launch("features.cu", f"feature_{kind}", macros, grid, (THREADS, 1, 1), 0, every)


def made(kinds: Sequence[str], box: Box, columns: int) -> dict[str, Buffer]:
    """The buffers of maps of a box."""
    z0, z1, y0, y1 = box
    return {kind: Buffer("int64", (z1 - z0) * (y1 - y0) * columns) for kind in kinds}


def of_voxels(dtype: np.dtype[Any]) -> tuple[tuple[str, int], ...]:
    """The macros of a type of voxels, and those that voxring.cuh wants and features.cu does not."""
    unused = ("MANY", 0), ("FRAME", 0), ("REDUCE", 0), ("POWER", 1), ("FLOOR", 0), ("ROW_FITS", 0)
    return ("VOXEL", dtype.itemsize), ("SIGNED", int(dtype.kind == "i")), *unused


def words(numbers: Sequence[int]) -> Buffer:
    """Integers modulo 2^64."""
    held = np.array([number % (1 << 64) for number in numbers], np.uint64).view(np.int64)
    return Buffer("int64", len(held), held)
