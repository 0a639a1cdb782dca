"""The kernels of sums.cu against sums of Python's integers, on machines without a GPU."""

import sys
from bisect import bisect_right
from math import prod

import numpy as np
import pytest

from cuda_tools import carry, emulation, launches, nvrtc, ptx
from voxring.kernels.cuda import plans
from voxring.kernels.cuda.summing import Sums, read_sums, sums_plan

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="fibers and NVRTC's wheel are for Linux")

GRAM = Sums(3, [(0,), (1,), (2,), (0, 0), (0, 1), (1, 2), ()], 3, 2, (-5, 0, 0, 2**40))
POWERS = Sums(2, [(0,), (0, 0), (0, 0, 0), (0, 0, 0, 0)], 4, 0, ())


def example(of, style):
    """Three maps of up to 62 bits, or one of 47, and classes in runs or mixed."""
    rng = np.random.default_rng(4)
    most, maps = (2**62 - 1, 3) if of is GRAM else (2**47 - 1, 1)
    stack = rng.integers(-most, most, (maps, 700))
    if style == "ends":
        stack = np.where(rng.random(stack.shape) < 0.9, -most, most)
    stack[-1, ::3] = rng.integers(-8, 3, len(stack[-1, ::3]))
    numbers = rng.integers(0, of.classes + 1, 700)
    return stack, (np.sort(numbers) if style == "ends" else numbers).astype(np.uint8)


def run(of, stack, numbers, run=emulation.run, blocks=2, **how):
    """Sums and counts of each class."""
    plan = sums_plan(of, (0, 1, 0, 1), numbers)
    buffers = {name: np.zeros(one.size, one.dtype) if one.clear else one.given for name, one in plan.buffers.items()}
    buffers["stack"] = stack.reshape(-1)
    few = [one._replace(grid=(min(blocks, one.grid[0]), *one.grid[1:])) for one in plan.launches]
    carry.launch_all(plan._replace(launches=tuple(few)), buffers, run, **how)
    counts = buffers["counts"].reshape(of.classes, -1).tolist() if of.edges else []
    return read_sums(of, buffers["sums"]), counts


def naive(of, stack, numbers):
    """The same by the definition."""
    sums, counts = [], []
    for number in range(1, of.classes + 1):
        voxels = [column for column, own in zip(stack.T.tolist(), numbers.tolist(), strict=True) if own == number]
        sums.append([sum(prod(x[place] for place in places) for x in voxels) for places in of.products])
        if of.edges:
            places = [bisect_right(of.edges, x[of.histogram]) for x in voxels]
            counts.append([places.count(place) for place in range(len(of.edges) + 1)])
    return sums, counts


@pytest.mark.parametrize("style", ["any", "ends"])
@pytest.mark.parametrize("of", [GRAM, POWERS], ids=["gram", "powers"])
def test_sums_equal_those_of_pythons_integers(of, style):
    stack, numbers = example(of, style)
    for schedule in (0, 5):
        assert run(of, stack, numbers, schedule=schedule) == naive(of, stack, numbers)


def test_ptx_equals_the_definition_without_a_race():
    stack, numbers = example(GRAM, "ends")
    assert run(GRAM, stack, numbers, ptx.run, schedule=2) == naive(GRAM, stack, numbers)


@pytest.mark.parametrize("arch", nvrtc.ARCHITECTURES)
def test_machine_code_keeps_its_budget_and_takes_the_arguments(arch):
    for launch in sums_plan(POWERS._replace(edges=(1,)), (0, 1, 0, 1), np.ones(9, np.uint8)).launches:
        compiled = nvrtc.compile(plans.source_of("sums.cu"), launch.macros, arch)
        needs = nvrtc.resources(compiled)[launch.kernel]
        assert (needs.spill_stores, needs.spill_loads, needs.stack) == (0, 0, 0)
        assert needs.registers <= 64
        assert launches.packed(launch) == nvrtc.parameter_table(compiled.image, launch.kernel)


@pytest.mark.soak
@pytest.mark.parametrize("of", [GRAM, POWERS], ids=["gram", "powers"])
def test_sanitizers_find_nothing(of):
    stack, numbers = example(of, "any")
    for mode in ("asan", "tsan"):
        assert run(of, stack, numbers, mode=mode) == naive(of, stack, numbers)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("factor < 0 ? before : 0", "0"),
        ("carry = (some < carry) + (sum[i] < some);", ""),
        ("+ (made < low)", ""),
        ("(less > made) + (less < borrow)", "(less > made)"),
        ("add_halves(at + 2 * i, sum[i])", "add_halves(at + 2 * i, sum[i] & 0xffffffffull)"),
        ("warp_sum(sum[i] >> 32)", "0"),
        ("number == all || number == 0", "true"),
        ("edges[middle] <= x", "edges[middle] < x"),
    ],
)
def test_a_planted_fault_is_found(old, new):
    text = plans.source_of("sums.cu")
    assert text.count(old) == 1
    found = [
        run(of, *example(of, style), source_text=text.replace(old, new)) == naive(of, *example(of, style))
        for of in (GRAM, POWERS)
        for style in ("any", "ends")
    ]
    assert not all(found)
