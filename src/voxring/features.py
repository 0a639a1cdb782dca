"""Feature maps of an image: exact integers, the same on every device, for any slab of it.

``[[feature]]`` of a study asks for maps of the standardised integers x, which stand for x / unit. W is the window at a
voxel, |W| its number of places, and sums go over them; the border of the study says what is read outside. Each value is
rounded once, half to even, to an integer that stands for value / unit:

==========  ==========================================================================================
intensity   x
mean        Σx / |W|
variance    V / (|W|² unit), V = |W| Σx² − (Σx)²
std         √V / |W|
skewness    unit · T / V^(3/2), T = |W|² Σx³ − 3 |W| Σx Σx² + 2 (Σx)³; 0 where V = 0
contrast    unit · √(V / (|W| Σx²)); 0 where V = 0
gradient    √(Σ d²) / 2, d over the axes the difference of the two neighbours
==========  ==========================================================================================

Variance, std and skewness are those of the window's values, divided by |W|. The contrast is the deviation over the
root mean square: σ / √(σ² + μ²), between 0 and 1, whatever the range of the image. Under ``clip`` a voxel at the edge
has one neighbour, and d is twice the difference to it: the gradient of `numpy.gradient`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from voxring.devices import Device, chosen, device_name, note, takes_gpu
from voxring.errors import ImageError
from voxring.standardise import Scaled, check_image, check_shapes, label_values, standardised, volume
from voxring.statistics import of_images
from voxring.study import Study, expect_study

if TYPE_CHECKING:
    from voxring.kernels.cuda import Asked, Scale, Sums

Array = npt.NDArray[Any]

SLAB = 1 << 22
"""Values of all features that are in hand at a time, of a class or of whole planes."""


def feature_maps(
    image: Array,
    study: Study,
    *,
    slope: float | Fraction = 1.0,
    intercept: float | Fraction = 0.0,
    device: Device = "cpu",
    threads: int | None = None,
    planes: tuple[int, int] | None = None,
) -> list[npt.NDArray[np.int64]]:
    """Compute the maps that ``study.feature`` asks for.

    Parameters
    ----------
    image : (rows, cols) or (planes, rows, cols) array
        Stored intensities: integers of 8, 16 or 32 bits, or floats.
    study : Study
        Features, border, standardisation and bounds.
    slope, intercept : float or Fraction
        The intensity that a stored v stands for is slope·v + intercept.
    device : {"cpu", "cuda", "auto"}
        Where to compute; every device gives the same maps. "auto" is the CPU for integers beyond 32 bits.
    threads : int, optional
        Threads of this call. The maps do not depend on it.
    planes : (int, int), optional
        First plane and stop: only these planes of a volume are computed, as they are in the whole. Who goes through a
        volume slab by slab keeps a `FeatureStack`.

    Returns
    -------
    list of int64 arrays
        One per feature, in units of 1 / study.unit.

    Raises
    ------
    ImageError
        A voxel is not finite, a value leaves the range that the study declares, or a feature could be wider than is
        exact.
    StudyError
        A window names axes that the image lacks.
    DeviceError
        ``device="cuda"`` and no GPU answers, or the standardised integers have more than 32 bits.

    Examples
    --------
    >>> study = Study.of(
    ...     name="example",
    ...     classes={"lesion": 1},
    ...     feature=[{"kind": "mean", "window": [1, 3]}, {"kind": "gradient"}],
    ...     standardise={"fraction_bits": 0},
    ... )
    >>> mean, gradient = feature_maps(np.array([[1, 2, 9, 4]], np.int16), study)
    >>> mean, gradient
    (array([[1, 4, 5, 6]]), array([[0, 4, 1, 2]]))
    """
    stack = FeatureStack(image, study, slope=slope, intercept=intercept, device=device, threads=threads)
    return stack.maps(planes)


class FeatureStack:
    """An image that is standardised once, and whose feature maps are computed slab by slab.

    Parameters and errors are those of `feature_maps`; ``scaled`` is the image standardised, when it is at hand.
    """

    def __init__(
        self,
        image: Array,
        study: Study,
        *,
        slope: float | Fraction = 1.0,
        intercept: float | Fraction = 0.0,
        device: Device = "cpu",
        threads: int | None = None,
        scaled: Scaled | None = None,
    ) -> None:
        expect_study(study)
        on_gpu = takes_gpu(device)
        check_image(image)
        self.study, self._shape = study, image.shape
        study.check_axes(image.ndim)
        self._windows = [feature.along(image.ndim) for feature in study.feature]
        voxels, (a, b) = scaled or standardised(image, Fraction(slope), Fraction(intercept), study)
        fill = study.fill
        if study.window.border == "constant" and (a, b) != (1, 0):  # the fill is a standardised integer
            fill, rest = divmod(fill - b, a)
            if rest or abs(fill) >= 1 << 31:
                voxels, a, b, fill = voxels.astype(np.int64) * a + b, 1, 0, study.fill
        from voxring.kernels.checks import magnitude_in, magnitude_of
        from voxring.kernels.cpu.threads import thread_count  # numba takes a second to import

        outside = abs(fill) if study.window.border == "constant" else 0
        narrow = voxels.dtype.itemsize == 1 or voxels.dtype == np.int16
        self._magnitude = max(magnitude_of(voxels.dtype), outside) if narrow else magnitude_in(voxels, outside)
        if on_gpu and voxels.dtype.itemsize == 8 and self._magnitude < 1 << 31:
            voxels = voxels.astype(np.int32)
        self.on_gpu = chosen(device, able=voxels.dtype.itemsize < 8)
        self._voxels = volume(voxels)
        if not self.on_gpu:
            self._voxels = self._of_cpu((0, len(self._voxels)))
        self._a, self._b = a, b
        self._fill = fill if study.window.border == "constant" else 0
        self.workers = thread_count(threads, image.size)

    def shape_of(self, planes: tuple[int, int]) -> tuple[int, ...]:
        """The shape of maps of some planes; that of the image if it has no planes."""
        return (planes[1] - planes[0], *self._shape[1:]) if len(self._shape) == 3 else self._shape

    @property
    def deep(self) -> int:
        """How many planes have SLAB values of all features together, or 1."""
        voxels: int = self._voxels[0].size
        return max(1, SLAB // (voxels * max(1, len(self.study.feature))))

    def slabs(self, labelled: Array) -> Iterator[tuple[int, int]]:
        """Runs of planes in which something is labelled, cut into slabs of at most `deep` planes."""
        held = [bool(plane.any()) for plane in volume(labelled)]
        first, count = 0, len(held)
        while first < count:
            stop = first + 1
            while held[first] and stop < min(count, first + self.deep) and held[stop]:
                stop += 1
            if held[first]:
                yield first, stop
            first = stop

    def maps(self, planes: tuple[int, int] | None = None, workers: int | None = None) -> list[npt.NDArray[np.int64]]:
        """Compute the maps of some planes, or of all; on as many threads as the stack has, unless fewer are named."""
        count = len(self._voxels)
        first, stop = planes if planes is not None else (0, count)
        if not 0 <= first < stop <= count:
            raise ImageError(f"planes: expected a first plane and a stop within the {count} of the image, got {planes}")
        features, border = self.study.feature, self.study.window.border
        shape = self.shape_of((first, stop))
        if self.on_gpu:
            return [one.reshape(shape) for one in self._on_gpu((first, stop))]
        from voxring.kernels.checks import WINDOWED
        from voxring.kernels.cpu import features as kernels

        common: dict[str, Any] = {
            "a": self._a,
            "fill": self._fill,
            "magnitude": self._magnitude,
            "planes": (first, stop),
            "workers": workers or self.workers,
        }
        made: dict[tuple[str, tuple[int, int, int]], Array] = {}
        try:
            for window in dict.fromkeys(self._windows):
                alike = [f.kind for f, own in zip(features, self._windows, strict=True) if own == window]
                kinds = tuple(kind for kind in WINDOWED if kind in alike)
                if kinds:
                    some = kernels.window_features(
                        self._voxels, window, border, kinds, b=self._b, unit=self.study.unit, **common
                    )
                    made |= {(kind, window): array for kind, array in some.items()}
            for kind in {feature.kind for feature in features} & {"gradient", "intensity"}:
                made[kind, (1, 1, 1)] = (
                    kernels.gradient_map(self._voxels, border, **common)
                    if kind == "gradient"
                    else self.intensity((first, stop))
                )
        except OverflowError as error:
            raise too_wide(error) from None
        return [made[f.kind, window].reshape(shape) for f, window in zip(features, self._windows, strict=True)]

    def _on_gpu(self, planes: tuple[int, int]) -> list[Array]:
        from voxring.kernels import cuda

        try:
            return cuda.feature_maps(*self._asked(), planes)
        except OverflowError as error:
            raise too_wide(error) from None

    def _asked(self) -> tuple[Array, list[Asked], str, Scale]:
        """What the GPU is asked for: the image, features, border and scale."""
        from voxring.kernels import cuda

        fraction_bits = self.study.standardise.fraction_bits
        scale = cuda.Scale(self._a, self._b, fraction_bits, self._fill, self._magnitude)
        asked = [cuda.Asked(f.kind, window) for f, window in zip(self.study.feature, self._windows, strict=True)]
        return self._voxels, asked, self.study.window.border, scale

    def classified(
        self, planes: tuple[int, int], weights: Sequence[Array], values: Array, *, labels: bool, probabilities: bool
    ) -> tuple[Array, Array]:
        """Labels and probabilities of some planes, on the GPU, which `on_gpu` says.

        Parameters
        ----------
        weights, values
            As for `voxring.kernels.cpu.classify.classify`.
        """
        from voxring.kernels import cuda

        _, _, constants, whiten, _ = weights
        of = cuda.Classifier(
            np.concatenate([one.reshape(-1) for one in weights]),
            len(self._windows),
            len(constants),
            whiten.shape[1],
            values,
            self.study.unit,
            labels,
            probabilities,
        )
        try:
            given, chances = cuda.classified(*self._asked(), planes, of)
        except OverflowError as error:
            raise too_wide(error) from None
        shape = self.shape_of(planes)
        return given.reshape(shape if labels else 0), chances.reshape((-1, *shape) if probabilities else 0)

    def summed(self, planes: tuple[int, int], of: Sums, numbers: Array) -> tuple[list[list[int]], Array]:
        """Sums over the classes of some planes, on the GPU.

        Over the features, if ``of`` has products of them, and, in the next place, over the intensity.
        """
        from voxring.kernels import cuda

        image, asked, border, scale = self._asked()
        asked = [*asked, cuda.Asked("intensity", (1, 1, 1))][-1 if not self.study.statistics.gram else 0 :]
        try:
            return cuda.summed(image, asked, border, scale, planes, of, numbers)
        except OverflowError as error:
            raise too_wide(error) from None

    def intensity(self, planes: tuple[int, int]) -> npt.NDArray[np.int64]:
        """The standardised integers of some planes."""
        from voxring.kernels.cpu import features as kernels

        return kernels.scaled(self._of_cpu(planes), self._a, self._b)

    def _of_cpu(self, planes: tuple[int, int]) -> Array:
        """Stored integers, of one of two types: to compile for others takes longer than to narrow or to widen."""
        return self._voxels[slice(*planes)].astype("int16" if self._magnitude <= 1 << 15 else "int64", copy=False)

    def pairs(
        self, numbers: Array, others: Array, classes: int, starts: tuple[int, ...], steps: list[tuple[int, int, int]]
    ) -> npt.NDArray[np.int64]:
        """Co-occurrence counts of each class, as of `voxring.kernels.cpu.additive.pairs`; the numbers are not flat."""
        if self.on_gpu:
            from voxring.kernels import cuda

            if classes <= cuda.MOST_CLASSES:
                return cuda.pairs(self._voxels, numbers, others, classes, self._a, self._b, starts, steps)
        from voxring.kernels.cpu import additive

        note(device_name("cpu"))
        voxels, flat = self._of_cpu((0, len(self._voxels))), (numbers.reshape(-1), others.reshape(-1))
        return additive.pairs(voxels, *flat, classes, self._a, self._b, starts, steps, self.workers)


def too_wide(error: OverflowError) -> ImageError:
    """What to do about numbers that could be wider than is exact."""
    return ImageError(f"{error}: use a smaller window, fewer fraction_bits or another standardisation")


def class_statistics(
    image: Array,
    ground_truth: Array,
    study: Study,
    *,
    slope: float | Fraction = 1.0,
    intercept: float | Fraction = 0.0,
    labels: Mapping[str, int] | None = None,
    device: Device = "cpu",
    threads: int | None = None,
    scaled: Scaled | None = None,
    neighbours: Array | None = None,
) -> dict[str, tuple[int, ...]]:
    """Sum up what ``study.statistics`` asks for, over the voxels of each class.

    Feature maps are made slab by slab, of the planes that hold a class, and summed at once.

    Parameters
    ----------
    image, slope, intercept
        As for `feature_maps`.
    ground_truth : array of integers, same shape
        Label map.
    study : Study
        Features, statistics, border, standardisation and bounds.
    labels : mapping of class name to label value, optional
        The classes that this label map holds, when not those of the study file.
    device : {"cpu", "cuda", "auto"}
        Where to compute, as for `feature_maps`; the sums do not depend on it.
    threads : int, optional
        Threads of this call. The sums do not depend on it.
    scaled : optional
        The image as `voxring.standardise.standardised` returns it, when it is at hand; slope and intercept are in it.
    neighbours : array of integers, same shape, optional
        Label map of the voxels that come after one of ``ground_truth`` in a pair, when that leaves out some which are
        summed elsewhere, as a part of an image.

    Returns
    -------
    dict of class name to tuple of int
        In the order of `voxring.statistics.of_images`; zeros for a class without voxels.

    Raises
    ------
    ImageError
        As for `feature_maps`; or the shapes differ, or a class of the study has no number.
    StudyError
        A window names axes that the image lacks.

    Examples
    --------
    >>> study = Study.of(
    ...     name="example",
    ...     classes={"lesion": 1},
    ...     standardise={"fraction_bits": 0},
    ...     statistics={"moments": 2, "histogram": {"bins": 2, "range": [0, 8]}},
    ... )
    >>> image = np.array([[1, 2, 9, 4]], np.int16)
    >>> class_statistics(image, np.array([[1, 1, 1, 0]]), study)
    {'lesion': (12, 86, 0, 2, 0, 1)}
    """
    check_shapes(image, ground_truth)
    named = labels if labels is not None else label_values(study)
    stack = FeatureStack(image, study, slope=slope, intercept=intercept, device=device, threads=threads, scaled=scaled)
    others = ground_truth if neighbours is None else neighbours
    sums = _Sums(stack, ground_truth, others, tuple(dict.fromkeys(named.values())))
    return {name: sums.of(label) for name, label in named.items()}


class _Sums:
    """The additive integers of the classes of one image, block by block."""

    def __init__(self, stack: FeatureStack, ground_truth: Array, others: Array, values: tuple[int, ...]) -> None:
        from voxring.kernels.checks import holdable
        from voxring.kernels.cpu.labels import class_numbers

        truth = volume(ground_truth)
        self._stack, self._study = stack, stack.study
        self._present = holdable(values, truth.dtype)
        self._numbers = class_numbers(truth, self._present).reshape(truth.shape)
        self._blocks = of_images(self._study)
        self._sums = [{block.name: [0] * block.size for block in self._blocks} for _ in self._present]
        self._add_voxels()
        if self._study.statistics.glcm is not None and self._present:
            same = others is ground_truth
            self._add_pairs(
                self._numbers if same else class_numbers(volume(others), self._present).reshape(truth.shape)
            )

    def of(self, label: int) -> tuple[int, ...]:
        """All integers of one class."""
        if label not in self._present:
            return (0,) * sum(block.size for block in self._blocks)
        mine = self._sums[self._present.index(label)]
        return tuple(number for block in self._blocks for number in mine[block.name])

    def _add_voxels(self) -> None:
        from voxring.kernels.cpu import additive

        asked, workers = self._study.statistics, self._stack.workers
        if not (asked.gram or asked.moments or asked.histogram):
            return
        if self._stack.on_gpu and self._add_on_gpu():
            return
        note(device_name("cpu"))
        for first, stop in self._stack.slabs(self._numbers):
            numbers = self._numbers[first:stop].reshape(-1)
            maps = self._stack.maps((first, stop)) if asked.gram else []
            intensity = self._stack.intensity((first, stop)).reshape(-1)
            for number, mine in enumerate(self._sums, start=1):
                places = np.flatnonzero(numbers == number)
                x = intensity[places]
                if asked.gram:
                    values = np.ones((len(maps) + 1, len(places)), np.int64)
                    for row, made in zip(values[1:], maps, strict=True):
                        np.take(made.reshape(-1), places, out=row)
                    _, *found = additive.gram(values, workers)  # of (1, f): the first is the number of voxels
                    _add(mine["feature_sums"], found[: len(maps)])
                    _add(mine["gram"], found[len(maps) :])
                if asked.moments:
                    _add(mine["powers"], additive.powers(x, workers)[: asked.moments])
                if asked.histogram is not None:
                    _add(mine["histogram"], additive.bin_counts(x, asked.histogram.starts(self._study.unit)))

    def _add_on_gpu(self) -> bool:
        """Sum the voxels up where their features are made, and say whether there are few enough classes for that."""
        from voxring.kernels import cuda

        asked, maps = self._study.statistics, len(self._study.feature)
        if len(self._present) > cuda.MOST_CLASSES:
            return False
        of = sums_asked(self._study, len(self._present))
        for first, stop in self._stack.slabs(self._numbers):
            sums, counts = self._stack.summed((first, stop), of, self._numbers[first:stop])
            for mine, some, bins in zip(self._sums, sums, counts.tolist(), strict=True):
                if asked.gram:
                    _add(mine["feature_sums"], some[:maps])
                    _add(mine["gram"], some[maps : len(some) - asked.moments])
                if asked.moments:
                    _add(mine["powers"], some[len(some) - asked.moments :])
                if asked.histogram is not None:
                    _add(mine["histogram"], bins)
        return True

    def _add_pairs(self, others: Array) -> None:
        from voxring.kernels.cpu import additive

        asked = self._study.statistics.glcm
        if asked is None:
            return
        steps = additive.directions(asked.distance, planar=asked.planar or len(self._numbers) == 1)
        counted = self._stack.pairs(
            self._numbers, others, len(self._present), asked.bins.starts(self._study.unit), steps
        )
        for mine, table in zip(self._sums, counted, strict=True):
            mine["glcm"] = table.reshape(-1).tolist()


def sums_asked(study: Study, classes: int) -> Sums:
    """What the GPU sums for a study: in the order of `voxring.statistics.of_images`.

    Of the features, if it asks for their Gram matrix, and of the intensity, which is the map after theirs.
    """
    from voxring.kernels import cuda

    asked, maps = study.statistics, len(study.feature)
    features = [(place,) for place in range(maps)] * asked.gram
    pairs = [(place, other) for place in range(maps) for other in range(place, maps)] * asked.gram
    powers = [(maps * asked.gram,) * order for order in range(1, asked.moments + 1)]
    edges = () if asked.histogram is None else asked.histogram.starts(study.unit)
    words = 4 if asked.moments == 4 else 3
    return cuda.Sums(classes, [*features, *pairs, *powers], words, maps * asked.gram, edges)


def _add(to: list[int], more: list[int]) -> None:
    to[:] = [one + other for one, other in zip(to, more, strict=True)]
