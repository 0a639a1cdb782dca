"""How the adjoint road cuts an image, what it steps over, and when it pays.

An image is cut into pieces of planes and rows, one kernel call each. Where a sample of rows says that few blocks hold
both the class and something else (a lesion; ground truth that covers an organ, or everything), the ground truth is
looked through first and cut into boxes (see `regions`): then nothing else of the image is read, and the ground truth
only where the class ends. Under ``clip`` and ``constant`` this road takes the voxels whose windows lie inside; the
frame round them is cut out and streamed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from voxring.kernels import Reduction
from voxring.kernels.axes import axis_map

from .adjoint import Lanes, Memory, Work, adjoint, memory
from .bare import bare
from .boxes import PART, Box6, cut
from .dots import Values
from .jit import Array, Number, Shape, compiled, jit
from .regions import BLOCK, blocks_of, boxes_of
from .rows import count
from .threads import SMALL, in_threads, thread_count
from .vectors import LANES
from .whole import whole

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
"""The sums over z that a piece keeps, a byte each: they stay in the L2 cache."""

MIXED_SHARE = 0.06
"""Where more of a sample of blocks holds both the class and something else, boxes are not worth looking for."""

WORTH_A_LOOK = 1 << 17
"""Images of fewer voxels are done sooner than looked at."""

SAMPLE_STEP = 1 << 15
"""64 of so many values are looked at to guess whether an image of uint16 holds any of 2^15 and more. Memory is waited
for each time: half a microsecond, of the 100 that a slice takes."""

MOST_SAMPLES = 256
"""So many looks are enough for the largest image."""

SAMPLE = 256
"""One row in so many is looked at to guess how much of the image a class fills."""


class Kept(NamedTuple):
    """`adjoint` compiled for images of one type, and the memory of calls that are over.

    Looking up machine code by the types of all arguments, and making ten arrays, takes longer than a small slice does.
    """

    kernel: Callable[..., None]
    memory: list[Memory]


class Calls(NamedTuple):
    """Parts of an image, dealt out to kernel calls, and how many threads make them."""

    parts: list[Array]
    workers: int


class Plan(NamedTuple):
    """What depends on shapes alone, made once for the many images of a study."""

    work: Work
    voxels: Box6  # the q whose windows this road takes
    lanes: Lanes
    parts: Array  # all of them, in pieces, as the kernel takes them
    calls: Calls  # the same
    kept: dict[np.dtype[Any], Kept]  # for each type of image


def lanes_for(window: Shape) -> Lanes | None:
    """The narrowest lanes that provably hold every count, or None where the adjoint road has none wide enough."""
    cz, cy, cx = window
    if cz > 255 or cz * cy * cx > 32767:
        return None
    narrow = np.uint8 if cz * cx <= 255 else np.int16
    wide = np.uint8 if cz * cy * cx <= 255 else np.int16
    return Lanes(narrow, wide)


def pieces(voxels: Box6, window: Shape, workers: int) -> list[tuple[int, ...]]:
    """A box of q, cut into parts of extended places for `adjoint`."""
    (planes, rows, columns) = ((voxels[2 * a], voxels[2 * a + 1] + window[a] - 1) for a in range(3))
    width = columns[1] - columns[0]
    stride = -(-width // LANES) * LANES
    return [voxels + box for box in cut(planes, rows, width, max(1, PLANE_BYTES // stride), window, workers)]


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
        (z0, z1), (y0, y1), (x0, x1) = ((size // 2, length - (size - 1 - size // 2)) for length, size in sizes)
    else:
        (z0, z1), (y0, y1), (x0, x1) = ((0, length) for length in shape)
    z_map, y_map, x_map = (axis_map(length, size, border) for length, size in sizes)
    voxels = z0, z1, y0, y1, x0, x1
    parts = np.array(pieces(voxels, window, workers), np.int64)
    return Plan(Work(shape, window, (z_map, y_map, x_map)), voxels, lanes, parts, calls_of(parts, window, workers), {})


def adjoint_pays(the: Plan, classes: int) -> bool:
    """Whether the adjoint road, once per class, is cheaper than the streamed one, once for all.

    A guess from the shapes: the adjoint road walks over the extended places, and streams the frame for ``clip``.
    """
    planes, rows, columns = the.work.shape
    voxels = planes * rows * columns
    z0, z1, y0, y1, x0, x1 = the.voxels
    cz, cy, cx = the.work.window
    extended = (z1 - z0 + cz - 1) * (y1 - y0 + cy - 1) * (x1 - x0 + cx - 1)
    frame_voxels = voxels - (z1 - z0) * (y1 - y0) * (x1 - x0)
    place = ADJOINT if the.lanes.wide is np.uint8 else ADJOINT_WIDE
    one_class = ADJOINT_CALL + place * extended
    if frame_voxels:
        one_class += 6 * STREAMED_CALL + (STREAMED + STREAMED_CLASS) * 2 * frame_voxels
    return classes < 256 and classes * one_class < STREAMED_CALL + (STREAMED + classes * STREAMED_CLASS) * voxels


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
def mixed_share(labels: Array, value: Number, columns: int, wide: int) -> float:
    """In how many of the column blocks of every SAMPLE-th row ``value`` is, and another label, too: as a share."""
    labels = bare(labels)
    blocks = hits = 0
    for row in range(SAMPLE // 2 % (labels.size // columns), labels.size // columns, SAMPLE):
        for left in range(0, columns, wide):
            n = min(wide, columns - left)
            blocks += 1
            hits += 0 < count(labels, row * columns + left, value, n) < n
    return hits / blocks


def new(flat: Array, labels: Array, the: Plan) -> Kept:
    """What is kept for images of a type, when the first of them comes."""
    how = Values(np.int16(0), np.int64(-1), np.uint8(1))
    return Kept(
        compiled(adjoint, flat, labels, how, the.work, the.parts, *memory(the.parts, the.work.window, the.lanes)), []
    )


NOTHING = Calls([], 1)


class Sums(NamedTuple):
    """Of some voxels of a class: how many, Σ S, Σ v, Σ v²."""

    voxels: int = 0
    sums: int = 0
    total: int = 0
    squares: int = 0

    def lifted(self, lift: int, size: int) -> Sums:
        """The sums of v, where these are of v − lift, and windows hold ``size`` voxels."""
        if lift == 0:
            return self
        squares = self.squares + lift * (2 * self.total + lift * self.voxels)
        return Sums(self.voxels, self.sums + lift * size * self.voxels, self.total + lift * self.voxels, squares)


def together(sums: list[Sums]) -> Sums:
    """All of them added up."""
    return sums[0] if len(sums) == 1 else Sums(*map(sum, zip(Sums(), *sums, strict=True)))


def reduce_mixed(image: Array, labels: Array, value: int, the: Plan, calls: Calls) -> Sums:
    """The sums of a class in parts for `adjoint`. Image and labels are flat."""
    unsigned = image.dtype == np.uint16
    if unsigned:
        image = image.view(np.int16)
    lift = 1 << 15 if unsigned and any_negative(image, max(SAMPLE_STEP, image.size // MOST_SAMPLES)) else 0
    how = Values(-lift, 0xFFFF if unsigned and lift == 0 else -1, value)
    keep = calls is the.calls
    window = the.work.window
    kept = the.kept.get(image.dtype) or the.kept.setdefault(image.dtype, new(image, labels, the))

    def run(some: Array) -> Sums:
        try:
            mine = kept.memory.pop() if keep else memory(some, window, the.lanes)
        except IndexError:
            mine = memory(the.parts, window, the.lanes)
        kept.kernel(image, labels, how, the.work, some, *mine)
        numbers: list[int] = mine.result.tolist()
        if keep:
            kept.memory.append(mine)
        return Sums(*numbers[:4])

    return together(in_threads(run, *calls)).lifted(lift, prod(window))


def reduce_whole(image: Array, the: Plan, calls: Calls) -> Sums:
    """The sums of boxes that hold nothing but the class. The image is flat."""
    lift = 0
    if image.dtype == np.uint16:
        image = image.view(np.int16)
        lift = 1 << 15
    shape, window, maps = the.work

    def run(some: Array) -> Sums:
        sums = np.empty(4, np.int64)
        weights = np.empty(shape[0], np.int64), np.empty(shape[1], np.int64), np.empty(shape[2], np.int64)
        whole(image, Values(-lift, -1, 1), shape, window, maps, some, weights, sums)
        return Sums(*sums.tolist())

    return together(in_threads(run, *calls)).lifted(lift, prod(window))


def calls_of(parts: Array, window: Shape, workers: int) -> Calls:
    """Parts for `adjoint`, dealt out."""
    places = (parts[:, 7] - parts[:, 6]) * (parts[:, 9] - parts[:, 8]) * (parts[:, 5] - parts[:, 4] + window[2] - 1)
    return dealt(parts, places, workers)


def calls_of_boxes(boxes: Array, workers: int) -> Calls:
    """Boxes for `whole`, dealt out."""
    voxels = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) * (boxes[:, 5] - boxes[:, 4])
    return dealt(boxes, voxels, workers)


def dealt(parts: Array, sizes: Array, workers: int) -> Calls:
    """Parts in turn, dealt out to calls: of some for each worker, and none of more than PART voxels unless alone."""
    workers = thread_count(workers, int(sizes.sum()))
    if len(parts) < 2:
        return Calls([parts] * len(parts), workers)
    done = np.cumsum(sizes)
    most = min(PART // 2, -(-int(done[-1]) // (4 * workers if workers > 1 else 1)))
    alone = sizes > PART // 2  # the first of a call may begin before the stretch in which the call's parts end
    cuts = (np.diff(done // (most + 1)) > 0) | alone[1:] | alone[:-1]
    return Calls(np.split(parts, np.flatnonzero(cuts) + 1), workers)


def reduce_class(
    image: Array, labels: Array, value: int, border: str, the: Plan, workers: int, *, look: bool | None = None
) -> Reduction:
    """`reduce` for one class by the adjoint road. ``labels`` is flat, of uint8, and ``value`` one that it can hold.

    ``look`` says whether to look first where the class is, and to cut it into boxes; by default a sample decides.
    """
    flat, shape, window = image.reshape(-1), the.work.shape, the.work.window
    mixed, full = the.calls, NOTHING
    if look is None and image.size > WORTH_A_LOOK:
        look = mixed_share(labels, np.uint8(value), shape[2], BLOCK[2]) <= MIXED_SHARE
    if look:
        held = blocks_of(labels, np.uint8(value), shape, workers)
        if not held.any():
            return Reduction()
        some, all_of_it = (within(boxes, the.voxels) for boxes in boxes_of(held, shape, window))
        mixed = calls_of(parts_of(some, window, workers), window, workers)
        full = calls_of_boxes(halves_of(all_of_it, window, workers), workers)
    sums = reduce_mixed(flat, labels, value, the, mixed) if mixed.parts else Sums()
    if full.parts:
        sums = together([sums, reduce_whole(flat, the, full)])
    answer = Reduction(sums.total, sums.squares, {prod(window): (sums.voxels, sums.sums)} if sums.voxels > 0 else {})
    if border in {"clip", "constant"}:
        for part in frame(image, labels.reshape(shape), value, the, border, workers):
            answer = answer + part
    return answer


def within(boxes: Array, voxels: Box6) -> Array:
    """What of the boxes lies within another."""
    boxes = boxes.copy()
    boxes[:, ::2] = np.maximum(boxes[:, ::2], voxels[::2])
    boxes[:, 1::2] = np.minimum(boxes[:, 1::2], voxels[1::2])
    return boxes[(boxes[:, ::2] < boxes[:, 1::2]).all(axis=1)]


def parts_of(boxes: Array, window: Shape, workers: int) -> Array:
    """Boxes of q as parts for `adjoint`: in pieces, if they are large."""
    reach = np.array(window) - 1
    z, y, x = (boxes[:, 2 * a + 1] - boxes[:, 2 * a] + reach[a] for a in range(3))
    large = (y * (x + LANES) > PLANE_BYTES) | (z * y * x > SMALL)
    small = boxes[~large]
    places = small[:, :4] + [0, reach[0], 0, reach[1]]
    cut = [part for box in boxes[large].tolist() for part in pieces(tuple(box), window, workers)]
    return np.concatenate([np.hstack([small, places]), np.array(cut, np.int64).reshape(-1, 10)])


def halves_of(boxes: Array, window: Shape, workers: int) -> Array:
    """Boxes for `whole`: cut, if they are large."""
    parts = []
    for z0, z1, y0, y1, x0, x1 in boxes.tolist():
        many = workers if (z1 - z0) * (y1 - y0) * (x1 - x0) > SMALL else 1
        parts += [(*box, x0, x1) for box in cut((z0, z1), (y0, y1), x1 - x0, y1 - y0, window, many)]
    return np.array(parts, np.int64).reshape(-1, 6)


def frame(image: Array, labels: Array, value: int, the: Plan, border: str, workers: int) -> Iterator[Reduction]:
    """What the voxels hold whose windows do not lie inside: the six slabs round the voxels whose windows do.

    Each slab is cut out with as much of the image as its windows reach, its long side last, and streamed.
    """
    from .streamed import groups_streamed

    inner, sizes = the.voxels, the.work.window
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
            values = voxels[numbers.reshape(voxels.shape) == 1].astype(np.int64)
            yield part + Reduction(int(values.sum()), int((values * values).sum()))
