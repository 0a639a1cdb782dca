"""What numba has no words for: arrays without an owner, asking for memory ahead of its use, and writing round caches.

Numba counts references to an array whenever it is sliced, unpacked from a tuple or handed on, each an atomic step of
the processor that costs as much as a hundred voxels. A bare array has nothing to count. It must not outlive the array
it was made of: make it at the top of a kernel, of the kernel's own arguments, which the caller holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .jit import Array


def _bare(typing_context: Any, array: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        struct = context.make_array(signature.args[0])(context, builder, arguments[0])
        struct.meminfo = struct.meminfo.type(None)
        struct.parent = struct.parent.type(None)
        return struct._getvalue()

    return array(array), generate


bare = cast(Callable[[Array], Array], intrinsic(_bare))


def _prefetch(typing_context: Any, array: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        struct = context.make_array(signature.args[0])(context, builder, arguments[0])
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = builder.module.globals.get("llvm.prefetch.p0") or ir.Function(
            builder.module, kind, "llvm.prefetch.p0"
        )
        place = builder.bitcast(builder.gep(struct.data, [arguments[1]]), byte)
        builder.call(function, [place, word(0), word(3), word(1)])  # to read, into all caches, data
        return context.get_dummy_value()

    return types.none(array, at), generate


prefetch = cast(Callable[[Array, Any], None], intrinsic(_prefetch))
"""Ask for the cache line of array[at], ``at`` an unsigned integer. No more than a hint: nothing else happens."""


LINE = 64
"""Bytes of a cache line."""


def _stream(typing_context: Any, target: Any, to: Any, source: Any, n: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, to, source, n = arguments
        into = context.make_array(signature.args[0])(context, builder, target).data
        out_of = context.make_array(signature.args[2])(context, builder, source).data
        size, word = signature.args[0].dtype.bitwidth // 8, ir.IntType(64)
        lanes = LINE // size
        line = ir.VectorType(context.get_value_type(signature.args[0].dtype), lanes).as_pointer()
        hint = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        address = builder.ptrtoint(builder.gep(into, [to]), word)
        ahead = builder.udiv(builder.and_(builder.neg(address), word(LINE - 1)), word(size))
        ahead = builder.select(builder.icmp_unsigned("<", n, ahead), n, ahead)
        lines = builder.udiv(builder.sub(n, ahead), word(lanes))
        loop_over: Any = cgutils.for_range
        with loop_over(builder, ahead) as loop:
            value = builder.load(builder.gep(out_of, [loop.index]))
            builder.store(value, builder.gep(into, [builder.add(to, loop.index)]))
        with loop_over(builder, lines) as loop:
            i = builder.add(ahead, builder.mul(loop.index, word(lanes)))
            values = builder.load(builder.bitcast(builder.gep(out_of, [i]), line), align=size)
            place = builder.bitcast(builder.gep(into, [builder.add(to, i)]), line)
            builder.store(values, place, align=LINE).set_metadata("nontemporal", hint)
        return builder.add(ahead, builder.mul(lines, word(lanes)))

    place = types.uint64
    return place(target, place, source, place), generate


stream = cast(Callable[[Array, Any, Array, Any], Any], intrinsic(_stream))
"""stream(target, to, source, n): target[to + i] = source[i], of one type, for the i < n that fill cache lines, and for
those before the first line; returns how many that is. They go to memory and not into the caches: a line that is written
whole need not be read first, which for a large result is half of the traffic. `fence` before another thread may look.
"""


def _fence(typing_context: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), generate


fence = cast(Callable[[], None], intrinsic(_fence))
"""All that was written before is there for whoever sees what is written after."""
