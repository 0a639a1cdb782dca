"""Plans of feature maps: sums of powers by the kernels of windows, then each feature by one of features.cu.

A part of an image takes a plan for each window, and one each for the gradient and the intensity, which want nothing
laid out beside the image. All maps of a part stand one after the other in one stack.
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
    """The plans that make the features of a box: one for each window, and each of those without.

    The first has the buffer ``stack``, in which all put their maps: int64 (features, planes, rows, columns).
    """
    alike: dict[Shape, list[tuple[int, str]]] = {}
    plans = []
    for place, one in enumerate(asked):
        if one.kind in PLAIN:
            plans.append(plain_plan(shape, dtype, border, one.kind, scale, box, place))
        else:
            alike.setdefault(one.window, []).append((place, one.kind))
    plans += [window_plan(shape, dtype, window, border, some, scale, box) for window, some in alike.items()]
    first, *others = plans
    return [first._replace(buffers=first.buffers | stack(len(asked), box, shape[2])), *others]


def stack(features: int, box: Box, columns: int) -> dict[str, Buffer]:
    """The buffer of the maps of a box."""
    return {"stack": Buffer("int64", features * cells(box, columns))}


def cells(box: Box, columns: int) -> int:
    """Voxels of a box."""
    return (box[1] - box[0]) * (box[3] - box[2]) * columns


def window_plan(
    shape: Shape,
    dtype: np.dtype[Any],
    window: Shape,
    border: str,
    placed: Sequence[tuple[int, str]],
    scale: Scale,
    box: Box,
) -> Plan:
    """The plan of features of one window, each with its place in the stack; `checks.check_width` let them through."""
    kinds = {kind for _, kind in placed}
    size, most = prod(window), scale.magnitude
    spreads, skewness = kinds != {"mean"}, "skewness" in kinds
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
    for place, kind in placed:
        launches.append(pointwise(kind, macros, box, shape[2], (*maps, "inside", "scale"), place, (pitch,)))
    return first._replace(buffers=buffers, launches=tuple(launches), bias=0)


def plain_plan(shape: Shape, dtype: np.dtype[Any], border: str, kind: str, scale: Scale, box: Box, place: int) -> Plan:
    """The plan of the gradient, which `checks.check_gradient_width` has let through, or of the intensity."""
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
    arguments = ("image", *(places if kind == "gradient" else ()), "scale")
    numbers = staged.pitch, staged.shape[1], z0 - z.first, y0 - y.first
    launch = pointwise(kind, macros, box, shape[2], arguments, place, numbers)
    return Plan(box, dtype.name, window, staged, shape[2], buffers, (launch,), np.array([1]), 0)


def pointwise(
    kind: str,
    macros: tuple[tuple[str, int], ...],
    box: Box,
    columns: int,
    arguments: tuple[str, ...],
    place: int,
    numbers: tuple[int, ...],
) -> Launch:
    """A feature, by a kernel of features.cu, over a box: a thread a voxel."""
    z0, z1, y0, y1 = box
    grid = -(-columns // THREADS), min(y1 - y0, MOST_LINES), min(z1 - z0, MOST_LINES)
    numbered = map(np.int32, (z1 - z0, y1 - y0, columns, *numbers))
    every: tuple[str | np.generic, ...] = (*arguments, "stack", np.uint64(place * cells(box, columns)), *numbered)
    return Launch("features.cu", f"feature_{kind}", macros, grid, (THREADS, 1, 1), 0, every)


def of_voxels(dtype: np.dtype[Any]) -> tuple[tuple[str, int], ...]:
    """The macros of a type of voxels, and those that voxring.cuh wants and features.cu does not."""
    unused = ("MANY", 0), ("FRAME", 0), ("REDUCE", 0), ("POWER", 1), ("FLOOR", 0), ("ROW_FITS", 0)
    return ("VOXEL", dtype.itemsize), ("SIGNED", int(dtype.kind == "i")), *unused


def words(numbers: Sequence[int]) -> Buffer:
    """Integers modulo 2^64."""
    held = np.array([number % (1 << 64) for number in numbers], np.uint64).view(np.int64)
    return Buffer("int64", len(held), held)
