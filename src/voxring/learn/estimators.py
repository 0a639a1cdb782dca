"""Estimators with the interface of scikit-learn, from arrays or from sums alone: the same exact road for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from voxring.errors import ModelError
from voxring.learn import discriminant as made
from voxring.learn.discriminant import Discriminant, Floats
from voxring.learn.logistic import Newton, local_step, zero
from voxring.learn.moments import Moments

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ModelError("the estimators need scikit-learn: pip install 'voxring[learn]'") from error

Array = npt.NDArray[Any]


class _FromSums(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What all of them share. A subclass says how its scores are made from the sums.

    Attributes
    ----------
    classes_ : (K,) array
        The labels that are predicted.
    n_features_in_ : int
    feature_names_ : tuple of str
        Those of the sums. scikit-learn's ``feature_names_in_`` is there where ``fit`` was given a data frame.
    discriminant_ : Discriminant
        The rounded numbers.
    """

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:  # noqa: N803  # as scikit-learn has it
        """Fit to (n, F) features and (n,) labels, by their exact sums.

        Raises
        ------
        ValueError
            As scikit-learn's: what is not finite, of the wrong shape, or of one class.
        ModelError
            Nothing can be made from the sums, as where a feature is constant.
        """
        table, labels = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(labels)
        classes = np.unique(labels)
        if len(classes) < 2:
            raise ValueError(f"{type(self).__name__} needs at least 2 classes, got {len(classes)} class")
        self._made(Moments.of_arrays(table, labels), classes)
        return self

    @classmethod
    def from_statistics(cls, moments: Moments, **settings: Any) -> Self:
        """Return an estimator fitted to sums alone, such as those of a result (`Moments.of_result`).

        Parameters
        ----------
        moments : Moments
        **settings
            Parameters of the estimator.

        Raises
        ------
        ModelError
            Nothing can be made from them.
        """
        fitted = cls(**settings)
        fitted.n_features_in_ = len(moments.features)
        fitted._made(moments, np.array(moments.labels))
        return fitted

    def _made(self, moments: Moments, classes: Array) -> None:
        self.classes_ = classes
        self.feature_names_ = moments.features
        self.discriminant_ = self._discriminant(moments)

    def _discriminant(self, moments: Moments) -> Discriminant:
        raise NotImplementedError

    def _scores(self, X: npt.ArrayLike) -> Floats:  # noqa: N803
        check_is_fitted(self)
        return self.discriminant_.scores(validate_data(self, X, dtype=np.float64, reset=False))

    def decision_function(self, X: npt.ArrayLike) -> Floats:  # noqa: N803
        """Return the scores, (n, K); of two classes the second's less the first's, (n,)."""
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict(self, X: npt.ArrayLike) -> Array:  # noqa: N803
        """Return the label of the highest score for each row of X."""
        places = self._scores(X).argmax(axis=1)
        found: Array = self.classes_[places]
        return found


class _Normal(_FromSums):
    """What those share whose scores are log posteriors."""

    def predict_log_proba(self, X: npt.ArrayLike) -> Floats:  # noqa: N803
        """Return the logarithms of the probabilities, (n, K)."""
        scores = self._scores(X)
        scores -= scores.max(axis=1, keepdims=True)
        found: Floats = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return found

    def predict_proba(self, X: npt.ArrayLike) -> Floats:  # noqa: N803
        """Return the probability of each class, (n, K)."""
        found: Floats = np.exp(self.predict_log_proba(X))
        return found


class GaussianNaiveBayes(_Normal):
    """Gaussian naive Bayes. Predicts as ``sklearn.naive_bayes.GaussianNB`` does, fitted to all voxels together.

    Parameters
    ----------
    priors : sequence of float, optional
        Probabilities of the classes; their shares when left out.
    smoothing : float
        This share of the largest variance of a feature is added to every variance.

    Examples
    --------
    >>> moments = Moments.of_arrays([[0.0], [1.0], [5.0], [7.0]], ["fat", "fat", "liver", "liver"])
    >>> GaussianNaiveBayes.from_statistics(moments).predict([[2.0], [4.0]])
    array(['fat', 'liver'], dtype='<U5')
    """

    def __init__(self, *, priors: Any = None, smoothing: float = 1e-9) -> None:
        self.priors = priors
        self.smoothing = smoothing

    def _discriminant(self, moments: Moments) -> Discriminant:
        return made.naive_bayes(moments, priors=self.priors, smoothing=self.smoothing)


class LinearDiscriminant(_Normal):
    """Linear discriminant analysis. Predicts as ``sklearn.discriminant_analysis.LinearDiscriminantAnalysis`` does.

    Parameters
    ----------
    priors : sequence of float, optional
        Probabilities of the classes; their shares when left out.
    shrinkage : float from 0 to 1, "oas" or None
        As of scikit-learn's solver "lsqr"; "oas" as its estimator OAS.

    Examples
    --------
    >>> moments = Moments.of_arrays([[0.0], [1.0], [5.0], [6.0]], [1, 1, 2, 2])
    >>> LinearDiscriminant.from_statistics(moments).predict_proba([[3.0]])
    array([[0.5, 0.5]])
    """

    def __init__(self, *, priors: Any = None, shrinkage: Any = None) -> None:
        self.priors = priors
        self.shrinkage = shrinkage

    def _discriminant(self, moments: Moments) -> Discriminant:
        return made.linear(moments, priors=self.priors, shrinkage=self.shrinkage)


class QuadraticDiscriminant(_Normal):
    """Quadratic discriminant analysis. Predicts as ``sklearn.discriminant_analysis.QuadraticDiscriminantAnalysis``.

    Parameters
    ----------
    priors : sequence of float, optional
        Probabilities of the classes; their shares when left out.
    shrinkage : float from 0 to 1, "oas" or None
        As of scikit-learn's solver "eigen"; "oas" as its estimator OAS.

    Examples
    --------
    >>> moments = Moments.of_arrays([[0.0], [2.0], [-9.0], [11.0]], [1, 1, 2, 2])
    >>> QuadraticDiscriminant.from_statistics(moments).predict([[1.5], [8.0]])
    array([1, 2])
    """

    def __init__(self, *, priors: Any = None, shrinkage: Any = None) -> None:
        self.priors = priors
        self.shrinkage = shrinkage

    def _discriminant(self, moments: Moments) -> Discriminant:
        return made.quadratic(moments, priors=self.priors, shrinkage=self.shrinkage)


class RidgeDiscriminant(_FromSums):
    """Ridge regression on targets 1 and −1. Predicts as ``sklearn.linear_model.RidgeClassifier`` does.

    Parameters
    ----------
    alpha : float
        The weight of the squared coefficients.

    Examples
    --------
    >>> moments = Moments.of_arrays([[0.0], [1.0], [5.0], [6.0]], [1, 1, 2, 2])
    >>> RidgeDiscriminant.from_statistics(moments, alpha=0.0).decision_function([[3.0]])
    array([0.])
    """

    def __init__(self, *, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def _discriminant(self, moments: Moments) -> Discriminant:
        return made.ridge(moments, alpha=self.alpha)


class NewtonLogistic(_Normal):
    """Logistic regression by Newton steps from sums. Finds the optimum of ``sklearn.linear_model.LogisticRegression``.

    `voxring.learn.logistic` has the steps as they are taken among parties; ``fit`` takes them with one.

    Parameters
    ----------
    C : float
        The inverse of the penalty on squared coefficients.
    max_steps : int
        After so many sums without an optimum, ``fit`` fails.

    Attributes
    ----------
    n_iter_ : int
        How many sums were taken.
    """

    def __init__(self, *, C: float = 1.0, max_steps: int = 100) -> None:  # noqa: N803
        self.C = C
        self.max_steps = max_steps

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:  # noqa: N803
        """Fit to (n, F) features, rounded to 2^-30 of each one's range, and (n,) labels.

        Raises
        ------
        ValueError
            As scikit-learn's: what is not finite, of the wrong shape, or of one class.
        ModelError
            No optimum is reached.
        """
        table, labels = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(labels)
        self.classes_, places = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"NewtonLogistic needs at least 2 classes, got {len(self.classes_)} class")
        middle = table.mean(axis=0)
        shifts = 30 - np.frexp(np.abs(table - middle).max(axis=0))[1]
        integers = np.rint(np.ldexp(table - middle, shifts)).astype(np.int64)
        units = [Fraction(2) ** int(shift) for shift in shifts]
        newton = Newton(zero(len(self.classes_), len(units)), tuple(units), (0,) * len(units), len(table), self.C)
        while not newton.done:
            if newton.steps >= self.max_steps:
                raise ModelError(f"no optimum after {newton.steps} steps: raise max_steps, or lower C")
            newton = newton.update(local_step(integers, places, newton.rows))
        self.n_iter_ = newton.steps
        found = made.of_weights(newton.weights, [0.0] * len(units))
        self.discriminant_ = replace(found, centres=found.centres + middle)
        return self

    @classmethod
    def from_statistics(cls, moments: Moments, **settings: Any) -> Self:
        """Refuse: moments are not enough.

        Raises
        ------
        ModelError
            Always: a logistic regression needs a sum at each step, `from_weights` takes what the last one gave.
        """
        raise ModelError(
            "a logistic regression cannot be made from moments: it needs a sum over the voxels at each step "
            "(voxring.learn.logistic), and then from_weights"
        )

    @classmethod
    def from_weights(cls, weights: Sequence[Sequence[Fraction]], labels: Sequence[Any], **settings: Any) -> Self:
        """Return an estimator with the weights that `voxring.learn.logistic.Newton` ended with.

        Parameters
        ----------
        weights : sequence of rows
            For each score its intercept, and the coefficient of each feature's value.
        labels : sequence
            What is predicted for each class.
        **settings
            Parameters of the estimator.
        """
        fitted = cls(**settings)
        fitted.classes_ = np.array(labels)
        fitted.n_features_in_ = len(weights[0]) - 1
        fitted.discriminant_ = made.of_weights(weights, [0.0] * fitted.n_features_in_)
        return fitted
