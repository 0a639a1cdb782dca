"""Launch plans: what the CUDA kernels are given, as plain data, made without a GPU or CuPy.

A `Plan` says how a part of an image is laid out in memory (`stage`), which kernels run over it with which arguments,
and how the numbers that come back are read (`reductions`). Whoever carries it out, on a device or in a test, only
allocates, copies and launches.

Staged rows begin ``lead`` columns before the image's own and hold, beside it, what the border reads there; rows and
planes are looked up in index maps. Where a place is outside, it reads a row, or a plane, of zeros. So no kernel knows a
border.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from voxring.kernels import Reduction
from voxring.kernels.axes import OUTSIDE, axis_map, axis_runs

Array = npt.NDArray[Any]
Shape = tuple[int, int, int]
What = Literal["reduce", "sums", "squares", "cubes", "squares_high", "cubes_high"]
"""The table of classes; or a map of window sums, of those of squares or cubes modulo 2^64, or of those of the floors of
squares or cubes over 2^s, of `floor_shift`."""
Box = tuple[int, int, int, int]
"""z0, z1, y0, y1: planes z0 … z1 − 1, rows y0 … y1 − 1, all columns."""

MOST_CLASSES = 255
"""Class numbers are bytes, and 0 is none."""

STREAMED = 31
"""The largest window, along y and x, that the streamed kernels are compiled for."""

STREAMED_VOXELS = 1 << 16
"""And the most voxels of it: a thread's sums then fit (see voxring.cuh)."""

THREAD_VOXELS = 1 << 16
"""The most voxels that a thread sums."""

GROUP, MOMENTS = 3, 8
"""Numbers of a group, and of the moments, of a class in the table (see voxring.cuh)."""

SHARED = 64 << 10
"""Shared memory that every device since compute capability 7.5 gives a block that asks for it."""

LOW = 15
"""Rows of windows above which tiles are large: below, the rows that are there for others are few, and two blocks of a
small tile keep a processor busier than one of a large one."""

FEW = 4
"""Classes: as many comparisons of a label take as long as looking it up."""

STAGED_AT_ONCE = 1 << 17
"""Labels: what is made of them on the way stays in the processor's cache."""

FULL = 2048
"""Warps in flight that keep a large device busy; more segments are not worth their overlap."""


class Launch(NamedTuple):
    """One kernel call. Arguments are names of buffers, or numbers of the type that the kernel declares."""

    source: str
    kernel: str
    macros: tuple[tuple[str, int], ...]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    arguments: tuple[str | np.generic, ...]


class Buffer(NamedTuple):
    """Device memory: ``given`` from the host at first, if not None; else zeros if ``clear``, or whatever is there."""

    dtype: str
    size: int
    given: Array | None = None
    clear: bool = False


class Staged(NamedTuple):
    """How a part of an image lies in memory."""

    planes: tuple[int, int]  # first and last + 1 of the image's planes that are there
    rows: tuple[int, int]
    zeros: tuple[bool, bool]  # a plane of zeros behind them? a row of zeros at the end of each plane?
    lead: int  # columns before the image's own
    pitch: int  # voxels of a row
    beside: Array  # for the columns lead − BEFORE …: which of the image's is there, or OUTSIDE

    @property
    def shape(self) -> Shape:
        """Planes, rows and columns in memory."""
        planes, rows = (stop - first for first, stop in (self.planes, self.rows))
        return planes + self.zeros[0], rows + self.zeros[1], self.pitch


class Plan(NamedTuple):
    """What one part of an image asks of a device."""

    box: Box
    dtype: str
    window: Shape
    staged: Staged
    label_pitch: int  # of class numbers, and of rows of a map
    buffers: dict[str, Buffer]  # "image", "numbers" and others
    launches: tuple[Launch, ...]
    inside: Array  # how many voxels of a window lie inside, for each group
    bias: int  # what a window sum in the table or map has too much, for each voxel

    @property
    def bytes(self) -> int:
        """Device memory that it takes."""
        return sum(buffer.size * np.dtype(buffer.dtype).itemsize for buffer in self.buffers.values())


@cache
def source_of(file: str) -> str:
    """The text of a source file with its header in its place: what is compiled needs no other file."""
    here = Path(__file__).parent
    header = (here / "voxring.cuh").read_text()
    return (here / file).read_text().replace('#include "voxring.cuh"', header.replace("#pragma once", ""))


def up(number: int, multiple: int) -> int:
    """The next multiple."""
    return -(-number // multiple) * multiple


def beside(window: Shape) -> tuple[int, int]:
    """The columns on both sides of a strip that are there for the windows of those between (see voxring.cuh)."""
    left = up(window[2] // 2 + 1, 4)
    return left, up(left + window[2] - 1 - window[2] // 2, 8) - left


class Axis(NamedTuple):
    """Where windows at q0 … q1 − 1 of an axis read."""

    first: int  # of what must be there
    stop: int
    places: Array  # local index per extended place; OUTSIDE where outside
    outside: bool


def axis_of(length: int, size: int, border: str, q0: int, q1: int) -> Axis:
    """The part of an axis that a box needs."""
    places = axis_map(length, size, border)[q0 : q1 + size - 1]
    inside = places[places != OUTSIDE]
    first, stop = min(q0, int(inside.min())), max(q1, int(inside.max()) + 1)
    return Axis(first, stop, np.where(places == OUTSIDE, OUTSIDE, places - first), bool((places == OUTSIDE).any()))


class Groups(NamedTuple):
    """The groups of voxels by how much of their window lies inside."""

    parts: Array  # int32: what a voxel's column, then its row, then its plane add to its group
    inside: Array  # per group
    middle: int  # a group, the largest
    middle_x: int


def groups_of(shape: Shape, window: Shape, border: str, box: Box) -> Groups:
    """The groups of a box's voxels: runs of each axis, mixed."""
    parts, counts, middles, weight = [], [], [], 1
    z0, z1, y0, y1 = box
    for axis, (q0, q1) in ((2, (0, shape[2])), (1, (y0, y1)), (0, (z0, z1))):
        starts, inside = axis_runs(shape[axis], window[axis], border)
        run = np.searchsorted(starts, np.arange(q0, q1), side="right") - 1
        parts.append(run * weight)
        counts.append(inside)
        middles.append(int(np.argmax(np.bincount(run, minlength=len(inside)))) * weight)
        weight *= len(inside)
    inside = (counts[2][:, None, None] * counts[1][:, None] * counts[0]).reshape(-1)
    return Groups(np.concatenate(parts).astype(np.int32), inside, sum(middles), middles[0])


def plan_for(
    shape: Shape,
    dtype: np.dtype[Any],
    window: Shape,
    border: str,
    what: What,
    *,
    classes: int = 1,
    box: Box | None = None,
    segment: int | None = None,
    shared: int = SHARED,
) -> Plan:
    """The plan of a box of an image, by default all of it.

    Parameters
    ----------
    shape, window : (int, int, int)
        Planes, rows, columns.
    dtype : integer type of 8, 16 or 32 bits
    border : str
        One of `BORDERS`.
    what : str
        One of `What`.
    classes : int
        At most MOST_CLASSES.
    segment : int, optional
        Rows (of flat windows) or planes that a block goes down; by default as many as keep a device busy.
    shared : int
        Bytes of shared memory that a block may ask for.

    Returns
    -------
    Plan
        The caller has seen that window sums fit 63 bits, and, for floors of powers, that voxels have 31.
    """
    box = box or (0, shape[0], 0, shape[1])
    z0, z1, y0, y1 = box
    z, y = axis_of(shape[0], window[0], border, z0, z1), axis_of(shape[1], window[1], border, y0, y1)
    largest = 2 ** (8 * dtype.itemsize) - 1
    size = prod(window)
    streamed = max(window[1:]) <= STREAMED and size <= STREAMED_VOXELS
    tile = 256 if window[0] == 1 else 128
    left, right = beside(window) if streamed else (0, 0)
    staged = Staged(
        (z.first, z.stop),
        (y.first, y.stop),
        (z.outside and streamed, y.outside and streamed),
        left,
        up(left + shape[2] + right, 8),
        axis_map(shape[2], window[2], border) if streamed else np.arange(shape[2]),
    )
    signed = dtype.kind == "i"
    power = 2 if what.startswith("squares") else 3 if what.startswith("cubes") else 1
    wide = power > 1 or size * largest >= 2**32
    framed = what == "reduce" and border in {"clip", "constant"}
    groups = groups_of(shape, window, border if framed else "reflect", box)
    label_pitch = up(shape[2], 8)
    cells = (z1 - z0) * (y1 - y0) * label_pitch
    buffers = {
        "image": Buffer(f"uint{8 * dtype.itemsize}", prod(staged.shape)),
        "run_at": Buffer("int32", len(groups.parts), groups.parts),
    }
    if what == "reduce":
        buffers["numbers"] = Buffer("uint8", cells)
        buffers["table"] = Buffer("uint64", classes * (GROUP * len(groups.inside) + MOMENTS), clear=True)
    common = (
        ("VOXEL", dtype.itemsize),
        ("SIGNED", int(signed)),
        ("MANY", int(classes > 1)),
        ("FRAME", int(framed)),
        ("REDUCE", int(what == "reduce")),
        ("POWER", power),
        ("FLOOR", floor_shift(size) if what.endswith("_high") else 0),
        ("ROW_FITS", int(8 * size * largest < 2**32)),
    )
    made = Plan(box, dtype.name, window, staged, label_pitch, buffers, (), groups.inside, 0)
    if not streamed:
        return wide_plan(made, common, z, y, shape, border, what)
    buffers["row_at"] = Buffer("int32", len(y.places), local(y))
    if what == "reduce":
        buffers["map"] = Buffer("uint64" if wide else "uint32", 1)
    else:
        buffers["map"] = Buffer("uint64" if wide else "uint32", cells)
        buffers["numbers"], buffers["table"] = Buffer("uint8", 1), Buffer("uint64", 1)
    macros = (*common, ("WIDE", int(wide)), ("CY", window[1]), ("CX", window[2]))
    strips = -(-shape[2] // (tile - left - right))
    if window[0] == 1:
        launch = flat_launch(made, macros, strips, groups, segment)
    else:
        buffers["plane_at"] = Buffer("int32", len(z.places), local(z))
        launch = deep_launch(made, (*macros, ("CZ", window[0])), strips, groups, segment, shared)
    bias = (1 << 8 * dtype.itemsize - 1) * size if signed and power == 1 else 0
    return made._replace(launches=(launch,), bias=bias)


def floor_shift(size: int) -> int:
    """s: where powers are summed over ``size`` voxels, what their floors over 2^s leave fits 64 bits."""
    return 64 - size.bit_length()


def local(axis: Axis) -> Array:
    """An axis's places for the streamed kernels: what is outside reads the zeros behind the others."""
    return np.where(axis.places == OUTSIDE, axis.stop - axis.first, axis.places).astype(np.int32)


def segments_of(length: int, others: int, least: int, most: int) -> int:
    """How long the segments of ``length`` rows or planes are, with ``others`` warps beside each other in each."""
    count = max(1, min(FULL // max(1, others), length // least))
    return min(most, -(-length // count))


def flat_launch(
    the: Plan, macros: tuple[tuple[str, int], ...], strips: int, groups: Groups, segment: int | None
) -> Launch:
    """box2d over all planes of the box."""
    z0, z1, y0, y1 = the.box
    rows, columns = y1 - y0, len(the.staged.beside) - the.window[2] + 1
    if segment is None:
        segment = segments_of(rows, strips * (z1 - z0), max(64, 8 * the.window[1]), THREAD_VOXELS // 8)
    segments = -(-rows // segment)
    settings = dict(macros)
    lane = 8 if settings["WIDE"] else 4
    a_warp = the.window[1] * 256 * settings["VOXEL"] + (256 + 16) * lane
    warps = next((warps for warps in (4, 2) if warps * a_warp <= 48 << 10), 1)
    numbers = (
        rows,
        columns,
        the.staged.pitch,
        the.label_pitch,
        the.staged.shape[1],
        strips,
        segments,
        segment,
        len(groups.inside),
        groups.middle,
        groups.middle_x,
    )
    return Launch(
        "box2d.cu",
        "box2d",
        (*macros, ("WARPS", warps)),
        (-(-strips // warps) * segments * (z1 - z0), 1, 1),
        (32 * warps, 1, 1),
        warps * a_warp,
        ("image", "numbers", "row_at", "run_at", "table", "map", *map(np.int32, numbers)),
    )


class Tile(NamedTuple):
    """What a block of box3d works at."""

    warps: int
    rows: int  # of half a warp
    ring: int  # planes of a bit a voxel that wait for their windows; or 0
    shared: int

    @property
    def tall(self) -> int:
        """Its rows."""
        return 2 * self.warps * self.rows


def tile_of(window: Shape, settings: dict[str, int], shared: int) -> Tile:
    """The tile of a window: a large one where many rows are there for others, if the device has room for it."""
    lane = 8 if settings["WIDE"] else 4
    one_class = settings["REDUCE"] and not settings["MANY"]
    ring = window[0] - window[0] // 2 + 1 if one_class else 0  # one more than wait (see box3d.cu)

    def tile(warps: int, ring: int) -> Tile:
        tall = 2 * warps * 5
        return Tile(warps, 5, ring, ((tall + 1 + 2 * warps) * 128 + warps * (256 + 16)) * lane + ring * tall * 16)

    small = 4 if settings["WIDE"] else 8
    large = 16 if ring and window[1] > LOW and not settings["WIDE"] else small
    room = (one for one in (tile(large, ring), tile(small, ring)) if one.shared <= shared)
    return next(room, tile(small, 0))


def deep_launch(
    the: Plan, macros: tuple[tuple[str, int], ...], tiles: int, groups: Groups, segment: int | None, shared: int
) -> Launch:
    """box3d over the box."""
    z0, z1, y0, y1 = the.box
    planes, rows, columns = z1 - z0, y1 - y0, len(the.staged.beside) - the.window[2] + 1
    tile = tile_of(the.window, dict(macros), shared)
    out_rows = (tile.tall - (the.window[1] - 1)) // 2 * 2
    tile_rows = -(-rows // out_rows)
    if segment is None:
        most = THREAD_VOXELS // (8 * tile.rows)
        segment = segments_of(planes, tiles * tile_rows * tile.warps, max(64, 4 * the.window[0]), most)
    numbers = (
        planes,
        rows,
        columns,
        the.staged.pitch,
        the.label_pitch,
        the.staged.shape[1],
        tiles,
        tile_rows,
        segment,
        y0 - the.staged.rows[0],
        len(groups.inside),
        groups.middle,
        groups.middle_x,
    )
    return Launch(
        "box3d.cu",
        "box3d",
        (*macros, ("WARPS", tile.warps), ("ROWS", tile.rows), ("RING", tile.ring)),
        (tiles * tile_rows * -(-planes // segment), 1, 1),
        (32 * tile.warps, 1, 1),
        tile.shared,
        ("image", "numbers", "row_at", "plane_at", "run_at", "table", "map", *map(np.int32, numbers)),
    )


def wide_plan(
    made: Plan,
    macros: tuple[tuple[str, int], ...],
    z: Axis,
    y: Axis,
    shape: Shape,
    border: str,
    what: What,
) -> Plan:
    """Running sums along one axis after the other, through two buffers of 64-bit numbers."""
    z0, z1, y0, y1 = made.box
    planes, rows, columns = z.stop - z.first, y.stop - y.first, shape[2]
    x_places = axis_map(columns, made.window[2], border)
    buffers = {
        **made.buffers,
        "here": Buffer("int64", planes * rows * columns),
        "there": Buffer("int64", planes * rows * columns),
        "z_at": Buffer("int32", len(z.places), z.places.astype(np.int32)),
        "y_at": Buffer("int32", len(y.places), y.places.astype(np.int32)),
        "x_at": Buffer("int32", len(x_places), x_places.astype(np.int32)),
    }
    pitch = np.int32(made.staged.pitch)

    def launch(kernel: str, threads: int, *arguments: str | np.generic) -> Launch:
        blocks = max(1, min(1 << 20, -(-threads // 128)))
        return Launch("wide.cu", kernel, macros, (blocks, 1, 1), (128, 1, 1), 0, arguments)

    def along(
        source: str, target: str, axis: int, lengths: tuple[int, int], stride: int, inner: int, lines: int
    ) -> Launch:
        small = map(np.int32, (*lengths, made.window[axis]))
        return launch(
            "along", lines, source, target, "zyx"[axis] + "_at", *small, *map(np.uint64, (stride, inner, lines))
        )

    deep, tall = z1 - z0, y1 - y0
    places = planes * rows * columns
    launches = [
        launch("widen", places, "image", "here", np.int32(columns), pitch, np.uint64(places)),
        along("here", "there", 0, (planes, deep), rows * columns, rows * columns, rows * columns),
        along("there", "here", 1, (rows, tall), columns, columns, deep * columns),
        along("here", "there", 2, (columns, columns), 1, 1, deep * tall),
    ]
    if what == "reduce":
        numbers = (
            deep,
            tall,
            columns,
            made.staged.pitch,
            made.label_pitch,
            rows,
            z0 - z.first,
            y0 - y.first,
            len(made.inside),
        )
        rows_in_parts = deep * tall * -(-columns // 64)
        buffers_of = ("image", "numbers", "there", "run_at", "table")
        launches.append(launch("collect", rows_in_parts, *buffers_of, *map(np.int32, numbers)))
    return made._replace(buffers=buffers, launches=tuple(launches), bias=1 << 63 if what == "reduce" else 0)


def stage_image(the: Plan, image: Array, out: Array) -> None:
    """Lay the part of an image that the plan reads out in ``out``, of the bits of its type, flat."""
    staged = the.staged
    part = out.reshape(staged.shape).view(the.dtype)
    (first, stop), (top, bottom) = staged.planes, staged.rows
    before = the.window[2] // 2 if staged.lead else 0
    own = image[first:stop, top:bottom]
    body = part[: stop - first, : bottom - top]
    columns = image.shape[2]
    body[:, :, staged.lead : staged.lead + columns] = own
    body[:, :, : staged.lead - before] = 0
    body[:, :, staged.lead - before + len(staged.beside) :] = 0
    for at in (*range(before), *range(before + columns, len(staged.beside))):
        source = int(staged.beside[at])
        body[:, :, staged.lead - before + at] = own[:, :, source] if source != OUTSIDE else 0
    part[stop - first :] = 0
    part[:, bottom - top :] = 0


def stage_numbers(the: Plan, labels: Array, classes: Sequence[int], out: Array) -> None:
    """Lay the class numbers of the plan's box out: k + 1 where the label is ``classes[k]``, else 0.

    There are classes, they differ, and labels can hold them.
    """
    z0, z1, y0, y1 = the.box
    own = labels[z0:z1, y0:y1]
    part = out.reshape(z1 - z0, y1 - y0, the.label_pitch)
    part[:, :, own.shape[2] :] = 0
    table = None
    if len(classes) > FEW and own.dtype.itemsize <= 2:
        table = np.zeros(1 << 8 * own.dtype.itemsize, np.uint8)
        table[np.array(classes, own.dtype).view(f"u{own.dtype.itemsize}")] = np.arange(1, len(classes) + 1)
        own = own.view(f"u{own.dtype.itemsize}")
    rows = max(1, STAGED_AT_ONCE // own.shape[2])
    for z, y in product(range(z1 - z0), range(0, y1 - y0, rows)):
        some, into = own[z, y : y + rows], part[z, y : y + rows, : own.shape[2]]
        if table is not None:
            table.take(some, out=into, mode="clip")
            continue
        into[...] = some == classes[0]
        for number, value in enumerate(classes[1:], 2):  # a mask as an index would take ten times as long
            into |= (some == value) * np.uint8(number)


def reductions(the: Plan, table: Array) -> list[Reduction]:
    """What a table says, of stored integers."""
    groups = len(the.inside)
    dtype = np.dtype(the.dtype)
    bias = 1 << 8 * dtype.itemsize - 1 if dtype.kind == "i" else 0
    answer = []
    for row in table.reshape(-1, GROUP * groups + MOMENTS):
        counted = row[: GROUP * groups].reshape(groups, GROUP)
        found: dict[int, tuple[int, int]] = {}
        for at in np.flatnonzero(counted[:, 0]).tolist():
            voxels, low, high = counted[at].tolist()
            inside = int(the.inside[at])
            before = found.get(inside, (0, 0))
            found[inside] = before[0] + voxels, before[1] + (high << 32) + low - the.bias * voxels
        total, low, mixed, high = (half + (other << 32) for half, other in row[GROUP * groups :].reshape(4, 2).tolist())
        voxels = sum(count for count, _ in found.values())
        squares = low + (mixed << 17) + (high << 32)
        answer.append(Reduction(total - bias * voxels, squares - 2 * bias * total + bias * bias * voxels, found))
    return answer


def boxes(
    image: Array,
    window: Shape,
    border: str,
    memory: int,
    what: Sequence[What],
    classes: int = 1,
    shared: int = SHARED,
) -> Iterator[list[Plan]]:
    """Plans of parts of an image, one for each of ``what``, together of at most ``memory`` bytes; see `cut`."""

    def plans_of(box: Box) -> list[Plan]:
        how: dict[str, Any] = {"classes": classes, "box": box, "shared": shared}
        return [plan_for(image.shape, image.dtype, window, border, one, **how) for one in what]

    yield from cut((0, image.shape[0], 0, image.shape[1]), image.shape[2], plans_of, memory)


def cut(
    whole: Box, columns: int, plans_of: Callable[[Box], list[Plan]], memory: int, more: int = 0
) -> Iterator[list[Plan]]:
    """Plans of parts of a box, those of each part together of at most ``memory`` bytes, with ``more`` of each voxel.

    Cut between planes first, then between rows.

    Raises
    ------
    MemoryError
        A single row needs more.
    """
    pending = [whole]
    while pending:
        z0, z1, y0, y1 = box = pending.pop()
        plans = plans_of(box)
        needed = sum(plan.bytes for plan in plans) + more * (z1 - z0) * (y1 - y0) * columns
        if needed <= memory and all(prod(plan.staged.shape[1:]) < 2**31 for plan in plans):
            yield plans
        elif z1 - z0 > 1:
            middle = (z0 + z1) // 2
            pending += [(middle, z1, y0, y1), (z0, middle, y0, y1)]
        elif y1 - y0 > 1:
            middle = (y0 + y1) // 2
            pending += [(z0, z1, middle, y1), (z0, z1, y0, middle)]
        else:
            raise MemoryError(f"a row of {columns} voxels needs {needed} bytes of the device, {memory} are free")
