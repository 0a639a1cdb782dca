"""The one way in which kernels are compiled, typed for mypy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar, cast

import numba
import numpy.typing as npt

from .kept import Kept

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
    compiled = numba.njit(**OPTIONS)(kernel)
    with suppress(RuntimeError):  # no writable place, as in a read-only container
        compiled._cache = Kept(kernel)  # as numba's cache=True sets its own
    return cast(Kernel, compiled)


def compiled(kernel: Callable[..., Any], *arguments: object) -> Callable[..., Any]:
    """The machine code of a `jit` kernel for arguments like these, which are not looked at again when it is called.

    An array that may not be written, such as a file mapped into memory, counts as one that may: a kernel that only
    reads it would be compiled twice otherwise.
    """
    types = [cast(Any, numba).typeof(argument) for argument in arguments]
    types = [kind.copy(readonly=False) if isinstance(kind, numba.types.Array) else kind for kind in types]
    code: Callable[..., Any] = cast(Any, kernel).compile(tuple(types))
    return code


WITHOUT_WRAPPERS: dict[str, Any] = OPTIONS | {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def inner(kernel: Kernel) -> Kernel:
    """Compile a kernel that only other kernels call: without wrappers for Python and C, which take a third of the time.

    Python must not call it: that ends the process. The code on disk is that of the kernels that do.
    """
    return cast(Kernel, numba.njit(**WITHOUT_WRAPPERS)(kernel))


def merged(kernel: Kernel) -> Kernel:
    """An `inner` kernel whose machine code goes into those that call it: a call with its dozens of numbers for each row
    of an image takes a third of the time of short rows. Compiling takes a fifth longer.
    """
    return cast(Kernel, numba.njit(**WITHOUT_WRAPPERS, forceinline=True)(kernel))


def inlined(kernel: Kernel) -> Kernel:
    """A part of the kernels that call it: typed and compiled with them, once. A kernel called by a kernel is optimised
    with each of the two again, which for a deep chain of calls is most of the time that compiling takes.
    """
    return cast(Kernel, numba.njit(inline="always", **OPTIONS)(kernel))
