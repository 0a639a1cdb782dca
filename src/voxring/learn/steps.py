"""A party's part of a step of a logistic regression: its images at given weights, slab by slab."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from voxring.devices import Device, device_name, note
from voxring.features import FeatureStack
from voxring.learn.logistic import step_of
from voxring.standardise import Scaled
from voxring.statistics import slots
from voxring.study import AtWeights

Array = npt.NDArray[Any]
TOGETHER = 1 << 15
"""Voxels that are gone through together: a few dozen arrays of them stay in a cache."""


def class_step(
    image: Array,
    ground_truth: Array,
    study: AtWeights,
    *,
    labels: Mapping[str, int],
    device: Device = "cpu",
    threads: int | None = None,
    scaled: Scaled | None = None,
) -> dict[str, tuple[int, ...]]:
    """Sum up the gradient and the Hessian over the voxels of each class; their sum over the classes is the step's.

    Parameters and errors as of `voxring.features.class_statistics`; ``labels`` are the classes of the study that this
    label map holds. A GPU makes the feature maps alone: the integers of a step take divisions and products of more than
    64 bits, and are the processor's on every device.

    Returns
    -------
    dict of class name to tuple of int
        In the order of `voxring.statistics.layout`.

    Examples
    --------
    >>> from voxring.study import Study
    >>> study = Study.of(
    ...     name="example",
    ...     classes={"fat": 1, "air": 2},
    ...     feature=[{"kind": "intensity"}],
    ...     statistics={"gram": True},
    ...     standardise={"fraction_bits": 0},
    ...     bounds={"intensity": 1000},
    ...     logistic={},
    ... ).at([[0, 0]], ["fat", "air"])
    >>> sums = class_step(np.array([[-3, 3]], np.int16), np.array([[1, 2]]), study, labels={"fat": 1, "air": 2})
    >>> [value / 2**40 for value in sums["air"]]
    [-0.5, -1.5, 0.25, 0.75, 2.25]
    """
    names, rows, width = list(study.classes), study.rows, slots(study)
    sums = {name: [0] * width for name in labels}
    here = np.isin(ground_truth, list(labels.values()))
    if not here.any():
        return {name: tuple(row) for name, row in sums.items()}
    note(device_name("cpu"))
    stack = FeatureStack(image, study, device=device, threads=threads, scaled=scaled)
    for first, stop in stack.slabs(here):
        part = (ground_truth[first:stop] if ground_truth.ndim == 3 else ground_truth).reshape(-1)
        maps = [one.reshape(-1) for one in stack.maps((first, stop))]
        for name, label in labels.items():
            places = np.flatnonzero(part == label)
            for start in range(0, len(places), TOGETHER):
                some = places[start : start + TOGETHER]
                more = step_of(np.array([one[some] for one in maps]), names.index(name), rows, stack.workers)
                sums[name] = [one + other for one, other in zip(sums[name], more, strict=True)]
    return {name: tuple(row) for name, row in sums.items()}
