"""One image and its ground truth become the integers that a party keeps (Algorithm 1, lines 1 and 5-12).

The kernels sum stored integers; standardisation x = a·v + b is applied to the sums wherever one piece of the map
holds the whole image, and to the voxels otherwise. Both give the same integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from voxring.devices import Device, placed
from voxring.errors import ImageError
from voxring.features import class_statistics
from voxring.kernels import Reduction
from voxring.standardise import (
    OF_ALL_VOXELS,
    Scaled,
    Scaling,
    check_shapes,
    fits,
    label_values,
    on_integers,
    scaling_of,
    standardised,
    standardised_by,
    volume,
)
from voxring.statistics import layout, of_images
from voxring.study import AtWeights, Border, Study, expect_study
from voxring.totals import ClassTotals, LocalTotals

Array = npt.NDArray[Any]


def local_totals(
    image: Array,
    ground_truth: Array,
    study: Study,
    *,
    slope: float | Fraction = 1.0,
    intercept: float | Fraction = 0.0,
    labels: Mapping[str, int] | None = None,
    device: Device = "cpu",
    threads: int | None = None,
) -> LocalTotals:
    """Reduce one image to the integers its party keeps.

    Algorithm 1, lines 5-12, with lines 21-24 prepared: Σx and Σx² are kept, so the second pass needs no second read.

    Parameters
    ----------
    image : (rows, cols) or (planes, rows, cols) array
        Stored intensities: integers of 8, 16 or 32 bits, or floats.
    ground_truth : array of integers, same shape
        Label map. May hold none of the study's classes.
    study : Study
        Window, border, standardisation and bounds.
    slope, intercept : float or Fraction
        The intensity that a stored v stands for is slope·v + intercept.
    labels : mapping of class name to label value, optional
        The classes that this label map holds, when not those of the study file.
    device : {"cpu", "cuda", "auto"}
        Where to compute. Every device gives the same integers.
    threads : int, optional
        Threads of this call; NUMBA_NUM_THREADS, or all cores, when left out. The result does not depend on it.

    Returns
    -------
    LocalTotals
        Per class; sums in units of 1 / study.denominator, exact.

    Raises
    ------
    ImageError
        The shapes differ, a voxel is not finite, or a value leaves the range that the study declares.
    StudyError
        The window names axes that the image lacks.
    DeviceError
        ``device="cuda"`` and no GPU answers. Never falls back in silence.

    Examples
    --------
    >>> import numpy as np
    >>> from voxring import Study
    >>> study = Study.of(name="example", classes={"lesion": 1}, window={"size": 3})
    >>> image = np.arange(16, dtype=np.int16).reshape(4, 4)
    >>> totals = local_totals(image, (image == 5).astype(np.uint8), study)
    >>> totals["lesion"].voxels, totals["lesion"].sum == 5 * study.denominator
    (1, True)
    """
    expect_study(study)
    named = labels if labels is not None else label_values(study)
    return part_totals(
        image, ground_truth, study, slope=slope, intercept=intercept, labels=named, device=device, threads=threads
    )


class Scalings(NamedTuple):
    """How an image becomes what a study sums and what its model is given; None where no voxel has a say in it.

    That is none but those that are at hand: a part of the image is then standardised as the whole image is.
    """

    own: Scaling | None = None
    model: Scaling | None = None


AT_HAND = Scalings()
"""Those of images of which no voxel has a say, or all are given."""


def scalings_of(
    parts: Callable[[], Iterable[Array]],
    dtype: np.dtype[Any],
    study: Study,
    *,
    slope: float | Fraction,
    intercept: float | Fraction,
) -> Scalings:
    """Return the scalings that depend on all voxels; ``parts`` goes through them, as for `scaling_of`."""
    known: dict[object, Scaling] = {}
    found: list[Scaling | None] = []
    for one in _studies(study):
        if not _depends_on_all(dtype, Fraction(slope), Fraction(intercept), one):
            found.append(None)
            continue
        alike = one.standardise, one.intensity_bound
        if alike not in known:
            known[alike] = scaling_of(parts, dtype, one, slope=slope, intercept=intercept)
        found.append(known[alike])
    return Scalings(*found)


def part_totals(
    image: Array,
    ground_truth: Array,
    study: Study,
    scalings: Scalings = AT_HAND,
    *,
    slope: float | Fraction = 1.0,
    intercept: float | Fraction = 0.0,
    labels: Mapping[str, int],
    neighbours: Array | None = None,
    device: Device = "cpu",
    threads: int | None = None,
) -> LocalTotals:
    """Reduce a part of an image, as `local_totals` does a whole one, by the scalings of all its voxels.

    Parameters and errors as for `local_totals`. What lies past the part is taken for what lies past the image, so it
    must hold all that windows over its ground truth `reach`. ``neighbours`` is the label map with which its voxels make
    pairs, where ``ground_truth`` leaves out labels of the part, which another part sums.
    """
    check_shapes(image, ground_truth)
    mine = scaled(image, slope, intercept, study, scalings.own)
    totals = _totals(mine, ground_truth, study, labels, device, threads)
    if not layout(study):
        return totals
    more: dict[str, tuple[int, ...]] = dict.fromkeys(labels, ())
    if of_images(study):
        more = class_statistics(
            image,
            ground_truth,
            study,
            labels=labels,
            device=device,
            threads=threads,
            scaled=mine,
            neighbours=neighbours,
        )
    if isinstance(study, AtWeights):
        from voxring.learn.steps import class_step

        more = class_step(image, ground_truth, study, labels=labels, device=device, threads=threads, scaled=mine)
    if study.evaluate is not None:
        from voxring.learn.evaluation import class_evaluation

        given = scaled(image, slope, intercept, _studies(study)[1], scalings.model) if scalings.model else None
        counts = class_evaluation(
            image,
            ground_truth,
            study,
            slope=slope,
            intercept=intercept,
            labels=labels,
            device=device,
            threads=threads,
            scaled=given,
        )
        more = {name: more[name] + counts[name] for name in labels}
    return LocalTotals(
        {name: replace(of, statistics=more[name] if of.voxels else ()) for name, of in totals.classes.items()}
    )


def scaled(
    image: Array, slope: float | Fraction, intercept: float | Fraction, study: Study, scaling: Scaling | None
) -> Scaled:
    """Standardise an image, or a part of one by the scaling of all its voxels if they have a say in it."""
    of = Fraction(slope), Fraction(intercept), study
    return standardised(image, *of) if scaling is None else standardised_by(on_integers(image, *of)[0], scaling)


def _studies(study: Study) -> tuple[Study, ...]:
    """A study, and that of the model that it evaluates."""
    if study.evaluate is None:
        return (study,)
    from voxring.learn.evaluation import model_of

    return (study, model_of(study).study)


def _totals(
    scaled: Scaled,
    ground_truth: Array,
    study: Study,
    named: Mapping[str, int],
    device: Device,
    threads: int | None,
) -> LocalTotals:
    voxels, (a, b) = scaled
    window = study.window.along(voxels.ndim)
    voxels, on_gpu = placed(voxels, device)
    reductions = _reduce(voxels, ground_truth, named, window, study.window.border, threads, on_gpu)
    return LocalTotals(
        {name: _class_totals(reduction, a, b, window, study) for name, reduction in zip(named, reductions, strict=True)}
    )


def planes_needed(
    truths: Iterable[tuple[Array, Iterable[int]]],
    dtype: np.dtype[Any],
    study: Study,
    *,
    slope: float | Fraction = 1.0,
    intercept: float | Fraction = 0.0,
    scaled: bool = False,
) -> tuple[int, int]:
    """Return which part of an image, along its first axis, gives the totals of the whole: the same integers.

    That is the planes that the windows over ground truth reach, those of the features too that the study, or the model
    that it evaluates, asks for. It is all of them
    where the standardisation depends on all voxels, or where the type of the image does not say that each of them is
    one that the study allows.

    Parameters
    ----------
    truths : pairs of a label map and label values
        What `local_totals` gets as ``ground_truth`` and, of ``labels``, the values.
    dtype, slope, intercept
        Of the image.
    scaled : bool
        Whether the scaling of all voxels is known (`voxring.standardise.scaling_of`), so that no others are needed.

    Returns
    -------
    (int, int)
        First plane and stop; equal where no voxel has a label.

    Raises
    ------
    StudyError
        The window names axes that the image lacks.

    Examples
    --------
    >>> import numpy as np
    >>> from voxring import Study
    >>> study = Study.of(name="example", classes={"lesion": 1}, window={"size": 3})
    >>> truth = np.zeros((9, 4, 4), np.uint8)
    >>> truth[4, 2, 2] = 1
    >>> planes_needed([(truth, [1])], np.dtype(np.int16), study)
    (3, 6)
    """
    everything = not scaled and depends_on_all(dtype, study, slope=slope, intercept=intercept)
    planes, first, stop = 0, 0, 0
    size = 1
    for truth, labels in truths:
        planes, size = truth.shape[0], widest(study, truth.ndim)[0]
        here = _labelled(truth, tuple(labels))
        if here is not None and (everything or truth.ndim == 2):
            return 0, planes
        if here is not None:
            first, stop = (min(first, here[0]), max(stop, here[1])) if stop else here
    return reach(first, stop, planes, size) if stop else (0, 0)


def reach(first: int, stop: int, length: int, size: int) -> tuple[int, int]:
    """Return which part of an axis the windows at ``first`` to ``stop`` read, whatever the border, as (start, stop).

    That part alone gives these places the sums, and the counts of what is inside, that the whole axis gives them.
    """
    low, high = first - size // 2, stop - 1 - size // 2 + size
    if low < 0:  # `mirror` reads plane k for -k, which may lie one plane past an even window
        high = max(high, size // 2 + 1)
    return max(low, 0), min(high, length)


def widest(study: Study, ndim: int) -> tuple[int, int, int]:
    """The largest window of the study along each axis: of the local means or a feature, or that of a gradient.

    Pairs of neighbours are no windows: they are counted where both voxels have the class.
    """
    features = study.feature if of_images(study) or isinstance(study, AtWeights) else ()
    for of_model in _studies(study)[1:]:
        features += of_model.feature
    sizes = [study.window.along(ndim)]
    for feature in features:
        sizes.append((3 if ndim == 3 else 1, 3, 3) if feature.kind == "gradient" else feature.along(ndim))
    planes, rows, columns = zip(*sizes, strict=True)
    return max(planes), max(rows), max(columns)


def _labelled(truth: Array, labels: tuple[int, ...]) -> tuple[int, int] | None:
    """First plane with a label and stop; only the planes before and after those with labels are looked through."""
    labels = tuple(label for label in labels if _holds(truth.dtype, label))
    if not labels:
        return None
    single = [label.to_bytes(1, "little", signed=label < 0) for label in labels] if truth.dtype.itemsize == 1 else []
    # Most planes are of background alone, which the largest number in each says at the pace of memory.
    largest = truth.max(axis=tuple(range(1, truth.ndim)))

    def has(plane: int) -> bool:
        if largest[plane] < min(labels):
            return False
        if single:  # a search for a byte looks at 16 voxels in the time that numpy compares one
            content = truth[plane].tobytes()
            return any(label in content for label in single)
        return any(bool((truth[plane] == label).any()) for label in labels)

    first = next(filter(has, range(truth.shape[0])), None)
    if first is None:
        return None
    return first, 1 + next(filter(has, range(truth.shape[0] - 1, first - 1, -1)))


def _holds(dtype: np.dtype[Any], value: int) -> bool:
    info = np.iinfo(np.uint8 if dtype.kind == "b" else dtype)
    return int(info.min) <= value <= int(info.max)


def depends_on_all(
    dtype: np.dtype[Any], study: Study, *, slope: float | Fraction = 1.0, intercept: float | Fraction = 0.0
) -> bool:
    """Whether the totals, or whether there is an error, may depend on voxels that no window reaches."""
    return any(_depends_on_all(dtype, Fraction(slope), Fraction(intercept), one) for one in _studies(study))


def _depends_on_all(dtype: np.dtype[Any], slope: Fraction, intercept: Fraction, study: Study) -> bool:
    if dtype.kind == "f" or dtype.itemsize > 2:
        return True
    if study.standardise.method == "none":
        return not fits(np.dtype(np.uint8) if dtype.kind == "b" else dtype, slope, intercept, study)
    return study.standardise.method in OF_ALL_VOXELS


def _reduce(
    voxels: Array,
    ground_truth: Array,
    named: Mapping[str, int],
    window: tuple[int, int, int],
    border: Border,
    threads: int | None,
    on_gpu: bool,
) -> list[Reduction]:
    arguments = volume(voxels), volume(ground_truth), tuple(named.values()), window, border
    try:
        if on_gpu:
            from voxring.kernels import cuda

            return cuda.reduce(*arguments)
        from voxring.kernels import cpu  # numba takes a second to import

        return cpu.reduce(*arguments, threads=threads)
    except OverflowError as error:
        raise ImageError(f"{error}: use a smaller window or fewer fraction_bits") from None


def _class_totals(reduction: Reduction, a: int, b: int, window: tuple[int, int, int], study: Study) -> ClassTotals:
    """Turn sums of stored integers v into sums of x = a·v + b, over the study's denominators."""
    size = prod(window)
    common = study.window.denominator
    total = 0
    for inside, (voxels, window_sum) in reduction.groups.items():
        sums = a * window_sum + b * inside * voxels
        if study.window.border == "clip":
            total += sums * (common // inside)
        else:
            total += (sums + study.fill * (size - inside) * voxels) * (common // size)
    voxels = reduction.voxels
    return ClassTotals(
        voxels=voxels,
        sum=total,
        total=a * reduction.total + b * voxels,
        squares=a * a * reduction.squares + 2 * a * b * reduction.total + b * b * voxels,
        patients=int(voxels > 0),
    )
