"""Machine code on disk, which processes that start together share.

Of the processes that need a kernel, one compiles it; the others wait, and load what it made. Left to itself, numba has
each of them compile. And where two save code of one kernel for different types at the same time, it may keep the one's
code under the other's types: both look which file is free, and take the same one. Here a file's name follows from what
is in it, so that the worst that can happen is that something is compiled again.
"""

from __future__ import annotations

import fcntl
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.runtime.nrt import rtsys

SOURCES = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()
"""What the machine code was made of. A kernel holds the code of those it calls, but numba looks only at the file that
a kernel stands in: left to itself, it would run old code after a change in another file."""

PATIENCE = 60.0
"""Seconds to wait for another process before the kernel is compiled here after all: it may hang."""


class Files(IndexDataCacheFile):
    """The files of one kernel: one for each combination of types, and an index of them."""

    def __init__(self, folder: str, base: str) -> None:
        super().__init__(cache_path=folder, filename_base=base, source_stamp=SOURCES)
        self.folder, self.base = Path(folder), base

    def save(self, key: Any, data: Any) -> None:
        """Keep the code ``data`` under ``key``, the types and the processor. What another version left goes."""
        made_of = repr((SOURCES, self._version, key))
        name = f"{self.base}.{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.nbc"
        index = self._load_index()
        if not index:
            for old in self.folder.glob(f"{self.base}.*.nbc"):
                old.unlink(missing_ok=True)
        self._save_data(name, data)
        self._save_index(index | {key: name})


class Kept(FunctionCache):
    """The code of one kernel. numba asks for it under a lock of its own, and saves what it found missing."""

    def __init__(self, kernel: Callable[..., Any]) -> None:
        super().__init__(kernel)
        self._cache_file = Files(self.cache_path, self._impl.filename_base)
        self._turn: TextIO | None = None

    def load_overload(self, types: Any, target: Any) -> Any:
        """The code for these types. None if it is to be compiled here, and then no other process compiles it now."""
        found = self._look_up(types, target)
        if found is None and self._turn is None:
            self._turn = turn(Path(self.cache_path) / f"{self._impl.filename_base}.lock")
            found = self._look_up(types, target)  # what another has compiled meanwhile
            if found is not None:
                self._let_others()
        return found

    def _look_up(self, types: Any, target: Any) -> Any:
        """What numba's own does, without importing first all that it could need to compile, and scipy with it: of
        0.3 s or more, code that is there needs no more than the counting of references. To compile, numba imports it.
        """
        rtsys.initialize(target)
        return self._load_overload(types, target)

    def save_overload(self, types: Any, code: Any) -> None:
        """Keep code that was compiled here."""
        super().save_overload(types, code)
        self._let_others()

    def _let_others(self) -> None:
        if self._turn is not None:
            fcntl.flock(self._turn, fcntl.LOCK_UN)  # a process forked meanwhile would hold it on
            self._turn.close()
            self._turn = None


def turn(path: Path) -> TextIO | None:
    """Wait until nobody else holds the lock ``path``, and take it. None where there are no locks, or it never ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError:
        return None
    until = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() < until:
                time.sleep(0.01)
                continue
        except OSError:
            pass
        lock.close()
        return None
