"""How well labels and probabilities meet a ground truth: counts, and what follows from counts alone.

All that is kept of an image is integers that add, for the voxels of each class of the ground truth apart: how many
were given which class, and for every class a histogram of its probability on public bins. Those of several images, or
hospitals, are added up, in the open or by a secure sum, and Dice, sensitivity, specificity, the ROC curve and
calibration follow from the totals as they would from the pooled voxels. Probabilities are first put on the grid 2^-20,
half to even, so that their sums are exact too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from voxring.errors import ImageError

BINS = 256
"""Bins of probability when nothing else is said."""
RELIABILITY = 16
"""Groups of bins of a reliability diagram."""
BITS = 20
"""Probabilities are multiples of 2^-20."""
_LONGEST = 2**33  # voxels of one call: sums of the grid stay exact in float64

Region = Literal["labelled", "everywhere"]
"""Which voxels count: those that the ground truth gives a class, or all."""
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """Additive counts of a classification against its ground truth.

    Parameters
    ----------
    classes : tuple of str
        Names; class i has the index i + 1, and 0 is none of them.
    confusion : (K + 1, K + 1) int64 array
        Voxels by ground truth (row) and by what they were given (column).
    histograms : (K, K + 1, bins) int64 array
        For each class, voxels by ground truth (row) and by the bin of the class's probability (column).
    sums : (K, K + 1, bins) int64 array
        Their probabilities added up, in units of 2^-20.

    Examples
    --------
    >>> truth, given = np.array([1, 1, 2, 0]), np.array([1, 2, 2, 2])
    >>> probabilities = np.array([[0.9, 0.4, 0.2, 0.1], [0.1, 0.6, 0.8, 0.9]])
    >>> counts = Counts.of(("lesion", "liver"), truth, given, probabilities)
    >>> counts.confusion
    array([[0, 0, 1],
           [0, 1, 1],
           [0, 0, 1]])
    >>> counts.outcomes("liver")
    Outcomes(tp=1, fp=1, fn=0, tn=1)
    >>> counts.outcomes("liver").dice
    Fraction(2, 3)
    >>> (counts + counts).voxels
    6
    """

    classes: tuple[str, ...]
    confusion: npt.NDArray[np.int64]
    histograms: npt.NDArray[np.int64]
    sums: npt.NDArray[np.int64]

    @classmethod
    def none(cls, classes: Sequence[str], bins: int = BINS) -> Counts:
        """Of no image."""
        size = len(classes)
        shape = (size, size + 1, bins)
        return cls(
            tuple(classes),
            np.zeros((size + 1, size + 1), np.int64),
            np.zeros(shape, np.int64),
            np.zeros(shape, np.int64),
        )

    @classmethod
    def of(
        cls,
        classes: Sequence[str],
        truth: Array,
        given: Array,
        probabilities: Sequence[Array] | Array,
        bins: int = BINS,
    ) -> Counts:
        """Count the voxels of an image, or of a part of one.

        Parameters
        ----------
        classes : sequence of str
            Names of the K classes.
        truth, given : arrays of integers, same shape
            Index of the class of every voxel, 0 for none: in the ground truth, and as classified.
        probabilities : K float arrays of that shape
            Of each class, from 0 to 1.
        bins : int
            Equal bins of probability from 0 to 1, a multiple of 16; each holds its lower end, and the last 1.

        Raises
        ------
        ImageError
            Shapes differ, an index is no class, or a probability is not from 0 to 1.
        """
        size = len(classes)
        if truth.shape != given.shape or [one.shape for one in probabilities] != [truth.shape] * size:
            raise ImageError(
                f"expected labels and {size} maps of probability of one shape, got {truth.shape}, {given.shape} and "
                f"{[one.shape for one in probabilities]}"
            )
        if bins < RELIABILITY or bins % RELIABILITY:
            raise ImageError(f"expected bins of probability by a multiple of {RELIABILITY}, got {bins}")
        if truth.size == 0:
            return cls.none(classes, bins)
        if not all(int(one.min()) >= 0 and int(one.max()) <= size for one in (truth, given)):
            raise ImageError(f"expected indices of classes from 0 to {size}, got others")
        if truth.size > _LONGEST:
            raise ImageError(f"expected at most {_LONGEST} voxels at once, got {truth.size}: count an image in parts")
        rows = truth.ravel().astype(np.intp)
        cells = rows * (size + 1) + given.ravel()
        confusion = np.bincount(cells, minlength=(size + 1) ** 2).reshape(size + 1, size + 1)
        counted = [_binned(rows, one, size + 1, bins) for one in probabilities]
        return cls(
            tuple(classes),
            confusion.astype(np.int64),
            np.array([histogram for histogram, _ in counted], np.int64),
            np.array([sums for _, sums in counted], np.int64),
        )

    def __add__(self, other: Counts) -> Counts:
        if self.classes != other.classes or self.bins != other.bins:
            raise ImageError("counts of other classes or bins do not add: evaluate all with one model and one study")
        return Counts(
            self.classes,
            self.confusion + other.confusion,
            self.histograms + other.histograms,
            self.sums + other.sums,
        )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Counts)
            and (self.classes, self.bins) == (other.classes, other.bins)
            and np.array_equal(self.confusion, other.confusion)
            and np.array_equal(self.histograms, other.histograms)
            and np.array_equal(self.sums, other.sums)
        )

    __hash__ = None  # type: ignore[assignment]  # it holds arrays

    @property
    def bins(self) -> int:
        """How many bins of probability."""
        return int(self.histograms.shape[2])

    def of_class(self, name: str) -> tuple[int, ...]:
        """All counts of the voxels of one class of the ground truth, in one row, as a secure sum carries them.

        What they were given, none first; then for each class the histogram of its probability; then the sums.
        """
        at = self.classes.index(name) + 1
        parts = (self.confusion[at], self.histograms[:, at], self.sums[:, at])
        return tuple(int(one) for part in parts for one in part.ravel())

    @classmethod
    def of_classes(cls, classes: Sequence[str], rows: Mapping[str, Sequence[int]], bins: int = BINS) -> Counts:
        """Take the counts of some classes out of their rows again; of the others, and of none, there is no voxel.

        Raises
        ------
        ImageError
            A row has another length.

        Examples
        --------
        >>> counts = Counts.of(("fat",), np.array([1, 0]), np.array([1, 1]), np.array([[0.5, 1.0]]), 16)
        >>> Counts.of_classes(("fat",), {"fat": counts.of_class("fat")}, 16).confusion
        array([[0, 0],
               [0, 1]])
        """
        made, size = cls.none(classes, bins), len(classes)
        for name, row in rows.items():
            if len(row) != size + 1 + 2 * size * bins:
                raise ImageError(f"expected {size + 1 + 2 * size * bins} counts of a class, got {len(row)}")
            at, numbers = classes.index(name) + 1, np.array(row, np.int64)
            made.confusion[at] = numbers[: size + 1]
            made.histograms[:, at], made.sums[:, at] = numbers[size + 1 :].reshape(2, size, bins)
        return made

    @property
    def voxels(self) -> int:
        """How many the ground truth gives a class."""
        return int(self.confusion[1:].sum())

    def outcomes(self, name: str, region: Region = "labelled") -> Outcomes:
        """Count one class against the rest."""
        at = self.classes.index(name) + 1
        confusion = self.confusion[1:] if region == "labelled" else self.confusion
        tp = int(self.confusion[at, at])
        fp, fn = int(confusion[:, at].sum()) - tp, int(self.confusion[at].sum()) - tp
        return Outcomes(tp, fp, fn, int(confusion.sum()) - tp - fp - fn)

    def accuracy(self) -> Fraction | None:
        """Share of the labelled voxels that got their class."""
        return _ratio(int(np.trace(self.confusion[1:, 1:])), self.voxels)

    def roc(self, name: str, region: Region = "labelled") -> Roc:
        """The curve of one class against the rest, a point for each end of a bin."""
        of_class, others = self._against(name, region, self.histograms)
        return Roc(tuple(map(int, of_class)), tuple(map(int, others)))

    def calibration(self, name: str, region: Region = "labelled", groups: int = RELIABILITY) -> Calibration:
        """What probabilities of one class promised, and what came, in groups of bins."""
        if self.bins % groups:
            raise ImageError(f"expected a number of groups that divides {self.bins}, got {groups}")
        of_class, others = (part.reshape(groups, -1).sum(1) for part in self._against(name, region, self.histograms))
        promised = sum(part.reshape(groups, -1).sum(1) for part in self._against(name, region, self.sums))
        return Calibration(
            tuple(map(int, of_class + others)),
            tuple(map(int, of_class)),
            tuple(Fraction(int(one), 1 << BITS) for one in np.asarray(promised)),
        )

    def _against(self, name: str, region: Region, parts: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        mine, own = parts[self.classes.index(name)], self.classes.index(name) + 1
        others = np.delete(mine, [own, 0] if region == "labelled" else own, axis=0)
        return mine[own], others.sum(0)


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Voxels of one class against the rest; ratios are None where they would divide by 0."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def dice(self) -> Fraction | None:
        """2 tp / (2 tp + fp + fn)."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def sensitivity(self) -> Fraction | None:
        """tp / (tp + fn)."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> Fraction | None:
        """tn / (tn + fp)."""
        return _ratio(self.tn, self.tn + self.fp)

    @property
    def precision(self) -> Fraction | None:
        """tp / (tp + fp)."""
        return _ratio(self.tp, self.tp + self.fp)


@dataclass(frozen=True, slots=True)
class Roc:
    """Voxels of a class and of the rest, by the bin of the class's probability, the lowest first."""

    positives: tuple[int, ...]
    negatives: tuple[int, ...]

    @property
    def auc(self) -> Fraction | None:
        """The chance that a voxel of the class has a higher bin than one of the rest, halves where they share one."""
        below, doubled = 0, 0
        for positive, negative in zip(self.positives, self.negatives, strict=True):
            doubled += positive * (2 * below + negative)
            below += negative
        return _ratio(doubled, 2 * sum(self.positives) * below)

    @property
    def points(self) -> list[tuple[int, int]]:
        """(false positives, true positives) from a threshold above 1 down to 0, one point for each bin and one more."""
        points = [(0, 0)]
        for positive, negative in zip(reversed(self.positives), reversed(self.negatives), strict=True):
            points.append((points[-1][0] + negative, points[-1][1] + positive))
        return points


@dataclass(frozen=True, slots=True)
class Calibration:
    """By groups of probability: voxels, those of the class, and the probabilities added up."""

    voxels: tuple[int, ...]
    positives: tuple[int, ...]
    promised: tuple[Fraction, ...]

    @property
    def error(self) -> Fraction | None:
        """Expected calibration error, Σ |promised − positives| over the groups, divided by all voxels."""
        apart = sum(
            (abs(promised - positive) for promised, positive in zip(self.promised, self.positives, strict=True)),
            Fraction(0),
        )
        return apart / sum(self.voxels) if any(self.voxels) else None


def document(counts: Counts, region: Region = "labelled") -> dict[str, Any]:
    """The evaluation as JSON types: counts as integers, exact, and the ratios that follow as floats.

    Examples
    --------
    >>> document(Counts.none(["liver"]))["classes"]["liver"]["dice"] is None
    True
    """

    def number(ratio: Fraction | None) -> float | None:
        return None if ratio is None else float(ratio)

    def entry(name: str) -> dict[str, object]:
        outcomes, roc = counts.outcomes(name, region), counts.roc(name, region)
        calibration = counts.calibration(name, region)
        return {
            "tp": outcomes.tp,
            "fp": outcomes.fp,
            "fn": outcomes.fn,
            "tn": outcomes.tn,
            "dice": number(outcomes.dice),
            "sensitivity": number(outcomes.sensitivity),
            "specificity": number(outcomes.specificity),
            "precision": number(outcomes.precision),
            "auc": number(roc.auc),
            "roc": {"positives": list(roc.positives), "negatives": list(roc.negatives)},
            "calibration": {
                "voxels": list(calibration.voxels),
                "positives": list(calibration.positives),
                "promised": [float(one) for one in calibration.promised],
                "error": number(calibration.error),
            },
        }

    return {
        "region": region,
        "voxels": counts.voxels if region == "labelled" else int(counts.confusion.sum()),
        "accuracy": number(counts.accuracy()),
        "confusion": {"classes": ["none", *counts.classes], "counts": counts.confusion.tolist()},
        "classes": {name: entry(name) for name in counts.classes},
    }


def _ratio(above: int, below: int) -> Fraction | None:
    return Fraction(above, below) if below else None


def _binned(rows: npt.NDArray[np.intp], probability: Array, groups: int, bins: int) -> tuple[Array, Array]:
    """Histograms of one class's probability, one for each class of the ground truth and for none."""
    with np.errstate(invalid="ignore"):
        on_grid = np.rint(np.ldexp(probability.ravel().astype(np.float64), BITS))
    if not (on_grid.min() >= 0 and on_grid.max() <= 1 << BITS):  # NaN is neither
        raise ImageError("expected probabilities from 0 to 1, got others")
    cells = rows * bins + np.minimum(on_grid.astype(np.int64) * bins >> BITS, bins - 1)
    length = groups * bins
    histogram = np.bincount(cells, minlength=length).reshape(groups, bins)
    return histogram, np.bincount(cells, on_grid, length).reshape(groups, bins)
