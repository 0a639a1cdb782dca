"""A study's evaluation at a party: the model on one image, and how that meets the ground truth, as integers.

The model standardises the image and makes its features as it did where it was trained; the study's own window and
standardisation do not matter to it. Labels and probabilities are the same bits on every machine, and so are the counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from voxring.devices import Device
from voxring.errors import ModelError
from voxring.evaluate import Counts
from voxring.learn.model import Model
from voxring.standardise import Scaled
from voxring.study import Study

Array = npt.NDArray[Any]


def model_of(study: Study) -> Model:
    """Read the model that a study evaluates.

    Raises
    ------
    ModelError
        The study asks for no evaluation or names no file; the file is none, or another model's; the classifier has no
        probabilities, or none of its classes is one of the study's.
    """
    asked = study.evaluate
    if asked is None or not asked.model:
        raise ModelError('the study names no model to evaluate: write [evaluate] with model = "model.json" and digest')
    model = _loaded(asked.model, asked.digest)
    if not set(model.classes) & set(study.classes):
        raise ModelError(
            f"{asked.model}: its classes are {', '.join(model.classes)}, the study's {', '.join(study.classes)}: "
            "name in the study's classes those that the model gives"
        )
    return model


@lru_cache(maxsize=2)
def _loaded(path: str, digest: str) -> Model:
    """A model as it was when it was first read in this process: it is asked for with every image."""
    model = Model.load(path)
    if model.digest != digest:
        raise ModelError(
            f"{path}: expected the model with the digest {digest[:12]}, which the study evaluates, got "
            f"{model.digest[:12]}: fetch the model that came with the study"
        )
    if not model.probabilistic:
        raise ModelError(f"{path}: {model.classifier} gives labels alone: evaluate lda, qda, gnb or logistic")
    return model


def class_evaluation(
    image: Array,
    ground_truth: Array,
    study: Study,
    *,
    slope: float | Fraction = 1.0,
    intercept: float | Fraction = 0.0,
    labels: Mapping[str, int],
    device: Device = "cpu",
    threads: int | None = None,
    scaled: Scaled | None = None,
) -> dict[str, tuple[int, ...]]:
    """Count, over the voxels of each class, what the study's model gives them.

    Parameters
    ----------
    image : (rows, cols) or (planes, rows, cols) array
        Stored intensities.
    ground_truth : array of integers, same shape
        Label map.
    study : Study
        With ``evaluate``.
    slope, intercept : float or Fraction
        The intensity that a stored v stands for is slope·v + intercept.
    labels : mapping of class name to label value
        The classes of the study that this label map holds.
    device : {"cpu", "cuda", "auto"}
        Where to compute, as for `voxring.learn.model.Model.stack`. The counts do not depend on it.
    threads : int, optional
        Threads of this call. The counts do not depend on it.
    scaled : optional
        The image as the model's study standardises it, when it is at hand.

    Returns
    -------
    dict of class name to tuple of int
        As `voxring.evaluate.Counts.of_class`, for the classes of the study: the last blocks of
        `voxring.statistics.layout`.

    Raises
    ------
    ModelError
        As for `model_of`.
    ImageError, StudyError
        The image's values or axes are not those that the model's study expects.
    """
    model, names = model_of(study), tuple(study.classes)
    bins = study.evaluate.bins if study.evaluate else 0
    of_value = np.zeros(max(model.values) + 1, np.intp)
    for name, value in zip(model.classes, model.values, strict=True):
        of_value[value] = names.index(name) + 1 if name in names else 0
    truth = np.zeros(ground_truth.shape, np.uint8 if len(names) < 256 else np.uint16)
    for name, label in labels.items():
        truth[ground_truth == label] = names.index(name) + 1
    counts = Counts.none(names, bins)
    if truth.any():
        stack = model.stack(image, slope=slope, intercept=intercept, device=device, threads=threads, scaled=scaled)
        for first, stop in stack.slabs(truth):
            here = truth[first:stop] if truth.ndim == 3 else truth
            places = np.flatnonzero(here)
            if stack.on_gpu:
                given, chances = model.classify_planes(stack, (first, stop), probabilities=True)
                given, chances = given.reshape(-1)[places], chances.reshape(len(chances), -1)[:, places]
            else:
                maps = [one.reshape(-1)[places] for one in stack.maps((first, stop))]
                given, chances = model.classify(maps, threads=threads)
            of = dict(zip(model.classes, chances, strict=True))
            never = np.zeros(len(places), np.float32)
            counts += Counts.of(
                names, here.reshape(-1)[places], of_value[given], [of.get(name, never) for name in names], bins
            )
    return {name: counts.of_class(name) for name in labels}
