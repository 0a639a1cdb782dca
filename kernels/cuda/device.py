"""Carrying launch plans out with CuPy, the only module that imports it.

Each device has LANES lanes: a stream, and the pinned memory that parts of images are laid out in. A part of an image is
a task: a thread takes the lane that has been free the longest, lays the part out, copies and computes it, fetches what
came of it, and leaves the lane. Callers hold tasks and no lanes, so they need not know of each other; and parts of one
image, or of several that threads work at, are laid out and copied while others are computed, over all devices in turn.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache, partial
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

import numpy as np

from voxring.errors import DeviceError
from voxring.kernels import Reduction

from .plans import (
    MOST_CLASSES,
    Array,
    Launch,
    Plan,
    Shape,
    What,
    boxes,
    plan_for,
    reductions,
    source_of,
    stage_image,
    stage_numbers,
)

T = TypeVar("T")

OLDEST = 75
"""Compute capability, times ten, of the oldest devices that the kernels are compiled for."""

LANES = 2
"""Of each device: one is filled while the other computes."""

SHARE = 0.4
"""Of a device's free memory, what one part may take: as many are there at a time as lanes."""

MOST_BYTES = 256 << 20
"""Of a part of some rows: large images are cut even where they fit, so that one part is copied while another is
computed, and that pinned memory, of which each lane keeps as much, stays small beside the host's."""

MAP_SHARE = 12
"""So many times the memory of its plans is what a part of a map takes: the numbers that its sums are divided through
are of 64 bits, and up to eight of a voxel are there at a time, beside 5 bytes of the plan of a mean of bytes."""

MAKING = threading.Lock()
"""Held while lanes or kernels are made: of threads that come first together, `cache` would have each make them."""


@cache
def cupy() -> Any:
    """CuPy, with a driver that answers.

    Raises
    ------
    DeviceError
        There is none; says why.
    """
    try:
        import cupy as cp
    except ModuleNotFoundError as error:
        raise DeviceError(
            f'no CUDA engine answers: {error.name} is not installed. Install "voxring[cuda12]" or "voxring[cuda13]", '
            'after the CUDA version of the driver, or use device="cpu"'
        ) from None
    except ImportError as error:
        raise DeviceError(
            f'no CUDA engine answers: CuPy does not load: {told(error)}: install it anew, or use device="cpu"'
        ) from None
    try:
        cp.cuda.runtime.getDeviceCount()
    except cp.cuda.runtime.CUDARuntimeError as error:
        raise DeviceError(f'no CUDA engine answers: {error}: mend the driver, or use device="cpu"') from None
    return cp


def told(error: Exception) -> str:
    """What CuPy says, without the frames and rules that it draws round it."""
    return next((line.strip() for line in str(error).splitlines() if line.strip("= ")), type(error).__name__)


@cache
def devices() -> tuple[int, ...]:
    """The devices that the kernels run on.

    Raises
    ------
    DeviceError
        There is none; says why.
    """
    cp = cupy()
    found = {
        number: int(cp.cuda.Device(number).compute_capability) for number in range(cp.cuda.runtime.getDeviceCount())
    }
    if not found:
        raise DeviceError('no CUDA engine answers: CuPy sees no GPU: look at CUDA_VISIBLE_DEVICES, or use device="cpu"')
    usable = tuple(number for number, capability in found.items() if capability >= OLDEST)
    if not usable:
        raise DeviceError(
            f"no CUDA engine answers: expected a GPU of compute capability {OLDEST / 10} or more, got "
            f'{max(found.values()) / 10}: take a newer one, or device="cpu"'
        )
    return usable


@cache
def shared_memory() -> int:
    """Bytes of shared memory that a block may ask for on every device."""
    told = cupy().cuda.runtime.getDeviceProperties
    return min(int(told(device)["sharedMemPerBlockOptin"]) for device in devices())


@cache
def answers() -> bool:
    """Whether a GPU is there. Kept: looking for a CuPy that is not installed takes longer than a small image.

    Without a driver CuPy is not loaded, if it is not already: that takes longer than a whole image.
    """
    try:
        if "cupy" not in sys.modules:
            ctypes.CDLL("libcuda.so.1")
        return bool(devices())
    except (DeviceError, OSError):
        return False


@cache
def name() -> str:
    """What is there, for people: how many GPUs of which name."""
    first, *others = devices()
    called: str = cupy().cuda.runtime.getDeviceProperties(first)["name"].decode()
    return f"{called} and {len(others)} more" if others else called


class Lane:
    """A stream of a device, and pinned memory that grows to what was needed."""

    def __init__(self, device: int) -> None:
        cp = cupy()
        self.device = cp.cuda.Device(device)
        with self.device:
            self.stream = cp.cuda.Stream(non_blocking=True)
        self.pinned: dict[str, Any] = {}

    def host(self, name: str, dtype: str, size: int) -> Array:
        """Pinned memory: what is copied to or from it does not hold up the host."""
        cp = cupy()
        needed = size * np.dtype(dtype).itemsize
        if name not in self.pinned or self.pinned[name].mem.size < needed:
            self.pinned.pop(name, None)
            cp.get_default_pinned_memory_pool().free_all_blocks()  # or CuPy keeps what was outgrown, too
            self.pinned[name] = cp.cuda.alloc_pinned_memory(max(1, needed))
        return np.frombuffer(self.pinned[name], dtype, size)


@cache
def lanes() -> list[Lane]:
    """All lanes, in the order in which they are taken first: of each device one, then the others."""
    return [Lane(device) for _ in range(LANES) for device in devices()]


class Crew(NamedTuple):
    """A thread for each lane, and the lanes that no thread has."""

    threads: ThreadPoolExecutor
    free: SimpleQueue[Lane]


@cache
def crew() -> Crew:
    """What all callers share."""
    made = Crew(ThreadPoolExecutor(len(lanes()), "voxring lane"), SimpleQueue())
    for lane in lanes():
        made.free.put(lane)
    return made


for _made in (lanes, crew):  # a forked process has no threads, and CUDA refuses it
    os.register_at_fork(after_in_child=_made.cache_clear)


def on_lanes(tasks: Iterable[Callable[[Lane], T]]) -> list[T]:
    """What tasks give that are carried out on a lane each, side by side, in order.

    However this ends, none of them runs any more then. A task must not wait for others.
    """
    with MAKING:
        threads, free = crew()
    under_way: list[Future[T]] = []
    try:
        for task in tasks:
            under_way.append(threads.submit(on_a_lane, task, free))
        return [one.result() for one in under_way]
    finally:
        wait([one for one in under_way if not one.cancel()])


def on_a_lane(task: Callable[[Lane], T], free: SimpleQueue[Lane]) -> T:
    """Carry a task out on the lane that has been free the longest. There is one: threads are as many as lanes."""
    lane = free.get()
    try:
        return task(lane)
    finally:
        free.put(lane)


@contextmanager
def failures_told() -> Iterator[None]:
    """Make what a device cannot do an error that says so; others may use it too."""
    cuda = cupy().cuda
    try:
        yield
    except cuda.memory.OutOfMemoryError as error:
        raise DeviceError(f'the GPU is out of memory: {error}: end what else runs there, or use device="cpu"') from None
    except (cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError) as error:
        raise DeviceError(
            f'the GPU failed: {told(error)}: run again, look at it with nvidia-smi, or use device="cpu"'
        ) from None


@cache
def function(device: int, launch_kind: tuple[str, str, tuple[tuple[str, int], ...]]) -> Any:
    """A compiled kernel of a device. CuPy keeps the machine code on disk.

    Raises
    ------
    DeviceError
        NVIDIA's compiler, or a header that it needs, is not there, as where CuPy alone was installed.
    """
    source, kernel, macros = launch_kind
    options = ("-std=c++17", *(f"-D{name}={value}" for name, value in macros))
    cp = cupy()
    try:
        return cp.RawModule(code=source_of(source), options=options).get_function(kernel)
    except (RuntimeError, cp.cuda.compiler.CompileException) as error:
        raise DeviceError(
            f"the GPU's kernels cannot be compiled: {told(error)}: install the CUDA toolkit or, with pip, "
            '"cupy-cuda12x[ctk]" or "cupy-cuda13x[ctk]", or use device="cpu"'
        ) from None


class Running(NamedTuple):
    """A plan that a lane carries out."""

    plan: Plan
    lane: Lane
    buffers: dict[str, Any]  # on the device


def start(
    plan: Plan,
    lane: Lane,
    image: Array,
    labels: Array | None,
    classes: Sequence[int],
    there: dict[str, Any] | None = None,
) -> Running:
    """Lay a part out, and queue its copies and kernels; waits for nothing but the lane's copies before.

    ``there`` holds buffers that are on the device already.
    """
    cp = cupy()
    with lane.device, lane.stream:
        lane.stream.synchronize()  # its pinned memory is free again
        buffers = dict(there or {})
        for name_of, buffer in plan.buffers.items():
            if name_of in buffers:
                continue
            if buffer.clear:
                buffers[name_of] = cp.zeros(buffer.size, buffer.dtype)
                continue
            buffers[name_of] = cp.empty(buffer.size, buffer.dtype)
            if buffer.given is None and not (name_of == "image" or (name_of == "numbers" and labels is not None)):
                continue
            host = lane.host(name_of, buffer.dtype, buffer.size)
            if name_of == "image":
                stage_image(plan, image, host)
            elif labels is not None and name_of == "numbers":
                stage_numbers(plan, labels, classes, host)
            else:
                host[...] = buffer.given
            buffers[name_of].set(host, stream=lane.stream)
        for launch in plan.launches:
            run(launch, lane, buffers)
    return Running(plan, lane, buffers)


def run(launch: Launch, lane: Lane, buffers: dict[str, Any]) -> None:
    """Queue one kernel."""
    with MAKING:
        kernel = function(lane.device.id, (launch.source, launch.kernel, launch.macros))
        if launch.shared > 48 << 10:
            kernel.max_dynamic_shared_size_bytes = launch.shared
    arguments = tuple(buffers[a] if isinstance(a, str) else a for a in launch.arguments)
    kernel(launch.grid, launch.block, arguments, shared_mem=launch.shared)


def fetch(lane: Lane, made: Any) -> Array:
    """An array that a lane made, when all that it was told before is done: in pinned memory, until it is told more."""
    with lane.device, lane.stream:
        host = lane.host("made", made.dtype, made.size).reshape(made.shape)
        made.get(stream=lane.stream, out=host)
    return host


def memory() -> int:
    """How many bytes one part may take on any device: of what is free there, or CuPy holds, mostly for other parts."""
    cp = cupy()
    free = []
    for device in devices():
        with cp.cuda.Device(device):
            free.append(cp.cuda.runtime.memGetInfo()[0] + cp.get_default_memory_pool().total_bytes())
    return int(min(free) * SHARE)


def parts(
    image: Array, window: Shape, border: str, most: int, what: Sequence[What], classes: int = 1
) -> Iterator[list[Plan]]:
    """Plans of parts of an image, for each of ``what`` one, that take ``most`` bytes of a device or fewer.

    Raises
    ------
    DeviceError
        Not even a row does.
    """
    z, y = (length // 2 for length in image.shape[:2])  # the windows of a row in the middle read the most
    row = (
        plan_for(image.shape, image.dtype, window, border, one, classes=classes, box=(z, z + 1, y, y + 1))
        for one in what
    )
    most = min(most, max(MOST_BYTES, 2 * sum(plan.bytes for plan in row)))
    try:
        yield from boxes(image, window, border, most, what, classes, shared_memory())
    except MemoryError as error:
        raise DeviceError(f'{error}: free some, use a smaller window, or device="cpu"') from None


@failures_told()
def reduced(image: Array, labels: Array, classes: Sequence[int], window: Shape, border: str) -> list[Reduction]:
    """The reductions of an image, for classes that differ and that its labels can hold.

    Of more classes than a pass takes, a part of the image goes to the device once for all passes.
    """

    def part(plan: Plan, lane: Lane) -> list[Reduction]:
        found: list[Reduction] = []
        there: dict[str, Any] = {}
        for first in range(0, len(classes), MOST_CLASSES):
            some = classes[first : first + MOST_CLASSES]
            running = start(plan, lane, image, labels, some, there)
            found += reductions(plan, fetch(lane, running.buffers["table"]))[: len(some)]
            there["image"] = running.buffers["image"]
        return found

    answer = [Reduction() for _ in classes]
    plans = parts(image, window, border, memory(), ("reduce",), min(len(classes), MOST_CLASSES))
    for found in on_lanes(partial(part, plan) for (plan,) in plans):
        answer = [one + some for one, some in zip(answer, found, strict=True)]
    return answer


Combine = Callable[[Plan, list[Any]], Any]
"""From a plan, and its maps of exact sums as int64 (planes, rows, columns), to the part of a map: all on the device."""


@failures_told()
def fill_map(image: Array, window: Shape, border: str, what: Sequence[What], combine: Combine, out: Array) -> None:
    """Fill ``out`` with what ``combine`` makes of sums, part by part."""

    def part(plans: list[Plan], lane: Lane) -> None:
        there: dict[str, Any] = {}
        running = []
        for plan in plans:
            running.append(start(plan, lane, image, None, (), there))
            there["image"] = running[0].buffers["image"]
        with lane.device, lane.stream:
            made = combine(plans[0], [sums_of(one, image.shape[2]) for one in running])
        z0, z1, y0, y1 = plans[0].box
        out[z0:z1, y0:y1] = fetch(lane, made)

    on_lanes(partial(part, plans) for plans in parts(image, window, border, memory() // MAP_SHARE, what))


def sums_of(running: Running, columns: int) -> Any:
    """The map of a plan that was carried out, as int64 on the device."""
    plan = running.plan
    z0, z1, y0, y1 = plan.box
    if "there" in running.buffers:  # dense
        there = running.buffers["there"][: (z1 - z0) * (y1 - y0) * columns]
        return there.reshape(z1 - z0, y1 - y0, columns)
    sums = running.buffers["map"].reshape(z1 - z0, y1 - y0, plan.label_pitch)[:, :, :columns]
    return sums.astype(np.int64) - plan.bias
