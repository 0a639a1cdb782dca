"""Where to compute: the processor, a GPU, or whichever is there."""

from __future__ import annotations

from typing import Literal, get_args

from voxring.errors import DeviceError

Device = Literal["auto", "cpu", "cuda"]


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
