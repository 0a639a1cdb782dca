"""Vectors of LANES integers that kernels take in hand themselves.

LLVM makes vector code of most loops, but not the best of one that multiplies 16-bit numbers into 32-bit sums for one
purpose and masks them for another: it widens, multiplies and narrows. These words leave it no choice: each is one or
two steps of the processor.

A vector lives in a kernel only, as a local variable. Arrays are read and written at a place that is an unsigned
integer, and hold what is read: nothing checks that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba.core import config, types
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

_asked_for: Any = config  # what NUMBA_CPU_NAME and NUMBA_CPU_FEATURES say
_features = _asked_for.CPU_FEATURES
if _features is None:
    _features = get_host_cpu_features().flatten() if _asked_for.CPU_NAME is None else ""

LANES = 32 if "+avx512bw" in _features else 16
"""As many 16-bit numbers as a register of the processor holds. With twice as many, sums do not fit its 16 registers."""

Vector = Any  # of LANES integers of 8 or 16 bits, or of half as many sums of 32 or 64
Word = Callable[..., Any]


class VectorType(types.Type):
    """Numba's type of a vector."""

    def __init__(self, bits: int, lanes: int = LANES) -> None:
        self.bits, self.lanes = bits, lanes
        super().__init__(name=f"Vector({bits} bits x {lanes})")

    def llvm(self) -> Any:
        """LLVM's type of it."""
        return ir.VectorType(ir.IntType(self.bits), self.lanes)


@register_model(VectorType)
class VectorModel(models.PrimitiveModel):
    """Held by LLVM as it is."""

    def __init__(self, manager: Any, kind: VectorType) -> None:
        cast(Any, super()).__init__(manager, kind, kind.llvm())


FLAGS, BYTES, SHORTS = VectorType(1), VectorType(8), VectorType(16)
SUMS, LONG_SUMS = VectorType(32, LANES // 2), VectorType(64, LANES // 2)


def constant(kind: VectorType, values: list[int]) -> Any:
    """A vector known when the kernel is compiled."""
    return ir.Constant(kind.llvm(), values)


def called(builder: Any, name: str, answer: Any, *arguments: Any) -> Any:
    """A call of a function of LLVM's own."""
    kind = ir.FunctionType(answer, [argument.type for argument in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, arguments)


def at_place(context: Any, builder: Any, signature: Any, arguments: Any) -> tuple[Any, int]:
    """The address of LANES elements of an array, and what it is a multiple of."""
    kind = signature.args[0]
    struct = context.make_array(kind)(context, builder, arguments[0])
    address = builder.gep(struct.data, [arguments[1]])
    return builder.bitcast(address, VectorType(kind.dtype.bitwidth).llvm().as_pointer()), kind.dtype.bitwidth // 8


def _load(typing_context: Any, array: Any, place: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, align = at_place(context, builder, signature, arguments)
        return builder.load(address, align=align)

    return VectorType(array.dtype.bitwidth)(array, place), generate


def _store(typing_context: Any, array: Any, place: Any, vector: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, align = at_place(context, builder, signature, arguments)
        builder.store(arguments[2], address, align=align)
        return context.get_dummy_value()

    return types.none(array, place, vector), generate


load = cast(Word, intrinsic(_load))
"""load(array, place): LANES elements of an array."""

store = cast(Word, intrinsic(_store))
"""store(array, place, vector): put them there."""


def lane_by_lane(step: Callable[[Any, Any, Any], Any]) -> Word:
    """A word that makes one vector of two of the same type."""

    def word(typing_context: Any, a: Any, b: Any) -> Any:
        return a(a, b), lambda context, builder, signature, arguments: step(builder, *arguments)

    return cast(Word, intrinsic(word))


plus = lane_by_lane(lambda builder, a, b: builder.add(a, b))
minus = lane_by_lane(lambda builder, a, b: builder.sub(a, b))
either = lane_by_lane(lambda builder, a, b: builder.or_(a, b))
flipped = lane_by_lane(lambda builder, a, b: builder.xor(a, b))
least = lane_by_lane(lambda builder, a, b: builder.select(builder.icmp_signed("<", a, b), a, b))
greatest = lane_by_lane(lambda builder, a, b: builder.select(builder.icmp_signed(">", a, b), a, b))


def _same(builder: Any, a: Any, b: Any) -> Any:
    ones = constant(BYTES, [1] * LANES)
    return called(builder, f"llvm.usub.sat.v{LANES}i8", a.type, ones, builder.xor(a, b))


same = lane_by_lane(_same)
"""1 where two vectors of bytes are the same, else 0. Not by a comparison: LLVM would move the choice that it stands for
behind the widening of what is chosen."""


def _chosen(builder: Any, a: Any, b: Any) -> Any:
    return builder.and_(a, builder.neg(b))


chosen = lane_by_lane(_chosen)
"""a where b is 1, 0 where it is 0."""


def a_constant(kind: VectorType, values: list[int]) -> Word:
    """A word for a vector that is always the same."""

    def word(typing_context: Any) -> Any:
        return kind(), lambda context, builder, signature, arguments: constant(kind, values)

    return cast(Word, intrinsic(word))


no_bytes = a_constant(BYTES, [0] * LANES)
no_shorts = a_constant(SHORTS, [0] * LANES)
no_sums = a_constant(SUMS, [0] * (LANES // 2))
no_long_sums = a_constant(LONG_SUMS, [0] * (LANES // 2))
everywhere = a_constant(FLAGS, [1] * LANES)


def all_lanes(builder: Any, kind: VectorType, value: Any) -> Any:
    """One number in every lane."""
    none = ir.Constant(kind.llvm(), ir.Undefined)
    first = builder.insert_element(none, value, ir.IntType(32)(0))
    return builder.shuffle_vector(first, none, constant(VectorType(32, kind.lanes), [0] * kind.lanes))


def in_every_lane(kind: VectorType) -> Word:
    """A word that puts an integer of any type into every lane."""

    def word(typing_context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            narrow = context.cast(builder, arguments[0], signature.args[0], types.Integer.from_bitwidth(kind.bits))
            return all_lanes(builder, kind, narrow)

        return kind(value), generate

    return cast(Word, intrinsic(word))


bytes_of = in_every_lane(BYTES)
shorts_of = in_every_lane(SHORTS)


def _from_lane(typing_context: Any, first: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first = context.cast(builder, arguments[0], signature.args[0], types.uint8)
        return builder.icmp_unsigned(">=", constant(BYTES, list(range(LANES))), all_lanes(builder, BYTES, first))

    return FLAGS(first), generate


from_lane = cast(Word, intrinsic(_from_lane))
"""Flags of the lanes from one on."""


def _only(typing_context: Any, flags: Any, vector: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(*arguments, ir.Constant(vector.llvm(), [0] * vector.lanes))

    return vector(flags, vector), generate


only = cast(Word, intrinsic(_only))
"""only(flags, vector): the vector, with 0 where no flag is."""


def _as_wide_as(typing_context: Any, vector: Any, other: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return arguments[0] if vector.bits == other.bits else builder.zext(arguments[0], other.llvm())

    return other(vector, other), generate


as_wide_as = cast(Word, intrinsic(_as_wide_as))
"""as_wide_as(vector, other): not negative numbers in the lanes of another, which are no narrower."""


def _dot(typing_context: Any, sums: Any, a: Any, b: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        so_far, a, b = arguments
        wide = VectorType(32)
        none = ir.Constant(wide.llvm(), ir.Undefined)
        products = builder.mul(builder.sext(a, wide.llvm()), builder.sext(b, wide.llvm()))
        even, odd = (
            builder.shuffle_vector(products, none, constant(SUMS, list(range(first, LANES, 2)))) for first in (0, 1)
        )
        return builder.add(so_far, builder.add(even, odd))

    return sums(sums, a, b), generate


dot = cast(Word, intrinsic(_dot))
"""dot(sums, a, b): sums of 32 bits, each with two products of 16-bit lanes added. Becomes vpdpwssd or vpmaddwd."""


def spread(widen: str) -> Word:
    """A word that adds sums of 32 bits to sums of 64."""

    def word(typing_context: Any, long_sums: Any, sums: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.add(arguments[0], getattr(builder, widen)(arguments[1], LONG_SUMS.llvm()))

        return long_sums(long_sums, sums), generate

    return cast(Word, intrinsic(word))


add_signed = spread("sext")
add_unsigned = spread("zext")


def _total(typing_context: Any, vector: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = (
            builder.zext(arguments[0], ir.VectorType(ir.IntType(64), vector.lanes))
            if vector.bits < 64
            else arguments[0]
        )
        return called(builder, f"llvm.vector.reduce.add.v{vector.lanes}i64", ir.IntType(64), wide)

    return types.int64(vector), generate


total = cast(Word, intrinsic(_total))
"""The sum of all lanes, an integer; those of bytes are not negative."""


def _any_beyond(typing_context: Any, low: Any, high: Any, least: Any, most: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        low, high, least, most = arguments
        beyond = builder.or_(builder.icmp_signed("<", low, least), builder.icmp_signed(">", high, most))
        word = ir.IntType(LANES)
        return builder.icmp_unsigned("!=", builder.bitcast(beyond, word), word(0))

    return types.boolean(low, high, least, most), generate


any_beyond = cast(Word, intrinsic(_any_beyond))
"""any_beyond(low, high, least, most): is a lane of ``low`` below ``least`` or one of ``high`` above ``most``."""
