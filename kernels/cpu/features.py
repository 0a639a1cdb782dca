"""Feature maps: exact quotients and roots of window sums, rounded half to even to integers.

A box of the image at a time, as `maps` does it, with up to five running sums beside each other: of x, x², x³, and,
where those of x² or x³ may leave 63 bits, of floor(x² / 2^s) and floor(x³ / 2^s). Here x is the stored integer;
a · x + b is the standardised one.

Lanes. Sums of x stay below |W| · max |x| < 2^62. Sums of x² and x³ are computed modulo 2^64. With s = 64 − (bits of
|W|), what the floors leave is below |W| · 2^s <= 2^64, so the residue and the sum of the floors give the whole
(`wide.spread`). The floors' sums fit: |W| x² / 2^s < (|W| x)² / 2^63 < 2^61, and |W| |x|³ / 2^s < 2^123 / 2^63 as
|W| · |x| < 2^41 is asked for skewness. Then V = |W| Σx² − (Σx)² and T = |W|² Σx³ − 3 |W| Σx Σx² + 2 (Σx)³ are exact:
V in 64 bits where (|W| · max |x|)² < 2^63, else V, and T always, in 128.

Rounding. With the integers V and T, each feature is one quotient or root y. A float64 guess of it is off by less than
|y| 2^-49: at most a dozen roundings, and no sum of numbers of unlike sign. Where the guess is farther than |y| 2^-48
from the next half, its nearest integer is that of y. Everywhere else integers decide, comparing
squares (`wide.root_order` and its kin), from the guess on in whole steps: no float decides a half.
Must equal half-even rounding of Python fractions and of roots by `math.isqrt`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from voxring.kernels.axes import axis_inside, axis_map
from voxring.kernels.checks import WINDOWED, check_gradient_width, check_width

from .bare import bare
from .boxes import evenly
from .jit import Array, Arrays, Number, Shape, inner, jit
from .maps import Box, Lane, Reads, cut, lane_for, reads_of, sum_row
from .threads import in_threads
from .wide import multiply, norm, ratio_order, root_order, scaled_plus_square, skew_order, spread, third

U = np.uint64
DOUBT = 2.0**-48
UNUSED = Lane(*(np.empty(0, np.int64),) * 3)
MEAN, VARIANCE, STD, CONTRAST, SKEWNESS = range(5)
RATIO, ROOT, SKEW = range(3)
NOTHING = np.empty(0, np.int64)


Layers = tuple[Array, Array, Array]
"""What is summed beside x and x²: x³ modulo 2^64, floor(x² / 2^s), floor(x³ / 2^s). Flat int64 images, empty where
they are not needed."""


class Scale(NamedTuple):
    """What makes features of sums of stored integers."""

    a: int
    b: int
    unit: int
    shift: int  # s
    wide: bool  # V may leave 63 bits
    fill: int  # what is outside, and its square
    fill_square: int


class Room(NamedTuple):
    """A row of what is between sums and maps."""

    guess: Array  # float64
    spreads: Array  # V as float64
    counts: Array  # |W|, int64


class Sums(NamedTuple):
    """The window sums of a row; empty where they are not needed."""

    x: Array
    squares: Array
    cubes: Array
    squares_high: Array
    cubes_high: Array


@inner
def floors(high: Array, low: Number, i: Number, shift: int) -> Number:
    """The sum of the floors over 2^shift, or, where none was made, the floor of the sum: ``low`` is the whole then."""
    return np.int64(high[i]) if high.size > 0 else low >> shift


@inner
def real(number: Number) -> float:
    """An int64 as float64, rounded once. The same as a conversion, in steps that AVX2 has for four numbers at once: the
    halves become the low bits of 2^52 and of 2^84.
    """
    low = np.int64((number & 0xFFFFFFFF) | 0x4330000000000000)
    high = np.int64((((number >> 32) & 0xFFFFFFFF) ^ 0x80000000) | 0x4530000000000000)
    return (high.view(np.float64) - 19342822341709703277445120.0) + low.view(np.float64)


@inner
def as_float(high: Number, low: Number) -> float:
    """A 128-bit number that is not negative."""
    return np.float64(high) * 18446744073709551616.0 + np.float64(low)


@inner
def guess_spreads(room: Room, sums: Sums, n: Number, scale: Scale) -> None:
    """spreads = V."""
    if not scale.wide:
        for i in range(U(n)):
            total = np.int64(sums.x[i])
            room.spreads[i] = real(room.counts[i] * np.int64(sums.squares[i]) - total * total)
    else:
        for i in range(U(n)):
            high, low = spread_at(room, sums, i, scale)
            room.spreads[i] = as_float(high, low)


@inner
def spread_at(room: Room, sums: Sums, i: Number, scale: Scale) -> tuple[Number, Number]:
    """V at one voxel, in two words."""
    low = np.int64(sums.squares[i])
    high = floors(sums.squares_high, low, i, scale.shift)
    return spread(room.counts[i], np.int64(sums.x[i]), low, high, scale.shift)


@inner
def third_at(room: Room, sums: Sums, i: Number, scale: Scale) -> tuple[bool, Number, Number]:
    """Whether T is negative at one voxel, and |T| in two words."""
    low, low3 = np.int64(sums.squares[i]), np.int64(sums.cubes[i])
    high = floors(sums.squares_high, low, i, scale.shift)
    high3 = floors(sums.cubes_high, low3, i, scale.shift)
    up, down = third(room.counts[i], np.int64(sums.x[i]), low, high, low3, high3, scale.shift)
    if up >= 0:
        return False, up, down
    return True, np.int64(~up) + np.int64(down == U(0)), U(~down) + U(1)


@inner
def guess_of(kind: int, room: Room, sums: Sums, n: Number, scale: Scale) -> None:
    """guess = y of a windowed feature, off by less than |y| 2^-49."""
    guess, spreads, counts = room
    a = np.float64(abs(scale.a))
    if kind == MEAN:
        for i in range(U(n)):
            guess[i] = real(scale.a * np.int64(sums.x[i]) + scale.b * counts[i]) / real(counts[i])
    elif kind == STD:
        for i in range(U(n)):
            guess[i] = a * np.sqrt(spreads[i]) / real(counts[i])
    elif kind == VARIANCE:
        factor = a * a / np.float64(scale.unit)
        for i in range(U(n)):
            count = real(counts[i])
            guess[i] = spreads[i] * factor / (count * count)
    elif kind == CONTRAST:
        for i in range(U(n)):
            total = real(scale.a * np.int64(sums.x[i]) + scale.b * counts[i])
            over = a * a * spreads[i]
            under = over + total * total
            guess[i] = np.float64(scale.unit) * np.sqrt(over / under) if over > 0 else 0.0
    else:
        for i in range(U(n)):
            guess[i] = 0.0
            if spreads[i] > 0:
                negative, high, low = third_at(room, sums, i, scale)
                sign = -scale.unit if (scale.a < 0) != negative else scale.unit
                guess[i] = np.float64(sign) * (as_float(high, low) / (spreads[i] * np.sqrt(spreads[i])))


@inner
def doubtful(y: float) -> bool:
    """Whether a guess is too near to a half to tell."""
    return bool(abs(y - np.rint(y)) > 0.5 - abs(y) * DOUBT)


@inner
def settled(out: Array, to: Number, guess: Array, n: Number) -> bool:
    """out = the nearest integers; whether no guess is doubtful."""
    to = U(to)
    doubts: Number = 0
    for i in range(U(n)):
        doubts += np.int64(doubtful(guess[i]))
        # Adding 3 · 2^51 leaves the nearest integer in the low bits; where it would not, above 2^50, all is doubtful.
        out[to + i] = np.float64(guess[i] + 6755399441055744.0).view(np.int64) - 4843621399236968448
    return bool(doubts == 0)


@inner
def half_even(k: Number, rule: int, high: Number, low: Number, factor: Number, high2: Number, low2: Number) -> Number:
    """The integer next to |y| from a guess k on, of two the even one; Q = (high, low) and P = (high2, low2) say y.

    y is factor² P / Q by RATIO, factor √(P / Q) by ROOT, and factor |P| / Q^(3/2) by SKEW.
    """
    while True:
        more = order(rule, 2 * k + 1, high, low, factor, high2, low2)
        if more > 0 or (more == 0 and k % 2 == 0):
            break
        k += 1
    while k > 0:
        less = order(rule, 2 * k - 1, high, low, factor, high2, low2)
        if less < 0 or (less == 0 and k % 2 == 0):
            break
        k -= 1
    return k


@inner
def order(rule: int, odd: Number, high: Number, low: Number, factor: Number, high2: Number, low2: Number) -> Number:
    """The sign of odd / 2 − |y|, exactly."""
    if rule == RATIO:
        return ratio_order(odd, high, low, factor, high2, low2)
    if rule == ROOT:
        return root_order(odd, high, low, factor, high2, low2)
    return skew_order(odd, high, low, factor, high2, low2)


@inner
def exactly(kind: int, k: Number, room: Room, sums: Sums, i: Number, scale: Scale) -> Number:
    """The size of a windowed feature at one voxel, from a guess k on."""
    count, nothing = room.counts[i], np.int64(0)
    total = scale.a * np.int64(sums.x[i]) + scale.b * count
    if kind == MEAN:
        return half_even(k, RATIO, nothing, U(count), np.int64(1), nothing, U(abs(total)))
    high, low = spread_at(room, sums, i, scale)
    if kind == VARIANCE:
        over_high, over_low = multiply(count * count, scale.unit)
        return half_even(k, RATIO, over_high, over_low, scale.a, high, low)
    if kind == STD:
        return half_even(k, ROOT, nothing, U(count * count), scale.a, high, low)
    if kind == CONTRAST:
        under_high, under_low = scaled_plus_square(high, low, scale.a, total)
        high, low = scaled_plus_square(high, low, scale.a, nothing)
        return half_even(k, ROOT, under_high, under_low, scale.unit, high, low)
    _, high3, low3 = third_at(room, sums, i, scale)
    return half_even(k, SKEW, high, low, scale.unit, high3, low3)


@inner
def decide(out: Array, to: Number, kind: int, room: Room, sums: Sums, n: Number, scale: Scale) -> None:
    """Settle in integers what the guesses could not."""
    for i in range(U(n)):
        y = room.guess[i]
        if doubtful(y):
            k = exactly(kind, np.int64(abs(np.rint(y))), room, sums, i, scale)
            out[U(to) + i] = -k if y < 0 else k


@inner
def bare_lane(lane: Lane) -> Lane:
    return Lane(bare(lane.tile), bare(lane.row), bare(lane.sums))


@jit
def feature_box(
    image: Array,
    layers: Layers,
    shape: Shape,
    window: Shape,
    maps: Arrays,
    inside: Arrays,
    box: Box,
    out: tuple[Array, ...],
    reads: Reads,
    x: Lane,
    lanes: tuple[Lane, ...],
    scale: Scale,
    fills: Array,
    done: Array,
    room: Room,
) -> None:
    """Fill the maps of ``out``, one for each of WINDOWED, empty where it is not wanted, in a box.

    ``lanes`` are those of x² and the layers. Planes are counted from the first that is asked for; ``maps`` say which of
    the image's they read.
    """
    z0, z1, y0, y1, x0, x1 = box
    _, rows, columns = shape
    n = x1 - x0
    image, done, fills = bare(image), bare(done), bare(fills)
    layers = bare(layers[0]), bare(layers[1]), bare(layers[2])
    maps = bare(maps[0]), bare(maps[1]), bare(maps[2])
    inside = bare(inside[0]), bare(inside[1]), bare(inside[2])
    reads = Reads(bare(reads.z), bare(reads.y), reads.top, reads.last, reads.left, reads.wide, reads.edge)
    out = bare(out[0]), bare(out[1]), bare(out[2]), bare(out[3]), bare(out[4])
    room = Room(bare(room.guess), bare(room.spreads), bare(room.counts))
    x = bare_lane(x)
    lanes = bare_lane(lanes[0]), bare_lane(lanes[1]), bare_lane(lanes[2]), bare_lane(lanes[3])
    sums = Sums(x.sums, lanes[0].sums, lanes[1].sums, lanes[2].sums, lanes[3].sums)
    over_before = -1
    spreads = sums.squares.size > 0
    for z in range(z0, z1):
        done_x = done_squares = reads.top
        for j in range(3):
            done[j] = reads.top
        for y in range(y0, y1):
            done_x = sum_row(x, image, shape, window, maps, box, reads, z, y, done_x, scale.fill, None)
            if spreads:
                fill = scale.fill_square
                done_squares = sum_row(lanes[0], image, shape, window, maps, box, reads, z, y, done_squares, fill, True)
            for j in range(3):
                if layers[j].size > 0:
                    done[j] = sum_row(
                        lanes[j + 1], layers[j], shape, window, maps, box, reads, z, y, done[j], fills[j], None
                    )
            over = inside[0][z] * inside[1][y]
            if over != over_before:
                over_before = over
                for i in range(U(n)):
                    room.counts[i] = over * inside[2][U(x0) + i]
            if spreads:
                guess_spreads(room, sums, n, scale)
            at = (z * rows + y) * columns + x0
            for kind in range(5):
                if out[kind].size > 0:
                    guess_of(kind, room, sums, n, scale)
                    if not settled(out[kind], at, room.guess, n):
                        decide(out[kind], at, kind, room, sums, n, scale)


@inner
def difference(
    to: Array, image: Array, at: Number, before: int, after: int, n: Number, outside: int, clip: bool
) -> None:
    """to = the layer at ``after`` − the layer at ``before``; below 0 stands for outside.

    Under ``clip`` what is outside has no value: the difference to the voxel itself counts twice.
    """
    at = U(at)
    if before >= 0 and after >= 0:
        for i in range(U(n)):
            to[i] = np.int64(image[U(after) + i]) - np.int64(image[U(before) + i])
    elif clip:
        for i in range(U(n)):
            own = np.int64(image[at + i])
            to[i] = 0
            if after >= 0:
                to[i] = 2 * (np.int64(image[U(after) + i]) - own)
            elif before >= 0:
                to[i] = 2 * (own - np.int64(image[U(before) + i]))
    else:
        for i in range(U(n)):
            to[i] = np.int64(image[U(after) + i]) if after >= 0 else outside
            to[i] -= np.int64(image[U(before) + i]) if before >= 0 else outside


@jit
def gradient_rows(
    image: Array,
    shape: Shape,
    maps: Arrays,
    lead: int,
    rows_of: tuple[int, int],
    out: Array,
    a: int,
    fill: int,
    clip: bool,
    room: tuple[Array, ...],
) -> None:
    """|a| √(Σ d²) / 2 for some rows of all planes, counted together; plane 0 is plane ``lead`` of the image.

    d is the difference of the two neighbours along an axis, as the maps of a window of 3 read them. |d| < 2^61, so
    the sum of its squares fits 128 bits; as floats all terms are positive, and the guess is as good as the others.
    """
    _, rows, columns = shape
    image, out = bare(image), bare(out)
    z_map, y_map, x_map = bare(maps[0]), bare(maps[1]), bare(maps[2])
    dz, dy, dx, one, guess = bare(room[0]), bare(room[1]), bare(room[2]), bare(room[3]), bare(room[4])
    half = np.float64(abs(a)) / 2
    for row in range(rows_of[0], rows_of[1]):
        z, y = row // rows, row % rows
        at = ((z + lead) * rows + y) * columns
        before, after = z_map[z], z_map[z + 2]
        before = (before * rows + y) * columns if before >= 0 else -1
        after = (after * rows + y) * columns if after >= 0 else -1
        difference(dz, image, at, before, after, columns, fill, clip)
        before, after = y_map[y], y_map[y + 2]
        before = ((z + lead) * rows + before) * columns if before >= 0 else -1
        after = ((z + lead) * rows + after) * columns if after >= 0 else -1
        difference(dy, image, at, before, after, columns, fill, clip)
        for i in range(U(1), U(max(columns - 1, 1))):
            dx[i] = np.int64(image[U(at) + i + U(1)]) - np.int64(image[U(at) + i - U(1)])
        for x in (0, columns - 1):
            before, after = x_map[x], x_map[x + 2]
            before = at + before if before >= 0 else -1
            after = at + after if after >= 0 else -1
            difference(one, image, at + x, before, after, 1, fill, clip)
            dx[x] = one[0]
        for i in range(U(columns)):
            up, down, along = real(dz[i]), real(dy[i]), real(dx[i])
            guess[i] = half * np.sqrt(up * up + down * down + along * along)
        to = row * columns
        if not settled(out, to, guess, columns):
            for i in range(U(columns)):
                if doubtful(guess[i]):
                    high, low = norm(dz[i], dy[i], dx[i])
                    out[U(to) + i] = half_even(np.int64(np.rint(guess[i])), ROOT, np.int64(0), U(4), a, high, low)


@jit
def scale_into(out: Array, image: Array, a: int, b: int) -> None:
    """out = a · x + b."""
    out, image = bare(out), bare(image)
    for i in range(U(image.size)):
        out[i] = a * np.int64(image[i]) + b


def signed(number: int) -> int:
    """A number modulo 2^64, as an int64 holds it."""
    number %= 1 << 64
    return number - (1 << 64) if number >> 63 else number


def layers_of(image: Array, window: Shape, kinds: Sequence[str], magnitude: int) -> Layers:
    """The images that are summed beside x and x², flat, each empty where it is not needed."""
    size = window[0] * window[1] * window[2]
    shift = 64 - size.bit_length()
    spreads, skewness = set(kinds) != {"mean"}, "skewness" in kinds
    if not skewness and not (spreads and size * magnitude**2 >= 1 << 63):
        return NOTHING, NOTHING, NOTHING
    x = image.reshape(-1).astype(np.int64)
    squares = x * x
    high = squares >> shift if size * magnitude**2 >= 1 << 63 else NOTHING
    if not skewness:
        return NOTHING, high, NOTHING
    cubes_high = NOTHING
    if size * magnitude**3 >= 1 << 63:  # x³ = x h 2^31 + x l, and shift > 31
        h, low = squares >> 31, squares & ((1 << 31) - 1)
        cubes_high = (x * h + (x * low >> 31)) >> (shift - 31)
    return squares * x, high, cubes_high


def read_by(planes: tuple[int, int], length: int, size: int, border: str) -> tuple[Array, int, int]:
    """What windows over some planes read: their map, counted from the first plane that is read; that plane and stop."""
    z_map = axis_map(length, size, border)[planes[0] : planes[1] + size - 1]
    first, stop = int(z_map[z_map >= 0].min()), int(z_map.max()) + 1
    return np.where(z_map >= 0, z_map - first, z_map), first, stop


def window_features(
    image: Array,
    window: Shape,
    border: str,
    kinds: Sequence[str],
    *,
    a: int,
    b: int,
    unit: int,
    fill: int,
    magnitude: int,
    planes: tuple[int, int],
    workers: int,
) -> dict[str, Array]:
    """Features of one window, in one pass over the image.

    Parameters
    ----------
    image : (planes, rows, columns) array of int16 or int64, C-contiguous
        Stored integers x; a · x + b are the standardised ones, in units of 1 / ``unit``.
    kinds : sequence of str
        Of `WINDOWED`.
    fill : int
        What ``constant`` reads outside, a stored integer.
    magnitude : int
        No x that is read, inside or outside, is larger in size.
    planes : (int, int)
        First plane and stop of the maps.

    Returns
    -------
    dict of kind to int64 array
        Of the shape of these planes.

    Raises
    ------
    OverflowError
        The numbers could be wider than is exact.
    """
    check_width(window, kinds, magnitude, a, b, unit)
    length, rows, columns = image.shape
    size = window[0] * window[1] * window[2]
    z_map, first, stop = read_by(planes, length, window[0], border)
    image = image[first:stop]
    maps = z_map, axis_map(rows, window[1], border), axis_map(columns, window[2], border)
    z_inside, y_inside, x_inside = (
        axis_inside(n, c) if border == "clip" else np.full(n, c)
        for n, c in zip((length, rows, columns), window, strict=True)
    )
    inside = z_inside[planes[0] : planes[1]], y_inside, x_inside
    shape = planes[1] - planes[0], rows, columns
    made = {kind: np.empty(shape, np.int64) for kind in kinds}
    out = tuple(made[kind].reshape(-1) if kind in made else NOTHING for kind in WINDOWED)
    outside = np.array([[[fill]]], np.int64)
    layers, fills = (layers_of(array, window, kinds, magnitude) for array in (image, outside))
    shift = 64 - size.bit_length()
    scale = Scale(a, b, unit, shift, (size * magnitude) ** 2 >= 1 << 63, fill, signed(fill**2))
    if image.dtype == np.int16 and size * magnitude >= 1 << 31:
        image = image.astype(np.int64)
    narrow = "int32" if image.dtype == np.int16 else "int64"
    needed = set(kinds) != {"mean"}, *(layer.size > 0 for layer in layers)
    outside = np.array([int(layer.sum()) for layer in fills])
    flat = image.reshape(-1)

    def run(box: Box) -> None:
        reads = reads_of(box, maps, window)
        tall = int(maps[1][box[2] : box[3] + window[1] - 1].max()) + 1 - reads.top
        lane = lane_for((narrow, narrow), box, reads, window, tall)
        lanes = tuple(lane_for(("int64", "int64"), box, reads, window, tall) if wanted else UNUSED for wanted in needed)
        n = box[5] - box[4]
        room = Room(np.empty(n), np.empty(n), np.empty(n, np.int64))
        done = np.empty(3, np.int64)
        feature_box(
            flat, layers, image.shape, window, maps, inside, box, out, reads, lane, lanes, scale, outside, done, room
        )

    in_threads(run, cut(shape, window, workers), workers)
    return made


def gradient_map(
    image: Array,
    border: str,
    *,
    a: int,
    fill: int,
    magnitude: int,
    planes: tuple[int, int],
    workers: int,
) -> Array:
    """The gradient's magnitude; parameters as for `window_features`.

    Raises
    ------
    OverflowError
        The numbers could be wider than is exact.
    """
    check_gradient_width(magnitude, a)
    length, rows, columns = image.shape
    z_map, first, _ = read_by(planes, length, 3, border)
    lead = planes[0] - first
    maps = z_map, axis_map(rows, 3, border), axis_map(columns, 3, border)
    made = np.empty((planes[1] - planes[0], rows, columns), np.int64)
    flat, out = image[first:].reshape(-1), made.reshape(-1)

    def run(part: tuple[int, int]) -> None:
        room = *(np.empty(max(columns, 1), np.int64) for _ in range(4)), np.empty(columns)
        gradient_rows(flat, image.shape, maps, lead, part, out, a, fill, border == "clip", room)

    lines = len(made) * rows
    in_threads(run, evenly(0, lines, -(-lines // (4 * workers if workers > 1 else 1))), workers)
    return made


def scaled(image: Array, a: int, b: int) -> Array:
    """a · x + b, int64."""
    made = np.empty(image.shape, np.int64)
    scale_into(made.reshape(-1), image.reshape(-1), a, b)
    return made
