"""What numba has no words for: arrays without an owner, and asking for memory ahead of its use.

Numba counts references to an array whenever it is sliced, unpacked from a tuple or handed on, each an atomic step of
the processor that costs as much as a hundred voxels. A bare array has nothing to count. It must not outlive the array
it was made of: make it at the top of a kernel, of the kernel's own arguments, which the caller holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba.core import types
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
