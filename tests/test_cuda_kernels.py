"""The CUDA kernels and their plans against the definition, on machines without a GPU.

What each layer proves stands in kernels/cuda/PROOF.md. Here: plans as data; sources on the CPU; the PTX that NVIDIA's
compiler makes of them; and what that compiler says of its machine code. Planted faults are in test_cuda_faults.py.
"""

import itertools
import re
import sys
from math import prod

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import naive
from cuda_tools import launches, nvrtc, ptx
from cuda_tools.cases import FRAMED, STYLES, Case, Kind, example, ground_truth, picture, window_counts, window_sums
from voxring.kernels import BORDERS, cpu
from voxring.kernels.cuda import plans

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="fibers and NVRTC's wheel are for Linux")

LARGE = 160 << 10
"""Shared memory, of newer devices, that tiles of many rows want."""

FLAT = [
    Kind((1, 3, 5), "uint16", classes=3),
    Kind((1, 4, 2), "int8", framed=False),
    Kind((1, 31, 31), "uint16", classes=255),
    Kind((1, 1, 31), "int32", classes=3),
    Kind((1, 7, 17), "uint8", classes=255, framed=False),
    Kind((1, 2, 3), "uint32", what="sums"),
    Kind((1, 5, 4), "int16", what="squares"),
    Kind((1, 2, 3), "int32", what="cubes_high"),
]
DEEP = [
    Kind((3, 3, 3), "int16", classes=3),
    Kind((2, 5, 4), "uint8", framed=False),
    Kind((8, 31, 31), "uint16"),  # eight window sums just fit 32 bits
    Kind((9, 31, 31), "uint16", framed=False),  # and do not
    Kind((68, 31, 31), "uint16"),  # |W| · max just below 2^32
    Kind((5, 3, 1), "int32", classes=3),
    Kind((3, 2, 5), "int16", what="squares"),
    Kind((2, 3, 3), "uint16", what="sums"),
    Kind((5, 17, 6), "int16", shared=LARGE),
    Kind((3, 16, 2), "uint16", framed=False, shared=LARGE),
]
WIDE = [
    Kind((1, 33, 3), "uint16", classes=3),
    Kind((3, 2, 40), "int32", classes=255, framed=False),
    Kind((69, 31, 31), "int16", what="sums"),
    Kind((2, 2, 32), "uint32", what="squares"),
]
KINDS = FLAT + DEEP + WIDE

SIDES = (1, 2, 5, 7, 8, 9, 17, 33, 64, 78, 81, 120, 129, 241, 257, 300)
MOST = 12000
"""Voxels of an example."""


def shapes():
    return st.tuples(st.integers(1, 9), st.sampled_from(SIDES[:12]), st.sampled_from(SIDES)).filter(
        lambda shape: prod(shape) <= MOST
    )


@st.composite
def cases(draw, kind):
    shape = draw(shapes())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    image = picture(rng, shape, kind.dtype, draw(st.sampled_from(STYLES)))
    labels = ground_truth(rng, shape, kind.classes, draw(st.sampled_from([0.02, 0.4, 1.0])))
    box = None
    if draw(st.booleans()):
        z, y = (sorted((draw(st.integers(0, n - 1)), draw(st.integers(1, n)))) for n in shape[:2])
        box = (z[0], max(z[1], z[0] + 1), y[0], max(y[1], y[0] + 1))
    segment = draw(st.sampled_from([None, 1, 3, 20]))
    return Case(kind, image, labels, draw(st.sampled_from(kind.borders)), box, segment)


# The oracle


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 4)] * 3),
    window=st.tuples(*[st.integers(1, 9)] * 3),
    border=st.sampled_from(BORDERS),
    seed=st.integers(0, 2**32 - 1),
)
def test_sums_by_axes_equal_the_definition(shape, window, border, seed):
    image = np.random.default_rng(seed).integers(-(2**31), 2**31, shape)
    read = {q: naive.window_values(image, shape, q, window, border, None) for q in naive.indices(shape)}
    sums, counts = window_sums(image, window, border), window_counts(shape, window, border)
    for q, values in read.items():
        inside = [int(value) for value in values if value is not None]
        assert (sums[q], counts[q]) == (sum(inside), len(inside))


# Plans


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 7), st.integers(1, 12), st.integers(1, 20)),
    window=st.tuples(*[st.integers(1, 12)] * 3),
    border=st.sampled_from(BORDERS),
    data=st.data(),
)
def test_what_is_staged_is_the_padded_image(shape, window, border, data):
    z0, y0 = (data.draw(st.integers(0, n - 1)) for n in shape[:2])
    box = (z0, data.draw(st.integers(z0 + 1, shape[0])), y0, data.draw(st.integers(y0 + 1, shape[1])))
    plan = plans.plan_for(shape, np.dtype("int16"), window, border, "reduce", box=box)
    image = np.random.default_rng(0).integers(1, 2**15, shape, dtype=np.int16)
    staged = np.full(plan.staged.shape, 0x5A5A, np.uint16)
    plans.stage_image(plan, image, staged.reshape(-1))
    rows = plan.buffers["row_at"].given
    planes = plan.buffers["plane_at"].given if window[0] > 1 else np.arange(box[1] - box[0])
    left = plan.staged.lead - window[2] // 2
    seen = staged[planes][:, rows][:, :, left : left + shape[2] + window[2] - 1].view(np.int16)
    axes = [
        [naive.source_index(q - size // 2, n, border) for q in range(first, stop + size - 1)]
        for first, stop, size, n in zip((box[0], box[2], 0), (box[1], box[3], shape[2]), window, shape, strict=True)
    ]
    expected = [0 if None in place else image[place] for place in itertools.product(*axes)]
    assert seen.ravel().tolist() == expected
    beside = np.delete(staged, np.s_[left : left + shape[2] + window[2] - 1], 2)
    assert not beside.any()


@pytest.mark.parametrize("border", ["mirror", "clip"])
@pytest.mark.parametrize("window", [(1, 3, 3), (1, 31, 31), (3, 5, 7), (21, 21, 21), (68, 31, 31), (5, 40, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 70, 500), (64, 512, 512), (2, 9000, 9000), (4000, 80, 80)])
@pytest.mark.parametrize("what", ["reduce", "squares"])
def test_plans_stay_within_what_the_kernels_promise(shape, dtype, window, border, what):
    plan = plans.plan_for(shape, np.dtype(dtype), window, border, what)
    for launch in plan.launches:
        macros = dict(launch.macros)
        assert launch.shared <= plans.SHARED
        assert 1 <= launch.grid[0] < 2**31
        assert launch.grid[1:] == launch.block[1:] == (1, 1)
        numbers = [argument for argument in launch.arguments if not isinstance(argument, str)]
        assert all(number >= 0 for number in numbers)
        assert set(launch.arguments) - set(plan.buffers) == set(numbers)
        if launch.source == "box2d.cu":
            rows, _, _, _, plane_rows, strips, segments, segment, *_ = map(int, numbers)
            assert segment * segments >= rows > segment * (segments - 1)
            assert 8 * segment <= plans.THREAD_VOXELS
            assert launch.grid[0] == -(-strips // macros["WARPS"]) * segments * shape[0]
            assert launch.block[0] == 32 * macros["WARPS"]
            assert plane_rows == plan.staged.shape[1]
        if launch.source == "box3d.cu":
            planes, rows, _, _, _, _, tiles, tile_rows, segment, *_ = map(int, numbers)
            halves = 2 * macros["WARPS"]
            out_rows = (halves * macros["ROWS"] - window[1] + 1) // 2 * 2
            assert out_rows * tile_rows >= rows > out_rows * (tile_rows - 1)
            assert 8 * segment * -(-out_rows // halves) <= plans.THREAD_VOXELS
            assert launch.grid[0] == tiles * tile_rows * -(-planes // segment)
        if launch.source != "wide.cu":
            assert (prod(window) * (2 ** (8 * macros["VOXEL"]) - 1) < 2**32 and what == "reduce") != macros["WIDE"]
            assert plan.staged.pitch * plan.staged.shape[1] < 2**31
        elif launch.kernel == "collect":
            assert launch.grid[0] * launch.block[0] >= 1
    assert plan.buffers["image"].size == prod(plan.staged.shape)
    assert plan.staged.pitch % 8 == plan.label_pitch % 8 == 0
    assert plan.bytes == sum(buffer.size * np.dtype(buffer.dtype).itemsize for buffer in plan.buffers.values())


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 30), st.integers(1, 30)),
    window=st.sampled_from([(1, 3, 3), (3, 3, 5), (7, 1, 2), (1, 40, 3)]),
    border=st.sampled_from(BORDERS),
    share=st.floats(0.05, 1.2),
)
def test_boxes_cut_an_image_once_and_read_their_halo(shape, window, border, share):
    image = np.zeros(shape, np.uint16)
    (whole,) = next(plans.boxes(image, window, border, 2**40, ["reduce"]))
    seen = np.zeros(shape[:2], int)
    try:
        for (plan,) in plans.boxes(image, window, border, int(whole.bytes * share), ["reduce"]):
            z0, z1, y0, y1 = plan.box
            assert plan.bytes <= whole.bytes * share
            seen[z0:z1, y0:y1] += 1
            for size, length, (q0, q1), (first, stop) in zip(
                window, shape, ((z0, z1), (y0, y1)), (plan.staged.planes, plan.staged.rows), strict=False
            ):
                read = {naive.source_index(i - size // 2, length, border) for i in range(q0, q1 + size - 1)} - {None}
                assert first <= min(read | {q0})
                assert max(read | {q1 - 1}) < stop
    except MemoryError:
        assert share < 1
    else:
        assert (seen == 1).all()


def test_planes_are_cut_where_their_offsets_would_leave_31_bits():
    image = np.broadcast_to(np.uint8(0), (2, 60_000, 40_000))
    parts = [plan for (plan,) in plans.boxes(image, (1, 3, 3), "clip", 2**60, ["reduce"])]
    assert len(parts) == 4
    assert all(prod(plan.staged.shape[1:]) < 2**31 for plan in parts)


def test_a_row_that_does_not_fit_is_a_memory_error():
    with pytest.raises(MemoryError, match=r"a row of 50 voxels needs \d+ bytes of the device, 99 are free"):
        list(plans.boxes(np.zeros((2, 3, 50), np.uint8), (1, 3, 3), "clip", 99, ["reduce"]))


# The sources, on the CPU


def examples(most):
    return settings(
        max_examples=most,
        deadline=None,
        suppress_health_check=[HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.too_slow],
    )


@pytest.mark.parametrize("kind", KINDS, ids=str)
@examples(20)
@given(data=st.data())
def test_kernels_equal_the_definition(kind, data):
    case = data.draw(cases(kind))
    assert case.run(schedule=data.draw(st.sampled_from([0, 1, 2, 77]))) == case.expected


@pytest.mark.parametrize("style", ["high", "low"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if prod(kind.window) > 900], ids=str)
def test_lanes_hold_what_the_largest_windows_sum(kind, style):
    case = example(kind, (72, 40, 45), style, share=0.9, border=kind.borders[-1])
    assert case.run() == case.expected


@pytest.mark.parametrize("kind", [FLAT[1], DEEP[1]], ids=str)
def test_a_thread_at_its_bound_of_voxels_is_exact(kind):
    planes, rows = (1, plans.THREAD_VOXELS // 8 + 3) if kind.window[0] == 1 else (plans.THREAD_VOXELS // 20 + 3, 4)
    case = example(kind, (planes, rows, 8), "high", share=1.0, segment=max(planes, rows) - 3)
    assert case.run() == case.expected


@pytest.mark.soak
@pytest.mark.parametrize("kind", [FLAT[0], DEEP[0], WIDE[0]], ids=str)
@pytest.mark.parametrize("border", FRAMED)
def test_kernels_equal_those_of_the_processor(kind, border):
    for seed in range(3):
        case = example(kind, (20, 200, 400), seed=seed, border=border)
        expected = cpu.reduce(case.image, case.labels, case.classes, kind.window, case.border)
        assert case.run(schedule=5) == expected


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(150))
def test_every_window_equals_the_definition(seed):
    rng = np.random.default_rng(seed)
    window = tuple(int(size) for size in rng.choice([1, 1, 2, 3, 8, 15, 16, 17, 24, 30, 31, 32, 50], 3))
    dtype = str(rng.choice(["uint8", "int8", "uint16", "int16", "uint32", "int32"]))
    what = str(rng.choice(["reduce", "reduce", "sums", "squares", "cubes", *(["squares_high"] * (dtype != "uint32"))]))
    kind = Kind(window, dtype, int(rng.choice([1, 3, 255])), bool(rng.integers(2)), what)

    @examples(15)
    @given(data=st.data())
    def holds(data):
        case = data.draw(cases(kind))
        assert case.run(schedule=data.draw(st.integers(0, 99))) == case.expected

    holds()


# The PTX


@pytest.mark.parametrize("kind", [FLAT[2], DEEP[0], DEEP[6], DEEP[9], WIDE[0]], ids=str)
def test_ptx_equals_the_definition_without_a_race(kind):
    for number, (shape, segment) in enumerate([((2, 90, 20), 33), ((3, 9, 300), 4), ((5, 3, 65), 1)]):
        case = example(kind, shape, STYLES[number], number, border=kind.borders[number % 2], segment=segment)
        assert case.run(run=ptx.run, schedule=number) == case.expected


@pytest.mark.soak
@pytest.mark.parametrize("arch", nvrtc.ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_ptx_of_every_architecture_equals_the_definition(kind, arch):
    for number, (shape, segment) in enumerate([((2, 90, 20), 33), ((3, 9, 300), 4), ((5, 3, 65), 1)]):
        case = example(kind, shape, STYLES[number], number, border=kind.borders[number % 2], segment=segment)
        assert case.run(run=ptx.run, schedule=number, arch=arch) == case.expected


# The machine code


REGISTERS = {"box2d": (88, 128), "box3d": (128, 255), "widen": (40, 40), "along": (64, 64), "collect": (64, 64)}
"""Most registers a thread; where lanes have 64 bits. 88: 20 warps an SM, 128: 16, 255: 8."""

FLOATING = re.compile(r"(F(?!LO)|D(?!EPBAR)|H|I2F|F2|MUFU|[HID]MMA)[A-Z0-9]*(\.|$)")
DIVISION = re.compile(r"(I2F|I2FP|MUFU|F2I)\.")
"""What the compiler divides integers with: the seed of a reciprocal, corrected in integers."""
CONSTANT = re.compile(r"HFMA2(\.MMA)? R\d+, -RZ, RZ, ")
"""And how it loads a constant where the unit for that is idle."""


def kinds_for_machine_code():
    return [FLAT[0], FLAT[3], FLAT[5], *DEEP[:2], *DEEP[4:7], DEEP[8], WIDE[0]]


@pytest.mark.parametrize("arch", nvrtc.ARCHITECTURES)
@pytest.mark.parametrize("kind", kinds_for_machine_code(), ids=str)
def test_machine_code_keeps_its_budget_and_takes_the_arguments(kind, arch):
    plan = example(kind, (5, 70, 300)).plan
    for launch in plan.launches:
        compiled = nvrtc.compile(plans.source_of(launch.source), launch.macros, arch)
        needs = nvrtc.resources(compiled)[launch.kernel]
        wide = dict(launch.macros).get("WIDE", 1)
        assert (needs.spill_stores, needs.spill_loads, needs.stack) == (0, 0, 0)
        assert needs.registers <= REGISTERS[launch.kernel][wide]
        assert needs.registers * launch.block[0] <= 65536
        assert needs.shared + launch.shared <= kind.shared
        assert launches.packed(launch) == nvrtc.parameter_table(compiled.image, launch.kernel)


@pytest.mark.parametrize("kind", [FLAT[0], DEEP[0], WIDE[0]], ids=str)
def test_no_number_is_ever_a_float(kind):
    for launch in example(kind, (5, 70, 300)).plan.launches:
        text = plans.source_of(launch.source)
        assert not re.search(r"\.f(16|32|64)\b", nvrtc.compile(text, launch.macros, 80, cubin=False).image.decode())
        code = nvrtc.disassembly(nvrtc.compile(text, launch.macros, 90).image)[launch.kernel]
        floats = [one.text for one in code if FLOATING.match(one.opcode) and not DIVISION.match(one.opcode)]
        assert [one for one in floats if not CONSTANT.match(one)] == []


def test_borders_that_group_voxels_are_those_that_kernels_are_compiled_for():
    macros = {b: dict(example(FLAT[0], (2, 9, 9), border=b).plan.launches[0].macros)["FRAME"] for b in BORDERS}
    assert {border for border, frame in macros.items() if frame} == set(FRAMED)
