"""Where to compute: the processor, a GPU, or whichever is there."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from voxring.errors import DeviceError

Device = Literal["auto", "cpu", "cuda"]

_TAKEN: ContextVar[set[str] | None] = ContextVar("_TAKEN", default=None)


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
    """What ``device`` means here and now, in words, such as "CPU" or the name of the GPU that answers."""
    if not takes_gpu(device):
        return "CPU"
    from voxring.kernels import cuda

    return f"GPU ({cuda.name()})"


def promise(device: Device) -> str:
    """What will compute, in words, before anything was computed; `taken` says what did."""
    name = device_name(device)
    return name if device != "auto" or name == "CPU" else f"{name}, and on the CPU what that has no kernels for"


def chosen(device: Device, *, able: bool) -> bool:
    """Whether a GPU computes what is at hand, which is noted for `taken`.

    Parameters
    ----------
    able : bool
        Whether the GPU has kernels for it. Where it has none, "auto" is the CPU, and "cuda" an error of the backend.
    """
    on_gpu = takes_gpu(device) and (able or device == "cuda")
    note(device_name("cuda" if on_gpu else "cpu"))
    return on_gpu


def placed(voxels: npt.NDArray[Any], device: Device) -> tuple[npt.NDArray[Any], bool]:
    """Integers as what computes takes them, and whether that is a GPU, which is noted for `taken`.

    A GPU has kernels for 32 bits at most. Integers of 64, as floats become on their grid, go there as int32 if all of
    them fit.
    """
    if takes_gpu(device) and voxels.dtype.itemsize == 8 and voxels.size > 0:
        ends = np.iinfo(np.int32)
        if ends.min <= voxels.min() and voxels.max() <= ends.max:
            voxels = voxels.astype(np.int32)
    return voxels, chosen(device, able=voxels.dtype.itemsize < 8)


@contextmanager
def taken() -> Iterator[set[str]]:
    """Collect what computes, in words as of `device_name`, for this thread while it is entered.

    That is how to know where ``device="auto"`` went: to the CPU also where a GPU answers, but has no kernels for an
    image.

    Examples
    --------
    >>> import numpy as np
    >>> from voxring import local_mean
    >>> with taken() as devices:
    ...     mean = local_mean(np.array([[1, 2, 4]], np.int16), (1, 3), device="cpu")
    >>> in_words(devices)
    'CPU'
    """
    devices: set[str] = set()
    before = _TAKEN.set(devices)
    try:
        yield devices
    finally:
        _TAKEN.reset(before)


def note(*devices: str) -> None:
    """Note what computes for who asks with `taken`."""
    names = _TAKEN.get()
    if names is not None:
        names.update(devices)


def in_words(devices: Collection[str]) -> str:
    """What `taken` collected, as part of a sentence."""
    return " and ".join(sorted(devices))
