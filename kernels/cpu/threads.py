"""Kernels side by side: they drop the GIL, so plain threads do."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

SMALL = 1 << 20
"""Images of fewer voxels are done before a second thread has started."""


def thread_count(threads: int | None, voxels: int) -> int:
    """How many threads to use: as asked, or NUMBA_NUM_THREADS, or as many as this process may run on."""
    if threads is not None and threads < 1:
        raise ValueError(f"threads: expected at least 1, got {threads}")
    if voxels < SMALL:
        return 1
    if threads is None:
        setting = os.environ.get("NUMBA_NUM_THREADS", "")
        threads = int(setting) if setting else len(os.sched_getaffinity(0))
    return threads


def in_threads(work: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> list[Result]:
    """The results of ``work`` on each task, in order."""
    if workers == 1 or len(tasks) == 1:
        return [work(task) for task in tasks]
    with ThreadPoolExecutor(min(workers, len(tasks))) as pool:
        return list(pool.map(work, tasks))
