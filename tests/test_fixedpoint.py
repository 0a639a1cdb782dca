"""Integer maps against fractions, at every piece and rounding."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import naive
from voxring import fixedpoint
from voxring.fixedpoint import AffineMap

small = st.integers(-(2**20), 2**20)


@given(st.data())
def test_apply_is_the_map_voxel_by_voxel(data):
    starts = tuple(sorted(data.draw(st.sets(st.integers(-50, 50), max_size=3))))
    pieces = len(starts) + 1
    a = tuple(data.draw(small) for _ in range(pieces))
    b = tuple(data.draw(small) for _ in range(pieces))
    made = AffineMap(a, b, starts, data.draw(st.integers(0, 12)))
    v = np.array(data.draw(st.lists(st.integers(-60, 60), min_size=1)), np.int16)
    expected = []
    for value in v.tolist():
        piece = sum(value >= start for start in starts)
        expected.append(naive.half_even(Fraction(a[piece] * value + b[piece], 2**made.shift)))
    assert made.apply(v).tolist() == expected
    assert [made.at(value) for value in v.tolist()] == expected
    low, high = int(v.min()), int(v.max())
    least, largest = made.ends(low, high)
    everything = [made.at(value) for value in range(low, high + 1)]
    assert (least, largest) == (min(everything), max(everything))
    single = made.single(low, high)
    if single is not None:
        assert [single[0] * value + single[1] for value in v.tolist()] == expected


@given(st.lists(st.integers(-1000, 1000), min_size=2), st.integers(0, 30), st.integers(0, 24))
def test_zscore_rounds_the_root_half_to_even(values, bits, shift):
    n, total, squares = len(values), sum(values), sum(v * v for v in values)
    variance = Fraction(squares, n) - Fraction(total, n) ** 2
    wanted = naive.half_even_root(Fraction(4 ** (bits + shift)) / variance) if variance else 0
    if wanted == 0:
        with pytest.raises(ValueError, match=r"two different values|too wide"):
            fixedpoint.zscore(n, total, squares, bits, shift=shift)
        return
    made = fixedpoint.zscore(n, total, squares, bits, shift=shift)
    assert made.a == (wanted,)
    assert made.b == (naive.half_even(Fraction(-wanted * total, n)),)


def test_ties_go_to_the_even_integer():
    assert fixedpoint.plain(Fraction(5, 2), Fraction(7, 2), 0) == AffineMap((2,), (4,))
    made = AffineMap((1,), (0,), shift=1)
    assert made.apply(np.array([-3, -1, 1, 3, 5])).tolist() == [-2, 0, 0, 2, 2]
    assert fixedpoint.grid(np.array([0.5, 1.5, -0.5, -2.5]), 0).tolist() == [0, 2, 0, -2]


def test_lines_through_knots_meet_them_and_stay_flat_outside():
    made = fixedpoint.through(
        [(Fraction(-5, 2), Fraction(0)), (Fraction(10), Fraction(1)), (Fraction(20), Fraction(3))], 8
    )
    x = {v: made.at(v) for v in range(-10, 40)}
    assert x[-10] == x[-3] == x[-2]
    assert x[10] == 256
    assert x[20] == x[39] == 256 + 10 * 51
    assert sorted(x.values()) == list(x.values())


@pytest.mark.parametrize(
    ("knots", "message"),
    [
        ([(Fraction(3), Fraction(0)), (Fraction(3), Fraction(1))], "must rise"),
        ([(Fraction(0), Fraction(0)), (Fraction(10**6), Fraction(1))], "too wide for fraction_bits"),
    ],
)
def test_impossible_knots(knots, message):
    with pytest.raises(ValueError, match=message):
        fixedpoint.through(knots, 8)


def test_apply_refuses_to_wrap():
    with pytest.raises(OverflowError, match="62 bits"):
        AffineMap((2**40,), (0,)).apply(np.array([2**22]))
    with pytest.raises(OverflowError, match="47 bits"):
        fixedpoint.grid(np.array([2.0**31]), 16)
    assert AffineMap((1,), (0,)).apply(np.empty((0, 3), np.int16)).shape == (0, 3)


def test_the_modulus_holds_every_sum():
    for parties, bound in [(3, 1), (5, 10**30)]:
        n = fixedpoint.modulus(parties, bound)
        assert n >= (2 * parties * bound + 1) * 2**64
        assert n.bit_count() == 1
        assert (n.bit_length() - 1) % 64 == 0
        assert n // 2**64 < (2 * parties * bound + 1) * 2**64  # and no larger than that takes
