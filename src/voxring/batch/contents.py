"""What a journal knows of files: which they were, and what stood in them.

A file is known again at a glance by its inode, size and times, as long as it had been left alone for a while when it
was read; otherwise by the bytes that the result depends on. Those of compressed voxels are hashed as they are read, the
others when they have just been and lie in the system's page cache, so the disk is read once. The hash is Poly1305 under
a random key that stays in the journal:
two contents of at most L bytes have the same one with a probability below L / 2^103, whatever they are, since nobody
who makes files knows the key; and it costs a quarter of SHA-256 (5.8 against 1.5 GB/s on one core).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.poly1305 import Poly1305

from voxring.images import Source, hashing, identify

Key = bytes
Known = dict[tuple[Path, tuple[tuple[int, int], ...]], str]
_CHUNK = 1 << 18  # stays in the cache
SETTLED = 2_000_000_000
"""Nanoseconds that a file must have been left alone: a clock may tick once in two seconds (FAT), and a file that is
written to twice within a tick looks unchanged."""


class Recorded(msgspec.Struct, frozen=True, array_like=True):
    """A file that a result depends on; ``name`` is seen from the file in the manifest, "" for that file itself."""

    name: str
    identity: tuple[int, int, int, int]
    settled: bool
    ranges: tuple[tuple[int, int], ...]
    content: str


def watching(key: Key | None) -> AbstractContextManager[None]:
    """Have compressed files hashed while they are read, if there is a journal."""
    return nullcontext() if key is None else hashing(lambda: Poly1305(key))


def record(main: Path, sources: Iterable[Source], key: Key) -> tuple[Recorded, ...]:
    """Note the hash of what was read of the files of one image."""
    now = time.time_ns()
    return tuple(
        Recorded(
            name="" if source.path == main else _relative(source.path, main.parent),
            identity=source.identity,
            settled=max(source.identity[2:]) + SETTLED < now,
            ranges=source.ranges,
            content=source.content or digest(source.path, source.ranges, key),
        )
        for source in sources
    )


def _relative(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def digest(path: Path, ranges: tuple[tuple[int, int], ...], key: Key) -> str:
    """Hash these bytes of a file; where they stand, and its size, are recorded beside it.

    A source without ranges is a folder, of which the names in it count.
    """
    state = Poly1305(key)
    if not ranges:
        state.update("\n".join(sorted(os.listdir(path))).encode(errors="surrogateescape"))
        return state.finalize().hex()
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        for start, stop in ranges:
            file.seek(start)
            left = stop - start
            while left and (count := file.readinto(buffer[: min(left, _CHUNK)])):
                state.update(buffer[:count])
                left -= count
    return state.finalize().hex()


def same_at_a_glance(files: Iterable[Recorded], main: Path) -> bool:
    """Whether none of the files has been touched since, and all were at rest then."""
    try:
        return all(file.settled and identify(_place(file, main)) == file.identity for file in files)
    except OSError:
        return False


def same_content(files: Iterable[Recorded], main: Path, key: Key, known: Known) -> bool:
    """Whether the same bytes stand where they stood; ``known`` are hashes already made of the files of one row."""
    try:
        places = [(file, _place(file, main)) for file in files]
        return all(identify(place)[1] == file.identity[1] for file, place in places) and all(
            _digest_once(place, file.ranges, key, known) == file.content for file, place in places
        )
    except OSError:
        return False


def _digest_once(path: Path, ranges: tuple[tuple[int, int], ...], key: Key, known: Known) -> str:
    if (path, ranges) not in known:
        known[path, ranges] = digest(path, ranges, key)
    return known[path, ranges]


def _place(file: Recorded, main: Path) -> Path:
    return main.parent / file.name if file.name else main
