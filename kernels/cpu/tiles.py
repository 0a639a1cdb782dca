"""How the adjoint road cuts an image, what it steps over, and when it pays.

An image is cut into boxes of planes and rows, one kernel call each. Where a sample of rows says that a class fills
little of it (a lesion), the blocks that hold the class are looked up first, and the kernel steps over what their
windows do not reach: of most of the image nothing but the ground truth is read. Under ``clip`` and ``constant`` this
road takes the voxels whose windows lie inside; the frame round them is cut out and streamed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from voxring.kernels import Reduction
from voxring.kernels.axes import axis_map

from .adjoint import Lanes, Memory, Work, adjoint, memory, stride_for
from .bare import bare
from .boxes import Box, cut, evenly
from .dots import Values
from .jit import Array, Number, Shape, compiled, jit
from .rows import count
from .threads import in_threads
from .vectors import LANES, bytes_of, either, load, no_bytes, same, total

# Costs in nanoseconds, a voxel or a call, on one core of an AMD EPYC of 2.6 GHz: `by_adjoint` and `by_stream` of this
# package, called side by side on images of 8 x 8 to 256 x 512 x 512 voxels. Only
# their ratios matter: they choose the road.
STREAMED = 2.0
STREAMED_CLASS = 1.5
STREAMED_CALL = 90_000
ADJOINT = 0.4
ADJOINT_WIDE = 0.5  # with counts of two bytes
ADJOINT_CALL = 12_000

PLANE_BYTES = 1 << 19
"""The sums over z that a box keeps, a byte each: they stay in the L2 cache."""

HEIGHT = 1 << 14
"""Places of the rows that a dense image has done at a time: their sums stay in the L1 cache."""

UNKNOWN = np.zeros((0, 0, 0), np.uint8)
"""Which blocks hold the class, when nobody has looked."""

BLOCK = (8, 128)
"""Rows and columns of what is looked at together: two cache lines of each of eight rows, read side by side."""

DENSE_SHARE = 0.06
"""A class that is in more of a sample of blocks is not worth looking for: its windows reach several times as many."""

WORTH_A_LOOK = 1 << 17
"""Images of fewer voxels are done sooner than looked at."""

FAR = 0.2
"""Where windows reach more of the image, it is done whole: a place of a short run costs nearly five of a whole row."""

SAMPLE_STEP = 4096
"""64 of so many values are looked at to guess whether an image of uint16 holds any of 2^15 and more."""

SAMPLE = 32
"""One row in so many is looked at to guess how much of the image a class fills."""


class Kept(NamedTuple):
    """`adjoint` compiled for images of one type, and the memory of calls that are over.

    Looking up machine code by the types of all arguments, and making ten arrays, takes longer than a small slice does.
    """

    kernel: Callable[..., None]
    memory: list[Memory]


class Plan(NamedTuple):
    """What depends on shapes alone, made once for the many images of a study."""

    work: Work  # where nobody has looked for the class
    lanes: Lanes
    boxes: list[Box]  # of extended places, as the kernel takes them
    tall: int  # rows of the largest box
    height: int  # rows of a dense image done at a time
    kept: dict[np.dtype[Any], Kept]  # for each type of image


def lanes_for(window: Shape) -> Lanes | None:
    """The narrowest lanes that provably hold every count, or None where the adjoint road has none wide enough."""
    cz, cy, cx = window
    if cz > 255 or cz * cy * cx > 32767:
        return None
    narrow = np.uint8 if cz * cx <= 255 else np.int16
    wide = np.uint8 if cz * cy * cx <= 255 else np.int16
    return Lanes(narrow, wide)


@lru_cache(maxsize=16)
def plan(shape: Shape, window: Shape, border: str, workers: int) -> Plan | None:
    """The plan for images of one shape, or None where the adjoint road cannot go."""
    lanes = lanes_for(window)
    sizes = list(zip(shape, window, strict=True))
    if lanes is None or any(size > 2 * length + 1 for length, size in sizes):
        return None
    if border in {"clip", "constant"}:  # the windows that lie inside; the frame goes the streamed road
        if any(size > length for length, size in sizes):
            return None
        ranges = [(size // 2, length - (size - 1 - size // 2)) for length, size in sizes]
    else:
        ranges = [(0, length) for length in shape]
    (z0, z1), (y0, y1), (x0, x1) = ranges
    z_map, y_map, x_map = (axis_map(length, size, border) for length, size in sizes)
    (planes, rows, columns) = ((low, high + size - 1) for (low, high), size in zip(ranges, window, strict=True))
    width = columns[1] - columns[0]
    boxes = cut(planes, rows, width, max(1, PLANE_BYTES // stride_for(shape[2], window[2])), window, workers)
    return Plan(
        Work(shape, window, (z_map, y_map, x_map), (z0, z1, y0, y1, x0, x1), UNKNOWN, BLOCK),
        lanes,
        boxes,
        max(y1 - y0 for _, _, y0, y1 in boxes),
        max(1, min(rows[1] - rows[0], max(HEIGHT // width, window[1]))),
        {},
    )


def adjoint_pays(the: Plan, classes: int) -> bool:
    """Whether the adjoint road, once per class, is cheaper than the streamed one, once for all.

    A guess from the shapes: the adjoint road walks over the extended places, and streams the frame for ``clip``.
    """
    planes, rows, columns = the.work.shape
    voxels = planes * rows * columns
    z0, z1, y0, y1, x0, x1 = the.work.voxels
    cz, cy, cx = the.work.window
    extended = (z1 - z0 + cz - 1) * (y1 - y0 + cy - 1) * (x1 - x0 + cx - 1)
    frame_voxels = voxels - (z1 - z0) * (y1 - y0) * (x1 - x0)
    place = ADJOINT if the.lanes.wide is np.uint8 else ADJOINT_WIDE
    one_class = ADJOINT_CALL + place * extended
    if frame_voxels:
        one_class += 6 * STREAMED_CALL + (STREAMED + STREAMED_CLASS) * 2 * frame_voxels
    return classes < 256 and classes * one_class < STREAMED_CALL + (STREAMED + classes * STREAMED_CLASS) * voxels


@jit
def occupied_blocks(labels: Array, value: Number, columns: int, rows_of: Array, wide: int, found: Array) -> None:
    """found[r, b] = 1 if one of the rows rows_of[r, 0] … rows_of[r, 1] − 1 (of all planes' rows, each of ``columns``)
    holds ``value`` in column block b. Must equal ``any`` over the block.
    """
    labels = bare(labels)
    wanted = bytes_of(value)
    for r in range(rows_of.shape[0]):
        first, stop = rows_of[r]
        for b in range(found.shape[1]):
            left, right = b * wide, min((b + 1) * wide, columns)
            if right - left < LANES:
                some = False
                for row in range(first, stop):
                    some |= count(labels, row * columns + left, value, right - left) > 0
                found[r, b] = some
                continue
            seen = no_bytes()
            for row in range(first, stop):
                for x in range(left, right, LANES):  # the last reaches back over what has been seen
                    place = np.uint64(row * columns + min(x, right - LANES))
                    seen = either(seen, same(load(labels, place), wanted))
            found[r, b] = total(seen) > 0


@jit
def any_negative(values: Array, step: int) -> bool:
    """Whether one of a sample of values is below 0: 64 of every ``step``."""
    values = bare(values)
    for start in range(0, values.size, step):
        least = np.int16(0)
        for i in range(start, min(start + 64, values.size)):
            least = min(least, values[i])
        if least < 0:
            return True
    return False


@jit
def occupied_share(labels: Array, value: Number, columns: int, wide: int) -> float:
    """In how many of the column blocks of every SAMPLE-th row ``value`` is, as a share."""
    labels = bare(labels)
    blocks = hits = 0
    for row in range(SAMPLE // 2 % (labels.size // columns), labels.size // columns, SAMPLE):
        for left in range(0, columns, wide):
            blocks += 1
            hits += count(labels, row * columns + left, value, min(wide, columns - left)) > 0
    return hits / blocks


def blocks_with(labels: Array, value: np.uint8, shape: Shape, workers: int) -> Array:
    """(planes, blocks of rows, blocks of columns): 1 where the class is."""
    planes, rows, columns = shape
    tall, wide = BLOCK
    starts = (np.arange(planes)[:, None] * rows + np.arange(0, rows, tall)).reshape(-1)
    rows_of = np.stack([starts, np.minimum(starts + tall, (starts // rows + 1) * rows)], axis=1)
    found = np.empty((len(starts), -(-columns // wide)), np.uint8)
    parts = [slice(start, stop) for start, stop in evenly(0, len(starts), -(-len(starts) // workers))]
    in_threads(lambda part: occupied_blocks(labels, value, columns, rows_of[part], wide, found[part]), parts, workers)
    return found.reshape(planes, -1, found.shape[1])


def reached_share(occupied: Array, window: Shape) -> float:
    """How much of the image the windows of the class reach, as a share."""
    near = occupied.astype(bool)
    for axis, blocks in enumerate((window[0] - 1, -(-(window[1] - 1) // BLOCK[0]))):
        done = 0
        while done < blocks:  # a block reaches ``done`` blocks beyond its own; twice as many at each step
            shift = min(done + 1, blocks - done)
            before, after = [slice(None)] * 3, [slice(None)] * 3
            before[axis], after[axis] = slice(None, -shift), slice(shift, None)
            near[tuple(after)] |= near[tuple(before)].copy()
            done += shift
    return float(near.mean()) * (1 + (window[2] - 1) / BLOCK[1])


def new(flat: Array, labels: Array, the: Plan) -> Kept:
    """What is kept for images of a type, when the first of them comes."""
    parts = memory(the.work, 1, the.height, the.lanes)
    how = Values(np.int16(0), np.int64(-1), np.uint8(1))
    return Kept(compiled(adjoint, flat, labels, how, the.work, the.boxes[0], the.height, *parts), [])


def reduce_adjoint(
    image: Array, labels: Array, value: int, the: Plan, occupied: Array, workers: int
) -> tuple[int, int, int, int, int]:
    """(voxels, Σ S, Σ v, Σ v², lift) of one class: Σ S over ``the.work.voxels``, the others over the whole image.

    All of v − lift.
    """
    flat = image.reshape(-1)
    lift = 0
    if image.dtype == np.uint16:
        flat = flat.view(np.int16)
        lift = 1 << 15 if any_negative(flat, SAMPLE_STEP) else 0
    bits = 0xFFFF if image.dtype == np.uint16 and lift == 0 else -1
    how = Values(-lift, bits, value)
    dense = occupied.size == 0
    work = the.work if dense else the.work._replace(occupied=occupied)
    height = the.height if dense else BLOCK[0]

    kept = the.kept.get(flat.dtype) or the.kept.setdefault(flat.dtype, new(flat, labels, the))

    def run(box: Box) -> list[int]:
        try:
            mine = kept.memory.pop() if dense else memory(work, the.tall, height, the.lanes)
        except IndexError:
            mine = memory(work, the.tall, height, the.lanes)
        kept.kernel(flat, labels, how, work, box, height, *mine)
        numbers: list[int] = mine.result.tolist()
        if dense:
            kept.memory.append(mine)
        return numbers

    voxels = total = moment = squares = 0
    for more, sums, values, products, *_ in in_threads(run, the.boxes, workers):
        voxels += more
        total += sums
        moment += values
        squares += products
    return voxels, total, moment, squares, lift


def reduce_class(
    image: Array, labels: Array, value: int, border: str, the: Plan, workers: int, *, look: bool | None = None
) -> Reduction:
    """`reduce` for one class by the adjoint road. ``labels`` is flat, of uint8, and ``value`` one that it can hold.

    ``look`` says whether to look first where the class is, and to step over the rest; by default a sample decides.
    """
    guess = look is None
    if guess and image.size > WORTH_A_LOOK:
        look = occupied_share(labels, np.uint8(value), the.work.shape[2], BLOCK[1]) <= DENSE_SHARE
    occupied = UNKNOWN
    if look:
        occupied = blocks_with(labels, np.uint8(value), the.work.shape, workers)
        if not occupied.any():
            return Reduction()
        if guess and reached_share(occupied, the.work.window) > FAR:
            occupied = UNKNOWN
    voxels, total, moment, squares, lift = reduce_adjoint(image, labels, value, the, occupied, workers)
    squares += lift * (2 * moment + lift * voxels)
    moment += lift * voxels
    groups: dict[int, tuple[int, int]] = {}
    if border in {"clip", "constant"}:
        around = Reduction()
        for part in frame(image, labels.reshape(image.shape), value, the, border, workers):
            around = around + part
        groups = around.groups
        voxels -= around.voxels
    if voxels > 0:
        cz, cy, cx = the.work.window
        size = cz * cy * cx
        groups[size] = (voxels, total + lift * size * voxels)
    return Reduction(moment, squares, groups)


def frame(image: Array, labels: Array, value: int, the: Plan, border: str, workers: int) -> Iterator[Reduction]:
    """The groups of the voxels whose windows do not lie inside: the six slabs round the voxels whose windows do.

    Each slab is cut out with as much of the image as its windows reach, its long side last, and streamed.
    """
    from .streamed import groups_streamed

    inner, sizes = the.work.voxels, the.work.window
    for axis in range(3):
        low, high = inner[2 * axis], inner[2 * axis + 1]
        reach = sizes[axis] - 1
        length = the.work.shape[axis]
        for start, stop, cut_start, cut_stop in (
            (0, low, 0, min(length, low + reach)),
            (high, length, max(0, high - reach), length),
        ):
            region = [slice(None)] * 3
            region[axis] = slice(cut_start, cut_stop)
            here = np.zeros(labels[tuple(region)].shape, np.uint8)
            own = [slice(inner[2 * a], inner[2 * a + 1]) if a < axis else slice(None) for a in range(3)]
            own[axis] = slice(start, stop)
            into = list(own)
            into[axis] = slice(start - cut_start, stop - cut_start)
            here[tuple(into)] = labels[tuple(own)] == value
            if not here.any():
                continue
            order = (0, 2, 1) if axis == 2 else (0, 1, 2)
            window = (sizes[order[0]], sizes[order[1]], sizes[order[2]])
            voxels = np.ascontiguousarray(image[tuple(region)].transpose(order))
            numbers = np.ascontiguousarray(here.transpose(order)).reshape(-1)
            kept = (start - cut_start, stop - cut_start)
            (part,) = groups_streamed(
                voxels,
                numbers,
                1,
                window,
                border,
                workers,
                planes=kept if axis == 0 else None,
                rows=kept if axis > 0 else None,
            )
            yield part
