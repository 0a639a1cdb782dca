"""The processor's kernels against a loop from the definition, in Python integers, and against scipy."""

import itertools
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from math import prod
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage

import voxring
from voxring.kernels import BORDERS, Reduction, cpu
from voxring.kernels.cpu import bare, dots, maps, quotients, regions, rows, streamed, threads, tiles

IMAGE_TYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64")
LABEL_TYPES = ("uint8", "int8", "int16", "uint16", "int32", "int64", "uint64")
WIDEST = 2**47 - 1  # what an int64 image may hold


@pytest.fixture(autouse=True, scope="module")
def small_images_take_threads_too():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "SMALL", 0)
        yield


def naive_place(p, length, border):
    """The coordinate that is read at ``p``, by the picture of each border in scipy's manual; None outside."""
    if 0 <= p < length:
        return p
    if border in ("clip", "constant"):
        return None
    if border == "nearest":
        return 0 if p < 0 else length - 1
    if border == "reflect":
        return naive_place(-1 - p if p < 0 else 2 * length - 1 - p, length, border)
    return 0 if length == 1 else naive_place(-p if p < 0 else 2 * length - 2 - p, length, border)


def naive_read(image, place, border):
    at = tuple(naive_place(p, length, border) for p, length in zip(place, image.shape, strict=True))
    return None if None in at else int(image[at])


def naive_window(image, voxel, window, border):
    """(how many places of the window lie inside, their sum)."""
    inside = total = 0
    for offset in itertools.product(*(range(-(c // 2), c - c // 2) for c in window)):
        value = naive_read(image, tuple(q + o for q, o in zip(voxel, offset, strict=True)), border)
        if value is not None:
            inside += 1
            total += value
    return inside, total


def naive_reduce(image, labels, value, window, border):
    answer = Reduction()
    for voxel in itertools.product(*map(range, image.shape)):
        if int(labels[voxel]) == value:
            v = int(image[voxel])
            inside, total = naive_window(image, voxel, window, border)
            voxels, so_far = answer.groups.get(inside, (0, 0))
            answer.groups[inside] = (voxels + 1, so_far + total)
            answer.total += v
            answer.squares += v * v
    return answer


def scipy_sums(image, window, border, fill=0):
    """Window sums by another library, exact below 2^53."""
    mode = "constant" if border == "clip" else border
    fill = fill if border == "constant" else 0
    sums = image.astype(np.int64) - fill  # with the fill shifted to 0
    for axis, size in enumerate(window):
        ones = np.ones(size, np.int64)
        sums = ndimage.correlate1d(sums, ones, axis, mode=mode, origin=0)
    return sums + fill * prod(window)


def padded_sums(image, window, border):
    """Window sums by numpy's own borders and running sums, exact modulo 2^64."""
    mode = {"reflect": "symmetric", "mirror": "reflect", "nearest": "edge"}.get(border, "constant")
    sums = image.astype(np.int64)
    for axis, size in enumerate(window):
        pad = [(0, 0)] * 3
        pad[axis] = (size // 2 + 1, size - 1 - size // 2)
        running = np.cumsum(np.pad(sums, pad, mode=mode), axis)
        length = image.shape[axis]
        sums = running.take(range(size, size + length), axis) - running.take(range(length), axis)
    return sums


def limits(dtype):
    if dtype == "int64":
        return -WIDEST, WIDEST
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


@st.composite
def images(draw, dtypes=IMAGE_TYPES, most=6):
    shape = tuple(draw(st.integers(1, most)) for _ in range(3))
    dtype = draw(st.sampled_from(dtypes))
    low, high = limits(dtype)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    image = rng.integers(low, high, shape, dtype=dtype, endpoint=True)
    if draw(st.booleans()):  # to the very ends
        image = np.where(rng.random(shape) < 0.5, low, high).astype(dtype)
    return image


windows = st.tuples(*[st.integers(1, 9)] * 3)
borders = st.sampled_from(BORDERS)


def random_labels(rng, shape, dtype, values, share):
    labels = rng.choice(np.array(values, dtype=dtype), shape)
    return np.where(rng.random(shape) < share, labels, np.array(0, dtype)).astype(dtype)


def patches(shape, seed, level=0.5, spacing=6):
    """Smooth blobs, as ground truths are."""
    rng = np.random.default_rng(seed)
    coarse = rng.random([length // spacing + 2 for length in shape])
    fine = ndimage.zoom(coarse, [length / n for length, n in zip(shape, coarse.shape, strict=True)], order=1)
    return fine > level


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.data_too_large])
@given(image=images(), window=windows, border=borders, data=st.data())
def test_reduce_equals_naive_at_full_range(image, window, border, data):
    dtype = data.draw(st.sampled_from(LABEL_TYPES))
    values = [3, 1, 100, *([-5] if np.iinfo(dtype).min < 0 else [])]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    labels = random_labels(rng, image.shape, dtype, values, data.draw(st.sampled_from([0.1, 0.6, 1.0])))
    classes = data.draw(st.lists(st.sampled_from([*values, 0, 7, -5, 300, 2**70, -(2**70)]), max_size=4))
    got = cpu.reduce(image, labels, classes, window, border)
    assert got == [naive_reduce(image, labels, value, window, border) for value in classes]


@settings(max_examples=60, deadline=None)
@given(image=images(most=5), window=windows, border=borders, fill=st.integers(-1000, 1000))
def test_window_sums_equal_naive(image, window, border, fill):
    got = cpu.window_sums(image, window, border, fill=fill)
    assert got.dtype == np.int64
    for voxel in itertools.product(*map(range, image.shape)):
        inside, total = naive_window(image, voxel, window, border)
        if border == "constant":
            total += fill * (prod(window) - inside)
        assert int(got[voxel]) == total


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 40), st.integers(1, 70)),
    window=st.tuples(st.integers(1, 15), st.integers(1, 50), st.integers(1, 80)),
    border=borders,
    fill=st.sampled_from([0, -7]),
)
def test_window_sums_equal_scipy(shape, window, border, fill):
    image = np.random.default_rng(prod(shape)).integers(-(2**31), 2**31, shape, dtype=np.int32)
    got = cpu.window_sums(image, window, border, fill=fill, threads=2)
    assert np.array_equal(got, scipy_sums(image, window, border, fill))


@settings(max_examples=150, deadline=None)
@given(
    image=images(dtypes=("uint8", "int16", "uint16"), most=7),
    stretch=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 9)),
    window=windows,
    border=borders,
    data=st.data(),
)
def test_every_road_equals_naive(image, stretch, window, border, data):
    """Dense and sparse, whichever would be chosen; images of several blocks."""
    image = np.ascontiguousarray(np.tile(image, stretch))
    share = data.draw(st.sampled_from([0.01, 0.5, 1.0]))
    labels = random_labels(np.random.default_rng(0), image.shape, "uint8", [200], share)
    workers = data.draw(st.integers(1, 3))
    plan = tiles.plan(image.shape, window, border, workers)
    if plan is None:
        assert max(window) > min(image.shape)
        return
    numbers = (labels.reshape(-1) == 200).astype(np.uint8)
    (expected,) = streamed.groups_streamed(image, numbers, 1, window, border, workers)
    if image.size < 200:
        assert expected.groups == naive_reduce(image, labels, 200, window, border).groups
    values = image[labels == 200].tolist()
    expected = expected + Reduction(sum(values), sum(v * v for v in values))
    for look in (True, False):
        got = tiles.reduce_class(image, labels.reshape(-1), 200, border, plan, workers, look=look)
        assert got == expected


def test_memory_that_is_kept_between_images_holds_nothing_of_the_last():
    """Images of one shape and type share a plan, and with it memory; dense, sparse and again dense."""
    draw = np.random.default_rng(5)
    for dtype, share in itertools.product(("int16", "uint8", "uint16", "int16"), (0.9, 0.2, 0.001, 0.5)):
        image = draw.integers(0, 200, (6, 160, 160)).astype(dtype)
        labels = (draw.random(image.shape) < share).astype(np.uint8)
        if share < 0.01:  # what is stepped over but for the box that holds the class
            labels[:] = 0
            labels[2:4, 40:48, 20:60] = 1
            assert tiles.mixed_share(labels.reshape(-1), np.uint8(1), 160, 32) <= tiles.MIXED_SHARE
        for window in ((1, 3, 3), (3, 5, 4)):
            expected = cpu.window_sums(image, window, "reflect")[labels == 1].sum()
            (found,) = cpu.reduce(image, labels, [1], window, "reflect", threads=1)
            assert sum(total for _, total in found.groups.values()) == expected
            assert (found.voxels, found.total) == (labels.sum(), image[labels == 1].sum(dtype=np.int64))


def test_images_that_may_not_be_written_or_are_not_aligned_take_the_same_code():
    from voxring.kernels.cpu.adjoint import adjoint

    image = np.random.default_rng(6).integers(-900, 900, (2, 40, 40)).astype(np.int16)
    labels = (image > 0).astype(np.uint8)
    expected = cpu.reduce(image, labels, [1], (1, 3, 3), "reflect")
    compiled = list(adjoint.signatures)
    for read_only in (np.frombuffer(image.tobytes(), np.int16), np.frombuffer(b"0" + image.tobytes(), np.int16, -1, 1)):
        mine = read_only.reshape(image.shape)
        assert not mine.flags.writeable
        assert cpu.reduce(mine, labels, [1], (1, 3, 3), "reflect") == expected
        assert cpu.reduce(mine[:1], labels[:1], [1], (1, 3, 3), "reflect")
    assert adjoint.signatures == compiled


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((24, 150, 170), (5, 5, 5)),
        ((10, 200, 300), (1, 7, 7)),
        ((24, 160, 192), (5, 5, 5)),
        ((10, 160, 512), (2, 15, 6)),
    ],
)
def test_lesions_in_a_large_image_equal_window_sums(shape, window, border):
    """Few, scattered voxels: blocks that no window reaches are stepped over."""
    rng = np.random.default_rng(11)
    image = rng.integers(-(2**15), 2**15, shape, dtype=np.int16)
    labels = np.zeros(shape, np.int16)
    for value, place in ((-3, (3, 5, 7)), (-3, (20, 120, 160)), (7, (0, 0, 0)), (7, (9, 140, 60))):
        labels[tuple(slice(p, p + 9) for p in place)] = value
    labels[tuple(length - 1 for length in shape)] = 7
    check_against_window_sums(image, labels, [-3, 7], window, border)


def test_values_that_grow_while_they_are_read_are_summed_again():
    """How many products fit an int32 is taken on trust from the voxels before: these break that trust, both ways."""
    shape = (3, 64, 512)
    for dtype, peak in (("int16", -(2**15)), ("uint16", 2**16 - 1), ("int16", 2**13), ("uint8", 255)):
        image = np.ones(shape, dtype)
        image[:, 16:24] = peak
        image[:, 40:, ::2] = peak
        labels = np.ones(shape, np.uint8)
        for window in ((1, 7, 7), (3, 15, 15), (1, 1, 1)):
            check_against_window_sums(image, labels, [1], window, "reflect")


@pytest.mark.parametrize("border", ["reflect", "clip"])
@pytest.mark.parametrize(
    "rows_above", [[17], [0, 17]]
)  # one that the sample of rows does not see, and one that it does
def test_values_of_uint16_above_the_middle_are_themselves(border, rows_above):
    image = np.random.default_rng(4).integers(0, 2**15, (3, 64, 512), np.uint16)
    image[:, rows_above, ::3] += np.uint16(2**15)
    labels = (image % 3 > 0).astype(np.uint8)
    assert tiles.any_negative(image.reshape(-1).view(np.int16), 4096) == (0 in rows_above)
    check_against_window_sums(image, labels, [1, 0], (1, 7, 7), border)


def test_rows_with_more_voxels_than_a_byte_counts():
    image = np.full((1, 2, 20_000), 255, np.uint8)
    check_against_window_sums(image, np.ones(image.shape, np.uint8), [1, 0], (1, 3, 5), "reflect")


def test_steps_that_fit_32_bits_do_and_one_more_would_not():
    for most, bound in itertools.product((1, 49, 255, 3375, 32767), (255, 8191, 16382, 2**15)):
        steps = dots.steps_that_fit.py_func(most, bound)
        fits = [2 * k * most * bound < 2**31 and 2 * k * bound**2 < 2**32 and k < 256 for k in (1, steps, steps + 1)]
        assert fits == [True, True, False]


@pytest.mark.parametrize("size", [*range(1, 33), 61, 100, 127])
def test_window_row_equals_a_sum_of_slices(size):
    source = np.random.default_rng(size).integers(0, 2, 400).astype(np.uint8)
    target, spare = np.zeros(400, np.uint8), np.zeros(400, np.uint8)
    rows.window_row(target, 0, source, 3, size, 250, spare)
    assert target[:250].tolist() == [int(source[3 + i : 3 + i + size].sum()) for i in range(250)]


def floats(image):
    """The types of maps that are made of an image: both of the usual images, to compile less."""
    return ("float32", "float64") if image.dtype.name in {"uint8", "int8", "int16"} else ("float64",)


@settings(max_examples=80, deadline=None)
@given(image=images(most=5), window=windows, border=borders, fill=st.integers(-100, 100), last=st.booleans())
def test_mean_and_variance_maps_are_exact_quotients(image, window, border, fill, last):
    dtype = floats(image)[-last]
    means = cpu.mean_map(image, window, border, fill=fill, dtype=dtype)
    narrow = (image % 1000).astype(image.dtype) if image.dtype.itemsize > 1 else image
    variances = cpu.variance_map(narrow, window, border, fill=fill, dtype=dtype, threads=2)
    for voxel in itertools.product(*map(range, image.shape)):
        inside, total = naive_window(image, voxel, window, border)
        count, missing = (inside, 0) if border == "clip" else (prod(window), prod(window) - inside)
        assert means[voxel] == np.dtype(dtype).type(np.float64(total + fill * missing) / np.float64(count))
        _, total = naive_window(narrow, voxel, window, border)
        _, squares = naive_window(narrow.astype(np.int64) ** 2, voxel, window, border)
        total, squares = total + fill * missing, squares + fill * fill * missing
        exact = np.float64(count * squares - total * total) / np.float64(count * count)
        assert variances[voxel] == np.dtype(dtype).type(exact)


@pytest.fixture
def tiny_boxes(monkeypatch):
    """Images of a few rows and columns are cut along all axes; or along rows only, and written round the caches."""

    def cut(round_caches):
        monkeypatch.setattr(maps, "STREAMED", 0 if round_caches else 1 << 30)
        monkeypatch.setattr(maps, "PART", 19)
        monkeypatch.setattr(maps, "WIDE", 40 if round_caches else 2)
        monkeypatch.setattr(maps, "WIDE_TILE", 40 if round_caches else 2)
        monkeypatch.setattr(maps, "TALL", 2)
        monkeypatch.setattr(maps, "CELLS", 1)

    return cut


def exact_maps(image, window, border, fill):
    """Window sums, means and variances, in Python integers and one division, from numpy's padding."""
    if border == "constant":
        shifted = image.astype(np.int64) - fill
        sums = padded_sums(shifted, window, border)
        squares = padded_sums(shifted * shifted, window, border) + 2 * fill * sums + fill * fill * prod(window)
        sums = sums + fill * prod(window)
    else:
        sums, squares = padded_sums(image, window, border), padded_sums(image.astype(np.int64) ** 2, window, border)
    counts = padded_sums(np.ones(image.shape, np.int8), window, "clip") if border == "clip" else prod(window)
    numerators = sums.astype(object) * -sums + squares.astype(object) * counts
    variances = numerators.astype(np.float64) / (counts * np.ones(image.shape, object) * counts).astype(np.float64)
    return sums, sums / np.float64(counts), variances


def check_maps(image, window, border, fill=0, workers=1):
    sums, means, variances = exact_maps(image, window, border, fill)
    options = {"fill": fill, "threads": workers}
    assert np.array_equal(cpu.window_sums(image, window, border, **options), sums)
    for dtype in floats(image):
        assert np.array_equal(cpu.mean_map(image, window, border, dtype=dtype, **options), means.astype(dtype))
        assert np.array_equal(cpu.variance_map(image, window, border, dtype=dtype, **options), variances.astype(dtype))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 13), st.integers(1, 40), st.integers(1, 40)),
    window=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)) | st.tuples(*[st.integers(1, 50)] * 3),
    dtype=st.sampled_from(["uint8", "int16", "int32"]),
    border=borders,
    fill=st.sampled_from([0, -3, 120]),
    workers=st.integers(1, 3),
    round_caches=st.booleans(),
)
def test_maps_cut_into_boxes_are_exact(tiny_boxes, shape, window, dtype, border, fill, workers, round_caches):
    tiny_boxes(round_caches)
    if round_caches:
        window = (1, *window[1:])
    image = np.random.default_rng(prod(shape)).integers(0, 100, shape, dtype=dtype)
    check_maps(image, window, border, fill, workers)


@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [  # windows on both sides of each lane's limit: of squares, then of sums
        ("uint8", [(1, 1, 33025), (1, 1, 33026)]),  # 255² · |W| < 2^31
        ("uint8", [(1, 1, 257), (1, 257, 1), (257, 1, 2), (1, 1, 258), (2, 129, 1)]),  # 255 · |W|, 255 · cz · cy < 2^16
        ("int16", [(1, 16, 181), (1, 1, 2897)]),  # 2^15 · |W| < 2^26.5
        ("int16", [(1, 1, 65535), (1, 1, 65536)]),  # 2^15 · |W| < 2^31
        ("uint16", [(1, 1, 1448), (1, 3, 483), (1, 1, 32768), (1, 1, 32769)]),
        ("int8", [(7, 7, 7), (1, 128, 1), (1, 256, 512), (1, 256, 513)]),  # 2^14 · |W| < 2^31
    ],
)
@pytest.mark.parametrize("border", ["reflect", "clip"])
def test_lanes_of_maps_hold_their_very_limits(dtype, sizes, border):
    ends = limits(dtype)
    for window in sizes:
        for image in (
            np.full((2, 3, 40), ends[0], dtype),
            np.full((2, 3, 40), ends[1], dtype),
            np.random.default_rng(1).choice(np.array(ends, dtype), (2, 3, 40)),
        ):
            check_maps(image, window, border)


@numba.njit
def written_round_caches(target, to, source, n):
    done = bare.stream(target, np.uint64(to), source, np.uint64(n))
    bare.fence()
    return done


@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_what_fills_cache_lines_is_written_round_them_and_nothing_beside_it(dtype):
    source = np.arange(1, 61).astype(dtype)
    for to, n in itertools.product(range(20), range(60)):  # all places within a line, from none to several of them
        target = np.zeros(90, dtype)
        done = written_round_caches(target, to, source, n)
        end = target.ctypes.data + (to + done) * target.itemsize
        assert done == n or end % 64 == 0
        assert n - done < 64 // target.itemsize
        assert target[to : to + done].tolist() == list(range(1, done + 1))
        assert not target[:to].any()
        assert not target[to + done :].any()


def test_maps_of_bytes_hold_a_negative_fill():
    check_maps(np.zeros((1, 3, 40), np.uint8), (1, 3, 9), "constant", fill=-3)


def test_products_round_as_quotients_wherever_they_may_be_used():
    """Numerators beside every kind of halfway point between two float32, and random ones, for each divisor."""
    rng = np.random.default_rng(9)
    may = quotients.may_multiply
    for divisor in [*range(1, 700), *(c * c for c in range(1, 200)), 3375, 3375**2, 4096, 3 * 2**15, 2**25 - 1, 2**25]:
        for most in (255, 2**15, 2**16 - 1, 255**2, 2**24):
            if not may(divisor, most):
                continue
            halfway = (2 * rng.integers(2**23, 2**24, 400) + 1) * 2.0 ** -rng.integers(1, 40, 400)
            halfway = halfway[halfway <= most]
            near = np.floor(halfway * divisor)[:, None] + [-1, 0, 1, 2]
            numerators = np.append(near.ravel(), rng.integers(0, most * divisor, 100, endpoint=True))
            numerators = numerators[(numerators >= 0) & (numerators <= most * divisor)]
            product = numerators * (1 / np.float64(divisor))
            assert np.array_equal(product.astype(np.float32), (numerators / divisor).astype(np.float32))
    assert may(49, 2**24)
    assert may(2**8, 2**16)
    assert not may(2**9, 2**16)
    assert not may(49, 2**24 + 1)
    assert not may(2**25 + 1, 1)


@numba.njit
def fused_row(out, numerators, by, divisors, near, rest):
    """Each numerator over its divisor, by the fused road."""
    quotients.set_divisors(by, 1, divisors, 0, divisors.size, False, 0)
    quotients.means_of(out, 0, numerators, by, near, rest, 0, out.size, quotients.FUSED)


def check_fused(numerators, divisors, dtype):
    by = quotients.divisors(divisors.size)
    out = np.empty(divisors.size, dtype)
    near, rest = (by.near32, by.rest32) if dtype == "float32" else (by.near, by.rest)
    fused_row(out, numerators, by, divisors, near, rest)
    assert np.array_equal(out, (numerators / divisors).astype(dtype))


@pytest.mark.parametrize("divisor", [1, 9, 49, 225, 3375, 2**21 - 1])
def test_fused_quotients_of_every_float32_integer_round_as_they_should(divisor):
    numerators = np.arange(2**24 + 1, dtype=np.int32)
    check_fused(numerators if divisor % 2 else -numerators, np.full(numerators.size, divisor), "float32")


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 24), ("float64", 53)])
def test_fused_quotients_beside_halfway_points_round_as_they_should(dtype, bits):
    """The numerators next to a point between two results, for divisors of every size."""
    rng = np.random.default_rng(4)
    numerators, divisors = [], []
    for _ in range(20_000):
        divisor = int(rng.integers(1, 1 << int(rng.integers(1, bits - 2))))
        scale = int(rng.integers(0, bits))
        m = Fraction(2 * int(rng.integers(1 << bits - 1, 1 << bits)) + 1, 2 << scale)
        near = [n for n in (int(m * divisor), int(m * divisor) + 1) if n <= 1 << bits]
        numerators += near
        divisors += [divisor] * len(near)
    check_fused(np.array(numerators), np.array(divisors), dtype)


def test_a_mean_halfway_between_two_floats_goes_to_the_even_one():
    """|W| = 117 · 2^9 and means of 25 bits: the product with 1 / |W| misses ties that the quotient meets."""
    size = 117 * 2**9
    wrong = 0
    for k in range(2**25 - 2**20 + 1, 2**25, 2**16 + 2):
        total = 117 * k
        image = np.full((1, 1, size), total // size, np.uint16)
        image[0, 0, : total % size] += 1
        exact = np.float32(np.float64(total) / size)
        wrong += np.float32(np.float64(total) * (1 / np.float64(size))) != exact
        assert cpu.mean_map(image, (1, 1, size), "reflect")[0, 0, size // 2] == exact
    assert wrong > 0


def test_wide_images_are_cut_along_columns():
    boxes = maps.cut((1, 100_000, 100_000), (1, 15, 15), 1)
    assert sum((y1 - y0) * (x1 - x0) for _, _, y0, y1, x0, x1 in boxes) == 10**10
    assert max(x1 - x0 for *_, x0, x1 in boxes) <= maps.WIDE
    assert min(y1 - y0 for _, _, y0, y1, _, _ in boxes) > 500
    assert maps.cut((256, 512, 512), (5, 5, 5), 1)[0][:2] == (0, 256)
    assert len(maps.cut((256, 512, 512), (5, 5, 5), 4)) >= 8


def test_maps_fill_what_they_are_given_or_refuse_it():
    image = np.arange(2 * 30 * 40, dtype=np.int16).reshape(2, 30, 40)
    out = np.empty(image.shape, np.float64)
    assert cpu.mean_map(image, (1, 3, 3), "clip", out=out) is out
    assert np.array_equal(out.astype(np.float32), cpu.mean_map(image, (1, 3, 3), "clip"))
    with pytest.raises(ValueError, match="out"):
        cpu.mean_map(image, (1, 3, 3), "clip", out=out[:1])
    with pytest.raises(TypeError, match="int64"):
        cpu.mean_map(image, (1, 3, 3), "clip", dtype="int64")
    with pytest.raises(OverflowError, match="variances"):
        cpu.variance_map(image.astype(np.int64) << 24, (1, 9, 9), "clip")
    assert cpu.variance_map(image[:0], (1, 3, 3), "clip").shape == (0, 30, 40)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("dtype", IMAGE_TYPES)
@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((1, 300, 260), (1, 7, 7)),
        ((1, 40, 3000), (1, 4, 9)),
        ((24, 70, 65), (5, 5, 5)),
        ((30, 61, 50), (15, 15, 15)),
        ((70, 31, 33), (1, 6, 3)),
        ((9, 80, 100), (12, 3, 2)),
    ],
)
def test_reduce_equals_window_sums_at_real_sizes(shape, window, border, dtype):
    """Sizes at which every road and lane comes into play, with blobs for labels."""
    rng = np.random.default_rng(7)
    image = rng.integers(*limits(dtype), shape, dtype=dtype, endpoint=True)
    labels = np.where(patches(shape, 1), 2, 0).astype(np.uint8)
    labels[patches(shape, 2, 0.8)] = 9
    check_against_window_sums(image, labels, [2, 9, 4], window, border)


def check_against_window_sums(image, labels, classes, window, border):
    sums = padded_sums(image, window, border)
    if border in ("clip", "constant"):
        z, y, x = cpu.inside_counts(image.shape, window)
        inside = z[:, None, None] * y[:, None] * x
    else:
        inside = np.full(image.shape, prod(window))
    expected = []
    for value in classes:
        here = labels == value
        answer = Reduction(sum(image[here].tolist()), sum(v * v for v in image[here].tolist()))
        for m in np.unique(inside[here]).tolist():
            answer.groups[m] = (int(np.sum(here & (inside == m))), sum(sums[here & (inside == m)].tolist()))
        expected.append(answer)
    for workers in (1, 2, 3):
        assert cpu.reduce(image, labels, classes, window, border, threads=workers) == expected


@pytest.mark.parametrize("dtype", IMAGE_TYPES)
@pytest.mark.parametrize("window", [(1, 7, 7), (1, 15, 15), (5, 5, 5), (6, 6, 7), (15, 15, 15), (1, 16, 16), (2, 3, 3)])
@pytest.mark.parametrize("border", ["reflect", "nearest", "clip"])
def test_every_lane_holds_its_very_limit(dtype, window, border):
    """All voxels at the end of their type, all of them in the ground truth: the largest sums there can be."""
    shape = (20 if window[0] > 1 else 2, 40, 600)
    for value in limits(dtype):
        image = np.full(shape, value, dtype)
        labels = np.ones(shape, np.uint8)
        (got,) = cpu.reduce(image, labels, [1], window, border)
        n = prod(shape)
        assert (got.total, got.squares, got.voxels) == (n * value, n * value * value, n)
        assert all(total == voxels * inside * value for inside, (voxels, total) in got.groups.items())
        assert np.array_equal(cpu.window_sums(image, window, "reflect"), np.full(shape, value * prod(window)))


@pytest.mark.parametrize(
    "window",
    [
        (5, 1, 51),  # 255 in a plane's sums: the last that fits uint8
        (16, 1, 16),  # 256: the first that does not
        (17, 3, 17),
        (3, 5, 17),  # 255 counts
        (4, 8, 8),  # 256 counts
        (7, 31, 151),  # 32767 counts: the last that fits int16
        (8, 64, 64),  # 32768: the adjoint road has no lane
        (33, 33, 33),
        (255, 2, 3),  # planes of a window: the last that fits uint8
        (256, 2, 3),
    ],
)
def test_counts_of_ground_truth_fit_their_lanes_up_to_the_last(window):
    """Windows on both sides of each lane's limit, every voxel in the ground truth: counts reach |W| itself."""
    shape = tuple(size + 3 for size in window)
    image = np.random.default_rng(3).integers(-(2**15), 2**15, shape, dtype=np.int16)
    labels = np.ones(shape, np.uint8)
    check_against_window_sums(image, labels, [1], window, "reflect")
    (lowest,) = cpu.reduce(np.full(shape, -(2**15), np.int16), labels, [1], window, "reflect")
    assert lowest.groups == {prod(window): (image.size, -(2**15) * image.size * prod(window))}
    assert (lowest.total, lowest.squares) == (-(2**15) * image.size, 2**30 * image.size)
    plan = tiles.plan(shape, window, "reflect", 1)
    assert (plan is None) == (window[0] > 255 or prod(window) > 32767)
    if plan is not None:
        expected = padded_sums(image, window, "reflect").sum()
        for look in (True, False):
            got = tiles.reduce_class(image, labels.reshape(-1), 1, "reflect", plan, 1, look=look)
            assert got.groups == {prod(window): (image.size, expected)}


@pytest.mark.parametrize("border", ["reflect", "clip"])
@pytest.mark.parametrize("window", [(1, 3, 5), (3, 4, 9), (1, 1, 70)])
@pytest.mark.parametrize("columns", [128, 150, 200])  # with and without places beyond the last block
def test_a_lone_voxel_anywhere_is_counted_once_across_the_edges_of_blocks(columns, window, border):
    """One voxel at a time, at every column and row: what is stepped over holds nothing, what is not holds it once."""
    shape = (4, 48, columns)
    image = np.random.default_rng(5).integers(-(2**15), 2**15, shape, dtype=np.int16)
    sums = padded_sums(image, window, border)
    plan = tiles.plan(shape, window, border, 1)
    for y, x in [(20, x) for x in range(columns)] + [(y, 70) for y in range(48)]:
        labels = np.zeros(shape, np.uint8)
        labels[2, y, x] = 1
        got = tiles.reduce_class(image, labels.reshape(-1), 1, border, plan, 1, look=True)
        v = int(image[2, y, x])
        assert (got.voxels, got.total, got.squares) == (1, v, v * v)
        assert [total for _, total in got.groups.values()] == [sums[2, y, x]]


@pytest.mark.parametrize("border", ["reflect", "clip"])
@pytest.mark.parametrize("window", [(1, 3, 5), (3, 4, 9)])
def test_runs_at_the_edges_hold_nothing_of_the_runs_before_them(window, border):
    """Voxels at both ends of the rows and between, plane after plane: memory is used again, and must be cleared."""
    rng = np.random.default_rng(8)
    shape = (6, 40, 400)
    image = rng.integers(-(2**15), 2**15, shape, dtype=np.int16)
    sums = padded_sums(image, window, border)
    plan = tiles.plan(shape, window, border, 1)
    for _ in range(40):
        labels = np.zeros(shape, np.uint8)
        labels[rng.integers(3), rng.integers(40), 130:380] = 1  # a run of two blocks, then runs of one at the ends
        for x in rng.choice([0, 1, 4, 5, 390, 395, 398, 399], 4):
            labels[rng.integers(3, 6), rng.integers(40), x] = 1
        got = tiles.reduce_class(image, labels.reshape(-1), 1, border, plan, 1, look=True)
        assert got.voxels == np.count_nonzero(labels)
        assert sum(total for _, total in got.groups.values()) == sums[labels == 1].sum()


def test_code_on_disk_is_not_that_of_another_version(tmp_path):
    """A kernel that calls a changed one in another file is compiled anew."""
    package = tmp_path / "voxring"
    shutil.copytree(Path(voxring.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    script = (
        "import numpy as np; from voxring.kernels.cpu import tiles; "
        "print(tiles.mixed_share(np.arange(64, dtype=np.uint8) % 2, np.uint8(1), 8, 4))"  # it counts with rows.count
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}  # only a copy runs
    environment |= {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def run():
        command = [sys.executable, "-c", script]
        return subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    assert run() == "1.0\n"
    changed = package / "kernels" / "cpu" / "rows.py"
    text = changed.read_text()
    assert "np.uint8(labels[at + start + i] == value)" in text
    changed.write_text(
        text.replace("np.uint8(labels[at + start + i] == value)", "np.uint8(labels[at + start + i] < 9)")
    )
    assert run() == "0.0\n"


@pytest.mark.parametrize("length", [1, 2, 3, 10])
@pytest.mark.parametrize("size", [1, 2, 5, 30])
def test_inside_counts_are_what_clip_counts(length, size):
    _, _, x = cpu.inside_counts((1, 1, length), (1, 1, size))
    image = np.zeros((1, 1, length), int)
    assert x.tolist() == [naive_window(image, (0, 0, q), (1, 1, size), "clip")[0] for q in range(length)]


def test_window_sums_that_could_leave_63_bits_are_refused():
    image = np.full((1, 1, 4), WIDEST, np.int64)
    image[0, 0, 2] = -WIDEST
    size = (2**63 - 1) // WIDEST
    assert cpu.window_sums(image[..., :1], (1, 1, size), "reflect").tolist() == [[[size * WIDEST]]]
    (got,) = cpu.reduce(image[..., :2], np.ones((1, 1, 2), np.uint8), [1], (1, 1, size), "reflect")
    assert got.groups == {size: (2, 2 * size * WIDEST)}
    with pytest.raises(OverflowError, match="window: 1×1×65537"):
        cpu.window_sums(image, (1, 1, size + 1), "reflect")
    with pytest.raises(OverflowError, match="window: 1×1×65537"):
        cpu.reduce(image, image, [1], (1, 1, size + 1), "reflect")
    with pytest.raises(OverflowError, match="window"):
        cpu.window_sums(np.zeros((1, 1, 4), np.int8), (1, 1, 2), "constant", fill=2**62)
    with pytest.raises(OverflowError, match="larger"):
        cpu.reduce(image + 1, image, [1], (1, 1, 1), "reflect")


def test_arguments_outside_the_contract_are_refused():
    image = np.zeros((2, 3, 4), np.uint8)
    with pytest.raises(TypeError, match="float32"):
        cpu.window_sums(image.astype(np.float32), (1, 1, 1), "reflect")
    with pytest.raises(ValueError, match="wrap"):
        cpu.window_sums(image, (1, 1, 1), "wrap")
    with pytest.raises(ValueError, match="at least 1"):
        cpu.window_sums(image, (1, 0, 1), "reflect")
    with pytest.raises(ValueError, match="axes"):
        cpu.window_sums(image[0], (1, 1, 1), "reflect")
    with pytest.raises(ValueError, match="labels"):
        cpu.reduce(image, image[:1], [1], (1, 1, 1), "reflect")
    with pytest.raises(ValueError, match="threads"):
        cpu.reduce(image, image, [1], (1, 1, 1), "reflect", threads=0)


def test_empty_images_and_class_lists_are_fine():
    nothing = np.zeros((0, 3, 4), np.int16)
    assert cpu.reduce(nothing, nothing, [1], (1, 1, 1), "reflect") == [Reduction()]
    assert cpu.window_sums(nothing, (1, 1, 1), "reflect").shape == (0, 3, 4)
    assert cpu.reduce(np.zeros((1, 1, 1), np.int16), np.zeros((1, 1, 1), bool), [], (1, 1, 1), "clip") == []


def test_foreign_byte_order_strides_and_bools_are_read_right():
    image = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    mask = image > 5
    expected = [naive_reduce(image, mask, 1, (1, 3, 3), "mirror")]
    assert cpu.reduce(image, mask, [1], (1, 3, 3), "mirror") == expected
    assert cpu.reduce(np.asfortranarray(image), mask, [1], (1, 3, 3), "mirror") == expected


def test_many_classes_take_wide_class_numbers():
    labels = np.arange(400, dtype=np.int32).reshape(1, 20, 20)
    image = labels.astype(np.int16)
    got = cpu.reduce(image, labels, range(400), (1, 3, 3), "clip")
    assert got == [naive_reduce(image, labels, value, (1, 3, 3), "clip") for value in range(400)]


def test_calls_from_several_threads_at_once_agree():
    image = np.random.default_rng(3).integers(0, 255, (4, 200, 200), np.uint8)
    labels = patches(image.shape, 4).astype(np.uint8)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: cpu.reduce(image, labels, [1], (1, 5, 5), "clip", threads=2), range(8)))
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize("columns", [5, 32, 140, 256])  # whole blocks, and last ones that are narrower
def test_blocks_hold_none_of_a_class_some_or_nothing_else(columns):
    rng = np.random.default_rng(columns)
    for share in (0.0005, 0.02, 0.9995):
        labels = np.where(rng.random((9, 21, columns)) < share, 200, 0).astype(np.uint8)
        labels[3, 8:12] = 0  # rows of a block without any label
        labels[8] += np.uint8(7)  # a plane with others
        for value in (200, 0, 7):
            held = regions.blocks_of(labels.reshape(-1), np.uint8(value), labels.shape, 2)
            deep, tall, wide = regions.BLOCK
            for z, r, b in np.ndindex(held.shape):
                block = labels[z * deep : (z + 1) * deep, r * tall : (r + 1) * tall, b * wide : (b + 1) * wide] == value
                assert held[z, r, b] == (regions.ALL if block.all() else regions.SOME if block.any() else 0)


def test_boxes_hold_every_block_of_a_class_once_and_whole_ones_nothing_else():
    rng = np.random.default_rng(12)
    shape, window = (35, 100, 500), (3, 5, 5)
    size = [-(-length // side) for length, side in zip(shape, regions.BLOCK, strict=True)]
    for share, all_of_it in ((0.01, 0.5), (0.1, 0.0), (0.5, 0.9), (0.95, 1.0), (1.0, 1.0)):
        held = np.where(rng.random(size) < share, np.where(rng.random(size) < all_of_it, 2, 1), 0).astype(np.uint8)
        mixed, full = regions.boxes_of(held, shape, window)
        times = np.zeros(shape, int)
        voxels = held.repeat(4, 0).repeat(8, 1).repeat(32, 2)[: shape[0], : shape[1], : shape[2]]
        for boxes, whole in ((mixed, False), (full, True)):
            for z0, z1, y0, y1, x0, x1 in boxes.tolist():
                times[z0:z1, y0:y1, x0:x1] += 1
                assert not whole or (voxels[z0:z1, y0:y1, x0:x1] == regions.ALL).all()
        assert times.max() <= 1
        assert (times[voxels > 0] == 1).all()
        assert share < 1 or (len(mixed), len(full)) == (0, 1)


def test_boxes_are_tight_where_that_pays_and_one_where_it_does_not():
    held = np.zeros((8, 32, 32), np.uint8)
    held[1, 2, 3] = held[6, 30:32, 28] = regions.SOME
    mixed, _ = regions.boxes_of(held, (32, 256, 1024), (5, 5, 5))
    assert sorted(mixed.tolist()) == [[4, 8, 16, 24, 96, 128], [24, 28, 240, 256, 896, 928]]
    held[:, ::2, ::2] = regions.SOME  # in reach everywhere
    mixed, _ = regions.boxes_of(held, (32, 256, 1024), (7, 31, 31))
    assert mixed.tolist() == [[0, 32, 0, 256, 0, 992]]


@pytest.mark.parametrize("border", BORDERS)
def test_ground_truth_that_covers_all_but_a_hole_equals_window_sums(border):
    """Boxes that hold nothing else, at all borders, and what is left of the image round the hole."""
    image = np.random.default_rng(9).integers(-(2**15), 2**15, (12, 100, 300), dtype=np.int16)
    labels = np.ones(image.shape, np.uint8)
    for _ in range(2):
        for window in ((5, 5, 5), (4, 8, 31)):
            check_against_window_sums(image, labels, [1, 0], window, border)
        labels[3:5, 17:40, 200:211] = 0


def test_whole_rows_of_the_largest_values_do_not_leave_their_lanes():
    for dtype, value in (("int16", -(2**15)), ("uint16", 2**16 - 1), ("uint16", 0), ("uint8", 255)):
        image = np.full((1, 1, 300_001), value, dtype)
        plan = tiles.plan(image.shape, (1, 1, 3), "reflect", 1)
        got = tiles.reduce_class(image, np.ones(image.size, np.uint8), 1, "reflect", plan, 1, look=True)
        n = image.size
        assert got == Reduction(n * value, n * value * value, {3: (n, 3 * n * value)})
