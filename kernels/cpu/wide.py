"""Integers wider than the machine's, which LLVM has: sums of products in 256 bits, and comparisons in 512.

A number of 128 bits is handed about as two words, (high: int64, low: uint64), for high · 2^64 + low. Every intrinsic
computes modulo its width; its comment says what fits. No division is made: LLVM has none of that width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .jit import Array

WORD, PAIR, SUM, WIDEST = ir.IntType(64), ir.IntType(128), ir.IntType(256), ir.IntType(512)
INT, UNSIGNED = types.int64, types.uint64
PAIR_OF = types.Tuple((INT, UNSIGNED))  # type: ignore[no-untyped-call]


def _joined(builder: Any, high: Any, low: Any) -> Any:
    """The 128-bit number of two words."""
    return builder.or_(builder.shl(builder.sext(high, PAIR), PAIR(64)), builder.zext(low, PAIR))


def _split(context: Any, builder: Any, number: Any) -> Any:
    """The two words of a 128-bit number."""
    high = builder.trunc(builder.ashr(number, PAIR(64)), WORD)
    return context.make_tuple(builder, PAIR_OF, [high, builder.trunc(number, WORD)])


def _add_product(typing_context: Any, limbs: Any, at: Any, a: Any, b: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        struct = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = builder.bitcast(builder.gep(struct.data, [arguments[1]]), SUM.as_pointer())
        product = builder.mul(*(builder.sext(number, SUM) for number in arguments[2:]))
        builder.store(builder.add(builder.load(place, align=8), product), place, align=8)
        return context.get_dummy_value()

    return types.none(limbs, UNSIGNED, INT, INT), generate


add_product = cast(Callable[[Array, Any, Any, Any], None], intrinsic(_add_product))
"""limbs[at … at + 3] += a · b, the four words of a 256-bit number, the low one first. Exact for 2^128 additions."""


def _add_powers(typing_context: Any, limbs: Any, at: Any, x: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        struct = context.make_array(signature.args[0])(context, builder, arguments[0])
        x = builder.sext(arguments[2], SUM)
        square = builder.mul(x, x)
        powers = (x, square, builder.mul(square, x), builder.mul(square, square))
        for order, power in enumerate(powers):
            word = builder.add(arguments[1], WORD(4 * order))
            place = builder.bitcast(builder.gep(struct.data, [word]), SUM.as_pointer())
            builder.store(builder.add(builder.load(place, align=8), power), place, align=8)
        return context.get_dummy_value()

    return types.none(limbs, UNSIGNED, INT), generate


add_powers = cast(Callable[[Array, Any, Any], None], intrinsic(_add_powers))
"""Add x, x², x³ and x⁴ to the four 256-bit numbers from limbs[at] on. Exact for |x| < 2^47 and 2^66 additions."""


def _combined(context: Any, builder: Any, high: Any, low: Any, shift: Any) -> Any:
    """The sum of which ``low`` is the residue modulo 2^64 and ``high`` the sum of its terms' floor over 2^shift."""
    part = builder.shl(builder.sext(high, PAIR), builder.zext(shift, PAIR))
    rest = builder.sub(low, builder.trunc(part, WORD))
    return builder.add(part, builder.zext(rest, PAIR))


def _spread(typing_context: Any, count: Any, total: Any, low: Any, high: Any, shift: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count, total, low, high, shift = arguments
        squares = _combined(context, builder, high, low, shift)
        total = builder.sext(total, PAIR)
        product = builder.mul(builder.sext(count, PAIR), squares)
        return _split(context, builder, builder.sub(product, builder.mul(total, total)))

    return PAIR_OF(INT, INT, INT, INT, INT), generate


spread = cast(Callable[[Any, Any, Any, Any, Any], tuple[Any, Any]], intrinsic(_spread))
"""|W| Σx² − (Σx)², with Σx² as `_combined` has it of low, high and shift. Fits for |W| · max |x| < 2^62."""


def _third(typing_context: Any, count: Any, total: Any, low: Any, high: Any, low3: Any, high3: Any, shift: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count, total, low, high, low3, high3, shift = arguments
        squares = _combined(context, builder, high, low, shift)
        cubes = _combined(context, builder, high3, low3, shift)
        count, total = builder.sext(count, PAIR), builder.sext(total, PAIR)
        mixed = builder.mul(PAIR(3), builder.mul(total, squares))
        first = builder.mul(count, builder.sub(builder.mul(count, cubes), mixed))
        cube = builder.mul(total, builder.mul(total, total))
        return _split(context, builder, builder.add(first, builder.add(cube, cube)))

    return PAIR_OF(*[INT] * 7), generate


third = cast(Callable[..., tuple[Any, Any]], intrinsic(_third))
"""|W|² Σx³ − 3 |W| Σx Σx² + 2 (Σx)³. Fits for |W| · max |x| < 2^41: it is at most 6 (|W| max |x|)³."""


def _multiply(typing_context: Any, a: Any, b: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, b = (builder.sext(number, PAIR) for number in arguments)
        return _split(context, builder, builder.mul(a, b))

    return PAIR_OF(INT, INT), generate


multiply = cast(Callable[[Any, Any], tuple[Any, Any]], intrinsic(_multiply))
"""a · b. Fits whatever the numbers."""


def _norm(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        squares = [builder.mul(wide, wide) for wide in (builder.sext(number, PAIR) for number in arguments)]
        return _split(context, builder, builder.add(squares[0], builder.add(squares[1], squares[2])))

    return PAIR_OF(INT, INT, INT), generate


norm = cast(Callable[[Any, Any, Any], tuple[Any, Any]], intrinsic(_norm))
"""a² + b² + c². Fits for numbers below 2^62."""


def _sum_of(typing_context: Any, high: Any, low: Any, factor: Any, root: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        high, low, factor, root = arguments
        factor, root = builder.sext(factor, PAIR), builder.sext(root, PAIR)
        first = builder.mul(builder.mul(factor, factor), _joined(builder, high, low))
        return _split(context, builder, builder.add(first, builder.mul(root, root)))

    return PAIR_OF(INT, UNSIGNED, INT, INT), generate


scaled_plus_square = cast(Callable[[Any, Any, Any, Any], tuple[Any, Any]], intrinsic(_sum_of))
"""factor² · (high, low) + root²."""


def _apart(builder: Any, name: str, result: Any, arguments: Any, body: Callable[[Any, Any], Any]) -> Any:
    """Call a function of its own, which LLVM does not inline: 512 bits are long machine code, and rarely run."""
    function = builder.module.globals.get(name)
    if function is None:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = ir.Function(builder.module, kind, name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        inside = ir.IRBuilder(function.append_basic_block())
        inside.ret(body(inside, function.args))
    return builder.call(function, arguments)


def _sign(builder: Any, left: Any, right: Any) -> Any:
    more = builder.zext(builder.icmp_signed(">", left, right), WORD)
    return builder.sub(more, builder.zext(builder.icmp_signed("<", left, right), WORD))


def _root_order(typing_context: Any, odd: Any, high: Any, low: Any, factor: Any, high2: Any, low2: Any) -> Any:
    def body(builder: Any, arguments: Any) -> Any:
        odd, high, low, factor, high2, low2 = arguments
        odd, twice = builder.sext(odd, WIDEST), builder.shl(builder.sext(factor, WIDEST), WIDEST(1))
        under = builder.sext(_joined(builder, high, low), WIDEST)
        over = builder.sext(_joined(builder, high2, low2), WIDEST)
        left = builder.mul(builder.mul(odd, odd), under)
        return _sign(builder, left, builder.mul(builder.mul(twice, twice), over))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _apart(builder, "voxring_root_order", WORD, arguments, body)

    return INT(INT, INT, UNSIGNED, INT, INT, UNSIGNED), generate


root_order = cast(Callable[[Any, Any, Any, Any, Any, Any], Any], intrinsic(_root_order))
"""The sign of odd² Q − (2 · factor)² P, for Q = (high, low) and P = (high2, low2). Fits whatever the numbers."""


def _ratio_order(typing_context: Any, odd: Any, high: Any, low: Any, factor: Any, high2: Any, low2: Any) -> Any:
    def body(builder: Any, arguments: Any) -> Any:
        odd, high, low, factor, high2, low2 = arguments
        odd, factor = builder.sext(odd, WIDEST), builder.sext(factor, WIDEST)
        under = builder.sext(_joined(builder, high, low), WIDEST)
        over = builder.sext(_joined(builder, high2, low2), WIDEST)
        right = builder.mul(builder.mul(factor, factor), builder.shl(over, WIDEST(1)))
        return _sign(builder, builder.mul(odd, under), right)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _apart(builder, "voxring_ratio_order", WORD, arguments, body)

    return INT(INT, INT, UNSIGNED, INT, INT, UNSIGNED), generate


ratio_order = cast(Callable[[Any, Any, Any, Any, Any, Any], Any], intrinsic(_ratio_order))
"""The sign of odd · Q − 2 · factor² · P, for Q = (high, low) and P = (high2, low2). Fits whatever the numbers."""


def _skew_order(typing_context: Any, odd: Any, high: Any, low: Any, unit: Any, high3: Any, low3: Any) -> Any:
    def body(builder: Any, arguments: Any) -> Any:
        odd, high, low, unit, high3, low3 = arguments
        odd, twice = builder.sext(odd, WIDEST), builder.shl(builder.sext(unit, WIDEST), WIDEST(1))
        spread = builder.sext(_joined(builder, high, low), WIDEST)
        third = builder.mul(twice, builder.sext(_joined(builder, high3, low3), WIDEST))
        cube = builder.mul(spread, builder.mul(spread, spread))
        return _sign(builder, builder.mul(builder.mul(odd, odd), cube), builder.mul(third, third))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _apart(builder, "voxring_skew_order", WORD, arguments, body)

    return INT(INT, INT, UNSIGNED, INT, INT, UNSIGNED), generate


skew_order = cast(Callable[[Any, Any, Any, Any, Any, Any], Any], intrinsic(_skew_order))
"""The sign of odd² V³ − (2 · unit · T)², for V = (high, low) >= 0 and T = (high3, low3).

Fits for |W| · max |x| < 2^41 and odd < 2^60: V < 2^82, T < 2^126, unit <= 2^40.
"""


def integer_of(limbs: Any) -> int:
    """The signed 256-bit number of four words, the low one first."""
    number = sum(int(word) << 64 * place for place, word in enumerate(limbs))
    return number - (1 << 256) if number >> 255 else number
