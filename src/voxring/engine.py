"""One image and its ground truth become the integers that a party keeps (Algorithm 1, lines 1 and 5-12).

The kernels sum stored integers; standardisation x = a·v + b is applied to the sums wherever one piece of the map
holds the whole image, and to the voxels otherwise. Both give the same integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from math import prod
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from voxring import fixedpoint
from voxring.errors import DeviceError, ImageError
from voxring.fixedpoint import STANDARDISED_LIMIT, AffineMap
from voxring.kernels import Reduction
from voxring.study import Border, Study
from voxring.totals import ClassTotals, LocalTotals

Device = Literal["auto", "cpu", "cuda"]
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
    named = labels if labels is not None else _label_values(study)
    check_shapes(image, ground_truth)
    image, scale = _on_integers(image, Fraction(slope), Fraction(intercept), study)
    scaling = _scaling((image,), scale, study)
    return _totals(image, ground_truth, study, scaling, named, device, threads)


def part_totals(
    image: Array,
    ground_truth: Array,
    study: Study,
    scaling: Scaling,
    *,
    slope: float | Fraction = 1.0,
    intercept: float | Fraction = 0.0,
    labels: Mapping[str, int],
    device: Device = "cpu",
    threads: int | None = None,
) -> LocalTotals:
    """Reduce a part of an image, as `local_totals` does a whole one, by the scaling of all its voxels (`scaling_of`).

    Parameters and errors as for `local_totals`. What lies past the part is taken for what lies past the image, so it
    must hold all that windows over its ground truth `reach`.
    """
    check_shapes(image, ground_truth)
    image, _ = _on_integers(image, Fraction(slope), Fraction(intercept), study)
    return _totals(image, ground_truth, study, scaling, labels, device, threads)


def _totals(
    image: Array,
    ground_truth: Array,
    study: Study,
    scaling: Scaling,
    named: Mapping[str, int],
    device: Device,
    threads: int | None,
) -> LocalTotals:
    on_gpu = takes_gpu(device)
    window = study.window.along(image.ndim)
    voxels, (a, b) = _standardised(image, scaling)
    if device == "auto" and voxels.dtype.itemsize == 8:  # standardised beyond 32 bits: the GPU has no kernels for it
        on_gpu = False
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
) -> tuple[int, int]:
    """Return which part of an image, along its first axis, gives the totals of the whole: the same integers.

    That is the planes that the windows over ground truth reach. It is all of them where the standardisation depends on
    all voxels, or where the type of the image does not say that each of them is one that the study allows.

    Parameters
    ----------
    truths : pairs of a label map and label values
        What `local_totals` gets as ``ground_truth`` and, of ``labels``, the values.
    dtype, slope, intercept
        Of the image.

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
    everything = depends_on_all(dtype, Fraction(slope), Fraction(intercept), study)
    planes, first, stop = 0, 0, 0
    size = 1
    for truth, labels in truths:
        planes, size = truth.shape[0], study.window.along(truth.ndim)[0]
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


def _labelled(truth: Array, labels: tuple[int, ...]) -> tuple[int, int] | None:
    """First plane with a label and stop; only the planes before and after those with labels are looked through."""
    labels = tuple(label for label in labels if _holds(truth.dtype, label))
    single = [label.to_bytes(1, "little", signed=label < 0) for label in labels] if truth.dtype.itemsize == 1 else []

    def has(plane: int) -> bool:
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


def depends_on_all(dtype: np.dtype[Any], slope: Fraction, intercept: Fraction, study: Study) -> bool:
    """Whether the totals, or whether there is an error, may depend on voxels that no window reaches."""
    if dtype.kind == "f" or dtype.itemsize > 2:
        return True
    if study.standardise.method == "none":
        return not _fits(np.dtype(np.uint8) if dtype.kind == "b" else dtype, slope, intercept, study)
    return study.standardise.method in _OF_ALL_VOXELS


def takes_gpu(device: Device) -> bool:
    """Whether ``device`` means a GPU, here and now.

    Raises
    ------
    DeviceError
        ``device`` is "cuda" and no GPU answers, or is none of the three.
    """
    if device not in get_args(Device):
        raise DeviceError(f'expected device "cpu", "cuda" or "auto", got {device!r}')
    if device == "cpu":
        return False
    from voxring.kernels import cuda

    if device == "cuda":
        cuda.name()  # or says why not
        return True
    return cuda.answers()


def device_name(device: Device) -> str:
    """What computes, in words, such as "CPU" or the name of the GPU that ``auto`` took."""
    from voxring.kernels import cuda

    return f"GPU ({cuda.name()})" if takes_gpu(device) else "CPU"


def _label_values(study: Study) -> dict[str, int]:
    values: dict[str, int] = {}
    for name, label in study.classes.items():
        if not isinstance(label, int):
            raise ImageError(
                f"class {name!r} names the segment {label!r}, a label map has numbers only: give its number in labels="
            )
        values[name] = label
    return values


def check_shapes(image: Array, ground_truth: Array) -> None:
    if image.ndim not in (2, 3):
        raise ImageError(f"expected an image with 2 or 3 axes, got {image.ndim}: pass one volume at a time")
    if image.shape != ground_truth.shape:
        raise ImageError(
            f"the ground truth has shape {ground_truth.shape}, the image {image.shape}: they must cover the same voxels"
        )
    if 0 in image.shape:
        raise ImageError(f"expected at least one voxel, got shape {image.shape}")
    if ground_truth.dtype.kind not in "iub":
        raise ImageError(f"expected a ground truth of integers, got {ground_truth.dtype}: convert it to a label map")
    if image.dtype.kind == "b" or (image.dtype.kind not in "iu" and image.dtype not in (np.float32, np.float64)):
        raise ImageError(f"expected an image of integers or of 32 or 64-bit floats, got {image.dtype}: convert it")
    if image.dtype.itemsize == 8 and image.dtype.kind in "iu":
        raise ImageError(f"expected integers of at most 32 bits, got {image.dtype}: convert the image first")


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


def volume(array: Array) -> Array:
    """Give a 2D image its one plane, in C order and native bytes."""
    if array.dtype.kind == "b":
        array = array.view(np.uint8)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return np.ascontiguousarray(array.reshape(1, *array.shape) if array.ndim == 2 else array)


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


class Scaling(NamedTuple):
    """How the stored integers of an image become standardised ones."""

    mapping: AffineMap
    single: tuple[int, int] | None  # (a, b) where one piece of the map holds the whole image
    stored: tuple[int, int]  # no stored integer lies outside
    standardised: tuple[int, int]


def scaling_of(
    parts: Iterable[Array], dtype: np.dtype[Any], study: Study, *, slope: float | Fraction, intercept: float | Fraction
) -> Scaling:
    """Return the scaling of an image that is seen in parts, each voxel once; ``dtype`` is that of all its parts.

    Raises
    ------
    ImageError
        As `local_totals`, or more distinct intensities than can be counted.
    """
    of = (Fraction(slope), Fraction(intercept), study)
    _, scale = _on_integers(np.zeros(0, dtype), *of)
    return _scaling((_on_integers(part, *of)[0] for part in parts), scale, study)


_Scale = tuple[Fraction, Fraction, int]
"""Slope and intercept of stored integers, and the shift that the grid of a float image brings."""


def _on_integers(image: Array, slope: Fraction, intercept: Fraction, study: Study) -> tuple[Array, _Scale]:
    if image.dtype.kind != "f":
        return image, (slope, intercept, 0)
    image, slope, intercept = on_grid(image, slope, intercept, study)
    return image, (slope, intercept, fixedpoint.FLOAT_SHIFT)


def _scaling(parts: Iterable[Array], scale: _Scale, study: Study) -> Scaling:
    slope, intercept, shift = scale
    if slope == 0:
        raise ImageError("the image's slope is 0: every voxel would have one intensity; correct the file")
    try:
        counted = _Counted.of(parts) if study.standardise.method in _OF_ALL_VOXELS else None
        if counted is not None:
            low, high = int(counted.values[0]), int(counted.values[-1])
        else:
            low, high = _range(parts, slope, intercept, study)
        mapping = _mapping(counted, slope, intercept, study, shift)
        least, largest = mapping.ends(low, high)
        single = mapping.single(low, high)
    except (ValueError, OverflowError) as error:
        raise ImageError(str(error)) from None
    limit = study.intensity_bound if single else min(study.intensity_bound, STANDARDISED_LIMIT - 1)
    if least < -limit or largest > limit:
        raise ImageError(
            f"standardised values run from {least / study.unit:.6g} to {largest / study.unit:.6g}, "
            f"the study allows {limit / study.unit:.6g} either way: "
            "use a larger bounds.intensity, fewer fraction_bits or another method"
        )
    return Scaling(mapping, single, (low, high), (least, largest))


def _standardised(image: Array, scaling: Scaling) -> tuple[Array, tuple[int, int]]:
    """Return integers and the (a, b) that make them standardised: the stored ones with theirs, or x with (1, 0)."""
    if scaling.single is not None:
        return _narrowed(image, *scaling.stored), scaling.single
    try:
        return scaling.mapping.apply(image).astype(_narrowest(*scaling.standardised)), (1, 0)
    except (ValueError, OverflowError) as error:
        raise ImageError(str(error)) from None


def on_grid(image: Array, slope: Fraction, intercept: Fraction, study: Study) -> tuple[Array, Fraction, Fraction]:
    """Put a float image on the grid 2^-p, its slope and intercept applied in binary64."""
    values = image.astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageError("expected finite voxels, got NaN or infinity: replace them before the study")
    if slope != 1 or intercept != 0:
        values = values * float(slope) + float(intercept)
    try:
        integers = fixedpoint.grid(values, study.standardise.fraction_bits)
    except OverflowError as error:
        raise ImageError(f"{error}: use fewer fraction_bits") from None
    return integers, Fraction(1, study.unit), Fraction(0)


def _range(parts: Iterable[Array], slope: Fraction, intercept: Fraction, study: Study) -> tuple[int, int]:
    """Least and largest stored integer: those of the dtype where they already fit, so that the image is not read."""
    low, high = [], []
    for part in parts:
        if (
            study.standardise.method == "none"
            and part.dtype.itemsize <= 2
            and _fits(part.dtype, slope, intercept, study)
        ):
            info = np.iinfo(part.dtype)
            return int(info.min), int(info.max)
        low.append(int(part.min()))
        high.append(int(part.max()))
    return min(low), max(high)


def _fits(dtype: np.dtype[Any], slope: Fraction, intercept: Fraction, study: Study) -> bool:
    """Whether the study allows all that a type can hold, under ``none``."""
    info = np.iinfo(dtype)
    try:
        ends = fixedpoint.plain(slope, intercept, study.standardise.fraction_bits).ends(int(info.min), int(info.max))
    except (ValueError, OverflowError):
        return False  # said where the image is standardised
    return max(-ends[0], ends[1]) <= study.intensity_bound


def _narrowed(image: Array, low: int, high: int) -> Array:
    """A CT stored in 32 bits fits 16: one pass to narrow it costs less than summing wide lanes."""
    narrow = np.dtype(_narrowest(low, high))
    return image.astype(narrow) if narrow.itemsize < image.dtype.itemsize and image.dtype.itemsize == 4 else image


def _narrowest(least: int, largest: int) -> npt.DTypeLike:
    for dtype in (np.uint8, np.int16, np.uint16, np.int32):
        if np.iinfo(dtype).min <= least and largest <= np.iinfo(dtype).max:
            return dtype
    return np.int64


_OF_ALL_VOXELS = ("zscore", "percentile", "nyul")
_DISTINCT = 1 << 24  # intensities that are counted of an image in parts: 16 bytes each, some times over


def _mapping(counted: _Counted | None, slope: Fraction, intercept: Fraction, study: Study, shift: int) -> AffineMap:
    """The integer map of one image under the study's method."""
    options, bits = study.standardise, study.standardise.fraction_bits
    if options.method == "none":
        return fixedpoint.plain(slope, intercept, bits)
    if counted is None:  # rescale
        low, high = options.range or (0.0, 1.0)
        values = [Fraction(repr(low)), Fraction(repr(high))]
        return fixedpoint.through(_rising(values, [0, 1], slope, intercept), bits, shift=shift)
    foreground = counted.foreground(options.foreground, slope, intercept)
    if options.method == "zscore":
        return foreground.zscore(bits, shift, negative=slope < 0)
    percentiles = [Fraction(repr(q)) for q in options.percentiles or ()]
    targets = [Fraction(repr(t)) for t in options.landmarks or (0.0, 1.0)]
    stored = [foreground.percentile(q if slope > 0 else 100 - q) for q in percentiles]
    knots = [(Fraction(v), x) for v, x in zip(stored, targets, strict=True)]
    return fixedpoint.through(knots if slope > 0 else knots[::-1], bits, shift=shift)


def _rising(
    values: list[Fraction], targets: list[int], slope: Fraction, intercept: Fraction
) -> list[tuple[Fraction, Fraction]]:
    """Knots (stored, standardised) with the stored values rising, whatever the sign of the slope."""
    knots = [((value - intercept) / slope, Fraction(target)) for value, target in zip(values, targets, strict=True)]
    return knots if slope > 0 else knots[::-1]


class _Counted:
    """An image as its distinct stored integers, rising, and how often each occurs: all its statistics are exact."""

    def __init__(self, values: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> None:
        self.values, self.counts = values, counts

    @classmethod
    def of(cls, parts: Iterable[Array]) -> _Counted:
        """Count an image that comes in parts."""
        counted: _Counted | None = None
        for part in parts:
            here = cls._of_one(part)
            counted = here if counted is None else counted._with(here)
        if counted is None:
            raise ValueError("expected at least one voxel, got none")
        return counted

    @classmethod
    def _of_one(cls, image: Array) -> _Counted:
        if image.dtype.itemsize > 2:
            values, counts = np.unique(image, return_counts=True)
            return cls(values.astype(np.int64), counts.astype(np.int64))
        from voxring.kernels.cpu.histogram import histogram  # numba takes a second to import

        low = int(np.iinfo(image.dtype).min)
        counts = histogram(image)
        present = np.flatnonzero(counts)
        return cls(present + low, counts[present])

    def _with(self, other: _Counted) -> _Counted:
        values, places = np.unique(np.concatenate((self.values, other.values)), return_inverse=True)
        if values.size > _DISTINCT:
            raise ValueError(
                f"more than {_DISTINCT} distinct intensities in an image too large to be held whole: "
                "convert it to 16 bits, or use standardise.method rescale or none"
            )
        counts = np.zeros(values.size, np.int64)
        np.add.at(counts, places, np.concatenate((self.counts, other.counts)))
        return _Counted(values, counts)

    def foreground(self, which: str, slope: Fraction, intercept: Fraction) -> _Counted:
        """Keep all voxels, those of an intensity that is not 0, or those of more than the mean intensity."""
        if which == "all":
            return self
        if which == "nonzero":
            zero = -intercept / slope
            keep = self.values != (zero.numerator if zero.denominator == 1 else np.iinfo(np.int64).min)
        else:
            mean = Fraction(_dot(self.values, self.counts), int(self.counts.sum()))
            above = self.values > mean.numerator // mean.denominator
            below = self.values < -(-mean.numerator // mean.denominator)
            keep = above if slope > 0 else below
        return _Counted(self.values[keep], self.counts[keep])

    def zscore(self, bits: int, shift: int, *, negative: bool) -> AffineMap:
        values, counts = self.values, self.counts
        high, low = values >> 24, values & 0xFFFFFF
        squares = (_dot(high * high, counts) << 48) + (_dot(high * low, counts) << 25) + _dot(low * low, counts)
        made = fixedpoint.zscore(int(counts.sum()), _dot(values, counts), squares, bits, shift=shift)
        if negative:  # round half to even is symmetric
            return AffineMap((-made.a[0],), (-made.b[0],), shift=shift)
        return made

    def percentile(self, percentile: Fraction) -> int:
        """The value of rank ⌈q·n/100⌉ (nearest rank), the least value for q = 0."""
        if not self.counts.size:
            raise ValueError("the foreground is empty: use another standardise.foreground")
        ranks = np.cumsum(self.counts)
        rank = max(1, -(-percentile * int(ranks[-1]) // 100))
        return int(self.values[np.searchsorted(ranks, rank)])


def _dot(values: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> int:
    """Σ values·counts, exact: values below 2^48 in size go in two limbs of 24 bits, counts add up to less than 2^38."""
    return (int(((values >> 24) * counts).sum()) << 24) + int(((values & 0xFFFFFF) * counts).sum())
