"""What every runner does with a launch: find its source, read its signature, and check and pack its arguments."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:  # not at run time: a sanitized process need not import the package
    from voxring.kernels.cuda.plans import Launch

Macros = tuple[tuple[str, int], ...]

KERNELS = Path(__file__).resolve().parents[2] / "kernels" / "cuda"

C_TYPES = {
    "bool": "?",
    "char": "i1",
    "signed char": "i1",
    "unsigned char": "u1",
    "short": "i2",
    "unsigned short": "u2",
    "int": "i4",
    "unsigned": "u4",
    "unsigned int": "u4",
    "long long": "i8",
    "unsigned long long": "u8",
    "float": "f4",
    "double": "f8",
}
VECTORS = {
    "char": "i1",
    "uchar": "u1",
    "short": "i2",
    "ushort": "u2",
    "int": "i4",
    "uint": "u4",
    "longlong": "i8",
    "ulonglong": "u8",
    "float": "f4",
}
KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\((?:[^()]|\([^()]*\))*\)\s*)?(\w+)\s*\('
)


class LaunchError(Exception):
    """A launch that the CUDA driver would refuse, or worse, would take."""


class Parameter(NamedTuple):
    """One parameter of a kernel: its type, or what it points to."""

    name: str
    dtype: np.dtype
    pointer: bool
    readonly: bool


def source_text(source: str | Path) -> str:
    """The text of a file in kernels/cuda, or of any other path."""
    return (KERNELS / source).read_text()


@lru_cache
def compiler() -> str:
    """The host's C++ compiler."""
    for name in ("g++", "c++", "clang++"):
        if path := shutil.which(name):
            return path
    raise LookupError("no C++ compiler: install g++")


def definitions(macros: Macros) -> list[str]:
    """Macros as a compiler is told them."""
    return [f"-D{name}={value}" for name, value in macros]


@lru_cache
def preprocessed(text: str, macros: Macros) -> str:
    """A kernel's source without comments, directives and macros; the keywords of CUDA stay."""
    command = [compiler(), "-E", "-P", "-x", "c++", "-std=c++17", f"-I{KERNELS}", *definitions(macros), "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise LaunchError(done.stderr.strip())
    return done.stdout


def kernels_of(text: str, macros: Macros = ()) -> list[str]:
    """The names of the kernels in a source."""
    return KERNEL.findall(preprocessed(text, macros))


@lru_cache
def signature(text: str, kernel: str, macros: Macros) -> tuple[Parameter, ...]:
    """The parameters of a kernel, read from its declaration."""
    code = preprocessed(text, macros)
    for found in KERNEL.finditer(code):
        if found[1] == kernel:
            declared = code[found.end() : code.index(")", found.end())]
            aliases = _aliases(code)
            return tuple(_parameter(one, aliases) for one in declared.split(",") if one.strip())
    raise LaunchError(f'no extern "C" __global__ void {kernel} in the source')


def _aliases(code: str) -> dict[str, str]:
    """What `typedef` and `using` call a type."""
    aliases = {name: " ".join(kind.split()) for kind, name in re.findall(r"typedef\s+([\w\s]+?)\s+(\w+)\s*;", code)}
    aliases |= {name: " ".join(kind.split()) for name, kind in re.findall(r"using\s+(\w+)\s*=\s*([\w\s]+?)\s*;", code)}
    return aliases


def _parameter(declared: str, aliases: dict[str, str]) -> Parameter:
    words = re.sub(r"\b(__restrict__|__restrict|__grid_constant__)\b|\*", " ", declared).split()
    *kind, name = words
    pointer = "*" in declared
    c_type = " ".join(word for word in kind if word != "const")
    while c_type in aliases:
        c_type = aliases[c_type]
    vector = re.fullmatch(r"([a-z]+)[1-4]", c_type)
    code = VECTORS.get(vector[1]) if vector and pointer else C_TYPES.get(c_type)
    if code is None:
        raise LaunchError(f"parameter {declared.strip()}: no buffer or scalar of a test has the type {c_type}")
    return Parameter(name, np.dtype(code), pointer, pointer and "const" in kind)


def check(launch: Launch, buffers: dict[str, np.ndarray], text: str) -> tuple[Parameter, ...]:
    """Compare the arguments of a launch with the kernel's declaration, in number and type.

    Raises
    ------
    LaunchError
        They differ, or a buffer is missing or not contiguous. The driver would not notice.
    """
    parameters = signature(text, launch.kernel, launch.macros)
    if len(parameters) != len(launch.arguments):
        raise LaunchError(f"{launch.kernel} takes {len(parameters)} arguments, got {len(launch.arguments)}")
    for parameter, argument in zip(parameters, launch.arguments, strict=True):
        where = f"{launch.kernel}, parameter {parameter.name}"
        if isinstance(argument, str):
            if argument not in buffers:
                raise LaunchError(f"{where}: there is no buffer {argument}")
            if not buffers[argument].flags.c_contiguous:
                raise LaunchError(f"{where}: buffer {argument} is not contiguous")
        elif not isinstance(argument, np.generic):
            raise LaunchError(f"{where}: expected a buffer's name or a numpy scalar, got {type(argument).__name__}")
        given = buffers[argument].dtype if isinstance(argument, str) else argument.dtype
        if isinstance(argument, str) != parameter.pointer or given != parameter.dtype:
            expected = f"{'a buffer of ' if parameter.pointer else ''}{parameter.dtype}"
            raise LaunchError(f"{where}: expected {expected}, got {argument!r} of {given}")
    return parameters


def packed(launch: Launch) -> list[tuple[int, int]]:
    """(offset, size) of each argument, as a C compiler lays them out one behind another."""
    table, end = [], 0
    for argument in launch.arguments:
        size = 8 if isinstance(argument, str) else argument.dtype.itemsize
        offset = -(-end // size) * size
        table.append((offset, size))
        end = offset + size
    return table
