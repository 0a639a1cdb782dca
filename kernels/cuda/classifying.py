"""The plan of a classifier over a stack of feature maps."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from voxring.errors import DeviceError

from .features import of_voxels
from .plans import Array, Box, Buffer, Launch, Plan, Staged

SHARED = 48 << 10
"""Shared memory that a block has without asking for more."""

MOST_NUMBERS = SHARED // (8 * 32)
"""Features and classes together that a block of 32 threads, the fewest, has room for: a float64 of each a thread."""


class Classifier(NamedTuple):
    """The numbers of `voxring.kernels.cpu.classify.Weights`, one array after the other, and what is wanted of them."""

    model: Array  # float64
    features: int
    classes: int
    rows: int  # of the whitening of each class: as many as features, or none
    values: Array  # the label of each class, uint8 or uint16
    unit: int  # features are over it
    labels: bool
    probabilities: bool


def has_room(features: int, classes: int) -> bool:
    """Whether a device classifies by so many features and classes."""
    return features + classes <= MOST_NUMBERS


def check_room(of: Classifier) -> None:
    """Refuse a classifier of more features and classes than a device has room for.

    Raises
    ------
    DeviceError
        It is one.
    """
    if not has_room(of.features, of.classes):
        raise DeviceError(
            f"the CUDA engine classifies by at most {MOST_NUMBERS} features and classes together, got {of.features} "
            f'features and {of.classes} classes: use device="cpu"'
        )


def classify_plan(of: Classifier, box: Box, voxels: int) -> Plan:
    """The plan over ``stack`` of so many voxels, which is there, of a classifier that a device has room for."""
    column = 8 * (of.features + of.classes)
    threads = next(some for some in (128, 64, 32) if some * column <= SHARED)
    name = of.values.dtype.name
    buffers = {
        "model": Buffer("float64", of.model.size, of.model),
        "values": Buffer(name, of.values.size, of.values),
        "labels": Buffer(name, voxels if of.labels else 1),
        "chances": Buffer("float32", of.classes * voxels if of.probabilities else 1),
    }
    numbers = map(np.int32, (of.features, of.classes, of.rows, of.labels, of.probabilities))
    launch = Launch(
        "classify.cu",
        "classify",
        (*of_voxels(np.dtype(np.uint8)), ("WIDE", 1), ("LABEL", of.values.dtype.itemsize)),
        (-(-voxels // threads), 1, 1),
        (threads, 1, 1),
        threads * column,
        ("stack", *buffers, np.float64(1 / of.unit), np.uint64(voxels), *numbers),
    )
    nothing = Staged((0, 0), (0, 0), (False, False), 0, 0, np.arange(0))
    return Plan(box, "uint8", (1, 1, 1), nothing, 0, buffers, (launch,), np.array([1]), 0)
