"""Classifiers made from sums alone: what the secure sum gives is enough, no voxel is needed (docs/classifiers.md).

The estimators follow scikit-learn and need it (``pip install 'voxring[learn]'``); `Moments` and `Model` do not.
"""

from typing import TYPE_CHECKING

_HOMES = {
    "Discriminant": "discriminant",
    "GaussianNaiveBayes": "estimators",
    "LinearDiscriminant": "estimators",
    "Model": "model",
    "Moments": "moments",
    "NewtonLogistic": "estimators",
    "QuadraticDiscriminant": "estimators",
    "RidgeDiscriminant": "estimators",
}
__all__ = [
    "Discriminant",
    "GaussianNaiveBayes",
    "LinearDiscriminant",
    "Model",
    "Moments",
    "NewtonLogistic",
    "QuadraticDiscriminant",
    "RidgeDiscriminant",
]

if TYPE_CHECKING:
    from voxring.learn.discriminant import Discriminant
    from voxring.learn.estimators import (
        GaussianNaiveBayes,
        LinearDiscriminant,
        NewtonLogistic,
        QuadraticDiscriminant,
        RidgeDiscriminant,
    )
    from voxring.learn.model import Model
    from voxring.learn.moments import Moments


def __getattr__(name: str) -> object:
    """Import public names when they are first used, as the package does."""
    if name not in _HOMES:
        raise AttributeError(f"module 'voxring.learn' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"voxring.learn.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
