"""Steps for which vectors must be named, since no loop of numba's becomes them: running sums, and fused products.

They are written in LLVM's own language for vectors of 64 bytes, which it cuts up where a processor has shorter ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .jit import Array

BYTES = 64


def _running(
    typing_context: Any, target: Any, to: Any, source: Any, come: Any, go: Any, vectors: Any, start: Any
) -> Any:
    kind, given = target.dtype, source.dtype
    lanes = BYTES * 8 // kind.bitwidth

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, to, source, come, go, vectors, start = arguments
        into = context.make_array(signature.args[0])(context, builder, target).data
        out_of = context.make_array(signature.args[2])(context, builder, source).data
        wide = ir.VectorType(context.get_value_type(kind), lanes)
        narrow = ir.VectorType(context.get_value_type(given), lanes)
        word = ir.IntType(32)
        zeros, nothing = ir.Constant(wide, None), ir.Constant(wide, ir.Undefined)

        def picked(lane: int) -> Any:
            return ir.Constant(ir.VectorType(word, lanes), [word(lane)] * lanes)

        def load(at: Any) -> Any:
            place = builder.bitcast(builder.gep(out_of, [at]), narrow.as_pointer())
            values = builder.load(place, align=given.bitwidth // 8)
            if narrow == wide:
                return values
            return (builder.sext if given.signed else builder.zext)(values, wide)

        first = builder.insert_element(nothing, start, word(0))
        before = cast(Any, cgutils).alloca_once(builder, wide)  # becomes a register
        builder.store(builder.shuffle_vector(first, nothing, picked(0)), before)
        with cgutils.for_range(builder, vectors) as loop:
            at = builder.mul(loop.index, ir.Constant(loop.index.type, lanes))
            sums = builder.sub(load(builder.add(come, at)), load(builder.add(go, at)))
            step = 1
            while step < lanes:  # each lane adds the one ``step`` places before it; 0 comes in from the left
                up = ir.Constant(ir.VectorType(word, lanes), [word(lanes - step + i) for i in range(lanes)])
                sums = builder.add(sums, builder.shuffle_vector(zeros, sums, up))
                step *= 2
            total = builder.load(before)
            place = builder.bitcast(builder.gep(into, [builder.add(to, at)]), wide.as_pointer())
            builder.store(builder.add(sums, total), place, align=kind.bitwidth // 8)
            builder.store(builder.add(total, builder.shuffle_vector(sums, nothing, picked(lanes - 1))), before)
        return context.get_dummy_value()

    place = types.uint64
    return types.none(target, place, source, place, place, place, kind), generate


running = cast(Callable[[Array, Any, Array, Any, Any, Any, Any], None], intrinsic(_running))
"""running(target, to, source, come, go, vectors, start): over so many vectors of ``target``,
target[to + i] = start + Σ over j <= i of source[come + j] − source[go + j], integers modulo what a lane of ``target``
holds. A sum takes log2(lanes) steps, whatever lies between ``go`` and ``come``; what it reads beyond a place does not
reach that place."""


def _fused(typing_context: Any, x: Any, y: Any, z: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return x(x, x, x), generate


fused = cast(Callable[[Any, Any, Any], Any], intrinsic(_fused))
"""fused(x, y, z) = x · y + z, rounded once, in the type of ``x``. A processor without it takes the C library's."""
