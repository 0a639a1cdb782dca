"""The same tasks on a Dask cluster: one that runs already, one made on this machine, or one made of Slurm jobs.

Workers read the files of the manifest by their absolute paths, so they need the same file system and the same voxring.
Links to them are as the cluster's own configuration has them (``distributed.comm.tls``, ``require-encryption``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from voxring.batch.manifest import Row
from voxring.batch.pool import ATTEMPTS, Done
from voxring.batch.row import Answer, Task, answer
from voxring.errors import DeviceError, ImageError, VoxringError

_AHEAD = 2  # tasks for each thread of the cluster: one runs, one is on its way


def in_cluster(task: Task, rows: Sequence[Row], todo: Sequence[int], scheduler: str, workers: int) -> Generator[Done]:
    """Reduce the rows ``todo`` on a cluster, and yield each as it is done.

    Parameters
    ----------
    scheduler : str
        An address (``tcp://HOST:PORT``, ``tls://HOST:PORT``), a scheduler file, ``local`` or ``slurm``.
    workers : int
        How many to start for ``local`` and ``slurm``.

    Raises
    ------
    DeviceError
        Dask is not installed, or the cluster cannot be reached or has gone.
    """
    try:
        import dask
        from distributed import Client, KilledWorker, as_completed
    except ImportError:
        raise DeviceError(
            "--scheduler needs Dask: install voxring[cluster], on the workers too, or use --workers"
        ) from None

    with ExitStack() as stack:
        settings = {
            "distributed.scheduler.allowed-failures": ATTEMPTS - 1,
            # Else a cluster made here gives a worker up after 15 s; on a busy machine its successor takes longer.
            "distributed.deploy.lost-worker-timeout": f"{_WAIT} s",
        }
        stack.enter_context(dask.config.set(settings))
        try:
            client = stack.enter_context(Client(*_cluster(scheduler, workers, task, stack), **_named(scheduler)))
            client.wait_for_workers(1, timeout=_WAIT)
        except (OSError, TimeoutError, ValueError, ImportError) as error:
            raise DeviceError(f"the cluster {scheduler} cannot be used: {error}") from error
        away = replace(task, threads=task.threads or _threads_each(scheduler, workers))

        def submit(number: int) -> Any:
            return client.submit(answer, away, _absolute(rows[number]), pure=False)

        def came_of(future: Any) -> Answer | VoxringError | None:
            """What a task gave; None when the workers that had it, or what it gave, were lost."""
            try:
                result: Answer | VoxringError = future.result(timeout=_FETCH)
                return result
            except (KilledWorker, TimeoutError):  # a result that went with its worker may never be made again
                return None
            except CancelledError:
                raise DeviceError(f"the cluster {scheduler} has gone: run again to go on") from None

        queue = iter(todo)
        ahead = _AHEAD * max(1, sum(client.nthreads().values()))
        numbers = {submit(number): number for number in islice(queue, ahead)}
        running = as_completed(list(numbers))
        lost = []
        while not running.is_empty():
            future = _next_of(running, client, scheduler)
            number, came = numbers.pop(future), came_of(future)
            for following in islice(queue, 1):
                numbers[submit(following)] = following
                running.add(next(reversed(numbers)))
            if came is None:
                lost.append(number)
            else:
                yield number, came
        # A row is lost with the workers that other rows have killed, if it stood next to these: now each is alone.
        for number in lost:
            alone = submit(number)
            _next_of(as_completed([alone]), client, scheduler)
            yield number, came_of(alone) or _too_many_deaths(rows[number])


def _next_of(running: Any, client: Any, scheduler: str) -> Any:
    """Wait for the next task that is done; raise when for long there is no worker that could do one."""
    since = looked = time.monotonic()
    while not running.has_ready():
        time.sleep(_TICK)
        now = time.monotonic()
        if now - looked < _LOOK:
            continue
        looked = now
        if client.nthreads():
            since = now
        elif now - since > _WAIT:
            raise DeviceError(
                f"the cluster {scheduler} has had no worker for {_WAIT} s: see why its workers end, and run again to "
                "go on"
            )
    return next(running)


def _too_many_deaths(row: Row) -> ImageError:
    return ImageError(
        f"{row.image.name}: {ATTEMPTS} workers were lost while they computed it alone: is there enough memory?"
    )


_WAIT = 120  # seconds until a worker is there: Slurm queues are for longer, and then for another run
_LOOK = 5.0  # seconds between looks at the workers
_TICK = 0.02  # and at what is done
_FETCH = 60  # seconds for a few hundred bytes


def _cluster(scheduler: str, workers: int, task: Task, stack: ExitStack) -> tuple[Any, ...]:
    """What a client connects to, made here for ``local`` and ``slurm``."""
    import dask

    if scheduler not in ("local", "slurm"):
        return () if Path(scheduler).is_file() else (scheduler,)
    # Not set by Dask itself, which knows OMP_NUM_THREADS; numba reads it when it is imported.
    name = "distributed.nanny.pre-spawn-environ"
    threads = str(task.threads or _threads_each(scheduler, workers) or 1)
    stack.enter_context(dask.config.set({name: {**dask.config.get(name, {}), "NUMBA_NUM_THREADS": threads}}))
    if scheduler == "local":
        from distributed import LocalCluster

        return (stack.enter_context(LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)),)
    from dask_jobqueue import SLURMCluster  # takes memory, queue and time from its own configuration

    jobs = stack.enter_context(SLURMCluster())
    jobs.scale(jobs=workers)  # a job may have several workers, as the configuration has it
    return (jobs,)


def _named(scheduler: str) -> dict[str, str]:
    is_file = scheduler not in ("local", "slurm") and Path(scheduler).is_file()
    return {"scheduler_file": scheduler} if is_file else {}


def _threads_each(scheduler: str, workers: int) -> int | None:
    """Threads of each worker on this machine; elsewhere it is for the worker's environment to say."""
    return max(1, len(os.sched_getaffinity(0)) // workers) if scheduler == "local" else None


def _absolute(row: Row) -> Row:
    return replace(row, image=row.image.absolute(), ground_truth=row.ground_truth.absolute())
