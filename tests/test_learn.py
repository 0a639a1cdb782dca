"""Classifiers from sums alone: against their definitions over all voxels, and against scikit-learn's own."""

import warnings
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from sklearn.covariance import OAS
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.utils.estimator_checks import check_estimator

import naive_classifiers as naive
import voxring.learn
from voxring.errors import ModelError
from voxring.learn import (
    GaussianNaiveBayes,
    LinearDiscriminant,
    Moments,
    NewtonLogistic,
    QuadraticDiscriminant,
    RidgeDiscriminant,
)
from voxring.learn import discriminant as made
from voxring.learn.exact import Factor, SingularError


def shifted(by, *, classes=3, voxels=90, scales=(1.0, 1e-6, 1e6, 1.0)):
    """Correlated features in very different units, their means ``by`` times as large as their spreads."""
    random = np.random.default_rng(classes)
    labels = np.arange(voxels) % classes
    table = random.normal(size=(voxels, 4)) @ random.normal(size=(4, 4)) + labels[:, None] * [1.0, 0.5, 0.0, -1.0]
    return (table + by) * scales, labels


def collinear():
    """A third feature that differs from the sum of two in its tenth digit."""
    random = np.random.default_rng(5)
    labels = np.arange(60) % 2
    table = random.normal(size=(60, 2)) + labels[:, None]
    return np.column_stack([table, table.sum(axis=1) + 1e-10 * random.normal(size=60)]), labels


def named(data):
    return np.asarray(data.data), data.target_names[data.target]


# What scikit-learn itself computes to 1e-9: data sets of its own, and means of 10^3 spreads.
SETS = {
    "iris": named(load_iris()),
    "wine": named(load_wine()),
    "two classes": (named(load_breast_cancer())[0][:200, :8], named(load_breast_cancer())[1][:200]),
    "means of 10^3 spreads": shifted(1e3, scales=(1.0, 0.5, 2.0, 1.0)),
    "one feature": (named(load_iris())[0][:, 2:3], named(load_iris())[1]),
}
# Also what floats lose: the twin is exact.
HARD = {
    "iris": tuple(x[::3] for x in SETS["iris"]),
    "means of 10^4 spreads, units of 10^-6 to 10^6": shifted(1e4),
    "means of 10^8 spreads, units of 10^-6 to 10^6": shifted(1e8),
    "means of 10^8 spreads, two classes": shifted(1e8, classes=2, scales=(1.0, 1.0, 1.0, 1.0)),
    "nearly collinear": collinear(),
}
PRIORS = {2: [0.25, 0.75], 3: [0.5, 0.25, 0.25]}
PAIRS = {
    "gnb": (GaussianNaiveBayes, lambda p: {}, lambda p: GaussianNB()),
    "gnb, priors": (GaussianNaiveBayes, lambda p: {"priors": p}, lambda p: GaussianNB(priors=p)),
    "gnb, smoothing": (GaussianNaiveBayes, lambda p: {"smoothing": 0.1}, lambda p: GaussianNB(var_smoothing=0.1)),
    "lda": (LinearDiscriminant, lambda p: {}, lambda p: LinearDiscriminantAnalysis(tol=0)),
    "lda, priors": (LinearDiscriminant, lambda p: {"priors": p}, lambda p: LinearDiscriminantAnalysis(priors=p, tol=0)),
    "lda, shrinkage": (
        LinearDiscriminant,
        lambda p: {"shrinkage": 0.3},
        lambda p: LinearDiscriminantAnalysis("lsqr", shrinkage=0.3),
    ),
    "lda, shrinkage and priors": (
        LinearDiscriminant,
        lambda p: {"shrinkage": 0.3, "priors": p},
        lambda p: LinearDiscriminantAnalysis("lsqr", shrinkage=0.3, priors=p),
    ),
    "lda, oas": (
        LinearDiscriminant,
        lambda p: {"shrinkage": "oas"},
        lambda p: LinearDiscriminantAnalysis("lsqr", covariance_estimator=OAS()),
    ),
    "qda": (QuadraticDiscriminant, lambda p: {}, lambda p: QuadraticDiscriminantAnalysis(tol=0)),
    "qda, priors": (
        QuadraticDiscriminant,
        lambda p: {"priors": p},
        lambda p: QuadraticDiscriminantAnalysis(priors=p, tol=0),
    ),
    "qda, shrinkage": (
        QuadraticDiscriminant,
        lambda p: {"shrinkage": 0.3},
        lambda p: QuadraticDiscriminantAnalysis(solver="eigen", shrinkage=0.3, tol=0),
    ),
    "qda, oas": (
        QuadraticDiscriminant,
        lambda p: {"shrinkage": "oas"},
        lambda p: QuadraticDiscriminantAnalysis(solver="eigen", covariance_estimator=OAS(), tol=0),
    ),
}
RIDGES = [0.5, 1.0, 30.0]


@pytest.mark.parametrize("data", SETS)
@pytest.mark.parametrize("pair", PAIRS)
def test_from_sums_as_scikit_learn_from_all_voxels(pair, data):
    ours, settings, theirs = PAIRS[pair]
    table, labels = SETS[data]
    priors = PRIORS[len(np.unique(labels))]
    fitted = ours.from_statistics(Moments.of_arrays(table, labels), **settings(priors))
    expected = theirs(priors).fit(table, labels)
    assert np.array_equal(fitted.predict(table), expected.predict(table))
    assert np.allclose(fitted.predict_proba(table), expected.predict_proba(table), rtol=0, atol=1e-9)
    again = ours(**settings(priors)).fit(table, labels)
    assert np.array_equal(again.decision_function(table), fitted.decision_function(table))
    if len(np.unique(labels)) == 2 and hasattr(expected, "decision_function"):
        assert np.allclose(fitted.decision_function(table), expected.decision_function(table), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("alpha", RIDGES)
@pytest.mark.parametrize("data", SETS)
def test_ridge_as_scikit_learn(data, alpha):
    table, labels = SETS[data]
    fitted = RidgeDiscriminant.from_statistics(Moments.of_arrays(table, labels), alpha=alpha)
    expected = RidgeClassifier(alpha=alpha).fit(table, labels)
    assert np.array_equal(fitted.predict(table), expected.predict(table))
    assert np.allclose(fitted.decision_function(table), expected.decision_function(table), rtol=0, atol=1e-9)


@pytest.mark.parametrize("data", HARD)
@pytest.mark.parametrize(
    ("makes", "twin", "settings"),
    [
        (made.naive_bayes, naive.gnb, {}),
        (made.naive_bayes, naive.gnb, {"priors": True, "smoothing": 1e-3}),
        (made.linear, naive.lda, {}),
        (made.linear, naive.lda, {"priors": True, "shrinkage": 0.25}),
        (made.quadratic, naive.qda, {}),
        (made.quadratic, naive.qda, {"priors": True, "shrinkage": 0.25}),
        (made.ridge, naive.ridge, {}),
        (made.ridge, naive.ridge, {"alpha": 0.25}),
    ],
)
def test_scores_as_defined_whatever_means_units_and_correlations(makes, twin, settings, data):
    """To a few last places, where scikit-learn's own may be wrong in the second digit."""
    table, labels = HARD[data]
    if "priors" in settings:
        settings = settings | {"priors": PRIORS[len(np.unique(labels))]}
    scores = makes(Moments.of_arrays(table, labels), **settings).scores(table[::7])
    expected = np.array(twin(table.tolist(), labels.tolist(), table[::7].tolist(), **settings))
    if makes is made.ridge:  # with two classes, the second's less the first's, which is minus it, is twice what is kept
        differences, wanted = scores, expected if expected.shape[1] > 2 else expected * [0.0, 1.0]
    else:
        differences, wanted = scores - scores[:, :1], expected - expected[:, :1]
    size = 1 + np.abs(expected).max(axis=1, keepdims=True)
    # z = x - centre is exact or rounded once; the nearly collinear weights, of 10^10, multiply that
    assert (np.abs(differences - wanted) / size).max() < (1e-4 if data == "nearly collinear" else 1e-13)


def test_weights_are_those_of_the_rationals_rounded_once():
    table, labels = collinear()
    moments = Moments.of_arrays(table, labels)
    inverse, _ = naive.inverse_and_determinant([list(row) for row in made.within_classes(moments)])
    apart = [m - Fraction(float(x)) for m, x in zip(moments.mean(1), moments.pooled_mean(), strict=True)]
    expected = [float(sum(a * b for a, b in zip(row, apart, strict=True))) for row in inverse]
    assert made.linear(moments).linear[1].tolist() == expected


def test_moments_are_exact_and_split_anywhere():
    table, labels = shifted(1e8)
    whole = Moments.of_arrays(table, labels)
    for k in range(3):
        rows = naive.rational(table[labels == k])
        assert whole.counts[k] == len(rows)
        assert list(whole.sums[k]) == [sum(column) for column in zip(*rows, strict=True)]
        assert [list(row) for row in whole.grams[k]] == [
            [sum(r[i] * r[j] for r in rows) for j in range(4)] for i in range(4)
        ]
        assert list(whole.mean(k)) == naive.mean(rows)
        assert [list(row) for row in whole.covariance(k)] == naive.covariance(rows)
    assert [list(row) for row in whole.pooled_covariance()] == naive.covariance(naive.rational(table))
    for cut in (3, 40, 87):
        assert Moments.of_arrays(table[:cut], labels[:cut]) + Moments.of_arrays(table[cut:], labels[cut:]) == whole
    with pytest.raises(ModelError, match="same classes"):
        whole + Moments.of_arrays(table[:2], labels[:2])


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_factors_and_solutions_are_exact(size):
    random = np.random.default_rng(size)
    root = [[Fraction(int(x), 7) for x in row] for row in random.integers(-50, 50, (size, size))]
    matrix = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in root] for x in root]
    factor = Factor.of(matrix)
    m = [list(row) + [Fraction()] * (size - len(row)) for row in factor.rows]
    product = [
        [sum(m[i][a] * matrix[a][b] * m[j][b] for a in range(size) for b in range(size)) for j in range(size)]
        for i in range(size)
    ]
    assert product == [[factor.pivots[i] if i == j else 0 for j in range(size)] for i in range(size)]
    assert all(m[i][i] == 1 for i in range(size))
    right = [Fraction(int(x), 3) for x in random.integers(-9, 9, size)]
    found = factor.solve(right)
    assert [sum(a * b for a, b in zip(row, found, strict=True)) for row in matrix] == right


def test_a_dependent_feature_is_named():
    table, labels = shifted(0.0)
    copied = np.column_stack([table, table[:, 1]])
    moments = Moments.of_arrays(copied, labels, names=["a", "b", "c", "d", "copy"])
    with pytest.raises(SingularError, match="row 4"):
        Factor.of(moments.covariance(0))
    for makes, where in ((made.linear, "within the classes"), (made.quadratic, "in class '0'")):
        with pytest.raises(ModelError, match=f"feature 'copy' is constant, or follows .*, {where}: .*shrinkage"):
            makes(moments)
        assert np.isfinite(makes(moments, shrinkage=0.1).scores(copied)).all()
    with pytest.raises(ModelError, match=r"'copy' .* over all classes: .*raise alpha"):
        made.ridge(moments, alpha=0)
    still = Moments.of_arrays(np.zeros((4, 1)), [0, 0, 1, 1])
    with pytest.raises(ModelError, match="'f0' is constant"):
        made.naive_bayes(still)


def test_impossible_settings_are_refused():
    moments = Moments.of_arrays(*shifted(0.0))
    for priors in ([0.5, 0.5], [0.5, 0.5, 0.0], [0.5, 0.4, 0.2], [0.5, 0.5, float("nan")]):
        with pytest.raises(ModelError, match="priors"):
            made.linear(moments, priors=priors)
    for shrinkage in (-0.1, 1.1, "auto", float("nan")):
        with pytest.raises(ModelError, match="shrinkage: expected a number from 0 to 1"):
            made.quadratic(moments, shrinkage=shrinkage)
    for alpha in (-1, float("inf")):
        with pytest.raises(ModelError, match="alpha"):
            made.ridge(moments, alpha=alpha)
    one = Moments.of_arrays([[0.0], [1.0]], [1, 1])
    for makes in (made.linear, made.quadratic, made.naive_bayes):
        with pytest.raises(ModelError, match="at least 2 classes, got 1"):
            makes(one)
    for table, labels in (([[1.0], [np.nan]], [0, 1]), ([[1.0]], [0, 1]), ([1.0], [0])):
        with pytest.raises(ModelError, match="finite features of shape"):
            Moments.of_arrays(table, labels)
    with pytest.raises(ModelError, match="a name for each of 1"):
        Moments.of_arrays([[1.0]], [0], names=["a", "b"])


@pytest.mark.parametrize("by", [1e-200, 1e200])
def test_numbers_beyond_float64_are_refused(by):
    table, labels = shifted(0.0)
    with pytest.raises(ModelError, match="does not fit float64: bring the features to another unit"):
        made.quadratic(Moments.of_arrays(table * by, labels))


def test_condition_is_of_correlations():
    table, labels = collinear()
    moments = Moments.of_arrays(table, labels)
    assert made.condition(moments.covariance(0)) > 1e14
    free = Moments.of_arrays(np.array([[1.0, 1e9], [-1, 1e9], [1, -1e9], [-1, -1e9]] * 2), [0] * 4 + [1] * 4)
    assert made.condition(made.within_classes(free)) == pytest.approx(1)
    assert made.condition(((Fraction(), Fraction()), (Fraction(), Fraction(1)))) == np.inf


ESTIMATORS = [GaussianNaiveBayes, LinearDiscriminant, QuadraticDiscriminant, RidgeDiscriminant, NewtonLogistic]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators_pass_the_checks_of_scikit_learn(estimator):
    results = check_estimator(estimator(), on_skip=None)
    # both need packages that are not here: other arrays than numpy's, pandas
    skipped = {result["check_name"] for result in results if result["status"] != "passed"}
    assert skipped <= {"check_array_api_input", "check_classifier_data_not_an_array"}
    assert len(results) > 40


@pytest.mark.parametrize("estimator", ESTIMATORS[:4])
def test_estimators_of_sums_have_the_names_and_settings_they_were_given(estimator):
    table, labels = SETS["iris"]
    moments = Moments.of_arrays(table, labels, names=["a", "b", "c", "d"])
    setting = {"alpha": 2.0} if estimator is RidgeDiscriminant else {"priors": [0.2, 0.3, 0.5]}
    fitted = estimator.from_statistics(moments, **setting)
    assert fitted.get_params().items() >= setting.items()
    assert fitted.classes_.tolist() == ["setosa", "versicolor", "virginica"]
    assert (fitted.n_features_in_, fitted.feature_names_) == (4, ("a", "b", "c", "d"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fitted.predict(table).dtype == labels.dtype


def test_logistic_needs_more_than_moments():
    moments = Moments.of_arrays(*SETS["iris"])
    with pytest.raises(ModelError, match="a sum over the voxels at each step"):
        NewtonLogistic.from_statistics(moments)
    with pytest.raises(ModelError, match="no optimum after 2 steps"):
        NewtonLogistic(max_steps=2).fit(*SETS["iris"])


def test_scores_do_not_depend_on_how_many_voxels_are_scored_together():
    table, labels = HARD["means of 10^8 spreads, units of 10^-6 to 10^6"]
    for makes in (made.naive_bayes, made.linear, made.quadratic, made.ridge):
        classifier = makes(Moments.of_arrays(table, labels))
        one_by_one = np.concatenate([classifier.scores(table[i : i + 1]) for i in range(len(table))])
        assert np.array_equal(classifier.scores(table), one_by_one)


def test_labels_need_not_be_numbers_and_names_follow():
    moments = Moments.of_arrays([[0.0], [1.0]], ["b", "a"])
    assert (moments.classes, moments.labels) == (("a", "b"), ("a", "b"))
    assert replace(moments, counts=(2, 2)).count == 4


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        voxring.learn.nothing  # noqa: B018
