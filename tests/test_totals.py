"""The algebra of Algorithm 1: any split of the same voxels gives the same answer."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import naive
from voxring import BoundError, ClassTotals, LocalTotals, Statistics, Study, local_totals, pooled
from voxring.totals import check_bounds, result_document, sdsum_bound, square_root, sum_bound


def study_of(**tables):
    return Study.of(name="test", classes={"a": 1, "b": 2}, window={"size": 3}, **tables)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 5), st.integers(3, 9))
def test_any_split_among_parties_equals_pooled(seed, parties, count):
    rng = np.random.default_rng(seed)
    study = study_of()
    images = []
    for _ in range(count):
        shape = tuple(rng.integers(1, 5, rng.integers(2, 4)))
        images.append((rng.integers(-1000, 1000, shape, np.int16), rng.integers(0, 3, shape, np.uint8)))
    owner = rng.integers(0, parties, count)
    split = [LocalTotals() for _ in range(parties)]
    together = LocalTotals()
    for (image, ground_truth), i in zip(images, owner, strict=True):
        one = local_totals(image, ground_truth, study)
        split[i] = one + split[i]
        together = together + one
    total = LocalTotals()
    for one in split:
        total = total + one
    assert {n: total[n] for n in study.classes} == {n: together[n] for n in study.classes}
    answer = pooled(total, study)
    expected = naive.algorithm_1([images], study.classes, 3, "reflect")
    for name, one in answer.items():
        if isinstance(one, Statistics):
            assert (one.voxels, one.sum, one.mean, one.sdsum, one.variance) == expected[name]
            # the second pass, answered by each party alone from what it kept
            parts = sum(Fraction(mine[name].sdsum(one.mean, study.unit)) for mine in split)
            assert parts / (one.mean.denominator * study.unit) ** 2 == one.sdsum
            for mine in split:
                assert 0 <= mine[name].sdsum(one.mean, study.unit) <= sdsum_bound(study, one.mean)
                assert abs(mine[name].sum) <= sum_bound(study)


@given(st.fractions(min_value=0, max_value=10**40))
def test_square_root_is_the_nearest_float(value):
    root = Fraction(square_root(value))
    for other in (math.nextafter(float(root), math.inf), math.nextafter(float(root), 0)):
        middle = (root + Fraction(other)) / 2
        assert (root - middle > 0) == (value > middle**2) or value == middle**2 or root == other


def test_small_classes_are_withheld():
    study = study_of(privacy={"min_voxels": 10, "min_patients": 2})
    one = ClassTotals(voxels=9, sum=5, total=5, squares=5, patients=7)
    two = ClassTotals(voxels=10, sum=5, total=5, squares=5, patients=1)
    answer = pooled(LocalTotals({"a": one, "b": two}), study)
    assert answer == {
        "a": "fewer than 10 voxels in all (privacy.min_voxels)",
        "b": "fewer than 2 patients in all (privacy.min_patients)",
    }
    assert "fewer than 2 voxels" in pooled(LocalTotals(), study_of())["a"]


def test_the_result_file_has_exact_fractions_as_decimal_strings():
    study = study_of()
    answer = {"a": Statistics(3, Fraction(10, 4), Fraction(8, 3)), "b": "too few"}
    document = json.loads(json.dumps(result_document(answer, study, {"north": 2})))
    assert document["study"] == "test"
    assert document["digest"] == study.digest
    assert document["classes"]["a"] == {
        "voxels": 3,
        "sum": ["5", "2"],
        "mean": ["5", "6"],
        "sdsum": ["8", "3"],
        "variance": ["4", "3"],
        "mean_float": 5 / 6,
        "std_float": math.sqrt(4 / 3),
    }
    assert document["classes"]["b"] == {"withheld": "too few"}
    assert document["skipped"] == {"north": 2}


def test_totals_beyond_the_public_bounds_are_refused_without_the_value():
    study = study_of(bounds={"voxels_per_party": 1000, "intensity": 10})
    check_bounds(LocalTotals({"a": ClassTotals(voxels=1000, sum=sum_bound(study))}), study)
    for bad in (
        ClassTotals(voxels=1234),
        ClassTotals(patients=1234),
        ClassTotals(sum=-1 - sum_bound(study)),
        ClassTotals(total=1 + 1000 * 10 * study.unit),
        ClassTotals(squares=1 + 1000 * (10 * study.unit) ** 2),
    ):
        with pytest.raises(BoundError, match=r"class 'a'.*nothing was sent") as caught:
            check_bounds(LocalTotals({"a": bad}), study)
        assert "1234" not in str(caught.value)
