"""Which bytes of which files a result depends on: what a batch's journal compares before it takes a result again."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Identity = tuple[int, int, int, int]
"""Inode, size, time of the last change to the content, and to the file, in nanoseconds."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file as it was when a reader opened it, and the bytes of it that were used, as (start, stop)."""

    path: Path
    identity: Identity
    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def whole(cls, path: Path, identity: Identity) -> "Source":
        """All bytes of a file."""
        return cls(path, identity, ((0, identity[1]),))


def identify(path: str | os.PathLike[str]) -> Identity:
    """Return what changes when a file is written to or replaced.

    The device is left out, since it has other numbers on other machines, and the name, since a renamed file is the
    same; the time of the last change to the file, unlike that to its content, cannot be set back.
    """
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class InFile(Protocol):
    """Voxels that stand in a file, behind ``offset`` bytes of it, and are not read yet."""

    path: Path
    offset: int
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    def read(self, first: int, stop: int, /) -> tuple[NDArray[np.generic], Source]:
        """Return planes ``first`` to ``stop``, along the first axis, and the bytes that they come from."""
