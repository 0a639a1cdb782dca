"""Kernels side by side: they drop the GIL, so plain threads do.

However many callers a process has (a Dask scheduler, a pool of threads), all their helpers together are no more than
its processors; worker processes are told their share in the environment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

SMALL = 1 << 19
"""Images of fewer voxels are done on one thread. A slice of 512 x 512 takes 0.1 ms: there is nothing to be gained by
waking another thread, and on a busy machine it comes late."""

SETTINGS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS")  # the second is what Dask sets in its worker processes


def thread_count(threads: int | None, voxels: int) -> int:
    """How many threads to use: as asked, or as `threads_here` has it."""
    if threads is not None and threads < 1:
        raise ValueError(f"threads: expected at least 1, got {threads}")
    if voxels < SMALL:
        return 1
    return threads or threads_here()


@cache
def threads_here() -> int:
    """How many threads this process may use: as set in its environment, or as many as it has processors.

    Looked up once, since that takes 3 µs, and for each of thousands of slices; a forked process looks again.
    """
    set_to = next((int(value) for name in SETTINGS if (value := os.environ.get(name, "")).isdecimal()), 0)
    return set_to or processors()


def processors() -> int:
    """How many processors this process may run on."""
    return len(os.sched_getaffinity(0))


@cache
def helpers() -> ThreadPoolExecutor:
    """Threads kept from call to call. They are made when first needed, and a forked process makes its own."""
    return ThreadPoolExecutor(processors(), "voxring")


os.register_at_fork(after_in_child=helpers.cache_clear)
os.register_at_fork(after_in_child=threads_here.cache_clear)


def in_threads(work: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> list[Result]:
    """The results of ``work`` on each task, in order.

    The caller works too: where it only waited, a system woke two threads on its one processor and left the other idle
    for milliseconds. It needs no helper to come: what no helper has taken up when the tasks are done is called off.
    """
    if workers == 1 or len(tasks) == 1:
        return [work(task) for task in tasks]
    results: dict[int, Result] = {}
    todo = enumerate(tasks)  # each step of it is one under the GIL

    def take() -> None:
        for number, task in todo:
            results[number] = work(task)

    others = [helpers().submit(take) for _ in range(min(workers, len(tasks)) - 1)]
    try:
        take()
    finally:
        started = [other for other in others if not other.cancel()]
        wait(started)
    for other in started:
        other.result()
    return [results[number] for number in range(len(tasks))]
