"""Runs, on the CPU, the PTX that NVRTC made of a kernel.

Each instruction becomes a line of C++ on the emulation's fibers; ptx.h says what it does, and what it checks of memory.
Instructions are counted, and with them the bytes that loads and stores ask for: what a warp asks for together, caches
and coalescing are not modelled. Registers that nobody set hold garbage. What the kernels have no use for is refused by
name: floating point, local memory, calls, generic addresses.
"""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cuda_tools import emulation, nvrtc
from cuda_tools.launches import LaunchError, Macros, Parameter, check

if TYPE_CHECKING:
    from voxring.kernels.cuda.plans import Launch

HEADER = Path(__file__).with_name("ptx.h")
FLAGS = [
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-fno-gnu-unique",
    "-fno-strict-aliasing",
    "-w",
]
GAP = 16  # bytes between shared arrays, which belong to nobody
GARBAGE = 0xA5A5_A5A5_A5A5_A5A5
MEMORY = ("ld", "st", "red", "atom")

SPECIAL = {
    "%laneid": "(emulation::current->rank % 32)",
    "%warpid": "(emulation::current->rank / 32)",
    "WARP_SZ": "32",
}
SPECIAL |= {
    f"%{ptx}.{axis}": f"{cuda}.{axis}"
    for ptx, cuda in (("tid", "threadIdx"), ("ntid", "blockDim"), ("ctaid", "blockIdx"), ("nctaid", "gridDim"))
    for axis in "xyz"
}
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
COMPARISONS |= {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
LOGICAL = {"and": "&&", "or": "||", "xor": "!="}
SHUFFLES = {"up": "up", "down": "down", "bfly": "butterfly", "idx": "index"}
CHANGES = {
    "add": "old + value",
    "min": "ptx::least(old, value)",
    "max": "ptx::most(old, value)",
    "and": "old & value",
    "or": "old | value",
    "xor": "old ^ value",
    "exch": "value",
}


class Unsupported(Exception):  # noqa: N818 - it says of a kernel what it is
    """PTX that this runner does not know; the message names the instruction."""


class Counts(NamedTuple):
    """What the threads of a launch did.

    Attributes
    ----------
    instructions : Counter
        How often each PTX instruction, with all its modifiers, was executed by a thread.
    global_loaded, global_stored, shared_loaded, shared_stored : int
        Bytes that threads asked for; an atomic counts as stored.
    emulator : dict
        The counters of `emulation.run`.
    """

    instructions: Counter[str]
    global_loaded: int
    global_stored: int
    shared_loaded: int
    shared_stored: int
    emulator: dict[str, int]

    def total(self, *prefixes: str) -> int:
        """Executions of the instructions that begin so, of all without a prefix."""
        return sum(count for name, count in self.instructions.items() if not prefixes or name.startswith(prefixes))


class Array(NamedTuple):
    """A shared array: where it begins, and its bytes; None if the launch says how many."""

    name: str
    offset: int
    size: int | None


class Statement(NamedTuple):
    """One statement of PTX, and where it stands in PTX and in the source."""

    text: str
    line: int
    source: str


class Program(NamedTuple):
    """A kernel in C++, and what is needed to run it and to understand it."""

    text: str
    parameters: list[str]
    shared: list[Array]
    pieces: list[list[str]]
    statements: dict[int, Statement]


def c_type(ptx_type: str, signed: bool | None = None) -> str:
    """The C++ type of a PTX type; with ``signed`` given, of that signedness."""
    found = re.fullmatch(r"([usb])(8|16|32|64)", ptx_type)
    if ptx_type == "pred":
        return "bool"
    if not found:
        raise Unsupported(f"type .{ptx_type}")
    is_signed = found[1] == "s" if signed is None else signed
    return f"{'' if is_signed else 'u'}int{found[2]}_t"


def bits(ptx_type: str) -> int:
    """The width of a type."""
    return int(re.sub(r"\D", "", ptx_type))


def split_operands(text: str) -> list[str]:
    """Operands, at the commas outside brackets and braces."""
    parts = re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+", text)
    return [part.strip() for part in parts if part.strip()]


def tokens(body: str, first_line: int, files: dict[str, str]) -> Iterator[Statement]:
    """The statements of a kernel's body: labels end with a colon, braces stand alone."""
    shape = re.compile(r"\s+|//[^\n]*|(?P<loc>\.loc[^\n]*)|(?P<label>[$\w]+:)|(?P<brace>[{}])|(?P<text>[^;]+);")
    at, source = 0, ""
    while found := shape.match(body, at):
        line = first_line + body.count("\n", 0, found.start())
        at = found.end()
        if found["loc"]:
            _, number, row, *_ = found["loc"].split()
            source = f"{files.get(number, 'kernel.cu')}:{row}"
        elif token := found["label"] or found["brace"] or found["text"]:
            yield Statement(" ".join(re.sub(r"//[^\n]*", " ", token).split()), line, source)
    if body[at:].strip():
        raise Unsupported(body[at:].strip().splitlines()[0])


class Translator:
    """Turns the statements of one kernel into C++."""

    def __init__(self, shared: list[Array]):
        self.symbols = {array.name: array.offset for array in shared}
        self.lines: list[str] = []
        self.declarations: list[str] = []
        self.pieces: list[list[str]] = []
        self.piece: int | None = None  # the straight piece that is being written
        self.branch_targets: dict[str, list[str]] = {}
        self.depth = 0
        self.line = 0

    # Operands

    def operand(self, text: str, kind: str) -> str:
        """A value of a type: a register, a special register, a number, or the address of a shared array."""
        target = c_type(kind)
        if text in SPECIAL:
            return f"{target}({SPECIAL[text]})"
        if text.startswith("%"):
            return f"{target}({text[1:]})"
        if text in self.symbols:
            return f"{target}({self.symbols[text]})"
        if kind == "pred" and text in "01":
            return ("false", "true")[int(text)]
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
            value = int(text.rstrip("U"), 0) & (1 << 64) - 1
            return f"{target}({value:#x}ull)"
        if re.fullmatch(r"[\w$]+", text):  # declared by inline assembly
            return f"{target}({text})"
        raise Unsupported(f"operand {text}")

    def register(self, text: str) -> str:
        """A register to be written."""
        if not re.fullmatch(r"%?[\w$]+", text):
            raise Unsupported(f"destination {text}")
        return text.lstrip("%")

    def address(self, text: str, space: str) -> str:
        """The address in ``[register + offset]`` or ``[array + offset]``."""
        base, _, offset = (part.strip() for part in text.strip("[]").partition("+"))
        width = "u32" if space == "shared" else "u64"
        return f"{self.operand(base, width)} + {self.operand(offset or '0', width)}"

    # Statements

    def statement(self, statement: Statement) -> None:
        """Translate one statement; complain with its whole text."""
        self.line = statement.line
        try:
            self._statement(statement.text)
        except Unsupported as problem:
            raise Unsupported(f"{statement.text} ({statement.source}): {problem}") from None

    def _statement(self, text: str) -> None:
        if text in ("{", "}"):
            self.lines.append(text)
            self.depth += 1 if text == "{" else -1
        elif text.endswith(":"):
            self.lines.append(f"{self._label(text[:-1])}:;")
            self.piece, self.last_label = None, text[:-1]
        elif text.startswith(".reg"):
            self._declare(text)
        elif text.startswith(".branchtargets"):
            self.branch_targets[self.last_label] = split_operands(text.removeprefix(".branchtargets"))
        elif text.startswith(".local"):
            raise Unsupported("local memory")
        elif text.startswith("."):
            if not text.startswith((".pragma", ".shared")):
                raise Unsupported("directive")
        else:
            self._instruction(text)

    def _label(self, name: str) -> str:
        return "label_" + name.replace("$", "")

    def _declare(self, text: str) -> None:
        _, kind, names = text.split(maxsplit=2)
        kind = kind[1:]
        width = c_type(kind.replace("f", "b"), signed=False)  # an instruction that works on floats is refused
        garbage = "true" if kind == "pred" else f"{width}({GARBAGE:#x}ull)"
        for name in split_operands(names):
            many = re.fullmatch(r"%(\w+)<(\d+)>", name)
            registers = [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [self.register(name)]
            where = self.lines if self.depth else self.declarations
            where += [f"{width} {register} = {garbage};" for register in registers]

    def _instruction(self, text: str) -> None:
        guard = re.match(r"@(!?)%(\w+)\s+", text)
        plain = text[guard.end() :] if guard else text
        opcode, _, operands = plain.partition(" ")
        base, *modifiers = opcode.split(".")
        translate: Callable[[list[str], list[str]], str] | None = getattr(self, f"_{base}", None)
        if translate is None or base == "label":
            raise Unsupported(f"instruction {base}")
        code = translate(modifiers, split_operands(operands))
        leaves = base in ("bra", "brx", "ret", "exit")
        if guard:
            self.lines.append(f"if ({guard[1]}{guard[2]}) {{ {self._count(opcode)} {code} }}")
        else:
            if self.piece is None:
                self.piece = len(self.pieces)
                self.lines.append(self._count())
            self.pieces[self.piece].append(opcode)
            self.lines.append(f"{{ {code} }}")
        if leaves:
            self.piece = None

    def _count(self, *opcodes: str) -> str:
        """Begin a straight piece: it is counted once, whatever its length."""
        self.pieces.append(list(opcodes))
        return f"ptx::executed[{len(self.pieces) - 1}]++;"

    # Arithmetic

    def _call_of(self, function: str, kind: str, operands: list[str], kinds: list[str] | None = None) -> str:
        target, *values = operands
        kinds = kinds or [kind] * len(values)
        given = ", ".join(self.operand(value, of) for value, of in zip(values, kinds, strict=True))
        return f"{self.register(target)} = {c_type(kind)}({function}({given}));"

    def _infix(self, sign: str, modifiers: list[str], operands: list[str]) -> str:
        if len(modifiers) != 1:
            raise Unsupported("modifiers")
        target, a, b = operands
        (kind,) = modifiers
        if kind.endswith("x2"):
            each = f"[](unsigned x, unsigned y) {{ return x {sign} y; }}"
            return f"{self.register(target)} = emulation::by_lanes<16>({self._words(a, b)}, {each});"
        unsigned = c_type(kind, signed=False)
        value = f"{unsigned}({self.operand(a, kind)}) {sign} {unsigned}({self.operand(b, kind)})"
        return f"{self.register(target)} = {unsigned}({value});"

    def _words(self, *operands: str) -> str:
        return ", ".join(self.operand(one, "u32") for one in operands)

    def _add(self, modifiers: list[str], operands: list[str]) -> str:
        return self._infix("+", modifiers, operands)

    def _sub(self, modifiers: list[str], operands: list[str]) -> str:
        return self._infix("-", modifiers, operands)

    def _and(self, modifiers: list[str], operands: list[str]) -> str:
        return self._infix("&", modifiers, operands)

    def _or(self, modifiers: list[str], operands: list[str]) -> str:
        return self._infix("|", modifiers, operands)

    def _xor(self, modifiers: list[str], operands: list[str]) -> str:
        return self._infix("^", modifiers, operands)

    def _not(self, modifiers: list[str], operands: list[str]) -> str:
        target, a = operands
        sign = "!" if modifiers == ["pred"] else "~"
        return f"{self.register(target)} = {sign}{self.operand(a, modifiers[-1])};"

    def _neg(self, modifiers: list[str], operands: list[str]) -> str:
        target, a = operands
        return f"{self.register(target)} = 0 - {c_type(modifiers[-1], signed=False)}({self.operand(a, modifiers[-1])});"

    def _abs(self, modifiers: list[str], operands: list[str]) -> str:
        target, a = operands
        value, unsigned = self.operand(a, modifiers[-1]), c_type(modifiers[-1], signed=False)
        return f"{self.register(target)} = {value} < 0 ? {unsigned}(0 - {unsigned}({value})) : {unsigned}({value});"

    def _product(self, modifiers: list[str], operands: list[str], plus: str | None) -> str:
        if len(modifiers) != 2 or modifiers[0] not in ("lo", "hi", "wide"):
            raise Unsupported("modifiers")
        part, kind = modifiers
        width = bits(kind)
        wide = f"ptx::{'signed' if kind[0] == 's' else 'unsigned'}_128"
        value = f"{wide}({self.operand(operands[1], kind)}) * {wide}({self.operand(operands[2], kind)})"
        if part == "hi":
            value = f"({value}) >> {width}"
        result = f"uint{2 * width if part == 'wide' else width}_t"
        value = f"{result}({value})"
        if plus is not None:
            value = f"{result}({value} + {result}({self.operand(plus, result_kind(kind, part))}))"
        return f"{self.register(operands[0])} = {value};"

    def _mul(self, modifiers: list[str], operands: list[str]) -> str:
        return self._product(modifiers, operands, None)

    def _mad(self, modifiers: list[str], operands: list[str]) -> str:
        return self._product(modifiers, operands[:3], operands[3])

    def _division(self, modifiers: list[str], operands: list[str], remainder: str) -> str:
        target, a, b = operands
        kind = modifiers[-1]
        given = f"{self.operand(a, kind)}, {self.operand(b, kind)}, {remainder}, {self.line}"
        return f"{self.register(target)} = ptx::divide<{c_type(kind)}>({given});"

    def _div(self, modifiers: list[str], operands: list[str]) -> str:
        return self._division(modifiers, operands, "false")

    def _rem(self, modifiers: list[str], operands: list[str]) -> str:
        return self._division(modifiers, operands, "true")

    def _extreme(self, function: str, modifiers: list[str], operands: list[str]) -> str:
        kind = modifiers[-1]
        if not kind.endswith("x2"):
            return self._call_of(f"ptx::{function}", kind, operands)
        lane = c_type(kind.removesuffix("x2"))
        each = f"[](unsigned x, unsigned y) {{ return unsigned(ptx::{function}({lane}(x), {lane}(y))); }}"
        return f"{self.register(operands[0])} = emulation::by_lanes<16>({self._words(*operands[1:])}, {each});"

    def _min(self, modifiers: list[str], operands: list[str]) -> str:
        return self._extreme("least", modifiers, operands)

    def _max(self, modifiers: list[str], operands: list[str]) -> str:
        return self._extreme("most", modifiers, operands)

    def _shl(self, modifiers: list[str], operands: list[str]) -> str:
        kind = modifiers[-1]
        return self._call_of("ptx::shift_left", kind, operands, [kind, "u32"])

    def _shr(self, modifiers: list[str], operands: list[str]) -> str:
        kind = modifiers[-1]
        return self._call_of("ptx::shift_right", kind, operands, [kind, "u32"])

    def _shf(self, modifiers: list[str], operands: list[str]) -> str:
        side, mode, _ = modifiers
        given = f"{self._words(*operands[1:])}, {str(side == 'l').lower()}, {str(mode == 'clamp').lower()}"
        return f"{self.register(operands[0])} = ptx::funnel({given});"

    def _popc(self, modifiers: list[str], operands: list[str]) -> str:
        target, a = operands
        return f"{self.register(target)} = __popcll({self.operand(a, modifiers[-1])});"

    def _clz(self, modifiers: list[str], operands: list[str]) -> str:
        target, a = operands
        spare = 64 - bits(modifiers[-1])
        return f"{self.register(target)} = __clzll({self.operand(a, modifiers[-1])}) - {spare};"

    def _brev(self, modifiers: list[str], operands: list[str]) -> str:
        if modifiers != ["b32"]:
            raise Unsupported("width")
        return self._call_of("__brev", "u32", operands)

    def _bfind(self, modifiers: list[str], operands: list[str]) -> str:
        kind = modifiers[-1]
        return self._call_of(f"ptx::find<{str('shiftamt' in modifiers).lower()}>", kind, operands)

    def _prmt(self, modifiers: list[str], operands: list[str]) -> str:
        if modifiers != ["b32"]:
            raise Unsupported("mode")
        return self._call_of("ptx::permute", "u32", operands)

    def _lop3(self, modifiers: list[str], operands: list[str]) -> str:
        if modifiers != ["b32"]:
            raise Unsupported("mode")
        return self._call_of("ptx::logic", "u32", operands)

    def _bfe(self, modifiers: list[str], operands: list[str]) -> str:
        kind = modifiers[-1]
        return self._call_of("ptx::extract", kind, operands, [kind, "u32", "u32"])

    def _bfi(self, modifiers: list[str], operands: list[str]) -> str:
        kind = modifiers[-1]
        return self._call_of("ptx::insert", kind, operands, [kind, kind, "u32", "u32"])

    def _dot(self, operands: list[str], lane: int, first_byte: int, a_kind: str, b_kind: str) -> str:
        target, a, b, c = operands
        signs = [str(kind[0] == "s").lower() for kind in (a_kind, b_kind)]
        given = f"{self._words(a)}, {lane}, {signs[0]}, {self._words(b)}, {first_byte}, {signs[1]}, {self._words(c)}"
        return f"{self.register(target)} = emulation::dot({given});"

    def _dp2a(self, modifiers: list[str], operands: list[str]) -> str:
        half, a_kind, b_kind = modifiers
        return self._dot(operands, 16, 2 if half == "hi" else 0, a_kind, b_kind)

    def _dp4a(self, modifiers: list[str], operands: list[str]) -> str:
        return self._dot(operands, 8, 0, *modifiers)

    def _sad(self, modifiers: list[str], operands: list[str]) -> str:
        kind = modifiers[-1]
        target, a, b, c = (operands[0], *(self.operand(one, kind) for one in operands[1:]))
        unsigned = c_type(kind, signed=False)
        high, low = f"ptx::most({a}, {b})", f"ptx::least({a}, {b})"
        return f"{self.register(target)} = {unsigned}({c}) + {unsigned}({high}) - {unsigned}({low});"

    def _vabsdiff4(self, modifiers: list[str], operands: list[str]) -> str:
        if modifiers != ["u32", "u32", "u32"]:
            raise Unsupported("signs or sums")
        return self._call_of("__vabsdiffu4", "u32", operands[:3])

    # Moves, comparisons, conversions

    def _mov(self, modifiers: list[str], operands: list[str]) -> str:
        target, source = operands
        kind = modifiers[-1]
        if source.startswith("{"):
            parts = split_operands(source.strip("{}"))
            width = bits(kind) // len(parts)
            whole = c_type(kind, signed=False)
            joined = " | ".join(
                f"{whole}({self.operand(part, f'b{width}')}) << {width * i}" for i, part in enumerate(parts)
            )
            return f"{self.register(target)} = {joined};"
        if target.startswith("{"):
            parts = split_operands(target.strip("{}"))
            width = bits(kind) // len(parts)
            value = self.operand(source, kind)
            return " ".join(
                f"{self.register(part)} = {c_type(f'b{width}')}({value} >> {width * i});"
                for i, part in enumerate(parts)
                if part != "_"
            )
        return f"{self.register(target)} = {self.operand(source, kind)};"

    def _setp(self, modifiers: list[str], operands: list[str]) -> str:
        comparison, *combine, kind = modifiers
        targets = operands[0].split("|")
        a, b = (self.operand(one, kind) for one in operands[1:3])
        code = f"const bool holds = {a} {COMPARISONS[comparison]} {b};"
        rest = ""
        if combine:
            rest = f" {LOGICAL[combine[0]]} {self._predicate(operands[3])}"
        for target, value in zip(targets, ("(holds)", "(!holds)"), strict=False):
            if target.strip() != "_":
                code += f" {self.register(target.strip())} = {value}{rest};"
        return code

    def _predicate(self, text: str) -> str:
        return f"!{self.operand(text[1:], 'pred')}" if text.startswith("!") else self.operand(text, "pred")

    def _selp(self, modifiers: list[str], operands: list[str]) -> str:
        target, a, b, chosen = operands
        kind = modifiers[-1]
        value = f"{self._predicate(chosen)} ? {self.operand(a, kind)} : {self.operand(b, kind)}"
        return f"{self.register(target)} = {value};"

    def _cvt(self, modifiers: list[str], operands: list[str]) -> str:
        if len(modifiers) != 2:
            raise Unsupported("rounding or saturation")
        to, of = modifiers
        target, source = operands
        return f"{self.register(target)} = {c_type(to)}({self.operand(source, of)});"

    def _cvta(self, modifiers: list[str], operands: list[str]) -> str:
        if "global" not in modifiers:
            raise Unsupported("generic addresses")
        return f"{self.register(operands[0])} = {self.operand(operands[1], 'u64')};"

    # Memory

    def _access(self, modifiers: list[str], place: str, kind: str) -> tuple[str, str, int]:
        """C++ for a checked pointer, the type of an element, and how many there are."""
        space = space_of(modifiers)
        if space is None:
            named = [f"{one} memory" for one in modifiers if one in ("local", "const")]
            raise Unsupported(*named or ["generic addresses"])
        count = element_count(modifiers)
        element = c_type(modifiers[-1], signed=False)
        address = self.address(place, space)
        pointer = f"ptx::{space}<{element}, {count}, ptx::Kind::{kind}>({address}, {self.line})"
        return f"auto *at = {pointer};", element, count

    def _ld(self, modifiers: list[str], operands: list[str]) -> str:
        target, place = operands
        if "param" in modifiers:
            name = place.strip("[]")
            if not re.fullmatch(r"\w+", name) or element_count(modifiers) != 1:
                raise Unsupported("parameters that are structures")
            return f"{self.register(target)} = {c_type(modifiers[-1])}({name});"
        pointer, _, count = self._access(modifiers, place, "read")
        targets = split_operands(target.strip("{}")) if count > 1 else [target]
        read = c_type(modifiers[-1])
        values = "".join(f" {self.register(one)} = {read}(at[{i}]);" for i, one in enumerate(targets) if one != "_")
        return pointer + values

    def _st(self, modifiers: list[str], operands: list[str]) -> str:
        place, source = operands
        pointer, _, count = self._access(modifiers, place, "write")
        sources = split_operands(source.strip("{}")) if count > 1 else [source]
        kind = modifiers[-1]
        return pointer + "".join(f" at[{i}] = {self.operand(one, kind)};" for i, one in enumerate(sources))

    def _change(self, modifiers: list[str], target: str | None, place: str, values: list[str]) -> str:
        kind = modifiers[-1]
        pointer, element, _ = self._access(modifiers, place, "atomic")
        operation = next((one for one in modifiers if one in CHANGES or one == "cas"), None)
        if operation is None or any(one.startswith(("v2", "v4")) for one in modifiers):
            raise Unsupported("operation")
        code = f"{pointer} const auto value = {self.operand(values[-1], kind)};"
        change = CHANGES.get(operation, "old == expected ? value : old")
        if operation == "cas":
            code += f" const auto expected = {self.operand(values[0], kind)};"
        typed = f"reinterpret_cast<{c_type(kind)} *>(at)"
        change = (
            f"emulation::read_modify_write({typed}, [=]({c_type(kind)} old) {{ return {c_type(kind)}({change}); }})"
        )
        return f"{code} {f'{self.register(target)} = {element}({change})' if target else change};"

    def _red(self, modifiers: list[str], operands: list[str]) -> str:
        place, *values = operands
        return self._change(modifiers, None, place, values)

    def _atom(self, modifiers: list[str], operands: list[str]) -> str:
        target, place, *values = operands
        return self._change(modifiers, None if target == "_" else target, place, values)

    # Where threads meet, and where they go

    def _bar(self, modifiers: list[str], operands: list[str]) -> str:
        if modifiers[:2] == ["warp", "sync"]:
            return f"ptx::meet(emulation::Operation::sync, 0, {self._words(operands[0])}, {self.line});"
        if modifiers != ["sync"] or operands != ["0"]:
            raise Unsupported("barriers of a part of the block")
        return f"emulation::barrier(ptx::place({self.line}));"

    def _barrier(self, modifiers: list[str], operands: list[str]) -> str:
        return self._bar([one for one in modifiers if one not in ("cta", "aligned")], operands)

    def _shfl(self, modifiers: list[str], operands: list[str]) -> str:
        targets, a, step, clamp, mask = operands
        target, _, inside = (part.strip() for part in targets.partition("|"))
        kind = f"emulation::Shuffle::{SHUFFLES[modifiers[1]]}"
        code = f"bool inside; const auto value = ptx::shuffle({kind}, {self._words(a, step, clamp, mask)}, inside, "
        code += f"{self.line}); {self.register(target)} = value;"
        return code + (f" {self.register(inside)} = inside;" if inside not in ("", "_") else "")

    def _vote(self, modifiers: list[str], operands: list[str]) -> str:
        target, a, mask = operands
        operation = f"emulation::Operation::{modifiers[1]}"
        value = f"ptx::meet({operation}, {self._predicate(a)}, {self._words(mask)}, {self.line})"
        return f"{self.register(target)} = {value};"

    def _redux(self, modifiers: list[str], operands: list[str]) -> str:
        _, operation, kind = modifiers
        target, a, mask = operands
        extended = f"uint64_t({'int64_t' if kind[0] == 's' else 'uint64_t'}({self.operand(a, kind)}))"
        name = {"and": "bit_and", "or": "bit_or", "xor": "bit_xor"}.get(operation, operation)
        if operation in ("min", "max"):
            name += "_signed" if kind[0] == "s" else "_unsigned"
        value = f"ptx::meet(emulation::Operation::{name}, {extended}, {self._words(mask)}, {self.line})"
        return f"{self.register(target)} = uint32_t({value});"

    def _bra(self, modifiers: list[str], operands: list[str]) -> str:
        return f"goto {self._label(operands[0])};"

    def _brx(self, modifiers: list[str], operands: list[str]) -> str:
        index, table = operands
        targets = self.branch_targets[table]
        cases = " ".join(f"case {i}: goto {self._label(one)};" for i, one in enumerate(targets))
        return f'switch ({self._words(index)}) {{ {cases} default: ptx::fail({self.line}, "no such branch"); }}'

    def _ret(self, modifiers: list[str], operands: list[str]) -> str:
        return "return;"

    _exit = _ret

    def _trap(self, modifiers: list[str], operands: list[str]) -> str:
        return f'ptx::fail({self.line}, "trap");'


def result_kind(kind: str, part: str) -> str:
    """The type of the sum in a mad."""
    return f"{kind[0]}{2 * bits(kind) if part == 'wide' else bits(kind)}"


def space_of(modifiers: list[str]) -> str | None:
    """The state space of a memory instruction, global or shared."""
    spaces = {one.partition("::")[0] for one in modifiers} & {"global", "shared"}
    return spaces.pop() if spaces else None


def element_count(modifiers: list[str]) -> int:
    """How many elements a memory instruction moves."""
    return next((int(one[1:]) for one in modifiers if one in ("v2", "v4")), 1)


def shared_arrays(module: str, body: str) -> list[Array]:
    """The static shared arrays one behind another, then the dynamic one."""
    arrays, end = [], 0
    for align, name, size in re.findall(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]", module + body):
        end = -(-end // int(align)) * int(align)
        arrays.append(Array(name, end, int(size)))
        end += int(size) + GAP
    for name in re.findall(r"\.extern\s+\.shared\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[\]", module):
        arrays.append(Array(name, -(-end // 16) * 16, None))
    return arrays


@lru_cache
def translate(ptx: str, kernel: str) -> Program:
    """A kernel of a PTX module in C++."""
    entry = re.search(rf"\.entry\s+{kernel}\s*\(([^)]*)\)([^{{]*)\{{(.*?)\n\}}", ptx, re.S)
    if not entry:
        raise LookupError(f"no kernel {kernel} in the PTX")
    files = {number: Path(name).name for number, name in re.findall(r'\.file\s+(\d+)\s+"([^"]+)"', ptx)}
    parameters = re.findall(
        r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr\s[^,]*?)?(\w+)\s*(?:,|$)", entry[1].strip()
    )
    shared = shared_arrays(ptx[: entry.start()], entry[3])
    translator = Translator(shared)
    statements = {}
    for statement in tokens(entry[3], ptx.count("\n", 0, entry.start(3)) + 1, files):
        translator.statement(statement)
        statements.setdefault(statement.line, statement)
    declared = ", ".join(f"{c_type(kind, signed=False)} {name}" for kind, name in parameters)
    body = "\n".join([*translator.declarations, *translator.lines])
    text = f'#include "{HEADER}"\nvoid {kernel}({declared}) {{\n{body}\n}}\nEMULATION_KERNEL({kernel})\n'
    return Program(text, [kind for kind, _ in parameters], shared, translator.pieces, statements)


@lru_cache
def _built(text: str, source: str, kernel: str, macros: Macros, arch: int) -> tuple[Program, Path]:
    ptx = nvrtc.compile(f'#line 1 "{source}"\n{text}', macros, arch, cubin=False).image.decode()
    program = translate(ptx, kernel)
    return program, emulation.build(f"{Path(source).stem}-ptx{arch}", program.text, FLAGS)


def run(
    launch: Launch,
    buffers: dict[str, np.ndarray],
    schedule: int = 0,
    arch: int = 80,
    source_text: str | None = None,
    races: bool = True,
    uninitialised: bool = True,
) -> Counts:
    """Run the PTX that NVRTC makes of a launch's kernel; the buffers are updated in place.

    Parameters
    ----------
    launch, buffers, schedule, source_text
        As for `emulation.run`.
    arch : int
        The architecture that PTX is made for.
    races : bool
        Check that accesses to shared memory, and to buffers that are not const, are ordered. Takes most of the time.
    uninitialised : bool
        With races, check too that shared memory is written before it is read; else it holds garbage.

    Returns
    -------
    Counts

    Raises
    ------
    LaunchError, EmulationError
        As `emulation.run`; the message names the instruction, and its line in the source.
    Unsupported
        The PTX holds an instruction that this runner does not know.
    """
    text = emulation.text_of(launch, source_text)
    parameters = check(launch, buffers, text)
    program, path = _built(text, launch.source, launch.kernel, launch.macros, arch)
    _check_widths(program, parameters)
    library = emulation.load(path)
    with emulation.RUNNING, emulation.Memory(library, buffers) as memory:
        library.ptx_begin(ctypes.c_bool(races), ctypes.c_bool(uninitialised))
        written = {a for a, p in zip(launch.arguments, parameters, strict=True) if p.pointer and not p.readonly}
        for name, buffer in buffers.items():
            _region(library, False, name, memory.address[name], buffer.nbytes, name not in written)
        end = 0
        for array in program.shared:
            size = launch.shared if array.size is None else array.size
            _region(library, True, array.name, array.offset, size, False)
            end = max(end, array.offset + size)
        try:
            counters = emulation.start(library, launch, memory, end, schedule)
        except emulation.EmulationError as error:
            raise emulation.EmulationError(_explained(str(error), program.statements)) from None
        return _counts(library, program, counters)


def _check_widths(program: Program, parameters: tuple[Parameter, ...]) -> None:
    expected = [bits(kind) for kind in program.parameters]
    given = [64 if one.pointer else 8 * one.dtype.itemsize for one in parameters]
    if expected != given:
        raise LaunchError(f"PTX takes parameters of {expected} bits, the launch has {given}")


def _region(library: ctypes.CDLL, shared: bool, name: str, begin: int, size: int, readonly: bool) -> None:
    u64 = ctypes.c_uint64
    library.ptx_region(ctypes.c_bool(shared), name.encode(), u64(begin), u64(size), ctypes.c_bool(readonly))


def _explained(message: str, statements: dict[int, Statement]) -> str:
    """The message with instructions and places in the source for lines of PTX."""

    def explain(found: re.Match[str]) -> str:
        statement = statements[int(found[1])]
        return f"{statement.text.split(' ')[0]} ({statement.source})"

    return re.sub(r"ptx:(\d+)", explain, message)


def _counts(library: ctypes.CDLL, program: Program, counters: dict[str, int]) -> Counts:
    executed = (ctypes.c_uint64 * len(program.pieces))()
    library.ptx_executed(executed, ctypes.c_uint64(len(executed)))
    instructions: Counter[str] = Counter()
    for times, opcodes in zip(executed, program.pieces, strict=True):
        for opcode in opcodes:
            instructions[opcode] += times
    moved: Counter[tuple[str, str]] = Counter()
    for opcode, times in instructions.items():
        base, *modifiers = opcode.split(".")
        space = space_of(modifiers)
        if base in MEMORY and space:
            size = bits(modifiers[-1]) // 8 * element_count(modifiers)
            moved[space, "loaded" if base == "ld" else "stored"] += size * times
    return Counts(
        +instructions,
        moved["global", "loaded"],
        moved["global", "stored"],
        moved["shared", "loaded"],
        moved["shared", "stored"],
        counters,
    )
