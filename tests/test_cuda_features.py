"""The kernels of features.cu and their plans against the definitions, on machines without a GPU.

What each layer proves stands in kernels/cuda/PROOF.md. Sums of windows are exact numbers of the test's here, so that a
build or two serve every window; those that the other kernels make of powers are held to the definition in
test_cuda_kernels.py.
"""

import re
import sys
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda_tools import launches, nvrtc, ptx
from cuda_tools.feature_cases import KINDS, FeatureCase
from voxring.kernels import BORDERS
from voxring.kernels.cuda import plans
from voxring.kernels.cuda.features import Scale

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="fibers and NVRTC's wheel are for Linux")

NARROW = (("WIDE", 0), ("DENSE", 0), ("SPREAD", 1), ("THIRD", 1))
BROAD = (("WIDE", 1), ("DENSE", 0), ("SPREAD", 2), ("THIRD", 2))


SCALES = {
    True: [(1, 0, 0), (1, 0, 16), (-1, 7, 1), (31, -500000, 16), (2, 3, 40)],
    False: [(2, 0, 5), (-3, 10**6, 8), (2, 1, 40), (2**17, -(2**33), 40)],
}
"""a, b and fraction bits, such that no variance has more than 61."""


def macros_of(case):
    """What a case's kernels are compiled for, beside the type of voxels."""
    return case.plan.launches[-1].macros[-4:]


def pictures(draw, shape, least, most):
    """Noise, two values, or little on a large base."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    style = draw(st.sampled_from(["any", "ends", "small", "flat"]))
    if style == "any":
        return rng.integers(least, most, shape, endpoint=True)
    if style == "ends":
        return np.where(rng.random(shape) < draw(st.sampled_from([0.1, 0.5])), least, most)
    return draw(st.sampled_from([least + 3, 0, most - 3])) + rng.integers(-3, 4, shape) * (style == "small")


@st.composite
def cases(draw, narrow):
    """Images that one build serves: of 16 bits and small windows, or of 31 bits and all others."""
    shape = draw(st.tuples(*[st.integers(1, 4)] * 3))
    sizes = st.tuples(*[st.integers(1, 5 if narrow else 9)] * 3)
    window = draw(sizes.filter(lambda c: prod(c) < 32 if narrow else prod(c) > 1))
    border = draw(st.sampled_from(BORDERS))
    most = 2**15 if narrow else draw(st.sampled_from([2**31 - 1, 2**30, 2**20, 5]))
    image = pictures(draw, shape, -most + (not narrow), most - narrow).astype("int16" if narrow else "int32")
    a, b, bits = draw(st.sampled_from(SCALES[narrow]))
    fill = draw(st.sampled_from([0, 5, -most + 1])) if border == "constant" else 0
    z, y = (sorted(draw(st.tuples(*[st.integers(0, n - 1)] * 2))) for n in shape[:2])
    box = draw(st.sampled_from([None, (z[0], z[1] + 1, y[0], y[1] + 1)]))
    scale = Scale(a, b, bits, fill, 2**15 if narrow else 2**31 - 1)
    return FeatureCase(image, window, border, scale, KINDS, box)


@pytest.mark.parametrize("narrow", [True, False])
@settings(max_examples=40)
@given(data=st.data())
def test_features_equal_the_definition(narrow, data):
    case = data.draw(cases(narrow))
    assert macros_of(case) == (NARROW if narrow else BROAD)
    assert case.run(case.plan, schedule=data.draw(st.sampled_from([0, 1, 5]))) == case.expected


@pytest.mark.parametrize("kind", ["gradient", "intensity"])
@settings(max_examples=25)
@given(data=st.data())
def test_features_without_a_window_equal_the_definition(kind, data):
    case = data.draw(cases(True))._replace(kinds=(kind,), window=(1, 1, 1))
    assert case.run(case.plan, schedule=data.draw(st.sampled_from([0, 1, 5]))) == case.expected


def example(kinds=KINDS, border="clip", fill=0):
    """A case of the build for 16 bits, with a window that other tests have builds for."""
    image = np.random.default_rng(5).integers(-(2**15), 2**15, (2, 5, 7)).astype(np.int16)
    return FeatureCase(image, (1, 3, 4), border, Scale(3, -7, 16, fill, 2**15), kinds)


@pytest.mark.parametrize("border", ["constant", "mirror"])
def test_features_of_the_sums_that_the_other_kernels_make(border):
    case = example(border=border, fill=9 if border == "constant" else 0)
    assert case.run(case.whole_plan) == case.expected


@pytest.mark.soak
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32"])
@pytest.mark.parametrize("window", [(1, 2, 3), (3, 2, 4), (1, 2, 33), (1, 31, 31), (2, 40, 1)], ids=str)
def test_features_of_all_types_and_windows(dtype, window):
    """Streamed in two and three dimensions, and by running sums; of sums that need their floors, and not."""
    info = np.iinfo(dtype)
    most = min(max(-info.min, info.max), 2**31 - 1)
    rng = np.random.default_rng(8)
    for border, (a, b) in zip(BORDERS, [(1, 0), (-2, 5), (3, 0), (1, -9), (2, 1)], strict=True):
        image = np.where(rng.random((2, 4, 6)) < 0.2, max(info.min, -most), min(info.max, most)).astype(dtype)
        scale = Scale(a, b, 12, 3 if border == "constant" else 0, most)
        case = FeatureCase(image, window, border, scale)
        assert case.run(case.whole_plan) == case.run(case.plan) == case.expected


# The machine code

REGISTERS = {"mean": 40, "variance": 64, "std": 64, "contrast": 72, "skewness": 128, "gradient": 64, "intensity": 40}
"""Most registers a thread, of the broadest numbers; 128 threads a block: 64 are 8 blocks an SM, 128 are 4."""

FLOATING = re.compile(r"(F(?!LO)|D(?!EPBAR)|H|I2F|F2|MUFU|[HID]MMA)[A-Z0-9]*(\.|$)")
CONSTANT = re.compile(r"HFMA2(\.MMA)? R\d+, -RZ, RZ, ")
"""How the compiler loads a constant where the unit for that is idle."""


def broad(kinds=KINDS, window=(3, 3, 3)):
    return FeatureCase(np.ones((2, 3, 40), np.int32), window, "clip", Scale(2, 0, 16, 0, 2**31 - 1), kinds)


@pytest.mark.parametrize("arch", nvrtc.ARCHITECTURES)
def test_machine_code_keeps_its_budget_and_takes_the_arguments(arch):
    for kinds in (KINDS, ("gradient",), ("intensity",)):
        for launch in broad(kinds).plan.launches:
            macros = (*launch.macros[:-4], *BROAD)
            compiled = nvrtc.compile(plans.source_of(launch.source), macros, arch)
            needs = nvrtc.resources(compiled)[launch.kernel]
            assert (needs.spill_stores, needs.spill_loads, needs.stack, needs.shared) == (0, 0, 0, 0)
            assert needs.registers <= REGISTERS[launch.kernel.removeprefix("feature_")]
            assert launches.packed(launch) == nvrtc.parameter_table(compiled.image, launch.kernel)
            if arch == 90:
                assert floats(nvrtc.disassembly(compiled.image)[launch.kernel]) == []


def floats(code):
    """Instructions that work on floats: there is not even a division of the compiler's."""
    return [one.text for one in code if FLOATING.match(one.opcode) and not CONSTANT.match(one.text)]


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "contrast" else pytest.mark.soak) for kind in KINDS]
)
def test_ptx_equals_the_definition(kind):
    case = example((kind,))
    plan = case.plan._replace(launches=case.plan.launches[-1:])
    assert case.run(plan, run=ptx.run, schedule=3) == case.expected
