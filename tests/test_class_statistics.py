"""Sums over the voxels of each class against loops in Python integers, and co-occurrence against scikit-image."""

from fractions import Fraction

import numpy as np
import pytest
from skimage.feature import graycomatrix

import naive
import naive_features
from voxring import ImageError, Study, StudyError, features
from voxring.features import class_statistics
from voxring.kernels.cpu import additive

EVERYTHING = {
    "gram": True,
    "moments": 4,
    "histogram": {"bins": 5, "range": [-0.3, 0.7]},
    "glcm": {"levels": 3, "range": [-0.5, 0.4]},
}
FEATURES = [{"kind": "intensity"}, {"kind": "gradient"}, {"kind": "std", "window": 2}, {"kind": "mean", "window": 3}]


def study_of(**options):
    tables = {"name": "sums", "classes": {"a": 1, "b": 7}, "statistics": EVERYTHING, "feature": FEATURES}
    return Study.of(**tables | options)


def expected(image, truth, study, label):
    shape, asked = image.shape, study.statistics
    x = naive.standardise(image, shape, {"fraction_bits": study.standardise.fraction_bits})
    maps = [
        naive_features.feature_map(
            f.kind, x, shape, f.along(len(shape))[-len(shape) :], study.window.border, study.fill, study.unit
        )
        for f in study.feature
    ]
    histogram = glcm = None
    if asked.histogram:
        histogram = (asked.histogram.bins, *map(exactly, asked.histogram.range))
    if asked.glcm:
        glcm = (asked.glcm.levels, *map(exactly, asked.glcm.range), asked.glcm.distance, asked.glcm.planar)
    return naive_features.statistics(
        maps, x, truth, label, shape, study.unit, gram=asked.gram, moments=asked.moments, histogram=histogram, glcm=glcm
    )


def exactly(number):
    return Fraction(str(number))


@pytest.mark.parametrize(("shape", "border"), [((4, 5, 6), "reflect"), ((6, 7), "clip"), ((3, 1, 9), "nearest")])
@pytest.mark.parametrize("glcm", [{}, {"distance": 2}, {"planar": True}])
def test_the_sums_are_those_of_the_definitions(shape, border, glcm):
    rng = np.random.default_rng(5)
    image = rng.integers(-9, 10, shape, np.int16)
    truth = rng.choice(np.array([0, 1, 1, 7, 300], np.int16), shape)
    tables = EVERYTHING | {"glcm": EVERYTHING["glcm"] | glcm}
    study = study_of(statistics=tables, window={"border": border}, standardise={"fraction_bits": 4})
    bits = {"fraction_bits": 40}
    wide = study_of(statistics=tables, window={"border": border}, standardise=bits, bounds={"intensity": 20})
    for one in (study, wide):  # below and beyond 63 bits for products
        assert class_statistics(image << (one is study), truth, one) == {
            name: expected(image << (one is study), truth, one, label) for name, label in one.classes.items()
        }


def test_each_block_can_be_asked_for_alone():
    image = np.arange(-6, 6, dtype=np.int16).reshape(3, 4)
    truth = np.ones((3, 4), np.uint8)
    for key, value in EVERYTHING.items():
        study = study_of(statistics={key: value}, standardise={"fraction_bits": 3})
        assert class_statistics(image, truth, study)["a"] == expected(image, truth, study, 1)


def test_the_sums_depend_neither_on_slabs_nor_on_threads(monkeypatch):
    rng = np.random.default_rng(8)
    image = rng.integers(-300, 300, (20, 130, 120), np.int16)
    truth = rng.integers(0, 3, image.shape, np.uint8) * 7
    truth[3:6] = truth[11] = 0
    study = study_of(classes={"a": 14, "b": 7}, standardise={"fraction_bits": 9})
    whole = class_statistics(image, truth, study, threads=1)
    assert class_statistics(image, truth, study, threads=3) == whole
    monkeypatch.setattr(features, "SLAB", 130 * 120 * 4 * 2)
    monkeypatch.setattr(additive, "PART", 999)
    assert class_statistics(image, truth, study, threads=2) == whole


def test_classes_are_found_by_their_labels_or_are_zeros():
    image = np.arange(12, dtype=np.int16).reshape(3, 4)
    truth = (image > 5).astype(np.int8)
    study = study_of(classes={"a": "liver", "b": 4_000_000_000})
    with pytest.raises(ImageError, match="names the segment 'liver'"):
        class_statistics(image, truth, study)
    found = class_statistics(image, truth, study, labels={"a": 1, "b": 4_000_000_000})
    assert found["a"] == class_statistics(image, truth, study_of())["a"]
    assert found["b"] == (0,) * len(found["a"])
    with pytest.raises(ImageError, match="must cover the same voxels"):
        class_statistics(image, truth.T, study_of())
    with pytest.raises(StudyError, match="the window of feature"):
        class_statistics(image, truth, study_of(feature=[{"kind": "mean", "window": [3, 3, 3]}]))


@pytest.mark.parametrize("largest", [2**62, 2**31, 2**30, 2**29 + 12345, 3])
def test_products_are_exact_however_wide_the_features_are(largest):
    values = np.array([[1], [largest], [-largest]]).repeat(5000, axis=1)
    values[1, ::2] -= 1
    exact = [list(map(int, row)) for row in values]
    assert additive.gram(values, 1) == [
        sum(f * g for f, g in zip(exact[i], exact[j], strict=True)) for i in range(3) for j in range(i, 3)
    ]


def test_powers_are_exact_up_to_47_bits():
    x = np.array([2**47 - 1, 1 - 2**47, -(2**47) + 1, 5, 0])
    assert additive.powers(x, 1) == [sum(int(v) ** k for v in x) for k in range(1, 5)]


def test_a_bin_holds_its_left_edge_and_the_last_its_right():
    study = study_of(statistics={"histogram": {"bins": 4, "range": [0.0, 1.0]}}, standardise={"fraction_bits": 2})
    image = np.array([[-1, 0, 1, 2]], np.int16)  # 0 and 1 are the edges
    assert class_statistics(image, np.ones((1, 4), np.uint8), study)["a"] == (1, 1, 0, 0, 1, 1)
    thirds = study_of(statistics={"histogram": {"bins": 3, "range": [0, 1]}}, standardise={"method": "none"})
    assert class_statistics(np.array([[1]], np.int16), np.ones((1, 1), np.uint8), thirds, slope=1 / 3)["a"] == (
        *(0, 1, 0, 0),  # 1/3 is rounded to 21845 / 65536, which is below the edge
        0,
    )


def test_pairs_of_levels_are_those_of_scikit_image():
    image = np.random.default_rng(2).integers(0, 8, (40, 37), np.uint8)
    study = study_of(
        statistics={"glcm": {"levels": 8, "range": [-0.5, 7.5]}}, feature=[], standardise={"fraction_bits": 1}
    )
    counts = class_statistics(image, np.ones_like(image), study)["a"]
    angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    theirs = graycomatrix(image, [1], angles, levels=8, symmetric=True).sum(axis=(2, 3))
    assert np.array_equal(np.reshape(counts, (8, 8)), theirs)


def test_warm_compiles_both_types_of_the_feature_kernels():
    from voxring.cli.warm import _features
    from voxring.kernels.cpu.features import feature_box

    _features()
    assert {str(signature[0].dtype) for signature in feature_box.signatures} == {"int16", "int64"}
