"""From stored voxels to standardised integers (Algorithm 1, line 1): which map an image gets, and what is refused.

The map is x = a·v + b with integers a and b. Where one piece of it holds the whole image the voxels are left as they
are stored, for whoever sums them first and applies a and b to the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from voxring import fixedpoint
from voxring.errors import ImageError, StudyError
from voxring.fixedpoint import STANDARDISED_LIMIT, AffineMap
from voxring.landmarks import landmark_totals
from voxring.study import Study
from voxring.totals import LocalTotals

Array = npt.NDArray[Any]

OF_ALL_VOXELS = ("zscore", "percentile", "nyul")


def label_values(study: Study) -> dict[str, int]:
    values: dict[str, int] = {}
    for name, label in study.classes.items():
        if not isinstance(label, int):
            raise ImageError(
                f"class {name!r} names the segment {label!r}, a label map has numbers only: give its number in labels="
            )
        values[name] = label
    return values


def check_shapes(image: Array, ground_truth: Array) -> None:
    check_image(image)
    _check_array(ground_truth, "a ground truth")
    if image.shape != ground_truth.shape:
        raise ImageError(
            f"the ground truth has shape {ground_truth.shape}, the image {image.shape}: they must cover the same voxels"
        )
    if ground_truth.dtype.kind not in "iub":
        raise ImageError(f"expected a ground truth of integers, got {ground_truth.dtype}: convert it to a label map")


def check_image(image: Array) -> None:
    _check_array(image, "an image")
    if image.ndim not in (2, 3):
        raise ImageError(f"expected an image with 2 or 3 axes, got {image.ndim}: pass one volume at a time")
    if 0 in image.shape:
        raise ImageError(f"expected at least one voxel, got shape {image.shape}")
    if image.dtype.kind == "b" or (image.dtype.kind not in "iu" and image.dtype not in (np.float32, np.float64)):
        raise ImageError(
            f"expected an image of integers or of 32 or 64-bit floats, got {image.dtype}: convert it, as to int16"
        )
    if image.dtype.itemsize == 8 and image.dtype.kind in "iu":
        raise ImageError(f"expected integers of at most 32 bits, got {image.dtype}: convert it to int32 or float64")


def _check_array(given: object, what: str) -> None:
    if not isinstance(given, np.ndarray):
        raise ImageError(
            f"expected {what} as an array of numpy, got {type(given).__name__}: read a file with voxring.read_image or "
            "read_ground_truth and take its array, or make one with numpy.asarray"
        )


def volume(array: Array) -> Array:
    """Give a 2D image its one plane, in C order and native bytes."""
    if array.dtype.kind == "b":
        array = array.view(np.uint8)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return np.ascontiguousarray(array.reshape(1, *array.shape) if array.ndim == 2 else array)


Scaled = tuple[Array, tuple[int, int]]
"""Integers and the (a, b) that make them standardised: stored ones with theirs, or x with (1, 0)."""


_Parts = Callable[[], Iterable[Array]]
"""Goes through the parts of an image."""


class Scaling(NamedTuple):
    """How the stored integers of an image become standardised ones."""

    mapping: AffineMap
    single: tuple[int, int] | None  # (a, b) where one piece of the map holds the whole image
    stored: tuple[int, int]  # no stored integer lies outside
    standardised: tuple[int, int]


def scaling_of(
    parts: _Parts,
    dtype: np.dtype[Any],
    study: Study,
    *,
    slope: float | Fraction,
    intercept: float | Fraction,
) -> Scaling:
    """Return the scaling of an image that is seen in parts; ``dtype`` is that of all of them.

    They are gone through once, and those of more than 16 bits once for each look at all voxels: twice for a z-score,
    up to four times for percentiles.

    Raises
    ------
    ImageError
        As `local_totals`.
    """
    of = (Fraction(slope), Fraction(intercept), study)
    none, scale = on_integers(np.zeros(0, dtype), *of)
    return _scaling_of_integers(_on_integers(parts, of), none.dtype, scale, study)


def _on_integers(parts: _Parts, of: tuple[Fraction, Fraction, Study]) -> _Parts:
    """The parts of an image on integers; of floats these take more memory, so they come in pieces."""
    return lambda: (
        on_integers(piece, *of)[0]
        for part in parts()
        for piece in (_pieces(part) if part.dtype.kind == "f" else (part,))
    )


def local_landmarks(
    image: Array, study: Study, *, slope: float | Fraction = 1.0, intercept: float | Fraction = 0.0
) -> LocalTotals:
    """Find the landmarks of one image, for a study whose parties agree on the standard scale (`voxring.landmarks`).

    Parameters
    ----------
    image : array of integers of at most 32 bits, or of floats
        Stored intensities.
    study : Study
        With ``standardise.landmarks = "agree"``.
    slope, intercept : float or Fraction
        The intensity that a stored v stands for is slope·v + intercept. The landmarks do not depend on it, but for
        which end is the lower one.

    Returns
    -------
    LocalTotals
        They add up over images and parties; `voxring.standard_scale` makes the scale of them.

    Raises
    ------
    ImageError
        The foreground is empty, or two of its percentiles are one intensity.

    Examples
    --------
    >>> study = Study.of(
    ...     name="mri",
    ...     classes={"lesion": 1},
    ...     standardise={"method": "nyul", "percentiles": [0, 50, 100], "landmarks": "agree", "foreground": "all"},
    ... )
    >>> found = local_landmarks(np.array([[0, 1, 4]], np.int16), study)
    >>> found["standard scale"].statistics == (2**16 // 4,)
    True
    """
    return landmarks_in(lambda: (image,), image.dtype, study, slope=slope, intercept=intercept)


def landmarks_in(
    parts: _Parts, dtype: np.dtype[Any], study: Study, *, slope: float | Fraction, intercept: float | Fraction
) -> LocalTotals:
    """Find the landmarks of an image that is seen in parts, as `local_landmarks` does and `scaling_of` gets them."""
    of = (Fraction(slope), Fraction(intercept), study)
    none, (slope, intercept, _) = on_integers(np.zeros(0, dtype), *of)
    if slope == 0:
        raise ImageError(_FLAT)
    try:
        known = _known(_on_integers(parts, of), none.dtype)
        stored = _percentiles(known, slope, intercept, study)
    except ValueError as error:
        raise ImageError(str(error)) from None
    first, last = stored[0], stored[-1]
    if any(low == high for low, high in pairwise(stored)):
        raise ImageError(
            "two percentiles of the image are one intensity: use other standardise.percentiles or another foreground"
        )
    inner = tuple(round(Fraction((value - first) * study.unit, last - first)) for value in stored[1:-1])
    return landmark_totals(known.count, known.total, inner)


_FLAT = "the image's slope is 0: every voxel would have one intensity; correct the file"
_Scale = tuple[Fraction, Fraction, int]
"""Slope and intercept of stored integers, and the shift that the grid of a float image brings."""


def on_integers(image: Array, slope: Fraction, intercept: Fraction, study: Study) -> tuple[Array, _Scale]:
    """Return an image as integers, a float one on the grid 2^-p, and how they are scaled."""
    if image.dtype.kind != "f":
        return image, (slope, intercept, 0)
    image, slope, intercept = on_grid(image, slope, intercept, study)
    return image, (slope, intercept, fixedpoint.FLOAT_SHIFT)


def _scaling_of_integers(parts: _Parts, dtype: np.dtype[Any], scale: _Scale, study: Study) -> Scaling:
    slope, intercept, shift = scale
    if slope == 0:
        raise ImageError(_FLAT)
    try:
        if _is_summed(dtype, study):

            def mean() -> Fraction:
                (count, total, _), *_ = _summed(parts(), lambda values: values, squares=False)
                return Fraction(total, count)

            inside = _foreground(study.standardise.foreground, slope, intercept, mean)
            sums, low, high = _summed(parts(), lambda values: values[inside(values)])
            mapping = _zscore(sums, slope, study, shift)
        elif study.standardise.method in OF_ALL_VOXELS:
            known = _known(parts, dtype)
            low, high = known.low, known.high
            mapping = _mapping(known, slope, intercept, study, shift)
        else:
            low, high = _range(parts(), slope, intercept, study)
            mapping = _mapping(None, slope, intercept, study, shift)
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


def standardised(image: Array, slope: Fraction, intercept: Fraction, study: Study) -> Scaled:
    """Standardise a whole image."""
    image, scale = on_integers(image, slope, intercept, study)
    return standardised_by(image, _scaling_of_integers(lambda: (image,), image.dtype, scale, study))


def standardised_by(image: Array, scaling: Scaling) -> Scaled:
    """Standardise an image, or a part of it, on integers already (`on_integers`)."""
    if scaling.single is not None:
        return _narrowed(image, *scaling.stored), scaling.single
    mapped = np.empty(image.shape, _narrowest(*scaling.standardised))
    low, high = scaling.stored
    try:
        # So few values are mapped once each, and looked up.
        table = _table(scaling.mapping, low, high, mapped.dtype) if image.itemsize <= 2 else None
        for here, there in zip(_pieces(image), _pieces(mapped), strict=True):
            if table is None:
                there[...] = scaling.mapping.apply(here)
            else:
                table.take(np.subtract(here, low, dtype=np.intp), out=there, mode="wrap")
    except (ValueError, OverflowError) as error:
        raise ImageError(str(error)) from None
    return mapped, (1, 0)


@lru_cache(maxsize=2)
def _table(mapping: AffineMap, low: int, high: int, dtype: np.dtype[Any]) -> Array:
    """What stored integers from low to high are mapped to: the same for all slabs of an image."""
    table: Array = mapping.apply(np.arange(low, high + 1)).astype(dtype)
    table.flags.writeable = False
    return table


def on_grid(image: Array, slope: Fraction, intercept: Fraction, study: Study) -> tuple[Array, Fraction, Fraction]:
    """Put a float image on the grid 2^-p, its slope and intercept applied in binary64."""
    integers = np.empty(image.shape, np.int64)
    for here, there in zip(_pieces(image), _pieces(integers), strict=True):
        values = here.astype(np.float64)
        if not np.isfinite(values).all():
            raise ImageError("expected finite voxels, got NaN or infinity: replace them before the study")
        if slope != 1 or intercept != 0:
            values = values * float(slope) + float(intercept)
        try:
            there[...] = fixedpoint.grid(values, study.standardise.fraction_bits)
        except OverflowError as error:
            raise ImageError(f"{error}: use fewer fraction_bits") from None
    return integers, Fraction(1, study.unit), Fraction(0)


def _pieces(image: Array) -> Iterator[Array]:
    """Some planes, or rows, at a time: what numpy makes of them on the way is in 64 bits, several times over."""
    step = max(1, _AT_ONCE * image.shape[0] // max(image.size, 1))
    for first in range(0, image.shape[0], step):
        yield image[first : first + step]


def _range(parts: Iterable[Array], slope: Fraction, intercept: Fraction, study: Study) -> tuple[int, int]:
    """Least and largest stored integer: those of the dtype where they already fit, so that the image is not read."""
    low, high = [], []
    for part in parts:
        if (
            study.standardise.method == "none"
            and part.dtype.itemsize <= 2
            and fits(part.dtype, slope, intercept, study)
        ):
            info = np.iinfo(part.dtype)
            return int(info.min), int(info.max)
        low.append(int(part.min()))
        high.append(int(part.max()))
    return min(low), max(high)


def fits(dtype: np.dtype[Any], slope: Fraction, intercept: Fraction, study: Study) -> bool:
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


_AT_ONCE = 1 << 16  # voxels, of several arrays of 64 bits


def _mapping(
    known: _Counted | _Ranked | None, slope: Fraction, intercept: Fraction, study: Study, shift: int
) -> AffineMap:
    """The integer map of one image under the study's method."""
    options, bits = study.standardise, study.standardise.fraction_bits
    if options.method == "none":
        return fixedpoint.plain(slope, intercept, bits)
    if known is None:  # rescale
        low, high = options.range or (0.0, 1.0)
        values = [Fraction(repr(low)), Fraction(repr(high))]
        return fixedpoint.through(_rising(values, [0, 1], slope, intercept), bits, shift=shift)
    if isinstance(known, _Counted) and options.method == "zscore":
        keep = _foreground(options.foreground, slope, intercept, known.mean)(known.values)
        return _zscore(_sums(known.values[keep], known.counts[keep]), slope, study, shift)
    if study.agrees:
        raise StudyError(
            "the parties have yet to agree on the landmarks: take the study that with_landmarks makes of their scale, "
            "or write into the study the ones that stand in the result"
        )
    targets = options.targets or (Fraction(0), Fraction(1))
    knots = [(Fraction(v), x) for v, x in zip(_percentiles(known, slope, intercept, study), targets, strict=True)]
    return fixedpoint.through(knots if slope > 0 else knots[::-1], bits, shift=shift)


def _is_summed(dtype: np.dtype[Any], study: Study) -> bool:
    """Whether a z-score is made of sums over voxels; integers of up to 16 bits are rather counted, which is faster."""
    return study.standardise.method == "zscore" and dtype.itemsize > 2


_Sums = tuple[int, int, int]
"""How many stored integers, Σv and Σv²."""


def _summed(
    parts: Iterable[Array], chosen: Callable[[Array], Array], *, squares: bool = True
) -> tuple[_Sums, int, int]:
    """Sums over those stored integers that are chosen, and the least and the largest of all."""
    sums, low, high = [], [], []
    for part in parts:
        for piece in _pieces(part):
            values = piece.astype(np.int64)
            low.append(int(values.min()))
            high.append(int(values.max()))
            values = chosen(values)
            sums.append(_sums(values, np.broadcast_to(np.int64(1), values.shape), squares=squares))
    counts, totals, of_squares = zip(*sums, strict=True)
    return (sum(counts), sum(totals), sum(of_squares)), min(low), max(high)


def _zscore(sums: _Sums, slope: Fraction, study: Study, shift: int) -> AffineMap:
    made = fixedpoint.zscore(*sums, study.standardise.fraction_bits, shift=shift)
    if slope < 0:  # round half to even is symmetric
        return AffineMap((-made.a[0],), (-made.b[0],), shift=shift)
    return made


def _foreground(
    which: str, slope: Fraction, intercept: Fraction, mean: Callable[[], Fraction]
) -> Callable[[Array], Array]:
    """What says which stored integers are foreground: all, those of an intensity that is not 0, or of more than the
    mean intensity.
    """
    if which == "all":
        return lambda values: np.ones(values.shape, np.bool_)
    if which == "nonzero":
        zero = -intercept / slope
        at = zero.numerator if zero.denominator == 1 else np.iinfo(np.int64).min
        return lambda values: values != at
    of_all = mean()
    if slope > 0:
        return lambda values: values > of_all.numerator // of_all.denominator
    return lambda values: values < -(-of_all.numerator // of_all.denominator)


def _percentiles(known: _Counted | _Ranked, slope: Fraction, intercept: Fraction, study: Study) -> list[int]:
    """The stored integers at the study's percentiles of the intensity; with a slope below 0 they fall.

    That is the value of rank ⌈q·n/100⌉ (nearest rank), the least value for q = 0.
    """
    percentiles = [Fraction(repr(q)) for q in study.standardise.percentiles or ()]
    inside = _foreground(study.standardise.foreground, slope, intercept, known.mean)

    def ranks(count: int) -> list[int]:
        if count == 0:
            raise ValueError("the foreground is empty: use another standardise.foreground")
        return [max(1, -(-(q if slope > 0 else 100 - q) * count // 100)) for q in percentiles]

    return known.ranked(inside, ranks)


def _rising(
    values: list[Fraction], targets: list[int], slope: Fraction, intercept: Fraction
) -> list[tuple[Fraction, Fraction]]:
    """Knots (stored, standardised) with the stored values rising, whatever the sign of the slope."""
    knots = [((value - intercept) / slope, Fraction(target)) for value, target in zip(values, targets, strict=True)]
    return knots if slope > 0 else knots[::-1]


_Ranks = Callable[[int], list[int]]
"""Which ranks are asked for, from 1, among so many."""


class _Counted:
    """An image of at most 16 bits as its distinct stored integers, rising, and how often each occurs."""

    def __init__(self, values: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> None:
        self.values, self.counts = values, counts
        self.count, self.total = int(counts.sum()), _dot(values, counts)
        self.low, self.high = int(values[0]), int(values[-1])

    def mean(self) -> Fraction:
        """Of all its stored integers."""
        return Fraction(self.total, self.count)

    def ranked(self, inside: Callable[[Array], Array], ranks: _Ranks) -> list[int]:
        """The values of some ranks among those that are inside."""
        keep = inside(self.values)
        values, upto = self.values[keep], np.cumsum(self.counts[keep])
        return [int(values[np.searchsorted(upto, rank)]) for rank in ranks(int(upto[-1]) if upto.size else 0)]


class _Ranked:
    """An image of more bits, which is gone through anew for each question: nothing of its size is made."""

    def __init__(self, parts: _Parts) -> None:
        self._parts = parts
        (self.count, self.total, _), self.low, self.high = _summed(parts(), lambda values: values, squares=False)

    def mean(self) -> Fraction:
        """Of all its stored integers."""
        return Fraction(self.total, self.count)

    def ranked(self, inside: Callable[[Array], Array], ranks: _Ranks) -> list[int]:
        """The values of some ranks among those that are inside.

        Their bits are found `_BITS` at a time, the highest first: a value lies in ``begin`` … ``begin + 2^bits − 1``,
        and how many lie in each part of that says in which one.
        """
        bits = max(1, (self.high - self.low).bit_length())
        begins, left = [self.low], list[int]()
        while bits:
            step = max(0, bits - _BITS)
            tables = {begin: np.zeros(1 << (bits - step), np.int64) for begin in begins}
            for values in self._chosen(inside):
                for begin, table in tables.items():
                    places = (values - begin) >> step
                    if left:
                        places = places[(places >= 0) & (places < table.size)]
                    found = np.bincount(places)
                    table[: found.size] += found
            if not left:  # all that is inside is counted by now
                left = list(ranks(int(tables[self.low].sum())))
                begins *= len(left)
            for number, begin in enumerate(begins):
                upto = np.cumsum(tables[begin])
                place = int(np.searchsorted(upto, left[number]))
                left[number] -= int(upto[place - 1]) if place else 0
                begins[number] += place << step
            bits = step
        return begins

    def _chosen(self, inside: Callable[[Array], Array]) -> Iterator[Array]:
        for part in self._parts():
            for piece in _pieces(part):
                values = piece.astype(np.int64)
                yield values[inside(values)]


_BITS = 16


def _known(parts: _Parts, dtype: np.dtype[Any]) -> _Counted | _Ranked:
    """What percentiles are taken from."""
    if dtype.itemsize > 2:
        return _Ranked(parts)
    from voxring.kernels.cpu.histogram import histogram  # numba takes a second to import

    return _Counted(*histogram(parts(), dtype))


def _sums(values: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], *, squares: bool = True) -> _Sums:
    """Σ counts, Σ values·counts and, if asked for, Σ values²·counts, exact, of values of at most 47 bits."""
    of_squares = 0
    if squares:
        high, low = values >> 24, values & 0xFFFFFF
        of_squares = (_dot(high * high, counts) << 48) + (_dot(high * low, counts) << 25) + _dot(low * low, counts)
    return int(counts.sum()), _dot(values, counts), of_squares


def _dot(values: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> int:
    """Σ values·counts, exact: values below 2^48 in size go in two limbs of 24 bits, counts add up to less than 2^38."""
    high = low = 0
    for first in range(0, len(values), _AT_ONCE):
        some, of_each = values[first : first + _AT_ONCE], counts[first : first + _AT_ONCE]
        high += int(((some >> 24) * of_each).sum())
        low += int(((some & 0xFFFFFF) * of_each).sum())
    return (high << 24) + low
