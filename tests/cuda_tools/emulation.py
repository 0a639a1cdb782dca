"""Runs a launch on the CPU: a host compiler builds the kernel's source against emulation.h, ctypes starts it.

Modes: ``plain``; ``asan`` (addresses, with undefined behaviour), ``ubsan`` (undefined behaviour) and ``tsan`` (races).
A sanitizer's runtime must be there before Python is, and ends the process at what it finds, so those modes run in a
process of their own, which is this file as a script.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import pickle
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if __name__ == "__main__":  # the script of a sanitized process
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cuda_tools.launches import KERNELS, Macros, check, compiler, definitions, kernels_of, source_text

if TYPE_CHECKING:
    from voxring.kernels.cuda.plans import Launch

HEADER = Path(__file__).with_name("emulation.h")
FLAGS = [
    *("-std=c++17", "-O1", "-g1", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-gnu-unique", "-ffp-contract=off"),
    "-ftrivial-auto-var-init=pattern",  # variables that nobody set hold garbage
    *("-Wall", "-Wno-unknown-pragmas", "-Wno-unused", "-Wno-array-bounds", "-Wno-attributes"),
]
UNDEFINED = ["-fsanitize=undefined", "-fno-sanitize-recover=undefined"]
MODES = {
    "plain": [],
    "asan": ["-fsanitize=address", "-fsanitize-sections=cuda_shared", *UNDEFINED],
    "ubsan": UNDEFINED,
    "tsan": ["-fsanitize=thread"],
}
RUNTIMES = {"asan": "libasan.so", "ubsan": "libubsan.so", "tsan": "libtsan.so"}
SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
    "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:halt_on_error=1:exitcode=66",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
FINDING = re.compile(r"ERROR: AddressSanitizer.*|.*: runtime error: .*|WARNING: ThreadSanitizer.*|EmulationError: .*")
COUNTERS = ("blocks", "switches", "barriers", "meetings", "shuffles", "atomics")
PROCESS_SECONDS = 240

RUNNING = threading.Lock()  # the emulation has one state a library


class EmulationError(Exception):
    """A kernel did what CUDA forbids or leaves undefined; the message says which thread did, and where."""


class Case(NamedTuple):
    """A launch for a process of its own."""

    launch: Launch
    buffers: dict[str, np.ndarray]
    schedule: int = 0
    source_text: str | None = None


def folder() -> Path:
    """Where built kernels are kept, by a hash of all that they were built from; VOXRING_EMULATION names another."""
    place = os.environ.get("VOXRING_EMULATION")
    path = Path(place) if place else Path(tempfile.gettempdir()) / f"voxring-emulation-{os.getuid()}"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise PermissionError(f"{path} is somebody else's, and would be loaded as code: set VOXRING_EMULATION")
    return path


def build(name: str, text: str, flags: Sequence[str]) -> Path:
    """Build C++ text into a shared library, once for the same text and flags; who comes meanwhile waits."""
    command = [compiler(), *flags]
    headers = [*Path(__file__).parent.glob("*.h"), *KERNELS.glob("*.cuh")]
    ingredients = [text, *(header.read_text() for header in sorted(headers)), *command]
    key = hashlib.sha256("\0".join(ingredients).encode()).hexdigest()[:24]
    library = folder() / f"{name}-{key}.so"
    with library.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _compile(name, text, command, library)
    return library


def _compile(name: str, text: str, command: list[str], library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder()) as scratch:
        source, built = Path(scratch) / f"{name}.cpp", Path(scratch) / f"{name}.so"
        source.write_text(text)
        done = subprocess.run([*command, str(source), "-o", str(built)], capture_output=True, text=True)
        if done.returncode:
            raise EmulationError(f"{name} does not compile:\n{done.stderr.strip()}")
        os.replace(built, library)


@lru_cache
def load(path: Path) -> ctypes.CDLL:
    """A built library, with the types of its functions."""
    library = ctypes.CDLL(str(path))
    library.emulation_error.restype = ctypes.c_char_p
    library.emulation_allocate.restype = ctypes.c_void_p
    library.emulation_allocate.argtypes = [ctypes.c_size_t]
    library.emulation_free.argtypes = [ctypes.c_void_p]
    return library


@lru_cache
def kernel_library(source: str, macros: Macros, mode: str, text: str) -> Path:
    """The library of a kernel's source."""
    exports = "\n".join(f"EMULATION_KERNEL({name})" for name in kernels_of(text, macros))
    program = f'#include "{HEADER}"\n#line 1 "{source}"\n{text}\n#line 1 "exports"\n{exports}\n'
    flags = [*FLAGS, *MODES[mode], f"-I{KERNELS}", *definitions(macros)]
    return build(f"{Path(source).stem}-{mode}", program, flags)


class Memory:
    """Device memory of one launch: each buffer in an allocation of exactly its size."""

    def __init__(self, library: ctypes.CDLL, buffers: dict[str, np.ndarray]):
        self.library, self.buffers = library, buffers
        self.address: dict[str, int] = {}

    def __enter__(self) -> Memory:
        for name, buffer in self.buffers.items():
            self.address[name] = self.library.emulation_allocate(buffer.nbytes)
            ctypes.memmove(self.address[name], buffer.ctypes.data, buffer.nbytes)
        return self

    def __exit__(self, *_: object) -> None:
        for name, buffer in self.buffers.items():
            if buffer.flags.writeable:
                ctypes.memmove(buffer.ctypes.data, self.address[name], buffer.nbytes)
            self.library.emulation_free(self.address[name])


def start(library: ctypes.CDLL, launch: Launch, memory: Memory, shared: int, schedule: int) -> dict[str, int]:
    """Call a kernel that `EMULATION_KERNEL` exports; the emulator's counters, or its error."""
    values = [np.array(memory.address[a] if isinstance(a, str) else a) for a in launch.arguments]
    pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
    shape = (ctypes.c_uint * 6)(*launch.grid, *launch.block)
    function = getattr(library, f"launch_{launch.kernel}")
    if function(shape, ctypes.c_size_t(shared), ctypes.c_uint(schedule), pointers):
        raise EmulationError(f"{launch.kernel}: {library.emulation_error().decode()}")
    counters = (ctypes.c_uint64 * len(COUNTERS))()
    library.emulation_counters(counters)
    return dict(zip(COUNTERS, counters, strict=True))


def run(
    launch: Launch,
    buffers: dict[str, np.ndarray],
    schedule: int = 0,
    mode: str = "plain",
    source_text: str | None = None,
) -> dict[str, int]:
    """Run a launch; the buffers are updated in place.

    Parameters
    ----------
    launch : Launch
    buffers : dict of arrays
        By the names that the launch uses.
    schedule : int
        0: threads and blocks in order; 1: in the opposite order; others: shuffled by this seed.
    mode : str
        ``plain``, ``asan``, ``ubsan`` or ``tsan``.
    source_text : str, optional
        Stands in for the text of the file, to plant a fault.

    Returns
    -------
    dict
        Blocks, switches between threads, barriers, meetings of warps, shuffles among them, atomics; empty if the mode
        is not ``plain``.

    Raises
    ------
    LaunchError
        The arguments are not those of the kernel.
    EmulationError
        The kernel did what CUDA forbids; or a sanitizer found something.
    """
    if mode != "plain" and os.environ.get("VOXRING_SANITIZER") != mode:
        if finding := run_sanitized(mode, Case(launch, buffers, schedule, source_text)):
            raise EmulationError(finding)
        return {}
    text = text_of(launch, source_text)
    check(launch, buffers, text)
    library = load(kernel_library(launch.source, launch.macros, mode, text))
    with RUNNING, Memory(library, buffers) as memory:
        return start(library, launch, memory, launch.shared, schedule)


def text_of(launch: Launch, given: str | None) -> str:
    """The source of a launch, unless another is given."""
    return source_text(launch.source) if given is None else given


def run_sanitized(mode: str, cases: Case | Sequence[Case]) -> str:
    """Run launches one after another in a process of their own, under a sanitizer.

    Returns
    -------
    str
        The first finding and, where known, the place in the kernel; empty if there is none, and then the buffers
        have been updated in place.
    """
    cases = [cases] if isinstance(cases, Case) else list(cases)
    for case in cases:  # here, where the compiler is not run by a sanitized process
        text = text_of(case.launch, case.source_text)
        check(case.launch, case.buffers, text)
        kernel_library(case.launch.source, case.launch.macros, mode, text)
    runtime = subprocess.run([compiler(), f"-print-file-name={RUNTIMES[mode]}"], capture_output=True, text=True)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    environment = {**inherited, **SANITIZER_OPTIONS, "LD_PRELOAD": runtime.stdout.strip(), "VOXRING_SANITIZER": mode}
    plain = [case._replace(launch=case.launch._asdict()) for case in cases]
    with tempfile.TemporaryDirectory(dir=folder()) as scratch:
        given, results = Path(scratch) / "cases", Path(scratch) / "results"
        given.write_bytes(pickle.dumps([tuple(case) for case in plain]))
        command = [sys.executable, __file__, mode, str(given), str(results)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PROCESS_SECONDS)
        if done.returncode:
            return _first_finding(done.stdout + done.stderr)
        for case, result in zip(cases, pickle.loads(results.read_bytes()), strict=True):  # noqa: S301 - our own
            for name, buffer in case.buffers.items():
                if buffer.flags.writeable:
                    buffer[...] = result[name]
    return ""


def _first_finding(report: str) -> str:
    found = FINDING.search(report)
    if not found:
        return "the process died: " + (report.strip().splitlines() or ["without a word"])[-1]
    place = re.search(r"#\d+ .*?(\w+\.cuh?:\d+)", report[found.end() :])
    return found[0].strip() + (f" ({place[1]})" if place else "")


def _sanitized_process(mode: str, given: str, results: str) -> None:
    outcome = []
    for fields, buffers, schedule, text in pickle.loads(Path(given).read_bytes()):  # noqa: S301 - our own
        run(SimpleNamespace(**fields), buffers, schedule, mode, text)
        outcome.append(buffers)
    Path(results).write_bytes(pickle.dumps(outcome))


if __name__ == "__main__":
    _sanitized_process(*sys.argv[1:])
