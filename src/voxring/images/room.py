"""Memory that the volumes of a batch use one after the other.

A fresh volume costs a page fault for every 4 KiB or 2 MiB of it, which takes time; and a heap in
which volumes of many sizes come and go grows beyond what they need.
"""

from __future__ import annotations

import math
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

_SMALL = 1 << 20  # left to the heap
_here = threading.local()


class Room:
    """Blocks of memory, in the order in which they are asked for; each grows to the largest volume that it has held."""

    def __init__(self) -> None:
        self._blocks: list[mmap.mmap] = []
        self._taken = 0

    @contextmanager
    def used(self) -> Iterator[None]:
        """Have this thread's volumes stand in this room: those of the last time are overwritten."""
        self._taken = 0
        _here.room = self
        try:
            yield
        finally:
            _here.room = None

    def take(self, length: int) -> mmap.mmap:
        """Return the next block, of at least so many bytes."""
        at = self._taken
        self._taken += 1
        if at == len(self._blocks):
            self._blocks.append(_block(length))
        elif len(self._blocks[at]) < length:
            self._blocks[at] = _block(length)
        return self._blocks[at]


def empty(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    """An array to be filled: in the room that is used, if there is one."""
    length = math.prod(shape) * dtype.itemsize
    room: Room | None = getattr(_here, "room", None)
    if room is None or length < _SMALL:
        return np.empty(shape, dtype)
    return np.ndarray(shape, dtype, room.take(length))


def _block(length: int) -> mmap.mmap:
    block = mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    return block
