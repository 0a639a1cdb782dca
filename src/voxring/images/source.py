"""Which bytes of which files a result depends on: what a batch's journal compares before it takes a result again."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from voxring.images.rectangles import Span

Identity = tuple[int, int, int, int]
"""Inode, size, time of the last change to the content, and to the file, in nanoseconds."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file as it was when a reader opened it, and the bytes of it that were used, as (start, stop).

    ``content`` is their hash, where it was made when they were read (`hashing`).
    """

    path: Path
    identity: Identity
    ranges: tuple[tuple[int, int], ...]
    content: str = ""

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


class Hash(Protocol):
    """What bytes are put into, one piece after the other."""

    def update(self, data: memoryview, /) -> None:
        """Take a piece."""

    def finalize(self) -> bytes:
        """Return the hash of all."""


_here = threading.local()


@contextmanager
def hashing(begin: Callable[[], Hash]) -> Iterator[None]:
    """Have this thread hash what it reads of compressed files, while it is in the processor's cache."""
    _here.begin = begin
    try:
        yield
    finally:
        _here.begin = None


class Watched:
    """An open file, from where it stands, and the hash of what is read of it if this thread is `hashing`."""

    def __init__(self, file: BinaryIO) -> None:
        begin: Callable[[], Hash] | None = getattr(_here, "begin", None)
        self._file, self._hash = file, None if begin is None else begin()

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes."""
        piece = self._file.read(size)
        if self._hash is not None:
            self._hash.update(memoryview(piece))
        return piece

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the start of a buffer."""
        count: int = self._file.readinto(buffer)  # type: ignore[attr-defined]  # typing's BinaryIO lacks it
        if self._hash is not None:
            self._hash.update(memoryview(buffer)[:count])
        return count

    def end(self) -> str:
        """Return the hash of all that was read, "" where none is made."""
        return "" if self._hash is None else self._hash.finalize().hex()


_GAP = 1 << 20


def together(sources: Iterable[Source]) -> tuple[Source, ...]:
    """Return one source for each file that was read in parts.

    Ranges that touch, or have little between them, become one: a journal is to hold a line, not a list of tiles.
    """
    ranges: dict[tuple[Path, Identity], list[tuple[int, int]]] = {}
    for source in sources:
        ranges.setdefault((source.path, source.identity), []).extend(source.ranges)
    return tuple(Source(path, identity, _joined(used)) for (path, identity), used in ranges.items())


def _joined(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if joined and start <= joined[-1][1] + _GAP:
            joined[-1] = joined[-1][0], max(joined[-1][1], stop)
        else:
            joined.append((start, stop))
    return tuple(joined)


class InFile(Protocol):
    """Voxels that stand in a file, behind ``offset`` bytes of it, and are not read yet."""

    path: Path
    offset: int
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    def read(self, first: int, stop: int, /) -> tuple[NDArray[np.generic], Source]:
        """Return planes ``first`` to ``stop``, along the first axis, and the bytes that they come from."""


@runtime_checkable
class InBlocks(InFile, Protocol):
    """Voxels of a 2D image, of which any rectangle can be read alone.

    ``block`` is the rows and columns that are unpacked at once, ``headers`` the bytes that say where they stand.
    """

    block: tuple[int, int]
    headers: tuple[Span, ...]

    def read_block(self, rows: Span, columns: Span, /) -> tuple[NDArray[np.generic], Source]:
        """Return these rows and columns, and the bytes that they come from."""
