"""Feature maps and the sums over them against loops in fractions, to the last integer."""

from itertools import product

import numpy as np
import pytest

import naive
import naive_features
from voxring import ImageError, Study, StudyError
from voxring.features import FeatureStack, feature_maps

BORDERS = ["reflect", "mirror", "nearest", "constant", "clip"]
KINDS = ["mean", "variance", "std", "skewness", "contrast"]


def stack(*windows, kinds=KINDS):
    """Every windowed kind at each window, and both without."""
    return [
        {"kind": "gradient"},
        *({"kind": kind, "window": window} for window in windows for kind in kinds),
        {"kind": "intensity"},
    ]


def study_of(features, border="reflect", fill=0.0, **standardise):
    return Study.of(
        name="features",
        classes={"a": 1, "b": 2},
        feature=features,
        window={"size": 3, "border": border, "fill": fill if border == "constant" else 0.0},
        standardise=standardise,
    )


def expected_maps(image, study, slope=1, intercept=0):
    options = {key: getattr(study.standardise, key) for key in ("method", "fraction_bits", "foreground")}
    options |= {
        key: value for key in ("range", "percentiles", "landmarks") if (value := getattr(study.standardise, key))
    }
    x = naive.standardise(image, image.shape, options, slope, intercept)
    for feature in study.feature:
        window = feature.along(image.ndim)[-image.ndim :]
        made = naive_features.feature_map(
            feature.kind, x, image.shape, window, study.window.border, study.fill, study.unit
        )
        yield np.array([made[q] for q in naive.indices(image.shape)], object).reshape(image.shape)


def check(image, study, slope=1, intercept=0):
    made = feature_maps(image, study, slope=slope, intercept=intercept)
    for feature, array, expected in zip(
        study.feature, made, expected_maps(image, study, slope, intercept), strict=True
    ):
        assert array.dtype == np.int64
        assert array.shape == image.shape
        assert np.array_equal(array, expected), feature.label


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(
    ("shape", "windows"),
    [((3, 4, 5), [(3, 2, 4)]), ((5, 7), [(4, 3), 2]), ((2, 3), [(7, 1)]), ((1, 1), [2]), ((1, 4, 2), [3])],
)
def test_maps_are_what_the_definitions_say(border, shape, windows):
    rng = np.random.default_rng(7)
    for dtype, bits, spread in (("uint8", 0, 4), ("int16", 16, 2000), ("int32", 3, 1 << 20)):
        image = rng.integers(0 if dtype == "uint8" else -spread, spread, shape).astype(dtype)
        check(image, study_of(stack(*windows), border, fill=2.0, fraction_bits=bits))


@pytest.mark.parametrize(
    ("options", "slope", "intercept"),
    [
        ({"method": "rescale", "range": [-300, 500]}, 1, 0),  # cuts both ends off: voxels are standardised first
        ({"method": "rescale", "range": [-9000, 9000], "fraction_bits": 20}, -3, 7),
        ({"method": "zscore", "foreground": "all"}, -1, 0),
        ({"method": "percentile", "percentiles": [10, 90], "foreground": "all", "fraction_bits": 30}, 1, 0),
    ],
)
@pytest.mark.parametrize("border", ["mirror", "constant", "clip"])
def test_maps_are_those_of_the_standardised_voxels(options, slope, intercept, border):
    image = np.random.default_rng(3).integers(-1000, 1000, (3, 4, 5), np.int16)
    check(image, study_of(stack((2, 3, 3)), border, fill=0.3, **options), slope, intercept)


def test_an_image_of_floats_is_put_on_the_grid_first():
    """Up to 31 bits: the squares and the cubes leave 63."""
    integers = np.random.default_rng(4).integers(-(2**31) + 1, 2**31, (2, 3, 4))
    study = study_of(stack(3), "nearest", fraction_bits=16)
    x = {q: int(integers[q]) for q in naive.indices(integers.shape)}
    for feature, array in zip(study.feature, feature_maps(integers / 2**16, study), strict=True):
        made = naive_features.feature_map(feature.kind, x, integers.shape, (3, 3, 3), "nearest", 0, 2**16)
        assert {q: int(array[q]) for q in made} == made, feature.label


EXTREMES = [np.array([[-1, 1, 1], [1, -1, 1]]), np.array([[1, 1, 1], [1, 1, 1]]), np.array([[-1, -1, -1], [-1, -1, 1]])]


@pytest.mark.parametrize(
    ("kinds", "largest", "window", "bits"),
    [
        (KINDS, 2**15 - 1, (45, 47), 16),  # V in 64 bits, sums of x in 32
        (KINDS, 2**15 - 1, (301, 311), 16),  # V in 128
        (["std", "skewness", "contrast"], 2**31 - 1, (31, 33), 0),  # T just within 128 bits
        (["std", "contrast"], 2**31 - 1, (511, 513), 0),  # sums of squares in 80 bits
        (["mean"], 2**46 - 1, (181, 181), 0),  # sums of x in 61 bits
        (["mean", "std", "contrast"], 2**31 - 1, (127, 128), 0),
    ],
)
def test_maps_are_exact_up_to_the_widths_that_are_allowed(kinds, largest, window, bits):
    study = Study.of(
        name="wide",
        classes={"a": 1},
        feature=stack(window, kinds=kinds),
        window={"border": "constant"},
        standardise={"fraction_bits": bits},
        bounds={"intensity": 2**47 >> bits},
    )
    for signs in EXTREMES:
        narrow = largest < 2**16
        integers = signs * largest - narrow * (signs < 0)
        image = integers.astype(np.int16) if narrow else integers.astype(np.float64)
        for feature, array in zip(study.feature, feature_maps(image, study), strict=True):
            x = {q: int(integers[q]) << (bits if narrow else 0) for q in naive.indices(signs.shape)}
            made = naive_features.feature_map(feature.kind, x, signs.shape, window, "constant", 0, study.unit)
            assert {q: int(array[q]) for q in made} == made, feature.label


@pytest.mark.parametrize("base", [2**31 - 10, 10 - 2**31, 1_234_567_891, 2**15 - 10])
def test_a_small_spread_on_a_large_base_loses_nothing(base):
    """Of numbers of 100 bits and more, all but a few cancel."""
    integers = base + np.random.default_rng(9).integers(-9, 10, (3, 4, 5))
    kinds = [kind for kind in KINDS if kind != "variance"]
    image = integers.astype(np.int16 if abs(base) < 2**16 else np.int32)
    check(image, study_of(stack(3, (4, 2, 5), kinds=kinds), "mirror", fraction_bits=12))


@pytest.mark.parametrize(
    ("kind", "largest", "window", "message"),
    [
        ("skewness", 2**31 - 1, (33, 34), "skewness is exact for window sums of at most 41 bits"),
        ("skewness", 2**31 + 1, (1, 1), "exact for values of at most 31 bits"),
        ("std", 2**32, (3, 3), "exact for values of at most 31 bits"),
        ("variance", 2**31, (1, 1), "variances could need more than 61 bits"),
        ("mean", 2**46, (256, 256), "sums of standardised values could need more than 61 bits"),
    ],
)
def test_what_could_be_wider_than_is_exact_is_refused(kind, largest, window, message):
    study = Study.of(
        name="wide",
        classes={"a": 1},
        feature=[{"kind": kind, "window": window}],
        standardise={"fraction_bits": 0},
        bounds={"intensity": 2**47},
    )
    with pytest.raises(ImageError, match=message + ".*: use a smaller window, fewer fraction_bits"):
        feature_maps(np.full((2, 3), float(largest)), study)


def test_halves_go_to_the_even_integer():
    """Of all images of four voxels with 0 … 3, most features of some lie between two integers."""
    halves = dict.fromkeys(KINDS, 0)
    study = study_of(stack(2), "nearest", fraction_bits=0)
    for values in product(range(4), repeat=3):
        image = np.array([[0, values[0]], values[1:]], np.int16)
        check(image, study)
        n, total, squares = 4, sum(values), sum(v * v for v in values)
        spread = n * squares - total**2
        halves["mean"] += total % 4 == 2
        halves["variance"] += spread % 16 == 8
        halves["std"] += spread in (4, 36)
        halves["contrast"] += spread > 0 and n * squares == 4 * spread
    assert min(halves[kind] for kind in KINDS if kind != "skewness") > 0


@pytest.mark.parametrize(
    ("kind", "values", "window", "bits"),
    [
        ("mean", [2**46 - 3, 2**46 - 2], 181, 0),
        ("mean", [2**46 - 4, 2**46 - 3], 181, 0),
        ("std", [0, 0, 2_100_247_265], 3, 0),
        ("std", [0, 0, 2_114_634_172], 3, 0),
        ("contrast", [5, 1382], 2, 40),
        ("contrast", [27, 1864], 2, 40),
        ("skewness", [0, 2, 2971], 3, 40),
        ("skewness", [0, 7, 1119], 3, 40),
    ],
)
def test_what_floats_take_for_a_half_is_settled_in_integers(kind, values, window, bits):
    """Found by search: the float64 nearest to each of these lies on a half, or past it."""
    study = Study.of(
        name="halves",
        classes={"a": 1},
        feature=[{"kind": kind, "window": [1, window]}],
        window={"border": "nearest"},
        standardise={"fraction_bits": bits},
        bounds={"intensity": 2**61 >> max(bits, 14)},
    )
    image = np.array([values], np.int16 if bits else np.float64)
    (made,) = feature_maps(image, study)
    x = {q: int(image[q]) << bits for q in naive.indices(image.shape)}
    expected = naive_features.feature_map(kind, x, image.shape, (1, window), "nearest", 0, study.unit)
    assert {q: int(made[q]) for q in expected} == expected


@pytest.mark.parametrize("border", BORDERS)
def test_maps_depend_neither_on_slabs_nor_on_threads(border):
    image = np.random.default_rng(6).integers(-99, 99, (9, 40, 800), np.int16)
    study = study_of(stack((4, 3, 5), (1, 9, 9), kinds=["mean", "std", "skewness"]), border, fill=7.0)
    whole = feature_maps(image, study, threads=1)
    assert all(map(np.array_equal, whole, feature_maps(image, study, threads=3)))
    stacked = FeatureStack(image, study, threads=2)
    for first, stop in ((0, 1), (1, 4), (4, 9), (8, 9)):
        for some, everything in zip(stacked.maps((first, stop)), whole, strict=True):
            assert np.array_equal(some, everything[first:stop])


def test_planes_and_windows_that_the_image_lacks_are_named():
    study = study_of(stack((3, 3, 3)))
    with pytest.raises(StudyError, match="the window of feature 'mean-3x3x3' has 3 numbers, the image has 2 axes"):
        feature_maps(np.ones((3, 4), np.int16), study)
    for planes in ((0, 3), (1, 1), (-1, 1)):
        with pytest.raises(ImageError, match="expected a first plane and a stop within the 2 of the image"):
            feature_maps(np.ones((2, 3, 4), np.int16), study, planes=planes)
