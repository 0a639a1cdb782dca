"""The same tasks on a Dask cluster: one that runs already, one made on this machine, or one made of Slurm jobs.

Workers read the files of the manifest by their absolute paths, so they need the same file system and the same voxring.
Links to them are as the cluster's own configuration has them (``distributed.comm.tls``, ``require-encryption``).
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from voxring.batch.manifest import Row
from voxring.batch.pool import ATTEMPTS, Done
from voxring.batch.row import Task, answer
from voxring.errors import DeviceError, ImageError

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
        from distributed import Client, as_completed
    except ImportError:
        raise DeviceError(
            "--scheduler needs Dask: install voxring[cluster], on the workers too, or use --workers"
        ) from None

    with ExitStack() as stack:
        stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": ATTEMPTS - 1}))
        try:
            client = stack.enter_context(Client(*_cluster(scheduler, workers, task, stack), **_named(scheduler)))
            client.wait_for_workers(1, timeout=_WAIT)
        except (OSError, TimeoutError, ValueError, ImportError) as error:
            raise DeviceError(f"the cluster {scheduler} cannot be used: {error}") from error
        away = replace(task, threads=task.threads or _threads_each(scheduler, workers))
        queue = iter(todo)
        numbers: dict[str, int] = {}

        def submit() -> Any:
            """Hand out the next row; None when there are no more."""
            for number in queue:
                future = client.submit(answer, away, _absolute(rows[number]), pure=False)
                numbers[future.key] = number
                return future
            return None

        first = [submit() for _ in range(_AHEAD * max(1, sum(client.nthreads().values())))]
        running = as_completed([future for future in first if future is not None])
        for future in running:
            number = numbers.pop(future.key)
            if future.status == "finished":
                came = future.result()
            elif future.status == "error" and type(future.exception()).__name__ == "KilledWorker":
                came = ImageError(
                    f"{rows[number].image.name}: {ATTEMPTS} workers were lost while they computed it: is there enough "
                    "memory?"
                )
            elif future.status == "error":
                raise future.exception()
            else:
                raise DeviceError(f"the cluster {scheduler} lost a task ({future.status}): run again to go on")
            future.release()
            following = submit()
            if following is not None:
                running.add(following)
            yield number, came


_WAIT = 120


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
    jobs.scale(workers)
    return (jobs,)


def _named(scheduler: str) -> dict[str, str]:
    is_file = scheduler not in ("local", "slurm") and Path(scheduler).is_file()
    return {"scheduler_file": scheduler} if is_file else {}


def _threads_each(scheduler: str, workers: int) -> int | None:
    """Threads of each worker on this machine; elsewhere it is for the worker's environment to say."""
    return max(1, len(os.sched_getaffinity(0)) // workers) if scheduler == "local" else None


def _absolute(row: Row) -> Row:
    return replace(row, image=row.image.absolute(), ground_truth=row.ground_truth.absolute())
