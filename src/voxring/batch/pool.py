"""Workers on one machine: processes, each with its share of the processors; or threads of this one, for a GPU.

A process of its own for each worker would hold a context of hundreds of megabytes on every GPU, and these would take
turns there; threads share the GPU's lanes (`voxring.kernels.cuda.device`), and reading drops the GIL.

The pools of the standard library lose a run when a worker is killed. Here its row is given to a new worker; a row that
has cost several is reported as bad, since one that does not fit in memory takes down every worker that tries it.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from voxring import processes
from voxring.batch.manifest import Row
from voxring.batch.row import Answer, Task, answer, read_ahead
from voxring.errors import ImageError, VoxringError
from voxring.images import Room

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

ATTEMPTS = 3
"""Workers that one row may cost."""
_STARTS = 3  # workers in a row that may end before they have begun

Done = tuple[int, Answer | VoxringError]


def in_this_process(task: Task, rows: Sequence[Row], todo: Sequence[int]) -> Generator[Done]:
    """Reduce the rows ``todo``, one after the other."""
    room = Room()
    for at, number in enumerate(todo):
        if at + 1 < len(todo):
            read_ahead(rows[todo[at + 1]])
        yield number, answer(task, rows[number], room)


def in_threads(task: Task, rows: Sequence[Row], todo: Sequence[int], workers: int) -> Generator[Done]:
    """Reduce the rows ``todo`` in threads of this process, and yield each as it is done.

    So one image is read, or laid out for the GPU, while others are computed there. Closing the iterator waits for the
    rows that are under way.
    """
    from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

    rooms: SimpleQueue[Room] = SimpleQueue()
    for _ in range(workers):
        rooms.put(Room())

    def one(number: int) -> Done:
        room = rooms.get()
        try:
            return number, answer(task, rows[number], room)
        finally:
            rooms.put(room)

    waiting = deque(todo)
    with ThreadPoolExecutor(workers, "voxring worker") as threads:
        running = {threads.submit(one, waiting.popleft()) for _ in range(min(workers, len(waiting)))}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                if waiting:
                    running.add(threads.submit(one, waiting.popleft()))
                if waiting:
                    read_ahead(rows[waiting[0]])
                yield future.result()


def in_processes(task: Task, rows: Sequence[Row], todo: Sequence[int], workers: int) -> Generator[Done]:
    """Reduce the rows ``todo``, and yield each as it is done; closing the iterator ends the workers.

    Raises
    ------
    VoxringError
        Workers end before they have begun.
    """
    from multiprocessing.connection import wait

    threads = task.threads or max(1, len(os.sched_getaffinity(0)) // workers)
    waiting = deque(todo)
    attempts: dict[int, int] = {}
    crew = [_Worker(task, threads) for _ in range(min(workers, len(todo)))]
    failed = 0
    try:
        for worker in crew:
            worker.start()
        while waiting or any(worker.row is not None for worker in crew):
            for pipe in wait([worker.pipe for worker in crew]):
                worker = next(one for one in crew if one.pipe is pipe)
                try:
                    came: Answer | VoxringError | None = worker.pipe.recv()
                except (EOFError, OSError):
                    number = worker.row
                    failed = failed + 1 if number is None and not worker.ready else 0
                    if failed == _STARTS:
                        raise VoxringError(
                            f"{_STARTS} workers ended before they had begun: run with --workers 1 to see why"
                        ) from None
                    if number is not None:
                        attempts[number] = attempts.get(number, 0) + 1
                        if attempts[number] < ATTEMPTS:
                            waiting.append(number)
                        else:
                            yield number, _too_many_deaths(rows[number])
                    worker.end()
                    worker.start()
                    continue
                if worker.row is not None and came is not None:
                    number, worker.row = worker.row, None
                    worker.give(waiting, rows)
                    yield number, came
                else:
                    worker.ready = True
                    failed = 0
                    worker.give(waiting, rows)
    finally:
        for worker in crew:
            worker.end()


def _too_many_deaths(row: Row) -> ImageError:
    return ImageError(
        f"{row.image.name}: {ATTEMPTS} workers were killed while they computed it: is there enough memory? Use fewer "
        "--workers"
    )


@dataclass(slots=True)
class _Worker:
    """A process, the pipe to it, and the row it is at."""

    task: Task
    threads: int
    row: int | None = None
    ready: bool = False
    pipe: Connection = field(init=False)
    process: Any = field(init=False, default=None)

    def start(self) -> None:
        import multiprocessing

        # spawn: a forked child would have half of the threads that numba and CUDA believe in.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.row, self.ready = None, False
        self.process = context.Process(
            target=_work, args=(theirs, self.task, self.threads), name="voxring worker", daemon=True
        )
        # Ctrl-C reaches all processes of a terminal: workers leave it to this one, from their first instruction on.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            processes.start(self.process)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def give(self, waiting: deque[int], rows: Sequence[Row]) -> None:
        """Give it the next row; the files of the one after are read meanwhile."""
        if not waiting:
            return
        self.row = waiting.popleft()
        with suppress(OSError):  # it has died, which its pipe says too
            self.pipe.send(rows[self.row])
        if waiting:
            read_ahead(rows[waiting[0]])

    def end(self) -> None:
        if self.process is None:
            return
        self.process.kill()  # it has nothing to put away
        self.process.join()
        self.process.close()
        self.process = None
        self.pipe.close()


def _work(pipe: Connection, task: Task, threads: int) -> None:
    """Be a worker: say that it is there, then answer each row, until the pipe is closed."""
    os.environ["NUMBA_NUM_THREADS"] = str(threads)
    room = Room()
    try:
        pipe.send(None)
        while True:
            pipe.send(answer(task, pipe.recv(), room))
    except (EOFError, OSError):
        return  # the batch has ended
