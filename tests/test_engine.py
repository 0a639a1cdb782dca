"""The engine against the definitions: every window, border, dtype and standardisation, exactly."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import naive
from voxring import (
    DeviceError,
    ImageError,
    LocalTotals,
    Statistics,
    Study,
    StudyError,
    local_totals,
    pooled,
)
from voxring.engine import planes_needed
from voxring.kernels.cpu import histogram as kernel
from voxring.standardise import _Ranked, _sums

BORDERS = ["reflect", "mirror", "nearest", "constant", "clip"]
INTEGERS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32]


def study_of(window=3, border="reflect", *, standardise=None, classes=None, fill=0.0, **tables):
    return Study.of(
        name="test",
        classes=classes or {"a": 1, "b": 2},
        window={"size": window, "border": border, **({"fill": fill} if border == "constant" else {})},
        standardise=standardise or {},
        **tables,
    )


def assert_equal_to_naive(study, parties, options=None):
    """Pooled over all images: n, sum, μ, sdsum and σ² meet the definition's to the bit."""
    totals = LocalTotals()
    for images in parties:
        for image, ground_truth, *scale in images:
            slope, intercept = scale or (1.0, 0.0)
            totals = totals + local_totals(image, ground_truth, study, slope=slope, intercept=intercept)
    expected = naive.algorithm_1(
        parties, study.classes, study.window.size, study.window.border, fill=study.window.fill, options=options
    )
    for name, answer in pooled(totals, study).items():
        n, total, mean, sdsum, variance = expected[name]
        assert totals[name].voxels == n
        assert Fraction(totals[name].sum, study.denominator) == total
        if isinstance(answer, Statistics):
            assert (answer.voxels, answer.sum, answer.mean) == (n, total, mean)
            assert (answer.sdsum, answer.variance) == (sdsum, variance)
        else:
            assert n < 2


@st.composite
def images(draw, dtypes=INTEGERS, max_side=5):
    ndim = draw(st.integers(2, 3))
    shape = tuple(draw(st.integers(1, max_side)) for _ in range(ndim))
    dtype = draw(st.sampled_from(dtypes))
    info = np.iinfo(dtype)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    image = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    return image, rng.integers(0, 3, shape, np.uint8)


@st.composite
def windows(draw, ndim, largest=7):
    if draw(st.booleans()):
        return draw(st.integers(1, largest))
    return tuple(draw(st.integers(1, largest)) for _ in range(ndim))


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_local_totals_equal_the_definition(data):
    image, ground_truth = data.draw(images())
    border = data.draw(st.sampled_from(BORDERS))
    fill = data.draw(st.sampled_from([0.0, -2.5, 7.0])) if border == "constant" else 0.0
    study = study_of(data.draw(windows(image.ndim)), border, fill=fill, bounds={"intensity": 2**32})
    assert_equal_to_naive(study, [[(image, ground_truth)]])


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_standardisations_equal_the_definition(data):
    image, ground_truth = data.draw(images(dtypes=[np.int16, np.uint8, np.int32], max_side=4))
    image = (image.astype(np.int64) % 251).astype(image.dtype)
    slope = data.draw(st.sampled_from([1.0, -1.0, 0.1, 2.5, float(np.float32(0.37))]))
    intercept = data.draw(st.sampled_from([0.0, -1024.0, 0.3]))
    options = data.draw(
        st.sampled_from(
            [
                {"method": "none"},
                {"method": "rescale", "range": (-20.0, 400.5)},
                {"method": "rescale", "range": (-1e4, 1e4), "fraction_bits": 24},
                {"method": "zscore", "foreground": "all", "fraction_bits": 24},
                {"method": "zscore", "foreground": "nonzero", "fraction_bits": 20},
                {"method": "zscore", "fraction_bits": 24},
                {"method": "percentile", "percentiles": (1.0, 99.0), "foreground": "all"},
                {"method": "percentile", "percentiles": (0.5, 100.0), "fraction_bits": 22},
                {"method": "nyul", "percentiles": (2.0, 50.0, 98.0), "landmarks": (0.0, 40.0, 100.0)},
            ]
        )
    )
    study = study_of(3, data.draw(st.sampled_from(BORDERS)), standardise=options)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("voxring.standardise._AT_ONCE", data.draw(st.sampled_from([1, 1 << 16])))
            got = local_totals(image, ground_truth, study, slope=slope, intercept=intercept)
    except ImageError:  # an empty or flat foreground, percentiles that meet: the definition has no answer either
        with pytest.raises((ZeroDivisionError, ValueError, IndexError)):
            naive.standardise(image, image.shape, options, slope, intercept)
        return
    assert got["a"].voxels == int((ground_truth == 1).sum())
    assert_equal_to_naive(study, [[(image, ground_truth, slope, intercept)]], options)


def test_the_same_intensities_stored_with_another_intercept_give_the_same_integers():
    rng = np.random.default_rng(0)
    image = rng.integers(-1024, 3071, (4, 9, 9), np.int16)
    ground_truth = rng.integers(0, 3, image.shape, np.uint8)
    for options in (
        {"method": "none"},
        {"method": "rescale", "range": (-1000.0, 3000.0)},
        {"method": "zscore"},
        {"method": "percentile", "percentiles": (1.0, 99.0)},
    ):
        study = study_of(3, standardise=options)
        plain = local_totals(image, ground_truth, study)
        shifted = local_totals((image + 1024).astype(np.uint16), ground_truth, study, intercept=-1024.0)
        assert plain == shifted


def test_float_images_go_through_the_grid():
    rng = np.random.default_rng(1)
    image = rng.normal(0.3, 2.0, (3, 6, 7))
    ground_truth = rng.integers(0, 3, image.shape, np.uint8)
    study = study_of((1, 3, 2), "clip")
    grid = np.rint(image * 2**16).astype(np.int64)
    totals = local_totals(image, ground_truth, study)
    where = np.argwhere(ground_truth == 1)
    expected = Fraction(0)
    for z, y, x in where:
        window = grid[z, max(0, y - 1) : y + 2, max(0, x - 1) : x + 1]
        expected += Fraction(int(window.sum()), window.size)
    assert Fraction(totals["a"].sum * 2**16, study.denominator) == expected
    assert totals["a"].squares == sum(int(grid[tuple(q)]) ** 2 for q in where)


def test_float_images_are_rescaled_voxel_by_voxel():
    image = np.array([[-2000.0, -1000.0, 0.25, 1000.1], [3000.0, 5000.0, 17.0, 2999.9]], np.float32)
    ground_truth = np.ones(image.shape, np.uint8)
    study = study_of(1, standardise={"method": "rescale", "range": [-1000, 3000]}, classes={"all": 1})
    totals = local_totals(image, ground_truth, study)
    step = round(Fraction(2**24, 4000))
    clipped = [Fraction(float(v)) for v in np.clip(image, -1000, 3000).ravel()]
    expected = [round(Fraction(round(v * 2**16) * step + 1000 * 2**16 * step, 2**24)) for v in clipped]
    assert totals["all"].total == sum(expected)
    assert abs(totals["all"].total / study.unit - float(sum(v + 1000 for v in clipped) / 4000)) < 1e-2


def test_totals_do_not_depend_on_layout_byte_order_or_threads():
    rng = np.random.default_rng(3)
    image = rng.integers(-30000, 30000, (5, 30, 31), np.int16)
    ground_truth = rng.integers(0, 3, image.shape, np.int32)
    study = study_of(5)
    expected = local_totals(image, ground_truth, study, threads=1)
    for other in (np.asfortranarray(image), image.astype(">i2"), image[:, ::-1][:, ::-1], image.astype(np.int32)):
        assert local_totals(other, ground_truth, study, threads=2) == expected
    assert local_totals(image, ground_truth.astype(">i4"), study) == expected


def test_a_mask_of_bools_is_a_ground_truth_of_class_1():
    image = np.arange(9, dtype=np.int16).reshape(3, 3)
    assert local_totals(image, image > 4, study_of())["a"].voxels == 4


@pytest.mark.parametrize(
    ("image", "ground_truth", "message"),
    [
        (np.zeros((2, 2), np.int16), np.zeros((2, 3), np.uint8), r"shape \(2, 3\), the image \(2, 2\)"),
        (np.zeros(4, np.int16), np.zeros(4, np.uint8), "2 or 3 axes, got 1"),
        (np.zeros((0, 2), np.int16), np.zeros((0, 2), np.uint8), "at least one voxel"),
        (np.zeros((2, 2), np.int16), np.zeros((2, 2), np.float32), "ground truth of integers, got float32"),
        (np.zeros((2, 2), np.complex64), np.zeros((2, 2), np.uint8), "got complex64"),
        (np.zeros((2, 2), np.int64), np.zeros((2, 2), np.uint8), "at most 32 bits, got int64"),
        (np.full((2, 2), np.nan), np.zeros((2, 2), np.uint8), "finite voxels"),
        (np.full((2, 2), 1e30), np.zeros((2, 2), np.uint8), "does not fit 47 bits"),
    ],
)
def test_bad_images_are_refused(image, ground_truth, message):
    with pytest.raises(ImageError, match=message):
        local_totals(image, ground_truth, study_of())


def test_a_value_beyond_the_bound_is_refused_with_its_range():
    image = np.array([[0, 3000], [5, -7]], np.int16)
    with pytest.raises(ImageError, match=r"run from -7 to 3000, the study allows 1000 either way"):
        local_totals(image, np.ones((2, 2), np.uint8), study_of(bounds={"intensity": 1000}))


def test_impossible_standardisations_are_refused():
    flat, ground_truth = np.full((3, 3), 7, np.int16), np.ones((3, 3), np.uint8)
    for options in ({"method": "zscore"}, {"method": "percentile", "percentiles": [1, 99]}):
        with pytest.raises(ImageError):
            local_totals(flat, ground_truth, study_of(standardise=options))
    wide = study_of(standardise={"method": "rescale", "range": [0, 1e6], "fraction_bits": 8})
    with pytest.raises(ImageError, match="too wide for fraction_bits"):
        local_totals(flat, ground_truth, wide)
    with pytest.raises(ImageError, match="slope is 0"):
        local_totals(flat, ground_truth, study_of(), slope=0.0)


def test_window_and_image_must_have_the_same_axes():
    with pytest.raises(StudyError, match="3 numbers, the image has 2 axes"):
        local_totals(np.zeros((4, 4), np.int16), np.zeros((4, 4), np.uint8), study_of((3, 3, 3)))
    per_slice = local_totals(np.ones((4, 4), np.int16), np.ones((4, 4), np.uint8), study_of((1, 3, 3)))
    assert per_slice["a"].voxels == 16


def test_devices():
    image, ground_truth = np.ones((2, 2), np.int16), np.ones((2, 2), np.uint8)
    assert local_totals(image, ground_truth, study_of(), device="auto")["a"].voxels == 4
    with pytest.raises(DeviceError):
        local_totals(image, ground_truth, study_of(), device="cuda")
    with pytest.raises(DeviceError, match="got 'tpu'"):
        local_totals(image, ground_truth, study_of(), device="tpu")


def test_a_class_named_by_segment_needs_a_label():
    study = study_of(classes={"lesion": "Tumour"})
    image, ground_truth = np.ones((2, 2), np.int16), np.full((2, 2), 5, np.uint8)
    with pytest.raises(ImageError, match="names the segment 'Tumour'"):
        local_totals(image, ground_truth, study)
    assert local_totals(image, ground_truth, study, labels={"lesion": 5})["lesion"].voxels == 4


def test_zscore_of_32_bit_values_is_exact():
    rng = np.random.default_rng(4)
    image = rng.integers(-(2**31), 2**31 - 1, (4, 5), np.int32, endpoint=True)
    options = {"method": "zscore", "foreground": "all", "fraction_bits": 40}
    study = study_of(3, standardise=options, bounds={"intensity": 4})
    assert_equal_to_naive(study, [[(image, rng.integers(0, 3, image.shape, np.uint8))]], options)


def test_sums_of_the_widest_integers_are_exact():
    rng = np.random.default_rng(5)
    values = np.concatenate((rng.integers(-(2**47), 2**47, 100), [-(2**47), 2**47 - 1] * 50))
    counts = rng.integers(0, 2**30, values.size)
    pairs = list(zip(values.tolist(), counts.tolist(), strict=True))
    assert _sums(values, counts) == tuple(sum(v**k * count for v, count in pairs) for k in range(3))


@pytest.mark.parametrize("border", BORDERS)
def test_the_planes_that_are_needed_give_what_the_whole_image_does(border):
    """Every window up to twice the image and more, every first and last plane with a label."""
    rng = np.random.default_rng(9)
    fewer = 0
    for planes in range(1, 7):
        image = rng.integers(-100, 100, (planes, 2, 1), np.int16)
        for window in range(1, 2 * planes + 3):
            study = study_of([window, 1, 1], border, fill=3.0)
            for first, last in product(range(planes), repeat=2):
                truth = np.zeros(image.shape, np.uint8)
                truth[first, 1, 0], truth[last, 0, 0] = 1, 2
                start, stop = planes_needed([(truth, [1]), (truth, [2])], image.dtype, study)
                part = local_totals(image[start:stop], truth[start:stop], study)
                assert part == local_totals(image, truth, study)
                fewer += stop - start < planes
    assert fewer > 300


@pytest.mark.parametrize(
    ("dtype", "standardise", "tables", "scale", "expected"),
    [
        (np.int16, {}, {}, {}, (3, 6)),
        (np.uint8, {"method": "rescale", "range": [0, 9]}, {}, {}, (3, 6)),
        (np.int16, {}, {"bounds": {"intensity": 100}}, {}, (0, 9)),  # whether a voxel leaves the bound is to be seen
        (np.int16, {}, {"bounds": {"intensity": 40_000}}, {"slope": 2.0}, (0, 9)),
        (np.int16, {}, {"bounds": {"intensity": 40_000}}, {"slope": -1.0, "intercept": 7000.0}, (3, 6)),
        (np.int16, {"method": "zscore"}, {}, {}, (0, 9)),
        (np.uint8, {"method": "percentile", "percentiles": [1, 99]}, {}, {}, (0, 9)),
        (np.int32, {"method": "rescale", "range": [0, 9]}, {}, {}, (0, 9)),
        (np.float32, {}, {}, {}, (0, 9)),  # whether all are finite is to be seen
        (np.float16, {}, {}, {}, (0, 9)),
        (np.bool_, {}, {}, {}, (3, 6)),
    ],
)
def test_the_whole_image_is_needed_where_all_voxels_have_a_say(dtype, standardise, tables, scale, expected):
    truth = np.zeros((9, 4, 4), np.int32)
    truth[4, 2, 2] = 300
    study = study_of(3, standardise=standardise, classes={"a": 300}, **tables)
    assert planes_needed([(truth, [300])], np.dtype(dtype), study, **scale) == expected
    assert planes_needed([(truth, [301]), (truth.astype(np.uint8), [300])], np.dtype(dtype), study, **scale) == (0, 0)
    assert planes_needed([(truth == 300, [1, 300])], np.dtype(dtype), study, **scale) == expected
    lower = np.where(truth == 300, 7, 0)  # of two labels, the less stands alone
    for of in (lower, lower.astype(np.uint8)):
        assert planes_needed([(of, [7, 9])], np.dtype(dtype), study, **scale) == expected
    assert planes_needed([(truth[4], [300])], np.dtype(dtype), study_of(3, classes={"a": 300})) == (0, 4)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16])
def test_histograms_count_every_value(monkeypatch, dtype):
    rng = np.random.default_rng(8)
    info = np.iinfo(dtype)
    for shape in ((1, 1, 1), (3, 5, 7), (2, 64, 66)):
        image = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
        image.flat[0], image.flat[-1] = info.min, info.max
        expected = np.unique(image.astype(np.int64), return_counts=True)
        flat = image.reshape(-1)  # all but its first value begins within a word
        for most in (1 << 31, 41):  # that are counted in 32 bits
            monkeypatch.setattr(kernel, "MOST", most)
            for parts in ((image,), (image[..., ::-1],), (image[:1], image[1:]), (flat[:1], flat[1:])):
                for found, of in zip(kernel.histogram(parts, image.dtype), expected, strict=True):
                    assert np.array_equal(found, of)


@pytest.mark.parametrize("top", [1, 9, 1 << 16, 1 << 20, 1 << 46])
def test_values_of_ranks_are_those_of_the_sorted_image(top):
    """Of few bits and of as many as there may be, which takes four passes; some ranks lie in one value."""
    image = np.random.default_rng(9).integers(1 - top, top, (40, 5, 7), np.int64)
    image[:, 0, :2] = -3 if top > 3 else 0
    known = _Ranked(lambda: (image[:9], image[9:]))
    for least in (1 - top, 0):
        among = sorted(value for value in image.flat if value >= least)
        asked = [1, len(among) // 3, len(among) // 2, len(among) // 2 + 1, len(among)]
        found = known.ranked(lambda values, least=least: values >= least, lambda count, asked=asked: asked)
        assert found == [among[rank - 1] for rank in asked]
    counts = []
    known.ranked(lambda values: values > top, lambda count: counts.append(count) or [1])
    assert counts == [0]
