"""What a classifier is made from: for each class n, Σf and Σf fᵀ of its voxels' features, as exact rationals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import TYPE_CHECKING, Any

from voxring.errors import ModelError
from voxring.learn.exact import Matrix, Vector
from voxring.study import Study

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Moments:
    """Exact sums over the voxels of each class. Those of several hospitals add up.

    Attributes
    ----------
    classes : tuple of str
        Their names, in the order of the labels.
    labels : tuple
        What is predicted for each: label values of a ground truth, or what stood in ``y``.
    features : tuple of str
        Their names, in the order of the sums.
    counts : tuple of int
        n of each class.
    sums : (classes, features) of Fraction
        Σf.
    grams : (classes, features, features) of Fraction
        Σ f fᵀ.

    Examples
    --------
    >>> here = Moments.of_arrays([[0.0], [1.0], [5.0]], [1, 1, 2])
    >>> there = Moments.of_arrays([[0.5], [6.0]], [1, 2])
    >>> (here + there).counts, [str(mean) for mean in (here + there).mean(1)]
    ((3, 2), ['11/2'])
    """

    classes: tuple[str, ...]
    labels: tuple[Any, ...]
    features: tuple[str, ...]
    counts: tuple[int, ...]
    sums: Matrix
    grams: tuple[Matrix, ...]

    @classmethod
    def of_result(cls, document: Mapping[str, Any], study: Study) -> Moments:
        """Take them from a result file, in the order of the labels; classes that were withheld are left out.

        A class is predicted as its label value where all the study's are integers from 1 to 65,535, else by its place
        in the study, from 1.

        Raises
        ------
        ModelError
            The study does not ask for them, the result is of another one, or is malformed.
        """
        features = tuple(feature.label for feature in study.feature)
        if not study.statistics.gram:
            raise ModelError(
                "the study does not ask for what classifiers are made from: write [[feature]] tables and "
                "gram = true under [statistics], and run it again"
            )
        if tuple(document.get("features", ())) != features:
            raise ModelError(
                f"result: expected the features {', '.join(features)} of the study, got "
                f"{', '.join(map(str, document.get('features', ()))) or 'none'}: give the study that it was made with"
            )
        entries = document.get("classes")
        if not isinstance(entries, dict) or set(entries) != set(study.classes):
            raise ModelError("result: its classes are not those of the study: give the study that it was made with")
        labels = predicted_labels(study)
        kept = [name for name in study.classes if not (isinstance(entries[name], dict) and "withheld" in entries[name])]
        kept.sort(key=labels.__getitem__)
        found = [_entry(name, entries[name], len(features)) for name in kept]
        return cls(
            tuple(kept),
            tuple(labels[name] for name in kept),
            features,
            tuple(count for count, _, _ in found),
            tuple(sums for _, sums, _ in found),
            tuple(gram for _, _, gram in found),
        )

    @classmethod
    def of_arrays(cls, features: npt.ArrayLike, labels: npt.ArrayLike, names: Sequence[str] = ()) -> Moments:
        """Sum arrays, exactly: each float is the rational that it is.

        Parameters
        ----------
        features : (voxels, features) array of finite numbers
        labels : (voxels,) array
            The class of each voxel; classes are its distinct values, sorted.
        names : sequence of str
            Of the features; ``f0``, ``f1``, … when left out.

        Raises
        ------
        ModelError
            A number is not finite, or the shapes do not fit.
        """
        import numpy as np

        table, given = np.asarray(features, dtype=np.float64), np.asarray(labels)
        if table.ndim != 2 or given.shape != table.shape[:1] or not np.isfinite(table).all():
            raise ModelError("expected finite features of shape (voxels, features) and a label for each voxel")
        count = table.shape[1]
        if names and len(names) != count:
            raise ModelError(f"expected a name for each of {count} features, got {len(names)}")
        integers, scales = _integers(table)
        values, places = np.unique(given, return_inverse=True)
        counts, sums, grams = [], [], []
        for place in range(len(values)):
            mine = integers[places == place]
            product = mine.T @ mine
            counts.append(len(mine))
            sums.append(tuple(Fraction(sum(mine[:, i]), scales[i]) for i in range(count)))
            grams.append(
                tuple(
                    tuple(Fraction(int(product[i, j]), scales[i] * scales[j]) for j in range(count))
                    for i in range(count)
                )
            )
        return cls(
            tuple(str(value) for value in values),
            tuple(values.tolist()),
            tuple(names) or tuple(f"f{i}" for i in range(count)),
            tuple(counts),
            tuple(sums),
            tuple(grams),
        )

    def __add__(self, other: Moments) -> Moments:
        if (self.classes, self.labels, self.features) != (other.classes, other.labels, other.features):
            raise ModelError("only moments of the same classes and features add up")
        return Moments(
            self.classes,
            self.labels,
            self.features,
            tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)),
            _added(self.sums, other.sums),
            tuple(_added(a, b) for a, b in zip(self.grams, other.grams, strict=True)),
        )

    @property
    def count(self) -> int:
        """n of all classes together."""
        return sum(self.counts)

    def mean(self, place: int) -> Vector:
        """Means of the features in one class."""
        return tuple(value / self.counts[place] for value in self.sums[place])

    def covariance(self, place: int) -> Matrix:
        """Covariances within one class, divided by its n (not n − 1)."""
        return _centred(self.counts[place], self.sums[place], self.grams[place])

    def pooled_mean(self) -> Vector:
        """Means of the features over all classes."""
        return tuple(sum(column, Fraction()) / self.count for column in zip(*self.sums, strict=True))

    def pooled_covariance(self) -> Matrix:
        """Covariances over all classes together, round the pooled mean, divided by n."""
        gram = self.grams[0]
        for other in self.grams[1:]:
            gram = _added(gram, other)
        return _centred(self.count, tuple(sum(column, Fraction()) for column in zip(*self.sums, strict=True)), gram)


def predicted_labels(study: Study) -> dict[str, int]:
    """Return what each class is predicted as: its label value, or its place where one is no integer of 1 to 65,535.

    Examples
    --------
    >>> predicted_labels(Study.of(name="t", classes={"lesion": 7, "liver": 2}))
    {'lesion': 7, 'liver': 2}
    >>> predicted_labels(Study.of(name="t", classes={"lesion": "GTV", "air": 0}))
    {'lesion': 1, 'air': 2}
    """
    labels = {name: label for name, label in study.classes.items() if isinstance(label, int) and 1 <= label <= 65_535}
    if len(labels) == len(study.classes):
        return labels
    return {name: place for place, name in enumerate(study.classes, 1)}


def _centred(count: int, sums: Vector, gram: Matrix) -> Matrix:
    return tuple(
        tuple(gram[i][j] / count - sums[i] * sums[j] / count**2 for j in range(len(sums))) for i in range(len(sums))
    )


def _added(one: Matrix, other: Matrix) -> Matrix:
    return tuple(tuple(a + b for a, b in zip(x, y, strict=True)) for x, y in zip(one, other, strict=True))


def _integers(table: npt.NDArray[np.float64]) -> tuple[npt.NDArray[Any], list[int]]:
    """Write each column of floats as integers over a power of two: Python's, since sums of squares may be long."""
    import numpy as np

    pairs = [[float(value).as_integer_ratio() for value in column] for column in table.T]
    scales = [lcm(*(denominator for _, denominator in column)) for column in pairs]
    integers = np.zeros(table.shape, dtype=object)
    for i, (column, scale) in enumerate(zip(pairs, scales, strict=True)):
        integers[:, i] = [numerator * (scale // denominator) for numerator, denominator in column]
    return integers, scales


def _entry(name: str, entry: Any, features: int) -> tuple[int, Vector, Matrix]:
    """Check and take one class of a result."""
    try:
        count = entry["voxels"]
        sums = tuple(fraction_of(pair) for pair in entry["statistics"]["feature_sums"])
        gram = tuple(tuple(fraction_of(pair) for pair in row) for row in entry["statistics"]["gram"])
    except (KeyError, TypeError):
        raise ModelError(
            f"result: class {name!r} lacks voxels, feature_sums or gram: expected a result of a study with "
            "gram = true under [statistics]"
        ) from None
    check_class(name, count, sums, gram, features)
    return count, sums, gram


def check_class(name: str, count: Any, sums: Vector, gram: Matrix, features: int) -> None:
    """Refuse sums that no voxels can have.

    Raises
    ------
    ModelError
        A shape is wrong, the matrix is not symmetric, or a variance is negative.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 2:
        raise ModelError(f"class {name!r}: expected at least 2 voxels")
    if len(sums) != features or len(gram) != features or any(len(row) != features for row in gram):
        raise ModelError(f"class {name!r}: expected sums of {features} features and of their products")
    if any(gram[i][j] != gram[j][i] for i in range(features) for j in range(i)):
        raise ModelError(f"class {name!r}: the matrix of sums of products is not symmetric")
    if any(sums[i] ** 2 > count * gram[i][i] for i in range(features)):
        raise ModelError(
            f"class {name!r}: a variance would be negative: the file was changed, is of another make, or differential "
            "privacy left too little of it: then take a larger epsilon, or more patients"
        )


def fraction_of(pair: Any) -> Fraction:
    """Read a pair of decimal strings, the way exact numbers stand in files.

    Raises
    ------
    ModelError
        It is none, or not in lowest terms.
    """
    if (
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and all(isinstance(part, str) and part.isascii() and len(part) <= 4000 for part in pair)
        and pair[0].removeprefix("-").isdecimal()
        and pair[1].isdecimal()
        and int(pair[1]) > 0
    ):
        value = Fraction(int(pair[0]), int(pair[1]))
        if pair_of(value) == list(pair):
            return value
    raise ModelError("expected exact numbers as pairs of decimal strings in lowest terms, such as ['1', '3']")


def pair_of(value: Fraction) -> list[str]:
    """Write an exact number as a pair of decimal strings in lowest terms."""
    return [str(value.numerator), str(value.denominator)]
