"""Arrays without an owner, for the innermost loops.

Numba counts references to an array whenever it is sliced, unpacked from a tuple or handed on, each an atomic step of
the processor that costs as much as a hundred voxels. A bare array has nothing to count. It must not outlive the array
it was made of: make it at the top of a kernel, of the kernel's own arguments, which the caller holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

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
