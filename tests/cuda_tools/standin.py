"""A strict stand-in for the few names of CuPy that voxring uses; kernels run through `emulation`.

It does late what a device may do late: copies and kernels wait in the queue of their stream until that stream is
synchronised, so that a synchronisation that is missing, or pinned memory that is used again too early, gives wrong
numbers or an error. And it refuses what CuPy refuses, or, worse, would take: host arrays among device arrays, arrays of
another device or another stream, arguments of a kernel without a type, too much shared memory or device memory.

``machine`` says which devices are there, how much memory they have, what was done, and what is called before work is:
tests set and read it.
`install` puts it in CuPy's place.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import operator
import re
import sys
import threading
import time
import types
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from cuda_tools import emulation
from voxring.kernels.cuda.plans import Launch

GARBAGE = 0xA5
DEFAULT_SHARED, MOST_SHARED = 48 << 10, 64 << 10
MOST_GRID, MOST_BLOCK = (2**31 - 1, 65535, 65535), 1024


class MisuseError(Exception):
    """What CuPy or CUDA would refuse, or leave undefined."""


class CUDARuntimeError(RuntimeError):
    """As in CuPy."""


class CUDADriverError(RuntimeError):
    """As in CuPy."""


class CompileException(Exception):  # noqa: N818 - CuPy's name
    """As in CuPy."""


class OutOfMemoryError(MemoryError):
    """As in CuPy."""


class Event(NamedTuple):
    """What was done, in order: ``queued`` and ``ran`` of a ``copy in``, ``copy out``, kernel, …; or ``synchronize``."""

    when: str
    what: str
    device: int
    stream: int


class Here(threading.local):
    """What is current in a thread."""

    def __init__(self) -> None:
        self.device = 0
        self.streams: list[Stream] = []


class Machine:
    """The devices that are there, and what was done on them."""

    def __init__(self) -> None:
        self.devices, self.memory, self.capability = 2, 1 << 30, "90"
        self.counting = threading.RLock()  # memory may be released wherever the collector runs
        self.begin()

    def begin(self) -> None:
        """Start anew: nothing allocated, nothing queued, nothing done."""
        self.log: list[Event] = []
        self.used = [0] * 16
        self.kept = [0] * 16  # by the pool of each device, in use or not: more than this is asked of the device
        self.blocks: weakref.WeakSet[PinnedMemoryPointer] = weakref.WeakSet()
        self.pinned: Counter[int] = Counter()  # sizes of pinned blocks: how many the pool has, in use or not
        self.most_pinned = 0  # bytes at a time
        self.before: Callable[[str, Stream], None] = lambda what, stream: None
        self.here = Here()
        self.null = [Stream(null=True, _device=device) for device in range(16)]

    def allocate(self, size: int) -> int:
        """Count the memory of an array on the current device."""
        device = self.here.device
        size = max(512, -(-size // 512) * 512)
        with self.counting:
            if self.used[device] + size > self.memory:
                raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes (so far: {self.used[device]:,} bytes)")
            self.used[device] += size
            self.kept[device] = max(self.kept[device], self.used[device])
        return size

    def release(self, device: int, size: int, begun: list[Event]) -> None:
        """Count an array's memory as free, unless all began anew since."""
        with self.counting:
            if begun is self.log:
                self.used[device] -= size

    def pin(self, size: int) -> None:
        """Count pinned memory, when a block of a size is taken: from the pool, if it has one that nobody uses."""
        used = sum(one.mem.size == size for one in self.blocks)
        self.pinned[size] = max(self.pinned[size], used)
        self.most_pinned = max(self.most_pinned, sum(size * count for size, count in self.pinned.items()))


class Stream:
    """Work in order, done when it is waited for."""

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: None = None, *, _device=None
    ) -> None:
        self.device_id = machine.here.device if _device is None else _device
        self.number = next(_numbers)
        self.queue: deque[tuple[str, Callable[[], None]]] = deque()
        self.doing = threading.RLock()

    def __enter__(self) -> Stream:
        self._same_device()
        machine.here.streams.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        if machine.here.streams.pop() is not self:
            raise MisuseError("streams are left in another order than they were entered")

    def _same_device(self) -> None:
        if self.device_id != machine.here.device:
            raise MisuseError(f"a stream of device {self.device_id} while device {machine.here.device} is current")

    def put(self, what: str, work: Callable[[], None]) -> None:
        """Queue work."""
        self._same_device()
        machine.log.append(Event("queued", what, self.device_id, self.number))
        self.queue.append((what, work))

    def synchronize(self) -> None:
        """Do all that is queued."""
        machine.log.append(Event("synchronize", "", self.device_id, self.number))
        with self.doing:
            while self.queue:
                what, work = self.queue.popleft()
                machine.before(what, self)
                work()
                machine.log.append(Event("ran", what, self.device_id, self.number))


class TimingEvent:
    """CuPy's ``Event``: a place in a stream, and when that was reached."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self.stream: Stream | None = None
        self.reached: float | None = None

    def record(self, stream: Stream | None = None) -> None:
        """Mark a stream's end as it is now."""

        def reach() -> None:
            self.reached = time.perf_counter()

        self.stream, self.reached = stream or machine.null[machine.here.device], None
        self.stream.put("event", reach)

    def synchronize(self) -> None:
        """Wait until the place is reached."""
        if self.stream is None:
            raise MisuseError("an event is waited for that was not recorded")
        self.stream.synchronize()


def get_elapsed_time(start_event: TimingEvent, end_event: TimingEvent) -> float:
    """Milliseconds between two events."""
    if start_event.reached is None or end_event.reached is None:
        raise CUDARuntimeError("cudaErrorNotReady: device not ready")
    return (end_event.reached - start_event.reached) * 1e3


_numbers = itertools.count()
machine = Machine()


def current_stream(device_id: int = -1) -> Stream:
    """The innermost stream of the current device that was entered, or its null stream."""
    device = machine.here.device if device_id == -1 else device_id
    mine = (stream for stream in reversed(machine.here.streams) if stream.device_id == device)
    return next(mine, machine.null[device])


class Device:
    """A device, current while it is entered."""

    def __init__(self, device: int | None = None) -> None:
        self.id = machine.here.device if device is None else device
        if not 0 <= self.id < machine.devices:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self._before: list[int] = []

    @property
    def compute_capability(self) -> str:
        return machine.capability

    def __enter__(self) -> Device:
        self._before.append(machine.here.device)
        machine.here.device = self.id
        return self

    def __exit__(self, *_: object) -> None:
        machine.here.device = self._before.pop()

    def synchronize(self) -> None:
        """Nothing of voxring waits for a whole device."""
        raise MisuseError("a whole device was waited for: wait for a stream")


class _Memory:
    """What arrays that share memory share."""

    def __init__(self, size: int) -> None:
        self.device, self.stream = machine.here.device, current_stream()
        counted = machine.allocate(size)
        weakref.finalize(self, machine.release, self.device, counted, machine.log)


class ndarray:  # noqa: N801 - CuPy's name
    """An array on a device: its numbers are there for what the queues do, not for who holds it."""

    __array_ufunc__ = None  # numpy's operators give up, and ours refuse

    def __init__(self, numbers: np.ndarray, memory: _Memory) -> None:
        self._numbers, self._memory = numbers, memory
        self.shape, self.dtype, self.size, self.ndim = numbers.shape, numbers.dtype, numbers.size, numbers.ndim
        self.nbytes = numbers.nbytes

    @property
    def device(self) -> Device:
        return Device(self._memory.device)

    def _used(self, stream: Stream | None = None) -> Stream:
        """The stream that works on it now, if it may."""
        stream = stream or current_stream()
        if self._memory.device != machine.here.device:
            raise MisuseError(f"array of device {self._memory.device}, current is device {machine.here.device}")
        if self._memory.stream is not stream:
            raise MisuseError("an array was allocated on one stream and used on another, with nothing that orders them")
        return stream

    def set(self, arr: np.ndarray, stream: Stream | None = None) -> None:
        """Copy from the host: when the queue gets there, if the host's memory is pinned."""
        if not isinstance(arr, np.ndarray):
            raise TypeError(f"Only numpy.ndarray can be set to cupy.ndarray, got {type(arr)}")
        if arr.dtype != self.dtype or arr.shape != self.shape:
            raise ValueError(f"expected {self.dtype} of shape {self.shape}, got {arr.dtype} of {arr.shape}")
        stream = self._used(stream)
        pinned = _pinned_memory(arr)
        if pinned is None:
            arr = arr.copy()  # the driver does

        source, told = _late(arr, pinned), arr.copy()

        def copy(target=self._numbers) -> None:
            target[...] = source()
            if not np.array_equal(target, told):
                raise MisuseError("pinned memory was written before the copy from it was done")

        stream.put("copy in", copy)

    def get(
        self, stream: Stream | None = None, order: str = "C", out: np.ndarray | None = None, blocking: bool = True
    ) -> np.ndarray:
        """Copy to the host, after all that its stream was told before."""
        stream = self._used(stream)
        if out is None:
            out = np.empty(self.shape, self.dtype, order)
        elif out.dtype != self.dtype or out.shape != self.shape or not out.flags.c_contiguous:
            raise ValueError("out: expected a contiguous array of the same type and shape")
        _spoil(out)
        target = _late(out, _pinned_memory(out))

        def copy(source=self._numbers) -> None:
            target()[...] = source

        stream.put("copy out", copy)
        if blocking:
            stream.synchronize()
        return out

    def fill(self, value: Any) -> None:
        """Set all numbers, when the current stream gets there."""

        def write(target=self._numbers) -> None:
            target[...] = value

        self._used().put("fill", write)

    def __getitem__(self, place: Any) -> ndarray:
        self._used()
        return ndarray(self._numbers[place], self._memory)

    def reshape(self, *shape: int, order: str = "C", copy: None = None) -> ndarray:
        """A view; or a copy, where one is needed."""
        self._used()
        view = self._numbers.reshape(*shape)
        if np.shares_memory(view, self._numbers) or view.size == 0:
            return ndarray(view, self._memory)
        return _later("reshape", view.shape, view.dtype, lambda a: a.reshape(*shape), self)

    def astype(
        self, dtype: Any, order: str = "K", casting: None = None, subok: None = None, copy: bool = True
    ) -> ndarray:
        """The same numbers as another type."""
        return _later("astype", self.shape, np.dtype(dtype), lambda a: a.astype(dtype), self)

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __bool__(self) -> bool:
        raise MisuseError("the host waits for a number of the device")

    __iter__ = __len__ = __float__ = __int__ = __index__ = __bool__


def _operator(name: str, reflected: bool) -> Callable[[ndarray, Any], ndarray]:
    function = getattr(operator, name)

    def operate(self: ndarray, other: Any) -> ndarray:
        if not isinstance(other, ndarray | int | float | np.generic):
            raise TypeError(f"Unsupported type {type(other)}")
        both = (other, self) if reflected else (self, other)
        kinds = [np.ones((1,) * one.ndim, one.dtype) if isinstance(one, ndarray) else one for one in both]
        shape = np.broadcast_shapes(*(one.shape for one in both if isinstance(one, ndarray)))
        return _later(name, shape, function(*kinds).dtype, function, *both)

    return operate


for _name in ("add", "sub", "mul", "truediv"):
    setattr(ndarray, f"__{_name}__", _operator(_name, reflected=False))
    setattr(ndarray, f"__r{_name}__", _operator(_name, reflected=True))


def _later(what: str, shape: tuple[int, ...], dtype: np.dtype, function: Callable, *arguments: Any) -> ndarray:
    """A new array that the current stream fills when it gets there."""
    for one in arguments:
        if isinstance(one, ndarray):
            one._used()
    made = empty(shape, dtype)
    values = [one._numbers if isinstance(one, ndarray) else one for one in arguments]

    def fill(target=made._numbers) -> None:
        target[...] = function(*values)

    current_stream().put(what, fill)
    return made


def _spoil(numbers: np.ndarray) -> None:
    numbers.reshape(-1).view(np.uint8)[...] = GARBAGE


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    """Device memory that holds garbage."""
    numbers = np.empty(shape, dtype, order)
    memory = _Memory(numbers.nbytes)
    _spoil(numbers)
    return ndarray(numbers, memory)


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    """Device memory that is cleared when its stream gets there."""
    made = empty(shape, dtype, order)

    def clear(target=made._numbers) -> None:
        target[...] = 0

    current_stream().put("clear", clear)
    return made


def copyto(dst: ndarray, src: ndarray, casting: str = "same_kind", where: None = None) -> None:
    """Copy on the device, when the current stream gets there."""
    stream = dst._used()
    src._used()

    def copy(target=dst._numbers, source=src._numbers) -> None:
        target[...] = source

    stream.put("copy", copy)


def asarray(
    a: Any, dtype: Any = None, order: str | None = None, *, copy: bool | None = None, blocking: bool = False
) -> ndarray:
    """A copy of a host array on the current device."""
    if not isinstance(a, np.ndarray):
        raise MisuseError(f"expected a numpy array, got {type(a)}")
    made = empty(a.shape, a.dtype if dtype is None else dtype)
    made.set(a.astype(made.dtype))
    return made


class PinnedMemoryPointer(bytearray):
    """Host memory that copies use late. ``mem.size`` may be more than was asked for."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.mem = types.SimpleNamespace(size=size)
        _spoil(np.frombuffer(self, np.uint8))
        self.start = np.frombuffer(self, np.uint8).ctypes.data
        with machine.counting:
            machine.blocks.add(self)
            machine.pin(size)

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def alloc_pinned_memory(size: int) -> PinnedMemoryPointer:
    """Pinned memory, full of garbage, rounded up as CuPy's pool does."""
    return PinnedMemoryPointer(max(512, -(-size // 512) * 512))


class PinnedMemoryPool:
    """CuPy's: blocks that are gone stay with it, for others of the same size."""

    def free_all_blocks(self) -> None:
        """Give back those that are not in use."""
        with machine.counting:
            machine.pinned = Counter(one.mem.size for one in machine.blocks)


def get_default_pinned_memory_pool() -> PinnedMemoryPool:
    """The pool."""
    return PinnedMemoryPool()


def _pinned_memory(array: np.ndarray) -> PinnedMemoryPointer | None:
    start = array.ctypes.data
    with machine.counting:
        if array.flags.c_contiguous:
            for held in machine.blocks:
                if held.start <= start and start + array.nbytes <= held.start + held.mem.size:
                    return held
    return None


def _late(array: np.ndarray, pinned: PinnedMemoryPointer | None) -> Callable[[], np.ndarray]:
    """What finds an array later. CUDA knows the address of pinned memory, and does not keep it."""
    if pinned is None:
        return lambda: array
    held, offset = weakref.ref(pinned), array.ctypes.data - pinned.start
    dtype, shape = array.dtype, array.shape

    def found() -> np.ndarray:
        memory = held()
        if memory is None:
            raise MisuseError("pinned memory was freed before the copy from it, or to it, was done")
        return np.frombuffer(memory, dtype, math.prod(shape), offset).reshape(shape)

    return found


class RawKernel:
    """A kernel of a module."""

    def __init__(self, module: RawModule, name: str) -> None:
        self.module, self.name = module, name
        self._shared: dict[int, int] = {}

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        """Of the current device."""
        return self._shared.get(machine.here.device, DEFAULT_SHARED)

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        if size > MOST_SHARED:
            raise CUDARuntimeError(
                f"CUDA_ERROR_INVALID_VALUE: {size} bytes of shared memory, not every device has them"
            )
        self._shared[machine.here.device] = size

    def __call__(self, grid: tuple, block: tuple, args: tuple, *, shared_mem: int = 0) -> None:
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise CUDARuntimeError("CUDA_ERROR_INVALID_VALUE: shared memory above what was asked for")
        if not all(1 <= n <= most for n, most in zip(grid, MOST_GRID, strict=True)) or math.prod(block) > MOST_BLOCK:
            raise CUDARuntimeError(f"CUDA_ERROR_INVALID_VALUE: grid {grid}, block {block}")
        names: list[str | np.generic] = []
        arrays = {}
        for at, one in enumerate(args):
            if isinstance(one, ndarray):
                one._used()
                arrays[f"buffer {at}"] = one._numbers
                names.append(f"buffer {at}")
            elif isinstance(one, np.generic):
                names.append(one)
            else:
                raise TypeError(
                    f"argument {at} of {self.name}: expected a device array or a numpy scalar, got {type(one)}"
                )
        launch = Launch(
            "standin.cu", self.name, self.module.macros, tuple(grid), tuple(block), shared_mem, tuple(names)
        )
        work = functools.partial(emulation.run, launch, arrays, source_text=self.module.code)
        current_stream().put(self.name, work)


class RawModule:
    """Source text and macros."""

    def __init__(
        self,
        code: str | None = None,
        *,
        path: str | None = None,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        enable_cooperative_groups: bool = False,
        name_expressions: None = None,
        jitify: None = None,
    ) -> None:
        if not isinstance(code, str) or not isinstance(options, tuple):
            raise TypeError("expected code as str and options as tuple")
        if '#include "' in code:
            raise MisuseError("NVRTC would look for a file of the package in its working directory")
        unknown = [one for one in options if one != "-std=c++17" and not re.fullmatch(r"-D\w+=-?\d+", one)]
        if unknown:
            raise MisuseError(f"options that the stand-in does not know: {unknown}")
        self.code = code
        pairs = (one[2:].split("=") for one in options if one.startswith("-D"))
        self.macros = tuple((name, int(value)) for name, value in pairs)

    def get_function(self, name: str) -> RawKernel:
        """A kernel by its name."""
        return RawKernel(self, name)


class MemoryPool:
    """CuPy's: memory of arrays that are gone stays with it."""

    def total_bytes(self) -> int:
        """Of the current device, used or kept for later."""
        return machine.kept[machine.here.device]

    def free_all_blocks(self, stream: Stream | None = None) -> None:
        """Give back, of the current device, what is not used."""
        machine.kept[machine.here.device] = machine.used[machine.here.device]


def get_default_memory_pool() -> MemoryPool:
    """The pool of all devices."""
    return MemoryPool()


def getDeviceCount() -> int:  # noqa: N802
    """How many devices are there."""
    return machine.devices


def memGetInfo() -> tuple[int, int]:  # noqa: N802
    """(free, all) bytes of the current device; what the pool keeps is not free."""
    return machine.memory - machine.kept[machine.here.device], machine.memory


def getDeviceProperties(device: int) -> dict[str, Any]:  # noqa: N802
    """What a device is."""
    return {"name": f"Stand-in {device}".encode(), "sharedMemPerBlockOptin": MOST_SHARED}


runtime = types.SimpleNamespace(
    CUDARuntimeError=CUDARuntimeError,
    getDeviceCount=getDeviceCount,
    getDeviceProperties=getDeviceProperties,
    memGetInfo=memGetInfo,
)
cuda = types.SimpleNamespace(
    Device=Device,
    Event=TimingEvent,
    Stream=Stream,
    alloc_pinned_memory=alloc_pinned_memory,
    compiler=types.SimpleNamespace(CompileException=CompileException),
    driver=types.SimpleNamespace(CUDADriverError=CUDADriverError),
    get_current_stream=current_stream,
    get_elapsed_time=get_elapsed_time,
    memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    runtime=runtime,
)


@contextmanager
def install(*, devices: int = 2, memory: int = 1 << 30, capability: str = "90") -> Iterator[Machine]:
    """Put the stand-in in CuPy's place, with nothing kept of another."""
    from voxring.kernels.cuda import device

    before = sys.modules.get("cupy")
    sys.modules["cupy"] = sys.modules[__name__]
    machine.devices, machine.memory, machine.capability = devices, memory, capability
    machine.begin()
    # As they are now: a test may put others in their place.
    kept = (
        device.cupy,
        device.devices,
        device.shared_memory,
        device.answers,
        device.name,
        device.lanes,
        device.crew,
        device.function,
    )
    _forget(kept)
    try:
        yield machine
    finally:
        del sys.modules["cupy"]
        if before is not None:
            sys.modules["cupy"] = before
        _forget(kept)


def _forget(kept: Iterable[Any]) -> None:
    for function in kept:
        function.cache_clear()


def parameters(function: Any) -> list[str]:
    """The names of a function's parameters, as a test compares them with CuPy's."""
    return [name for name in inspect.signature(function).parameters if not name.startswith("_") and name != "self"]
