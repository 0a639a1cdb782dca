"""Compiles kernels with NVIDIA's own compiler, from the wheel nvidia-cuda-nvrtc, through ctypes: no CuPy, no driver.

A cubin is machine code for one architecture: what it needs of registers and shared memory stands in the compiler's log,
where each parameter is expected stands in the cubin, and nvdisasm (wheel nvidia-cuda-nvdisasm) lists its instructions.
"""

from __future__ import annotations

import ctypes
import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from cuda_tools.launches import KERNELS, Macros, definitions, source_text

ARCHITECTURES = (75, 80, 90, 100)

PARAMETER_INFO = 0x17  # of .nv.info.KERNEL: number, offset and size of a parameter
HAS_PAYLOAD = 4


class CompileError(Exception):
    """NVRTC refused a source; the message is its log."""


class Compiled(NamedTuple):
    """What NVRTC made of a source: a cubin or PTX, and what it said."""

    image: bytes
    log: str


class Resources(NamedTuple):
    """What one kernel needs on an architecture, in registers a thread and bytes."""

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared: int


class Instruction(NamedTuple):
    """One instruction of a kernel's machine code."""

    address: int
    text: str

    @property
    def opcode(self) -> str:
        """Its name with all its modifiers."""
        return re.sub(r"^@!?\w+\s+", "", self.text).split()[0]


def wheel_file(wheel: str, pattern: str) -> Path:
    """A file of an installed wheel."""
    for file in metadata.files(wheel) or ():
        if re.fullmatch(pattern, file.name):
            return Path(str(file.locate()))
    raise LookupError(f"{wheel}: no file {pattern}")


def installed() -> bool:
    """Whether NVRTC is here; its wheels are for Linux and Windows."""
    try:
        return bool(metadata.version("nvidia-cuda-nvrtc"))
    except metadata.PackageNotFoundError:
        return False


@lru_cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(wheel_file("nvidia-cuda-nvrtc", r"libnvrtc\.so[.\d]*|nvrtc64_\w+_0\.dll")))
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def _ok(result: int, log: str = "") -> None:
    if result:
        raise CompileError(f"{_library().nvrtcGetErrorString(result).decode()}\n{log}".strip())


def _product(program: ctypes.c_void_p, name: str) -> bytes:
    """What nvrtcGetNAME writes."""
    size = ctypes.c_size_t()
    _ok(getattr(_library(), f"nvrtcGet{name}Size")(program, ctypes.byref(size)))
    product = ctypes.create_string_buffer(size.value)
    _ok(getattr(_library(), f"nvrtcGet{name}")(program, product))
    return product.raw


@lru_cache
def compile(  # noqa: A001 - nvrtc.compile
    source: str | Path, macros: Macros = (), arch: int = 80, cubin: bool = True, options: tuple[str, ...] = ()
) -> Compiled:
    """Compile a kernel's source for one architecture.

    Parameters
    ----------
    source : Path or str
        A file (of kernels/cuda unless absolute), as a path or a name that ends in .cu; or the text itself.
    macros : tuple of (name, value)
    arch : int
        Compute capability, such as 75, 80, 90 or 100.
    cubin : bool
        Machine code, or else PTX.
    options : tuple of str
        More options of NVRTC.

    Raises
    ------
    CompileError
        With the compiler's log.
    """
    is_file = isinstance(source, Path) or source.endswith((".cu", ".cuh"))
    text, name = (source_text(source), Path(source).name) if is_file else (source, "kernel.cu")
    given = [f"--gpu-architecture={'sm' if cubin else 'compute'}_{arch}", "--std=c++17", "--fmad=false", "-lineinfo"]
    given += [f"--include-path={KERNELS}", *definitions(macros), *options]
    given += ["--ptxas-options=-v"] if cubin else []
    library, program = _library(), ctypes.c_void_p()
    _ok(library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), name.encode(), 0, None, None))
    try:
        packed = (ctypes.c_char_p * len(given))(*(option.encode() for option in given))
        result = library.nvrtcCompileProgram(program, len(given), packed)
        log = _product(program, "ProgramLog").rstrip(b"\0").decode()
        _ok(result, log)
        image = _product(program, "CUBIN") if cubin else _product(program, "PTX").rstrip(b"\0")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))
    return Compiled(image, log)


def resources(compiled: Compiled) -> dict[str, Resources]:
    """What each kernel of a cubin needs, from the compiler's log."""
    needs = {}
    for part in compiled.log.split("Compiling entry function ")[1:]:

        def number(pattern: str, part: str = part) -> int:
            found = re.search(pattern, part)
            return int(found[1]) if found else 0

        needs[part.split("'")[1]] = Resources(
            number(r"Used (\d+) registers"),
            number(r"(\d+) bytes spill stores"),
            number(r"(\d+) bytes spill loads"),
            number(r"(\d+) bytes (?:cumulative )?stack"),
            number(r"(\d+) bytes smem"),
        )
    return needs


def sections(cubin: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of each section of an ELF image."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    entry, count, names = struct.unpack_from("<3H", cubin, 58)
    headers = [struct.unpack_from("<IIQQQQ", cubin, table + i * entry) for i in range(count)]
    for name, kind, _, _, offset, size in headers:
        begin = headers[names][4] + name
        content = b"" if kind == 8 else cubin[offset : offset + size]  # 8: takes no room in the file
        yield cubin[begin : cubin.index(b"\0", begin)].decode(), content


def parameter_table(cubin: bytes, kernel: str) -> list[tuple[int, int]]:
    """(offset, size) of each parameter of a kernel, as the machine code reads them."""
    info = dict(sections(cubin))[f".nv.info.{kernel}"]
    table, at = {}, 0
    while at < len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        if attribute == PARAMETER_INFO:
            _, ordinal, offset, bits = struct.unpack_from("<IHHI", info, at + 4)
            table[ordinal] = (offset, bits >> 18)
        at += 4 + (size if form == HAS_PAYLOAD else 0)
    return [table[ordinal] for ordinal in sorted(table)]


def disassembly(cubin: bytes) -> dict[str, list[Instruction]]:
    """The instructions of each kernel of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = wheel_file("nvidia-cuda-nvdisasm", r"nvdisasm(\.exe)?")
        listing = subprocess.run([str(tool), "-c", file.name], capture_output=True, text=True, check=True).stdout
    kernels: dict[str, list[Instruction]] = {}
    for line in listing.splitlines():
        if section := re.match(r"\s*\.section\s+\.text\.(\w+)", line):
            current = kernels.setdefault(section[1], [])
        elif instruction := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", line):
            current.append(Instruction(int(instruction[1], 16), instruction[2]))
    return kernels
