"""Carrying launch plans out with CuPy, the only module that imports it.

Each device has LANES lanes: a stream, and the pinned memory that parts of images are laid out in. Parts of images take
lanes in turn, over all devices, and what a lane did is fetched when its turn comes again. So one part is laid out and
copied while others are computed, and a batch keeps every device busy.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

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

LANES = 2
"""Of each device: one is filled while the other computes."""

SHARE = 0.4
"""Of a device's free memory, what one part may take: two are there at a time."""

MOST_BYTES = 1 << 30
"""Of a part of some rows: large images are cut even where they fit, so that one part is copied while another is
computed, and that pinned memory, of which each lane keeps as much, stays small beside the host's."""

MAP_SHARE = 12
"""So many times the memory of its plans is what a part of a map takes: the numbers that its sums are divided through
are of 64 bits, and up to eight of a voxel are there at a time, beside 5 bytes of the plan of a mean of bytes."""


@cache
def cupy() -> Any:
    """CuPy, with a device that answers.

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
        reason = next((line for line in str(error).splitlines() if line.strip("= ")), "")
        raise DeviceError(
            f'no CUDA engine answers: CuPy does not load: {reason.strip()}: install it anew, or use device="cpu"'
        ) from None
    try:
        count = cp.cuda.runtime.getDeviceCount()
    except cp.cuda.runtime.CUDARuntimeError as error:
        raise DeviceError(f'no CUDA engine answers: {error}: mend the driver, or use device="cpu"') from None
    if count == 0:
        raise DeviceError('no CUDA engine answers: CuPy sees no GPU: look at CUDA_VISIBLE_DEVICES, or use device="cpu"')
    return cp


@cache
def answers() -> bool:
    """Whether a GPU is there. Kept: looking for a CuPy that is not installed takes longer than a small image.

    Without a driver CuPy is not loaded, if it is not already: that takes longer than a whole image.
    """
    try:
        if "cupy" not in sys.modules:
            ctypes.CDLL("libcuda.so.1")
        return cupy() is not None
    except (DeviceError, OSError):
        return False


def name() -> str:
    """What is there, for people: how many GPUs of which name."""
    cp = cupy()
    count = cp.cuda.runtime.getDeviceCount()
    first = cp.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return first if count == 1 else f"{first} and {count - 1} more"


class Lane:
    """A stream of a device, and pinned memory that grows to what was needed."""

    def __init__(self, device: int) -> None:
        cp = cupy()
        self.device = cp.cuda.Device(device)
        with self.device:
            self.stream = cp.cuda.Stream(non_blocking=True)
        self.pinned: dict[str, Any] = {}
        self.filling = threading.Lock()  # one thread lays its part out at a time

    def host(self, name: str, dtype: str, size: int) -> Array:
        """Pinned memory: what is copied from it does not hold up the host."""
        needed = size * np.dtype(dtype).itemsize
        held = self.pinned.get(name)
        if held is None or held.mem.size < needed:
            held = self.pinned[name] = cupy().cuda.alloc_pinned_memory(max(1, needed))
        return np.frombuffer(held, dtype, size)


@cache
def lanes() -> list[Lane]:
    """All lanes of all devices, in the order in which parts take them."""
    count = cupy().cuda.runtime.getDeviceCount()
    return [Lane(device) for _ in range(LANES) for device in range(count)]


@cache
def function(device: int, launch_kind: tuple[str, str, tuple[tuple[str, int], ...]]) -> Any:
    """A compiled kernel of a device. CuPy keeps the machine code on disk."""
    source, kernel, macros = launch_kind
    options = ("-std=c++17", *(f"-D{name}={value}" for name, value in macros))
    return cupy().RawModule(code=source_of(source), options=options).get_function(kernel)


class Running(NamedTuple):
    """A plan that a lane carries out."""

    plan: Plan
    lane: Lane
    buffers: dict[str, Any]  # on the device


@contextmanager
def memory_suffices() -> Iterator[None]:
    """Make a device's lack of memory an error that says so; others may use the device too."""
    try:
        yield
    except cupy().cuda.memory.OutOfMemoryError as error:
        raise DeviceError(f'the GPU is out of memory: {error}: end what else runs there, or use device="cpu"') from None


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
    with memory_suffices(), lane.filling, lane.device, lane.stream:
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
    kernel = function(lane.device.id, (launch.source, launch.kernel, launch.macros))
    if launch.shared > 48 << 10:
        kernel.max_dynamic_shared_size_bytes = launch.shared
    arguments = tuple(buffers[a] if isinstance(a, str) else a for a in launch.arguments)
    kernel(launch.grid, launch.block, arguments, shared_mem=launch.shared)


def fetch(lane: Lane, made: Any) -> Array:
    """An array that a lane made, when all that it was told before is done."""
    with lane.device, lane.stream:
        fetched: Array = made.get(stream=lane.stream)
    return fetched


class Job(NamedTuple):
    """One image to reduce; see `voxring.kernels.cpu.reduce`. Classes are distinct, and such as the labels can hold."""

    image: Array
    labels: Array
    classes: Sequence[int]
    window: Shape
    border: str


def memory() -> int:
    """How many bytes one part may take on any device: of what is free there, or was and is kept by CuPy."""
    cp = cupy()
    free = []
    for device in range(cp.cuda.runtime.getDeviceCount()):
        with cp.cuda.Device(device):
            free.append(cp.cuda.runtime.memGetInfo()[0] + cp.get_default_memory_pool().free_bytes())
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
        yield from boxes(image, window, border, most, what, classes)
    except MemoryError as error:
        raise DeviceError(f'{error}: free some, use a smaller window, or device="cpu"') from None


def reduce_many(jobs: Iterable[Job]) -> Iterator[list[Reduction]]:
    """The reductions of many images, in order. Parts of several are under way at a time, over all devices."""
    free = deque(lanes())
    most = memory()
    under_way: deque[tuple[list[Reduction], int, Running]] = deque()
    waiting: deque[list[Reduction]] = deque()

    def finish() -> None:
        answer, first, running = under_way.popleft()
        free.append(running.lane)
        for at, some in enumerate(reductions(running.plan, fetch(running.lane, running.buffers["table"])), first):
            answer[at] = answer[at] + some

    for job in jobs:
        answer = [Reduction() for _ in job.classes]
        for first in range(0, len(job.classes) if job.image.size else 0, MOST_CLASSES):
            classes = job.classes[first : first + MOST_CLASSES]
            for (plan,) in parts(job.image, job.window, job.border, most, ("reduce",), len(classes)):
                if not free:
                    finish()
                under_way.append((answer, first, start(plan, free.popleft(), job.image, job.labels, classes)))
        waiting.append(answer)
        while waiting and not any(waiting[0] is one for one, _, _ in under_way):
            yield waiting.popleft()
    while under_way:
        finish()
    yield from waiting


Combine = Callable[[Plan, list[Any]], Any]
"""From a plan, and its maps of exact sums as int64 (planes, rows, columns), to the part of a map: all on the device."""


def maps(
    image: Array, window: Shape, border: str, what: Sequence[What], combine: Combine
) -> Iterator[tuple[Plan, Array]]:
    """Parts of a map that ``combine`` makes of sums, in order; others are under way meanwhile, over all devices."""
    free = deque(lanes())
    under_way: deque[tuple[Plan, Lane, Any]] = deque()
    for plans in parts(image, window, border, memory() // MAP_SHARE, what):
        if not free:
            plan, lane, made = under_way.popleft()
            yield plan, fetch(lane, made)
            free.append(lane)
        lane = free.popleft()
        there: dict[str, Any] = {}
        running = []
        for plan in plans:
            running.append(start(plan, lane, image, None, (), there))
            there["image"] = running[0].buffers["image"]
        with memory_suffices(), lane.device, lane.stream:
            made = combine(plans[0], [sums_of(one, image.shape[2]) for one in running])
        under_way.append((plans[0], lane, made))
    for plan, lane, made in under_way:
        yield plan, fetch(lane, made)


def sums_of(running: Running, columns: int) -> Any:
    """The map of a plan that was carried out, as int64 on the device."""
    plan = running.plan
    z0, z1, y0, y1 = plan.box
    if "there" in running.buffers:  # dense
        there = running.buffers["there"][: (z1 - z0) * (y1 - y0) * columns]
        return there.reshape(z1 - z0, y1 - y0, columns)
    sums = running.buffers["map"].reshape(z1 - z0, y1 - y0, plan.label_pitch)[:, :, :columns]
    return sums.astype(np.int64) - plan.bias
