"""The one way in which kernels are compiled, typed for mypy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = tuple[Array, Array, Array]
"""One array per axis: planes, rows, columns."""

Shape = tuple[int, int, int]
Number = Any  # an integer of the machine, of whatever width
Kernel = TypeVar("Kernel", bound=Callable[..., Any])

OPTIONS: dict[str, Any] = {"nogil": True, "boundscheck": False, "error_model": "numpy"}


def jit(kernel: Kernel) -> Kernel:
    """Compile a kernel on its first call, without the GIL, and keep the machine code on disk.

    Never ``parallel=True``: numba's workqueue layer aborts when two threads enter it. Threads come from outside.
    """
    try:
        return cast(Kernel, numba.njit(cache=True, **OPTIONS)(kernel))
    except RuntimeError:  # no writable place for a cache, as in a read-only container
        return cast(Kernel, numba.njit(**OPTIONS)(kernel))
