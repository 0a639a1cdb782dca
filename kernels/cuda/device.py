"""Carrying launch plans out with CuPy, the only module that imports it.

Each device has LANES lanes: a stream, and the pinned memory that parts of images are laid out in. Parts of images take
lanes in turn, over all devices, and what a lane did is fetched when its turn comes again. So one part is laid out and
copied while others are computed, and a batch keeps every device busy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
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
    reductions,
    source_of,
    stage_image,
    stage_numbers,
)

LANES = 2
"""Of each device: one is filled while the other computes."""

SHARE = 0.4
"""Of a device's free memory, what one part may take: two are there at a time."""


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
    except ImportError:
        raise DeviceError(
            'no CUDA engine answers: CuPy is not installed. Install "voxring[cuda12]" or "voxring[cuda13]", after the '
            'CUDA version of the driver, or use device="cpu"'
        ) from None
    try:
        count = cp.cuda.runtime.getDeviceCount()
    except cp.cuda.runtime.CUDARuntimeError as error:
        raise DeviceError(f'no CUDA engine answers: {error}: mend the driver, or use device="cpu"') from None
    if count == 0:
        raise DeviceError('no CUDA engine answers: CuPy sees no GPU: look at CUDA_VISIBLE_DEVICES, or use device="cpu"')
    return cp


def answers() -> bool:
    """Whether a GPU is there."""
    try:
        return cupy() is not None
    except DeviceError:
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


def start(plan: Plan, lane: Lane, image: Array, labels: Array | None, classes: Sequence[int]) -> Running:
    """Lay a part out, and queue its copies and kernels; waits for nothing but the lane's copies before."""
    cp = cupy()
    with lane.device, lane.stream:
        lane.stream.synchronize()  # its pinned memory is free again
        buffers = {}
        for name_of, buffer in plan.buffers.items():
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


def fetch(running: Running, name: str) -> Array:
    """A buffer of a plan that was carried out."""
    with running.lane.device, running.lane.stream:
        fetched: Array = running.buffers[name].get(stream=running.lane.stream)
        running.lane.stream.synchronize()
    return fetched


class Job(NamedTuple):
    """One image to reduce; see `voxring.kernels.cpu.reduce`."""

    image: Array
    labels: Array
    classes: Sequence[int]
    window: Shape
    border: str


def memory() -> int:
    """How many bytes one part may take."""
    free, _ = cupy().cuda.runtime.memGetInfo()
    return int(free * SHARE)


def reduce_many(jobs: Iterable[Job]) -> Iterator[list[Reduction]]:
    """The reductions of many images, in order. Parts of several are under way at a time, over all devices."""
    free = deque(lanes())
    under_way: deque[tuple[list[Reduction], int, Running]] = deque()
    waiting: deque[list[Reduction]] = deque()

    def finish() -> None:
        answer, first, running = under_way.popleft()
        free.append(running.lane)
        for at, some in enumerate(reductions(running.plan, fetch(running, "table")), first):
            answer[at] = answer[at] + some

    for job in jobs:
        answer = [Reduction() for _ in job.classes]
        for first in range(0, len(job.classes) if job.image.size else 0, MOST_CLASSES):
            classes = job.classes[first : first + MOST_CLASSES]
            for plan in boxes(job.image, job.window, job.border, memory(), ("reduce",), len(classes)):
                if not free:
                    finish()
                under_way.append((answer, first, start(plan[0], free.popleft(), job.image, job.labels, classes)))
        waiting.append(answer)
        while waiting and not any(waiting[0] is one for one, _, _ in under_way):
            yield waiting.popleft()
    while under_way:
        finish()
    yield from waiting


def maps(image: Array, window: Shape, border: str, what: Sequence[What]) -> Iterator[tuple[Plan, list[Any]]]:
    """Maps of sums, part by part: for each of ``what``, exact int64 numbers on the current device, (planes, rows,
    columns) of the part's box.
    """
    for number, plans in enumerate(boxes(image, window, border, memory() // 3, what)):
        lane = lanes()[number % len(lanes())]
        running = [start(plan, lane, image, None, ()) for plan in plans]
        with lane.device, lane.stream:
            yield plans[0], [sums_of(one, image.shape[2]) for one in running]


def sums_of(running: Running, columns: int) -> Any:
    """The map of a plan that was carried out, as int64 on the device."""
    plan = running.plan
    z0, z1, y0, y1 = plan.box
    if "there" in running.buffers:  # dense
        there = running.buffers["there"][: (z1 - z0) * (y1 - y0) * columns]
        return there.reshape(z1 - z0, y1 - y0, columns)
    sums = running.buffers["map"].reshape(z1 - z0, y1 - y0, plan.label_pitch)[:, :, :columns]
    return sums.astype(np.int64) - plan.bias
