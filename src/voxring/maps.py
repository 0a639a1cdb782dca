"""Maps of a whole image: the local mean, sum and variance of every voxel (Algorithm 1, line 7)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from math import prod
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from voxring.devices import Device, placed
from voxring.engine import reach
from voxring.errors import ImageError
from voxring.images import ImageFile, Rectangle, Span, rectangles
from voxring.kernels.checks import FLOATS, SUMS
from voxring.standardise import check_image, on_grid, volume
from voxring.study import Border, Study

Array = npt.NDArray[Any]
Window = int | tuple[int, ...]
Float = Literal["float32", "float64"]
Integer = Literal["int32", "int64"]
Kernel = Literal["mean_map", "variance_map", "window_sums"]
_POWER = {"mean_map": 1, "window_sums": 1, "variance_map": 2}  # of the image's unit in the map's


@overload
def local_mean(
    image: Array | ImageFile,
    window: Window,
    border: Border = ...,
    *,
    fill: float = ...,
    fraction_bits: int = ...,
    exact: Literal[False] = ...,
    dtype: Float = ...,
    out: Array | None = ...,
    device: Device = ...,
    threads: int | None = ...,
) -> npt.NDArray[np.floating[Any]]: ...
@overload
def local_mean(
    image: Array | ImageFile,
    window: Window,
    border: Border = ...,
    *,
    fill: float = ...,
    fraction_bits: int = ...,
    exact: Literal[True],
    dtype: Float = ...,
    out: None = ...,
    device: Device = ...,
    threads: int | None = ...,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]: ...
def local_mean(
    image: Array | ImageFile,
    window: Window,
    border: Border = "reflect",
    *,
    fill: float = 0.0,
    fraction_bits: int = 16,
    exact: bool = False,
    dtype: Float = "float64",
    out: Array | None = None,
    device: Device = "cpu",
    threads: int | None = None,
) -> npt.NDArray[np.floating[Any]] | tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Mean of the window around every voxel (Algorithm 1, line 7), as a map.

    For an image of integers, memory beyond the result is a tile for each thread, whatever its size: with an ``image``
    and an ``out`` of numpy.memmap, images larger than memory go through. So do 2D images of floats, and slides and
    other tiled TIFFs from `voxring.open_image`, a rectangle of 4096 × 4096 at a time. Volumes of floats are copied.

    Parameters
    ----------
    image : (rows, cols) or (planes, rows, cols) array, or what `voxring.open_image` returns
        Integers of at most 32 bits, or floats, which are put on the grid 2^-fraction_bits first. Of a file, the numbers
        that it stores; without ``exact``, and in 2D, it is read in rectangles where its format allows that.
    window : int or tuple of int
        Size along every axis, or one per axis; odd or even, 1 leaves an axis out.
    border : {"reflect", "mirror", "nearest", "constant", "clip"}
        As in scipy.ndimage; ``clip`` counts only voxels inside the image.
    fill : float
        What lies outside under ``constant``; rounded to an integer, or to the grid for floats.
    fraction_bits : int
        The grid of float images.
    exact : bool
        Return integers instead of floats.
    dtype : {"float64", "float32"}
        Of the means, when ``out`` is not given.
    out : float32 or float64 array of the image's shape, C-contiguous, optional
        Filled and returned.
    device : {"cpu", "cuda", "auto"}
        Where to compute; every device gives the same numbers. "auto" is the CPU for integers beyond 32 bits.
    threads : int, optional
        Threads of this call.

    Returns
    -------
    float array, or (sums, counts)
        The means: exact sums divided in float64, then rounded to ``dtype``. Or, exact, the int64 window sums (times
        2^fraction_bits for floats) and how many voxels each window holds, an int64 array that broadcasts against them.

    Raises
    ------
    ImageError
        The image has no voxels, voxels that are not finite, or sums beyond 63 bits; or ``out`` does not fit it.
    StudyError
        The window does not fit the axes or the border is unknown.
    DeviceError
        ``device="cuda"`` and no GPU answers, or the integers, of floats those on the grid, do not fit 32 bits.

    Examples
    --------
    >>> import numpy as np
    >>> sums, counts = local_mean(np.array([[1, 2, 4]], np.int16), (1, 3), "clip", exact=True)
    >>> sums, counts
    (array([[3, 7, 6]]), array([[2, 3, 2]]))
    """
    if not exact:
        study = _study(window, border, fill, fraction_bits)
        return _map("mean_map", image, study, dtype, out, device, threads)
    if out is not None:
        raise ImageError("out= takes means, exact=True returns integers: leave one of them out")
    if isinstance(image, ImageFile):
        image = image.read().voxels
    voxels, along, outside, _ = _prepared(image, _study(window, border, fill, fraction_bits))
    kernels, voxels = _kernels(device, voxels)
    try:
        sums = kernels.window_sums(voxels, along, border, fill=outside, threads=threads).reshape(image.shape)
    except OverflowError as error:
        raise ImageError(f"{error}: use a smaller window or fewer fraction_bits") from None
    counts = np.full((1,) * image.ndim, prod(along), np.int64)
    if border == "clip":
        planes, rows, columns = kernels.inside_counts(voxels.shape, along)
        counts = (planes[:, None, None] * rows[:, None] * columns).reshape(image.shape)
    return sums, counts


def local_sum(
    image: Array | ImageFile,
    window: Window,
    border: Border = "reflect",
    *,
    fill: float = 0.0,
    fraction_bits: int = 16,
    dtype: Float | Integer = "int64",
    out: Array | None = None,
    device: Device = "cpu",
    threads: int | None = None,
) -> Array:
    """Sum of the window around every voxel, as a map; memory beyond the result is as for `local_mean`.

    Parameters
    ----------
    image, window, border, fill, fraction_bits, device, threads
        As for `local_mean`; ``clip`` sums only voxels inside the image.
    dtype : {"int64", "int32", "float64", "float32"}
        Of the sums, when ``out`` is not given.
    out : array of one of these types and of the image's shape, C-contiguous, optional
        Filled and returned.

    Returns
    -------
    array
        Of integers: the exact sums, times 2^fraction_bits for an image of floats. Of floats: the sums rounded to
        float64 and then to ``dtype``, which is the nearest float to every sum below 2^53 of the image's integers.

    Raises
    ------
    ImageError
        As for `local_mean`; or sums of so many voxels, as large as the image's, could be more than an int32 holds.
        Of an image that is read in rectangles, a part of ``out`` may have been filled.
    StudyError
        The window does not fit the axes or the border is unknown.
    DeviceError
        As for `local_mean`.

    Examples
    --------
    >>> import numpy as np
    >>> local_sum(np.array([[1, 2, 4]], np.int16), (1, 3), "clip", dtype="int32")
    array([[3, 7, 6]], dtype=int32)
    """
    return _map("window_sums", image, _study(window, border, fill, fraction_bits), dtype, out, device, threads)


def local_variance(
    image: Array | ImageFile,
    window: Window,
    border: Border = "reflect",
    *,
    fill: float = 0.0,
    fraction_bits: int = 16,
    dtype: Float = "float64",
    out: Array | None = None,
    device: Device = "cpu",
    threads: int | None = None,
) -> npt.NDArray[np.floating[Any]]:
    """Variance of the window around every voxel, about its local mean and divided by its number of voxels, as a map.

    The numerator |W| Σv² − (Σv)² is an exact integer: no cancellation, and never below 0. Memory beyond the result is
    as for `local_mean`.

    Parameters
    ----------
    image, window, border, fill, fraction_bits, dtype, out, device, threads
        As for `local_mean`.

    Returns
    -------
    float array
        The variances, rounded to float64 and then to ``dtype``.

    Raises
    ------
    ImageError
        As for `local_mean`; or the numerators could leave 63 bits.
    StudyError
        The window does not fit the axes or the border is unknown.
    DeviceError
        As for `local_mean`.

    Examples
    --------
    >>> import numpy as np
    >>> local_variance(np.array([[1, 2, 4]], np.int16), (1, 3), "clip").round(3)
    array([[0.25 , 1.556, 1.   ]])
    """
    return _map("variance_map", image, _study(window, border, fill, fraction_bits), dtype, out, device, threads)


def _map(
    kernel: Kernel,
    image: Array | ImageFile,
    study: Study,
    dtype: Float | Integer,
    out: Array | None,
    device: Device,
    threads: int | None,
) -> Array:
    """Make a map, in rectangles where the image is not to be read, or copied, whole."""
    shape = image.grid.shape if isinstance(image, ImageFile) else image.shape
    into = _volume_out(out, shape, dtype, SUMS if kernel == "window_sums" else FLOATS)
    if isinstance(image, ImageFile) and image.block is not None:
        file, parts = image, rectangles.rectangles(shape, image.block)
        _in_rectangles(kernel, lambda *part: file.read_block(*part).voxels, parts, study, into[0], device, threads)
    elif isinstance(image, ImageFile):
        _fill(kernel, image.read().voxels, study, into, device, threads)
    elif image.ndim == 2 and image.dtype.kind == "f" and image.size > rectangles.SIDE**2:
        array, parts = image, rectangles.rectangles(shape, (1, 1))
        _in_rectangles(kernel, lambda y, x: array[slice(*y), slice(*x)], parts, study, into[0], device, threads)
    else:
        _fill(kernel, image, study, into, device, threads)
    return out if out is not None else into.reshape(shape)


def _in_rectangles(
    kernel: Kernel,
    read: Callable[[Span, Span], Array],
    parts: Iterable[Rectangle],
    study: Study,
    out: Array,
    device: Device,
    threads: int | None,
) -> None:
    """Fill the map of a 2D image part by part, from what windows in each part reach."""
    _, high, wide = study.window.along(2)
    for (top, bottom), (left, right) in parts:
        rows, columns = reach(top, bottom, out.shape[0], high), reach(left, right, out.shape[1], wide)
        part = read(rows, columns)
        made = np.empty((1, *part.shape), out.dtype)
        _fill(kernel, part, study, made, device, threads)
        out[top:bottom, left:right] = made[0, top - rows[0] : bottom - rows[0], left - columns[0] : right - columns[0]]


def _fill(
    kernel: Kernel,
    image: Array,
    study: Study,
    into: Array,
    device: Device,
    threads: int | None,
) -> None:
    voxels, along, outside, unit = _prepared(image, study)
    kernels, voxels = _kernels(device, voxels)
    try:
        make = getattr(kernels, kernel)
        make(voxels, along, study.window.border, fill=outside, out=into, threads=threads)
    except OverflowError as error:
        raise ImageError(f"{error}: use a smaller window or fewer fraction_bits") from None
    if unit != 1 and into.dtype.kind == "f":  # a power of two
        into /= unit ** _POWER[kernel]


def _kernels(device: Device, voxels: Array) -> tuple[Any, Array]:
    """The backend that makes a map, and the voxels as it takes them."""
    voxels, on_gpu = placed(voxels, device)
    if on_gpu:
        from voxring.kernels import cuda

        return cuda, voxels
    from voxring.kernels import cpu  # numba takes a second to import

    return cpu, voxels


def _study(window: Window, border: Border, fill: float, fraction_bits: int) -> Study:
    """What is asked for, checked."""
    return Study.of(
        name="map",
        classes={"all": 1},
        window={"size": window, "border": border, "fill": fill if border == "constant" else 0.0},
        standardise={"fraction_bits": fraction_bits},
        bounds={"intensity": 2**32},
    )


def _prepared(image: Array, study: Study) -> tuple[Array, tuple[int, int, int], int, int]:
    """The image as a volume of integers, its window, the fill in its integers, and how many of them make 1."""
    check_image(image)
    unit = 1
    if image.dtype.kind == "f":
        image, _, _ = on_grid(image, Fraction(1), Fraction(0), study)
        unit = study.unit
    return volume(image), study.window.along(image.ndim), round(Fraction(repr(study.window.fill)) * unit), unit


def _volume_out(out: Array | None, shape: tuple[int, ...], dtype: Float | Integer, kinds: tuple[str, ...]) -> Array:
    """What the kernels fill: three axes."""
    if out is None:
        out = np.empty(shape, dtype)
    if out.shape != shape or out.dtype.name not in kinds or not out.flags.carray:
        raise ImageError(
            f"out: expected a C-contiguous, writeable {' or '.join(kinds)} array of shape {shape}, got {out.dtype}, "
            f"{out.shape}, {'C-contiguous' if out.flags.c_contiguous else 'not C-contiguous'}, "
            f"{'writeable' if out.flags.writeable else 'read-only'}"
        )
    return out.reshape(1, *shape) if len(shape) == 2 else out
