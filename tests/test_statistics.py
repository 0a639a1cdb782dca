"""Additive statistics: where numbers stand, what is refused, and what is derived, against twins and other tools."""

from fractions import Fraction
from math import isqrt, sqrt

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from skimage.feature import graycomatrix, graycoprops

import naive_statistics
from naive_statistics import PHANTOM, additive, pairs
from voxring.errors import BoundError, StudyError
from voxring.haralick import NAMES, haralick
from voxring.statistics import QUANTILES, derived, fault, largest_bound, layout, padded, slots, unpack
from voxring.study import Bins, Study
from voxring.totals import ClassTotals, LocalTotals, check_bounds, pooled, result_document

UNIT = 2**16
ALL = {
    "gram": True,
    "moments": 4,
    "histogram": {"bins": 5, "range": (-1.0, 1.0)},
    "glcm": {"levels": 3, "range": (-1.0, 1.0)},
}
FEATURES = ({"kind": "intensity"}, {"kind": "mean", "window": 3}, {"kind": "std", "window": 3, "name": "spread"})


def a_study(statistics=ALL, feature=FEATURES, **tables) -> Study:
    more = {"feature": list(feature)} if statistics.get("gram") else {}
    return Study.of(name="t", classes={"a": 1, "b": 2}, window={"size": 3}, statistics=statistics, **more, **tables)


def draw(seed: int, study: Study, n: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.integers(-UNIT * 5 // 4, UNIT * 5 // 4, n)
    counts = rng.integers(0, 9, (3, 3))
    return x, np.stack([x, rng.integers(-UNIT, UNIT, n), rng.integers(0, UNIT, n)]), counts + counts.T


# Where numbers stand.


def test_blocks_stand_in_order_and_only_what_is_asked_for_is_there() -> None:
    blocks = layout(a_study())
    assert [(b.name, b.size) for b in blocks] == [
        ("feature_sums", 3),
        ("gram", 6),
        ("powers", 4),
        ("histogram", 7),
        ("glcm", 9),
    ]
    assert slots(a_study()) == 29
    assert layout(Study.of(name="t", classes={"a": 1}, feature=list(FEATURES))) == ()
    assert [b.name for b in layout(a_study({"moments": 2}))] == ["powers"]
    values = tuple(range(29))
    parts = unpack(values, a_study())
    assert tuple(v for b in blocks for v in parts[b.name]) == values
    assert parts["histogram"] == (13, 14, 15, 16, 17, 18, 19)


def test_bounds_are_reached_by_the_largest_images_and_no_more() -> None:
    study = a_study(standardise={"method": "rescale", "range": (0.0, 1.0)}, bounds={"voxels_per_party": 7})
    most = study.intensity_bound
    bounds = {b.name: b.bound for b in layout(study)}
    assert bounds == {
        "feature_sums": 7 * most,
        "gram": 7 * most**2,
        "powers": 7 * most**4,
        "histogram": 7,
        "glcm": 7 * 26,
    }
    assert largest_bound(study) == 7 * most**4
    x = np.full(7, most, object)
    values = additive(x, [x, x, x], np.diag([7 * 26, 0, 0]), study)
    assert fault(values, 7, study) is None
    for number in range(slots(study)):
        larger = list(values)
        larger[number] += 1
        if larger[number] != 1:  # what has reached no bound
            assert fault(larger, 7, study) is not None, number


@pytest.mark.parametrize(
    ("place", "value", "block"),
    [
        (0, 10**9, "feature_sums"),
        (3, 10**18, "gram"),
        (3, 0, "gram"),  # Σf² below (Σf)² / n
        (9, 10**30, "powers"),
        (10, 1, "powers"),
        (13, 5, "histogram"),
        (14, -1, "histogram"),
        (20, -1, "glcm"),
        (21, 99, "glcm"),  # no longer symmetric
        (20, 10**6, "glcm"),
    ],
)
def test_numbers_that_no_images_have_are_named_by_their_block(place: int, value: int, block: str) -> None:
    study = a_study(standardise={"method": "rescale", "range": (0.0, 1.0)})
    values = list(additive(*draw(3, study), study))
    assert fault(values, 40, study) is None
    values[place] = value
    assert fault(values, 40, study) == block
    with pytest.raises(BoundError, match=f"class 'a': {block} .* nothing was sent"):
        check_bounds(LocalTotals({"a": ClassTotals(40, 0, 0, 0, 1, tuple(values))}), study)


def test_a_voxel_has_no_more_neighbours_than_there_are() -> None:
    study = a_study({"glcm": {"levels": 3, "range": (-1.0, 1.0)}})
    for values, found in (((26, 0, 0, 0, 26, 0, 0, 0, 0), None), ((26, 0, 0, 0, 26, 0, 0, 0, 1), "glcm")):
        assert fault(values, 2, study) == found


@pytest.mark.parametrize(
    ("feature", "border", "bound"),
    [
        ({"kind": "intensity"}, "reflect", 2 * UNIT),
        ({"kind": "mean", "window": 3}, "clip", 2 * UNIT),
        ({"kind": "std", "window": 3}, "reflect", 2 * UNIT),
        ({"kind": "variance", "window": 3}, "reflect", 4 * UNIT + 1),
        ({"kind": "contrast", "window": 3}, "reflect", UNIT),
        ({"kind": "skewness", "window": (2, 3, 7)}, "reflect", 7 * UNIT),
        ({"kind": "skewness", "window": 3}, "reflect", 6 * UNIT),
        ({"kind": "gradient"}, "reflect", isqrt(3 * (2 * UNIT) ** 2) + 1),
        ({"kind": "gradient"}, "clip", isqrt(12 * (2 * UNIT) ** 2) + 1),
    ],
)
def test_the_bound_of_a_feature_follows_from_that_of_intensities(feature: dict, border: str, bound: int) -> None:
    study = a_study(
        {"gram": True},
        [feature],
        standardise={"method": "rescale", "range": (0.0, 1.0)},
        bounds={"voxels_per_party": 3},
    )
    study = Study.of(**msgspec.to_builtins(study) | {"window": {"size": 1, "border": border}})
    assert [block.bound for block in layout(study)] == [3 * bound, 3 * bound**2]


def test_totals_of_another_study_are_refused_and_a_class_without_a_voxel_is_zeros() -> None:
    study = a_study({"moments": 2})
    assert padded((), 0, study) == (0, 0)
    for values in ((), (1,), (1, 2, 3)):
        with pytest.raises(StudyError, match="another study"):
            padded(values, 3, study)
    with pytest.raises(StudyError, match="another study"):
        pooled(LocalTotals({"a": ClassTotals(3, 0, 0, 0, 1)}), study)


def test_additive_statistics_add_up_in_any_order() -> None:
    one, two = ClassTotals(2, statistics=(1, -2)), ClassTotals(3, statistics=(5, 7))
    assert (one + two).statistics == (two + one).statistics == (6, 5)
    assert (one + ClassTotals()).statistics == (ClassTotals() + one).statistics == (1, -2)
    with pytest.raises(ValueError, match="zip"):
        _ = one + ClassTotals(1, statistics=(1,))


# What is derived.


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 60))
def test_derived_numbers_are_those_of_numpy_and_scipy(seed: int, n: int) -> None:
    study = a_study()
    x, features, counts = draw(seed, study, n)
    found = derived(additive(x, features, counts, study), n, study)
    values, f = x / UNIT, features / UNIT
    assert [Fraction(*map(int, pair)) for pair in found["feature_sums"]] == [
        Fraction(int(row.sum()), UNIT) for row in features
    ]
    gram = [[Fraction(*map(int, pair)) for pair in row] for row in found["gram"]]
    assert gram == [[Fraction(sum(map(int, a * b)), UNIT**2) for b in features] for a in features]
    np.testing.assert_allclose(found["feature_means"], f.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(found["covariance"], np.cov(f), rtol=1e-9, atol=1e-15)
    moments = found["moments"]
    np.testing.assert_allclose(moments["mean"], values.mean(), rtol=1e-9)
    np.testing.assert_allclose(moments["variance"], values.var(), rtol=1e-9)
    np.testing.assert_allclose(moments["skewness"], stats.skew(values), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(moments["kurtosis"], stats.kurtosis(values), rtol=1e-6, atol=1e-12)
    assert [Fraction(*map(int, pair)) for pair in moments["powers"]] == [
        sum(Fraction(int(v), UNIT) ** k for v in x) for k in (1, 2, 3, 4)
    ]
    histogram = found["histogram"]
    by_numpy, edges = np.histogram(values, 5, (-1.0, 1.0))
    assert histogram["counts"] == by_numpy.tolist()
    np.testing.assert_allclose(histogram["edges"], edges, atol=1e-15)
    assert (histogram["below"], histogram["above"]) == ((values < -1).sum(), (values > 1).sum())
    first = found["first_order"]
    np.testing.assert_allclose(first["energy"], (values**2).sum(), rtol=1e-12)
    np.testing.assert_allclose(first["root_mean_square"], np.sqrt((values**2).mean()), rtol=1e-12)
    np.testing.assert_allclose(first["coefficient_of_variation"], stats.variation(values), rtol=1e-6)
    levels = [histogram["below"], *histogram["counts"], histogram["above"]]
    np.testing.assert_allclose(first["entropy"], stats.entropy(levels, base=2), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(first["uniformity"], sum((c / n) ** 2 for c in levels), rtol=1e-12)
    for bin_of, value in (("minimum_bin", values.min()), ("maximum_bin", values.max())):
        low, high = first[bin_of]
        assert low is None or low <= value
        assert high is None or value <= high


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 40), st.integers(1, 7))
def test_quantiles_lie_in_the_bin_of_the_value_of_that_rank(seed: int, n: int, bins: int) -> None:
    study = a_study({"histogram": {"bins": bins, "range": (-1.0, 1.0)}})
    x = np.sort(np.random.default_rng(seed).integers(-UNIT * 9 // 8, UNIT * 9 // 8, n))
    found = derived(additive(x, [], [], study), n, study)["histogram"]
    edges = found["edges"]
    for q in QUANTILES:
        value = x[-(-Fraction(str(q)) * n // 1) - 1] / UNIT
        got = found["quantiles"][str(q)]
        if not -1 <= value <= 1:
            assert got is None
            continue
        k = min(int(np.searchsorted(edges, value, side="right")) - 1, bins - 1)
        assert edges[k] <= got <= edges[k + 1]
        # Voxels spread evenly over their bin: the part of the count below is q.
        below = found["below"] + sum(found["counts"][:k])
        part = (Fraction(got) - Fraction(edges[k])) / (Fraction(edges[k + 1]) - Fraction(edges[k]))
        assert float(below + part * found["counts"][k]) == pytest.approx(q * n)


def test_quantiles_of_one_bin_are_even_and_what_is_undefined_is_none() -> None:
    study = a_study({"moments": 4, "histogram": {"bins": 2, "range": (0.0, 1.0)}})
    same = [UNIT // 4] * 4
    found = derived(additive(same, [], [], study), 4, study)
    assert found["histogram"]["quantiles"]["0.5"] == 0.25
    assert found["histogram"]["quantiles"]["0.9"] == 0.45
    assert found["moments"]["skewness"] is found["moments"]["kurtosis"] is None
    assert found["moments"]["variance"] == 0
    assert found["first_order"]["mode_bin"] == [0.0, 0.5]
    outside = derived(additive([-UNIT, -UNIT, 2 * UNIT, 2 * UNIT], [], [], study), 4, study)
    assert set(outside["histogram"]["quantiles"].values()) == {None}
    assert outside["first_order"]["interquartile_range"] is None
    assert (outside["first_order"]["minimum_bin"], outside["first_order"]["maximum_bin"]) == ([None, 0.0], [1.0, None])
    zero = derived(additive([-UNIT, UNIT], [], [], study), 2, study)
    assert zero["first_order"]["coefficient_of_variation"] is None


# Texture.


@pytest.mark.parametrize("seed", range(12))
def test_texture_equals_the_formulas(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 9))
    counts = rng.integers(0, 5, (size, size)) * rng.integers(0, 2, (size, size))
    counts = counts + counts.T
    counts[0, 1] += 1
    counts[1, 0] += 1
    found, expected = haralick(counts.tolist()), naive_statistics.haralick(counts)
    assert tuple(found) == NAMES == tuple(expected)
    for name in NAMES:
        assert found[name] == pytest.approx(float(expected[name]), rel=1e-9, abs=1e-7), name


# What the reference manual of the image biomarker standardisation initiative gives for its digital phantom, for
# matrices merged over all directions in 3D, and over those within planes.
IBSI_3D = (
    *(0.509, 2.15, 3.13, 2.57, 1.38, 3.21, 1.64, 4.3, 7.41, 2.11, 0.291, 5.12, 1.38),
    *(0.688, 0.856, 0.631, 0.902, 0.0574, 0.183, 5.19, 7.41, 17.4, 147, -0.0288, 0.269),
)  # fmt: skip
IBSI_PLANAR = (
    *(0.492, 2.2, 3.24, 2.61, 1.44, 3.23, 1.67, 4.41, 7.65, 2.14, 0.277, 5.29, 1.44),
    *(0.673, 0.85, 0.613, 0.899, 0.0582, 0.182, 5.45, 7.65, 16.4, 142, -0.0334, 0.291),
)  # fmt: skip


@pytest.mark.parametrize(("planar", "reference"), [(False, IBSI_3D), (True, IBSI_PLANAR)])
def test_texture_of_the_digital_phantom_is_that_of_the_standard(planar: bool, reference: tuple[float, ...]) -> None:
    found = haralick(pairs(PHANTOM, 6, planar=planar).tolist())
    assert [float(f"{found[name]:.3g}") for name in NAMES] == list(reference)


def test_first_order_features_of_the_digital_phantom_are_those_of_the_standard() -> None:
    study = a_study({"moments": 4, "histogram": {"bins": 6, "range": (0.5, 6.5)}})
    x = PHANTOM[PHANTOM > 0] * UNIT
    found = derived(additive(x, [], [], study), x.size, study)["first_order"]
    reference = {
        "mean": 2.15,
        "variance": 3.05,
        "skewness": 1.08,
        "kurtosis": -0.355,
        "energy": 567,
        "root_mean_square": 2.77,
        "coefficient_of_variation": 0.812,
        "entropy": 1.27,
        "uniformity": 0.512,
    }
    assert {name: float(f"{found[name]:.3g}") for name in reference} == reference
    assert (found["mode_bin"], found["minimum_bin"], found["maximum_bin"]) == ([0.5, 1.5], [0.5, 1.5], [5.5, 6.5])


def test_texture_agrees_with_scikit_image_where_definitions_do() -> None:
    levels = np.random.default_rng(4).integers(0, 5, (9, 11), np.uint8)
    angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    counts = graycomatrix(levels, [1], angles, levels=5, symmetric=True).sum(axis=3, keepdims=True)
    assert (counts[:, :, 0, 0] == pairs(levels[np.newaxis].astype(int) + 1, 5, planar=True)).all()
    found = haralick(counts[:, :, 0, 0].tolist())
    theirs = {
        "contrast": "contrast",
        "dissimilarity": "dissimilarity",
        "homogeneity": "inverse_difference_moment",
        "ASM": "angular_second_moment",
        "correlation": "correlation",
        "variance": "joint_variance",
    }
    for name, ours in theirs.items():
        assert found[ours] == pytest.approx(float(graycoprops(counts, name)[0, 0]), rel=1e-12), name
    # Where they differ: their levels begin at 0, their energy is the root, their entropy is natural.
    assert found["joint_average"] - 1 == pytest.approx(float(graycoprops(counts, "mean")[0, 0]))
    assert sqrt(found["angular_second_moment"]) == pytest.approx(float(graycoprops(counts, "energy")[0, 0]))
    assert found["joint_entropy"] == pytest.approx(float(graycoprops(counts, "entropy")[0, 0]) / np.log(2))


def test_texture_that_is_not_defined_is_none() -> None:
    assert set(haralick([[0, 0], [0, 0]]).values()) == {None}
    one = haralick([[4, 0], [0, 0]])
    assert one["correlation"] is one["information_correlation_1"] is one["information_correlation_2"] is None
    assert (one["joint_maximum"], one["contrast"], one["joint_entropy"]) == (1.0, 0.0, 0.0)
    independent = haralick([[1, 1], [1, 1]])
    assert independent["information_correlation_2"] == 0


# The result file.


def test_the_result_file_has_statistics_where_they_are_asked_for_alone() -> None:
    study = a_study()
    x, features, counts = draw(9, study)
    values = additive(x, features, counts, study)
    totals = LocalTotals({"a": ClassTotals(40, 0, int(x.sum()), int((x * x).sum()), 2, values)})
    document = result_document(pooled(totals, study), study)
    assert document["features"] == ["intensity", "mean-3", "spread"]
    assert document["classes"]["a"]["statistics"] == derived(values, 40, study)
    assert list(document["classes"]["a"]["statistics"]) == [
        "feature_sums",
        "feature_means",
        "gram",
        "covariance",
        "moments",
        "histogram",
        "glcm",
        "first_order",
    ]
    assert set(document["classes"]["b"]) == {"withheld"}
    plain = Study.of(name="t", classes={"a": 1}, window={"size": 3})
    without = result_document(pooled(LocalTotals({"a": ClassTotals(3, 0, 0, 0, 1)}), plain), plain)
    assert "features" not in without
    assert "statistics" not in without["classes"]["a"]


def test_bins_hold_their_left_edge_and_the_last_one_both() -> None:
    assert [float(edge) for edge in Bins(bins=4, range=(0.0, 1.0)).edges] == [0.0, 0.25, 0.5, 0.75, 1.0]
    study = a_study({"histogram": {"bins": 2, "range": (0.0, 1.0)}})
    assert additive([0, UNIT // 2 - 1, UNIT // 2, UNIT, UNIT + 1, -1], [], [], study) == (1, 2, 2, 1)
