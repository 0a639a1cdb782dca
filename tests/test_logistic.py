"""Logistic regression by Newton steps: any split of the voxels gives the same bits, and the end is the optimum."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from math import exp

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.linear_model import LogisticRegression

from naive_classifiers import logistic_step as naive_logistic
from voxring.errors import ModelError
from voxring.kernels.cpu.classify import LOWEST, exponential
from voxring.learn import NewtonLogistic
from voxring.learn.logistic import (
    LARGEST,
    ONE,
    Newton,
    _quotient,
    _sum,
    local_step,
    powers,
    probabilities,
    width,
    zero,
)

UNIT = 1 << 16


def voxels(classes, count=240, features=3, seed=7):
    """Feature maps' integers and classes that overlap."""
    random = np.random.default_rng(seed)
    places = np.arange(count) % classes
    table = random.normal(size=(count, features)) + places[:, None] * [0.8, -0.5, 0.1][:features] + 3.0
    return np.rint(table * UNIT).astype(np.int64), places


def start(integers, classes, strength=1.0):
    count = integers.shape[1]
    centre = tuple(np.rint(integers.mean(axis=0)).astype(int).tolist())
    return Newton(zero(classes, count), (UNIT,) * count, centre, len(integers), strength)


def solved(parts, newton):
    """Run the steps among parties, each of which answers for its own voxels; return all states."""
    states = [newton]
    while not states[-1].done:
        answers = [local_step(integers, places, states[-1].rows) for integers, places in parts]
        states.append(states[-1].update([sum(column) for column in zip(*answers, strict=True)]))
        assert len(states) < 60
    return states


@pytest.mark.parametrize("classes", [2, 3])
def test_split_among_parties_as_pooled_bit_for_bit(classes):
    integers, places = voxels(classes)
    pooled = solved([(integers, places)], start(integers, classes))
    order = np.random.default_rng(0).permutation(len(places))
    for cuts in ([1], [5, 80], [0, 100, 100, 239]):
        parts = [(integers[rows], places[rows]) for rows in np.split(order, cuts)]
        assert solved(parts, start(integers, classes)) == pooled


WEIGHTS = (
    ((1 << 30) + 3, -(3 << 54) - 1, (3 << 53) + 12345),
    (1 << 31, 1 << 54, -(1 << 55)),
    (-(1 << 32), 1 << 56, -7),
)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("scale", [1, 37, 2**21])
def test_a_step_is_the_integers_of_the_definition(classes, scale):
    integers, places = voxels(classes, count=24, features=2)
    integers *= scale  # as wide as 2^40: products no longer fit a word
    rows = tuple((row[0], *(w // scale for w in row[1:])) for row in WEIGHTS[: 1 if classes == 2 else 3])
    expected = naive_logistic(integers.tolist(), places.tolist(), rows)
    assert local_step(integers, places, rows) == expected
    assert len(expected) == width(len(rows), 2)


def test_probabilities_are_those_of_floats():
    x = np.array([np.arange(-40, 40) * (UNIT // 4) + 77, np.full(80, 3 * UNIT)])
    rows = WEIGHTS
    found = np.array(probabilities(x, rows)) / ONE
    scores = np.array([row[0] / 2**32 + np.ldexp(np.array(row[1:], float), -72) @ x for row in rows])
    expected = np.exp(scores - scores.max(0))
    expected /= expected.sum(0)
    assert np.abs(found - expected).max() < 1e-9  # the score is rounded to 2^-32
    far = np.array(probabilities(np.array([[1 << 38]]), ((0, 1 << 62),))).ravel()
    assert far.tolist() == [0, ONE]


def test_tables_are_e_to_the_last_place():
    found = powers(Fraction(1, 256), 28 * 256)
    for k in (0, 1, 255, 256, 5000, 7167):
        assert abs(found[k] - Fraction(exp(-k / 256)) * ONE) < Fraction(51, 100)


def test_a_quotient_is_rounded_half_up():
    parts = np.array([1, 1, 3, 5, (1 << 40) - 1, 1 << 40, 0, 12345])
    totals = np.array([1 << 41, (1 << 41) + 1, 1 << 41, 1 << 42, 1 << 41, 3 << 40, 7, 1 << 46])
    expected = [(2 * p * ONE + t) // (2 * t) for p, t in zip(parts.tolist(), totals.tolist(), strict=True)]
    assert _quotient(parts, totals).tolist() == expected
    assert expected[:3] == [1, 0, 2]


def test_what_a_step_cannot_hold_is_refused():
    places = np.array([0, 1])
    with pytest.raises(ModelError, match="integers below"):
        local_step(np.array([[1 << 40], [0]]), places, zero(2, 1))
    with pytest.raises(ModelError, match="at most 64 features"):
        local_step(np.zeros((2, 65), int), places, zero(2, 65))
    with pytest.raises(ModelError, match="range of 62 bits"):
        local_step(np.array([[1 << 39], [0]]), places, ((0, 1 << 77),))
    with pytest.raises(ModelError, match="range of 62 bits"):
        local_step(np.array([[1], [0]]), places, ((LARGEST, 0),))
    with pytest.raises(ModelError, match="range of 62 bits"):
        local_step(np.array([[0], [0]]), places, ((0, LARGEST << 16),))


SETS = {
    "iris": load_iris(return_X_y=True),
    "wine, as it is": load_wine(return_X_y=True),
    "two classes": tuple(x[:200, :6] if x.ndim > 1 else x[:200] for x in load_breast_cancer(return_X_y=True)),
}


@pytest.mark.parametrize("strength", [0.1, 10.0])
@pytest.mark.parametrize("data", SETS)
def test_the_end_is_scikit_learns_optimum(data, strength):
    table, labels = SETS[data]
    if data == "wine, as it is":
        table = table[:, :5]
    fitted = NewtonLogistic(C=strength).fit(table, labels)
    expected = LogisticRegression(C=strength, tol=1e-10, solver="newton-cholesky", max_iter=1000).fit(table, labels)
    found = fitted.discriminant_.linear[-len(expected.coef_) :]
    assert np.abs(found - expected.coef_).max() < 1e-6 * max(1, np.abs(expected.coef_).max())
    assert np.allclose(fitted.predict_proba(table), expected.predict_proba(table), rtol=0, atol=1e-6)
    assert np.array_equal(fitted.predict(table), expected.predict(table))


def test_weights_of_a_session_make_an_estimator():
    integers, places = voxels(3)
    end = solved([(integers, places)], start(integers, 3))[-1]
    fitted = NewtonLogistic.from_weights(end.weights, ["fat", "air", "liver"])
    again = NewtonLogistic().fit(integers / UNIT, np.array(["fat", "air", "liver"])[places])
    assert fitted.classes_.tolist() == ["fat", "air", "liver"]
    by_name = again.predict_proba(integers / UNIT)[:, [1, 0, 2]]  # fit sorts them
    assert np.allclose(fitted.predict_proba(integers / UNIT), by_name, rtol=0, atol=1e-6)


def test_a_step_that_overshoots_is_halved():
    """From weights at which hardly a voxel is in doubt, full Newton steps never come back."""
    integers, places = voxels(2, count=60)
    first = start(integers, 2, strength=100.0)
    middle = [c / UNIT for c in first.centre]
    steep = tuple(round(w / UNIT * 2**72) for w in (-6.0, 4.0, 5.0))
    intercept = 3.0 - sum(w * c for w, c in zip((-6.0, 4.0, 5.0), middle, strict=True))
    states = solved([(integers, places)], replace(first, rows=((round(intercept * 2**32), *steep),)))
    halved = [(before, after) for before, after in pairwise(states[1:]) if after.base == before.base]
    assert halved
    for before, after in halved:
        ends = [state.weights[0][1:] for state in (before, after)]
        for base, end, half in zip(before.base[1:], *ends, strict=True):
            assert abs(half - (base + end) / 2) <= Fraction(UNIT, 2**73)  # the grid of weights
    expected = LogisticRegression(C=100.0, tol=1e-10, solver="newton-cholesky", max_iter=1000)
    expected.fit(integers / UNIT, places)
    assert np.allclose([float(w) for w in states[-1].weights[0][1:]], expected.coef_, rtol=1e-6)
    assert states[-1].steps == len(states) - 1


def of_intercept(gradient, hessian=ONE):
    """Sums of a step of two classes and one feature, which tell of the intercept alone."""
    return [gradient, 0, hessian, 0, ONE]


def test_the_last_step_is_the_one_that_changes_scores_by_2_to_the_minus_30():
    """−slope is d², for a change d of the intercept; the bound is n / 2^60, and is reached from within."""
    newton = Newton(zero(2, 1), (UNIT,), (0,), voxels=1 << 20)
    for gradient, done in ((1 << 20, True), (-(1 << 20), True), ((1 << 20) + 1, False), (-(1 << 20) - 1, False)):
        after = newton.update(of_intercept(gradient))
        assert after.done is done
        assert after.steps == 1
        assert after.rows == ((round(Fraction(-gradient, 1 << 8)), 0),)  # against the gradient, over 2^32


def test_a_step_is_halved_when_more_than_half_of_the_slope_is_left_and_turned():
    before = Newton(
        ((1 << 32, 0),), (UNIT,), (0,), 9, base=(Fraction(), Fraction()), direction=(1.0, 0.0), slope=Fraction(-1)
    )
    fine, over = (before.update(of_intercept(gradient)) for gradient in (ONE // 2, ONE // 2 + 1))
    assert fine.base == (1, 0)
    assert (over.base, over.direction, over.rows, over.done) == (before.base, before.direction, ((1 << 31, 0),), False)


def test_floats_are_added_in_order_by_every_version_of_python():
    assert _sum(iter([1e16, 1.0, -1e16])) == 0.0


def test_impossible_sums_are_refused():
    newton = Newton(zero(2, 1), (UNIT,), (0,), 9)
    with pytest.raises(ModelError, match="expected 5 sums, got 4"):
        newton.update([0] * 4)
    with pytest.raises(ModelError, match="singular"):
        newton.update([0] * 5)


def test_the_exponential_is_that_of_the_library_to_the_last_place_but_one():
    random = np.random.default_rng(3)
    values = np.concatenate([[0.0, -0.0, -1e-300, LOWEST, -708.5, -1e9, -np.inf], -random.exponential(30, 20_000)])
    found = np.empty_like(values)
    exponential(values, found, len(values), np.empty_like(values))
    expected = np.exp(values)
    expected[values < LOWEST] = 0.0
    assert (np.abs(found - expected) <= 2 * np.spacing(expected)).all()
    assert found[:2].tolist() == [1.0, 1.0]
    for at in range(0, 200, 7):  # whatever the place in a vector
        part = np.empty(3)
        exponential(values[at : at + 3], part, 3, np.empty(3))
        assert np.array_equal(part, found[at : at + 3])
