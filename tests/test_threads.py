"""How kernels share the processors: results in order, no waiting for one another, no more threads than processors."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from voxring.kernels.cpu.boxes import PART
from voxring.kernels.cpu.threads import SETTINGS, SMALL, helpers, in_threads, processors, thread_count, threads_here
from voxring.kernels.cpu.tiles import dealt


def test_results_come_in_the_order_of_the_tasks():
    def late(task):
        time.sleep(0.001 * (task % 3))
        return task * task

    assert in_threads(late, range(50), 4) == [task * task for task in range(50)]
    assert in_threads(late, [], 4) == []


@pytest.mark.parametrize("bad", [0, 7, 19])
def test_an_error_of_one_task_reaches_the_caller_once_no_task_runs_any_more(bad):
    running = []

    def work(task):
        running.append(task)
        try:
            time.sleep(0.002)
            if task == bad:
                raise KeyError(task)
        finally:
            running.remove(task)

    with pytest.raises(KeyError, match=str(bad)):
        in_threads(work, range(20), 2)
    assert running == []


def test_callers_never_wait_for_helpers_that_others_keep_busy():
    """Every helper is held; callers, and calls within calls, do their own work."""
    release, held = threading.Event(), threading.Semaphore(0)

    def hold():
        held.release()
        release.wait(60)

    for _ in range(processors()):
        helpers().submit(hold)
    for _ in range(processors()):
        assert held.acquire(timeout=60)
    try:
        inner = lambda task: sum(in_threads(lambda n: n * task, range(5), 3))  # noqa: E731
        with ThreadPoolExecutor(4) as pool:
            outcome = pool.submit(in_threads, inner, range(6), 3)
            assert outcome.result(timeout=30) == [10 * task for task in range(6)]
    finally:
        release.set()


def test_all_callers_together_have_as_many_helpers_as_there_are_processors():
    names = set()

    def work(_):
        names.add(threading.current_thread().name)
        time.sleep(0.001)

    with ThreadPoolExecutor(5, "caller") as pool:
        list(pool.map(lambda _: in_threads(work, range(20), 50), range(5)))
    assert len([name for name in names if not name.startswith("caller")]) <= processors()


def test_a_forked_process_has_helpers_of_its_own():
    script = (
        "import os, time\n"
        "from voxring.kernels.cpu.threads import in_threads\n"
        "def work(task): time.sleep(0.001); return task\n"
        "assert in_threads(work, range(20), 2) == list(range(20))\n"
        "child = os.fork()\n"
        "assert in_threads(work, range(20), 2) == list(range(20))\n"
        "if child: assert os.waitpid(child, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60)


@pytest.fixture
def looks_again():
    """The environment is looked at anew, and what was found in it is forgotten."""
    threads_here.cache_clear()
    yield threads_here.cache_clear
    threads_here.cache_clear()


def test_threads_are_as_asked_or_as_the_environment_says(monkeypatch, looks_again):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    assert thread_count(None, SMALL) == processors() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # as Dask does
    looks_again()
    assert thread_count(None, SMALL) == 5
    monkeypatch.setenv("NUMBA_NUM_THREADS", "3")
    looks_again()
    assert thread_count(None, SMALL) == 3
    assert thread_count(7, SMALL) == 7
    assert thread_count(7, SMALL - 1) == 1


def test_a_forked_worker_takes_the_share_it_is_told():
    """Whatever the process it came from had found. Not a fork of this process, which has sockets' threads."""
    script = (
        "import os\n"
        "from voxring.kernels.cpu.threads import SMALL, thread_count\n"
        "assert thread_count(None, SMALL) == 7\n"
        "os.environ['NUMBA_NUM_THREADS'] = '2'\n"
        "assert thread_count(None, SMALL) == 7\n"
        "child = os.fork()\n"
        "assert thread_count(None, SMALL) == (7 if child else 2)\n"
        "if child: assert os.waitpid(child, 0)[1] == 0\n"
    )
    environment = os.environ | {"NUMBA_NUM_THREADS": "7"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60, env=environment)


UNEVEN = [PART // 10 * 3, PART // 10 * 3, PART // 2, PART // 20 * 9, PART // 10 * 4]
"""Of which the last three end within one stretch of PART voxels."""

LATE = [PART // 10 * 4, PART // 10 * 9, PART // 20 * 3]
"""Of which the last two end within one stretch of PART / 2, and the first of them begins long before it."""


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize(
    "sizes", [[7], [1 << 21] * 50, [1, 1 << 24, 3, 1 << 22] * 9, [PART // 2] * 6, [PART, PART], UNEVEN, LATE]
)
def test_parts_are_dealt_out_whole_in_order_and_in_calls_of_no_more_than_is_proven(sizes, workers):
    parts = np.arange(2 * len(sizes)).reshape(-1, 2)
    calls = dealt(parts, np.array(sizes, np.int64), workers)
    assert np.array_equal(np.concatenate(calls.parts), parts)
    of = [[sizes[place // 2] for place in call[:, 0]] for call in calls.parts]
    assert all(of)
    assert all(sum(call) <= PART or len(call) == 1 for call in of)
    assert calls.workers == (workers if sum(sizes) >= SMALL else 1)
    if workers > 1 and max(sizes) * 8 * workers <= sum(sizes):  # many enough to be shared out
        assert 2 * workers <= len(calls.parts) <= 8 * workers
    if workers == 1 and sum(sizes) <= PART // 2:
        assert len(calls.parts) == 1
