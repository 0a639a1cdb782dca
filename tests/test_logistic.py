"""Logistic regression by Newton steps: any split of the voxels gives the same bits, and the end is the optimum."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from math import exp

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.linear_model import LogisticRegression

from voxring.errors import ModelError
from voxring.kernels.cpu.classify import LOWEST, exponential
from voxring.learn import NewtonLogistic
from voxring.learn.logistic import ONE, Newton, Weights, local_step, width

UNIT = 1 << 16


def voxels(classes, count=240, features=3, seed=7):
    """Feature maps' integers and classes that overlap."""
    random = np.random.default_rng(seed)
    places = np.arange(count) % classes
    table = random.normal(size=(count, features)) + places[:, None] * [0.8, -0.5, 0.1][:features] + 3.0
    return np.rint(table * UNIT).astype(np.int64), places


def start(integers, classes):
    return Weights.zero(classes, [UNIT] * integers.shape[1], np.rint(integers.mean(axis=0)).astype(int).tolist())


def solved(parts, newton):
    """Run the steps among parties, each of which answers for its own voxels; return all states."""
    states = [newton]
    while not states[-1].done:
        answers = [local_step(integers, places, states[-1].weights) for integers, places in parts]
        states.append(states[-1].update([sum(column) for column in zip(*answers, strict=True)]))
        assert len(states) < 60
    return states


@pytest.mark.parametrize("classes", [2, 3])
def test_split_among_parties_as_pooled_bit_for_bit(classes):
    integers, places = voxels(classes)
    pooled = solved([(integers, places)], Newton(start(integers, classes)))
    order = np.random.default_rng(0).permutation(len(places))
    for cuts in ([1], [5, 80], [0, 100, 100, 239]):
        parts = [(integers[rows], places[rows]) for rows in np.split(order, cuts)]
        assert solved(parts, Newton(start(integers, classes))) == pooled


@pytest.mark.parametrize("classes", [2, 3])
def test_a_step_sums_gradient_and_hessian_as_defined(classes):
    integers, places = voxels(classes, count=24, features=2)
    rows = ((0.25, -1.5, 0.75), (0.5, 0.25, -2.0), (-1.0, 0.5, 0.5))[: 1 if classes == 2 else 3]
    weights = Weights((UNIT, UNIT), (200_000, 190_000), rows)
    found = local_step(integers, places, weights)
    expected = [Fraction()] * width(len(rows), 2)
    for x, place in zip(integers.tolist(), places.tolist(), strict=True):
        z = [1, x[0] - 200_000, x[1] - 190_000]
        scores = [row[0] + row[1] * z[1] / UNIT + row[2] * z[2] / UNIT for row in rows]
        scores = [0.0, *scores] if classes == 2 else scores
        powers = [exp(score) for score in scores]
        p = [power / sum(powers) for power in powers]
        used = [1] if classes == 2 else [0, 1, 2]
        terms = [(p[m] - (place == m)) * z[i] for m in used for i in range(3)]
        terms += [
            p[m] * ((m == k) - p[k]) * z[i] * z[j]
            for m in used for k in used if m <= k for i in range(3) for j in range(i, 3)
        ]  # fmt: skip
        expected = [total + Fraction(term) for total, term in zip(expected, terms, strict=True)]
    assert len(found) == len(expected)
    for value, wanted in zip(found, expected, strict=True):
        largest = max(abs(integers - [200_000, 190_000]).max(), 1) ** 2
        assert abs(Fraction(value, ONE) - wanted) <= Fraction(int(largest) * len(places), ONE)


def test_probabilities_are_rounded_for_each_voxel():
    integers, places = voxels(2, count=40, features=1)
    weights = Weights((UNIT,), (200_000,), ((0.25, -1.5),))
    apart = []
    for row, place in zip(integers, places, strict=True):
        p = 1 / (1 + exp(-(0.25 - 1.5 * (int(row[0]) - 200_000) / UNIT)))
        found = local_step(row[None], np.array([place]), weights)
        apart += [found[0] - (p - place) * ONE, found[2] - p * (1 - p) * ONE]
        assert found[1] == found[0] * (int(row[0]) - 200_000)
    assert max(map(abs, apart)) < 0.51  # of a step of 2^-40, in which 2^-53 is 10^-4


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
    end = solved([(integers, places)], Newton(start(integers, 3)))[-1]
    fitted = NewtonLogistic.from_weights(end.weights, ["fat", "air", "liver"])
    again = NewtonLogistic().fit(integers / UNIT, np.array(["fat", "air", "liver"])[places])
    assert fitted.classes_.tolist() == ["fat", "air", "liver"]
    by_name = again.predict_proba(integers / UNIT)[:, [1, 0, 2]]  # fit sorts them
    assert np.allclose(fitted.predict_proba(integers / UNIT), by_name, rtol=0, atol=1e-6)


def test_a_step_that_overshoots_is_halved():
    """From weights at which hardly a voxel is in doubt, full Newton steps never come back."""
    integers, places = voxels(2, count=60)
    weights = replace(start(integers, 2), rows=((3.0, -6.0, 4.0, 5.0),))
    states = solved([(integers, places)], Newton(weights, strength=100.0))
    halved = [(before, after) for before, after in pairwise(states[1:]) if after.base == before.base]
    assert halved
    for before, after in halved:
        ends = [state.weights.rows[0] for state in (before, after)]
        assert ends[1] == tuple((a + b) / 2 for a, b in zip(before.base, ends[0], strict=True))
    expected = LogisticRegression(C=100.0, tol=1e-10, solver="newton-cholesky", max_iter=1000)
    expected.fit(integers / UNIT, places)
    assert np.allclose(states[-1].weights.rows[0][1:], expected.coef_, rtol=1e-6)
    assert states[-1].steps == len(states) - 1


def test_impossible_sums_are_refused():
    newton = Newton(Weights.zero(2, [UNIT], [0]))
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
